"""Older forms of operators rewritten to the newest, so that later stages know one form of each.

A rule `@upgrades("Softmax", before=13)` takes a node of an opset below 13 whose inputs are typed
and returns nodes in the newest form. Of several rules for an operator the one with the smallest
`before` above the model's opset is taken; each leads all the way to the newest form. Attributes
whose old default differs from the new one are written out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import UnsupportedError
from ..graph import Graph, Node
from ..infer.registry import Site
from ..onnx_types import LATEST

Rule = Callable[[Graph, Node], list[Node]]
_RULES: dict[str, list[tuple[int, Rule]]] = {}


def upgrades(*ops: str, before: int) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        for op in ops:
            _RULES.setdefault(op, []).append((before, rule))
            _RULES[op].sort(key=lambda item: item[0])
        return rule

    return register


def upgrade(graph: Graph, node: Node, version: int) -> list[Node] | None:
    """The node in the newest form, or None when it already is."""
    if node.domain:
        return None
    for before, rule in _RULES.get(node.op, []):
        if version < before:
            return rule(graph, node)
    return None


def _ints(graph: Graph, node: Node, what: str, values: Sequence[int]) -> str:
    return graph.add_constant(f"{node.outputs[0]}_{what}", np.array(values, dtype=np.int64))


def _input(node: Node, index: int, name: str) -> None:
    """Set an input, with "" for those before it that are omitted."""
    node.inputs += [""] * (index + 1 - len(node.inputs))
    node.inputs[index] = name


def _to_input(graph: Graph, node: Node, attr: str, index: int) -> None:
    """Move a list of ints from an attribute to an input."""
    value = node.attrs.pop(attr, None)
    if value is not None:
        value = value if isinstance(value, list) else [value]
        _input(node, index, _ints(graph, node, attr, value))


def _scalar_like(graph: Graph, node: Node, what: str, value: float) -> str:
    dtype = graph.types[node.inputs[0]].dtype.numpy
    return graph.add_constant(f"{node.outputs[0]}_{what}", np.array(value, dtype=dtype))


@upgrades("Squeeze", "Unsqueeze", "ReduceSum", before=13)
@upgrades(
    "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum",
    "ReduceLogSumExp", "ReduceSumSquare", before=18,
)  # fmt: skip
def _axes(graph: Graph, node: Node) -> list[Node]:
    _to_input(graph, node, "axes", 1)
    return [node]


@upgrades(
    "Add", "Sub", "Mul", "Div", "Pow", "And", "Or", "Xor", "Equal", "Greater", "Less", before=7
)  # fmt: skip
def _aligned(graph: Graph, node: Node) -> list[Node]:
    """The second operand's axes began at `axis` of the first, instead of ending with the last."""
    axis = node.attrs.pop("axis", None)
    if not node.attrs.pop("broadcast", 0) or axis is None:
        return [node]
    a, b = (len(graph.types[name].shape) for name in node.inputs)
    behind = a - b - (axis + a if axis < 0 else axis)
    if behind <= 0:
        return [node]
    shifted = graph.fresh(node.inputs[1])
    axes = _ints(graph, node, "axes", range(b, b + behind))
    first = Node("Unsqueeze", [node.inputs[1], axes], [shifted], name=shifted)
    node.inputs[1] = shifted
    return [first, node]


@upgrades("Gemm", before=7)
def _gemm(graph: Graph, node: Node) -> list[Node]:
    node.attrs.pop("broadcast", None)
    return [node]


@upgrades("Clip", before=11)
def _clip(graph: Graph, node: Node) -> list[Node]:
    for index, name in ((1, "min"), (2, "max")):
        value = node.attrs.pop(name, None)
        if value is not None:
            _input(node, index, _scalar_like(graph, node, name, value))
    return [node]


@upgrades("Pad", before=11)
def _pad(graph: Graph, node: Node) -> list[Node]:
    value = node.attrs.pop("value", 0.0)
    _to_input(graph, node, "paddings" if "paddings" in node.attrs else "pads", 1)
    _input(node, 2, _scalar_like(graph, node, "value", value))
    return [node]


@upgrades("Slice", before=10)
def _slice(graph: Graph, node: Node) -> list[Node]:
    for index, name in ((1, "starts"), (2, "ends"), (3, "axes")):
        _to_input(graph, node, name, index)
    return [node]


@upgrades("TopK", before=10)
def _top_k(graph: Graph, node: Node) -> list[Node]:
    _to_input(graph, node, "k", 1)
    return [node]


@upgrades("Split", before=13)
def _split(graph: Graph, node: Node) -> list[Node]:
    _to_input(graph, node, "split", 1)
    if len(node.inputs) < 2:
        node.attrs["num_outputs"] = len(node.outputs)
    return [node]


@upgrades("Split", before=18)
def _split_even(graph: Graph, node: Node) -> list[Node]:
    if len(node.inputs) < 2:
        node.attrs["num_outputs"] = len(node.outputs)
    return [node]


@upgrades("Softmax", "LogSoftmax", "Hardmax", before=13)
def _softmax(graph: Graph, node: Node) -> list[Node]:
    """Before opset 13 the axes from `axis` on were one: the input was taken as a matrix."""
    shape = graph.types[node.inputs[0]].shape
    axis = Site(graph, node).axis(node.attrs.get("axis", 1), len(shape)) if shape else 0
    node.attrs["axis"] = -1
    if axis >= len(shape) - 1 or all(d == 1 for d in shape[axis + 1 :]):
        node.attrs["axis"] = axis if shape else -1
        return [node]
    out = node.outputs[0]
    size, flat, result = graph.fresh(out), graph.fresh(out), graph.fresh(out)
    x, node.inputs, node.outputs = node.inputs[0], [flat], [result]
    return [
        Node("Shape", [x], [size], name=size),
        Node("Flatten", [x], [flat], {"axis": axis}, name=flat),
        node,
        Node("Reshape", [result, size], [out], name=out),
    ]


@upgrades("Compress", before=LATEST + 1)
def _compress(graph: Graph, node: Node) -> list[Node]:
    """With a condition that is known: the elements that it picks."""
    known = graph.known(node.inputs[1])
    if known is None:
        return [node]
    x, out = node.inputs[0], node.outputs[0]
    picked = _ints(graph, node, "picked", [i for i, keep in enumerate(known) if keep])
    axis = node.attrs.get("axis")
    nodes = []
    if axis is None:
        x = graph.fresh(f"{out}_flat")
        flat = _ints(graph, node, "flat", [-1])
        nodes = [Node("Reshape", [node.inputs[0], flat], [x], name=x)]
    return [*nodes, Node("Gather", [x, picked], [out], {"axis": axis or 0}, name=node.name)]


@upgrades("Dropout", before=12)
def _dropout(graph: Graph, node: Node) -> list[Node]:
    node.attrs.clear()
    return [node]


@upgrades("BatchNormalization", before=14)
def _batch_norm(graph: Graph, node: Node) -> list[Node]:
    if node.attrs.pop("spatial", 1) == 0:
        raise UnsupportedError(
            "batch normalisation per position (spatial=0) is not supported",
            where=node.where(),
            remedy="Convert the model to opset 9 or later",
        )
    for name in ("is_test", "consumed_inputs"):
        node.attrs.pop(name, None)
    node.outputs = node.outputs[:1]  # the rest were the training mode's
    return [node]


@upgrades("BatchNormalization", before=LATEST + 1)
def _batch_norm_training(graph: Graph, node: Node) -> list[Node]:
    """In training mode: by the batch's own statistics, with the running ones as outputs."""
    if not node.attrs.pop("training_mode", 0):
        return [node]
    x, scale, shift, *running = node.inputs
    type_ = graph.types[x]
    axes = _ints(graph, node, "axes", [i for i in range(len(type_.shape)) if i != 1])
    momentum = float(node.attrs.pop("momentum", 0.9))
    made: list[Node] = []

    def add(op: str, *inputs: str, out: str = "", **attrs: Any) -> str:
        name = out or graph.fresh(f"{node.outputs[0]}_{op.lower()}")
        made.append(Node(op, list(inputs), [name], attrs, name=name))
        return name

    centred = add("Sub", x, add("ReduceMean", x, axes, keepdims=1))
    mean = add("ReduceMean", x, axes, keepdims=0)
    variance = add("ReduceMean", add("Mul", centred, centred), axes, keepdims=0)
    made.append(
        Node("BatchNormalization", [x, scale, shift, mean, variance], node.outputs[:1],
             node.attrs, name=node.name)
    )  # fmt: skip
    old, new = (
        graph.add_constant("momentum", np.array(share, type_.dtype.numpy))
        for share in (momentum, 1 - momentum)
    )
    for out, before, now in zip(node.outputs[1:], running, (mean, variance), strict=False):
        if out:
            add("Add", add("Mul", before, old), add("Mul", now, new), out=out)
    return made


@upgrades("Upsample", before=10)
@upgrades("Resize", before=11)
def _upsample(graph: Graph, node: Node) -> list[Node]:
    _to_float_input(graph, node)
    mode = node.attrs.get("mode", "nearest")
    scales = node.inputs[1]
    node.op, node.inputs = "Resize", [node.inputs[0], "", scales]
    # What Upsample and Resize-10 left open, runtimes settled like this.
    node.attrs = {
        "mode": mode,
        "coordinate_transformation_mode": "asymmetric",
        "nearest_mode": "floor",
    }
    return [node]


def _to_float_input(graph: Graph, node: Node) -> None:
    scales = node.attrs.pop("scales", None)
    if scales is not None:
        array = np.array(scales, dtype=np.float32)
        _input(node, 1, graph.add_constant(f"{node.outputs[0]}_scales", array))


@upgrades("Scatter", before=11)
def _scatter(graph: Graph, node: Node) -> list[Node]:
    node.op = "ScatterElements"
    return [node]


@upgrades("GridSample", before=20)
def _grid_sample(graph: Graph, node: Node) -> list[Node]:
    mode = node.attrs.get("mode", "bilinear")
    node.attrs["mode"] = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)
    return [node]


@upgrades("RoiAlign", before=16)
def _roi_align(graph: Graph, node: Node) -> list[Node]:
    node.attrs.setdefault("coordinate_transformation_mode", "output_half_pixel")
    return [node]


@upgrades("DFT", before=20)
def _dft(graph: Graph, node: Node) -> list[Node]:
    axis = np.array(node.attrs.pop("axis", 1), dtype=np.int64)
    _input(node, 2, graph.add_constant(f"{node.outputs[0]}_axis", axis))
    return [node]


@upgrades("GroupNormalization", before=21)
def _group_norm(graph: Graph, node: Node) -> list[Node]:
    """Scale and bias were per group before opset 21 and are per channel now."""
    channels = graph.types[node.inputs[0]].shape[1]
    groups = node.attrs["num_groups"]
    if not isinstance(channels, int):
        raise UnsupportedError(
            "the number of channels must be static", where=node.where(), got=channels
        )
    nodes = []
    column = _ints(graph, node, "column", [groups, 1])
    spread = _ints(graph, node, "spread", [groups, channels // groups])
    flat = _ints(graph, node, "flat", [channels])
    for i in (1, 2):
        a, b, c = (graph.fresh(node.inputs[i]) for _ in range(3))
        nodes += [
            Node("Reshape", [node.inputs[i], column], [a], name=a),
            Node("Expand", [a, spread], [b], name=b),
            Node("Reshape", [b, flat], [c], name=c),
        ]
        node.inputs[i] = c
    return [*nodes, node]


def normalise_attributes(op: str, attrs: dict[str, Any]) -> None:
    """Empty lists mean "not given"."""
    for name in [k for k, v in attrs.items() if isinstance(v, list) and not v]:
        if (op, name) not in {("Constant", "value_ints"), ("Constant", "value_floats")}:
            del attrs[name]
