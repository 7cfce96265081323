"""Operators that have no lowering of their own but are defined by others are written out.

ONNX defines many operators by function bodies; its inliner expands them for the types at hand.
Fusion comes first, so what it recognises is never taken apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
from onnx import helper, inliner

from ..errors import ModelError, UnsupportedError
from ..graph import Graph, Node
from ..infer import Problems, infer_graph
from ..infer.engine import renamed
from ..onnx_types import ELEMENT_CODES, LATEST, node_proto

_LOCAL = "pywebgpu.definitions"
_DEPTH = 4  # functions defined by functions
_KEPT = {"Bernoulli", "SequenceMap"}
_DEFINED = {"": LATEST, "ai.onnx.preview": 1}
"""ONNX's own domains, and their newest versions."""


def decompose(graph: Graph) -> bool:
    """Expand what is not lowered, repeatedly."""
    from ..lower import supported

    changed = False
    made: set[int] = set()  # nodes that define others: what cannot be inferred of them is an error
    for _ in range(_DEPTH):
        found = False

        def rewrite(graph: Graph, node: Node, _version: int) -> list[Node] | None:
            nonlocal found
            if supported(node) is None:
                return None
            nodes = expand(graph, node)
            found = found or nodes is not None
            made.update(map(id, nodes or ()))
            return nodes

        problems = Problems()
        infer_graph(graph, problems, rewrite)
        for node, error in problems.unsupported:
            if id(node) in made:
                raise error
        graph.prune()
        changed = changed or found
        if not found:
            break
    return changed


def expand(graph: Graph, node: Node) -> list[Node] | None:
    """The nodes that define `node`, or None if ONNX does not define it so."""
    if node.domain not in _DEFINED or node.op in _KEPT:
        return None
    newest = _DEFINED[node.domain]
    if not onnx.defs.has(node.op, newest, node.domain):
        return None
    schema = onnx.defs.get_schema(node.op, newest, node.domain)
    # The binding's type stubs lack these two.
    if not (
        getattr(schema, "has_function", False)
        or getattr(schema, "has_context_dependent_function", False)
    ):
        return None
    body = _inlined(graph, node)
    if body is None or any(n.op_type == node.op for n in body.node):
        return None
    from ..load import convert_nodes

    try:
        nodes, constants = convert_nodes(body)
    except (ModelError, UnsupportedError):
        return None
    kept = {*node.inputs, *node.outputs}
    names: dict[str, str] = {"": ""}
    for inner in nodes:
        for out in inner.outputs:
            if out not in kept and out not in names:
                names[out] = graph.fresh(f"{node.outputs[0]}/{out}")
    for name, (array, type_) in constants.items():
        names[name] = graph.fresh(f"{node.outputs[0]}/{name}")
        graph.constants[names[name]], graph.types[names[name]] = array, type_
    for inner in nodes:
        renamed(inner, names)
        inner.name = f"{node.name}/{inner.name}"
    return nodes


def _inlined(graph: Graph, node: Node) -> onnx.GraphProto | None:
    def info(name: str) -> onnx.ValueInfoProto:
        type_ = graph.types[name]
        shape = [d if isinstance(d, int) else str(d) for d in type_.shape]
        return helper.make_tensor_value_info(name, ELEMENT_CODES[type_.dtype], shape)

    try:
        function = _function(graph, node, info)
        call = node_proto(node)
        call.domain = _LOCAL
        proto = helper.make_graph(
            [call],
            "one",
            [info(name) for name in dict.fromkeys(node.inputs) if name],
            [info(name) for name in node.outputs if name and name in graph.types],
        )
        opsets = [helper.make_opsetid("", LATEST), helper.make_opsetid(_LOCAL, 1)]
        model = helper.make_model(proto, opset_imports=opsets, functions=[function])
        made = inliner.inline_local_functions(model)
    except Exception:  # the binding raises bare RuntimeErrors; the node is then unsupported
        return None
    return made.graph if made.graph.node else None


def _function(
    graph: Graph, node: Node, info: Callable[[str], onnx.ValueInfoProto]
) -> onnx.FunctionProto:
    """The operator's definition as a function of a model.

    The inliner could look it up itself, but fails on calls that omit an input between others.
    """
    schema: Any = onnx.defs.get_schema(node.op, _DEFINED[node.domain], node.domain)
    if schema.has_context_dependent_function:
        types = [
            (info(name).type if name else onnx.TypeProto()).SerializeToString()
            for name in node.inputs
        ]
        version = max(schema.context_dependent_function_opset_versions)
        data = schema.get_context_dependent_function_with_opset_version(
            version, node_proto(node).SerializeToString(), types
        )
        function = onnx.FunctionProto.FromString(data)
    else:
        version = max(schema.function_opset_versions)
        function = onnx.FunctionProto.FromString(schema.get_function_with_opset_version(version))
    function.domain, function.name = _LOCAL, node.op
    # The newest definition is written in operators whose newest form is the same.
    del function.opset_import[:]
    function.opset_import.append(helper.make_opsetid("", LATEST))
    for name, attribute in schema.attributes.items():
        # What the call leaves out has the operator's default.
        if attribute.default_value.type and name in function.attribute:
            function.attribute.remove(name)
            function.attribute_proto.append(attribute.default_value)
    return function
