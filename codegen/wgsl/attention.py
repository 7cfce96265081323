"""Attention: softmax(q k^T) v without the q_len x kv_len matrix (flash, with online softmax).

Five forms. `Matrices`: both products of f16 operands on subgroup matrices, 16 queries a subgroup.
`Tiles`: a workgroup walks the keys for a block of queries, both products by register
tiles from workgroup memory. `Flash`: the same with few queries and keys a thread, which may read
them where they lie. `Decode`: a workgroup has one query; its threads divide the keys. In `Tiles`
and `Decode`, workgroups may divide the keys too; a second pass brings their parts together.
`Direct`: a thread has one query and nothing is shared, for adapters that run shaders on the CPU,
where code with barriers takes ten times as long to compile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .. import scalar as sc
from ..caps import WgslCaps
from ..dims import Dim, ceildiv
from ..scalar import Type
from ..spec import Attention, Storage, View
from .kernel import Pass, WgslKernel
from .module import MATRIX_FEATURES, Module, dim_text, fold_grid, parts, runs_along
from .scalar import literal


@dataclass(frozen=True, slots=True)
class Flash:
    """Knobs. bq queries and bk keys at a time; a thread has tq x tk scores; `staged`: queries
    and keys are read through workgroup memory, else where they lie."""

    bq: int
    bk: int
    tq: int
    tk: int
    staged: bool

    @property
    def threads(self) -> int:
        return (self.bq // self.tq) * (self.bk // self.tk)


@dataclass(frozen=True, slots=True)
class Tiles:
    """Knobs. bq queries and bk keys at a time; a thread has tq queries' scores with four keys."""

    bq: int
    bk: int
    tq: int
    dc: int  # vec4s of features staged at a time
    splits: int = 1  # of the keys, among workgroups; a second pass joins them

    @property
    def threads(self) -> int:
        return (self.bq // self.tq) * (self.bk // 4)


@dataclass(frozen=True, slots=True)
class Matrices:
    """Knobs. A workgroup of so many subgroups of 32, 16 queries each, has bk keys at a time."""

    subgroups: int
    bk: int

    @property
    def bq(self) -> int:
        return 16 * self.subgroups

    @property
    def threads(self) -> int:
        return 32 * self.subgroups


@dataclass(frozen=True, slots=True)
class Decode:
    """Knobs. `threads` divide the keys of one query."""

    threads: int
    splits: int = 1


@dataclass(frozen=True, slots=True)
class Direct:
    """Knobs. `group` queries in a workgroup."""

    group: int

    @property
    def threads(self) -> int:
        return self.group


Kinds = Flash | Tiles | Matrices | Decode | Direct


def Knobs(**fields: int | bool) -> Kinds:  # the family has several kinds of knobs
    """Knobs from their JSON form."""
    if "group" in fields:
        return Direct(**fields)
    if "subgroups" in fields:
        return Matrices(**fields)
    kind = Decode if "threads" in fields else Tiles if "dc" in fields else Flash
    return kind(**fields)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, kw_only=True)
class _OutputFields:
    """What every template sees. Sizes named *4 count vec4s."""

    head: str
    v4: int
    batch: str
    heads: int
    q_len: str
    kv_len: str
    masked_row: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _ScoreFields(_OutputFields):
    """What the templates see that compute scores, in one pass or the first of two."""

    d4: int
    repeat: int
    scale: str
    causal: bool
    bias: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FlashFields(_ScoreFields):
    """What the flash template sees."""

    bq: int
    bk: int
    tq: int
    tk: int
    staged: bool
    v_columns: int  # vec4s of the output per thread and query


@dataclass(frozen=True, slots=True, kw_only=True)
class TilesFields(_ScoreFields):
    """What the template of tiles sees. `dc` counts vec4s."""

    bq: int
    bk: int
    tq: int
    dc: int
    chunks: int  # of the features
    q_loads: int  # vec4s a thread and chunk; where all features are one, they are loaded once
    k_loads: int
    v_loads: int
    v_columns: int
    split: bool
    parts: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MatricesFields(_ScoreFields):
    """What the template on subgroup matrices sees."""

    subgroups: int
    bk: int
    d: int  # features, padded
    v: int
    p_at: int
    k_loads: int  # vec4s a thread
    v_loads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeFields(_ScoreFields):
    """What the decode template sees."""

    threads: int
    shares: int  # threads that divide the keys of one vec4 of the output
    v_columns: int
    split: bool
    parts: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectFields(_ScoreFields):
    """What the direct template sees."""

    group: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinFields(_OutputFields):
    """What the second pass of divided keys sees."""

    workgroup: int
    parts: str


def _v_columns(threads_across: int, v_dim: int) -> int:
    return (v_dim + 4 * threads_across - 1) // (4 * threads_across)


def _padded(features: int) -> int:
    """To whole subgroup matrices."""
    return -(-features // 16) * 16


def _weights_at(spec: Attention, k: Matrices) -> int:
    """Where the softmax's weights begin, in f16 elements: behind keys and values, or queries."""
    d, v = _padded(spec.head_dim) + 8, _padded(spec.v_dim) + 8
    return max(k.bk * (d + v), k.bq * d)


def _storage(spec: Attention, k: Kinds) -> int:
    """Bytes of workgroup memory."""
    d4, v4 = -(-spec.head_dim // 4), -(-spec.v_dim // 4)
    if isinstance(k, Direct):
        return 0
    if isinstance(k, Decode):
        return 16 * d4 + 20 * k.threads
    if isinstance(k, Matrices):
        halves = _weights_at(spec, k) + k.bq * (k.bk + 8)
        return 2 * halves + 4 * k.bq * (max(k.bk, _padded(spec.v_dim)) + 4) + 4 * k.threads
    if isinstance(k, Tiles):
        across = k.bk // 4
        staged = k.bq * (k.dc + 1) + max(k.bk * (k.dc + 1), k.bk * v4)
        return 16 * (staged + k.bq * (across + 1)) + 4 * k.bq * across
    scores = k.bq * (k.bk // 4 + 1) * 16 + 4 * k.bq * (k.bk // k.tk)
    return scores + (16 * (k.bq * d4 + k.bk * (max(d4, v4) + 1)) if k.staged else 0)


_BLOCKS = (
    (64, 32, 4, 4), (32, 32, 4, 4), (32, 32, 2, 4), (32, 16, 4, 2), (32, 16, 2, 2),
    (16, 32, 2, 4), (16, 32, 2, 2), (16, 16, 2, 2), (16, 8, 1, 1), (8, 16, 1, 1),
    (8, 8, 1, 1), (8, 4, 1, 1), (4, 8, 1, 1), (4, 32, 1, 1),
)  # fmt: skip
_MATRICES = ((4, 32), (2, 64), (2, 32), (4, 16), (1, 64), (1, 32), (2, 16), (1, 16))
_TILES = (
    # (bq, bk, tq), and into how many parts the keys may be cut, in the order measured
    (32, 32, 4, (4, 2, 1)), (64, 32, 4, (4, 2)), (16, 32, 2, (4, 1, 2)), (16, 64, 2, (1, 2)),
    (32, 32, 2, (2,)), (32, 16, 2, (2, 1)), (64, 32, 8, (4, 2)), (32, 64, 4, (2,)),
)  # fmt: skip
_SHORT = 128  # keys that no workgroups need to divide
_USUAL_ROWS = 384


def space(spec: Attention, caps: WgslCaps) -> list[Kinds]:
    """Tiles first, or matrices, in the order of what `tests.bench.candidates` measured on an H100
    in Chromium; one query at a time where there are few queries. On a CPU a query per thread."""
    alone: list[Kinds] = [Direct(n) for n in (16, 64)] if caps.emulated else []
    flash, decode = _flash(spec, caps), _decode(spec, caps)
    if isinstance(spec.q_len, int) and spec.q_len <= 4:
        return [*alone, *decode, *flash[:6]]
    matrices = _matrices(spec, caps)
    through = [k for k in flash if k.staged]
    through.sort(key=lambda k: (k.bq > 16, k.threads < 64, -k.threads))
    direct = [k for k in flash if not k.staged]
    direct.sort(key=lambda k: k.tq * _v_columns(k.bk // k.tk, spec.v_dim) > 16)
    # A CPU switches threads at every barrier, and takes long to compile.
    tiles = [] if caps.emulated else _tiles(spec, caps)
    whole = [k for k in decode if k.splits == 1]
    if tiles:
        # Where there is little to compute, staging is what takes the time.
        first = 2 if _is_short(spec) or not matrices else 0
        rest = tiles[first : 6 if matrices else 12]
        return [*tiles[:first], *matrices, *rest, *through[:3], *direct[:3], *whole[:2]]
    return [*alone, *through[:10], *direct[:6], *whole[:2]]


def _fits(spec: Attention, k: Kinds, caps: WgslCaps) -> bool:
    limit = min(caps.max_invocations, caps.max_workgroup_size[0])
    return k.threads <= limit and _storage(spec, k) <= caps.max_workgroup_storage


def _flash(spec: Attention, caps: WgslCaps) -> list[Flash]:
    found = []
    # A query that is computed is computed once, and staged.
    for staged in (True, False) if spec.query is None else (True,):
        for shape in _BLOCKS:
            k = Flash(*shape, staged)
            # More accumulators than this would leave the registers.
            few = k.tq * _v_columns(k.bk // k.tk, spec.v_dim) <= 32
            if k.threads >= 32 and few and _fits(spec, k, caps):
                found.append(k)
    return found


def _decode(spec: Attention, caps: WgslCaps) -> list[Decode]:
    short = isinstance(spec.kv_len, int) and spec.kv_len <= 64
    if caps.emulated or short:
        pairs = [(64, 1), (128, 1), (256, 1)]
    else:
        # A query's keys are shared by many threads: there are few queries to fill a GPU with.
        pairs = [(256, 4), (128, 8), (256, 8), (128, 4), (64, 8), (64, 16), (256, 2), (256, 1),
                 (128, 2), (128, 1), (64, 1)]  # fmt: skip
    found = [Decode(*pair) for pair in pairs]
    return [k for k in found if _some_keys(spec, k, k.threads // 2) and _fits(spec, k, caps)]


def _tiles(spec: Attention, caps: WgslCaps) -> list[Tiles]:
    d4 = -(-spec.head_dim // 4)
    chunks = dict.fromkeys([*(n for n in (4,) if n < d4 and d4 % n == 0), d4])
    found = [
        Tiles(bq, bk, tq, dc, splits)
        for bq, bk, tq, parts_ in _TILES
        for dc in chunks
        for splits in parts_
    ]
    if _is_short(spec):  # small blocks of all features, keys undivided
        found.sort(key=lambda k: (k.bq > 16, k.splits > 1, -k.dc))
    elif not spec.causal:
        # Where queries alone are enough for the device, joining parts would be one dispatch more.
        bq = next((n for n in (32, 16) if _blocks(spec, n) >= 2 * caps.fill), 0)
        found.sort(key=lambda k: -k.dc if (k.bq, k.bk, k.splits) == (bq, 32, 1) else 1)
    # More accumulators than 32 would leave the registers.
    return [
        k for k in found
        if k.tq * _v_columns(k.bk // 4, spec.v_dim) <= 32
        and _some_keys(spec, k, k.bk) and _fits(spec, k, caps)
    ]  # fmt: skip


def _matrices(spec: Attention, caps: WgslCaps) -> list[Matrices]:
    """For many queries. Where their number is known at run time only, it may be one at a time if
    there are more keys than queries."""
    many = spec.q_len == spec.kv_len or (isinstance(spec.q_len, int) and spec.q_len >= 16)
    if not (caps.matrix and many and set(spec.operands[:3]) == {Storage.F16}):
        return []
    return [k for k in (Matrices(*shape) for shape in _MATRICES) if _fits(spec, k, caps)]


def _blocks(spec: Attention, bq: int) -> int:
    """Workgroups of so many queries each; with a guess for what is known at run time only."""
    batch = spec.batch if isinstance(spec.batch, int) else 1
    rows = spec.q_len if isinstance(spec.q_len, int) else _USUAL_ROWS
    return batch * spec.heads * -(-rows // bq)


def _is_short(spec: Attention) -> bool:
    return spec.head_dim <= 32 or (isinstance(spec.kv_len, int) and spec.kv_len <= _SHORT)


def _some_keys(spec: Attention, k: Tiles | Decode, least: int) -> bool:
    """Whether each part has as many."""
    return k.splits == 1 or not isinstance(spec.kv_len, int) or spec.kv_len >= k.splits * least


_TEMPLATES = {
    Flash: "attention",
    Tiles: "attention_tiles",
    Matrices: "attention_matrix",
    Decode: "attention_decode",
    Direct: "attention_direct",
}


def render(spec: Attention, knobs: Kinds) -> WgslKernel:
    module = Module(spec.operands, spec.output, spec.n_args)
    for operand, (name, view, size) in enumerate(
        (("q", spec.q, spec.head_dim), ("k", spec.k, spec.head_dim), ("v", spec.v, spec.v_dim))
    ):
        if operand == 0 and spec.query is not None:
            _define_query(module, spec.query, size)
        else:
            _define_load(module, operand, name, view, size)
    if spec.bias is not None:
        params = {sc.axis(i): (name, "i32") for i, name in enumerate("bhij")}
        module.function("bias_at", params, spec.bias)
    split = isinstance(knobs, Tiles | Decode) and knobs.splits > 1
    if split:
        module.scratch.append(("partial_rows", "vec4<f32>"))
    else:
        _define_put(module, spec)
    if isinstance(knobs, Matrices):
        module.also = MATRIX_FEATURES
    rows = fold_grid(_workgroups(spec, knobs) * _parts(spec, knobs))
    fields = _fields(spec, knobs, module, split)
    first = module.dispatch(_TEMPLATES[type(knobs)], fields, rows, with_output=not split)
    name = f"attention_{_name(knobs)}"
    if not split:
        return WgslKernel(name, (first,), (), module.features())
    last = Module(spec.operands, spec.output, spec.n_args)
    _define_put(last, spec)
    last.scratch.append(("partial_rows", "vec4<f32>"))
    second = _join(spec, knobs, last)
    elements = spec.batch * spec.heads * spec.q_len * (-(-spec.v_dim // 4) + 1)
    features = dict.fromkeys([*module.features(with_output=False), *last.features()])
    partial = elements * _parts(spec, knobs) * 16
    return WgslKernel(name, (first, second), (partial,), tuple(features))


def _define_put(module: Module, spec: Attention) -> None:
    module.puts(
        sc.acc(), _index(spec.out), ("b", "h", "i", "d"), Type.F32,
        lane=3, lane_size=spec.v_dim, guarded=frozenset(range(len(spec.operands))),
    )  # fmt: skip


def _workgroups(spec: Attention, knobs: Kinds) -> Dim:
    """Of one part of the keys."""
    if isinstance(knobs, Direct):
        return ceildiv(spec.batch * spec.heads * spec.q_len, knobs.group)
    blocks = spec.q_len if isinstance(knobs, Decode) else ceildiv(spec.q_len, knobs.bq)
    return spec.batch * spec.heads * blocks


def _parts(spec: Attention, knobs: Kinds) -> Dim:
    """Into how many parts the keys are cut."""
    if isinstance(knobs, Flash | Matrices | Direct):
        return 1
    most = ceildiv(spec.kv_len, knobs.threads if isinstance(knobs, Decode) else knobs.bk)
    return parts(knobs.splits, _workgroups(spec, knobs), most)


def _name(knobs: Kinds) -> str:
    if isinstance(knobs, Direct):
        return f"direct_{knobs.group}"
    if isinstance(knobs, Flash):
        return f"{knobs.bq}x{knobs.bk}_{knobs.tq}x{knobs.tk}{'s' if knobs.staged else ''}"
    if isinstance(knobs, Matrices):
        return f"matrix_{knobs.bq}x{knobs.bk}"
    split = f"_split{knobs.splits}" if knobs.splits > 1 else ""
    if isinstance(knobs, Decode):
        return f"decode_{knobs.threads}{split}"
    return f"tiles_{knobs.bq}x{knobs.bk}_{knobs.tq}x4_{knobs.dc}{split}"


def _fields(
    spec: Attention, knobs: Kinds, module: Module, split: bool
) -> FlashFields | TilesFields | MatricesFields | DecodeFields | DirectFields:
    d4, v4 = -(-spec.head_dim // 4), -(-spec.v_dim // 4)
    scale = literal(sc.const(spec.scale).value, Type.F32, module.helpers)
    common: dict[str, Any] = {
        **_output_fields(spec, module, with_output=not split), "d4": d4, "scale": scale,
        "repeat": spec.heads // spec.kv_heads, "causal": spec.causal, "bias": spec.bias is not None,
    }  # fmt: skip
    if isinstance(knobs, Direct):
        return DirectFields(group=knobs.group, **common)
    if isinstance(knobs, Flash):
        across = knobs.bk // knobs.tk
        return FlashFields(
            bq=knobs.bq, bk=knobs.bk, tq=knobs.tq, tk=knobs.tk, staged=knobs.staged,
            v_columns=_v_columns(across, spec.v_dim), **common,
        )  # fmt: skip
    if isinstance(knobs, Matrices):
        d, v = _padded(spec.head_dim), _padded(spec.v_dim)
        return MatricesFields(
            subgroups=knobs.subgroups, bk=knobs.bk, d=d, v=v, p_at=_weights_at(spec, knobs),
            k_loads=-(-knobs.bk * d // 4 // knobs.threads),
            v_loads=-(-knobs.bk * v // 4 // knobs.threads), **common,
        )  # fmt: skip
    common |= {"split": split, "parts": dim_text(_parts(spec, knobs))}
    if isinstance(knobs, Tiles):
        return TilesFields(
            bq=knobs.bq, bk=knobs.bk, tq=knobs.tq, dc=knobs.dc, chunks=-(-d4 // knobs.dc),
            q_loads=-(-knobs.bq * knobs.dc // knobs.threads) if knobs.dc < d4 else 0,
            k_loads=-(-knobs.bk * knobs.dc // knobs.threads),
            v_loads=-(-knobs.bk * v4 // knobs.threads),
            v_columns=_v_columns(knobs.bk // 4, spec.v_dim), **common,
        )  # fmt: skip
    shares = 1
    while shares * 2 * v4 <= knobs.threads:
        shares *= 2
    columns = -(-v4 * shares // knobs.threads)
    return DecodeFields(threads=knobs.threads, shares=shares, v_columns=columns, **common)


def _output_fields(spec: Attention, module: Module, with_output: bool = True) -> dict[str, Any]:
    nothing = 0.0 if spec.zero_masked_rows else float("nan")
    masked_row = literal(nothing, Type.F32, module.helpers)  # before the head, which has its helper
    return {
        "head": module.head(with_output=with_output), "v4": -(-spec.v_dim // 4),
        "batch": dim_text(spec.batch), "heads": spec.heads, "q_len": dim_text(spec.q_len),
        "kv_len": dim_text(spec.kv_len), "masked_row": masked_row,
    }  # fmt: skip


_JOIN_WORKGROUP = 64


def _join(spec: Attention, knobs: Kinds, module: Module) -> Pass:
    fields = JoinFields(
        workgroup=_JOIN_WORKGROUP,
        parts=dim_text(_parts(spec, knobs)),
        **_output_fields(spec, module),
    )
    threads = spec.batch * spec.heads * spec.q_len * fields.v4
    return module.dispatch("attention_join", fields, fold_grid(ceildiv(threads, _JOIN_WORKGROUP)))


def _index(view: View) -> sc.Scalar:
    total = sc.dim(view.offset)
    for i, stride in enumerate(view.strides):
        if stride != 0:
            total = total + sc.axis(i) * sc.dim(stride)
    return total


def _define_query(module: Module, query: sc.Scalar, size: int) -> None:
    """`q_load` where q is computed as it is read."""
    params = {sc.axis(i): (n, "i32") for i, n in enumerate(("b", "h", "i", "d"))}
    module.function("q_at", params, query)
    _define_load_by_element(module, "q", size)


def _define_load(module: Module, operand: int, name: str, view: View, size: int) -> None:
    """`q_load(b, h, i, d4)`: features 4 d4 .. 4 d4 + 3, zero from `size` on."""
    index = _index(view)
    names = {sc.axis(i): n for i, n in enumerate(("b", "h", "i", "d"))}
    speller = module.speller(names)
    (at,) = speller.spell(index)
    head = f"fn {name}_load(b: i32, h: i32, i: i32, d4: i32) -> vec4<f32> {{"
    if size % 4 == 0 and runs_along(index, 3):
        value = module.element4(operand, f"u32({at}) / 4u")
        module.text(head, ["let d = d4 * 4;", *speller.lines, f"return {value};"])
        return
    module.text(f"fn {name}_at(b: i32, h: i32, i: i32, d: i32) -> f32 {{",
                [*speller.lines, f"return {module.element(operand, at)};"])  # fmt: skip
    _define_load_by_element(module, name, size)


def _define_load_by_element(module: Module, name: str, size: int) -> None:
    head = f"fn {name}_load(b: i32, h: i32, i: i32, d4: i32) -> vec4<f32> {{"
    lines = ["var r = vec4<f32>();"]
    for c, component in enumerate("xyzw"):
        lines.append(f"if (d4 * 4 + {c} < {size}) {{"
                     f" r.{component} = {name}_at(b, h, i, d4 * 4 + {c}); }}")  # fmt: skip
    module.text(head, [*lines, "return r;"])
