"""Integer arithmetic of quantised models, exact: scales and zero points, products, convolutions.

A product of integers with constant weights runs in the f32 kernels where no partial sum can leave
the integers that f32 holds exactly; elsewhere it is a plain sum in i32.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..codegen import scalar as sc
from ..codegen.scalar import Op, Scalar, Type
from ..errors import UnsupportedError
from ..graph import DType, Node
from .conv import convolve, irregular, window_of
from .elementwise import maximum, minimum
from .engine import Lowering, lowers
from .grids import GRIDS, on_grid
from .matmul import matmul, packed
from .movement import replaced, reshaped
from .regions import POINTWISE
from .values import Array, Coordinates, Value, convert, scalar_type

EXACT = 1 << 24
"""f32 holds every integer up to this one."""
_PARTS = 4
"""Into how many f32 products one of integers is cut at most."""

POINTWISE |= {"QuantizeLinear", "DequantizeLinear"}


def _f32(x: Scalar) -> Scalar:
    return convert(x, Type.F32)


def saturated(x: Scalar, zero: Scalar | None, dtype: DType) -> Scalar:
    """`x` rounded half to even, moved by the zero point, forced into the range of `dtype`."""
    low, high = dtype.limits
    number = sc.unary(Op.ROUND, x)
    if zero is not None:
        number = number + _f32(zero)
    return sc.unary(Op.TO_I32, minimum(maximum(number, float(low)), float(high)))


def _spread(lw: Lowering, node: Node, setting: Value, x: Value) -> Value:
    """A scale or zero point per tensor, per axis or per block of an axis, as it broadcasts to x."""
    if setting.rank == 0 or setting.shape == (1,):
        return setting
    axis = int(node.attrs.get("axis", 1))
    axis += x.rank if axis < 0 else 0
    block = int(node.attrs.get("block_size", 0))
    if setting.rank == 1:
        return lw.virtual(setting.dtype, x.shape, lambda c: lw.read(setting, (c[axis],)))
    if not block:
        raise UnsupportedError(
            "a scale of several axes needs a block size",
            where=node.where(),
            got=f"scale of rank {setting.rank}",
            expected="rank 0 or 1, or the attribute block_size",
        )

    def blocked(c: Coordinates) -> Scalar:
        return lw.read(setting, replaced(c, axis, sc.binary(Op.UDIV, c[axis], block)))

    return lw.virtual(setting.dtype, x.shape, blocked)


def _settings(lw: Lowering, node: Node, x: Value) -> list[Value]:
    """Scale and, where there is one, zero point."""
    found = []
    for position in (1, 2):
        setting = lw.optional(node, position)
        if setting is not None:
            found.append(_spread(lw, node, setting, x))
    return found


@lowers("QuantizeLinear")
def lower_quantize(lw: Lowering, node: Node) -> Value:
    x = lw.input(node, 0)
    dtype, shape = lw.out(node)
    saturate = bool(node.attrs.get("saturate", 1))
    if dtype not in GRIDS and (dtype.is_float or dtype is DType.BOOL or dtype.bits > 16):
        raise UnsupportedError("quantises to an odd type", where=node.where(), got=dtype.value)

    def compute(e: Scalar, scale: Scalar, zero: Scalar | None = None) -> Scalar:
        number = _f32(e) / scale
        if dtype not in GRIDS:
            return saturated(number, zero, dtype)
        return on_grid(number if zero is None else number + zero, dtype, saturate)

    return lw.pointwise(dtype, shape, compute, x, *_settings(lw, node, x))


@lowers("DequantizeLinear")
def lower_dequantize(lw: Lowering, node: Node) -> Value:
    x = lw.input(node, 0)
    dtype, shape = lw.out(node)

    def compute(e: Scalar, scale: Scalar, zero: Scalar | None = None) -> Scalar:
        return _f32(e if zero is None else e - zero) * scale

    return lw.pointwise(dtype, shape, compute, x, *_settings(lw, node, x))


# -- products ----------------------------------------------------------------------------------


def _reach(x: Value, zero: Value | None) -> int:
    """The largest |x - zero| that the types allow."""
    low, high = x.dtype.limits
    if zero is None:
        return max(-low, high)
    if zero.constant is None:
        return high - low
    return max(int(high - zero.constant.min()), int(zero.constant.max()) - low)


def _centred(lw: Lowering, x: Value, zero: Value | None, dtype: DType = DType.I32) -> Value:
    """x - zero, whose shape broadcasts; constants stay constants."""
    if x.constant is not None and (zero is None or zero.constant is not None):
        array: Array = x.constant.astype(np.int32)
        if zero is not None and zero.constant is not None:
            array = array - zero.constant.astype(np.int32)
        return lw.constant(array.astype(dtype.numpy), dtype)
    kind = scalar_type(dtype)
    if zero is None:
        return lw.pointwise(dtype, x.shape, lambda e: convert(e, kind), x)
    return lw.pointwise(dtype, x.shape, lambda e, z: convert(e - z, kind), x, zero)


def fits_bytes(matrix: Array) -> bool:
    return bool(matrix.size) and int(matrix.min()) >= -128 and int(matrix.max()) <= 127


def _whole(x: Scalar) -> Scalar:
    return convert(x, Type.I32)


def _parts(matrix: Array, reach: int) -> list[slice] | None:
    """Rows of a K x N matrix in runs whose products with numbers up to `reach` stay exact."""
    size = np.abs(matrix.astype(np.int64)) * reach
    found: list[slice] = []
    start = 0
    total: Array = np.zeros(matrix.shape[1], np.int64)
    for row in range(len(size)):
        total = total + size[row]
        if (total > EXACT).any():
            found.append(slice(start, row))
            start, total = row, size[row]
            if len(found) == _PARTS or (total > EXACT).any():
                return None
    return [*found, slice(start, len(size))]


def _per_row(lw: Lowering, setting: Value | None) -> Value | None:
    """One number per row of a matrix, as it broadcasts."""
    if setting is None or setting.rank != 1 or setting.shape == (1,):
        return setting
    if setting.constant is not None:
        return lw.constant(setting.constant.reshape(-1, 1), setting.dtype)
    return reshaped(lw, setting, (*setting.shape, 1))


def _columns(lw: Lowering, x: Value, part: slice) -> Value:
    """A run along the last axis."""

    def back(c: Coordinates) -> Coordinates:
        return (*c[:-1], c[-1] + part.start)

    return lw.moved(x, (*x.shape[:-1], part.stop - part.start), back)


def integer_product(
    lw: Lowering,
    shape: tuple[Any, ...],
    a: Value,
    b: Value,
    a_zero: Value | None,
    b_zero: Value | None,
) -> Value:
    """(a - a_zero) @ (b - b_zero) in i32; epilogues may join it."""
    a_zero = _per_row(lw, a_zero)
    right = _centred(lw, b, b_zero)
    matrix = right.constant
    if matrix is not None and matrix.ndim == 2 and a.rank > 1 and 0 not in matrix.shape:
        reach = _reach(a, a_zero)
        parts = _parts(matrix, reach)
        if parts is not None:
            # Numbers of 16 bits meet bytes as they are; others go through f32.
            narrow = fits_bytes(matrix) and reach < 1 << 15
            kind = DType.I32 if narrow else DType.F32
            left = _centred(lw, a, a_zero, kind)
            if len(parts) > 1:
                lw.materialise(left)
            total: Value | None = None
            for part in parts:
                rows = _columns(lw, left, part)
                term = packed(lw, kind, shape, rows, matrix[part])
                if total is None:
                    total = lw.pointwise(DType.I32, shape, _whole, term)
                else:
                    total = lw.pointwise(DType.I32, shape, lambda x, y: _whole(x) + y, term, total)
            assert total is not None
            return total
    return matmul(lw, DType.I32, shape, _centred(lw, a, a_zero), right)


@lowers("MatMulInteger")
def lower_matmul_integer(lw: Lowering, node: Node) -> Value:
    shape = lw.out(node)[1]
    a, b = lw.input(node, 0), lw.input(node, 1)
    return integer_product(lw, shape, a, b, lw.optional(node, 2), lw.optional(node, 3))


def _requantised(lw: Lowering, node: Node, total: Value, scales: list[Value], zero: Value) -> Value:
    """An i32 sum times (first scale * second scale / result's scale), as the result's type."""
    dtype, shape = lw.out(node)

    def compute(e: Scalar, s: Scalar, t: Scalar, u: Scalar, z: Scalar) -> Scalar:
        return saturated(_f32(e) * (s * t / u), z, dtype)

    if all(s.constant is not None for s in scales):
        s, t, u = (np.asarray(x.constant, np.float32) for x in scales)
        joint = lw.constant((s * t / u).astype(np.float32), DType.F32)

        def by_constant(e: Scalar, factor: Scalar, z: Scalar) -> Scalar:
            return saturated(_f32(e) * factor, z, dtype)

        return lw.pointwise(dtype, shape, by_constant, total, joint, zero)
    return lw.pointwise(dtype, shape, compute, total, *scales, zero)


@lowers("QLinearMatMul")
def lower_q_linear_matmul(lw: Lowering, node: Node) -> Value:
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = (lw.input(node, i) for i in range(8))
    total = integer_product(lw, lw.out(node)[1], a, b, a_zero, b_zero)
    rows = _per_row(lw, a_scale)
    assert rows is not None
    return _requantised(lw, node, total, [rows, b_scale, y_scale], y_zero)


# -- convolutions ------------------------------------------------------------------------------


def _per_channel(lw: Lowering, setting: Value | None, behind: int) -> Value | None:
    """One number per output channel, as it broadcasts with `behind` axes after the channels."""
    if setting is None or setting.rank == 0:
        return setting
    if setting.constant is not None:
        return lw.constant(setting.constant.reshape(-1, *[1] * behind), setting.dtype)
    return reshaped(lw, setting, (setting.shape[0], *[1] * behind))


def integer_convolution(
    lw: Lowering,
    node: Node,
    x: Value,
    w: Value,
    x_zero: Value | None,
    w_zero: Value | None,
) -> Value:
    """The convolution of x - x_zero with w - w_zero in i32; outside x lies its zero point."""
    shape = lw.out(node)[1]
    spatial = x.rank - 2
    groups = int(node.attrs.get("group", 1))
    kernel = [int(k) for k in w.shape[2:] if isinstance(k, int)]
    window = window_of(node, kernel, x.shape[2:])
    weights = _centred(lw, w, _per_channel(lw, w_zero, spatial + 1))
    static = all(isinstance(s, int) for s in (x.shape[1], *w.shape))
    array = weights.constant
    if array is not None and spatial in (1, 2) and static and array.size:
        sums = np.abs(array.astype(np.int64)).reshape(len(array), -1).sum(1)
        if int(sums.max()) * _reach(x, x_zero) <= EXACT:
            # A depthwise kernel is bound by what it reads and writes, not by its weights.
            depthwise = groups == array.shape[0] == x.shape[1]
            narrow = fits_bytes(array) and _reach(x, x_zero) < 1 << 15 and not depthwise
            kind = DType.I32 if narrow else DType.F32
            made = convolve(lw, kind, shape, _centred(lw, x, x_zero, kind), array, window, groups)
            return lw.pointwise(DType.I32, shape, _whole, made)
    left = _centred(lw, x, x_zero)
    return irregular(lw, DType.I32, shape, left, weights, window, groups)


@lowers("ConvInteger")
def lower_conv_integer(lw: Lowering, node: Node) -> Value:
    x, w = lw.input(node, 0), lw.input(node, 1)
    return integer_convolution(lw, node, x, w, lw.optional(node, 2), lw.optional(node, 3))


@lowers("QLinearConv")
def lower_q_linear_conv(lw: Lowering, node: Node) -> Value:
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero = (lw.input(node, i) for i in range(8))
    total = integer_convolution(lw, node, x, w, x_zero, w_zero)
    spatial = x.rank - 2
    bias = _per_channel(lw, lw.optional(node, 8), spatial)
    if bias is not None:
        total = lw.pointwise(DType.I32, total.shape, lambda e, b: e + b, total, bias)
    factor = _per_channel(lw, w_scale, spatial)
    assert factor is not None
    return _requantised(lw, node, total, [x_scale, factor, y_scale], y_zero)
