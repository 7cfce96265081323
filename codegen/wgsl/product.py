"""What `matmul` and `conv` share: a product whose A and B are read through functions.

C[z, m, n] = sum_k A[z, m, k] * B[z, k, n]. The caller defines in the module
  a_at(z, m, k) -> f32             one element, k < K
  a_load(z, m, k) -> vec4<f32>     A[m, k .. k + 3], zeros from K on; k a multiple of 4
  b_load(z, k, n) -> vec4<f32>     B[k, n .. n + 3]; n a multiple of 4
  put4(z, m, n, vec4<f32>)         epilogue and store
and chooses among four forms: tiles staged in workgroup memory, tiles with the k axis divided
among workgroups, few rows (the k axis divided among threads), and direct tiles.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from .. import scalar as sc
from ..caps import WgslCaps
from ..dims import Dim, ceildiv
from ..scalar import Scalar
from .kernel import Pass, WgslKernel
from .module import Module, dim_multiple, dim_text, fold_grid


class Order(enum.Enum):
    """Along which axis neighbouring elements of B lie in memory."""

    PANEL = "panel"  # packed panels of 8 columns
    N = "n"
    K = "k"


@dataclass(frozen=True, slots=True)
class Tile:
    """Knobs. A workgroup computes bm x bn, a thread tm x tn, bk of the k axis at a time."""

    bm: int
    bn: int
    bk: int
    tm: int
    tn: int
    splits: int = 1  # of the k axis, among workgroups; a second pass adds them up
    ahead: bool = False  # the next bk is loaded into registers while this one is multiplied

    @property
    def threads(self) -> int:
        return (self.bm // self.tm) * (self.bn // self.tn)

    @property
    def even(self) -> bool:
        """Whether every thread loads as many vec4s of each operand as any other."""
        return self.bm * self.bk // 4 % self.threads == 0 == self.bn * self.bk // 4 % self.threads

    @property
    def storage(self) -> int:
        """Bytes of workgroup memory, with the padding that keeps its banks apart."""
        return 16 * (self.bm * (self.bk // 4 + 1) + self.bn // 8 * (self.bk * 2 + 2))


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


Knobs = Tile | Few | Direct


def knobs_from(fields: dict[str, int]) -> Knobs:
    """Knobs from their JSON form."""
    kind = Few if "shares" in fields else Direct if "tx" in fields else Tile
    return kind(**fields)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Product:
    """Sizes and access patterns, over the same arguments as the spec."""

    z: Dim
    m: Dim
    n: Dim
    k: Dim
    a_along_k: bool  # neighbouring elements of A lie along k, else along m
    b: Order


@dataclass(frozen=True, slots=True)
class TileFields:
    """What the tile template sees."""

    head: str
    bm: int
    bn: int
    bk: int
    tm: int
    tn: int
    m: str
    n: str
    k: str
    z: str
    a_along_k: bool
    b_panel: bool
    b_along_n: bool
    check_k: bool
    split: bool
    splits: int
    ahead: bool
    a_loads: int  # vec4s per thread and step
    b_loads: int


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


@dataclass(frozen=True, slots=True)
class FinishFields:
    """What the second pass of a split product sees; `quads`: vec4s per row."""

    head: str
    workgroup: int
    splits: int
    m: str
    quads: str
    z: str


_TILES = (
    # (bm, bn, bk, tm, tn), large to small
    (128, 128, 8, 8, 8), (128, 128, 16, 8, 8), (128, 64, 16, 8, 8), (64, 128, 16, 8, 8),
    (64, 64, 16, 8, 4), (64, 64, 16, 4, 4), (64, 64, 16, 8, 8), (64, 64, 32, 8, 4),
    (64, 32, 32, 4, 4), (32, 64, 32, 4, 4), (32, 32, 32, 4, 4), (32, 32, 16, 2, 4),
    (16, 64, 32, 2, 4), (16, 64, 16, 4, 4), (16, 32, 32, 2, 4), (64, 16, 32, 4, 4),
    (16, 32, 64, 2, 4), (32, 32, 64, 2, 4),
)  # fmt: skip


def space(p: Product, caps: WgslCaps) -> list[Knobs]:
    """What a rough model of a GPU thinks fastest, first; few-rows forms first for small M."""
    few = [f for f in _few(p) if _legal_few(f, caps)]
    tiles: list[Tile] = []
    shapes: Counter[tuple[int, ...]] = Counter()
    for t in sorted(_tiles(p, caps), key=lambda t: _cycles(p, t)):
        shape = (t.bm, t.bn, t.bk, t.tm, t.tn)
        shapes[shape] += 1
        if shapes[shape] <= 2:  # its best variants; tuning wants different shapes
            tiles.append(t)
    # The default must compile quickly wherever a page is opened. Looking ahead spells every load
    # three times over, which took seconds per shader on a software adapter: that is for tuning.
    tiles.sort(key=lambda t: t.ahead)
    direct = [d for d in _direct(p) if d.tx * d.ty <= caps.max_invocations]
    if isinstance(p.m, int) and p.m <= 8:
        return [*few, *tiles[:8], *direct[:2]]
    if caps.emulated or _multiplications(p) <= _SMALL:
        return [*direct[:3], *tiles[:16], *few[:3]]
    return [*tiles[:16], *direct[:3], *few[:3]]


_SMALL = 8 << 20
"""Multiplications of a product too small for staging to pay: it would take microseconds on any
GPU, while a shader with workgroup memory takes several times as long to compile."""


def _multiplications(p: Product) -> int:
    m, n, z, k = (x if isinstance(x, int) else _USUAL for x in (p.m, p.n, p.z, p.k))
    return m * n * k * (z if isinstance(p.z, int) else 8)


def _direct(p: Product) -> list[Direct]:
    """Small tiles first where there are few columns, so that enough threads have work."""
    n = p.n if isinstance(p.n, int) else _USUAL
    wide = [Direct(4, 4, 8, 8), Direct(4, 8, 8, 8), Direct(2, 4, 8, 8), Direct(4, 4, 16, 4)]
    narrow = [Direct(2, 4, 8, 8), Direct(4, 4, 4, 16), Direct(1, 4, 4, 16)]
    return wide if n >= 32 else narrow


def _tiles(p: Product, caps: WgslCaps) -> list[Tile]:
    k = p.k if isinstance(p.k, int) else 64
    elements = p.z * p.m * ceildiv(p.n, 4) * 4
    # Partial sums must be sure to fit: a dynamic product may grow to any size.
    room = _MOST_PARTIAL // (4 * max(elements, 1)) if isinstance(elements, int) else 1
    found = []
    for shape in _TILES:
        for splits in (1, 2, 4, 8, 16):
            for ahead in (False, True):
                t = Tile(*shape, splits, ahead)
                divisible = splits == 1 or (k >= splits * t.bk * 4 and splits <= room)
                if divisible and (t.even or not ahead) and _legal(t, caps):
                    found.append(t)
    return found


_MOST_PARTIAL = 32 << 20
"""Bytes of partial sums that a split product may take."""

_USUAL = 256  # what a dynamic size is taken for
_SLOTS = 96  # workgroups that run side by side, each at 128 multiplications per cycle
_LATENCY = 600  # cycles from asking for a tile to having it


def _cycles(p: Product, t: Tile) -> float:
    """An estimate that orders candidates; only measuring tells how long they take."""
    m, n, z, k = (x if isinstance(x, int) else _USUAL for x in (p.m, p.n, p.z, p.k))
    z = z if isinstance(p.z, int) else 8
    groups = -(-m // t.bm) * -(-n // t.bn) * z * t.splits
    waves = max(1.0, groups / _SLOTS)
    beside = min(4.0, waves)  # workgroups that share a slot and hide each other's latency
    rate = min(128.0, t.threads * beside)
    # Reads from workgroup memory per multiplication fall as a thread's tile grows.
    busy = min(1.0, t.tm * t.tn / (t.tm + t.tn) / 3)
    step = t.bm * t.bn * t.bk / rate / busy
    wait = _LATENCY / beside * (0.4 if t.ahead else 1.0)
    # Looking ahead costs registers, which the largest tiles have none to spare of.
    if t.ahead and t.tm * t.tn >= 64:
        step *= 1.1
    # Partial sums go out to memory and come back, some thousand bytes per cycle.
    second_pass = 6000 + m * n * z * t.splits * 8 / 1000 if t.splits > 1 else 0
    return waves * max(1, -(-k // (t.bk * t.splits))) * (step + wait) + second_pass


def _legal(t: Tile, caps: WgslCaps) -> bool:
    return (
        t.storage <= caps.max_workgroup_storage
        and t.threads <= min(caps.max_invocations, caps.max_workgroup_size[0])
    )  # fmt: skip


def _few(p: Product) -> list[Few]:
    m = p.m if isinstance(p.m, int) else 4
    rows = next(r for r in (1, 2, 4, 8) if r >= min(m, 8))
    if p.b is Order.PANEL:
        pairs = [(2, 32), (2, 64), (2, 16), (4, 32), (4, 16), (2, 128), (8, 8)]
    elif p.b is Order.N:
        pairs = [(8, 8), (8, 16), (16, 8), (4, 16), (8, 32), (16, 4), (32, 4)]
    else:
        pairs = [(1, 64), (1, 32), (2, 32), (1, 128), (2, 64), (4, 32), (1, 256)]
    return [Few(rows, columns, shares) for columns, shares in pairs]


def _legal_few(f: Few, caps: WgslCaps) -> bool:
    threads = f.columns * f.shares
    return (
        threads <= min(caps.max_invocations, caps.max_workgroup_size[0])
        and 16 * f.rows * threads <= caps.max_workgroup_storage
    )


@dataclass(frozen=True, slots=True)
class Parts:
    """What the caller defines: an empty module, then `loads` (a_at, a_load, b_load) and `put`
    (put4) for one. A split product has them in different shaders."""

    name: str
    module: Callable[[], Module]
    loads: Callable[[Module], None]
    put: Callable[[Module], None]


def render(p: Product, knobs: Knobs, parts: Parts) -> WgslKernel:
    module = parts.module()
    parts.loads(module)
    if isinstance(knobs, Tile) and knobs.splits > 1:
        return _render_split(p, knobs, module, parts)
    parts.put(module)
    if isinstance(knobs, Few):
        one = _few_pass(p, knobs, module)
        name = f"{parts.name}_few_{knobs.rows}x{knobs.columns}x{knobs.shares}"
    elif isinstance(knobs, Direct):
        one = _direct_pass(p, knobs, module)
        name = f"{parts.name}_direct_{knobs.tm}x{knobs.tn}_{knobs.tx}x{knobs.ty}"
    else:
        one = _tile_pass(p, knobs, module)
        name = f"{parts.name}_{_tile_name(knobs)}"
    return WgslKernel(name, (one,), (), module.features())


def _few_pass(p: Product, f: Few, module: Module) -> Pass:
    fields = FewFields(
        head=module.head(),
        rows=f.rows,
        columns=f.columns,
        shares=f.shares,
        m=dim_text(p.m),
        n=dim_text(p.n),
        k=dim_text(p.k),
        z=dim_text(p.z),
    )
    grid = fold_grid(ceildiv(p.n, f.columns * 4) * ceildiv(p.m, f.rows) * p.z)
    return module.dispatch("product_few", fields, grid)


def _direct_pass(p: Product, d: Direct, module: Module) -> Pass:
    fields = DirectFields(
        head=module.head(),
        tm=d.tm,
        tn=d.tn,
        tx=d.tx,
        ty=d.ty,
        m=dim_text(p.m),
        n=dim_text(p.n),
        k=dim_text(p.k),
        z=dim_text(p.z),
        check_k=not dim_multiple(p.k, 4),
    )
    grid = fold_grid(ceildiv(p.m, d.tm * d.ty) * ceildiv(p.n, d.tn * d.tx) * p.z)
    return module.dispatch("product_direct", fields, grid)


def _tile_name(t: Tile) -> str:
    return f"{t.bm}x{t.bn}x{t.bk}_{t.tm}x{t.tn}{'a' if t.ahead else ''}"


def _tile_pass(p: Product, t: Tile, module: Module) -> Pass:
    split = t.splits > 1
    fields = TileFields(
        head=module.head(with_output=not split),
        bm=t.bm,
        bn=t.bn,
        bk=t.bk,
        tm=t.tm,
        tn=t.tn,
        m=dim_text(p.m),
        n=dim_text(p.n),
        k=dim_text(p.k),
        z=dim_text(p.z),
        a_along_k=p.a_along_k,
        b_panel=p.b is Order.PANEL,
        b_along_n=p.b is Order.N,
        check_k=not dim_multiple(p.k, t.bk),
        split=split,
        splits=t.splits,
        ahead=t.ahead,
        a_loads=t.bm * t.bk // 4 // t.threads,
        b_loads=t.bn * t.bk // 4 // t.threads,
    )
    grid = fold_grid(ceildiv(p.m, t.bm) * ceildiv(p.n, t.bn) * p.z * t.splits)
    return module.dispatch("product", fields, grid, with_output=not split)


_FINISH_WORKGROUP = 64


def _render_split(p: Product, t: Tile, module: Module, parts: Parts) -> WgslKernel:
    module.scratch.append(("partial_sums", "vec4<f32>"))
    first = _tile_pass(p, t, module)
    last = parts.module()
    parts.put(last)
    last.scratch.append(("partial_sums", "vec4<f32>"))
    quads = ceildiv(p.n, 4)
    fields = FinishFields(
        head=last.head(),
        workgroup=_FINISH_WORKGROUP,
        splits=t.splits,
        m=dim_text(p.m),
        quads=dim_text(quads),
        z=dim_text(p.z),
    )
    grid = fold_grid(ceildiv(p.z * p.m * quads, _FINISH_WORKGROUP))
    second = last.dispatch("product_finish", fields, grid)
    return WgslKernel(
        f"{parts.name}_{_tile_name(t)}_split{t.splits}",
        (first, second),
        (p.z * p.m * quads * (16 * t.splits),),
        tuple(dict.fromkeys([*module.features(with_output=False), *last.features()])),
    )


def define_a(
    module: Module, index: Scalar, inside: Scalar | None, k: Dim, vector: bool, name: str = "a"
) -> None:
    """NAME_at and NAME_load for operand 0; `index` and `inside` are over AXIS (z, m, k).

    Where `inside` is false the element is 0. `vector`: index runs along k, K is a multiple of 4.
    """
    names = {sc.axis(0): "z", sc.axis(1): "m", sc.axis(2): "k"}
    speller = module.speller(names)
    roots = [index] if inside is None else [index, inside]
    spelled = speller.spell(*roots)
    at = spelled[0]
    head = "(z: i32, m: i32, k: i32)"
    body = list(speller.lines)
    if inside is not None:
        zero = "vec4<f32>()" if vector else "0.0f"
        body.append(f"if (!{spelled[1]}) {{ return {zero}; }}")
    if vector:
        value = module.element4(0, f"u32({at}) / 4u")
        module.text(f"fn {name}_load{head} -> vec4<f32> {{", [
            f"if (u32(k) >= {dim_text(k)}) {{ return vec4<f32>(); }}", *body, f"return {value};",
        ])  # fmt: skip
        module.text(f"fn {name}_at{head} -> f32 {{", [f"return {name}_load(z, m, k & ~3)[k & 3];"])
        return
    module.text(f"fn {name}_at{head} -> f32 {{", [*body, f"return {module.element(0, at)};"])
    lines = ["var v = vec4<f32>();"]
    for i, c in enumerate("xyzw"):
        step = f"k + {i}" if i else "k"
        lines.append(f"if (u32({step}) < {dim_text(k)}) {{ v.{c} = {name}_at(z, m, {step}); }}")
    if dim_multiple(k, 4):
        inner = ", ".join(f"{name}_at(z, m, k{f' + {i}' if i else ''})" for i in range(4))
        lines = [f"if (u32(k) >= {dim_text(k)}) {{ return vec4<f32>(); }}",
                 f"return vec4<f32>({inner});"]  # fmt: skip
    else:
        lines.append("return v;")
    module.text(f"fn {name}_load{head} -> vec4<f32> {{", lines)


def define_b_panels(module: Module, n: Dim, k: Dim, panels: bool) -> None:
    """b_load for packed operand 1; `panels`: one packed matrix after the other along z."""
    base = f"u32(z) * {dim_text(ceildiv(n, 8))} + u32(n) / 8u" if panels else "u32(n) / 8u"
    at = f"(({base}) * {dim_text(k)} + u32(k)) * 2u + (u32(n) / 4u) % 2u"
    value = module.element4(1, at)
    module.text("fn b_load(z: i32, k: i32, n: i32) -> vec4<f32> {", [f"return {value};"])


def define_b(module: Module, index: Scalar, vector: bool) -> None:
    """b_load for operand 1 through `index` over AXIS (z, k, n)."""
    names = {sc.axis(0): "z", sc.axis(1): "k", sc.axis(2): "n"}
    speller = module.speller(names)
    (at,) = speller.spell(index)
    head = "(z: i32, k: i32, n: i32)"
    if vector:
        value = module.element4(1, f"u32({at}) / 4u")
        module.text(f"fn b_load{head} -> vec4<f32> {{", [*speller.lines, f"return {value};"])
        return
    module.text(f"fn b_at{head} -> f32 {{", [*speller.lines, f"return {module.element(1, at)};"])
    inner = ", ".join(f"b_at(z, k, n{f' + {i}' if i else ''})" for i in range(4))
    module.text(f"fn b_load{head} -> vec4<f32> {{", [f"return vec4<f32>({inner});"])
