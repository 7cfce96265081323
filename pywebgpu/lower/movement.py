"""Operators that only move elements: each is a map from result coordinates to source coordinates.

None of them is a kernel by itself: products read through strides, everything else inlines them.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..codegen import scalar as sc
from ..codegen.dims import Dim, dim_max, dim_min
from ..codegen.scalar import Op, Scalar
from ..errors import UnsupportedError
from ..graph import DType, Node
from .cost import MAX_VIRTUAL_OPERANDS
from .engine import Lowering, lowers
from .index import unravel
from .values import Coordinates, Value, convert, scalar_type


def axis_of(node: Node, rank: int, name: str = "axis", default: int = 0) -> int:
    """An axis attribute as a number in 0..rank-1."""
    axis = int(node.attrs.get(name, default))
    return axis + rank if axis < 0 else axis


def _umod(x: Scalar, y: Dim) -> Scalar:
    return sc.binary(Op.UMOD, x, sc.dim(y))


def replaced(c: Coordinates, axis: int, new: Scalar) -> tuple[Scalar, ...]:
    return (*c[:axis], new, *c[axis + 1 :])


def reshaped(lw: Lowering, x: Value, shape: Sequence[Dim]) -> Value:
    """`x` with the same elements in row-major order under another shape."""
    return lw.moved(
        x,
        shape,
        lambda c: unravel(sc.linear(c, shape), x.shape),
        lambda c: unravel(sc.linear(c, x.shape), shape),
    )


def transposed(lw: Lowering, x: Value, perm: Sequence[int]) -> Value:
    """Result axis i is source axis perm[i]."""
    back = [list(perm).index(i) for i in range(len(perm))]
    return lw.moved(
        x,
        [x.shape[p] for p in perm],
        lambda c: [c[i] for i in back],
        lambda c: [c[p] for p in perm],
    )


@lowers("Reshape", "Squeeze", "Unsqueeze", "Flatten")
def lower_reshape(lw: Lowering, node: Node) -> Value:
    return reshaped(lw, lw.input(node, 0), lw.out(node)[1])


@lowers("Transpose")
def lower_transpose(lw: Lowering, node: Node) -> Value:
    x = lw.input(node, 0)
    perm = node.attrs.get("perm") or list(reversed(range(x.rank)))
    return transposed(lw, x, perm)


@lowers("Expand")
def lower_expand(lw: Lowering, node: Node) -> Value:
    x = lw.input(node, 0)
    _, shape = lw.out(node)
    if x.shape == shape:
        return lw.alias(x)
    return lw.virtual(x.dtype, shape, lambda c: lw.broadcast(x, c, shape))


@lowers("Tile")
def lower_tile(lw: Lowering, node: Node) -> Value:
    x = lw.input(node, 0)
    _, shape = lw.out(node)
    if x.shape == shape:
        return lw.alias(x)
    return lw.virtual(
        x.dtype,
        shape,
        lambda c: lw.read(x, [_umod(i, size) for i, size in zip(c, x.shape, strict=True)]),
    )


def sliced(lw: Lowering, x: Value, shape: Sequence[Dim], start: dict[int, Dim],
           step: dict[int, int]) -> Value:  # fmt: skip
    """Result coordinate i of an axis is source coordinate start + i * step."""

    def backward(c: Coordinates) -> Coordinates:
        return [
            sc.dim(start.get(axis, 0)) + i * sc.const(step.get(axis, 1))
            if step.get(axis, 1) > 0
            else sc.dim(start.get(axis, 0)) - i * sc.const(-step.get(axis, 1))
            for axis, i in enumerate(c)
        ]

    return lw.moved(x, shape, backward)


@lowers("Slice")
def lower_slice(lw: Lowering, node: Node) -> Value:
    x = lw.input(node, 0)
    _, shape = lw.out(node)
    if lw.opset(node) < 10:
        starts: Sequence[Dim] = node.attrs["starts"]
        axes: Sequence[Dim] | None = node.attrs.get("axes")
        steps: Sequence[Dim] | None = None
    else:
        starts = lw.ints(node, 1) or ()
        axes, steps = lw.ints(node, 3), lw.ints(node, 4)
    start: dict[int, Dim] = {}
    step: dict[int, int] = {}
    for i, first in enumerate(starts):
        axis = axes[i] if axes is not None else i
        stride = steps[i] if steps is not None else 1
        if not isinstance(axis, int) or not isinstance(stride, int):
            raise UnsupportedError("axes and steps must be constants", where=node.where())
        axis += x.rank if axis < 0 else 0
        size = x.shape[axis]
        if isinstance(first, int):
            if first < 0:
                first = dim_max(size + first, 0 if stride > 0 else -1)
            elif stride < 0:
                first = dim_min(first, size - 1)
            elif isinstance(size, int):
                first = min(first, size)
        start[axis], step[axis] = first, stride
    return sliced(lw, x, shape, start, step)


@lowers("Split")
def lower_split(lw: Lowering, node: Node) -> list[Value]:
    x = lw.input(node, 0)
    axis = axis_of(node, x.rank)
    at: Dim = 0
    parts = []
    for position, name in enumerate(node.outputs):
        if not name:
            raise UnsupportedError("an output that is left out", where=node.where())
        _, shape = lw.out(node, position)
        parts.append(sliced(lw, x, shape, {axis: at}, {}))
        at = at + shape[axis]
    return parts


@lowers("Concat")
def lower_concat(lw: Lowering, node: Node) -> Value:
    dtype, shape = lw.out(node)
    parts = [lw.value(name) for name in node.inputs]
    axis = axis_of(node, len(shape))
    offsets: list[Dim] = [0]
    for part in parts:
        offsets.append(offsets[-1] + part.shape[axis])
    kept = [(p, o) for p, o in zip(parts, offsets, strict=False) if p.shape[axis] != 0]
    if len(kept) <= 1:  # where all are empty, any of them is the result
        return lw.alias(kept[0][0] if kept else parts[0])
    if _fill_parts(lw, kept, node):
        return _filled(lw, dtype, shape, axis, kept)

    def read(c: Coordinates) -> Scalar:
        result: Scalar | None = None
        for part, offset in reversed(kept):
            size = part.shape[axis]
            i = c[axis] - sc.dim(offset)
            # The part that is not chosen is read too, so its coordinate must stay inside.
            inside = sc.binary(Op.MAX, sc.binary(Op.MIN, i, sc.dim(size - 1)), 0)
            element = lw.read(part, replaced(c, axis, inside))
            if result is None:
                result = element
            else:
                here = sc.binary(Op.LT, c[axis], sc.dim(offset + size))
                from .elementwise import choose

                result = choose(here, element, result)
        assert result is not None
        return result

    sources = {p.buffer for p, _ in kept}
    if len(sources) > MAX_VIRTUAL_OPERANDS or len(kept) > MAX_VIRTUAL_OPERANDS:
        for part, _ in kept:
            if sum(part is other for other, _ in kept) > 1:
                lw.materialise(part)
        return _filled(lw, dtype, shape, axis, kept)
    lw.limit(*(part for part, _ in kept))
    return lw.virtual(dtype, shape, read)


def _fill_parts(lw: Lowering, parts: list[tuple[Value, Dim]], node: Node) -> bool:
    """Whether kernels about to be emitted should write their part in place.

    Each other part costs a copy, and a pointwise consumer could have done the joining itself.
    """
    if len({id(p) for p, _ in parts}) < len(parts):
        return False  # the second of two equal parts would be read from where it is written
    pending = sum(p.open is not None for p, _ in parts)
    rest = len(parts) - pending
    return pending > 0 and (rest == 0 or (rest == 1 and not lw.feeds_pointwise(node.outputs[0])))


def _filled(
    lw: Lowering,
    dtype: DType,
    shape: tuple[Dim, ...],
    axis: int,
    parts: list[tuple[Value, Dim]],
) -> Value:
    """One buffer, each part written by a kernel of its own."""
    order = next(
        (lw.pending_order(p) for p, _ in parts if p.open is not None), tuple(range(len(shape)))
    )
    buffer = lw.new_buffer(dtype.storage, shape)
    for part, offset in parts:

        def place(c: Coordinates, offset: Dim = offset) -> Scalar:
            there = replaced(c, axis, c[axis] + sc.dim(offset))
            return sc.linear([there[i] for i in order], [shape[i] for i in order])

        lw.fill(part, buffer, place)
    result = lw.virtual(dtype, shape, lw.reader(buffer, dtype, shape, order))
    result.buffer, result.order = buffer, order
    return result


def clamp(i: Scalar, size: Dim) -> Scalar:
    return sc.binary(Op.MAX, sc.binary(Op.MIN, i, sc.dim(size - 1)), 0)


@lowers("Pad")
def lower_pad(lw: Lowering, node: Node) -> Value:
    x = lw.input(node, 0)
    dtype, shape = lw.out(node)
    mode = node.attrs.get("mode", "constant")
    mode = mode.decode() if isinstance(mode, bytes) else mode
    fill: Value | None = None
    if lw.opset(node) < 11:
        pads: Sequence[Dim] = node.attrs.get("pads") or node.attrs["paddings"]
        constant = float(node.attrs.get("value", 0.0))
        axes: Sequence[Dim] = range(x.rank)
    else:
        pads = lw.ints(node, 1) or ()
        constant = 0.0
        fill = lw.optional(node, 2)
        given = lw.ints(node, 3)
        axes = given if given is not None else range(x.rank)
    before: dict[int, Dim] = {}
    for i, axis in enumerate(axes):
        if not isinstance(axis, int):
            raise UnsupportedError("axes must be constants", where=node.where())
        before[axis + x.rank if axis < 0 else axis] = pads[i]

    def read(c: Coordinates) -> Scalar:
        there: list[Scalar] = []
        inside: Scalar = sc.const(True)
        for axis, i in enumerate(c):
            size = x.shape[axis]
            if before.get(axis, 0) == 0 and shape[axis] == size:
                there.append(i)
                continue
            j = i - sc.dim(before.get(axis, 0))
            if mode == "constant":
                above = sc.binary(Op.LE, sc.const(0), j)
                below = sc.binary(Op.LT, j, sc.dim(size))
                both = sc.binary(Op.AND, above, below)
                inside = both if inside.op is Op.CONST else sc.binary(Op.AND, inside, both)
                j = clamp(j, size)
            elif mode == "edge":
                j = clamp(j, size)
            elif mode == "wrap":
                j = sc.binary(Op.MOD, j, sc.dim(size))
            else:
                j = reflect(j, size)
            there.append(j)
        element = lw.read(x, there)
        if mode != "constant" or inside.op is Op.CONST:
            return element
        from .elementwise import choose

        outside = convert(sc.const(constant), scalar_type(dtype))
        if fill is not None:
            outside = lw.read(fill, [sc.const(0)] * fill.rank)
        return choose(inside, element, outside)

    return lw.virtual(dtype, shape, read)


def reflect(j: Scalar, size: Dim) -> Scalar:
    """Mirrored at the first and last element, which are not repeated."""
    period = dim_max(size * 2 - 2, 1)
    k = sc.binary(Op.MOD, j, sc.dim(period))
    return sc.binary(Op.MIN, k, sc.dim(period) - k) if size != 1 else sc.const(0)


@lowers("DepthToSpace")
def lower_depth_to_space(lw: Lowering, node: Node) -> Value:
    x = lw.input(node, 0)
    n, c, h, w = x.shape
    block = int(node.attrs["blocksize"])
    mode = node.attrs.get("mode", "DCR")
    depth = c // (block * block)
    if mode in ("CRD", b"CRD"):
        split = reshaped(lw, x, (n, depth, block, block, h, w))
        moved = transposed(lw, split, (0, 1, 4, 2, 5, 3))
    else:
        split = reshaped(lw, x, (n, block, block, depth, h, w))
        moved = transposed(lw, split, (0, 3, 4, 1, 5, 2))
    return reshaped(lw, moved, lw.out(node)[1])


@lowers("SpaceToDepth")
def lower_space_to_depth(lw: Lowering, node: Node) -> Value:
    x = lw.input(node, 0)
    n, c, h, w = x.shape
    block = int(node.attrs["blocksize"])
    split = reshaped(lw, x, (n, c, h // block, block, w // block, block))
    crd = node.attrs.get("mode", "DCR") in ("CRD", b"CRD")
    moved = transposed(lw, split, (0, 1, 3, 5, 2, 4) if crd else (0, 3, 5, 1, 2, 4))
    return reshaped(lw, moved, lw.out(node)[1])


@lowers("Trilu")
def lower_trilu(lw: Lowering, node: Node) -> Value:
    x = lw.input(node, 0)
    upper = bool(node.attrs.get("upper", 1))
    k = lw.optional(node, 1)

    def read(c: Coordinates) -> Scalar:
        from .elementwise import choose

        shift = sc.const(0) if k is None else lw.read(k, [sc.const(0)] * k.rank)
        row, column = c[-2] + shift, c[-1]
        keep = sc.binary(Op.LE, row, column) if upper else sc.binary(Op.LE, column, row)
        element = lw.read(x, c)
        return choose(keep, element, convert(sc.const(0), element.type))

    return lw.virtual(x.dtype, x.shape, read)


@lowers("ReverseSequence")
def lower_reverse_sequence(lw: Lowering, node: Node) -> Value:
    x, lengths = lw.input(node, 0), lw.input(node, 1)
    lw.limit(x, lengths)
    time, batch = int(node.attrs.get("time_axis", 0)), int(node.attrs.get("batch_axis", 1))

    def read(c: Coordinates) -> Scalar:
        length = lw.read(lengths, [c[batch]])
        mirrored = length - c[time] - 1
        inside = sc.binary(Op.LT, c[time], length)
        return lw.read(x, replaced(c, time, sc.select(inside, mirrored, c[time])))

    return lw.virtual(x.dtype, x.shape, read)


@lowers("CenterCropPad")
def lower_center_crop_pad(lw: Lowering, node: Node) -> Value:
    x = lw.input(node, 0)
    dtype, shape = lw.out(node)
    offsets: list[Dim] = []
    for have, want in zip(x.shape, shape, strict=True):
        if have == want:
            offsets.append(0)
        elif isinstance(have, int) and isinstance(want, int):
            # Cropping starts at floor(surplus / 2), padding at floor(lack / 2).
            offsets.append((have - want) // 2 if have > want else -((want - have) // 2))
        else:
            raise UnsupportedError("a size that is not static", where=node.where())

    def read(c: Coordinates) -> Scalar:
        from .elementwise import choose

        there, inside = [], sc.const(True)
        for i, size, offset in zip(c, x.shape, offsets, strict=True):
            j = (
                i + sc.const(int(offset))
                if isinstance(offset, int) and offset >= 0
                else (i - sc.dim(-offset))
            )
            low = sc.binary(Op.LE, sc.const(0), j)
            inside = sc.binary(Op.AND, inside, low)
            inside = sc.binary(Op.AND, inside, sc.binary(Op.LT, j, sc.dim(size)))
            there.append(clamp(j, size))
        return choose(inside, lw.read(x, there), convert(sc.const(0), scalar_type(dtype)))

    return lw.virtual(dtype, shape, read)
