"""Pooling: reductions over windows."""

from __future__ import annotations

from ..codegen import scalar as sc
from ..codegen.dims import Dim, product
from ..codegen.scalar import Op, Scalar, Type
from ..codegen.spec import ReduceOp
from ..graph import DType, Node
from .conv import Window, tap, window_of
from .engine import Lowering, lowers
from .index import unravel
from .movement import reshaped
from .values import Coordinates, Value, convert


def _window(node: Node, x: Value) -> Window:
    return window_of(node, [int(k) for k in node.attrs["kernel_shape"]], x.shape[2:])


def _taps(x: Value, window: Window, c: Coordinates, r: Coordinates) -> tuple[list[Scalar], Scalar]:
    there, inside = [c[0], c[1]], sc.const(True)
    for axis, step in enumerate(r):
        at, ok = tap(
            c[2 + axis], step, x.shape[2 + axis], window.stride[axis], window.dilation[axis],
            window.before[axis],
        )  # fmt: skip
        there.append(at)
        inside = sc.binary(Op.AND, inside, ok)
    return there, inside


@lowers("MaxPool")
def lower_max_pool(lw: Lowering, node: Node) -> Value | list[Value]:
    x = lw.input(node, 0)
    dtype, shape = lw.out(node)
    window = _window(node, x)

    def element(c: Coordinates, r: Coordinates) -> Scalar:
        there, inside = _taps(x, window, c, r)
        value = lw.read(x, there)
        lowest = sc.const(float("-inf")) if value.type is Type.F32 else sc.const(-(2**31))
        return sc.select(inside, value, lowest)

    result = lw.reduce(dtype, shape, window.kernel, ReduceOp.MAX, element)
    if len(node.outputs) < 2 or not node.outputs[1]:
        return result
    column = bool(node.attrs.get("storage_order", 0))

    def position(best: Scalar, c: Coordinates) -> Scalar:
        """Number of the chosen element in the whole input."""
        there, _ = _taps(x, window, c, unravel(best, window.kernel))
        spatial, sizes = there[2:], x.shape[2:]
        if column:
            spatial, sizes = spatial[::-1], sizes[::-1]
        lead = sc.linear(there[:2], x.shape[:2])
        return lead * sc.dim(product(sizes)) + sc.linear(spatial, sizes)

    chosen = lw.reduce(DType.I64, shape, window.kernel, ReduceOp.ARGMAX, element, position)
    return [result, chosen]


@lowers("AveragePool")
def lower_average_pool(lw: Lowering, node: Node) -> Value:
    x = lw.input(node, 0)
    dtype, shape = lw.out(node)
    window = _window(node, x)
    padding_counts = bool(node.attrs.get("count_include_pad", 0))

    def element(c: Coordinates, r: Coordinates) -> Scalar:
        there, inside = _taps(x, window, c, r)
        return sc.select(inside, lw.read(x, there), 0.0)

    def finish(total: Scalar, c: Coordinates) -> Scalar:
        count: Scalar = sc.const(1)
        for axis in range(len(window.kernel)):
            count = count * _count(window, axis, c[2 + axis], x.shape[2 + axis], padding_counts)
        return total / convert(count, Type.F32)

    return lw.reduce(dtype, shape, window.kernel, ReduceOp.SUM, element, finish)


def _count(window: Window, axis: int, c: Scalar, size: Dim, padding: bool) -> Scalar:
    """Taps along one axis that count for the average."""
    k, s, d = window.kernel[axis], window.stride[axis], window.dilation[axis]
    before, after = window.before[axis], window.after[axis]
    end = size + before + (after if padding else 0)
    start = c * sc.const(s)
    # Taps t with start + t*d < end; past the far padding there is nothing even to pad (ceil_mode).
    room = sc.binary(Op.MAX, sc.dim(end) - start, 0)
    last = sc.binary(Op.MIN, sc.binary(Op.UDIV, room + (d - 1), d), k)
    if padding:
        return last
    first = sc.binary(Op.UDIV, sc.binary(Op.MAX, sc.dim(before) - start, 0) + (d - 1), d)
    return last - first


@lowers("LpPool")
def lower_lp_pool(lw: Lowering, node: Node) -> Value:
    x = lw.input(node, 0)
    dtype, shape = lw.out(node)
    window = _window(node, x)
    p = float(node.attrs.get("p", 2))

    def element(c: Coordinates, r: Coordinates) -> Scalar:
        there, inside = _taps(x, window, c, r)
        return sc.select(inside, _power(lw.read(x, there), p), 0.0)

    return lw.reduce(
        dtype, shape, window.kernel, ReduceOp.SUM, element, lambda total, c: _root(total, p)
    )


def _power(x: Scalar, p: float) -> Scalar:
    if p == 2.0:
        return x * x
    size = sc.unary(Op.ABS, x)
    return size if p == 1.0 else sc.binary(Op.POW, size, p)


def _root(x: Scalar, p: float) -> Scalar:
    if p == 2.0:
        return sc.unary(Op.SQRT, x)
    return x if p == 1.0 else sc.binary(Op.POW, x, 1 / p)


@lowers("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def lower_global_pool(lw: Lowering, node: Node) -> Value:
    x = lw.input(node, 0)
    dtype, shape = lw.out(node)
    p = float(node.attrs.get("p", 2))
    count = product(x.shape[2:])

    def element(c: Coordinates, r: Coordinates) -> Scalar:
        value = lw.read(x, (*c, *r))
        return _power(value, p) if node.op == "GlobalLpPool" else value

    def finish(total: Scalar, c: Coordinates) -> Scalar:
        if node.op == "GlobalAveragePool":
            return over(total, count)
        return _root(total, p) if node.op == "GlobalLpPool" else total

    op = ReduceOp.MAX if node.op == "GlobalMaxPool" else ReduceOp.SUM
    return reshaped(lw, lw.reduce(dtype, x.shape[:2], x.shape[2:], op, element, finish), shape)


def over(total: Scalar, count: Dim) -> Scalar:
    """total / count, by a multiplication where the count is known."""
    if isinstance(count, int) and total.type is Type.F32 and count:
        return total * (1.0 / count)
    return total / convert(sc.dim(count), total.type)
