"""int8 products: a first pass finds each row's range, then any form of `product` computes.

The product reads A as the whole numbers that its rows are rounded to and B as whole numbers, so
its sums are exact while they stay below 2^24, and the scales join where results are stored. Exact
products (A in I32) need no ranges and have no scales.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..dims import Dim, ceildiv
from ..spec import PANEL, Storage, int8_panel_bytes
from . import product as core
from .kernel import Pass, WgslKernel
from .module import Module, dim_text, fold_grid

_RANGES = ("row_ranges", "vec4<f32>")
"""Scratch: per row 1 / scale, zero point, scale."""
_WORKGROUP = 64


@dataclass(frozen=True, slots=True)
class RangeFields:
    """What the template of the first pass sees; `rows`: z * m."""

    head: str
    workgroup: int
    rows: str
    m: str
    k: str


def render(
    p: core.Product,
    knobs: core.Knobs,
    name: str,
    module: Callable[[], Module],
    define_a: Callable[[Module, str], None],
    put: Callable[[Module, str], None],
) -> WgslKernel:
    """`define_a(module, name)` defines NAME_at, NAME_load, ...; `put(module, name)` the store of
    four results."""
    assert isinstance(p.k, int), "a packed constant has a static K"
    panel = int8_panel_bytes(p.k) // 16
    panels = ceildiv(p.n, PANEL)
    exact = module().operands[0] is Storage.I32

    def with_ranges() -> Module:
        made = module()
        if not exact:
            made.scratch.append(_RANGES)
        return made

    def row(module: Module) -> None:
        if not exact:
            module.text("fn row_range(z: i32, m: i32) -> vec4<f32> {",
                    [f"return row_ranges[u32(z) * {dim_text(p.m)} + u32(m)];"])  # fmt: skip
        at = f"((u32(z) * {dim_text(panels)} + u32(n) / 8u) * {panel}u"
        module.text("fn panel_at(z: i32, n: i32) -> u32 {", [f"return {at});"])

    def loads(module: Module) -> None:
        define_a(module, "a" if exact else "raw")
        row(module)
        centred = "min(round({} * range.x), {} - range.y)"
        loaded = ("vec4<f32>", "vec4<f32>(127.0f)")
        kinds = {"at": ("f32", "127.0f"), "load": loaded, "load_checked": loaded}
        for which, (type_, most) in kinds.items() if not exact else ():
            module.text(f"fn a_{which}(z: i32, m: i32, k: i32) -> {type_} {{", [
                "let range = row_range(z, m);",
                f"return {centred.format(f'raw_{which}(z, m, k)', most)};",
            ])  # fmt: skip
        value = module.element4(1, "panel_at(z, n) + u32(k) / 4u * 2u + u32(n) / 4u % 2u")
        module.text("fn b_load(z: i32, k: i32, n: i32) -> vec4<f32> {", [
            f"let quads = {value};",
            "return vec4<f32>((quads << vec4<u32>(24u - u32(k) % 4u * 8u)) >> vec4<u32>(24u));",
        ])  # fmt: skip

    def scaled_put(module: Module) -> None:
        put(module, "put4_scaled")
        if exact:
            module.text("fn put4(z: i32, m: i32, n: i32, acc: vec4<f32>) {",
                        ["put4_scaled(z, m, n, vec4<i32>(acc));"])  # fmt: skip
            return
        if not any("fn row_range" in text for text in module.functions):
            row(module)
        k4 = -(-int(p.k) // 4) if isinstance(p.k, int) else 0
        scales = module.element4(1, f"panel_at(z, n) + {2 * k4}u + u32(n) / 4u % 2u")
        module.text("fn put4(z: i32, m: i32, n: i32, acc: vec4<f32>) {", [
            f"let scale = row_range(z, m).z * bitcast<vec4<f32>>({scales});",
            "put4_scaled(z, m, n, acc * scale);",
        ])  # fmt: skip

    pieces = core.Pieces(f"{name}_int8", with_ranges, loads, scaled_put)
    made = core.render(p, knobs, pieces)
    if exact:
        return made
    rows = p.z * p.m
    return WgslKernel(
        made.name,
        (_ranges_pass(p, with_ranges(), define_a), *made.passes),
        (rows * 16, *made.scratch),
        made.features,
    )


def _ranges_pass(p: core.Product, module: Module, define_a: Callable[[Module, str], None]) -> Pass:
    define_a(module, "raw")
    fields = RangeFields(
        head=module.head(with_output=False),
        workgroup=_WORKGROUP,
        rows=dim_text(p.z * p.m),
        m=dim_text(p.m),
        k=dim_text(p.k),
    )
    rows: Dim = p.z * p.m
    return module.dispatch("row_ranges", fields, fold_grid(rows), with_output=False)
