"""What a product takes in f32 and in bytes, told from its sizes: an export to int8 decides by it.

Costs are in vector multiply-adds of the f32 register tile, the unit of `winograd.space`.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..codegen.caps import WasmCaps
from ..codegen.dims import Dim, align_int
from ..codegen.spec import PANEL, Conv
from ..codegen.wasm import winograd

_BYTES = 0.43
"""A multiplication of bytes for one of floats. This and what follows were fitted to the layers of
ResNet-50, MobileNetV2 and a small network of 8 x 8 pixels, one thread, Chromium on x86-64."""
_ROUND = 5
"""Finding the range of four numbers of a row, and rounding them."""
_SCALE = 4
"""Making floats of four sums."""
_ROW = 42
"""What else a row takes: its scale and zero point, a call."""
_ALONE = 2
"""A single row uses each weight once for its load."""


@dataclass(frozen=True, slots=True)
class Cost:
    """`method`: how f32 is quickest, "direct" or "Winograd"."""

    f32: float
    int8: float
    method: str = "direct"

    @property
    def gain(self) -> float:
        """How many times as quick bytes are."""
        return self.f32 / self.int8


def product_cost(rows: Dim, n: int, k: int) -> Cost:
    """Per row of a product with a constant K x N matrix."""
    multiply = k * align_int(n, PANEL) / 4 * (_ALONE if rows == 1 else 1)
    around = (_ROUND * align_int(k, 4) + _SCALE * align_int(n, PANEL)) / 4 + _ROW
    return Cost(multiply, _BYTES * multiply + around)


def conv_cost(spec: Conv) -> Cost:
    """Per pixel of a convolution, given as it is in f32."""
    depth = spec.kernel[0] * spec.kernel[1] * spec.cin // spec.groups
    pixels = winograd.pixels(spec)
    group = product_cost(pixels, spec.cout // spec.groups, depth)
    direct = Cost(spec.groups * group.f32, spec.groups * group.int8)
    quick = [cost for cost, _ in winograd.space(spec, WasmCaps(relaxed=True))]
    if pixels == 0 or not quick or quick[0] / pixels >= direct.f32:
        return direct
    return Cost(quick[0] / pixels, direct.int8, "Winograd")
