"""Proof that integers of 64 bits fit the 32 that kernels compute in.

Every tensor gets an interval that its elements lie in, from what operators do (interval arithmetic
in Python's own integers, which do not overflow). What a model takes from outside has no interval of
its own, so it gets one: an integer input, floats that a Cast turns into integers, and sizes start
with all that they may have, and where something computed from them would not fit, with one bit
less, until it does.

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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..codegen.dims import Dim, dim_min, product, symbol
from ..codegen.program import LOOP_LIMIT
from ..errors import UnsupportedError
from ..graph import DType, Graph, Node, SizeCheck, TensorType, subgraphs

LOW, HIGH = -(1 << 31), (1 << 31) - 1
SIZE_BITS = 30
"""No memory holds a longer axis: kernels take four bytes an element, and address 32 bits."""
FLOAT_BITS = 24
# Masks and types of tokens are small and axes are long: inputs are narrowed before sizes are.
_SMALL_INPUT, _SMALL_SIZE = 8, 10
_WIDE = (DType.I64, DType.U64, DType.U32)
_SIZE = "size "
_INF = math.inf


@dataclass(frozen=True, slots=True)
class Interval:
    """`low` and `high` are ints, or floats that may be infinite. `sources`: what could be narrowed
    to narrow it (names of inputs, and of the results of Casts; `size ` and a symbol)."""

    low: float
    high: float
    sources: frozenset[str] = frozenset()

    def of(self, *values: float) -> Interval:
        """Around these numbers, from the same sources."""
        found = [0 if math.isnan(v) else v for v in values]
        return Interval(min(found), max(found), self.sources)

    def hull(self, *others: Interval) -> Interval:
        every = (self, *others)
        return Interval(
            min(o.low for o in every),
            max(o.high for o in every),
            self.sources.union(*(o.sources for o in others)),
        )

    @property
    def size(self) -> float:
        return max(abs(self.low), abs(self.high))

    def fits(self, low: float = LOW, high: float = HIGH) -> bool:
        return low <= self.low and self.high <= high


ANY = Interval(-_INF, _INF)


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
            low, high = array.min(), array.max()
            if array.dtype.kind == "f":
                interval = Interval(*_floats(low, high))
            else:
                interval = Interval(int(low), int(high))
        elif elements is not None:
            interval = Interval(0, 0).hull(*(self.dim(e) for e in elements))
            if where and not interval.fits():
                for element in elements:
                    if not self.dim(element).fits():
                        self.sizes[element] = where
                interval = interval.of(max(interval.low, LOW), min(interval.high, HIGH))
        else:
            interval = ANY if dtype is None or dtype.is_float else _all_of(dtype)
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
                term = _times(term, self._atom(atom))
            total = _plus(total, term)
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

    def count(self, dims: Iterable[Dim]) -> Interval:
        """From 0 to the most elements that these axes have."""
        size = self.dim(product(dims))
        return size.of(0, max(size.high, 1))

    def node(self, graph: Graph, node: Node) -> None:
        where = node.where()
        positions = _DATA.get(node.op, range(len(node.inputs)))
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
        if node.op in _SATURATING or node.op in _OPAQUE:
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
            if node.op in _ORDERING and all(o.fits(LOW + 1, HIGH - 1) for o in others):
                continue  # no number of the others lies at the end that it is moved to
            self.fail(node.where(), interval.hull(*others))

    def _unsigned(self, node: Node) -> bool:
        """Whether uint32 is read without a sign."""
        if node.op in ("Cast", "CastLike"):
            type_ = self._type(node.outputs[0])
            return type_ is not None and type_.dtype not in (DType.I64, DType.U64)
        return node.op in _RING

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
            return interval if interval.fits(low, high) else _all_of(dtype, interval.sources)
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
        rule = _RULES.get(node.op) if not node.domain else None
        if rule is None:
            types = (graph.types.get(name) for name in node.outputs)
            return [ANY if t is None or t.dtype.is_float else _all_of(t.dtype) for t in types]
        return rule(_Site(self, graph, node, inputs))

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
            turns = self.count([scanned.shape[axes[0]]]) if scanned else Interval(0, HIGH)
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


def _all_of(dtype: DType, sources: frozenset[str] = frozenset()) -> Interval:
    """Every number of an integer type, as far as kernels hold them."""
    if dtype is DType.BOOL:
        return Interval(0, 1, sources)
    low, high = dtype.limits
    most = high if dtype is DType.U32 else min(high, HIGH)
    return Interval(max(low, LOW), most, sources)


def _floats(low: Any, high: Any) -> tuple[float, float]:
    return (-_INF, _INF) if np.isnan(low) or np.isnan(high) else (float(low), float(high))


def _plus(a: Interval, b: Interval) -> Interval:
    return replace(a.hull(b), low=a.low + b.low, high=a.high + b.high)


def _times(a: Interval, b: Interval) -> Interval:
    def by(x: float, y: float) -> float:
        return x * y if x and y else 0

    corners = [by(x, y) for x in (a.low, a.high) for y in (b.low, b.high)]
    return a.hull(b).of(*corners)


@dataclass(frozen=True, slots=True)
class _Site:
    """A node with its inputs' intervals."""

    walk: _Walk
    graph: Graph
    node: Node
    inputs: list[Interval]

    @property
    def whole(self) -> bool:
        """Whether the first output holds integers."""
        return not self.graph.types[self.node.outputs[0]].dtype.is_float

    def shape(self, position: int = 0) -> tuple[Dim, ...]:
        return self.graph.types[self.node.inputs[position]].shape

    def reduced(self) -> Interval:
        """The most elements that are made one."""
        shape = self.shape()
        given = self.node.attrs.get("axes")
        if given is None and len(self.node.inputs) > 1 and self.node.inputs[1]:
            given = self.graph.known(self.node.inputs[1])
        if given is None or not all(isinstance(a, int) for a in given):
            return self.walk.count(shape)
        axes = list(given)
        if not axes and self.node.attrs.get("noop_with_empty_axes"):
            return Interval(0, 1)
        return self.walk.count([shape[a] for a in axes] if axes else shape)

    def along(self) -> Interval:
        """The most elements along the axis of the attribute, or of the second input."""
        shape = self.shape()
        axis: Any = self.node.attrs.get("axis")
        if axis is None and self.node.op in ("CumSum", "CumProd"):
            known = self.graph.known(self.node.inputs[1])
            axis = known[0] if known else None
        if not isinstance(axis, int):
            return self.walk.count(shape)
        return self.walk.count([shape[axis]] if shape else [])


Rule = Callable[[_Site], list[Interval]]
_RULES: dict[str, Rule] = {}


def _rule(*ops: str) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(ops, rule))
        return rule

    return register


# Operators that only move elements, and those of their inputs that they move.
_MOVED: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(
        ("Gather", "GatherElements", "GatherND", "Slice", "Tile", "Expand", "Reshape", "Split",
         "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Compress", "Trilu",
         "ReverseSequence", "DepthToSpace", "SpaceToDepth", "CenterCropPad", "Dropout",
         "ReduceMax", "ReduceMin", "ReduceMean", "MaxPool", "GlobalMaxPool"),
        (0,),
    ),
    "Where": (1, 2),
    "OneHot": (2,),
    "TensorScatter": (0, 1),
    "Range": (0, 1),
}  # fmt: skip
_DATA: dict[str, Iterable[int]] = {
    **_MOVED,
    **dict.fromkeys(("ReduceSum", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare"), (0,)),
    **dict.fromkeys(("CumSum", "CumProd", "TopK", "Resize", "Shape", "Size", "EyeLike"), (0,)),
    **dict.fromkeys(("ConstantOfShape", "AffineGrid", "DFT", "STFT"), ()),
    "Pad": (0, 2),
    "ScatterElements": (0, 2),
    "ScatterND": (0, 2),
    "Scatter": (0, 2),
    "CastLike": (0,),
    "Loop": (),
    "If": (),
}
_SATURATING = ("Min", "Max", "Clip", "Relu")
_ORDERING = ("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal")
_OPAQUE = ("Loop", "Scan", "If")
_PICKED = {"ReduceMax", "ReduceMin", "ReduceMean", "MaxPool", "GlobalMaxPool", "Range"}
# uint32 read as int32 gives the same bits, or is read as what it is.
_RING = {
    *(_MOVED.keys() - _PICKED), "Concat", "Pad", "ScatterElements", "ScatterND", "Scatter", "Add",
    "Sub", "Mul", "ReduceSum", "CumSum", "MatMul", "BitwiseAnd", "BitwiseOr", "BitwiseXor",
    "BitwiseNot", "BitCast", *_ORDERING,
}  # fmt: skip


@_rule(*_MOVED)
def _moved(s: _Site) -> list[Interval]:
    """Also indices, where a second output holds them."""
    chosen = [s.inputs[i] for i in _MOVED[s.node.op] if i < len(s.inputs)]
    hull = chosen[0].hull(*chosen[1:])
    if s.node.op == "Split":
        return [hull] * len(s.node.outputs)
    return [hull, _up_to(s, product(s.shape()))]


@_rule("Concat")
def _concat(s: _Site) -> list[Interval]:
    return [s.inputs[0].hull(*s.inputs[1:])]


@_rule("Pad")
def _pad(s: _Site) -> list[Interval]:
    given = s.inputs[2] if len(s.node.inputs) > 2 and s.node.inputs[2] else Interval(0, 0)
    return [s.inputs[0].hull(given)]


@_rule("ScatterElements", "ScatterND", "Scatter")
def _scatter(s: _Site) -> list[Interval]:
    x, updates = s.inputs[0], s.inputs[2]
    how = s.node.attrs.get("reduction", "none")
    if how == "add":
        most = s.walk.count(s.shape(2))
        return [_plus(x, _times(updates, most))]
    return [x.hull(updates) if how != "mul" else replace(ANY, sources=x.hull(updates).sources)]


@_rule("Add", "Sum")
def _add(s: _Site) -> list[Interval]:
    total, *rest = s.inputs
    for other in rest:
        total = _plus(total, other)
    return [total]


@_rule("Sub")
def _sub(s: _Site) -> list[Interval]:
    a, b = s.inputs
    return [_plus(a, b.of(-b.low, -b.high))]


@_rule("Mul")
def _mul(s: _Site) -> list[Interval]:
    return [_times(*s.inputs)]


@_rule("Div")
def _div(s: _Site) -> list[Interval]:
    a, b = s.inputs
    both = a.hull(b)
    if b.low <= 0 <= b.high:
        # Integers: at least 1 in size, and what is divided by 0 becomes 0 here.
        low = 0 if min(a.low, b.low) >= 0 else -a.size
        return [both.of(low, a.size)] if s.whole else [replace(ANY, sources=both.sources)]
    corners = [_quotient(x, y, s.whole) for x in (a.low, a.high) for y in (b.low, b.high)]
    return [both.of(*corners, 0)]


def _quotient(x: float, y: float, whole: bool) -> float:
    if math.isinf(x) or math.isinf(y):
        return 0 if math.isinf(y) else math.copysign(_INF, x * y)
    if whole:
        return int(x) // int(y) if (x < 0) == (y < 0) else -(-int(x) // int(y))
    return x / y


@_rule("Mod")
def _mod(s: _Site) -> list[Interval]:
    a, b = s.inputs
    size = min(b.size, a.size) if s.node.attrs.get("fmod") else b.size
    low = -size if a.low < 0 or b.low < 0 else 0
    return [a.hull(b).of(low, size)]


@_rule("Min", "Max")
def _extreme(s: _Site) -> list[Interval]:
    pick = min if s.node.op == "Min" else max
    hull = s.inputs[0].hull(*s.inputs[1:])
    return [hull.of(pick(i.low for i in s.inputs), pick(i.high for i in s.inputs))]


@_rule("Clip")
def _clipped(s: _Site) -> list[Interval]:
    x = s.inputs[0]
    given = [i < len(s.node.inputs) and bool(s.node.inputs[i]) for i in (1, 2)]
    low = s.inputs[1].low if given[0] else s.node.attrs.get("min", -_INF)
    high = s.inputs[2].high if given[1] else s.node.attrs.get("max", _INF)
    return [x.of(min(max(x.low, low), high), min(max(x.high, low), high))]


@_rule("Neg")
def _neg(s: _Site) -> list[Interval]:
    return [s.inputs[0].of(-s.inputs[0].low, -s.inputs[0].high)]


@_rule("Abs", "Relu")
def _abs(s: _Site) -> list[Interval]:
    x = s.inputs[0]
    if s.node.op == "Relu":
        return [x.of(max(x.low, 0), max(x.high, 0))]
    return [x.of(0 if x.low <= 0 <= x.high else min(abs(x.low), abs(x.high)), x.size)]


@_rule("Sign")
def _sign(s: _Site) -> list[Interval]:
    return [Interval(-1, 1)]


@_rule("Floor", "Ceil", "Round")
def _round(s: _Site) -> list[Interval]:
    x = s.inputs[0]
    finite = [v if math.isinf(v) else f(v) for v, f in ((x.low, math.floor), (x.high, math.ceil))]
    return [x.of(*finite)]


@_rule("Sigmoid", "Softmax", "HardSigmoid", "Hardmax")
def _unit(s: _Site) -> list[Interval]:
    return [Interval(0, 1)]


@_rule("Tanh", "Sin", "Cos", "Erf", "Softsign")
def _small(s: _Site) -> list[Interval]:
    return [Interval(-1, 1)]


@_rule("Sqrt", "Exp", "Log")
def _rising(s: _Site) -> list[Interval]:
    x = s.inputs[0]
    return [x.of(_risen(s.node.op, x.low), _risen(s.node.op, x.high))]


def _risen(op: str, x: float) -> float:
    if op == "Sqrt":
        return math.sqrt(x) if x > 0 else 0.0
    if op == "Log":
        return math.log(x) if x > 0 else -_INF
    return math.exp(x) if x < 88 else _INF


@_rule("Pow")
def _pow(s: _Site) -> list[Interval]:
    a, b = s.inputs
    if s.whole and s.graph.types[s.node.inputs[1]].dtype.is_float:
        return [a.of(LOW, HIGH)]  # a float made an integer, which stops at the ends
    top = _power(max(a.size, 1), b.high)
    return [a.hull(b).of(-top if a.low < 0 else 0, top)]


def _power(base: float, exponent: float) -> float:
    if base <= 1 or exponent <= 0:
        return 1
    return _INF if exponent > 64 or math.isinf(base) else base**exponent


@_rule("ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare", "CumSum")
def _sums(s: _Site) -> list[Interval]:
    x = s.inputs[0]
    if not s.whole:
        return [replace(ANY, sources=x.sources)]
    most = s.along() if s.node.op == "CumSum" else s.reduced()
    if s.node.op == "ReduceSumSquare":
        x = x.of(0, x.size**2)
    elif s.node.op != "ReduceSum" and s.node.op != "CumSum":
        x = x.of(0, x.size)
    return [_times(x, most)]


@_rule("ReduceProd", "CumProd")
def _products(s: _Site) -> list[Interval]:
    x = s.inputs[0]
    most = s.along() if s.node.op == "CumProd" else s.reduced()
    top = _power(max(x.size, 1), most.high)
    return [x.hull(most).of(-top if x.low < 0 else 0, top)]


@_rule("MatMul", "Gemm")
def _matmul(s: _Site) -> list[Interval]:
    a, b = s.inputs[:2]
    hull = a.hull(*s.inputs[1:])
    if not s.whole or s.node.op == "Gemm":
        return [replace(ANY, sources=hull.sources)]
    return [_times(_times(a, b), s.walk.count([s.shape()[-1]]))]


@_rule("ArgMax", "ArgMin")
def _index(s: _Site) -> list[Interval]:
    shape = s.shape()
    axis = int(s.node.attrs.get("axis", 0))
    return [_up_to(s, shape[axis] if shape else 1)]


@_rule("TopK")
def _topk(s: _Site) -> list[Interval]:
    axis = int(s.node.attrs.get("axis", -1))
    return [s.inputs[0], _up_to(s, s.shape()[axis])]


@_rule("NonZero")
def _nonzero(s: _Site) -> list[Interval]:
    return [Interval(0, 0).hull(*(_up_to(s, size) for size in s.shape()))]


@_rule("Unique")
def _unique(s: _Site) -> list[Interval]:
    return [s.inputs[0], *[_up_to(s, product(s.shape()) + 1)] * 3]


def _up_to(s: _Site, size: Dim) -> Interval:
    """Positions among so many."""
    most = s.walk.dim(size)
    return most.of(0, max(min(most.high, HIGH) - 1, 0))


@_rule("Shape", "Size")
def _sizes(s: _Site) -> list[Interval]:
    every = [*s.shape(), product(s.shape())] if s.node.op == "Size" else s.shape()
    return [Interval(0, 0).hull(*(s.walk.dim(d) for d in every))]


@_rule("ConstantOfShape")
def _filled(s: _Site) -> list[Interval]:
    value = s.node.attrs.get("value")
    if value is None:
        return [Interval(0, 0)]
    first = np.asarray(value).ravel()[0].item()
    return [Interval(first, first)]


@_rule("EyeLike")
def _eye(s: _Site) -> list[Interval]:
    return [Interval(0, 1)]


@_rule("BitwiseAnd", "BitwiseOr", "BitwiseXor")
def _bitwise(s: _Site) -> list[Interval]:
    a, b = s.inputs
    hull = a.hull(b)
    if s.node.op == "BitwiseAnd" and max(a.low, b.low) >= 0:
        return [hull.of(0, min(i.high for i in (a, b) if i.low >= 0))]
    top = (1 << int(hull.size).bit_length()) - 1 if hull.size < _INF else _INF
    return [hull.of(-top - 1 if hull.low < 0 else 0, top)]


@_rule("BitwiseNot")
def _not(s: _Site) -> list[Interval]:
    x = s.inputs[0]
    if s.graph.types[s.node.outputs[0]].dtype.value.startswith("u"):
        return [_all_of(s.graph.types[s.node.outputs[0]].dtype, x.sources)]
    return [x.of(-x.low - 1, -x.high - 1)]


@_rule("BitShift")
def _shift(s: _Site) -> list[Interval]:
    x, by = s.inputs
    if s.node.attrs.get("direction") == "RIGHT":
        return [x.hull(by).of(0, x.high)]
    sources = by.sources if by.high >= 8 and by.sources else x.sources
    return [Interval(0, x.high * 2 ** min(by.high, 64), sources)]
