"""A graph's meaning, from ONNX Runtime: back to ONNX for given sizes, then run.

Independent of lowering, so that inference and passes can be judged on their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from pywebgpu.codegen.dims import Dim, evaluate
from pywebgpu.graph import INTERNAL, Graph, Node
from pywebgpu.onnx_types import ELEMENT_CODES, node_proto

Array = np.ndarray[Any, Any]

# What installed runtimes know; graphs follow the newest opset, which for most operators means
# the same thing as an earlier one.
OPSET = 23


def sizes(graph: Graph, feeds: Mapping[str, Array]) -> dict[str, int]:
    """What the inputs bind the symbols to; asserts the graph's checks."""
    found: dict[str, int] = {}
    for name in graph.inputs:
        for dim, size in zip(graph.types[name].shape, feeds[name].shape, strict=True):
            if not isinstance(dim, int) and len(dim.terms) == 1 and len(dim.terms[0][0]) == 1:
                atom = dim.terms[0][0][0]
                if isinstance(atom, str):
                    found.setdefault(atom, size)
    for name in graph.inputs:
        for dim, size in zip(graph.types[name].shape, feeds[name].shape, strict=True):
            assert evaluate(dim, found) == size, (name, str(dim), size)
    for check in graph.checks:
        assert evaluate(check.left, found) == evaluate(check.right, found), check
    return found


def to_onnx(graph: Graph, bound: Mapping[str, int]) -> onnx.ModelProto:
    """The graph for fixed sizes, as an ONNX model of opset `OPSET`."""

    def static(dims: tuple[Dim, ...]) -> list[int]:
        return [evaluate(d, bound) for d in dims]

    produced = graph.producers()
    used = {name for node in graph.nodes for name in node.inputs} | set(graph.outputs)
    initializers = []
    for name in sorted(used):
        if name in graph.constants:
            array = graph.constants[name]
        elif name in graph.values and name not in produced:
            type_ = graph.types[name]
            array = np.array(static(graph.values[name]), dtype=type_.dtype.numpy)
            array = array.reshape(static(type_.shape))
        else:
            continue
        initializers.append(
            numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
        )
    nodes: list[onnx.NodeProto] = []
    for node in graph.nodes:
        if node.domain == INTERNAL:
            nodes += _expanded(graph, node)
        elif node.op == "Swish" and node.attrs.get("alpha", 1.0) == 1.0:  # newer than `OPSET`
            gate = f"{node.outputs[0]}/gate"
            nodes.append(helper.make_node("Sigmoid", node.inputs, [gate]))
            nodes.append(helper.make_node("Mul", [node.inputs[0], gate], node.outputs))
        else:
            nodes.append(node_proto(node))

    def info(name: str) -> onnx.ValueInfoProto:
        type_ = graph.types[name]
        return helper.make_tensor_value_info(name, ELEMENT_CODES[type_.dtype], static(type_.shape))

    proto = helper.make_graph(
        nodes,
        "graph",
        [info(n) for n in graph.inputs],
        [info(n) for n in graph.outputs],
        initializers,
    )
    opsets = [helper.make_opsetid("", OPSET)]
    opsets += [helper.make_opsetid(d, v) for d, v in graph.opsets.items() if d]
    model = helper.make_model(proto, opset_imports=opsets)
    model.ir_version = 10
    return model


def _expanded(graph: Graph, node: Node) -> list[onnx.NodeProto]:
    """An internal operator in ONNX's terms."""
    assert node.op == "Attention", node
    stem = node.outputs[0]
    out: list[onnx.NodeProto] = []

    def add(op: str, inputs: list[str], name: str, **attrs: Any) -> str:
        out.append(helper.make_node(op, inputs, [f"{stem}/{name}"], **attrs))
        return f"{stem}/{name}"

    def turned(index: int, axes: str, want: str, name: str) -> str:
        return add("Transpose", [node.inputs[index]], name, perm=[axes.index(a) for a in want])

    q = turned(0, node.attrs["q_axes"], "bhsd", "q")
    k = turned(1, node.attrs["k_axes"], "bhsd", "k")
    v = turned(2, node.attrs["v_axes"], "bhsd", "v")
    heads = graph.types[node.inputs[0]].shape[node.attrs["q_axes"].index("h")]
    kv_heads = graph.types[node.inputs[1]].shape[node.attrs["k_axes"].index("h")]
    assert isinstance(heads, int)
    assert isinstance(kv_heads, int)
    if heads != kv_heads:
        index = np.repeat(np.arange(kv_heads), heads // kv_heads)
        picks = helper.make_node(
            "Constant", [], [f"{stem}/picks"], value=numpy_helper.from_array(index)
        )
        out.append(picks)
        k = add("Gather", [k, f"{stem}/picks"], "k_all", axis=1)
        v = add("Gather", [v, f"{stem}/picks"], "v_all", axis=1)
    scale = numpy_helper.from_array(np.array(node.attrs["scale"], np.float32))
    out.append(helper.make_node("Constant", [], [f"{stem}/scale"], value=scale))
    scores = add("MatMul", [q, add("Transpose", [k], "kt", perm=[0, 1, 3, 2])], "qk")
    scores = add("Mul", [scores, f"{stem}/scale"], "scaled")
    if len(node.inputs) > 3 and node.inputs[3]:
        scores = add("Add", [scores, node.inputs[3]], "biased")
    if node.attrs["causal"]:
        for name, value in (("zero", 0.0), ("minus", -np.inf)):
            constant = numpy_helper.from_array(np.array(value, np.float32))
            out.append(helper.make_node("Constant", [], [f"{stem}/{name}"], value=constant))
        one = numpy_helper.from_array(np.array(1, np.int64))
        out.append(helper.make_node("Constant", [], [f"{stem}/one"], value=one))
        shape = add("Shape", [scores], "shape")
        hidden = add("Expand", [f"{stem}/minus", shape], "hidden")
        # Upper triangle above the diagonal that ends in the last corner.
        kv = add("Shape", [scores], "kv", start=3)
        qs = add("Shape", [scores], "qs", start=2, end=3)
        offset = add("Add", [add("Sub", [kv, qs], "gap"), f"{stem}/one"], "offset_1d")
        point = numpy_helper.from_array(np.array([], np.int64))
        out.append(helper.make_node("Constant", [], [f"{stem}/point"], value=point))
        offset = add("Reshape", [offset, f"{stem}/point"], "offset")
        mask = add("Trilu", [hidden, offset], "mask", upper=1)
        scores = add("Add", [scores, mask], "causal")
    weights = add("Softmax", [scores], "weights", axis=-1)
    if node.attrs["zero_masked_rows"]:
        zero = numpy_helper.from_array(np.array(0.0, np.float32))
        out.append(helper.make_node("Constant", [], [f"{stem}/none"], value=zero))
        weights = add("Where", [add("IsNaN", [weights], "nan"), f"{stem}/none", weights], "safe")
    result = add("MatMul", [weights, v], "result")
    perm = ["bhsd".index(a) for a in node.attrs["out_axes"]]
    out.append(helper.make_node("Transpose", [result], [stem], perm=perm))
    return out


def run_onnx(model: onnx.ModelProto | str, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """ONNX Runtime's outputs, without its own optimisations."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    source = model if isinstance(model, str) else model.SerializeToString()
    session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def run_graph(graph: Graph, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The graph's outputs; also checks that shapes and types are as inferred."""
    bound = sizes(graph, feeds)
    found = run_onnx(to_onnx(graph, bound), feeds)
    for name, array in found.items():
        type_ = graph.types[name]
        assert list(array.shape) == [evaluate(d, bound) for d in type_.shape], name
        assert array.dtype == type_.dtype.numpy, name
    return found
