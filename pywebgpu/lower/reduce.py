"""Reductions over whole axes, and what computes like one."""

from __future__ import annotations

from collections.abc import Sequence

from ..codegen import scalar as sc
from ..codegen.dims import Dim, product
from ..codegen.scalar import Op, Scalar, Type
from ..codegen.spec import ReduceOp
from ..graph import DType, Node
from .engine import Lowering, lowers
from .movement import axis_of, replaced, reshaped
from .pool import over
from .values import Coordinates, Value, convert, scalar_type

_OPS = {
    "ReduceMax": ReduceOp.MAX,
    "ReduceMin": ReduceOp.MIN,
    "ReduceProd": ReduceOp.PROD,
}


def reduced_axes(lw: Lowering, node: Node, rank: int) -> list[int]:
    """Axes as an attribute or as an input; none given means all, or none at all if asked so."""
    given: Sequence[Dim] | None = node.attrs.get("axes")
    if given is None:
        given = lw.ints(node, 1)
    if not given:
        return [] if node.attrs.get("noop_with_empty_axes", 0) else list(range(rank))
    return sorted(int(a) % rank for a in given if isinstance(a, int))


def over_axes(
    lw: Lowering,
    x: Value,
    axes: Sequence[int],
    op: ReduceOp,
    dtype: DType,
    before: object = None,
    after: object = None,
) -> Value:
    """Reduction of x's `axes`; the result has the other axes only."""
    kept = [i for i in range(x.rank) if i not in axes]

    def element(c: Coordinates, r: Coordinates) -> Scalar:
        place: list[Scalar] = [sc.const(0)] * x.rank
        for axis, i in [*zip(kept, c, strict=True), *zip(axes, r, strict=True)]:
            place[axis] = i
        value = lw.read(x, place)
        if value.type is Type.BOOL:
            value = convert(value, Type.I32)
        return before(value) if callable(before) else value

    def finish(total: Scalar, c: Coordinates) -> Scalar:
        result = after(total) if callable(after) else total
        if dtype is DType.BOOL:  # of nothing the maximum is a large negative number: false
            return sc.binary(Op.LT, convert(sc.const(0), result.type), result)
        return convert(result, scalar_type(dtype))

    shape = [x.shape[i] for i in kept]
    return lw.reduce(dtype, shape, [x.shape[i] for i in axes], op, element, finish)


@lowers("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2",
        "ReduceSumSquare", "ReduceLogSum")  # fmt: skip
def lower_reduce(lw: Lowering, node: Node) -> Value:
    x = lw.input(node, 0)
    dtype, shape = lw.out(node)
    axes = reduced_axes(lw, node, x.rank)
    before = {
        "ReduceL1": lambda v: sc.unary(Op.ABS, v),
        "ReduceL2": lambda v: v * v,
        "ReduceSumSquare": lambda v: v * v,
    }.get(node.op)
    count = product(x.shape[i] for i in axes)
    after = {
        "ReduceMean": lambda total: over(total, count),
        "ReduceL2": lambda total: convert(sc.unary(Op.SQRT, convert(total, Type.F32)), total.type),
        "ReduceLogSum": lambda total: sc.unary(Op.LOG, total),
    }.get(node.op)
    if not axes:
        return lw.pointwise(dtype, shape, lambda v: (after or _same)((before or _same)(v)), x)
    op = _OPS.get(node.op, ReduceOp.SUM)
    return reshaped(lw, over_axes(lw, x, axes, op, dtype, before, after), shape)


def _same(x: Scalar) -> Scalar:
    return x


@lowers("ReduceLogSumExp")
def lower_log_sum_exp(lw: Lowering, node: Node) -> Value:
    """log(sum(exp(x - max))) + max, which does not overflow."""
    x = lw.input(node, 0)
    dtype, shape = lw.out(node)
    axes = reduced_axes(lw, node, x.rank)
    if not axes:
        return lw.alias(x)
    kept = [i for i in range(x.rank) if i not in axes]
    top = over_axes(lw, x, axes, ReduceOp.MAX, dtype)
    lw.materialise(top)

    def finite(value: Scalar) -> Scalar:
        return sc.select(sc.unary(Op.ISINF, value), 0.0, value)

    def element(c: Coordinates, r: Coordinates) -> Scalar:
        place: list[Scalar] = [sc.const(0)] * x.rank
        for axis, i in [*zip(kept, c, strict=True), *zip(axes, r, strict=True)]:
            place[axis] = i
        return sc.unary(Op.EXP, lw.read(x, place) - finite(lw.read(top, c)))

    def finish(total: Scalar, c: Coordinates) -> Scalar:
        return sc.unary(Op.LOG, total) + finite(lw.read(top, c))

    sizes = [x.shape[i] for i in axes]
    result = lw.reduce(dtype, top.shape, sizes, ReduceOp.SUM, element, finish)
    return reshaped(lw, result, shape)


@lowers("ArgMax", "ArgMin")
def lower_arg(lw: Lowering, node: Node) -> Value:
    x = lw.input(node, 0)
    dtype, shape = lw.out(node)
    name = node.op.lower() + ("_last" if node.attrs.get("select_last_index", 0) else "")
    axis = axis_of(node, x.rank)
    return reshaped(lw, over_axes(lw, x, [axis], ReduceOp(name), dtype), shape)


@lowers("CumSum", "CumProd")
def lower_cumulative(lw: Lowering, node: Node) -> Value:
    """Each element reduces its prefix: quadratic, but one kernel without carried state."""
    x = lw.input(node, 0)
    dtype, shape = lw.out(node)
    (axis,) = lw.ints(node, 1) or (0,)
    axis = int(axis) % x.rank if isinstance(axis, int) else 0
    exclusive, reverse = bool(node.attrs.get("exclusive", 0)), bool(node.attrs.get("reverse", 0))
    neutral = 0 if node.op == "CumSum" else 1

    def element(c: Coordinates, r: Coordinates) -> Scalar:
        first, second = (c[axis], r[0]) if reverse else (r[0], c[axis])
        counts = sc.binary(Op.LT if exclusive else Op.LE, first, second)
        value = lw.read(x, replaced(c, axis, r[0]))
        return sc.select(counts, value, convert(sc.const(neutral), value.type))

    op = ReduceOp.SUM if node.op == "CumSum" else ReduceOp.PROD
    return lw.reduce(dtype, shape, (x.shape[axis],), op, element)
