"""Types of operators without a function of their own: ONNX's inference, one node at a time.

ONNX knows ints and names, not expressions, so every expression gets a name for the question and
is found again in the answer.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TypeProto, helper, numpy_helper

from ..codegen.dims import Dim, symbol
from ..errors import UnsupportedError
from ..graph import Node, TensorType, subgraphs
from ..onnx_types import ELEMENT_CODES, LATEST, dtype_of, node_proto
from .registry import TABLE, DataDependent, Site

_DATA_LIMIT = 4096


def infer_with_onnx(site: Site) -> list[TensorType | None]:
    """Types from ONNX's own inference.

    Raises:
        UnsupportedError: the operator is unknown, or the rank of an output is not inferred.
    """
    node, graph = site.node, site.graph
    version = graph.opsets.get(node.domain, 1)
    try:
        schema = onnx.defs.get_schema(node.op, min(version, LATEST), node.domain)
    except onnx.defs.SchemaError:
        raise unknown(node) from None
    if subgraphs(node):
        raise UnsupportedError(
            f"{node.op} with a body is not supported",
            where=node.where(),
            remedy="Export the model so that control flow does not depend on data",
        )
    names: dict[str, Dim] = {}
    types: dict[str, TypeProto] = {}
    data: dict[str, onnx.TensorProto] = {}
    for name in filter(None, node.inputs):
        type_ = graph.types[name]
        shape = []
        for dim in type_.shape:
            if isinstance(dim, int):
                shape.append(dim)
            else:
                names[str(dim)] = dim
                shape.append(str(dim))  # type: ignore[arg-type]
        types[name] = helper.make_tensor_type_proto(ELEMENT_CODES[type_.dtype], shape)
        array = graph.constants.get(name)
        if array is not None and array.size <= _DATA_LIMIT:
            data[name] = numpy_helper.from_array(array)
        elif array is None and all(
            isinstance(x, int) for x in graph.values.get(name, (symbol("x"),))
        ):
            values = np.array(graph.values[name], dtype=type_.dtype.numpy)
            data[name] = numpy_helper.from_array(values.reshape([int(str(d)) for d in type_.shape]))
    opsets = [helper.make_opsetid(k, v) for k, v in graph.opsets.items()]
    try:
        found = onnx.shape_inference.infer_node_outputs(
            schema, node_proto(node), types, data, opset_imports=opsets
        )
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, ValueError) as error:
        raise site.error(
            "the node contradicts its inputs", got=str(error).strip().splitlines()[-1]
        ) from error
    return [
        _type(site, i, found.get(name), names) if name else None
        for i, name in enumerate(node.outputs)
    ]


def _type(site: Site, output: int, proto: TypeProto | None, names: dict[str, Dim]) -> TensorType:
    where = f"{site.node.where()} output '{site.node.outputs[output]}'"
    if proto is None or not proto.HasField("tensor_type"):
        raise UnsupportedError(
            "the output is not a tensor of known type",
            where=where,
            remedy="Export with fixed input shapes, or without sequences and optional values",
        )
    tensor = proto.tensor_type
    if not tensor.HasField("shape"):
        raise DataDependent(
            "the rank of the output depends on data",
            where=where,
            remedy="Export with fixed input shapes",
        )
    shape: list[Dim] = []
    for i, dim in enumerate(tensor.shape.dim):
        if dim.HasField("dim_value"):
            shape.append(dim.dim_value)
        elif dim.dim_param in names:
            shape.append(names[dim.dim_param])
        else:
            shape.append(site.fresh_dim(i, output))
    return TensorType(dtype_of(tensor.elem_type, where), tuple(shape))


def is_known(node: Node) -> bool:
    """Whether there is such an operator, supported or not."""
    return (node.domain, node.op) in TABLE or onnx.defs.has(node.op, LATEST, node.domain)


def unknown(node: Node) -> UnsupportedError:
    """No such operator."""
    domain = node.domain or "ai.onnx"
    return UnsupportedError(
        f"operator {node.op} of domain {domain} is not known",
        where=node.where(),
        remedy="Export the model with operators of the default domain",
    )
