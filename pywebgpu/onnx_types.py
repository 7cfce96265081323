"""Between ONNX's protobuf forms and ours: element types, tensors, attributes, single nodes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .errors import ModelError, UnsupportedError
from .graph import DType, Graph, Node

LATEST = 28
OLDEST = 6
"""Opsets of the default domain that are read; nodes of a loaded graph follow `LATEST`."""

ELEMENT_TYPES: dict[int, DType] = {
    TensorProto.FLOAT: DType.F32,
    TensorProto.FLOAT16: DType.F16,
    TensorProto.DOUBLE: DType.F64,
    TensorProto.BFLOAT16: DType.BF16,
    TensorProto.INT64: DType.I64,
    TensorProto.INT32: DType.I32,
    TensorProto.INT16: DType.I16,
    TensorProto.INT8: DType.I8,
    TensorProto.UINT64: DType.U64,
    TensorProto.UINT32: DType.U32,
    TensorProto.UINT16: DType.U16,
    TensorProto.UINT8: DType.U8,
    TensorProto.BOOL: DType.BOOL,
    TensorProto.INT4: DType.I4,
    TensorProto.UINT4: DType.U4,
    TensorProto.INT2: DType.I2,
    TensorProto.UINT2: DType.U2,
    TensorProto.FLOAT8E4M3FN: DType.F8E4M3FN,
    TensorProto.FLOAT8E4M3FNUZ: DType.F8E4M3FNUZ,
    TensorProto.FLOAT8E5M2: DType.F8E5M2,
    TensorProto.FLOAT8E5M2FNUZ: DType.F8E5M2FNUZ,
    TensorProto.FLOAT4E2M1: DType.F4E2M1,
}
ELEMENT_CODES: dict[DType, int] = {dtype: code for code, dtype in ELEMENT_TYPES.items()}
_PACKED_BITS: dict[int, int] = {
    TensorProto.INT4: 4,
    TensorProto.UINT4: 4,
    TensorProto.INT2: 2,
    TensorProto.UINT2: 2,
    TensorProto.FLOAT4E2M1: 4,
}
"""Types of which a tensor holds several elements in a byte."""
DTYPE_ATTRIBUTES = {"to", "dtype", "output_dtype", "output_datatype"}
"""Attributes that hold an element type; a graph's nodes have a `DType` there."""


def dtype_of(code: int, where: str) -> DType:
    """The element type with ONNX's number `code`."""
    if code in ELEMENT_TYPES:
        return ELEMENT_TYPES[code]
    try:
        name = TensorProto.DataType.Name(code).lower()
    except ValueError:
        raise ModelError("unknown element type", where=where, got=code) from None
    raise UnsupportedError(
        f"tensors of {name} are not supported",
        where=where,
        expected=", ".join(d.value for d in DType),
        remedy="Convert the model to one of these types, or cut this part off before the export",
    )


def array_of(tensor: TensorProto, where: str) -> tuple[DType, np.ndarray[Any, Any]]:
    """A tensor's type and elements; narrow types that NumPy lacks are widened."""
    dtype = dtype_of(tensor.data_type, where)
    if any(d < 0 for d in tensor.dims):
        raise ModelError("a dimension is negative", where=where, got=list(tensor.dims))
    count = 1
    for d in tensor.dims:
        count *= d
    try:
        # The number of elements is compared first, so that a tensor of a few bytes that claims
        # to have 2**60 elements allocates nothing.
        if tensor.HasField("raw_data"):
            code = tensor.data_type
            bits = _PACKED_BITS.get(code) or 8 * helper.tensor_dtype_to_np_dtype(code).itemsize
            if len(tensor.raw_data) != (count * bits + 7) // 8:
                raise ValueError(f"{len(tensor.raw_data)} bytes for {count} elements")
        elif count > 0 and count > (8 // _PACKED_BITS.get(tensor.data_type, 8)) * sum(
            len(getattr(tensor, f))
            for f in ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")
        ):
            raise ValueError(f"too few elements for {list(tensor.dims)}")
        array = np.asarray(numpy_helper.to_array(tensor))
    except (ValueError, TypeError, OverflowError, MemoryError) as error:
        raise ModelError(
            "a tensor's data does not fit its shape", where=where, got=error
        ) from error
    return dtype, np.ascontiguousarray(array.astype(dtype.numpy, copy=False)).reshape(array.shape)


def attribute_proto(name: str, value: Any) -> onnx.AttributeProto:
    """One attribute as protobuf."""
    if isinstance(value, DType):
        value = ELEMENT_CODES[value]
    if isinstance(value, np.ndarray):
        value = numpy_helper.from_array(value)
    if isinstance(value, Graph):
        value = graph_proto(value)
    return helper.make_attribute(name, value)


def graph_proto(body: Graph) -> onnx.GraphProto:
    """A body as protobuf."""

    def info(name: str) -> onnx.ValueInfoProto:
        type_ = body.types.get(name)
        if type_ is None:
            return onnx.ValueInfoProto(name=name)
        shape = [d if isinstance(d, int) else str(d) for d in type_.shape]
        return helper.make_tensor_value_info(name, ELEMENT_CODES[type_.dtype], shape)

    return helper.make_graph(
        [node_proto(node) for node in body.nodes],
        body.name or "body",
        [info(name) for name in body.inputs],
        [info(name) for name in body.outputs],
        [numpy_helper.from_array(array, name) for name, array in body.constants.items()],
    )


def node_proto(node: Node) -> onnx.NodeProto:
    """A node as protobuf. Its attributes must be ONNX's (no `INTERNAL` operators)."""
    proto = helper.make_node(node.op, node.inputs, node.outputs, name=node.name, domain=node.domain)
    for name, value in node.attrs.items():
        if value is not None and not (isinstance(value, list) and not value):
            proto.attribute.append(attribute_proto(name, value))
    return proto
