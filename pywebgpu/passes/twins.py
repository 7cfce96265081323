"""The same steps on neighbouring heads are taken once: rotary positions of queries and keys.

    part -> Reshape to heads -> Transpose -> rotation -> ...        for q
    part -> Reshape to heads -> Transpose -> the same rotation -> ...  for k

where the two parts lie side by side in one value (a merged projection). The rotation is then
written over all heads together, which is one kernel instead of two, and the heads are taken apart
behind it by slices, which are views. Any chain of pointwise operators, slices and concatenations
of the last axis counts as a rotation.

Not for a single position, where the transposition is a reshape: the keys of a step of generation
are turned where they are appended to the cache, which is no kernel of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..codegen.dims import Dim
from ..graph import Graph, Node, TensorType

_PERM = [0, 2, 1, 3]
_HEADS = 1  # the axis of heads behind the transposition
_STEPS = {"Add", "Sub", "Mul", "Div", "Neg", "Cast", "Slice", "Concat"}


@dataclass(slots=True)
class _Lane:
    """Heads of one part, and what is done to them; `end` is the one value read elsewhere."""

    source: str
    start: int
    stop: int
    shape: Node
    transpose: Node
    steps: list[Node] = field(default_factory=list)
    end: str = ""


def merge_twins(graph: Graph) -> bool:
    """Merge every pair; whether anything changed."""
    producers = {o: n for n in graph.nodes for o in n.outputs}
    users = graph.consumers()
    lanes = [
        lane
        for node in graph.nodes
        if node.op == "Transpose" and (lane := _lane(graph, node, producers, users)) is not None
    ]
    changed = False
    used: set[int] = set()
    for i, first in enumerate(lanes):
        for j in range(i + 1, len(lanes)):
            second = lanes[j]
            if {i, j} & used or (first.source, first.stop) != (second.source, second.start):
                continue
            at = _place(graph, first, second)
            if at is not None and _alike(graph, first, second):
                _merge(graph, first, second, at)
                used |= {i, j}
                changed = True
    return changed


def _lane(
    graph: Graph, transpose: Node, producers: dict[str, Node], users: dict[str, list[Node]]
) -> _Lane | None:
    reshape = producers.get(transpose.inputs[0])
    if transpose.attrs.get("perm") != _PERM or reshape is None or reshape.op != "Reshape":
        return None
    if len(users.get(reshape.outputs[0], [])) != 1:
        return None
    before, after = (graph.types[n].shape for n in (reshape.inputs[0], reshape.outputs[0]))
    if len(before) != 3 or after[:2] != before[:2]:
        return None
    if not all(isinstance(d, int) for d in after[2:]):
        return None
    part = _part(graph, reshape.inputs[0], producers)
    if part is None:
        return None
    lane = _Lane(*part, reshape, transpose)
    _follow(graph, lane, users)
    return lane if lane.end else None


def _part(graph: Graph, name: str, producers: dict[str, Node]) -> tuple[str, int, int] | None:
    """Of which value `name` is which range of the last axis."""
    node = producers.get(name)
    if node is None or node.domain or len(graph.types[name].shape) != 3:
        return None
    width = graph.types[name].shape[-1]
    if not isinstance(width, int):
        return None
    if node.op == "Split" and node.attrs.get("axis", 0) in (-1, 2):
        start = 0
        for output in node.outputs:
            if output == name:
                return node.inputs[0], start, start + width
            size = graph.types[output].shape[-1]
            if not isinstance(size, int):
                return None
            start += size
    if node.op == "Slice":
        first = _slice_start(graph, node)
        if first is not None and first >= 0:
            return node.inputs[0], first, first + width
    return None


def _slice_start(graph: Graph, node: Node) -> int | None:
    """Where a slice of the last axis in steps of one begins; None for other slices."""
    known = [graph.known(name) for name in node.inputs[1:]]
    rank = len(graph.types[node.inputs[0]].shape)
    numbers = [k[0] for k in known if k is not None and len(k) == 1 and isinstance(k[0], int)]
    if len(numbers) < 3 or len(numbers) != len(known):
        return None
    start, _, axis, *step = numbers
    return start if axis in (-1, rank - 1) and step in ([], [1]) else None


def _follow(graph: Graph, lane: _Lane, users: dict[str, list[Node]]) -> None:
    """Collect what happens to the heads alone, up to the one value that others read."""
    inside = {lane.transpose.outputs[0]}
    for node in graph.nodes:
        if not inside & set(node.inputs) or node.domain or node.op not in _STEPS:
            continue
        if all(n in inside or _same_for_all_heads(graph, node, n) for n in node.inputs):
            lane.steps.append(node)
            inside |= set(node.outputs)
    if any(len(graph.types[n.outputs[0]].shape) != 4 for n in lane.steps):
        return
    members = {id(n) for n in lane.steps}
    ends = [
        name
        for name in (lane.transpose.outputs[0], *(n.outputs[0] for n in lane.steps))
        if name in graph.outputs or any(id(u) not in members for u in users.get(name, []))
    ]
    if len(ends) == 1 and lane.steps and ends[0] == lane.steps[-1].outputs[0]:
        lane.end = ends[0]


def _same_for_all_heads(graph: Graph, node: Node, name: str) -> bool:
    """Whether an operand from outside does not know which head it meets."""
    if node.op == "Slice":
        return node.inputs[0] != name and _slice_start(graph, node) is not None
    if node.op == "Concat":
        return False
    shape = graph.types[name].shape
    return len(shape) < 3 or shape[-3] == 1


def _alike(graph: Graph, first: _Lane, second: _Lane) -> bool:
    """Whether both lanes do the same with operands that are the same."""
    ends = [graph.types[lane.transpose.outputs[0]] for lane in (first, second)]
    if ends[0].dtype is not ends[1].dtype or ends[0].shape[2:] != ends[1].shape[2:]:
        return False
    if len(first.steps) != len(second.steps):
        return False
    twin = {first.transpose.outputs[0]: second.transpose.outputs[0]}
    for a, b in zip(first.steps, second.steps, strict=True):
        if a.op != b.op or a.attrs != b.attrs or len(a.inputs) != len(b.inputs):
            return False
        if [twin.get(n, n) for n in a.inputs] != b.inputs:
            return False
        if a.op == "Concat" and a.attrs.get("axis") not in (-1, 3):
            return False
        twin[a.outputs[0]] = b.outputs[0]
    return True


def _place(graph: Graph, first: _Lane, second: _Lane) -> int | None:
    """Where both lanes can be computed: no reader stands before it, all operands do."""
    made_at = {o: i for i, n in enumerate(graph.nodes) for o in n.outputs}
    at = min(made_at[first.end], made_at[second.end])
    own = {n.outputs[0] for n in (first.transpose, *first.steps)}
    needed = {first.source, *(i for n in first.steps for i in n.inputs if i not in own)}
    return at if all(made_at.get(name, -1) < at for name in needed) else None


def _merge(graph: Graph, first: _Lane, second: _Lane, at: int) -> None:
    made: list[Node] = []
    label = f"{first.steps[-1].name} | {second.steps[-1].name}"
    heads = [graph.types[lane.end].shape[_HEADS] for lane in (first, second)]
    total = heads[0] + heads[1]

    def add(op: str, inputs: list[str], like: TensorType, attrs: dict[str, object]) -> str:
        name = graph.fresh(first.end)
        graph.types[name] = like
        made.append(Node(op, inputs, [name], dict(attrs), name=label))
        return name

    def numbers(*values: Dim) -> list[str]:
        return [graph.add_constant(first.end, np.array([v], np.int64)) for v in values]

    source = graph.types[first.source]
    *outer, _ = source.shape
    width = second.stop - first.start
    wide = TensorType(source.dtype, (*outer, width))
    value = add("Slice", [first.source, *numbers(first.start, second.stop, 2)], wide, {})
    depth = graph.types[first.shape.outputs[0]].shape[3]
    shape = TensorType(source.dtype, (*outer, total, depth))
    sizes = graph.add_constant(first.end, np.array([0, 0, total, depth], np.int64))
    value = add("Reshape", [value, sizes], shape, {})
    turned = TensorType(source.dtype, (outer[0], total, outer[1], depth))
    value = add("Transpose", [value], turned, {"perm": _PERM})
    renamed = {first.transpose.outputs[0]: value}
    for node in first.steps:
        type_ = graph.types[node.outputs[0]]
        like = TensorType(type_.dtype, (type_.shape[0], total, *type_.shape[2:]))
        inputs = [renamed.get(n, n) for n in node.inputs]
        renamed[node.outputs[0]] = add(node.op, inputs, like, node.attrs)
    value = renamed[first.end]
    for lane, start, stop in ((first, 0, heads[0]), (second, heads[0], total)):
        ends = numbers(start, stop, _HEADS)
        made.append(Node("Slice", [value, *ends], [lane.end], name=label))
    gone = {id(n) for lane in (first, second) for n in lane.steps}
    nodes = graph.nodes
    graph.nodes = [
        *(n for n in nodes[:at] if id(n) not in gone),
        *made,
        *(n for n in nodes[at:] if id(n) not in gone),
    ]
