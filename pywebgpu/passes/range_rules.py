"""What an operator makes of its inputs' intervals: one rule each, and what else `ranges` asks about
operators."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..codegen.dims import Dim, product
from ..graph import Graph, Node
from .intervals import ANY, HIGH, INF, LOW, Interval, all_of, plus, times


@dataclass(frozen=True, slots=True)
class Site:
    """A node with its inputs' intervals. `size`: the interval of a size."""

    size: Callable[[Dim], Interval]
    graph: Graph
    node: Node
    inputs: list[Interval]

    @property
    def whole(self) -> bool:
        """Whether the first output holds integers."""
        return not self.graph.types[self.node.outputs[0]].dtype.is_float

    def shape(self, position: int = 0) -> tuple[Dim, ...]:
        return self.graph.types[self.node.inputs[position]].shape

    def count(self, dims: Iterable[Dim]) -> Interval:
        """From 0 to the most elements that these axes have."""
        return self.size(product(dims)).from_zero()

    def reduced(self) -> Interval:
        """The most elements that are made one."""
        shape = self.shape()
        given = self.node.attrs.get("axes")
        if given is None and len(self.node.inputs) > 1 and self.node.inputs[1]:
            given = self.graph.known(self.node.inputs[1])
        if given is None or not all(isinstance(a, int) for a in given):
            return self.count(shape)
        axes = list(given)
        if not axes and self.node.attrs.get("noop_with_empty_axes"):
            return Interval(0, 1)
        return self.count([shape[a] for a in axes] if axes else shape)

    def along(self) -> Interval:
        """The most elements along the axis of the attribute, or of the second input."""
        shape = self.shape()
        axis: Any = self.node.attrs.get("axis")
        if axis is None and self.node.op in ("CumSum", "CumProd"):
            known = self.graph.known(self.node.inputs[1])
            axis = known[0] if known else None
        if not isinstance(axis, int):
            return self.count(shape)
        return self.count([shape[axis]] if shape else [])


Rule = Callable[[Site], list[Interval]]
RULES: dict[str, Rule] = {}
"""By operator: the intervals of its outputs."""


def _rule(*ops: str) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(ops, rule))
        return rule

    return register


# Operators that only move elements, and those of their inputs that they move.
_MOVED: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(
        ("Gather", "GatherElements", "GatherND", "Slice", "Tile", "Expand", "Reshape", "Split",
         "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Compress", "Trilu",
         "ReverseSequence", "DepthToSpace", "SpaceToDepth", "CenterCropPad", "Dropout",
         "ReduceMax", "ReduceMin", "MaxPool", "GlobalMaxPool"),
        (0,),
    ),
    "Where": (1, 2),
    "OneHot": (2,),
    "TensorScatter": (0, 1),
    "Range": (0, 1),
}  # fmt: skip
DATA: dict[str, Iterable[int]] = {
    **_MOVED,
    **dict.fromkeys(
        ("ReduceSum", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceMean"), (0,)
    ),
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
"""Which inputs an operator reads as data, where not all of them."""
SATURATING = ("Min", "Max", "Clip", "Relu")
"""A constant beyond 32 bits serves them as well as the nearest number of 32."""
ORDERING = ("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal")
"""It serves these where no other operand lies at that end."""
OPAQUE = ("Loop", "Scan", "If")
"""Their bodies' nodes are looked at instead."""
_PICKED = {"ReduceMax", "ReduceMin", "MaxPool", "GlobalMaxPool", "Range"}
RING = {
    *(_MOVED.keys() - _PICKED), "Concat", "Pad", "ScatterElements", "ScatterND", "Scatter", "Add",
    "Sub", "Mul", "ReduceSum", "CumSum", "MatMul", "BitwiseAnd", "BitwiseOr", "BitwiseXor",
    "BitwiseNot", "BitCast", "Min", "Max", "Clip", *ORDERING,
}  # fmt: skip
"""uint32 read as int32 gives the same bits, or is read as what it is."""


@_rule(*_MOVED)
def _moved(s: Site) -> list[Interval]:
    """Also indices, where a second output holds them."""
    chosen = [s.inputs[i] for i in _MOVED[s.node.op] if i < len(s.inputs)]
    hull = chosen[0].hull(*chosen[1:])
    if s.node.op == "Split":
        return [hull] * len(s.node.outputs)
    return [hull, _up_to(s, product(s.shape()))]


@_rule("Concat")
def _concat(s: Site) -> list[Interval]:
    return [s.inputs[0].hull(*s.inputs[1:])]


@_rule("Pad")
def _pad(s: Site) -> list[Interval]:
    given = s.inputs[2] if len(s.node.inputs) > 2 and s.node.inputs[2] else Interval(0, 0)
    return [s.inputs[0].hull(given)]


@_rule("ScatterElements", "ScatterND", "Scatter")
def _scatter(s: Site) -> list[Interval]:
    x, updates = s.inputs[0], s.inputs[2]
    how = s.node.attrs.get("reduction", "none")
    if how == "add":
        most = s.count(s.shape(2))
        return [plus(x, times(updates, most))]
    return [x.hull(updates) if how != "mul" else replace(ANY, sources=x.hull(updates).sources)]


@_rule("Add", "Sum")
def _add(s: Site) -> list[Interval]:
    total, *rest = s.inputs
    for other in rest:
        total = plus(total, other)
    return [total]


@_rule("Sub")
def _sub(s: Site) -> list[Interval]:
    a, b = s.inputs
    return [plus(a, b.of(-b.low, -b.high))]


@_rule("Mul")
def _mul(s: Site) -> list[Interval]:
    return [times(*s.inputs)]


@_rule("Div")
def _div(s: Site) -> list[Interval]:
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
        return 0 if math.isinf(y) else math.copysign(INF, x * y)
    if whole:
        return int(x) // int(y) if (x < 0) == (y < 0) else -(-int(x) // int(y))
    return x / y


@_rule("Mod")
def _mod(s: Site) -> list[Interval]:
    a, b = s.inputs
    size = min(b.size, a.size) if s.node.attrs.get("fmod") else b.size
    low = -size if a.low < 0 or b.low < 0 else 0
    return [a.hull(b).of(low, size)]


@_rule("Min", "Max")
def _extreme(s: Site) -> list[Interval]:
    pick = min if s.node.op == "Min" else max
    hull = s.inputs[0].hull(*s.inputs[1:])
    return [hull.of(pick(i.low for i in s.inputs), pick(i.high for i in s.inputs))]


@_rule("Clip")
def _clipped(s: Site) -> list[Interval]:
    x = s.inputs[0]
    given = [i < len(s.node.inputs) and bool(s.node.inputs[i]) for i in (1, 2)]
    low = s.inputs[1].low if given[0] else s.node.attrs.get("min", -INF)
    high = s.inputs[2].high if given[1] else s.node.attrs.get("max", INF)
    return [x.of(min(max(x.low, low), high), min(max(x.high, low), high))]


@_rule("Neg")
def _neg(s: Site) -> list[Interval]:
    return [s.inputs[0].of(-s.inputs[0].low, -s.inputs[0].high)]


@_rule("Abs", "Relu")
def _abs(s: Site) -> list[Interval]:
    x = s.inputs[0]
    if s.node.op == "Relu":
        return [x.of(max(x.low, 0), max(x.high, 0))]
    return [x.of(0 if x.low <= 0 <= x.high else min(abs(x.low), abs(x.high)), x.size)]


@_rule("Sign")
def _sign(s: Site) -> list[Interval]:
    x = s.inputs[0]
    return [Interval(-1 if x.low < 0 else 0, 1 if x.high > 0 else 0)]


@_rule("Floor", "Ceil", "Round")
def _round(s: Site) -> list[Interval]:
    x = s.inputs[0]
    finite = [v if math.isinf(v) else f(v) for v, f in ((x.low, math.floor), (x.high, math.ceil))]
    return [x.of(*finite)]


@_rule("Sigmoid", "Softmax", "HardSigmoid", "Hardmax")
def _unit(s: Site) -> list[Interval]:
    return [Interval(0, 1)]


@_rule("Tanh", "Sin", "Cos", "Erf", "Softsign")
def _small(s: Site) -> list[Interval]:
    return [Interval(-1, 1)]


@_rule("Sqrt", "Exp", "Log")
def _rising(s: Site) -> list[Interval]:
    x = s.inputs[0]
    return [x.of(_risen(s.node.op, x.low), _risen(s.node.op, x.high))]


def _risen(op: str, x: float) -> float:
    if op == "Sqrt":
        return math.sqrt(x) if x > 0 else 0.0
    if op == "Log":
        return math.log(x) if x > 0 else -INF
    return math.exp(x) if x < 88 else INF


@_rule("Pow")
def _pow(s: Site) -> list[Interval]:
    a, b = s.inputs
    if s.whole and s.graph.types[s.node.inputs[1]].dtype.is_float:
        return [a.of(LOW, HIGH)]  # a float made an integer, which stops at the ends
    top = _power(max(a.size, 1), b.high)
    return [a.hull(b).of(-top if a.low < 0 else 0, top)]


def _power(base: float, exponent: float) -> float:
    if base <= 1 or exponent <= 0:
        return 1
    return INF if exponent > 64 or math.isinf(base) else base**exponent


@_rule("ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare", "CumSum")
def _sums(s: Site) -> list[Interval]:
    x = s.inputs[0]
    if not s.whole:
        return [replace(ANY, sources=x.sources)]
    most = s.along() if s.node.op == "CumSum" else s.reduced()
    if s.node.op == "ReduceSumSquare":
        x = x.of(0, x.size**2)
    elif s.node.op != "ReduceSum" and s.node.op != "CumSum":
        x = x.of(0, x.size)
    return [times(x, most)]


@_rule("ReduceMean")
def _mean(s: Site) -> list[Interval]:
    return [s.inputs[0]]


def on_the_way(s: Site) -> Interval | None:
    """What a kernel computes before its result, where that may be larger."""
    x = s.inputs[0] if s.inputs else ANY
    if s.node.op == "ReduceMean":
        return times(x, s.reduced())
    if s.node.op == "ReduceL2":
        return times(x.of(0, x.size**2), s.reduced())
    return None


@_rule("ReduceProd", "CumProd")
def _products(s: Site) -> list[Interval]:
    x = s.inputs[0]
    most = s.along() if s.node.op == "CumProd" else s.reduced()
    top = _power(max(x.size, 1), most.high)
    return [x.hull(most).of(-top if x.low < 0 else 0, top)]


@_rule("MatMul", "Gemm")
def _matmul(s: Site) -> list[Interval]:
    a, b = s.inputs[:2]
    hull = a.hull(*s.inputs[1:])
    if not s.whole or s.node.op == "Gemm":
        return [replace(ANY, sources=hull.sources)]
    return [times(times(a, b), s.count([s.shape()[-1]]))]


@_rule("ArgMax", "ArgMin")
def _index(s: Site) -> list[Interval]:
    shape = s.shape()
    axis = int(s.node.attrs.get("axis", 0))
    return [_up_to(s, shape[axis] if shape else 1)]


@_rule("TopK")
def _topk(s: Site) -> list[Interval]:
    axis = int(s.node.attrs.get("axis", -1))
    return [s.inputs[0], _up_to(s, s.shape()[axis])]


@_rule("NonZero")
def _nonzero(s: Site) -> list[Interval]:
    return [Interval(0, 0).hull(*(_up_to(s, size) for size in s.shape()))]


@_rule("Unique")
def _unique(s: Site) -> list[Interval]:
    return [s.inputs[0], *[_up_to(s, product(s.shape()) + 1)] * 3]


def _up_to(s: Site, size: Dim) -> Interval:
    """Positions among so many."""
    most = s.size(size)
    return most.of(0, max(min(most.high, HIGH) - 1, 0))


@_rule("Shape", "Size")
def _sizes(s: Site) -> list[Interval]:
    every = [*s.shape(), product(s.shape())] if s.node.op == "Size" else s.shape()
    return [Interval(0, 0).hull(*(s.size(d) for d in every))]


@_rule("ConstantOfShape")
def _filled(s: Site) -> list[Interval]:
    value = s.node.attrs.get("value")
    if value is None:
        return [Interval(0, 0)]
    first = np.asarray(value).ravel()[0].item()
    return [Interval(first, first)]


@_rule("EyeLike")
def _eye(s: Site) -> list[Interval]:
    return [Interval(0, 1)]


@_rule("BitwiseAnd", "BitwiseOr", "BitwiseXor")
def _bitwise(s: Site) -> list[Interval]:
    a, b = s.inputs
    hull = a.hull(b)
    if s.node.op == "BitwiseAnd" and max(a.low, b.low) >= 0:
        return [hull.of(0, min(i.high for i in (a, b) if i.low >= 0))]
    top = (1 << int(hull.size).bit_length()) - 1 if hull.size < INF else INF
    return [hull.of(-top - 1 if hull.low < 0 else 0, top)]


@_rule("BitwiseNot")
def _not(s: Site) -> list[Interval]:
    x = s.inputs[0]
    if s.graph.types[s.node.outputs[0]].dtype.value.startswith("u"):
        return [all_of(s.graph.types[s.node.outputs[0]].dtype, x.sources)]
    return [x.of(-x.low - 1, -x.high - 1)]


@_rule("BitShift")
def _shift(s: Site) -> list[Interval]:
    x, by = s.inputs
    if s.node.attrs.get("direction") == "RIGHT":
        return [x.hull(by).of(0, x.high)]
    sources = by.sources if by.high >= 8 and by.sources else x.sources
    return [Interval(0, x.high * 2 ** min(by.high, 64), sources)]
