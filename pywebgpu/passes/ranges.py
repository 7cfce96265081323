"""Proof that integers of 64 bits fit the 32 that kernels compute in.

Every tensor gets an interval that its elements lie in, from what operators do (`range_rules`, by
the arithmetic of `intervals`). What a model takes from outside has no interval of its own, so it
gets one: an integer input, floats that a Cast turns into integers, and sizes start with all that
they may have, and where something computed from them would not fit, with one bit less, until it
does.

- An input's interval that is narrower than 32 bits goes into `Graph.limits`; every runtime checks
  it when the tensor arrives.
- Floats are clipped before the Cast. Never to less than 24 bits, beyond which not every integer is
  a float.
- A symbol that must be smaller than memory has it, and a size that is read as data and may be
  beyond 32 bits, become `Graph.checks`.

What still may not fit is refused. Types of at most 32 bits wrap around as ONNX has it, uint32 only
in operators that do not care for the sign.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..codegen.dims import Dim, dim_min, symbol
from ..codegen.program import LOOP_LIMIT
from ..errors import UnsupportedError
from ..graph import DType, Graph, Node, SizeCheck, TensorType, subgraphs
from .intervals import ANY, HIGH, LOW, Interval, all_of, of_elements, plus, times
from .range_rules import DATA, OPAQUE, ORDERING, RING, RULES, SATURATING, Site, on_the_way

SIZE_BITS = 30
"""No memory holds a longer axis: kernels take four bytes an element, and address 32 bits."""
FLOAT_BITS = 24
# Masks and types of tokens are small and axes are long: inputs are narrowed before sizes are.
_SMALL_INPUT, _SMALL_SIZE = 8, 10
_WIDE = (DType.I64, DType.U64, DType.U32)
_SIZE = "size "


def fit_integers(graph: Graph) -> None:
    """Narrow inputs and Casts until every wide integer fits; see the module's head.

    Raises:
        UnsupportedError: naming each node whose result may be beyond 32 bits.
    """
    if not any(t.dtype in _WIDE for g in _graphs(graph) for t in g.types.values()):
        return
    bits: dict[str, int] = {}
    while True:
        walk = _Walk(graph, bits)
        walk.graph(graph)
        if not walk.narrow:
            break
        bits |= {name: walk.bits(name) - 1 for name in walk.narrow}
    if walk.problems:
        raise _refusal(walk.problems)
    for name in graph.inputs:
        if name in walk.used and walk.bits(name) != 31:
            interval = walk.source(name, graph.types[name].dtype)
            graph.limits[name] = (int(interval.low), int(interval.high))
    for inner in _graphs(graph):
        _clip(inner, bits)
    for name in sorted(n for n in bits if n.startswith(_SIZE)):
        most = (1 << bits[name]) - 1
        graph.checks.append(_at_most(symbol(name[len(_SIZE) :]), most, "integers of 32 bits"))
    for dim, where in walk.sizes.items():
        graph.checks.append(_at_most(dim, HIGH, where))


def _refusal(problems: Mapping[str, Interval]) -> UnsupportedError:
    where, *others = problems
    interval = problems[where]
    more = f", as in {len(others)} other nodes: {', '.join(others[:9])}" if others else ""
    return UnsupportedError(
        f"integers may not fit 32 bits{more}",
        where=where,
        got=f"{interval.low} to {interval.high}",
        expected=f"{LOW} to {HIGH}",
        remedy="Integers are computed in 32 bits: clip them, or compute in floats",
    )


def _at_most(dim: Dim, most: int, where: str) -> SizeCheck:
    return SizeCheck(dim_min(dim, most), dim, where)


def _graphs(graph: Graph) -> list[Graph]:
    inner = [g for node in graph.nodes for body in subgraphs(node) for g in _graphs(body)]
    return [graph, *inner]


def _clip(graph: Graph, bits: Mapping[str, int]) -> None:
    """Put a Clip before the Casts among the sources."""
    nodes: list[Node] = []
    for node in graph.nodes:
        narrowed = bits.get(node.outputs[0]) if node.op in ("Cast", "CastLike") else None
        if narrowed is not None:
            type_ = graph.types[node.inputs[0]]
            limit = np.array(2.0**narrowed, type_.dtype.numpy)
            name = graph.fresh(node.inputs[0])
            graph.types[name] = type_
            ends = [graph.add_constant("limit", v) for v in (-limit, limit)]
            for end in ends:
                graph.types[end] = TensorType(type_.dtype, ())
            nodes.append(Node("Clip", [node.inputs[0], *ends], [name], name=node.name))
            node.inputs = [name, *node.inputs[1:]]
        nodes.append(node)
    graph.nodes = nodes


@dataclass
class _Walk:
    """One pass over the nodes with given widths of the sources.

    narrow: sources of what did not fit. problems: where narrowing does not help. used: sources
    that were met. sizes: those read as data that could be beyond 32 bits.
    """

    root: Graph
    given: Mapping[str, int]
    found: dict[str, Interval] = field(default_factory=dict)
    narrow: set[str] = field(default_factory=set)
    problems: dict[str, Interval] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    sizes: dict[Dim, str] = field(default_factory=dict)
    scopes: list[Graph] = field(default_factory=list)

    def bits(self, name: str) -> int:
        """How wide a source is, its sign apart: uint32 starts with 32."""
        if name.startswith(_SIZE):
            return self.given.get(name, SIZE_BITS)
        unsigned = name in self.root.inputs and self.root.types[name].dtype is DType.U32
        return self.given.get(name, 32 if unsigned else 31)

    def source(self, name: str, dtype: DType) -> Interval:
        """What may come in."""
        self.used.add(name)
        high = 1 << self.bits(name)
        low = 0 if dtype.value.startswith("u") else -high
        return Interval(low, high - 1, frozenset([name]))

    def graph(self, graph: Graph) -> None:
        self.scopes.append(graph)
        for name in graph.inputs:
            dtype = graph.types[name].dtype
            if graph is self.root and (dtype in _WIDE or dtype is DType.I32):
                self.found[name] = self.source(name, dtype)
        for node in graph.nodes:
            self.node(graph, node)
        for name in graph.outputs:
            array = graph.constants.get(name)
            if array is not None and graph.types[name].dtype in _WIDE:
                self.check(f"output '{name}'", graph.types[name].dtype, self.read(name, ""))
        self.scopes.pop()

    def read(self, name: str, where: str) -> Interval:
        """The interval of a value; `where` reads it as data."""
        if name in self.found:
            return self.found[name]
        graph = next((g for g in reversed(self.scopes) if name in g.types), self.root)
        array, elements = graph.constants.get(name), graph.values.get(name)
        dtype = graph.types[name].dtype if name in graph.types else None
        if array is not None and array.size and array.dtype.kind in "iubf":
            interval = of_elements(array)
        elif elements is not None:
            interval = Interval(0, 0).hull(*(self.dim(e) for e in elements))
            if where and not interval.fits():
                for element in elements:
                    if not self.dim(element).fits():
                        self.sizes[element] = where
                interval = interval.of(max(interval.low, LOW), min(interval.high, HIGH))
        else:
            interval = ANY if dtype is None or dtype.is_float else all_of(dtype)
        self.found[name] = interval
        return interval

    def dim(self, dim: Dim) -> Interval:
        """Of a size."""
        if isinstance(dim, int):
            return Interval(dim, dim)
        total = Interval(0, 0)
        for monomial, coefficient in dim.terms:
            term = Interval(coefficient, coefficient)
            for atom in monomial:
                term = times(term, self._atom(atom))
            total = plus(total, term)
        return total

    def _atom(self, atom: Any) -> Interval:
        if isinstance(atom, str):
            if atom in self.root.counted:
                return Interval(0, self.dim(self.root.counted[atom]).high)
            name = _SIZE + atom
            return Interval(0, (1 << self.bits(name)) - 1, frozenset([name]))
        a, *rest = (self.dim(arg) for arg in atom.args)
        if atom.op == "%":
            return a.hull(*rest).of(0, max(min(a.high, rest[0].high - 1), 0))
        if atom.op == "//":
            return a.of(a.low, a.high, 0)
        pick = max if atom.op == "max" else min
        every = (a, *rest)
        return a.hull(*rest).of(pick(i.low for i in every), pick(i.high for i in every))

    def node(self, graph: Graph, node: Node) -> None:
        where = node.where()
        positions = DATA.get(node.op, range(len(node.inputs)))
        inputs = [
            self.read(name, where if i in positions else "") if name else ANY
            for i, name in enumerate(node.inputs)
        ]
        types = [self._type(name) for name in node.inputs]
        self._operands(node, types, inputs, positions)
        if node.op in ("If", "Loop", "Scan"):
            outputs = self._bodies(node, inputs)
        else:
            outputs = self._outputs(graph, node, inputs)
        for name, interval in zip(node.outputs, outputs, strict=False):
            if not name or name not in graph.types:
                continue
            if name in graph.constants or name in graph.values:
                continue
            dtype = graph.types[name].dtype
            self.found[name] = self.check(where, dtype, interval, node.op)

    def _type(self, name: str) -> TensorType | None:
        return next((g.types[name] for g in reversed(self.scopes) if name in g.types), None)

    def _operands(
        self,
        node: Node,
        types: Sequence[TensorType | None],
        inputs: Sequence[Interval],
        positions: Iterable[int],
    ) -> None:
        """Constants beyond 32 bits, which kernels hold as the nearest number of 32, and uint32 that
        a signed operator would misread."""
        if node.op in OPAQUE:
            return
        others = [i for i in inputs if i.fits()]
        for position in positions:
            if position >= len(inputs) or not node.inputs[position]:
                continue
            type_, interval = types[position], inputs[position]
            if type_ is None or type_.dtype not in _WIDE or interval.fits():
                continue
            if type_.dtype is DType.U32 and self._unsigned(node):
                continue
            if type_.dtype is not DType.U32 and node.op in SATURATING:
                continue
            if node.op in ORDERING and all(o.fits(LOW + 1, HIGH - 1) for o in others):
                continue  # no number of the others lies at the end that it is moved to
            self.fail(node.where(), interval.hull(*others))

    def _unsigned(self, node: Node) -> bool:
        """Whether uint32 is read without a sign."""
        if node.op in ("Cast", "CastLike"):
            type_ = self._type(node.outputs[0])
            return type_ is not None and type_.dtype not in (DType.I64, DType.U64)
        if node.attrs.get("reduction", "none") in ("min", "max"):
            return False
        return node.op in RING

    def fail(self, where: str, interval: Interval) -> None:
        sizes = {n for n in interval.sources if n.startswith(_SIZE)}
        inputs = (interval.sources - sizes) & set(self.root.inputs)
        casts = interval.sources - sizes - inputs
        for names, least in (
            (casts, FLOAT_BITS), (inputs, _SMALL_INPUT), (sizes, _SMALL_SIZE), (inputs, 1)
        ):  # fmt: skip
            able = {n for n in names if self.bits(n) > least}
            if able:
                self.narrow |= able
                return
        self.problems[where] = interval

    def check(self, where: str, dtype: DType, interval: Interval, op: str = "") -> Interval:
        """What a value of that type holds; too wide an interval is noted."""
        if dtype.is_float or dtype is DType.BOOL:
            return interval
        if dtype not in _WIDE or dtype is DType.U32:
            low, high = dtype.limits
            return interval if interval.fits(low, high) else all_of(dtype, interval.sources)
        low = 0 if dtype is DType.U64 else LOW
        if interval.fits(low):
            return interval
        self.fail(where, interval)
        return Interval(
            min(max(interval.low, low), HIGH), max(min(interval.high, HIGH), low), interval.sources
        )

    def _outputs(self, graph: Graph, node: Node, inputs: list[Interval]) -> list[Interval]:
        if node.op in ("Cast", "CastLike"):
            return [self._cast(graph, node, inputs[0])]
        rule = RULES.get(node.op) if not node.domain else None
        if rule is None:
            types = (graph.types.get(name) for name in node.outputs)
            return [ANY if t is None or t.dtype.is_float else all_of(t.dtype) for t in types]
        site = Site(self.dim, graph, node, inputs)
        between = on_the_way(site)
        wide = graph.types[node.outputs[0]].dtype in _WIDE
        if between is not None and wide and not between.fits():
            self.fail(node.where(), between)
        return rule(site)

    def _cast(self, graph: Graph, node: Node, x: Interval) -> Interval:
        source, to = (graph.types[n].dtype for n in (node.inputs[0], node.outputs[0]))
        if to is DType.BOOL:
            return Interval(0, 1, x.sources)
        if to.is_float or not source.is_float:
            return x
        if not x.fits():
            name = node.outputs[0]
            self.used.add(name)
            limit = 1 << self.bits(name)
            low, high = max(x.low, -limit), min(x.high, limit, HIGH)
            x = Interval(low, high, x.sources | {name})
        return Interval(math.floor(x.low), math.ceil(x.high), x.sources)

    def _ends(self, body: Graph, names: Sequence[str]) -> list[Interval]:
        self.scopes.append(body)
        found = [self.read(name, "") for name in names]
        self.scopes.pop()
        return found

    def _bodies(self, node: Node, inputs: list[Interval]) -> list[Interval]:
        bodies = subgraphs(node)
        if node.op == "If":
            for body in bodies:
                self.graph(body)
            ends = [self._ends(b, b.outputs) for b in bodies]
            return [one.hull(*rest) for one, *rest in zip(*ends, strict=False)]
        (body,) = bodies
        if node.op == "Loop":
            turns = inputs[0] if inputs and node.inputs[0] else Interval(0, LOOP_LIMIT)
            self.found[body.inputs[0]] = turns.of(0, max(turns.high - 1, 0))
            states, taken, given = inputs[2:], body.inputs[2:], body.outputs[1:]
        else:
            count = len(inputs) - int(node.attrs.get("num_scan_inputs", len(inputs)))
            axes = node.attrs.get("scan_input_axes") or [0]
            scanned = self._type(node.inputs[count])
            turns = self.dim(scanned.shape[axes[0]]).from_zero() if scanned else Interval(0, HIGH)
            self.found.update(zip(body.inputs[count:], inputs[count:], strict=True))
            states, taken, given = inputs[:count], body.inputs[:count], body.outputs
        now = self._carried(body, turns, states, taken, given)
        return [*now, *self._ends(body, given[len(states) :])]

    def _carried(
        self,
        body: Graph,
        turns: Interval,
        states: list[Interval],
        taken: list[str],
        given: list[str],
    ) -> list[Interval]:
        """What the turns make of the values that they hand on: each may move them as far as the
        first did, but no further."""
        start, reach = states, states
        first: list[tuple[float, float]] = []
        for again in (False, True):
            self.found.update(zip(taken, reach, strict=False))
            self.graph(body)
            after = self._ends(body, given[: len(states)])
            moved = [(min(b.low - a.low, 0), max(b.high - a.high, 0)) for a, b in
                     zip(reach, after, strict=False)]  # fmt: skip
            if not any(low or high for low, high in moved):
                break
            if again:
                growing = [
                    not _no_faster(m, f) and not self._of_floats(body, name)
                    for m, f, name in zip(moved, first, taken, strict=False)
                ]
                if any(growing):
                    self.fail(body.name, replace(ANY, sources=turns.sources))
                break
            first = moved
            reach = [
                Interval(
                    s.low + (turns.high * low if low else 0),
                    s.high + (turns.high * high if high else 0),
                    a.sources | s.sources | turns.sources,
                )
                for s, a, (low, high) in zip(start, after, moved, strict=False)
            ]
        return reach

    def _of_floats(self, body: Graph, name: str) -> bool:
        return body.types[name].dtype.is_float or body.types[name].dtype is DType.BOOL


def _no_faster(now: tuple[float, float], before: tuple[float, float]) -> bool:
    return now[0] >= before[0] and now[1] <= before[1]
