"""How passes look at a graph and change it.

A pass walks `Editor.sweep()`: nodes in order, their inputs already redirected by what the pass
has done so far. It may change the node in place, insert nodes before it, or redirect its outputs
to other values. `finish` installs the result and drops what nobody needs any more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..codegen.dims import Dim, Expr
from ..graph import DType, Graph, Node, Shape, TensorType, outer_names, subgraphs
from ..infer import infer_node


@dataclass(frozen=True, slots=True)
class Affine:
    """An integer tensor by its coordinates, with sizes as numbers:
    element[i0, i1, ...] = base + sum(steps[k] * i_k). Axes of size 1 have a step of 0."""

    base: Dim
    steps: tuple[Dim, ...]

    @property
    def uniform(self) -> bool:
        return all(s == 0 for s in self.steps)


class Editor:
    """One pass over one graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.producers = graph.producers()
        self.outputs = set(graph.outputs)
        self.changed = False
        self._uses: dict[str, int] = {}
        self.affine: dict[str, Affine | None] = {}  # what `affine.affine` has found out
        for node in graph.nodes:
            for name in outer_names(node):
                self._uses[name] = self._uses.get(name, 0) + 1
        for name in graph.outputs:
            self._uses[name] = self._uses.get(name, 0) + 1
        self._renamed: dict[str, str] = {}
        self._done: list[Node] = []
        self._dropped = False

    # Looking

    def producer(self, name: str, *ops: str, domain: str = "") -> Node | None:
        """The node that makes `name`, if it is one of `ops`."""
        node = self.producers.get(name)
        if node is None or node.domain != domain or (ops and node.op not in ops):
            return None
        return node

    def uses(self, name: str) -> int:
        """How many nodes read a value; being an output of the graph counts as one."""
        return self._uses.get(name, 0)

    def type(self, name: str) -> TensorType:
        return self.graph.types[name]

    def shape(self, name: str) -> Shape:
        return self.graph.types[name].shape

    def constant(self, name: str) -> np.ndarray[Any, Any] | None:
        return self.graph.constants.get(name)

    def scalar(self, name: str) -> float | None:
        """The number, if `name` is a constant of one element."""
        array = self.graph.constants.get(name)
        return float(array.ravel()[0]) if array is not None and array.size == 1 else None

    def is_scalar(self, name: str, value: float, tolerance: float = 1e-6) -> bool:
        found = self.scalar(name)
        return found is not None and abs(found - value) <= tolerance * max(1.0, abs(value))

    def split_scalar(self, node: Node) -> tuple[str, float] | None:
        """For a commutative node of one tensor and one number: both."""
        for a, b in (node.inputs, node.inputs[::-1]):
            number = self.scalar(b)
            if number is not None and self.scalar(a) is None:
                return a, number
        return None

    # Changing

    def sweep(self) -> Iterator[Node]:
        """The nodes in order; see the module's head."""
        for node in self.graph.nodes:
            if self._renamed:
                rename(node, self._renamed)
            self._dropped = False
            if all(name in self.graph.types for name in node.outputs if name):
                yield node  # others follow something unsupported: nothing is known of them
            if not self._dropped:
                self._done.append(node)

    def insert(
        self,
        op: str,
        inputs: Sequence[str],
        domain: str = "",
        stem: str = "",
        into: str = "",
        **attrs: Any,
    ) -> str:
        """A new node before the current one; returns the name of its output.

        `into`: an output that the current node no longer has and this one makes instead.
        """
        name = into or self.graph.fresh(stem or op.lower())
        node = Node(op, list(inputs), [name], attrs, domain, name)
        infer_node(self.graph, node)
        for read in filter(None, inputs):
            self._uses[read] = self._uses.get(read, 0) + 1
        self.producers[name] = node
        self._done.append(node)
        self.changed = True
        return name

    def sizes(self, dims: Sequence[Dim], stem: str = "shape") -> str:
        """A value that holds sizes, for a Reshape or Expand."""
        if not any(isinstance(d, Expr) for d in dims):
            return self.graph.add_constant(stem, np.array(dims, dtype=np.int64))
        name = self.graph.fresh(stem)
        self.graph.values[name] = tuple(dims)
        self.graph.types[name] = TensorType(DType.I64, (len(dims),))
        return name

    def arange(self, length: Dim) -> str:
        """I64 (length,): 0, 1, 2, ..."""
        graph = self.graph
        if isinstance(length, int):
            return graph.add_constant("places", np.arange(length, dtype=np.int64))
        name = graph.fresh("length")
        graph.values[name], graph.types[name] = (length,), TensorType(DType.I64, ())
        zero, one = (graph.add_constant("step", np.array(i, np.int64)) for i in (0, 1))
        return self.insert("Range", [zero, name, one])

    def reshape(self, name: str, dims: Sequence[Dim]) -> str:
        """`name` with another shape; itself when it has it already."""
        if self.shape(name) == tuple(dims):
            return name
        return self.insert("Reshape", [name, self.sizes(dims)], stem=name, allowzero=1)

    def become(self, node: Node, op: str, inputs: Sequence[str], **attrs: Any) -> None:
        """Change the current node's operator; its output stays the same value."""
        domain = attrs.pop("domain", "")
        for read in outer_names(node):
            self._uses[read] = self._uses.get(read, 1) - 1
        for read in filter(None, inputs):
            self._uses[read] = self._uses.get(read, 0) + 1
        node.op, node.domain, node.inputs, node.attrs = op, domain, list(inputs), attrs
        self.changed = True

    def redirect(self, node: Node, new: str) -> None:
        """Readers of the current node's (first) output read `new` instead, and the node goes."""
        old = node.outputs[0]
        self.changed = True
        for name in outer_names(node):
            self._uses[name] = self._uses.get(name, 1) - 1
        self._uses[new] = self._uses.get(new, 0) + self._uses.get(old, 0)
        if old in self.outputs:
            node.op, node.domain, node.inputs, node.attrs = "Identity", "", [new], {}
            node.outputs = node.outputs[:1]
            return
        self._renamed[old] = new
        self._dropped = True

    def redirect_all(self, node: Node, new: Sequence[str]) -> None:
        """As `redirect`, for every output of a node none of which is the graph's."""
        self.changed = True
        for name in outer_names(node):
            self._uses[name] = self._uses.get(name, 1) - 1
        for old, name in zip(node.outputs, new, strict=True):
            self._uses[name] = self._uses.get(name, 0) + self._uses.get(old, 0)
            self._renamed[old] = name
        self._dropped = True

    def finish(self) -> bool:
        self.graph.nodes = self._done
        self.graph.prune()
        return self.changed


def rename(node: Node, names: dict[str, str]) -> None:
    """Read other values, also inside bodies."""
    node.inputs = [names.get(name, name) for name in node.inputs]
    for body in subgraphs(node):
        own = {*body.inputs, *body.producers()}
        inner = {k: v for k, v in names.items() if k not in own}
        for inside in body.nodes:
            rename(inside, inner)
        body.outputs = [inner.get(name, name) for name in body.outputs]
        for old, new in inner.items():
            if old in body.types and new not in body.types:
                body.types[new] = body.types[old]
