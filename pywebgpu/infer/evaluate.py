"""Constant folding: what a node gives for constant inputs, by ONNX's reference implementation.

The operators that exporters leave between weights and their users are computed by NumPy directly,
because the reference evaluator costs a millisecond per node.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from onnx import helper
from onnx.reference import ReferenceEvaluator

from ..codegen.dims import product
from ..graph import DType, Graph, Node, TensorType, subgraphs
from ..onnx_types import LATEST, node_proto

Array = np.ndarray[Any, Any]

GROWTH = 2
SMALL = 1 << 16
LARGE = 1 << 26
"""A folded value may have `GROWTH` times its inputs' bytes, up to `LARGE`, or `SMALL` bytes: an
Expand of one number to a million is better computed where it is used."""

_NEVER = {
    "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial",
    "Bernoulli", "Dropout", "If", "Loop", "Scan", "LSTM", "GRU", "RNN",
}  # fmt: skip
_MAY_GROW = {"DequantizeLinear", "Cast"}
_VIEWS = {"ConstantOfShape", "Expand"}
"""Folded to arrays with strides of 0, which take no memory until a kernel's weights are packed."""

_UNARY: dict[str, Callable[[Array], Array]] = {
    "Identity": lambda x: x,
    "Neg": np.negative,
    "Abs": np.abs,
    "Sqrt": np.sqrt,
    "Exp": np.exp,
    "Log": np.log,
    "Floor": np.floor,
    "Ceil": np.ceil,
    "Not": np.logical_not,
    "Reciprocal": np.reciprocal,
}
_BINARY: dict[str, Callable[[Array, Array], Array]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "MatMul": np.matmul,
    "Equal": np.equal,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "And": np.logical_and,
    "Or": np.logical_or,
}


def can_fold(graph: Graph, node: Node) -> bool:
    """Whether a node's inputs are constants and its outputs not too large. Types are inferred."""
    names = [name for name in node.inputs if name]
    if node.op in _NEVER or node.domain or subgraphs(node) or not names:
        return False
    if not all(name in graph.constants for name in names):
        return False
    before = sum(graph.constants[name].nbytes for name in set(names))
    after = 0
    for out in filter(None, node.outputs):
        type_ = graph.types[out]
        count = product(type_.shape)
        if not isinstance(count, int):
            return False
        after += count * type_.dtype.numpy.itemsize
    if node.op in _MAY_GROW or node.op in _VIEWS:
        return after <= 1 << 30
    # A product of constants is worth its time only where it is small.
    if node.op in ("Conv", "ConvTranspose", "Einsum", "Gemm") and before > 1 << 22:
        return False
    return after <= before or after <= min(LARGE, max(SMALL, GROWTH * before))


def evaluate(graph: Graph, node: Node) -> list[Array | None]:
    """The node's outputs; raises whatever the evaluator raises."""
    inputs = [graph.constants[name] if name else None for name in node.inputs]
    with np.errstate(all="ignore"):
        found = _with_numpy(graph, node, inputs)
        if found is None:
            found = _with_reference(graph, node)
    return [
        None if not name or x is None else as_type(x, graph.types[name])
        for name, x in zip(node.outputs, found, strict=False)
    ]


def as_type(array: Any, type_: TensorType) -> Array:
    made: Array = np.asarray(array).astype(type_.dtype.numpy, copy=False)
    shape = [d for d in type_.shape if isinstance(d, int)]
    return made if math.prod(shape) != made.size else made.reshape(shape)


def _with_numpy(graph: Graph, node: Node, inputs: list[Array | None]) -> list[Array] | None:
    arrays = [x for x in inputs if x is not None]
    if len(arrays) != len(inputs):
        return None
    if node.op in _UNARY and arrays[0].dtype.kind in "fb":
        return [_UNARY[node.op](arrays[0])]
    if node.op in _BINARY:
        return [_BINARY[node.op](arrays[0], arrays[1])]
    if node.op == "Cast" and (node.attrs["to"] is DType.BF16 or node.attrs["to"].ml_dtype is None):
        return [arrays[0].astype(node.attrs["to"].numpy)]
    if node.op in _VIEWS:
        shape = [d for d in graph.types[node.outputs[0]].shape if isinstance(d, int)]
        if node.op == "Expand":
            return [np.broadcast_to(arrays[0], shape)]
        fill = node.attrs.get("value")
        scalar = np.zeros((), np.float32) if fill is None else fill.reshape(())
        return [np.broadcast_to(scalar, shape)]
    if node.op == "Transpose":
        return [np.ascontiguousarray(arrays[0].transpose(node.attrs.get("perm")))]
    if node.op == "Slice":
        return [_sliced(arrays)]
    if node.op == "Gather":
        return [np.take(arrays[0], arrays[1], node.attrs.get("axis", 0))]
    if node.op == "Concat":
        return [np.concatenate(arrays, node.attrs["axis"])]
    if node.op == "Where":
        return [np.where(arrays[0], arrays[1], arrays[2])]
    if node.op in ("Reshape", "Unsqueeze", "Squeeze", "Flatten"):
        shape = [d for d in graph.types[node.outputs[0]].shape if isinstance(d, int)]
        return [arrays[0].reshape(shape)]
    return None


def _sliced(arrays: list[Array]) -> Array:
    x, starts, ends = arrays[:3]
    axes = arrays[3].ravel() if len(arrays) > 3 else range(len(starts))
    steps = arrays[4].ravel() if len(arrays) > 4 else [1] * len(starts)
    where = [slice(None)] * x.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        # With a negative step an end before the first element takes all down to it.
        stop = None if step < 0 and end < -x.shape[axis] else int(end)
        where[axis] = slice(int(start), stop, int(step))
    return np.ascontiguousarray(x[tuple(where)])


def _with_reference(graph: Graph, node: Node) -> list[Any]:
    outputs = [name for name in node.outputs if name]
    function = helper.make_function(
        "pywebgpu",
        "Folded",
        list(dict.fromkeys(name for name in node.inputs if name)),
        outputs,
        [node_proto(node)],
        [helper.make_opsetid("", LATEST)],
    )
    feeds = {
        name: _exact(graph.constants[name], graph.types[name].dtype) for name in node.inputs if name
    }
    results = ReferenceEvaluator(function).run(outputs, feeds, attributes={})
    found = dict(zip(outputs, results, strict=True))
    return [found.get(name) for name in node.outputs]


def _exact(array: Array, dtype: DType) -> Array:
    """In its own type, as the evaluator decides by it."""
    if dtype.ml_dtype is None or dtype is DType.BF16:
        return array
    made: Array = array.astype(getattr(ml_dtypes, dtype.ml_dtype))
    return made
