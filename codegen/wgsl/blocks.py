"""Products with block-quantised weights, which become floats in registers.

Any form of `product` runs on them through `b_load`. For few rows there is a form of its own, which
reads the codes of four steps of k at once: what limits it is reading the weights.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..caps import WgslCaps
from ..dims import Dim, ceildiv
from ..spec import PANEL, Blocks
from . import product as core
from .kernel import WgslKernel
from .module import Module, dim_text, fold_grid


@dataclass(frozen=True, slots=True)
class FewBlocks:
    """Knobs. A workgroup computes rows x (8 * panels); `shares` threads divide a panel's k."""

    rows: int
    panels: int
    shares: int  # a power of two

    @property
    def threads(self) -> int:
        return self.panels * self.shares

    @property
    def storage(self) -> int:
        """Bytes of workgroup memory."""
        return 32 * self.rows * self.threads


@dataclass(frozen=True, slots=True)
class Fields:
    """What the few-rows template sees; `quads`: fours of k."""

    head: str
    rows: int
    panels: int
    shares: int
    m: str
    n: str
    quads: int
    bits: int
    size: int
    count: int
    zeros: bool
    prepares: bool


def few(p: core.Product, caps: WgslCaps) -> list[FewBlocks]:
    """Candidates for products of few rows, the default first."""
    rows = next(r for r in (1, 2, 4, 8) if r >= min(p.m if isinstance(p.m, int) else 4, 8))
    deep = isinstance(p.k, int) and p.k >= 2048
    pairs = [(1, 64), (2, 64), (1, 32), (2, 32), (4, 32), (4, 16)]
    pairs.insert(0 if deep else 1, (1, 128))
    limit = min(caps.max_invocations, caps.max_workgroup_size[0])
    found = [FewBlocks(rows, panels, shares) for panels, shares in pairs]
    return [
        knobs
        for knobs in found
        if knobs.threads <= limit and knobs.storage <= caps.max_workgroup_storage
    ]


def define_b(module: Module, blocks: Blocks, k: int, half: bool) -> None:
    """b_load for the tiles of `product`: one step of k, four columns."""
    k4, count = -(-k // 4) * 4, ceildiv(k, blocks.size)
    kind = "f16" if half else "f32"
    at = f"(u32(n) / 8u) * {k4}u + u32(k)"
    if blocks.bits == 4:
        word, places = module.element(1, at), "vec4<u32>(0u, 4u, 8u, 12u) + (u32(n) & 4u) * 4u"
    else:
        word = module.element(1, f"({at}) * 2u + u32(n) / 4u % 2u")
        places = "vec4<u32>(0u, 8u, 16u, 24u)"
    place = f"((u32(n) / 8u) * {count}u + u32(k) / {blocks.size}u) * 2u + u32(n) / 4u % 2u"
    zero = module.element4(3, place) if blocks.zeros else f"{1 << blocks.bits - 1}.0f"
    module.text(f"fn b_load(z: i32, k: i32, n: i32) -> vec4<{kind}> {{", [
        f"let word = vec4<u32>(u32({word}));",
        f"let codes = vec4<f32>((word >> ({places})) & vec4<u32>({(1 << blocks.bits) - 1}u));",
        f"return vec4<{kind}>((codes - {zero}) * {module.element4(2, place)});",
    ])  # fmt: skip


def render_few(
    p: core.Product, blocks: Blocks, knobs: FewBlocks, module: Module, name: str
) -> WgslKernel:
    """The module has a_load_checked and put4 already."""
    assert isinstance(p.k, int), "a packed constant has a static K"
    place = f"(panel * {-(-p.k // blocks.size)}u + block) * 2u + half"
    arguments = "panel: u32, block: u32, half: u32"
    module.text(f"fn scale_of({arguments}) -> vec4<f32> {{",
                [f"return {module.element4(2, place)};"])  # fmt: skip
    if blocks.zeros:
        module.text(f"fn zero_of({arguments}) -> vec4<f32> {{",
                    [f"return {module.element4(3, place)};"])  # fmt: skip
    module.text("fn codes_of(index: u32) -> vec4<u32> {",
                [f"return vec4<u32>({module.element4(1, 'index')});"])  # fmt: skip
    fields = Fields(
        head=module.head(),
        rows=knobs.rows,
        panels=knobs.panels,
        shares=knobs.shares,
        m=dim_text(p.m),
        n=dim_text(p.n),
        quads=-(-p.k // 4),
        bits=blocks.bits,
        size=blocks.size,
        count=-(-p.k // blocks.size),
        zeros=blocks.zeros,
        prepares=p.prepares,
    )
    groups: Dim = ceildiv(p.n, PANEL * knobs.panels) * ceildiv(p.m, knobs.rows)
    one = module.dispatch("product_blocks", fields, fold_grid(groups))
    full = f"{name}_few_{knobs.rows}x{knobs.panels}x{knobs.shares}"
    return WgslKernel(full, (one,), (), module.features())
