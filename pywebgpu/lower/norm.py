"""Softmax and the normalisations."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..codegen import scalar as sc
from ..codegen.dims import Dim, product
from ..codegen.scalar import Op, Scalar, Type
from ..codegen.spec import ReduceOp, RowOp
from ..graph import DType, Node
from .engine import Lowering, lowers
from .movement import axis_of, clamp, replaced, reshaped
from .pool import over
from .values import Coordinates, Value, convert


def by_axes(
    lw: Lowering,
    x: Value,
    axes: Sequence[int],
    op: RowOp,
    eps: float = 0.0,
    finish: Callable[[Scalar, Coordinates], Scalar] | None = None,
) -> Value:
    """x normalised over `axes`; `finish` sees x's coordinates."""
    kept = [i for i in range(x.rank) if i not in axes]

    def place(c: Coordinates) -> Coordinates:
        there: list[Scalar] = [sc.const(0)] * x.rank
        for axis, i in zip([*kept, *axes], c, strict=True):
            there[axis] = i
        return there

    return lw.row(
        x.dtype,
        x.shape,
        [x.shape[i] for i in kept],
        [x.shape[i] for i in axes],
        op,
        lambda c: lw.read(x, place(c)),
        place,
        eps,
        None if finish is None else lambda acc, c: finish(acc, place(c)),
    )


@lowers("Softmax", "LogSoftmax")
def lower_softmax(lw: Lowering, node: Node) -> Value:
    x = lw.input(node, 0)
    op = RowOp.SOFTMAX if node.op == "Softmax" else RowOp.LOG_SOFTMAX
    if lw.opset(node) >= 13:
        return by_axes(lw, x, [axis_of(node, x.rank, default=-1)], op)
    # Up to opset 12 everything from the axis on is one row.
    return by_axes(lw, x, list(range(axis_of(node, x.rank, default=1), x.rank)), op)


@lowers("Hardmax")
def lower_hardmax(lw: Lowering, node: Node) -> Value:
    x = lw.input(node, 0)
    if lw.opset(node) >= 13:
        axes = [axis_of(node, x.rank, default=-1)]
    else:
        axes = list(range(axis_of(node, x.rank, default=1), x.rank))
    kept = [i for i in range(x.rank) if i not in axes]

    def element(c: Coordinates, r: Coordinates) -> Scalar:
        there: list[Scalar] = [sc.const(0)] * x.rank
        for axis, i in zip([*kept, *axes], [*c, *r], strict=True):
            there[axis] = i
        return lw.read(x, there)

    sizes = [x.shape[i] for i in axes]
    best = lw.reduce(DType.I32, [x.shape[i] for i in kept], sizes, ReduceOp.ARGMAX, element)

    def read(c: Coordinates) -> Scalar:
        here = sc.linear([c[i] for i in axes], sizes)
        chosen = lw.read(best, [c[i] for i in kept])
        return convert(sc.binary(Op.EQ, here, chosen), Type.F32)

    return lw.virtual(x.dtype, x.shape, read)


def layer_norm(
    lw: Lowering,
    x: Value,
    axis: int,
    op: RowOp,
    eps: float,
    scale: Value | None,
    bias: Value | None,
) -> Value:
    def finish(acc: Scalar, c: Coordinates) -> Scalar:
        if scale is not None:
            acc = acc * lw.broadcast(scale, c, x.shape)
        return acc if bias is None else acc + lw.broadcast(bias, c, x.shape)

    return by_axes(lw, x, list(range(axis, x.rank)), op, eps, finish)


@lowers("LayerNormalization", "RMSNormalization")
def lower_layer_norm(lw: Lowering, node: Node) -> list[Value]:
    x = lw.input(node, 0)
    axis = axis_of(node, x.rank, default=-1)
    eps = float(node.attrs.get("epsilon", 1e-5))
    op = RowOp.LAYER if node.op == "LayerNormalization" else RowOp.RMS
    wanted = [bool(name) for name in node.outputs[1:3]]
    if any(wanted) and x.open is not None:
        lw.materialise(x)
    results = [layer_norm(lw, x, axis, op, eps, lw.optional(node, 1), lw.optional(node, 2))]
    if any(wanted):
        results += _statistics(lw, x, axis, eps, wanted)
    return results


def _statistics(
    lw: Lowering,
    x: Value,
    axis: int,
    eps: float,
    wanted: list[bool],
    centred: bool = True,
) -> list[Value]:
    """Mean and 1 / standard deviation, for models that use these outputs. Not `centred`: 0 for
    the mean and the deviation from it."""
    lead, row = x.shape[:axis], x.shape[axis:]
    count = product(row)
    if centred:
        mean = lw.reduce(
            DType.F32, lead, row, ReduceOp.SUM, lambda c, r: lw.read(x, (*c, *r)),
            lambda total, c: over(total, count),
        )  # fmt: skip
        lw.materialise(mean)
    else:
        mean = lw.virtual(DType.F32, lead, lambda c: sc.const(0.0))
    shape = (*lead, *[1] * len(row))

    def element(c: Coordinates, r: Coordinates) -> Scalar:
        d = lw.read(x, (*c, *r)) - lw.read(mean, c)
        return d * d

    deviation = lw.reduce(
        DType.F32, lead, row, ReduceOp.SUM, element,
        lambda total, c: sc.unary(Op.RSQRT, over(total, count) + eps),
    )  # fmt: skip
    both = [reshaped(lw, mean, shape), reshaped(lw, deviation, shape)]
    return [value for value, want in zip(both, wanted, strict=False) if want]


@lowers("SimplifiedLayerNormalization")
def lower_simplified(lw: Lowering, node: Node) -> list[Value]:
    x = lw.input(node, 0)
    axis = axis_of(node, x.rank, default=-1)
    eps = float(node.attrs.get("epsilon", 1e-5))
    wanted = [False, *(bool(name) for name in node.outputs[1:2])]
    if any(wanted) and x.open is not None:
        lw.materialise(x)
    results = [layer_norm(lw, x, axis, RowOp.RMS, eps, lw.optional(node, 1), None)]
    if any(wanted):
        results += _statistics(lw, x, axis, eps, wanted, centred=False)
    return results


@lowers("InstanceNormalization")
def lower_instance_norm(lw: Lowering, node: Node) -> Value:
    x, scale, bias = (lw.input(node, i) for i in range(3))
    eps = float(node.attrs.get("epsilon", 1e-5))

    def finish(acc: Scalar, c: Coordinates) -> Scalar:
        return acc * lw.read(scale, (c[1],)) + lw.read(bias, (c[1],))

    return by_axes(lw, x, list(range(2, x.rank)), RowOp.LAYER, eps, finish)


@lowers("GroupNormalization")
def lower_group_norm(lw: Lowering, node: Node) -> Value:
    x, scale, bias = (lw.input(node, i) for i in range(3))
    groups = int(node.attrs["num_groups"])
    eps = float(node.attrs.get("epsilon", 1e-5))
    size = x.shape[1] // groups
    split = reshaped(lw, x, (x.shape[0], groups, size, *x.shape[2:]))
    per_channel = scale.shape[0] == x.shape[1] and (groups != x.shape[1] or lw.opset(node) >= 21)

    def finish(acc: Scalar, c: Coordinates) -> Scalar:
        at = c[1] * sc.dim(size) + c[2] if per_channel else c[1]
        return acc * lw.read(scale, (at,)) + lw.read(bias, (at,))

    result = by_axes(lw, split, list(range(2, split.rank)), RowOp.LAYER, eps, finish)
    return reshaped(lw, result, x.shape)


@lowers("BatchNormalization")
def lower_batch_norm(lw: Lowering, node: Node) -> Value:
    x = lw.input(node, 0)
    scale, bias, mean, variance = (lw.input(node, i) for i in range(1, 5))
    eps = float(node.attrs.get("epsilon", 1e-5))
    spatial = max(x.rank - 2, 0)
    arrays = [v.constant for v in (scale, bias, mean, variance)]
    if all(a is not None for a in arrays):
        s, b, m, v = (np.asarray(a, np.float64) for a in arrays)
        factor = s / np.sqrt(v + eps)
        shape = (-1, *[1] * spatial)
        times = lw.constant(factor.reshape(shape).astype(np.float32), DType.F32)
        plus = lw.constant((b - m * factor).reshape(shape).astype(np.float32), DType.F32)
        return lw.pointwise(x.dtype, x.shape, lambda e, p, q: e * p + q, x, times, plus)
    wide = [
        reshaped(lw, value, (value.shape[0], *[1] * spatial))
        for value in (scale, bias, mean, variance)
    ]
    return lw.pointwise(
        x.dtype,
        x.shape,
        lambda e, s, b, m, v: (e - m) * sc.unary(Op.RSQRT, v + eps) * s + b,
        x,
        *wide,
    )


@lowers("MeanVarianceNormalization")
def lower_mvn(lw: Lowering, node: Node) -> Value:
    x = lw.input(node, 0)
    axes = sorted(int(a) % x.rank for a in node.attrs.get("axes", [0, 2, 3]))
    return by_axes(lw, x, axes, RowOp.LAYER, 1e-9)


@lowers("LpNormalization")
def lower_lp_norm(lw: Lowering, node: Node) -> Value:
    x = lw.input(node, 0)
    axis = axis_of(node, x.rank, default=-1)
    p = int(node.attrs.get("p", 2))
    if x.open is not None:
        lw.materialise(x)
    kept = [i for i in range(x.rank) if i != axis]

    def element(c: Coordinates, r: Coordinates) -> Scalar:
        value = lw.read(x, (*c[:axis], r[0], *c[axis:]))
        return value * value if p == 2 else sc.unary(Op.ABS, value)

    def finish(total: Scalar, c: Coordinates) -> Scalar:
        return sc.unary(Op.SQRT, total) if p == 2 else total

    lengths = [x.shape[i] for i in kept]
    norm = lw.reduce(x.dtype, lengths, (x.shape[axis],), ReduceOp.SUM, element, finish)
    lw.materialise(norm)

    def read(c: Coordinates) -> Scalar:
        length = lw.read(norm, [c[i] for i in kept])
        zero = sc.binary(Op.EQ, length, 0.0)
        return sc.select(zero, 0.0, lw.read(x, c) / length)

    return lw.virtual(x.dtype, x.shape, read)


@lowers("LRN")
def lower_lrn(lw: Lowering, node: Node) -> Value:
    x = lw.input(node, 0)
    size = int(node.attrs["size"])
    alpha, beta = float(node.attrs.get("alpha", 1e-4)), float(node.attrs.get("beta", 0.75))
    bias = float(node.attrs.get("bias", 1.0))
    if x.open is not None:
        lw.materialise(x)
    channels: Dim = x.shape[1]

    def element(c: Coordinates, r: Coordinates) -> Scalar:
        at = c[1] + r[0] - (size - 1) // 2
        inside = sc.binary(
            Op.AND,
            sc.binary(Op.LE, sc.const(0), at),
            sc.binary(Op.LT, at, sc.dim(channels)),
        )
        value = lw.read(x, replaced(c, 1, clamp(at, channels)))
        return sc.select(inside, value * value, 0.0)

    def finish(total: Scalar, c: Coordinates) -> Scalar:
        return lw.read(x, c) / sc.binary(Op.POW, total * (alpha / size) + bias, beta)

    return lw.reduce(x.dtype, x.shape, (size,), ReduceOp.SUM, element, finish)
