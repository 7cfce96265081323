"""Types of reductions and of what selects along an axis."""

from __future__ import annotations

import numpy as np

from ..codegen.dims import Dim, product
from ..graph import DType, TensorType
from . import elements as el
from . import symbolic
from .control import count
from .registry import Site, infers, like

_REDUCTIONS = (
    *("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2"),
    *("ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare"),
)


def reduced(shape: tuple[Dim, ...], axes: list[int], keep: bool) -> list[Dim]:
    if keep:
        return [1 if i in axes else d for i, d in enumerate(shape)]
    return [d for i, d in enumerate(shape) if i not in axes]


@infers(*_REDUCTIONS)
def infer_reduce(site: Site) -> TensorType:
    x = site.input(0)
    rank = len(x.shape)
    given = site.ints(1, "the axes") if site.has(1) else []
    if not given and site.attr("noop_with_empty_axes", 0):
        return x
    axes = site.axes(given, rank) if given else list(range(rank))
    if el.any_symbolic(site):
        array = el.elements(site, 0)
        if array is not None and array.size:
            _know(site, array, axes)
    return like(x, reduced(x.shape, axes, bool(site.attr("keepdims", 1))))


def _know(site: Site, array: el.Objects, axes: list[int]) -> None:
    """Sums and products of sizes ("how many elements")."""
    op = site.node.op
    order = [i for i in range(array.ndim) if i not in axes] + axes
    moved = array.transpose(order)
    rows = moved.reshape(-1, int(np.prod([array.shape[a] for a in axes])))
    out = np.empty(len(rows), dtype=object)
    for i, row in enumerate(rows):
        total = row[0]
        for item in row[1:]:
            if op == "ReduceSum":
                total = total + item
            elif op == "ReduceProd":
                total = total * item
            elif op == "ReduceMax":
                total = symbolic.largest(total, item)
            elif op == "ReduceMin":
                total = symbolic.smallest(total, item)
            else:
                return
        out[i] = total
    if op in ("ReduceSum", "ReduceProd", "ReduceMax", "ReduceMin"):
        el.know(site, out)


@infers("ArgMax", "ArgMin")
def infer_arg(site: Site) -> TensorType:
    x = site.input(0)
    axis = site.axis(site.attr("axis", 0), len(x.shape))
    return TensorType(DType.I64, tuple(reduced(x.shape, [axis], bool(site.attr("keepdims", 1)))))


@infers("TopK")
def infer_top_k(site: Site) -> list[TensorType]:
    x = site.input(0)
    axis = site.axis(site.attr("axis", -1), len(x.shape))
    size, known = x.shape[axis], site.value(1)
    k = known[0] if known is not None else count(site, "k", size)
    if known is None:
        shape = (*x.shape[:axis], k, *x.shape[axis + 1 :])
        return [like(x, shape), like(x, shape, DType.I64)]
    if symbolic.less(size, k) or symbolic.less(k, 0):
        raise site.error("k is out of range", got=k, expected=f"0..{size}")
    site.require(symbolic.smallest(k, size), k)
    shape = (*x.shape[:axis], k, *x.shape[axis + 1 :])
    return [like(x, shape), like(x, shape, DType.I64)]


__all__ = ["product", "reduced"]
