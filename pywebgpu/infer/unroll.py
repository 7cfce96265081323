"""Loop and Scan with a known number of steps, written out: their bodies one after another.

Short ones only: every step's nodes become kernels of their own. The others stay loops
(`lower/control.py`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np

from ..errors import ModelError, UnsupportedError
from ..graph import Graph, Node

MOST_NODES = 256
"""Of a loop that is written out: its steps times the nodes of its body."""

Rename = Callable[[Node, dict[str, str]], Node]


def unrolled(graph: Graph, node: Node, version: int, renamed: Rename) -> list[Node] | None:
    """What a Loop or Scan does, without it; None where it has to stay."""
    body = node.attrs.get("body")
    if node.domain or not isinstance(body, Graph):
        return None
    if node.op == "Loop":
        return _loop(graph, node, body, renamed)
    if node.op != "Scan":
        return None
    if version < 9 and "scan_input_axes" not in node.attrs:
        return _scan_per_sequence(graph, node, body)
    return _scan(graph, node, body, renamed)


def _scan_per_sequence(graph: Graph, node: Node, body: Graph) -> list[Node]:
    """Up to opset 8 a Scan had a batch: a scan over it, of what a Scan is today."""
    lengths, *inputs = node.inputs
    if lengths:
        raise UnsupportedError(
            "sequences of different lengths in one Scan are not supported",
            where=node.where(),
            remedy="Convert the model to opset 9 or later, or feed one length",
        )
    n = _scanned(node, len(inputs))
    names = [graph.fresh(f"{name}_of_one") for name in inputs]
    outputs = [graph.fresh(f"{name}_of_one") for name in node.outputs]
    attrs = {"body": body, "num_scan_inputs": n, "scan_input_axes": [0] * n}
    directions = node.attrs.get("directions")
    if directions:
        attrs["scan_input_directions"] = directions
    one = Node("Scan", names, outputs, attrs, name=f"{node.name}_of_one")
    # What was carried is where each sequence begins.
    each = Graph(f"{node.name}_batch", names, outputs, [one], {}, {}, dict(graph.opsets))
    over = {"body": each, "num_scan_inputs": len(inputs), "scan_input_axes": [0] * len(inputs)}
    return [Node("Scan", inputs, node.outputs, over, name=node.name)]


def _loop(graph: Graph, node: Node, body: Graph, renamed: Rename) -> list[Node] | None:
    start = graph.known(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] else (1,)
    trips = graph.known(node.inputs[0]) if node.inputs[0] else None
    if start == (0,):
        trips = (0,)
    elif start != (1,) or not _goes_on(body):
        return None
    if trips is None or not isinstance(trips[0], int):
        return None
    steps = max(0, trips[0])
    if not _fits(steps, body):
        return None
    carried = node.inputs[2:]
    count = len(carried)
    stacked: list[list[str]] = [[] for _ in node.outputs[count:]]
    if stacked and not steps:
        return None
    nodes: list[Node] = []
    for step in range(steps):
        at = graph.add_constant(f"{node.outputs[0]}_step", np.array(step, np.int64))
        on = graph.add_constant(f"{node.outputs[0]}_on", np.array(True))
        inputs = dict(zip(body.inputs, (at, on, *carried), strict=True))
        made, outputs = _instance(graph, body, inputs, renamed)
        nodes += made
        carried = outputs[1 : 1 + count]
        for values, output in zip(stacked, outputs[1 + count :], strict=False):
            values.append(output)
    nodes += _ends(carried, node.outputs[:count])
    for values, out in zip(stacked, node.outputs[count:], strict=True):
        nodes += _stack(graph, values, out, 0)
    return nodes


def _scanned(node: Node, inputs: int) -> int:
    count = int(node.attrs["num_scan_inputs"])
    if not 1 <= count <= inputs:
        raise ModelError(
            "num_scan_inputs is out of range",
            where=node.where(),
            got=count,
            expected=f"1 to {inputs}",
        )
    return count


def _scan(graph: Graph, node: Node, body: Graph, renamed: Rename) -> list[Node] | None:
    scanned = node.inputs[-_scanned(node, len(node.inputs)) :]
    carried = node.inputs[: -len(scanned)]
    count = len(carried)
    stacked: list[list[str]] = [[] for _ in node.outputs[count:]]
    axes = node.attrs.get("scan_input_axes") or [0] * len(scanned)
    backward = node.attrs.get("scan_input_directions") or [0] * len(scanned)
    lengths = {graph.types[name].shape[axis] for name, axis in zip(scanned, axes, strict=True)}
    steps = next(iter(lengths))
    if len(lengths) > 1 or not isinstance(steps, int) or not steps or not _fits(steps, body):
        return None
    nodes: list[Node] = []
    for step in range(steps):
        slices = []
        for name, axis, back in zip(scanned, axes, backward, strict=True):
            index = np.array(steps - 1 - step if back else step, np.int64)
            at = graph.add_constant(f"{name}_at", index)
            slices.append(graph.fresh(f"{name}_slice"))
            nodes.append(Node("Gather", [name, at], [slices[-1]], {"axis": axis}, name=slices[-1]))
        inputs = dict(zip(body.inputs, (*carried, *slices), strict=True))
        made, outputs = _instance(graph, body, inputs, renamed)
        nodes += made
        carried = outputs[:count]
        for values, output in zip(stacked, outputs[count:], strict=False):
            values.append(output)
    nodes += _ends(carried, node.outputs[:count])
    out_axes = node.attrs.get("scan_output_axes") or [0] * len(stacked)
    out_back = node.attrs.get("scan_output_directions") or [0] * len(stacked)
    for i, (values, out) in enumerate(zip(stacked, node.outputs[count:], strict=True)):
        nodes += _stack(graph, values[::-1] if out_back[i] else values, out, out_axes[i])
    return nodes


def _fits(steps: int, body: Graph) -> bool:
    return steps * max(1, len(body.nodes)) <= MOST_NODES


def _goes_on(body: Graph) -> bool:
    """Whether the body's condition stays true once it is."""
    producers = body.producers()
    name = body.outputs[0]
    while name in producers and producers[name].op == "Identity":
        name = producers[name].inputs[0]
    if name == body.inputs[1]:
        return True
    array = body.constants.get(name)
    if name in producers and producers[name].op == "Constant":
        array = producers[name].attrs.get("value")
    return array is not None and bool(np.all(array))


def _instance(
    graph: Graph, body: Graph, inputs: dict[str, str], renamed: Rename
) -> tuple[list[Node], list[str]]:
    """The body's nodes once more, in the graph's terms, and what its outputs are called there."""
    names = dict(inputs)
    for name, array in body.constants.items():
        if name not in graph.constants or graph.constants[name] is not array:
            names[name] = graph.fresh(name)
            graph.constants[names[name]] = array
            graph.types[names[name]] = body.types[name]
    for out in body.producers():
        names[out] = graph.fresh(out)
    nodes = [renamed(copy.deepcopy(inner), names) for inner in body.nodes]
    for inner in nodes:
        inner.name = inner.outputs[0]
    return nodes, [names.get(out, out) for out in body.outputs]


def _ends(values: list[str], outputs: list[str]) -> list[Node]:
    return [
        Node("Identity", [value], [out], name=out)
        for value, out in zip(values, outputs, strict=True)
        if out
    ]


def _stack(graph: Graph, values: list[str], out: str, axis: int) -> list[Node]:
    """The steps' outputs along a new axis."""
    if not out:
        return []
    axes = graph.add_constant(f"{out}_axis", np.array([axis], np.int64))
    parts = [graph.fresh(f"{out}_part") for _ in values]
    nodes = [
        Node("Unsqueeze", [value, axes], [part], name=part)
        for value, part in zip(values, parts, strict=True)
    ]
    return [*nodes, Node("Concat", parts, [out], {"axis": axis}, name=out)]
