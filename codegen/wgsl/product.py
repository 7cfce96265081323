"""What `matmul` and `conv` share: a product whose A and B are read through functions.

C[z, m, n] = sum_k A[z, m, k] * B[z, k, n]. The caller defines in the module
  a_at(z, m, k) -> T                   one element, k < K
  a_load(z, m, k) -> vec4<T>           A[m, k .. k + 3]; k a multiple of 4
  a_load_checked(z, m, k) -> vec4<T>   the same with zeros from K on
  b_load(z, k, n) -> vec4<T>           B[k, n .. n + 3]; n a multiple of 4
  put4(z, m, n, vec4<f32>)             epilogue and store
where T is f32, or f16 for forms that multiply in it. There are four: tiles staged in workgroup
memory, the same on subgroup matrices, both with the k axis divided among workgroups or not; few
rows (the k axis divided among threads); and direct tiles. `product_space` orders them.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..dims import Dim, ceildiv
from .kernel import Pass, WgslKernel
from .module import MATRIX_FEATURES, Module, dim_multiple, dim_text, fold_grid, parts


class Order(enum.Enum):
    """Along which axis neighbouring elements of B lie in memory."""

    PANEL = "panel"  # packed panels of 8 columns
    N = "n"
    K = "k"


_B_PAD = {Order.PANEL: 2, Order.N: 0, Order.K: 1}
"""Vec4s between two steps of k in workgroup memory, by the order in which they are stored."""


@dataclass(frozen=True, slots=True)
class Tile:
    """Knobs. A workgroup computes bm x bn, a thread tm x tn, bk of the k axis at a time."""

    bm: int
    bn: int
    bk: int
    tm: int
    tn: int
    splits: int = 1  # of the k axis, among workgroups; a second pass adds them up
    buffers: int = 1  # two: a step is stored while others still multiply the one before
    half: bool = False
    """Multiply in f16, sum up in it over bk and in f32 beyond: with bk of 16 the sums are off by
    6e-4 of their size (root mean square), where storing them as f16 costs 2e-4 anyway and sums in
    f16 alone 4e-3 at k = 768. A step's sum beyond 65,504 becomes infinite."""

    @property
    def threads(self) -> int:
        return (self.bm // self.tm) * (self.bn // self.tn)

    @property
    def a_pad(self) -> int:
        """Vec4s between the rows of two fours of k in workgroup memory."""
        return max(1, 8 // (self.bk // 4))

    @property
    def storage(self) -> int:
        """Bytes of workgroup memory, with the most padding there may be."""
        quads = self.bk // 4 * (self.bm + self.a_pad) + self.bk * (
            self.bn // 4 + max(_B_PAD.values())
        )
        return self.buffers * quads * (8 if self.half else 16)


@dataclass(frozen=True, slots=True)
class Matrix:
    """Knobs. A workgroup computes bm x bn, a subgroup sm x sn on its matrices, bk at a time."""

    bm: int
    bn: int
    bk: int
    sm: int
    sn: int
    splits: int = 1

    @property
    def threads(self) -> int:
        return (self.bm // self.sm) * (self.bn // self.sn) * 32

    @property
    def storage(self) -> int:
        """Bytes of workgroup memory: both operands, and 16 x 16 results for each subgroup."""
        return 2 * (self.bm * (self.bk + 8) + self.bk * (self.bn + 8)) + self.threads * 32


@dataclass(frozen=True, slots=True)
class Few:
    """Knobs. A workgroup computes rows x 4 columns; its threads divide columns, then k."""

    rows: int
    columns: int  # vec4s of columns per workgroup
    shares: int  # threads that divide the k axis; a power of two


@dataclass(frozen=True, slots=True)
class Direct:
    """Knobs. A thread computes tm x tn from global memory; tx x ty threads per workgroup.

    No workgroup memory and no barrier: the quickest to compile, and no slower where caches are
    good or the product is small.
    """

    tm: int
    tn: int
    tx: int
    ty: int


Knobs = Tile | Matrix | Few | Direct
_KINDS: dict[str, type[Any]] = {"shares": Few, "tx": Direct, "sm": Matrix, "tm": Tile}
"""By a field that those before it do not have."""


def knobs_from(fields: dict[str, Any]) -> Knobs:
    """Knobs from their JSON form."""
    kind = next((kind for name, kind in _KINDS.items() if name in fields), Tile)
    knobs: Knobs = kind(**fields)
    return knobs


def multiplies_half(knobs: object) -> bool:
    """Whether the operands are wanted as f16."""
    return isinstance(knobs, Matrix) or (isinstance(knobs, Tile) and knobs.half)


@dataclass(frozen=True, slots=True)
class Product:
    """Sizes and access patterns, over the same arguments as the spec."""

    z: Dim
    m: Dim
    n: Dim
    k: Dim
    a_along_k: bool  # neighbouring elements of A lie along k, else along m
    b: Order
    half: bool = False  # both operands are stored as f16
    prepares: bool = False  # a workgroup calls prepare_rows first
    statistics: bool = False  # and store_statistics last, of whole pieces of rows
    heavy: bool = False  # the epilogue calls transcendental functions
    twice: bool = False  # there is a second pass, whether the k axis is split or not


@dataclass(frozen=True, slots=True)
class StagedFields:
    """What the two templates with workgroup memory have in common."""

    head: str
    bm: int
    bn: int
    bk: int
    m: str
    n: str
    k: str
    z: str
    quad: str  # the type of four elements
    a_along_k: bool
    a_load: str
    a_row: str
    b_panel: bool
    b_along_n: bool
    check_k: bool
    split: bool
    parts: str  # of the k axis
    prepares: bool
    statistics: bool
    a_loads: int  # vec4s per thread and step
    b_loads: int


@dataclass(frozen=True, slots=True)
class TileFields(StagedFields):
    """What the tile template sees."""

    tm: int
    tn: int
    buffers: int
    half: bool
    sum: str
    square: bool
    a_pad: int
    b_pad: int
    loops: bool  # over a thread's rows, in the epilogue


@dataclass(frozen=True, slots=True)
class MatrixFields(StagedFields):
    """What the template on subgroup matrices sees."""

    sm: int
    sn: int


@dataclass(frozen=True, slots=True)
class DirectFields:
    """What the direct template sees."""

    head: str
    tm: int
    tn: int
    tx: int
    ty: int
    m: str
    n: str
    k: str
    z: str
    check_k: bool
    prepares: bool
    statistics: bool


@dataclass(frozen=True, slots=True)
class FewFields:
    """What the few-rows template sees."""

    head: str
    rows: int
    columns: int
    shares: int
    m: str
    n: str
    k: str
    z: str
    prepares: bool
    statistics: bool


@dataclass(frozen=True, slots=True)
class FinishFields:
    """What the second pass of a split product sees; `quads`: vec4s per row."""

    head: str
    workgroup: int
    parts: str
    m: str
    quads: str
    z: str


def rows_and_threads(knobs: Knobs) -> tuple[int, int]:
    """Of a workgroup."""
    if isinstance(knobs, Few):
        return knobs.rows, knobs.columns * knobs.shares
    if isinstance(knobs, Direct):
        return knobs.tm * knobs.ty, knobs.tx * knobs.ty
    return knobs.bm, knobs.threads


@dataclass(frozen=True, slots=True)
class Pieces:
    """What the caller defines: an empty module, then `loads` (a_at, a_load, b_load) and `put`
    (put4) for one. A split product has them in different shaders. `finish`, where whole rows are
    wanted, makes the second pass of any form from its module and the number of parts."""

    name: str
    module: Callable[[], Module]
    loads: Callable[[Module], None]
    put: Callable[[Module], None]
    finish: Callable[[Module, str], Pass] | None = None


def render(p: Product, knobs: Knobs, pieces: Pieces) -> WgslKernel:
    module = pieces.module()
    pieces.loads(module)
    split = isinstance(knobs, (Tile, Matrix)) and knobs.splits > 1
    if split or pieces.finish is not None:
        return _render_twice(p, knobs, module, pieces, split)
    pieces.put(module)
    one = _pass(p, knobs, module, with_output=True)
    return WgslKernel(f"{pieces.name}_{_name(knobs)}", (one,), (), module.features())


def _pass(p: Product, knobs: Knobs, module: Module, with_output: bool) -> Pass:
    if isinstance(knobs, Few):
        return _few_pass(p, knobs, module, with_output)
    if isinstance(knobs, Direct):
        return _direct_pass(p, knobs, module, with_output)
    return _staged_pass(p, knobs, module, with_output)


def _name(knobs: Knobs) -> str:
    if isinstance(knobs, Few):
        return f"few_{knobs.rows}x{knobs.columns}x{knobs.shares}"
    if isinstance(knobs, Direct):
        return f"direct_{knobs.tm}x{knobs.tn}_{knobs.tx}x{knobs.ty}"
    whole = f"{knobs.bm}x{knobs.bn}x{knobs.bk}"
    split = f"_split{knobs.splits}" if knobs.splits > 1 else ""
    if isinstance(knobs, Matrix):
        return f"matrix_{whole}_{knobs.sm}x{knobs.sn}{split}"
    kind = ("_double" if knobs.buffers > 1 else "") + ("_half" if knobs.half else "")
    return f"{whole}_{knobs.tm}x{knobs.tn}{kind}{split}"


def _few_pass(p: Product, f: Few, module: Module, with_output: bool) -> Pass:
    fields = FewFields(
        head=module.head(with_output),
        rows=f.rows,
        columns=f.columns,
        shares=f.shares,
        m=dim_text(p.m),
        n=dim_text(p.n),
        k=dim_text(p.k),
        z=dim_text(p.z),
        prepares=p.prepares,
        statistics=p.statistics,
    )
    grid = fold_grid(ceildiv(p.n, f.columns * 4) * ceildiv(p.m, f.rows) * p.z)
    return module.dispatch("product_few", fields, grid, with_output)


def _direct_pass(p: Product, d: Direct, module: Module, with_output: bool) -> Pass:
    fields = DirectFields(
        head=module.head(with_output),
        tm=d.tm,
        tn=d.tn,
        tx=d.tx,
        ty=d.ty,
        m=dim_text(p.m),
        n=dim_text(p.n),
        k=dim_text(p.k),
        z=dim_text(p.z),
        check_k=not dim_multiple(p.k, 4),
        prepares=p.prepares,
        statistics=p.statistics,
    )
    grid = fold_grid(ceildiv(p.m, d.tm * d.ty) * ceildiv(p.n, d.tn * d.tx) * p.z)
    return module.dispatch("product_direct", fields, grid, with_output)


_MANY = 32
"""Values of a thread of which an epilogue with transcendental functions is not copied for each."""


def _staged_pass(p: Product, t: Tile | Matrix, module: Module, with_output: bool) -> Pass:
    split = t.splits > 1
    half = multiplies_half(t)
    if isinstance(t, Matrix):
        module.also = MATRIX_FEATURES
    check_k = not dim_multiple(p.k, t.bk)
    row = "i32(m0 + row)"
    if not dim_multiple(p.m, t.bm):
        row = "i32(min(m0 + row, size_m - 1u))"
    common: dict[str, Any] = {
        "head": module.head(with_output),
        "bm": t.bm,
        "bn": t.bn,
        "bk": t.bk,
        "m": dim_text(p.m),
        "n": dim_text(p.n),
        "k": dim_text(p.k),
        "z": dim_text(p.z),
        "quad": "vec4<f16>" if half else "vec4<f32>",
        "a_along_k": p.a_along_k,
        "a_load": "a_load_checked" if check_k else "a_load",
        "a_row": row,
        "b_panel": p.b is Order.PANEL,
        "b_along_n": p.b is Order.N,
        "check_k": check_k,
        "split": split,
        "parts": dim_text(_parts(p, t)),
        "prepares": p.prepares,
        "statistics": p.statistics,
        "a_loads": t.bm * t.bk // 4 // t.threads,
        "b_loads": t.bn * t.bk // 4 // t.threads,
    }
    fields: StagedFields
    if isinstance(t, Matrix):
        template, fields = "product_matrix", MatrixFields(**common, sm=t.sm, sn=t.sn)
    else:
        template = "product"
        fields = TileFields(
            **common,
            tm=t.tm,
            tn=t.tn,
            buffers=t.buffers,
            half=t.half,
            sum="part" if t.half else "acc",
            # Wider tiles than 8 x 4 threads, of a multiple of that.
            square=t.bn // t.tn >= 16 and t.bm // t.tm % 4 == 0,
            a_pad=t.a_pad,
            b_pad=_B_PAD[p.b],
            loops=p.heavy and not split and t.tm * t.tn >= _MANY,
        )
    grid = fold_grid(_workgroups(p, t) * _parts(p, t))
    return module.dispatch(template, fields, grid, with_output)


def _workgroups(p: Product, t: Tile | Matrix) -> Dim:
    """Of one part of the k axis."""
    return ceildiv(p.m, t.bm) * ceildiv(p.n, t.bn) * p.z


def _parts(p: Product, t: Tile | Matrix) -> Dim:
    return parts(t.splits, _workgroups(p, t))


_FINISH_WORKGROUP = 64


def _render_twice(
    p: Product, knobs: Knobs, module: Module, pieces: Pieces, split: bool
) -> WgslKernel:
    """The first pass leaves sums in scratch, of each part where the k axis is split."""
    quads = ceildiv(p.n, 4)
    module.scratch.append(("partial_sums", "vec4<f32>"))
    if not split:
        at = f"(u32(z) * {dim_text(p.m)} + u32(m)) * {dim_text(quads)} + u32(n) / 4u"
        head = "fn put4(z: i32, m: i32, n: i32, acc: vec4<f32>) {"
        module.text(head, [f"partial_sums[{at}] = acc;"])
    first = _pass(p, knobs, module, with_output=False)
    last = pieces.module()
    last.scratch.append(("partial_sums", "vec4<f32>"))
    count = _parts(p, knobs) if isinstance(knobs, (Tile, Matrix)) else 1
    finish = pieces.finish or _finish(p, pieces)
    second = finish(last, dim_text(count))
    return WgslKernel(
        f"{pieces.name}_{_name(knobs)}",
        (first, second),
        (p.z * p.m * quads * 16 * count,),
        tuple(dict.fromkeys([*module.features(with_output=False), *last.features()])),
    )


def _finish(p: Product, pieces: Pieces) -> Callable[[Module, str], Pass]:
    """The second pass that adds up parts, one element at a time."""

    def made(module: Module, count: str) -> Pass:
        pieces.put(module)
        quads = ceildiv(p.n, 4)
        fields = FinishFields(
            head=module.head(),
            workgroup=_FINISH_WORKGROUP,
            parts=count,
            m=dim_text(p.m),
            quads=dim_text(quads),
            z=dim_text(p.z),
        )
        grid = fold_grid(ceildiv(p.z * p.m * quads, _FINISH_WORKGROUP))
        return module.dispatch("product_finish", fields, grid)

    return made
