"""Attention: softmax(q k^T) v without the q_len x kv_len matrix (flash, with online softmax).

Two forms. `Flash`: a workgroup walks the keys for a block of queries, both products by register
tiles. `Decode`: a workgroup has one query; its threads divide the keys.
"""

from __future__ import annotations

from dataclasses import dataclass

from .. import scalar as sc
from ..caps import WgslCaps
from ..dims import Dim, ceildiv
from ..scalar import Type
from ..spec import Attention, View
from .kernel import WgslKernel
from .module import Module, dim_text, fold_grid, runs_along
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
class Decode:
    """Knobs. `threads` divide the keys of one query."""

    threads: int


Kinds = Flash | Decode


def Knobs(**fields: int | bool) -> Kinds:  # the family has two kinds of knobs
    """Knobs from their JSON form."""
    return Decode(**fields) if "threads" in fields else Flash(**fields)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class FlashFields:
    """What the flash template sees. Sizes named *4 count vec4s."""

    head: str
    bq: int
    bk: int
    tq: int
    tk: int
    staged: bool
    d4: int
    v4: int
    v_columns: int  # vec4s of the output per thread and query
    batch: str
    heads: int
    repeat: int
    q_len: str
    kv_len: str
    scale: str
    causal: bool
    bias: bool
    masked_row: str


@dataclass(frozen=True, slots=True)
class DecodeFields:
    """What the decode template sees."""

    head: str
    threads: int
    d4: int
    v4: int
    parts: int  # threads that divide the keys of one vec4 of the output
    v_columns: int
    batch: str
    heads: int
    repeat: int
    q_len: str
    kv_len: str
    scale: str
    causal: bool
    bias: bool
    masked_row: str


def _v_columns(knobs: Flash, v_dim: int) -> int:
    across = knobs.bk // knobs.tk
    return (v_dim + 4 * across - 1) // (4 * across)


def _storage(spec: Attention, k: Flash) -> int:
    """Bytes of workgroup memory."""
    d4, v4 = -(-spec.head_dim // 4), -(-spec.v_dim // 4)
    scores = k.bq * (k.bk // 4 + 1) * 16 + 4 * k.bq * (k.bk // k.tk)
    staged = 16 * (k.bq * d4 + k.bk * (max(d4, v4) + 1)) if k.staged else 0
    return scores + staged


_BLOCKS = (
    (64, 32, 4, 4), (32, 32, 4, 4), (32, 32, 2, 4), (32, 16, 4, 2), (32, 16, 2, 2),
    (16, 32, 2, 4), (16, 32, 2, 2), (16, 16, 2, 2), (16, 8, 1, 1), (8, 16, 1, 1),
    (8, 8, 1, 1), (8, 4, 1, 1), (4, 8, 1, 1), (4, 32, 1, 1),
)  # fmt: skip


def space(spec: Attention, caps: WgslCaps) -> list[Kinds]:
    """Large blocks first; one query at a time where there are few queries."""
    limit = min(caps.max_invocations, caps.max_workgroup_size[0])
    flash: list[Flash] = []
    # A query that is computed is computed once, and staged.
    for staged in (True, False) if spec.query is None else (True,):
        for shape in _BLOCKS:
            k = Flash(*shape, staged)
            fits = k.threads <= limit and _storage(spec, k) <= caps.max_workgroup_storage
            # More accumulators than this would leave the registers.
            if fits and k.threads >= 32 and k.tq * _v_columns(k, spec.v_dim) <= 32:
                flash.append(k)
    # A query's keys are shared by many threads: there are few workgroups to fill a GPU with.
    counts = (64, 128, 256) if caps.emulated or _short(spec) else (256, 128, 64)
    decode: list[Kinds] = [
        Decode(n) for n in counts
        if n <= limit and _decode_storage(spec, n) <= caps.max_workgroup_storage
    ]  # fmt: skip
    if isinstance(spec.q_len, int) and spec.q_len <= 4:
        return [*decode, *flash[:6]]
    through = [k for k in flash if k.staged]
    # Small blocks of many threads fill a device with few heads and queries; large ones read
    # each key less often.
    large = isinstance(spec.q_len, int) and spec.q_len * spec.heads >= 8192
    if not large:
        through.sort(key=lambda k: (k.bq > 16, k.threads < 64, -k.threads))
    direct = [k for k in flash if not k.staged]
    direct.sort(key=lambda k: k.tq * _v_columns(k, spec.v_dim) > 16)
    return [*through[:10], *direct[:6], *decode]


def _short(spec: Attention) -> bool:
    return isinstance(spec.kv_len, int) and spec.kv_len <= 64


def _decode_storage(spec: Attention, threads: int) -> int:
    d4 = -(-spec.head_dim // 4)
    return 16 * d4 + 4 * threads + 16 * threads


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
    module.puts(
        sc.acc(), _index(spec.out), ("b", "h", "i", "d"), Type.F32,
        lane=3, lane_size=spec.v_dim, guarded=frozenset(range(len(spec.operands))),
    )  # fmt: skip
    scale = literal(sc.const(spec.scale).value, Type.F32, module.helpers)
    nothing = 0.0 if spec.zero_masked_rows else float("nan")
    masked_row = literal(nothing, Type.F32, module.helpers)
    d4, v4 = -(-spec.head_dim // 4), -(-spec.v_dim // 4)
    common = {
        "batch": dim_text(spec.batch), "heads": spec.heads, "repeat": spec.heads // spec.kv_heads,
        "q_len": dim_text(spec.q_len), "kv_len": dim_text(spec.kv_len), "scale": scale,
        "causal": spec.causal, "bias": spec.bias is not None, "masked_row": masked_row,
        "head": module.head(), "d4": d4, "v4": v4,
    }  # fmt: skip
    pairs: Dim = spec.batch * spec.heads
    if isinstance(knobs, Decode):
        parts = 1
        while parts * 2 * v4 <= knobs.threads:
            parts *= 2
        fields = DecodeFields(
            threads=knobs.threads,
            parts=parts,
            v_columns=-(-v4 * parts // knobs.threads),
            **common,  # type: ignore[arg-type]
        )
        grid = fold_grid(pairs * spec.q_len)
        one = module.dispatch("attention_decode", fields, grid)
        name = f"attention_decode_{knobs.threads}"
    else:
        tiles = FlashFields(
            bq=knobs.bq, bk=knobs.bk, tq=knobs.tq, tk=knobs.tk, staged=knobs.staged,
            v_columns=_v_columns(knobs, spec.v_dim), **common,  # type: ignore[arg-type]
        )  # fmt: skip
        grid = fold_grid(pairs * ceildiv(spec.q_len, knobs.bq))
        one = module.dispatch("attention", tiles, grid)
        name = f"attention_{knobs.bq}x{knobs.bk}_{knobs.tq}x{knobs.tk}{'s' if knobs.staged else ''}"
    return WgslKernel(name, (one,), (), module.features())


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
