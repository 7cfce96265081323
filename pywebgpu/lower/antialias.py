"""Resize with antialiasing: along each axis a product with a constant matrix of filter weights.

The filter is stretched where the image shrinks, so that every source element counts somewhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..codegen.dims import Dim
from ..codegen.scalar import const
from ..errors import UnsupportedError
from ..graph import DType, Node
from .engine import Lowering
from .matmul import packed
from .movement import transposed
from .values import Array, Value


def positions(mode: str, size: int, out: int, scale: float) -> Array:
    """Where the output elements lie in the input, by ONNX's coordinate transformations."""
    x: Array = np.arange(out, dtype=np.float64)
    if mode == "asymmetric":
        return x / scale
    if mode == "align_corners":
        return x * (size - 1) / (out - 1) if out > 1 else np.zeros(1)
    if mode == "pytorch_half_pixel" and out == 1:
        return np.zeros(1)
    half = (x + 0.5) / scale - 0.5
    if mode == "half_pixel_symmetric":
        return size / 2 * (1 - out / (scale * size)) + half
    return half


def _triangle(x: Array) -> Array:
    inside: Array = np.clip(1 - np.abs(x), 0, 1)
    return inside


def _cubic(x: Array, a: float) -> Array:
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def filter_matrix(
    cubic: bool, a: float, size: int, scale: float, where: Array, exclude: bool
) -> Array:
    """Weights (size, outputs). What lies outside is the edge's element, or left out of account."""
    narrow = min(scale, 1.0)
    reach = int(np.ceil((2 if cubic else 1) / narrow)) + 1
    matrix = np.zeros((size, len(where)))
    for column, at in enumerate(where):
        taps = np.arange(int(np.floor(at)) - reach, int(np.floor(at)) + reach + 2)
        distance = (taps - at) * narrow
        weights = _cubic(distance, a) if cubic else _triangle(distance)
        if exclude:
            weights = weights * ((taps >= 0) & (taps < size))
        np.add.at(matrix[:, column], np.clip(taps, 0, size - 1), weights / weights.sum())
    return matrix.astype(np.float32)


def antialiased(
    lw: Lowering,
    node: Node,
    x: Value,
    shape: Sequence[Dim],
    scales: Sequence[float | None],
    mode: str,
    transform: str,
) -> Value:
    """`scales`: per axis of x what the model gave, None where it follows from the sizes."""
    if mode == "nearest" or transform == "tf_crop_and_resize" or not x.dtype.is_float:
        raise UnsupportedError(
            "antialiasing is not supported in this mode",
            where=node.where(),
            got=f"{mode}, {transform}, {x.dtype.value}",
            expected="linear or cubic, no cropping, floats",
        )
    a = float(node.attrs.get("cubic_coeff_a", -0.75))
    exclude = bool(node.attrs.get("exclude_outside", 0))
    result = x
    for axis, out in enumerate(shape):
        size, given = x.shape[axis], scales[axis]
        if size == out and (given is None or given == 1.0):
            continue
        if out == 0:  # nothing to compute; what is 0 times as large has no scale
            return lw.pointwise(DType.F32, tuple(shape), lambda: const(0.0))
        if not isinstance(size, int) or not isinstance(out, int):
            raise UnsupportedError(
                "antialiasing needs static image sizes",
                where=node.where(),
                got=f"{size} to {out}",
                remedy="Export with fixed image sizes, or resize without antialiasing",
            )
        scale = out / size if given is None else given
        where = positions(transform, size, out, scale)
        matrix = filter_matrix(mode == "cubic", a, size, scale, where, exclude)
        last = [*(i for i in range(x.rank) if i != axis), axis]
        rows = transposed(lw, result, last)
        made = packed(lw, DType.F32, (*rows.shape[:-1], out), rows, matrix)
        result = transposed(lw, made, [last.index(i) for i in range(x.rank)])
    return lw.alias(x) if result is x else result
