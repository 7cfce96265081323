"""Writes at computed positions and selection by rank, turned around: each output element looks for
what belongs there. Quadratic in places, but free of races and the same on every target."""

from __future__ import annotations

from collections.abc import Callable

from ..codegen import scalar as sc
from ..codegen.dims import Dim
from ..codegen.scalar import Op, Scalar, Type
from ..codegen.spec import ReduceOp
from ..errors import UnsupportedError
from ..graph import DType, Node
from .counted import count_from_data
from .elementwise import both, choose, either, less
from .engine import Lowering, lowers
from .gather import wrapped
from .index import unravel
from .movement import axis_of, clamp, replaced
from .values import Coordinates, Value, convert, scalar_type

Candidate = Callable[[Coordinates, Coordinates], tuple[list[Scalar], Scalar]]
"""For an output element and a step through the updates: where that update lies, and whether it
aims at the element."""

_REDUCTIONS = {
    "add": (ReduceOp.SUM, Op.ADD),
    "mul": (ReduceOp.PROD, Op.MUL),
    "max": (ReduceOp.MAX, Op.MAX),
    "min": (ReduceOp.MIN, Op.MIN),
}


def _neutral(kind: str, like: Type) -> Scalar:
    """The element that changes nothing."""
    if kind == "add" or kind == "mul":
        return convert(sc.const(0 if kind == "add" else 1), like)
    if like is Type.F32:
        return sc.const(float("-inf" if kind == "max" else "inf"))
    return sc.const(-(2**31) if kind == "max" else 2**31 - 1)


def _mode(node: Node) -> str:
    kind = node.attrs.get("reduction", "none")
    return kind.decode() if isinstance(kind, bytes) else str(kind)


@lowers("ScatterElements", "Scatter")
def lower_scatter_elements(lw: Lowering, node: Node) -> Value:
    """Of several updates of one element the last wins, unless they are reduced."""
    data, indices, updates = (lw.input(node, i) for i in range(3))
    axis = axis_of(node, data.rank)
    dtype, shape = lw.out(node)
    kind = _mode(node)

    def candidate(c: Coordinates, step: Scalar) -> tuple[list[Scalar], Scalar]:
        """Where the update lies that step names, and whether it aims at c."""
        inside: Scalar = sc.const(True)
        at: list[Scalar] = []
        for i, (coordinate, size) in enumerate(zip(c, indices.shape, strict=True)):
            if i == axis:
                at.append(step)
                continue
            # The indices may cover a corner of the data only.
            inside = both(inside, less(coordinate, sc.dim(size)))
            at.append(sc.binary(Op.MIN, coordinate, sc.dim(size - 1)))
        target = wrapped(lw.read(indices, at), data.shape[axis])
        return at, both(inside, sc.binary(Op.EQ, target, c[axis]))

    return _scattered(lw, dtype, shape, kind, data, indices, updates, (indices.shape[axis],),
                      lambda c, r: candidate(c, r[0]))  # fmt: skip


@lowers("ScatterND")
def lower_scatter_nd(lw: Lowering, node: Node) -> Value:
    data, indices, updates = (lw.input(node, i) for i in range(3))
    dtype, shape = lw.out(node)
    depth = indices.shape[-1]
    if not isinstance(depth, int):
        raise UnsupportedError("the last size of the indices must be static", where=node.where())
    rows = indices.shape[:-1]

    def candidate(c: Coordinates, r: Coordinates) -> tuple[list[Scalar], Scalar]:
        hit: Scalar = sc.const(True)
        for i in range(depth):
            target = wrapped(lw.read(indices, (*r, sc.const(i))), data.shape[i])
            hit = both(hit, sc.binary(Op.EQ, target, c[i]))
        return [*r, *c[depth:]], hit

    return _scattered(lw, dtype, shape, _mode(node), data, indices, updates, rows, candidate)


def _scattered(
    lw: Lowering,
    dtype: DType,
    shape: tuple[Dim, ...],
    kind: str,
    data: Value,
    indices: Value,
    updates: Value,
    steps: tuple[Dim, ...],
    candidate: Candidate,
) -> Value:
    like = scalar_type(dtype)
    lw.limit(data, indices, updates)
    if kind == "none":

        def element(c: Coordinates, r: Coordinates) -> Scalar:
            _, hit = candidate(c, r)
            return sc.select(hit, sc.linear(r, steps), -1)

        def finish(last: Scalar, c: Coordinates) -> Scalar:
            found = sc.binary(Op.LE, sc.const(0), last)
            at, _ = candidate(c, unravel(sc.binary(Op.MAX, last, 0), steps))
            return choose(found, lw.read(updates, at), lw.read(data, c))

        return lw.reduce(dtype, shape, steps, ReduceOp.MAX, element, finish)
    if kind not in _REDUCTIONS:
        raise UnsupportedError("unknown reduction", got=kind)
    if like is Type.BOOL:  # "or" and "and", on 0 and 1
        kind, like = {"add": "max", "mul": "min"}.get(kind, kind), Type.I32
    op, combine = _REDUCTIONS[kind]

    def reduced(c: Coordinates, r: Coordinates) -> Scalar:
        at, hit = candidate(c, r)
        return sc.select(hit, convert(lw.read(updates, at), like), _neutral(kind, like))

    def joined(total: Scalar, c: Coordinates) -> Scalar:
        return convert(
            sc.binary(combine, convert(lw.read(data, c), like), total), scalar_type(dtype)
        )

    return lw.reduce(dtype, shape, steps, op, reduced, joined)


@lowers("TensorScatter")
def lower_tensor_scatter(lw: Lowering, node: Node) -> Value:
    """A cache with new rows written from a position per batch element on."""
    past, update = lw.input(node, 0), lw.input(node, 1)
    starts = lw.optional(node, 2)
    lw.limit(past, update, starts)
    axis = axis_of(node, past.rank, default=-2)
    mode = node.attrs.get("mode", "linear")
    circular = mode in ("circular", b"circular")
    size, count = past.shape[axis], update.shape[axis]

    def read(c: Coordinates) -> Scalar:
        start = sc.const(0) if starts is None else lw.read(starts, (c[0],))
        at = c[axis] - start
        if circular:
            at = sc.binary(Op.MOD, at, sc.dim(size))
        inside = both(sc.binary(Op.LE, sc.const(0), at), less(at, sc.dim(count)))
        new = lw.read(update, replaced(c, axis, clamp(at, count)))
        return choose(inside, new, lw.read(past, c))

    return lw.virtual(past.dtype, past.shape, read)


@lowers("TopK")
def lower_top_k(lw: Lowering, node: Node) -> list[Value]:
    """An element's rank is the number of elements before it in order; position p takes rank p."""
    x = lw.input(node, 0)
    axis = axis_of(node, x.rank, default=-1)
    largest = bool(node.attrs.get("largest", 1))
    dtype, shape = lw.out(node)
    if x.open is not None or x.buffer is None:
        lw.materialise(x)
    size = x.shape[axis]
    k = lw.graph.types[next(filter(None, node.outputs))].shape[axis]
    if str(k) in lw.graph.counted and lw.input(node, 1).elements is None:
        count_from_data(lw, node, 1, k)

    def before(c: Coordinates, r: Coordinates) -> Scalar:
        mine, other = lw.read(x, c), lw.read(x, replaced(c, axis, r[0]))
        ahead = less(mine, other) if largest else less(other, mine)
        # Equal elements keep their order.
        tie = both(sc.binary(Op.EQ, mine, other), less(r[0], c[axis]))
        return convert(either(ahead, tie), Type.I32)

    rank = lw.reduce(DType.I32, x.shape, (size,), ReduceOp.SUM, before)
    lw.materialise(rank)

    def chosen(c: Coordinates, r: Coordinates) -> Scalar:
        here = sc.binary(Op.EQ, lw.read(rank, replaced(c, axis, r[0])), c[axis])
        return sc.select(here, r[0], 0)

    index = lw.reduce(DType.I64, shape, (size,), ReduceOp.SUM, chosen)
    lw.materialise(index)
    values = lw.virtual(
        dtype, shape, lambda c: lw.read(x, replaced(c, axis, wrapped(lw.read(index, c), size)))
    )
    made = [values, index]
    return [value for value, name in zip(made, node.outputs, strict=False) if name]
