"""Products that share their left operand become one product with their weights side by side.

1. Members: `MatMul` and plain `Gemm` with the same left input and a constant matrix of floats, or
   `MatMulNBits` of one form.
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
from ..infer.contrib import MICROSOFT
from ..lower.regions import POINTWISE

Array = np.ndarray[Any, Any]

_PRODUCTS = ("MatMul", "Gemm", "MatMulNBits")
_ACTIVATION = 4
"""Nodes that an activation is at most spelled in, the product with the gate included."""


@dataclass(frozen=True, slots=True)
class Member:
    """One product: the nodes to drop, what they say of the weights, the bias, the value made."""

    nodes: tuple[Node, ...]
    weights: tuple[Array, ...]
    """The matrix, N x K; or of blocks codes, scales and zero points if there are, N x anything."""
    bias: Array | None
    output: str

    @property
    def n(self) -> int:
        return len(self.weights[0])

    @property
    def in_blocks(self) -> bool:
        return self.nodes[0].op == "MatMulNBits"

    @property
    def form(self) -> tuple[Any, ...]:
        """What members of a group have in common."""
        attrs = self.nodes[0].attrs if self.in_blocks else {}
        common = tuple((name, attrs.get(name)) for name in ("K", "bits", "block_size"))
        return (self.in_blocks, common, *((w.dtype, w.shape[1:]) for w in self.weights))


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
        for group in _alike(graph, members):
            _merge(graph, source, group)
            changed = True
    return changed


def _member(graph: Graph, node: Node, users: dict[str, list[Node]]) -> Member | None:
    domain = MICROSOFT if node.op == "MatMulNBits" else ""
    if node.op not in _PRODUCTS or node.domain != domain or node.outputs[0] in graph.outputs:
        return None
    found: Member | None
    if node.op == "MatMulNBits":
        blocks = _blocks(graph, node)
        found = None if blocks is None else _with_bias(graph, node, blocks, users)
    else:
        weight = graph.constants.get(node.inputs[1])
        if weight is None or weight.ndim != 2 or not graph.types[node.inputs[1]].dtype.is_float:
            return None
        if node.op == "Gemm":
            found = _gemm(graph, node, weight)
        else:
            found = _with_bias(graph, node, (weight.T,), users)
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
        product = len(readers) == 1 and readers[0].op in _PRODUCTS
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
    return Member((node,), (weight.T,), bias, node.outputs[0])


def _blocks(graph: Graph, node: Node) -> tuple[Array, ...] | None:
    """Constants of a MatMulNBits; None where others say how its columns are ordered or shifted."""
    names = node.inputs[1:]
    while names and not names[-1]:
        names.pop()
    found = [graph.constants.get(name) for name in names]
    arrays = [array for array in found if array is not None]
    if len(arrays) != len(found) or len(found) not in (2, 3):
        return None
    n, codes = node.attrs["N"], arrays[0]
    # The codes' last axis says how many bytes a block has.
    return (codes.reshape(n, -1, codes.shape[-1]), *(a.reshape(n, -1) for a in arrays[1:]))


def _with_bias(
    graph: Graph, node: Node, weights: tuple[Array, ...], users: dict[str, list[Node]]
) -> Member:
    readers = users.get(node.outputs[0], [])
    if len(readers) == 1 and readers[0].op == "Add" and not readers[0].domain:
        add = readers[0]
        other = add.inputs[1] if add.inputs[0] == node.outputs[0] else add.inputs[0]
        bias = graph.constants.get(other)
        if bias is not None and bias.shape == (len(weights[0]),):
            return Member((node, add), weights, bias, add.outputs[0])
    return Member((node,), weights, None, node.outputs[0])


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
    scaled = 1 if member.in_blocks else 0
    weights = list(member.weights)
    weights[scaled] = (weights[scaled] * number).astype(weights[scaled].dtype)
    return Member(
        (*member.nodes, mul),
        tuple(weights),
        None if member.bias is None else (member.bias * number).astype(member.bias.dtype),
        mul.outputs[0],
    )


def _alike(graph: Graph, members: list[Member]) -> list[list[Member]]:
    """Groups that can be one product."""
    groups: dict[tuple[Any, ...], list[Member]] = {}
    for member in members:
        type_ = graph.types[member.output]
        groups.setdefault((type_.dtype, type_.shape[:-1], member.form), []).append(member)
    return [group for group in groups.values() if len(group) > 1]


def _merge(graph: Graph, source: str, members: list[Member]) -> None:
    sizes = [m.n for m in members]
    first = graph.types[members[0].output]
    wide = TensorType(first.dtype, (*first.shape[:-1], sum(sizes)))
    stem = members[0].output
    joined = [np.concatenate(parts) for parts in zip(*(m.weights for m in members), strict=True)]
    product = graph.fresh(stem)
    graph.types[product] = wide
    label = " | ".join(m.nodes[0].name or m.nodes[0].op for m in members)
    if members[0].in_blocks:
        inputs = [source, *(graph.add_constant(stem, array) for array in joined)]
        attrs = {**members[0].nodes[0].attrs, "N": sum(sizes)}
        made = [Node("MatMulNBits", inputs, [product], attrs, MICROSOFT, label)]
    else:
        weight = np.ascontiguousarray(joined[0].T)
        made = [Node("MatMul", [source, graph.add_constant(stem, weight)], [product], name=label)]
    if any(m.bias is not None for m in members):
        parts = [
            m.bias if m.bias is not None else np.zeros(n, first.dtype.numpy)
            for m, n in zip(members, sizes, strict=True)
        ]
        biased = graph.fresh(stem)
        graph.types[biased] = wide
        bias = graph.add_constant(stem, np.concatenate(parts).astype(first.dtype.numpy))
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
