"""One inference function per operator, and what such a function may ask.

A function gets a `Site` and returns the types of the node's outputs. Nodes have the semantics of
the newest opset: older forms are rewritten first (`passes/upgrade.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from ..codegen.dims import Atom, Call, Dim, symbol
from ..errors import ModelError, UnsupportedError
from ..graph import DType, Graph, Node, Shape, SizeCheck, TensorType
from . import symbolic

InferFunction = Callable[["Site"], "TensorType | Sequence[TensorType | None]"]
_F = TypeVar("_F", bound=InferFunction)
TABLE: dict[tuple[str, str], InferFunction] = {}


def infers(*ops: str, domain: str = "") -> Callable[[_F], _F]:
    """Register the inference function of operators."""

    def register(function: _F) -> _F:
        for op in ops:
            TABLE[domain, op] = function
        return function

    return register


class DataDependent(UnsupportedError):
    """An output's shape depends on the elements of a tensor that is only known while running."""


@dataclass(slots=True)
class Site:
    """A node under inference: its typed inputs, known elements and attributes."""

    graph: Graph
    node: Node
    infer_body: Callable[[Graph], object] = lambda body: None

    def descend(self, body: Graph) -> None:
        """Type a body; its inputs have their types. What it assumes of sizes holds outside too."""
        self.infer_body(body)
        for atom, new in body.equal.items():
            if atom not in self.graph.equal:
                assume(self.graph, atom, new)

    # Inputs

    def has(self, index: int) -> bool:
        return index < len(self.node.inputs) and bool(self.node.inputs[index])

    def input(self, index: int) -> TensorType:
        if not self.has(index):
            raise self.error(f"input {index} is missing", remedy="Export the model again")
        return self.graph.types[self.node.inputs[index]]

    def ranked(self, index: int, *ranks: int) -> TensorType:
        """Input that must have one of these ranks."""
        type_ = self.input(index)
        if len(type_.shape) not in ranks:
            raise self.error(
                f"input {index} has the wrong rank",
                got=type_,
                expected=f"rank {' or '.join(map(str, ranks))}",
            )
        return type_

    def count(self, name: str, default: int | None = None) -> int:
        """An attribute that must be a whole number of things."""
        value = self.attr(name, default)
        if not isinstance(value, int) or not 1 <= value < 2**31:
            raise self.error(f"{name} is out of range", got=value, expected="1 to 2147483647")
        return value

    def whole(self, number: float, what: str, *, up: bool = False) -> int:
        """A computed size, rounded down or up."""
        if not math.isfinite(number):
            raise self.error(f"{what} is no number", got=number)
        return math.ceil(number) if up else math.floor(number)

    def shape(self, index: int) -> Shape:
        return self.input(index).shape

    def value(self, index: int) -> tuple[Dim, ...] | None:
        """The elements of an integer input, as far as they are sizes or constants."""
        return self.graph.known(self.node.inputs[index]) if self.has(index) else None

    def sizes(self, index: int, what: str) -> tuple[Dim, ...]:
        """The elements of an input that a shape depends on."""
        self.input(index)
        found = self.value(index)
        if found is None:
            raise DataDependent(
                f"{what} is computed from data, so that a shape would depend on data",
                where=f"{self.node.where()} input '{self.node.inputs[index]}'",
                expected="a constant, or arithmetic on the sizes of inputs",
                remedy="Export with this value fixed, or with fixed input shapes",
            )
        return found

    def ints(self, index: int, what: str) -> list[int]:
        """The elements of an input that must be constants."""
        found = self.sizes(index, what)
        numbers = [x for x in found if isinstance(x, int)]
        if len(numbers) != len(found):
            raise UnsupportedError(
                f"{what} must be constant",
                where=self.node.where(),
                got=", ".join(map(str, found)),
                remedy="Export with fixed input shapes",
            )
        return numbers

    def array(self, index: int) -> np.ndarray[Any, Any] | None:
        return self.graph.constants.get(self.node.inputs[index]) if self.has(index) else None

    # Attributes

    def attr(self, name: str, default: Any = None) -> Any:
        return self.node.attrs.get(name, default)

    def axis(self, value: int, rank: int, extra: int = 0) -> int:
        """`value` counted from the front; `extra` 1 allows one past the end."""
        if not -rank - extra <= value < rank + extra:
            raise self.error(
                "axis is out of range", got=value, expected=f"{-rank - extra}..{rank + extra - 1}"
            )
        return value + rank + extra if value < 0 else value

    def axes(self, values: Sequence[int], rank: int) -> list[int]:
        found = [self.axis(v, rank) for v in values]
        if len(set(found)) != len(found):
            raise self.error("an axis is named twice", got=list(values))
        return found

    # Sizes

    def resolve(self, dim: Dim) -> Dim:
        return symbolic.rewrite(dim, self.graph.equal)

    def same(self, a: Dim, b: Dim) -> Dim:
        """The size that `a` and `b` both are. Equality that cannot be proved is assumed and
        left to the runtime to check; sizes that can not be equal are an error."""
        a, b = self.resolve(a), self.resolve(b)
        if a == b:
            return a
        if symbolic.equal(a, b) is False:
            raise self.error("sizes do not agree", got=f"{a} and {b}", expected="equal sizes")
        self.require(a, b)
        for old, new in ((b, a), (a, b)) if _younger(self.graph, b, a) else ((a, b), (b, a)):
            atom = symbolic.lone_atom(old)
            if atom is not None and not symbolic.mentions(new, atom):
                assume(self.graph, atom, new)
                return self.resolve(new)
        return a if isinstance(a, int) or len(str(a)) <= len(str(b)) else b

    def smallest(self, a: Dim, b: Dim) -> Dim:
        """min(a, b) for sizes that are not empty; where that matters, the runtime checks it."""
        found = symbolic.smallest(a, b)
        for pick, other in ((a, b), (b, a)):
            if symbolic.lone_atom(found) is not None and symbolic.at_least(other, pick, least=1):
                self.require(found, pick)
                return pick
        return found

    def largest(self, a: Dim, b: Dim) -> Dim:
        """max(a, b), likewise."""
        found = symbolic.largest(a, b)
        for pick, other in ((a, b), (b, a)):
            if symbolic.lone_atom(found) is not None and symbolic.at_least(pick, other, least=1):
                self.require(found, pick)
                return pick
        return found

    def require(self, a: Dim, b: Dim) -> None:
        """Have the runtime check that two sizes are equal, without assuming it."""
        if a != b and not any(c.left == a and c.right == b for c in self.graph.checks):
            self.graph.checks.append(SizeCheck(a, b, self.node.where()))

    def broadcast(self, *shapes: Shape) -> Shape:
        """NumPy's rule. A size that may be 1 only at run time is taken to be the other's."""
        rank = max(len(s) for s in shapes)
        out: list[Dim] = []
        for i in range(rank):
            dim: Dim = 1
            for s in shapes:
                j = i - rank + len(s)
                if j >= 0 and s[j] != 1:
                    dim = s[j] if dim == 1 else self.same(dim, s[j])
            out.append(dim)
        return tuple(out)

    def fresh_dim(self, number: int, output: int = 0) -> Dim:
        """A size known only after the node has run."""
        return symbol(f"{self.node.outputs[output]}_d{number}")

    def know(self, elements: Sequence[Dim], output: int = 0) -> None:
        """Record the elements of an output."""
        if output < len(self.node.outputs) and self.node.outputs[output]:
            self.graph.values[self.node.outputs[output]] = tuple(map(self.resolve, elements))

    def error(
        self, what: str, got: object = None, expected: object = None, remedy: str = ""
    ) -> ModelError:
        return ModelError(what, where=self.node.where(), got=got, expected=expected, remedy=remedy)


def _younger(graph: Graph, a: Dim, b: Dim) -> bool:
    """Whether `a` should give way to `b`: calls before symbols, later inputs' symbols first."""
    x, y = symbolic.lone_atom(a), symbolic.lone_atom(b)
    if isinstance(x, Call) or y is None:
        return x is not None
    if x is None or isinstance(y, Call):
        return False
    order = list(
        dict.fromkeys(
            atom
            for name in graph.inputs
            for dim in graph.types[name].shape
            if (atom := symbolic.lone_atom(dim)) is not None
        )
    )
    rank = {atom: i for i, atom in enumerate(order)}
    return rank.get(x, len(order)) > rank.get(y, len(order))


def assume(graph: Graph, atom: Atom, new: Dim) -> None:
    """Write `new` for `atom` everywhere from now on."""
    graph.equal = {k: symbolic.rewrite(v, {atom: new}) for k, v in graph.equal.items()}
    graph.equal[atom] = new
    for name, type_ in graph.types.items():
        if any(symbolic.mentions(d, atom) for d in type_.shape):
            shape = tuple(symbolic.rewrite(d, graph.equal) for d in type_.shape)
            graph.types[name] = TensorType(type_.dtype, shape)
    for name, value in graph.values.items():
        if any(symbolic.mentions(d, atom) for d in value):
            graph.values[name] = tuple(symbolic.rewrite(d, graph.equal) for d in value)


def like(type_: TensorType, shape: Sequence[Dim], dtype: DType | None = None) -> TensorType:
    """`type_` with another shape, and perhaps another element type."""
    return TensorType(dtype or type_.dtype, tuple(shape))
