"""Types of operators that find out the size of their results while they run."""

from __future__ import annotations

from ..codegen.dims import product
from ..graph import DType, TensorType
from . import symbolic
from .control import count
from .registry import Site, infers, like


@infers("NonZero")
def infer_non_zero(site: Site) -> TensorType:
    shape = site.shape(0)
    return TensorType(DType.I64, (len(shape), count(site, "count", product(shape))))


@infers("Compress")
def infer_compress(site: Site) -> TensorType:
    """A known condition has been rewritten to a Gather."""
    x, condition = site.input(0), site.input(1)
    axis = site.attr("axis")
    if axis is not None:
        axis = site.axis(axis, len(x.shape))
    size = product(x.shape) if axis is None else x.shape[axis]
    found = count(site, "count", symbolic.smallest(condition.shape[0], size))
    if axis is None:
        return like(x, (found,))
    return like(x, (*x.shape[:axis], found, *x.shape[axis + 1 :]))


@infers("Unique")
def infer_unique(site: Site) -> list[TensorType]:
    x = site.input(0)
    axis = site.attr("axis")
    if axis is not None:
        axis = site.axis(axis, len(x.shape))
    size = product(x.shape) if axis is None else x.shape[axis]
    found = count(site, "count", size)
    shape = (found,) if axis is None else (*x.shape[:axis], found, *x.shape[axis + 1 :])
    each = TensorType(DType.I64, (found,))
    return [like(x, shape), each, TensorType(DType.I64, (size,)), each]


@infers("NonMaxSuppression")
def infer_non_max_suppression(site: Site) -> TensorType:
    site.ranked(0, 3)
    batch, classes, boxes = site.ranked(1, 3).shape
    most = site.value(2) if site.has(2) else (0,)
    each = boxes if most is None else symbolic.smallest(boxes, symbolic.largest(most[0], 0))
    found = count(site, "count", batch * classes * each)
    return TensorType(DType.I64, (found, 3))
