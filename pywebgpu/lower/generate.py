"""Operators that make tensors out of sizes and scalars."""

from __future__ import annotations

from ..codegen import scalar as sc
from ..codegen.dims import product
from ..codegen.scalar import Op, Scalar
from ..graph import DType, Node
from .engine import Lowering, lowers
from .values import Coordinates, Value, convert, scalar_type


@lowers("Constant")
def lower_constant(lw: Lowering, node: Node) -> Value:
    name = node.outputs[0]
    return lw.constant(lw.graph.constants[name], lw.graph.types[name].dtype)


@lowers("ConstantOfShape")
def lower_constant_of_shape(lw: Lowering, node: Node) -> Value:
    dtype, shape = lw.out(node)
    given = node.attrs.get("value")
    element = lw.constant(given.reshape(()), dtype).read(()) if given is not None else (
        convert(sc.const(0.0), scalar_type(dtype))
    )  # fmt: skip
    return lw.virtual(dtype, shape, lambda c: element)


@lowers("Shape")
def lower_shape(lw: Lowering, node: Node) -> Value:
    sizes = lw.input(node, 0).shape
    rank = len(sizes)
    start = int(node.attrs.get("start", 0))
    end = int(node.attrs.get("end", rank))
    start, end = (max(0, min(rank, i + rank if i < 0 else i)) for i in (start, end))
    return lw.sizes(sizes[start:end], DType.I64, (max(end - start, 0),))


@lowers("Size")
def lower_size(lw: Lowering, node: Node) -> Value:
    return lw.sizes((product(lw.input(node, 0).shape),), DType.I64, ())


@lowers("Range")
def lower_range(lw: Lowering, node: Node) -> Value:
    dtype, shape = lw.out(node)
    start, step = lw.input(node, 0), lw.input(node, 2)

    def read(c: Coordinates) -> Scalar:
        first = lw.read(start, [sc.const(0)] * start.rank)
        each = lw.read(step, [sc.const(0)] * step.rank)
        return first + convert(c[0], first.type) * each

    return lw.virtual(dtype, shape, read)


@lowers("EyeLike")
def lower_eye_like(lw: Lowering, node: Node) -> Value:
    dtype, shape = lw.out(node)
    k = int(node.attrs.get("k", 0))

    def read(c: Coordinates) -> Scalar:
        here = sc.binary(Op.EQ, c[0] + k, c[1]) if k >= 0 else sc.binary(Op.EQ, c[0], c[1] - k)
        return convert(here, scalar_type(dtype))

    return lw.virtual(dtype, shape, read)


@lowers("OneHot")
def lower_one_hot(lw: Lowering, node: Node) -> Value:
    dtype, shape = lw.out(node)
    indices, values = lw.input(node, 0), lw.input(node, 2)
    lw.limit(indices, values)
    axis = int(node.attrs.get("axis", -1))
    axis += len(shape) if axis < 0 else 0

    def read(c: Coordinates) -> Scalar:
        from .elementwise import choose

        index = convert(lw.read(indices, [*c[:axis], *c[axis + 1 :]]), sc.Type.I32)
        depth = sc.dim(shape[axis])
        index = sc.select(sc.binary(Op.LT, index, 0), index + depth, index)
        hit = sc.binary(Op.EQ, index, c[axis])
        return choose(hit, lw.read(values, [sc.const(1)]), lw.read(values, [sc.const(0)]))

    return lw.virtual(dtype, shape, read)
