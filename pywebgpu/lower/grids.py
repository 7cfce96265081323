"""Floats of 8 and 4 bits: kernels hold them as f32, rounded to the type's numbers where a node
makes one.

The types and what does not fit them: ONNX, "Float stored in 8 bits" and "Float stored in 4 bits".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..codegen import scalar as sc
from ..codegen.scalar import Op, Scalar
from ..graph import DType


@dataclass(frozen=True, slots=True)
class Grid:
    """`fraction` bits behind the leading one, down to exponent `least`; below, equal steps.

    `beyond` is what a finite number too large for the type becomes unless it saturates.
    """

    fraction: int
    least: int
    largest: float
    beyond: float


GRIDS = {
    DType.F8E4M3FN: Grid(3, -6, 448.0, math.nan),
    DType.F8E4M3FNUZ: Grid(3, -7, 240.0, math.nan),
    DType.F8E5M2: Grid(2, -14, 57344.0, math.inf),
    DType.F8E5M2FNUZ: Grid(2, -15, 57344.0, math.nan),
    DType.F4E2M1: Grid(1, 0, 6.0, 6.0),
}


def on_grid(x: Scalar, dtype: DType, saturate: bool) -> Scalar:
    """The number of `dtype` nearest to `x` (F32), ties to even.

    Infinities become the largest number when it saturates, and what is too large becomes
    otherwise. NaN stays, but float4e2m1 has none: there it is 0.
    """
    grid = GRIDS[dtype]
    bound = grid.largest if saturate or grid.beyond == grid.largest else 2 * grid.largest
    near = sc.binary(Op.MAX, sc.binary(Op.MIN, x, bound), -bound)
    # The step is a power of two, so that both products are exact.
    bits = sc.unary(Op.BITS_I32, near)
    exponent = sc.binary(Op.BAND, sc.binary(Op.SHR, bits, 23), 255)
    step = sc.binary(Op.MAX, exponent, grid.least + 127) - grid.fraction
    scaled = near * _power(254 - step)
    rounded = sc.unary(Op.ROUND, scaled) * _power(step)
    if bound > grid.largest:
        large = sc.binary(Op.LT, grid.largest, sc.unary(Op.ABS, rounded))
        beyond = sc.const(grid.beyond)
        if grid.beyond == math.inf:
            beyond = sc.select(sc.binary(Op.LT, x, 0.0), -math.inf, beyond)
        rounded = sc.select(large, beyond, rounded)
    nan = 0.0 if dtype is DType.F4E2M1 else x
    return sc.select(sc.unary(Op.ISNAN, x), nan, rounded)


def _power(exponent: Scalar) -> Scalar:
    """2 ** (exponent - 127)."""
    return sc.unary(Op.BITS_F32, sc.binary(Op.SHL, exponent, 23))
