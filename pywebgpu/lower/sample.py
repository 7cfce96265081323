"""Images read at computed positions, and their inverses: regions, bent kernels, columns."""

from __future__ import annotations

from itertools import product as combinations

import numpy as np

from ..codegen import scalar as sc
from ..codegen.dims import Dim, product
from ..codegen.scalar import Op, Scalar, Type
from ..codegen.spec import ReduceOp
from ..errors import UnsupportedError
from ..graph import Node
from .conv import Window, bias_value, convolve, irregular, window_of
from .elementwise import both, less, maximum, minimum
from .engine import Lowering, lowers
from .gather import wrapped
from .index import unravel
from .movement import clamp, reshaped
from .values import Coordinates, Value, convert


def _f32(x: Dim | Scalar) -> Scalar:
    return convert(x if isinstance(x, Scalar) else sc.dim(x), Type.F32)


def _text(node: Node, name: str, default: str) -> str:
    value = node.attrs.get(name, default)
    return (value.decode() if isinstance(value, bytes) else str(value)).lower()


@lowers("RoiAlign")
def lower_roi_align(lw: Lowering, node: Node) -> Value:
    """Each bin of a region takes the mean or the largest of a grid of interpolated samples."""
    x, rois, batches = (lw.input(node, i) for i in range(3))
    dtype, shape = lw.out(node)
    ratio = int(node.attrs.get("sampling_ratio", 0))
    if ratio < 1:
        raise UnsupportedError(
            "the number of samples per bin depends on data",
            where=node.where(),
            got=f"sampling_ratio {ratio}",
            expected="1 or more",
            remedy="Export with a fixed sampling_ratio (2 is usual)",
        )
    scale = float(node.attrs.get("spatial_scale", 1.0))
    half = _text(node, "coordinate_transformation_mode", "half_pixel") == "half_pixel"
    largest = _text(node, "mode", "avg") == "max"
    for value in (x, rois, batches):
        if value.open is not None:
            lw.materialise(value)

    def taps(c: Coordinates, step: Scalar, axis: int) -> tuple[list[tuple[Scalar, Scalar]], Scalar]:
        """The two source coordinates of a sample with their weights, and whether it counts."""
        size = x.shape[2 + axis]
        shift = 0.5 if half else 0.0
        start = lw.read(rois, (c[0], sc.const(1 - axis))) * scale - shift
        end = lw.read(rois, (c[0], sc.const(3 - axis))) * scale - shift
        extent = end - start if half else maximum(end - start, 1.0)
        each = extent / _f32(shape[2 + axis])
        at = start + _f32(c[2 + axis]) * each + (_f32(step) + 0.5) * each / float(ratio)
        counts = both(sc.binary(Op.LE, sc.const(-1.0), at), sc.binary(Op.LE, at, _f32(size)))
        at = minimum(maximum(at, 0.0), _f32(size) - 1.0)
        low = sc.unary(Op.FLOOR, at)
        first = clamp(sc.unary(Op.TO_I32, low), size)
        t = at - low
        return [(first, 1.0 - t), (clamp(first + 1, size), t)], counts

    def sample(c: Coordinates, r: Coordinates) -> Scalar:
        rows, above = taps(c, r[0], 0)
        columns, inside = taps(c, r[1], 1)
        image = wrapped(lw.read(batches, (c[0],)), x.shape[0])
        total: Scalar | None = None
        for (y, v), (across, w) in combinations(rows, columns):
            term = lw.read(x, (image, c[1], y, across)) * (v * w)
            if total is None:
                total = term
            else:
                # ONNX takes the largest of the weighted corners, not of the interpolated samples.
                total = maximum(total, term) if largest else total + term
        assert total is not None
        return sc.select(both(above, inside), total, 0.0)

    if largest:
        return lw.reduce(dtype, shape, (ratio, ratio), ReduceOp.MAX, sample)
    share = 1.0 / (ratio * ratio)
    return lw.reduce(
        dtype, shape, (ratio, ratio), ReduceOp.SUM, sample, lambda total, c: total * share
    )


@lowers("DeformConv")
def lower_deform_conv(lw: Lowering, node: Node) -> Value:
    """The samples that each window's kernel meets become channels; then it is a 1x1 convolution."""
    x, w, offset = (lw.input(node, i) for i in range(3))
    mask = lw.optional(node, 4)
    dtype, shape = lw.out(node)
    if x.rank != 4:
        raise UnsupportedError(
            "only images are supported", where=node.where(), got=f"rank {x.rank}", expected=4
        )
    groups, offset_groups = (int(node.attrs.get(a, 1)) for a in ("group", "offset_group"))
    kernel = [int(k) for k in w.shape[2:] if isinstance(k, int)]
    window = window_of(node, kernel, x.shape[2:])
    channels = x.shape[1]
    if not isinstance(channels, int) or len(kernel) != 2:
        raise UnsupportedError("channels and kernel must be static", where=node.where())
    per_offset = channels // offset_groups
    for value in (x, offset, mask):
        if value is not None and value.open is not None:
            lw.materialise(value)

    def sample(c: Coordinates) -> Scalar:
        channel, ky, kx = unravel(c[1], (channels, *kernel))
        lane = sc.linear(
            (sc.binary(Op.UDIV, channel, per_offset), ky, kx), (offset_groups, *kernel)
        )
        sides: list[list[tuple[Scalar, Scalar, Scalar]]] = []
        for axis, step in enumerate((ky, kx)):
            place = c[2 + axis] * window.stride[axis] + step * window.dilation[axis]
            moved = lw.read(offset, (c[0], lane * 2 + axis, c[2], c[3]))
            at = _f32(place - sc.dim(window.before[axis])) + moved
            low = sc.unary(Op.FLOOR, at)
            t = at - low
            size = x.shape[2 + axis]
            ends = []
            for position, weight in ((low, 1.0 - t), (low + 1.0, t)):
                inside = both(sc.binary(Op.LE, sc.const(0.0), position), less(position, _f32(size)))
                ends.append((clamp(sc.unary(Op.TO_I32, position), size), weight, inside))
            sides.append(ends)
        total: Scalar = sc.const(0.0)
        for (y, v, above), (across, u, beside) in combinations(*sides):
            element = lw.read(x, (c[0], channel, y, across))
            total = total + sc.select(both(above, beside), element * (v * u), 0.0)
        return total if mask is None else total * lw.read(mask, (c[0], lane, c[2], c[3]))

    taps = kernel[0] * kernel[1]
    columns = lw.virtual(dtype, (shape[0], channels * taps, *shape[2:]), sample)
    one = Window((1, 1), (1, 1), (1, 1), (0, 0), (0, 0))
    if w.constant is not None:
        matrix = w.constant.reshape(w.constant.shape[0], -1, 1, 1)
        result = convolve(lw, dtype, shape, columns, np.ascontiguousarray(matrix), one, groups)
    else:
        lw.materialise(columns)
        flat = reshaped(lw, w, (w.shape[0], product(w.shape[1:]), 1, 1))
        result = irregular(lw, dtype, shape, columns, flat, one, groups)
    bias = lw.optional(node, 3)
    if bias is None:
        return result
    return lw.pointwise(dtype, shape, lambda p, q: p + q, result, bias_value(lw, bias, 2))


def _source(at: Scalar, stride: int, count: Dim) -> tuple[Scalar, Scalar]:
    """Which step of a window with this stride starts at `at` (forced inside), and whether one
    does."""
    forward = sc.binary(Op.MAX, at, 0)
    step = sc.binary(Op.UDIV, forward, stride)
    exact = sc.binary(Op.EQ, sc.binary(Op.UMOD, forward, stride), 0)
    starts = both(sc.binary(Op.LE, sc.const(0), at), exact)
    return clamp(step, count), both(starts, less(step, sc.dim(count)))


@lowers("Col2Im")
def lower_col2im(lw: Lowering, node: Node) -> Value:
    """Each pixel gathers the columns that it was part of."""
    x = lw.input(node, 0)
    dtype, shape = lw.out(node)
    block = [_static(node, size) for size in lw.ints(node, 2) or ()]
    window = window_of(node, block, shape[2:])
    counts = [
        (size + before + after - (k - 1) * d - 1) // s + 1
        for size, before, after, k, d, s in zip(
            shape[2:], window.before, window.after, block, window.dilation, window.stride,
            strict=True,
        )
    ]  # fmt: skip

    def element(c: Coordinates, r: Coordinates) -> Scalar:
        steps: list[Scalar] = []
        inside: Scalar = sc.const(True)
        for axis, tap in enumerate(r):
            at = c[2 + axis] + sc.dim(window.before[axis]) - tap * window.dilation[axis]
            step, ok = _source(at, window.stride[axis], counts[axis])
            steps.append(step)
            inside = both(inside, ok)
        row = c[1] * sc.dim(product(block)) + sc.linear(r, block)
        return sc.select(inside, lw.read(x, (c[0], row, sc.linear(steps, counts))), 0)

    return lw.reduce(dtype, shape, block, ReduceOp.SUM, element)


def _static(node: Node, size: Dim) -> int:
    if not isinstance(size, int):
        raise UnsupportedError("the block's sizes must be constants", where=node.where(), got=size)
    return size


@lowers("MaxUnpool")
def lower_max_unpool(lw: Lowering, node: Node) -> Value:
    """Each element looks among the windows that cover it for one whose largest lay there.

    So an index must lie in its own window, as MaxPool's do.
    """
    x, indices = lw.input(node, 0), lw.input(node, 1)
    dtype, shape = lw.out(node)
    kernel = [int(k) for k in node.attrs["kernel_shape"]]
    window = window_of(node, kernel, x.shape[2:])
    # What the indices count in; a larger output_shape has zeros behind it.
    sizes: list[Dim] = [
        (size - 1) * s + k - before - after
        for size, s, k, before, after in zip(
            x.shape[2:], window.stride, kernel, window.before, window.after, strict=True
        )
    ]
    for value in (x, indices):
        if value.open is not None:
            lw.materialise(value)
    reach = [-(-k // s) for k, s in zip(kernel, window.stride, strict=True)]

    def candidate(c: Coordinates, r: Coordinates) -> tuple[list[Scalar], Scalar]:
        """A window over c, and whether it put its element there."""
        there, hit = [*c[:2]], sc.const(True)
        for axis, back in enumerate(r):
            last = sc.binary(
                Op.UDIV, c[2 + axis] + sc.dim(window.before[axis]), window.stride[axis]
            )
            at = last - back
            inside = both(sc.binary(Op.LE, sc.const(0), at), less(at, sc.dim(x.shape[2 + axis])))
            hit = both(hit, both(inside, less(c[2 + axis], sc.dim(sizes[axis]))))
            there.append(clamp(at, x.shape[2 + axis]))
        place = sc.linear(c, (*x.shape[:2], *sizes))
        return there, both(hit, sc.binary(Op.EQ, lw.read(indices, there), place))

    def number(c: Coordinates, r: Coordinates) -> Scalar:
        there, hit = candidate(c, r)
        return sc.select(hit, sc.linear(there[2:], x.shape[2:]), -1)

    def element(last: Scalar, c: Coordinates) -> Scalar:
        at = unravel(sc.binary(Op.MAX, last, 0), x.shape[2:])
        value = lw.read(x, (*c[:2], *at))
        return sc.select(sc.binary(Op.LE, sc.const(0), last), value, 0)

    return lw.reduce(dtype, shape, reach, ReduceOp.MAX, number, element)


_LARGEST = 5


@lowers("Det")
def lower_det(lw: Lowering, node: Node) -> Value:
    """By cofactors along rows, each minor of the lower rows once."""
    x = lw.input(node, 0)
    dtype, shape = lw.out(node)
    n = x.shape[-1]
    if not isinstance(n, int) or n > _LARGEST:
        raise UnsupportedError(
            "determinants of this size are not supported",
            where=node.where(),
            got=n,
            expected=f"a static size of at most {_LARGEST}",
        )
    if x.open is not None:
        lw.materialise(x)

    def read(c: Coordinates) -> Scalar:
        minors: dict[tuple[int, ...], Scalar] = {}

        def minor(columns: tuple[int, ...]) -> Scalar:
            """Of these columns and the last rows."""
            if not columns:
                return sc.const(1.0)
            if columns not in minors:
                row = sc.const(n - len(columns))
                total: Scalar = sc.const(0.0)
                for i, column in enumerate(columns):
                    entry = lw.read(x, (*c, row, sc.const(column)))
                    term = entry * minor((*columns[:i], *columns[i + 1 :]))
                    total = total - term if i % 2 else total + term
                minors[columns] = total
            return minors[columns]

        return minor(tuple(range(n)))

    result = lw.virtual(dtype, shape, read)
    lw.materialise(result)
    return result
