"""Reads at computed positions."""

from __future__ import annotations

from ..codegen import scalar as sc
from ..codegen.dims import Dim
from ..codegen.scalar import Op, Scalar
from ..errors import UnsupportedError
from ..graph import Node
from .engine import Lowering, lowers
from .movement import axis_of, clamp, replaced
from .values import Coordinates, Value


def wrapped(index: Scalar, size: Dim) -> Scalar:
    """A position that may count from the end, forced inside: memory is never read elsewhere."""
    if index.op is Op.CONST:
        value = int(index.value or 0)
        return index if value >= 0 else sc.dim(size + value)
    if index.op is Op.LOAD or index.op is Op.SELECT or not _is_size(index):
        from_end = sc.select(sc.binary(Op.LT, index, 0), index + sc.dim(size), index)
        return clamp(from_end, size)
    return index


def _is_size(index: Scalar) -> bool:
    """Made of coordinates and sizes only, so never negative."""
    return all(
        n.op in (Op.AXIS, Op.ARG, Op.CONST, Op.ADD, Op.MUL, Op.UDIV, Op.UMOD)
        for n in sc.walk([index])
    )


@lowers("Gather")
def lower_gather(lw: Lowering, node: Node) -> Value:
    x, indices = lw.input(node, 0), lw.input(node, 1)
    lw.limit(x, indices)
    axis = axis_of(node, x.rank)
    dtype, shape = lw.out(node)

    def read(c: Coordinates) -> Scalar:
        index = wrapped(lw.read(indices, c[axis : axis + indices.rank]), x.shape[axis])
        return lw.read(x, [*c[:axis], index, *c[axis + indices.rank :]])

    return lw.virtual(dtype, shape, read)


@lowers("GatherElements")
def lower_gather_elements(lw: Lowering, node: Node) -> Value:
    x, indices = lw.input(node, 0), lw.input(node, 1)
    lw.limit(x, indices)
    axis = axis_of(node, x.rank)
    dtype, shape = lw.out(node)

    def read(c: Coordinates) -> Scalar:
        return lw.read(x, replaced(c, axis, wrapped(lw.read(indices, c), x.shape[axis])))

    return lw.virtual(dtype, shape, read)


@lowers("GatherND")
def lower_gather_nd(lw: Lowering, node: Node) -> Value:
    x, indices = lw.input(node, 0), lw.input(node, 1)
    lw.limit(x, indices)
    batch = int(node.attrs.get("batch_dims", 0))
    depth = indices.shape[-1]
    if not isinstance(depth, int):
        raise UnsupportedError("the last size of the indices must be static", where=node.where())
    dtype, shape = lw.out(node)
    lead = indices.rank - 1

    def read(c: Coordinates) -> Scalar:
        at = [
            wrapped(lw.read(indices, [*c[:lead], sc.const(i)]), x.shape[batch + i])
            for i in range(depth)
        ]
        return lw.read(x, [*c[:batch], *at, *c[lead:]])

    return lw.virtual(dtype, shape, read)
