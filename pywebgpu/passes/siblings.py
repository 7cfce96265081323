"""Products that share their left operand become one product with their weights side by side.

1. Members: `MatMul` and plain `Gemm` with the same left input and a constant matrix of floats.
2. A bias behind each (an `Add` with a constant vector) is taken along; no bias counts as zeros.
   So is a factor behind that (a query's scale): it goes into the weights.
3. A member whose only reader is pointwise is left alone: that reader becomes its epilogue. But a
   gate and what it multiplies, when only a product reads the result, are merged all the same.

The parts are then read through strides, so the query, key and value projections of attention are
one kernel and cost no copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..graph import Graph, Node, TensorType
from ..lower.elementwise import POINTWISE

Array = np.ndarray[Any, Any]

_ACTIVATION = 4
"""Nodes that an activation is at most spelled in, the product with the gate included."""


@dataclass(frozen=True, slots=True)
class Member:
    """One product: the nodes to drop, the matrix K x N, the bias and the value that is made."""

    nodes: tuple[Node, ...]
    weight: Array
    bias: Array | None
    output: str


def merge_siblings(graph: Graph) -> bool:
    """Merge every group; whether anything changed."""
    users = graph.consumers()
    changed = False
    for source in [*graph.inputs, *(n.outputs[0] for n in graph.nodes)]:
        readers = [n for n in users.get(source, []) if n.inputs[0] == source]
        found = [m for n in readers if (m := _member(graph, n, users)) is not None]
        members = [m for m in found if not _has_epilogue(m, users)]
        if not members and len(found) == 2 and _gated(found[0], found[1], users):
            members = found
        if len(members) > 1 and _alike(graph, members):
            _merge(graph, source, members)
            changed = True
    return changed


def _member(graph: Graph, node: Node, users: dict[str, list[Node]]) -> Member | None:
    if node.op not in ("MatMul", "Gemm") or node.domain or node.outputs[0] in graph.outputs:
        return None
    weight = graph.constants.get(node.inputs[1])
    if weight is None or weight.ndim != 2 or not graph.types[node.inputs[1]].dtype.is_float:
        return None
    found: Member | None
    if node.op == "Gemm":
        found = _gemm(graph, node, weight)
    else:
        found = _with_bias(graph, node, weight, users)
    if found is not None and found.output not in graph.outputs:
        found = _with_factor(graph, found, users)
    return None if found is None or found.output in graph.outputs else found


def _has_epilogue(member: Member, users: dict[str, list[Node]]) -> bool:
    readers = users.get(member.output, [])
    return len(readers) == 1 and readers[0].op in POINTWISE


def _gated(one: Member, other: Member, users: dict[str, list[Node]]) -> bool:
    """The two meet in a `Mul` that only a product reads, as its left operand."""

    def meets(member: Member) -> dict[int, Node]:
        found: dict[int, Node] = {}
        names = [member.output]
        for _ in range(_ACTIVATION):
            nodes = [n for name in names for n in users.get(name, []) if n.op in POINTWISE]
            found.update({id(n): n for n in nodes if n.op == "Mul"})
            names = [n.outputs[0] for n in nodes]
        return found

    theirs = meets(other)
    for key, node in meets(one).items():
        readers = users.get(node.outputs[0], [])
        product = len(readers) == 1 and readers[0].op in ("MatMul", "Gemm")
        if key in theirs and product and readers[0].inputs[0] == node.outputs[0]:
            return True
    return False


def _gemm(graph: Graph, node: Node, weight: Array) -> Member | None:
    a = node.attrs
    if a.get("transA", 0) or a.get("alpha", 1.0) != 1.0 or a.get("beta", 1.0) != 1.0:
        return None
    weight = weight.T if a.get("transB", 0) else weight
    bias: Array | None = None
    if len(node.inputs) > 2 and node.inputs[2]:
        bias = graph.constants.get(node.inputs[2])
        if bias is None or bias.shape != (weight.shape[1],):
            return None
    return Member((node,), weight, bias, node.outputs[0])


def _with_bias(
    graph: Graph, node: Node, weight: Array, users: dict[str, list[Node]]
) -> Member | None:
    readers = users.get(node.outputs[0], [])
    if len(readers) == 1 and readers[0].op == "Add" and not readers[0].domain:
        add = readers[0]
        other = add.inputs[1] if add.inputs[0] == node.outputs[0] else add.inputs[0]
        bias = graph.constants.get(other)
        if bias is not None and bias.shape == (weight.shape[1],):
            return Member((node, add), weight, bias, add.outputs[0])
    return Member((node,), weight, None, node.outputs[0])


def _with_factor(graph: Graph, member: Member, users: dict[str, list[Node]]) -> Member:
    readers = users.get(member.output, [])
    if len(readers) != 1 or readers[0].op != "Mul" or readers[0].domain:
        return member
    mul = readers[0]
    other = mul.inputs[1] if mul.inputs[0] == member.output else mul.inputs[0]
    factor = graph.constants.get(other)
    same = graph.types[mul.outputs[0]].shape == graph.types[member.output].shape
    if factor is None or factor.size != 1 or not same:
        return member
    number = factor.reshape(())
    return Member(
        (*member.nodes, mul),
        (member.weight * number).astype(member.weight.dtype),
        None if member.bias is None else (member.bias * number).astype(member.bias.dtype),
        mul.outputs[0],
    )


def _alike(graph: Graph, members: list[Member]) -> bool:
    first = graph.types[members[0].output]
    return all(
        graph.types[m.output].dtype is first.dtype
        and graph.types[m.output].shape[:-1] == first.shape[:-1]
        and m.weight.shape[0] == members[0].weight.shape[0]
        for m in members
    )


def _merge(graph: Graph, source: str, members: list[Member]) -> None:
    sizes = [m.weight.shape[1] for m in members]
    first = graph.types[members[0].output]
    wide = TensorType(first.dtype, (*first.shape[:-1], sum(sizes)))
    stem = members[0].output
    weight = np.ascontiguousarray(np.concatenate([m.weight for m in members], axis=1))
    product = graph.fresh(stem)
    graph.types[product] = wide
    label = " | ".join(m.nodes[0].name or m.nodes[0].op for m in members)
    made = [Node("MatMul", [source, graph.add_constant(stem, weight)], [product], name=label)]
    if any(m.bias is not None for m in members):
        parts = [
            m.bias if m.bias is not None else np.zeros(n, weight.dtype)
            for m, n in zip(members, sizes, strict=True)
        ]
        biased = graph.fresh(stem)
        graph.types[biased] = wide
        bias = graph.add_constant(stem, np.concatenate(parts).astype(weight.dtype))
        made.append(Node("Add", [product, bias], [biased], name=label))
        product = biased
    split = graph.add_constant(stem, np.array(sizes, np.int64))
    axis = len(wide.shape) - 1
    made.append(
        Node("Split", [product, split], [m.output for m in members], {"axis": axis}, name=label)
    )
    gone = {id(n) for m in members for n in m.nodes}
    at = next(i for i, n in enumerate(graph.nodes) if id(n) in gone)
    graph.nodes = [
        *graph.nodes[:at],
        *made,
        *(n for n in graph.nodes[at:] if id(n) not in gone),
    ]
