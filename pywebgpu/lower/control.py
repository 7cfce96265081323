"""If, Loop and Scan: their bodies become parts of the program (`codegen/program.py`).

What a body reads from around it is in buffers before the body begins, since inside it a kernel
may run never, or many times. A carried value has two buffers: a turn reads one, writes the other,
and copies it back at its end. The number of the turn is data like any other, in a buffer that each
turn counts up: so the kernels of a body and their arguments are the same in every turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ..codegen import scalar as sc
from ..codegen.dims import Dim, symbol
from ..codegen.program import LOOP_LIMIT, STACK_LIMIT, Branch, Item, Loop
from ..codegen.scalar import Op, Scalar, Type
from ..graph import DType, Graph, Node, TensorType, outer_names
from ..infer.control import always_on
from .engine import Lowering, lowers
from .values import Coordinates, Value, convert

Place = Callable[[Coordinates], Scalar]


def _around(lw: Lowering, node: Node) -> dict[str, Value]:
    """What the node and its bodies read from around them, in buffers."""
    found = {}
    for name in outer_names(node):
        value = lw.value(name)
        if value.constant is None and value.elements is None:
            lw.materialise(value)
        found[name] = value
    return found


def _buffer(lw: Lowering, type_: TensorType) -> int:
    return lw.new_buffer(type_.dtype.storage, lw.local(type_.shape))


def _held(lw: Lowering, type_: TensorType, buffer: int) -> Value:
    """What lies in a buffer that the program keeps for a value."""
    shape = lw.local(type_.shape)
    value = Value(type_.dtype, shape, lw.reader(buffer, type_.dtype, shape), "held")
    value.buffer, value.order = buffer, tuple(range(len(shape)))
    return value


@lowers("If")
def lower_if(lw: Lowering, node: Node) -> list[Value]:
    around = _around(lw, node)
    condition = lw.flag(around[node.inputs[0]])
    types = {name: lw.graph.types[name] for name in node.outputs if name}
    buffers = {name: _buffer(lw, type_) for name, type_ in types.items()}
    programs: list[tuple[Item, ...]] = []
    for key in ("then_branch", "else_branch"):
        inner = Lowering(node.attrs[key], outer=lw)
        inner.run_body(around, [buffers.get(name) for name in node.outputs])
        programs.append(tuple(inner.program))
    lw.program.append(Branch(condition, *programs))
    return [_held(lw, types[name], buffers[name]) for name in types]


class Turns:
    """A loop's state: the number of the turn, and the carried values, now and in the next turn."""

    def __init__(self, lw: Lowering, types: Sequence[TensorType], start: Sequence[Value]) -> None:
        self.lw, self.types = lw, types
        self.now = [_buffer(lw, type_) for type_ in types]
        self.following = [_buffer(lw, type_) for type_ in types]
        self.counter = lw.flag(lw.virtual(DType.I32, (), lambda c: sc.const(0)))
        for value, buffer in zip(start, self.now, strict=True):
            lw.copy_to(value, buffer)

    @property
    def number(self) -> Scalar:
        """Of the turn, as its kernels read it."""
        return sc.load(self.counter, sc.const(0), Type.I32)

    def values(self) -> list[Value]:
        return [_held(self.lw, t, b) for t, b in zip(self.types, self.now, strict=True)]

    def body(
        self,
        graph: Graph,
        given: Mapping[str, Value],
        going: int | None,
        rows: Sequence[tuple[int, Place] | None],
    ) -> tuple[Item, ...]:
        """One turn. The body's outputs are its condition, which goes to buffer `going` (where the
        operator has one), the carried values, and `rows`: a buffer and a place in it for each."""
        inner = Lowering(graph, outer=self.lw)
        conditions = len(graph.outputs) - len(self.following) - len(rows)
        targets = [*[going] * conditions, *self.following, *[None] * len(rows)]
        results = inner.run_body(given, targets)
        for value, row in zip(results[len(results) - len(rows) :], rows, strict=True):
            if row is not None:
                inner.fill(value, *row)
        return self.end(inner)

    def end(self, inner: Lowering) -> tuple[Item, ...]:
        """What `inner` does is a turn: pass on what is carried, count up. Returns the turn."""
        for type_, source, to in zip(self.types, self.following, self.now, strict=True):
            inner.copy_to(_held(inner, type_, source), to)
        counted = inner.copy(inner.virtual(DType.I32, (), lambda c: self.number + 1))
        inner.copy_to(counted, self.counter)
        return tuple(inner.program)


@lowers("Loop")
def lower_loop(lw: Lowering, node: Node) -> list[Value]:
    graph: Graph = node.attrs["body"]
    around = _around(lw, node)
    carried = node.inputs[2:]
    stacked = node.outputs[len(carried) :]
    trips, limited = _trips(lw, node, STACK_LIMIT if any(stacked) else LOOP_LIMIT)
    start = node.inputs[1] if len(node.inputs) > 1 else ""
    on = not start or lw.graph.known(start) == (1,)
    going = None
    if not (on and always_on(graph)):
        yes = lw.constant(np.array(True), DType.BOOL)
        going = lw.flag(around[start] if start else yes)
    turns = Turns(lw, [lw.graph.types[n] for n in carried], [around[n] for n in carried])
    types = {name: lw.graph.types[name] for name in stacked if name}
    buffers = {name: _buffer(lw, type_) for name, type_ in types.items()}

    def row(name: str) -> tuple[int, Place] | None:
        shape = lw.local(types[name].shape) if name else ()
        return (buffers[name], lambda c: sc.linear([turns.number, *c], shape)) if name else None

    number = lw.virtual(DType.I64, (), lambda c: turns.number)
    given = {**around, **dict(zip(graph.inputs[2:], turns.values(), strict=True))}
    given[graph.inputs[0]] = number
    given[graph.inputs[1]] = lw.virtual(DType.BOOL, (), lambda c: sc.const(True))
    names = [*stacked, *[""] * (len(graph.outputs) - 1 - len(node.outputs))]
    program = turns.body(graph, given, going, [row(name) for name in names])
    lw.program.append(Loop(trips, going, limited, program, node.where()))
    for name in buffers:
        size = types[name].shape[0]
        if str(size) in lw.graph.counted and size != trips:
            lw.count(str(size), turns.counter, lw.graph.counted[str(size)])
            break
    ends = [value for value, name in zip(turns.values(), node.outputs, strict=False) if name]
    return [*ends, *(_held(lw, types[name], buffers[name]) for name in buffers)]


def _trips(lw: Lowering, node: Node, limit: int) -> tuple[Dim, bool]:
    """The most turns there may be, and whether it is us who say so."""
    name = node.inputs[0]
    known = lw.graph.known(name) if name else (limit + 1,)
    if known is not None:
        most = known[0]
        return (limit, True) if isinstance(most, int) and most > limit else (most, False)
    value = lw.value(name)
    clipped = lw.pointwise(DType.I32, (), lambda x: sc.binary(Op.MAX, x, 0), _scalar(lw, value))
    trips = f"{node.outputs[0]}_trips"
    lw.graph.counted[trips] = limit
    lw.count(trips, lw.flag(clipped), limit)
    return symbol(trips), False


def _scalar(lw: Lowering, value: Value) -> Value:
    """A tensor of one element as one of rank 0."""
    at = [sc.const(0)] * value.rank
    return lw.virtual(DType.I32, (), lambda c: convert(lw.read(value, at), Type.I32))


@lowers("Scan")
def lower_scan(lw: Lowering, node: Node) -> list[Value]:
    graph: Graph = node.attrs["body"]
    around = _around(lw, node)
    n = int(node.attrs["num_scan_inputs"])
    carried, scanned = node.inputs[:-n], node.inputs[-n:]
    turns = Turns(lw, [lw.graph.types[c] for c in carried], [around[c] for c in carried])
    types = [lw.graph.types[name] for name in scanned]
    axes = _axes(node, "scan_input_axes", [len(t.shape) for t in types])
    trips = types[0].shape[axes[0]]
    given = {**around, **dict(zip(graph.inputs, turns.values(), strict=False))}
    backward = node.attrs.get("scan_input_directions") or [0] * n
    for i, name in enumerate(graph.inputs[len(carried) :]):
        given[name] = _slice(lw, around[scanned[i]], axes[i], _at(lw, turns, trips, backward[i]))
    stacked = graph.outputs[len(carried) :]
    backward = node.attrs.get("scan_output_directions") or [0] * len(stacked)
    ranks = [len(graph.types[name].shape) + 1 for name in stacked]
    axes = _axes(node, "scan_output_axes", ranks)
    rows: list[tuple[int, Place] | None] = []
    results: list[Value] = []
    for i, _ in enumerate(stacked):
        out = node.outputs[len(carried) + i] if len(carried) + i < len(node.outputs) else ""
        if not out:
            rows.append(None)
            continue
        type_ = lw.graph.types[out]
        buffer = _buffer(lw, type_)
        at = _at(lw, turns, trips, backward[i])
        rows.append((buffer, _row_place(at, axes[i], lw.local(type_.shape))))
        results.append(_held(lw, type_, buffer))
    program = turns.body(graph, given, None, rows)
    lw.program.append(Loop(trips, None, False, program, node.where()))
    ends = [value for value, name in zip(turns.values(), node.outputs, strict=False) if name]
    return [*ends, *results]


def _axes(node: Node, name: str, ranks: Sequence[int]) -> list[int]:
    given = node.attrs.get(name) or [0] * len(ranks)
    return [int(a) + rank if a < 0 else int(a) for a, rank in zip(given, ranks, strict=True)]


def _at(lw: Lowering, turns: Turns, trips: Dim, backward: int) -> Scalar:
    (length,) = lw.local([trips])
    return sc.dim(length) - 1 - turns.number if backward else turns.number


def _slice(lw: Lowering, x: Value, axis: int, at: Scalar) -> Value:
    shape = (*x.shape[:axis], *x.shape[axis + 1 :])
    return lw.virtual(x.dtype, shape, lambda c: lw.read(x, [*c[:axis], at, *c[axis:]]))


def _row_place(at: Scalar, axis: int, shape: Sequence[Dim]) -> Place:
    return lambda c: sc.linear([*c[:axis], at, *c[axis:]], shape)
