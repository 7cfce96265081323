"""Types of operators that move elements: reshapes, slices, gathers, joins, fills."""

from __future__ import annotations

import numpy as np

from ..codegen.dims import Dim, Expr, ceildiv, floordiv, mod, product
from ..errors import UnsupportedError
from ..graph import DType, Shape, TensorType
from . import elements as el
from . import symbolic
from .registry import Site, infers, like

_FAR = 2**31 - 1  # exporters write INT64_MAX for "to the end"


@infers("Shape")
def infer_shape(site: Site) -> TensorType:
    shape = site.shape(0)
    rank = len(shape)
    start, end = (
        min(max(v + rank if v < 0 else v, 0), rank)
        for v in (site.attr("start", 0), site.attr("end", rank))
    )
    found = shape[start:end]
    site.know(found)
    return TensorType(DType.I64, (len(found),))


@infers("Size")
def infer_size(site: Site) -> TensorType:
    site.know([product(site.shape(0))])
    return TensorType(DType.I64, ())


def keep(site: Site, shape: Shape) -> None:
    """The output has the elements of input 0 in the same order."""
    value = site.graph.values.get(site.node.inputs[0])
    if value is not None:
        site.know(value)


@infers("Reshape")
def infer_reshape(site: Site) -> TensorType:
    x = site.input(0)
    wanted = site.sizes(1, "the new shape")
    out: list[Dim] = []
    hole: int | None = None
    for i, dim in enumerate(wanted):
        if dim == 0 and not site.attr("allowzero", 0):
            if i >= len(x.shape):
                raise site.error("0 copies a dimension that does not exist", got=f"dimension {i}")
            out.append(x.shape[i])
        elif dim == -1:
            if hole is not None:
                raise site.error("-1 appears twice in the new shape", got=wanted)
            hole = i
            out.append(1)
        else:
            out.append(dim)
    total = product(x.shape)
    if hole is not None:
        out[hole] = _missing(site, x.shape, out, hole)
    elif product(out) != site.resolve(total):
        site.same(total, product(out))
    keep(site, tuple(out))
    return like(x, out)


def _missing(site: Site, shape: Shape, out: list[Dim], hole: int) -> Dim:
    """What -1 stands for. Equal sizes cancel, so that none divides by a size that may be 0."""
    have, want = list(map(site.resolve, shape)), [*out[:hole], *out[hole + 1 :]]
    want = [site.resolve(d) for d in want]
    for dim in list(want):
        if dim in have and not isinstance(dim, int):
            have.remove(dim)
            want.remove(dim)
    total, rest = product(have), product(want)
    if rest == 0:
        return 0
    if isinstance(total, int) and isinstance(rest, int) and total % rest:
        raise site.error("the new shape does not fit the data", got=f"{shape} to {out}")
    return floordiv(total, rest)


@infers("Flatten")
def infer_flatten(site: Site) -> TensorType:
    x = site.input(0)
    axis = (
        site.axis(site.attr("axis", 1), len(x.shape), extra=0)
        if site.attr("axis", 1) != len(x.shape)
        else len(x.shape)
    )
    return like(x, (product(x.shape[:axis]), product(x.shape[axis:])))


@infers("Squeeze")
def infer_squeeze(site: Site) -> TensorType:
    x = site.input(0)
    if site.has(1):
        axes = site.axes(site.ints(1, "the axes"), len(x.shape))
        for a in axes:
            site.same(x.shape[a], 1)
    else:
        axes = [i for i, d in enumerate(x.shape) if d == 1]
    keep(site, x.shape)
    return like(x, [d for i, d in enumerate(x.shape) if i not in axes])


@infers("Unsqueeze")
def infer_unsqueeze(site: Site) -> TensorType:
    x = site.input(0)
    given = site.ints(1, "the axes")
    rank = len(x.shape) + len(given)
    axes = site.axes(given, rank)
    rest = iter(x.shape)
    keep(site, x.shape)
    return like(x, [1 if i in axes else next(rest) for i in range(rank)])


@infers("Transpose")
def infer_transpose(site: Site) -> TensorType:
    x = site.input(0)
    rank = len(x.shape)
    perm = site.attr("perm") or list(range(rank))[::-1]
    if sorted(perm) != list(range(rank)):
        raise site.error("perm is no permutation of the axes", got=perm, expected=f"rank {rank}")
    if el.any_symbolic(site):
        array = el.elements(site, 0)
        el.know(site, None if array is None else array.transpose(perm))
    return like(x, [x.shape[p] for p in perm])


@infers("Expand")
def infer_expand(site: Site) -> TensorType:
    x = site.input(0)
    wanted = site.sizes(1, "the new shape")
    shape = site.broadcast(x.shape, wanted)
    if el.any_symbolic(site) and all(isinstance(d, int) for d in shape):
        array = el.elements(site, 0)
        if array is not None:
            el.know(site, np.broadcast_to(array, [int(d) for d in shape if isinstance(d, int)]))
    return like(x, shape)


@infers("Tile")
def infer_tile(site: Site) -> TensorType:
    x = site.input(0)
    repeats = site.sizes(1, "the repeats")
    if len(repeats) != len(x.shape):
        raise site.error("repeats needs one entry per axis", got=repeats, expected=len(x.shape))
    if any(symbolic.less(r, 0) for r in repeats):
        raise site.error("a number of repeats is out of range", got=repeats, expected="0 or more")
    array = el.elements(site, 0) if el.any_symbolic(site) else None
    if array is not None and all(isinstance(r, int) for r in repeats):
        el.know(site, np.tile(array, [int(r) for r in repeats if isinstance(r, int)]))
    return like(x, [d * r for d, r in zip(x.shape, repeats, strict=True)])


@infers("Concat")
def infer_concat(site: Site) -> TensorType:
    inputs = [site.input(i) for i in range(len(site.node.inputs))]
    rank = len(inputs[0].shape)
    if any(len(t.shape) != rank or t.dtype is not inputs[0].dtype for t in inputs):
        raise site.error("inputs differ in rank or type", got=", ".join(map(str, inputs)))
    axis = site.axis(site.attr("axis"), rank)
    out = list(inputs[0].shape)
    for t in inputs[1:]:
        for i, d in enumerate(t.shape):
            out[i] = out[i] + d if i == axis else site.same(out[i], d)
    if el.any_symbolic(site):
        arrays = [el.elements(site, i) for i in range(len(inputs))]
        known = [a for a in arrays if a is not None]
        if len(known) == len(arrays):
            el.know(site, np.concatenate(known, axis))
    return like(inputs[0], out)


def slice_bound(site: Site, dim: Dim, bound: Dim) -> Dim:
    """A start or end for a positive step, clamped to 0..dim."""
    if isinstance(bound, int):
        if bound >= _FAR:
            return dim
        if bound <= -_FAR:
            return 0
    if symbolic.at_least(bound, 0):
        return site.smallest(bound, dim)
    if symbolic.at_least(-bound, 0):
        return site.largest(dim + bound, 0)
    # Of unknown sign: "total - window" and the like. It is taken to count from the front, which
    # the runtime checks, since a negative number would count from the end.
    front = site.largest(bound, 0)
    site.require(front, bound)
    return site.smallest(front, dim)


@infers("Slice")
def infer_slice(site: Site) -> TensorType:
    x = site.input(0)
    rank = len(x.shape)
    starts, ends = site.sizes(1, "where to start"), site.sizes(2, "where to end")
    steps = site.ints(4, "the steps") if site.has(4) else [1] * len(starts)
    axes = site.axes(site.ints(3, "the axes") if site.has(3) else range(len(starts)), rank)
    if not len(starts) == len(ends) == len(steps) == len(axes):
        raise site.error("starts, ends, axes and steps differ in length")
    out = list(x.shape)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        dim = x.shape[axis]
        if step == 0:
            raise site.error("a step is 0")
        if step > 0:
            low, high = slice_bound(site, dim, start), slice_bound(site, dim, end)
            size = ceildiv(high - low, step)
        else:
            size = _backward(site, dim, start, end, step)
        out[axis] = site.largest(size, 0)
    array = el.elements(site, 0) if el.any_symbolic(site) else None
    numbers = [d for d in (*starts, *ends) if isinstance(d, int)]
    if array is not None and len(numbers) == 2 * len(starts):
        where = [slice(None)] * rank
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
            # For a step of -1 ONNX's "before the first" is any end below -dim.
            stop = None if step < 0 and int_of(end) < -array.shape[axis] else int_of(end)
            where[axis] = slice(int_of(start), stop, step)
        el.know(site, array[tuple(where)])
    return like(x, out)


def int_of(dim: Dim) -> int:
    if isinstance(dim, Expr):
        raise TypeError(f"{dim} is not a number")
    return dim


def _backward(site: Site, dim: Dim, start: Dim, end: Dim, step: int) -> Dim:
    """How many elements a negative step visits."""
    if isinstance(dim, int) and isinstance(start, int) and isinstance(end, int):
        low = max(start + dim if start < 0 else start, -1)
        high = max(end + dim, -1) if end < 0 else end
        return max(0, -(-(min(low, dim - 1) - min(high, dim - 1)) // -step))
    first: Dim
    if isinstance(start, int) and start >= 0:
        first = dim - 1 if start >= _FAR else site.smallest(start, dim - 1)
    elif isinstance(start, int):
        first = dim + start
    else:
        first = site.smallest(start, dim - 1)
    if isinstance(end, int) and end <= -_FAR:
        return ceildiv(first + 1, -step)
    last = dim + end if isinstance(end, int) and end < 0 else end
    if isinstance(end, int) and end < 0 and not isinstance(dim, int):
        last = site.largest(last, -1)
    return ceildiv(first - last, -step)


@infers("Gather")
def infer_gather(site: Site) -> TensorType:
    x, index = site.input(0), site.input(1)
    if not x.shape:
        raise site.error("a scalar has nothing to gather from")
    axis = site.axis(site.attr("axis", 0), len(x.shape))
    size, picks = x.shape[axis], site.array(1)
    if isinstance(size, int) and picks is not None and picks.size:
        low, high = int(picks.min()), int(picks.max())
        if low < -size or high >= size:
            raise site.error("an index is out of range", got=low if low < -size else high,
                             expected=f"{-size}..{size - 1}")  # fmt: skip
    if el.any_symbolic(site):
        array, where = el.elements(site, 0), el.elements(site, 1)
        if array is not None and where is not None and all(isinstance(w, int) for w in where.flat):
            picks = where.astype(np.int64)
            size = array.shape[axis]
            if np.any((picks < -size) | (picks >= size)):
                raise site.error("index is out of range", got=picks.tolist(), expected=size)
            taken = np.empty(
                (*array.shape[:axis], *picks.shape, *array.shape[axis + 1 :]), dtype=object
            )
            taken[...] = np.take(array, picks, axis)
            el.know(site, taken)
    return like(x, (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]))


@infers("GatherElements")
def infer_gather_elements(site: Site) -> TensorType:
    x, index = site.input(0), site.input(1)
    if len(x.shape) != len(index.shape):
        raise site.error("data and indices differ in rank", got=f"{x} and {index}")
    site.axis(site.attr("axis", 0), len(x.shape))
    return like(x, index.shape)


@infers("GatherND")
def infer_gather_nd(site: Site) -> TensorType:
    x, index = site.input(0), site.input(1)
    batch = site.attr("batch_dims", 0)
    depth = index.shape[-1] if index.shape else 0
    if not isinstance(depth, int) or not 0 < depth <= len(x.shape) - batch:
        raise site.error("the last axis of the indices has the wrong size", got=depth)
    for i in range(batch):
        site.same(x.shape[i], index.shape[i])
    return like(x, (*index.shape[:-1], *x.shape[batch + depth :]))


@infers("ScatterElements", "ScatterND", "TensorScatter")
def infer_scatter(site: Site) -> TensorType:
    x = site.input(0)
    if site.node.op == "ScatterElements":
        site.axis(site.attr("axis", 0), len(x.shape))
        site.ranked(1, len(x.shape))
        site.ranked(2, len(x.shape))
    elif site.node.op == "ScatterND":
        index = site.shape(1)
        depth = index[-1] if index else 0
        if isinstance(depth, int) and not 1 <= depth <= len(x.shape):
            raise site.error("the last axis of the indices has the wrong size", got=depth)
        if isinstance(depth, int):
            site.ranked(2, len(index) - 1 + len(x.shape) - depth)
    return x


@infers("Split")
def infer_split(site: Site) -> list[TensorType]:
    x = site.input(0)
    axis = site.axis(site.attr("axis", 0), len(x.shape))
    count = len(site.node.outputs)
    dim = x.shape[axis]
    parts: tuple[Dim, ...]
    if site.has(1):
        parts = site.sizes(1, "the sizes of the parts")
        total: Dim = 0
        for p in parts:
            total = total + p
        site.same(total, dim)
    else:
        each = ceildiv(dim, site.attr("num_outputs", count))
        parts = (*[each] * (count - 1), dim - each * (count - 1))
    if len(parts) != count:
        raise site.error("parts and outputs differ in number", got=len(parts), expected=count)
    if el.any_symbolic(site) and all(isinstance(p, int) for p in parts):
        array = el.elements(site, 0)
        if array is not None:
            cuts = np.cumsum([int_of(p) for p in parts])[:-1]
            for i, piece in enumerate(np.split(array, cuts, axis)):
                el.know(site, piece, i)
    return [like(x, (*x.shape[:axis], p, *x.shape[axis + 1 :])) for p in parts]


@infers("Pad")
def infer_pad(site: Site) -> TensorType:
    x = site.input(0)
    rank = len(x.shape)
    pads = site.sizes(1, "the padding")
    axes = site.axes(site.ints(3, "the axes"), rank) if site.has(3) else list(range(rank))
    if len(pads) != 2 * len(axes):
        raise site.error("pads needs two entries per axis", got=len(pads), expected=2 * len(axes))
    out = list(x.shape)
    for i, axis in enumerate(axes):
        out[axis] = symbolic.largest(out[axis] + pads[i] + pads[i + len(axes)], 0)
    return like(x, out)


@infers("ConstantOfShape")
def infer_constant_of_shape(site: Site) -> TensorType:
    shape = site.sizes(0, "the shape")
    value = site.attr("value")
    if value is not None and value.size != 1:
        raise site.error("the value is not one number", got=f"{value.size} numbers")
    dtype = DType.F32 if value is None else DType(str(value.dtype))
    count = product(shape)
    fill = 0 if value is None else value.ravel()[0]
    if isinstance(count, int) and count <= el.LIMIT and np.isfinite(fill) and fill == int(fill):
        site.know([int(fill)] * count)
    return TensorType(dtype, shape)


@infers("Range")
def infer_range(site: Site) -> TensorType:
    for i in range(3):
        if product(site.shape(i)) != 1:
            raise site.error(f"input {i} is not one number", got=site.input(i))
    dtype = site.input(0).dtype
    arrays = [el.elements(site, i) for i in range(3)]
    known = [a.ravel()[0] for a in arrays if a is not None]
    if len(known) != 3:
        constants = [site.array(i) for i in range(3)]
        numbers = [float(c.ravel()[0]) for c in constants if c is not None]
        if len(numbers) == 3 and numbers[2]:
            steps = (numbers[1] - numbers[0]) / numbers[2]
            return TensorType(dtype, (max(0, site.whole(steps, "the length", up=True)),))
        site.sizes(0, "where the range starts")
        site.sizes(1, "where the range ends")
        site.ints(2, "the range's step")
    start, limit, delta = known
    if not isinstance(delta, int) or delta == 0:
        raise UnsupportedError(
            "the step of a range must be a constant other than 0",
            where=site.node.where(),
            got=delta,
        )
    if delta > 0:
        count = ceildiv(limit - start, delta)
    else:
        count = ceildiv(start - limit, -delta)
    count = symbolic.largest(count, 0)
    if isinstance(count, int) and count <= el.LIMIT:
        site.know([start + i * delta for i in range(count)])
    return TensorType(dtype, (count,))


@infers("EyeLike", "RandomNormalLike", "RandomUniformLike", "Bernoulli")
def infer_eye_like(site: Site) -> TensorType:
    x = site.input(0)
    return like(x, x.shape, site.attr("dtype", x.dtype))


@infers("DepthToSpace", "SpaceToDepth")
def infer_depth_to_space(site: Site) -> TensorType:
    b, c, h, w = site.ranked(0, 4).shape
    x, n = site.input(0), site.count("blocksize")
    if site.node.op == "DepthToSpace":
        return like(x, (b, floordiv(c, n * n), h * n, w * n))
    return like(x, (b, c * n * n, floordiv(h, n), floordiv(w, n)))


@infers("ReverseSequence")
def infer_reverse_sequence(site: Site) -> TensorType:
    x = site.input(0)
    axes = [site.attr("time_axis", 0), site.attr("batch_axis", 1)]
    if sorted(axes) != [0, 1] or len(x.shape) < 2:
        raise site.error(
            "time and batch must be the first two axes", got=f"axes {axes} of {x}", expected="0, 1"
        )
    site.same(site.ranked(1, 1).shape[0], x.shape[axes[1]])
    return x


@infers("OneHot")
def infer_one_hot(site: Site) -> TensorType:
    index, values = site.input(0), site.input(2)
    given = el.elements(site, 1)
    depth = given.ravel()[0] if given is not None else site.sizes(1, "the depth")[0]
    axis = site.axis(site.attr("axis", -1), len(index.shape) + 1)
    return TensorType(values.dtype, (*index.shape[:axis], depth, *index.shape[axis:]))


__all__ = ["int_of", "mod", "slice_bound"]
