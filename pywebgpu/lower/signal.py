"""Fourier transforms as products with constant matrices of sines and cosines."""

from __future__ import annotations

import numpy as np

from ..codegen import scalar as sc
from ..codegen.dims import Dim
from ..codegen.scalar import Scalar
from ..errors import UnsupportedError
from ..graph import DType, Node
from .engine import Lowering, lowers
from .matmul import packed
from .movement import reshaped, transposed
from .values import Array, Coordinates, Value

LIMIT = 1 << 24
"""Elements of the matrix: beyond it one that is computed fast would be worth its code."""


def transform_matrix(
    rows: int, length: int, parts: int, inverse: bool, onesided: bool
) -> tuple[Array, int, int]:
    """The matrix (rows * parts, bins * result's parts) and those two numbers of the result.

    `rows` elements are given, real (`parts` 1) or complex (2); `length` is how many are meant:
    the others are 0, or of no account. Onesided, a forward transform keeps half the bins and an
    inverse one takes half of them and gives real numbers.
    """
    real_result = inverse and onesided
    used = min(rows, length // 2 + 1 if real_result else length)
    bins = length // 2 + 1 if onesided and not inverse else length
    turn = np.outer(np.arange(used), np.arange(bins)) % length * (2 * np.pi / length)
    cos, sin = np.cos(turn), np.sin(turn) * (1 if inverse else -1)
    if inverse:
        cos, sin = cos / length, sin / length
    if real_result:
        # The bins that are not given mirror the others; the first, and the middle one, have none.
        twice = np.full((used, 1), 2.0)
        twice[0] = 1.0
        if length % 2 == 0 and used == length // 2 + 1:
            twice[-1] = 1.0
        cos, sin = cos * twice, sin * twice
    out = 1 if real_result else 2
    matrix = np.zeros((rows, parts, bins, out))
    matrix[:used, 0, :, 0] = cos
    if out == 2:
        matrix[:used, 0, :, 1] = sin
    if parts == 2:
        matrix[:used, 1, :, 0] = -sin
        if out == 2:
            matrix[:used, 1, :, 1] = cos
    return matrix.reshape(rows * parts, bins * out).astype(np.float32), bins, out


def _static(node: Node, what: str, size: Dim) -> int:
    if not isinstance(size, int):
        raise UnsupportedError(
            f"{what} is known only at run time",
            where=node.where(),
            got=str(size),
            remedy="Export with this size fixed",
        )
    return size


def _matrix(
    node: Node, rows: int, length: int, parts: int, inverse: bool, onesided: bool
) -> tuple[Array, int, int]:
    if length < 1 or rows * length * parts * 2 > LIMIT:
        raise UnsupportedError(
            "a transform of this length is not supported",
            where=node.where(),
            got=f"{rows} elements to {length} bins",
            expected=f"a matrix of at most {LIMIT} elements",
            remedy="Transform shorter frames",
        )
    return transform_matrix(rows, length, parts, inverse, onesided)


@lowers("DFT")
def lower_dft(lw: Lowering, node: Node) -> Value:
    x = lw.input(node, 0)
    dtype, shape = lw.out(node)
    (axis,) = lw.ints(node, 2) or (-2,)
    axis = _static(node, "the axis", axis) % x.rank
    inverse, onesided = bool(node.attrs.get("inverse", 0)), bool(node.attrs.get("onesided", 0))
    rows = _static(node, "the transformed size", x.shape[axis])
    parts = _static(node, "whether the input is complex", x.shape[-1])
    given = lw.ints(node, 1)
    usual = 2 * (rows - 1) if inverse and onesided else rows
    length = _static(node, "the transform's length", given[0]) if given else usual
    matrix, bins, out = _matrix(node, rows, length, parts, inverse, onesided)
    # The transformed axis goes last, next to real and imaginary part: rows of a product.
    others = [i for i in range(x.rank - 1) if i != axis]
    lead = [x.shape[i] for i in others]
    flat = reshaped(lw, transposed(lw, x, (*others, axis, x.rank - 1)), (*lead, rows * parts))
    made = packed(lw, dtype, (*lead, bins * out), flat, matrix)
    split = reshaped(lw, made, (*lead, bins, out))
    order = [*others, axis, x.rank - 1]
    result = transposed(lw, split, [order.index(i) for i in range(x.rank)])
    return reshaped(lw, result, shape) if result.shape != shape else result


@lowers("STFT")
def lower_stft(lw: Lowering, node: Node) -> Value:
    """Frames are a view of the signal in which rows overlap; the window is in the matrix."""
    x, window = lw.input(node, 0), lw.optional(node, 2)
    dtype, shape = lw.out(node)
    (step,) = lw.ints(node, 1) or (1,)
    step = _static(node, "the step between frames", step)
    given = lw.ints(node, 3)
    size = given[0] if given else window.shape[0] if window is not None else x.shape[1]
    length = _static(node, "the length of a frame", size)
    parts = _static(node, "whether the signal is complex", x.shape[2]) if x.rank == 3 else 1
    onesided = bool(node.attrs.get("onesided", 1))
    matrix, bins, out = _matrix(node, length, length, parts, False, onesided)
    batch, frames = shape[:2]

    def element(c: Coordinates) -> Scalar:
        """Of (batch, frame, position, part)."""
        at = c[1] * sc.const(step) + c[2]
        value = lw.read(x, (c[0], at, c[3]) if x.rank == 3 else (c[0], at))
        if window is None or window.constant is not None:
            return value
        return value * lw.read(window, (c[2],))

    if window is not None and window.constant is not None:
        weight = np.repeat(window.constant.astype(np.float64), parts)
        matrix = (matrix * weight[:, None]).astype(np.float32)
    framed = lw.virtual(DType.F32, (batch, frames, length, parts), element)
    flat = reshaped(lw, framed, (batch, frames, length * parts))
    made = packed(lw, dtype, (batch, frames, bins * out), flat, matrix)
    return reshaped(lw, made, shape)
