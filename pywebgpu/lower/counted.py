"""Operators that find out the size of their results while they run.

They count, the count becomes a size (`Lowering.count`), and what follows is as long as that says.
Which elements are chosen is found from prefix sums: the j-th is the first at which the sum is
j + 1, which a binary search finds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..codegen import scalar as sc
from ..codegen.dims import Dim, ceildiv, dim_max, dim_min, product, symbol
from ..codegen.program import Loop
from ..codegen.scalar import Op, Scalar, Type
from ..codegen.spec import ReduceOp
from ..graph import DType, Graph, Node, TensorType
from .control import Turns
from .elementwise import both, either, less, maximum, minimum
from .engine import Lowering, lowers
from .index import unravel
from .values import Coordinates, Value, convert

BLOCK = 64
"""Elements that are added up one by one, before blocks of them are."""

_DEAD = -3.4028234663852886e38
"""The score of a box that is out."""


def _number(x: Scalar) -> Scalar:
    return convert(x, Type.I32)


def _held(lw: Lowering, value: Value) -> Value:
    """The value, in a buffer."""
    lw.materialise(value)
    return value


def _vector(lw: Lowering, size: Dim, read: Callable[[Scalar], Scalar]) -> Value:
    return lw.virtual(DType.I32, (size,), lambda c: read(c[0]))


def prefix_sums(lw: Lowering, x: Value, levels: int = 2) -> Value:
    """The sum of the elements up to each, itself included; for I32 vectors in buffers."""
    (size,) = x.shape
    if levels == 0 or (isinstance(size, int) and size <= 4 * BLOCK):

        def all_before(c: Coordinates, r: Coordinates) -> Scalar:
            return sc.select(sc.binary(Op.LE, r[0], c[0]), lw.read(x, r), 0)

        return _held(lw, lw.reduce(DType.I32, (size,), (size,), ReduceOp.SUM, all_before))
    last = sc.dim(size) - 1
    blocks = ceildiv(size, BLOCK)

    def inside(block: Scalar, r: Scalar, end: Scalar) -> Scalar:
        at = block * BLOCK + r
        return sc.select(sc.binary(Op.LE, at, end), lw.read(x, [sc.binary(Op.MIN, at, last)]), 0)

    over = (BLOCK,)
    sums = lw.reduce(
        DType.I32, (blocks,), over, ReduceOp.SUM, lambda c, r: inside(c[0], r[0], last)
    )
    before = prefix_sums(lw, _held(lw, sums), levels - 1)

    def finish(acc: Scalar, c: Coordinates) -> Scalar:
        block = sc.binary(Op.UDIV, c[0], BLOCK)
        first = sc.binary(Op.EQ, block, 0)
        earlier = lw.read(before, [sc.binary(Op.MAX, block - 1, 0)])
        return acc + sc.select(first, 0, earlier)

    return _held(
        lw,
        lw.reduce(
            DType.I32, (size,), over, ReduceOp.SUM,
            lambda c, r: inside(sc.binary(Op.UDIV, c[0], BLOCK), r[0], c[0]), finish,
        ),
    )  # fmt: skip


def chosen(lw: Lowering, flags: Value, symbol: Dim, most: Dim) -> Value:
    """Where the flags (a vector of 0 and 1) are set, in order; binds `symbol` to how many are.

    most: over the model's symbols.
    """
    (size,) = flags.shape
    sums = prefix_sums(lw, _held(lw, flags))
    some = sc.binary(Op.LT, 0, sc.dim(size))
    last = sc.binary(Op.MAX, sc.dim(size) - 1, 0)
    total = lw.virtual(DType.I32, (), lambda c: sc.select(some, lw.read(sums, [last]), 0))
    lw.count(str(symbol), lw.flag(total), most)
    steps = size.bit_length() if isinstance(size, int) else 31

    def search(c: Coordinates) -> Scalar:
        low, high = sc.const(0), last
        for _ in range(steps):
            middle = low + sc.binary(Op.UDIV, high - low, 2)
            enough = sc.binary(Op.LT, c[0], lw.read(sums, [middle]))
            low, high = (
                sc.select(enough, low, sc.binary(Op.MIN, middle + 1, last)),
                sc.select(enough, middle, high),
            )
        return low

    (length,) = lw.local([symbol])
    return _held(lw, lw.virtual(DType.I32, (length,), search))


@lowers("NonZero")
def lower_non_zero(lw: Lowering, node: Node) -> Value:
    x = lw.input(node, 0)
    dtype, shape = lw.out(node)
    lw.limit(x)

    def flag(i: Scalar) -> Scalar:
        e = lw.read(x, unravel(i, x.shape))
        return _number(e if e.type is Type.BOOL else sc.unary(Op.TO_BOOL, e))

    symbol = lw.graph.types[node.outputs[0]].shape[1]
    most = lw.outer(product(x.shape))
    places = chosen(lw, _vector(lw, product(x.shape), flag), symbol, most)

    def read(c: Coordinates) -> Scalar:
        there = unravel(lw.read(places, [c[1]]), x.shape)
        result: Scalar = there[-1] if there else sc.const(0)
        for d in range(len(there) - 2, -1, -1):
            result = sc.select(sc.binary(Op.EQ, c[0], d), there[d], result)
        return result

    return lw.virtual(dtype, shape, read)


@lowers("Compress")
def lower_compress(lw: Lowering, node: Node) -> Value:
    x, condition = lw.input(node, 0), lw.input(node, 1)
    dtype, shape = lw.out(node)
    axis = node.attrs.get("axis")
    axis = None if axis is None else int(axis) % x.rank
    size = product(x.shape) if axis is None else x.shape[axis]
    lw.limit(x)
    counted = lw.graph.types[node.outputs[0]].shape[axis or 0]
    # A condition may be longer than what it is about, or shorter.
    length = dim_min(condition.shape[0], size)
    flags = _vector(lw, length, lambda i: _number(lw.read(condition, [i])))
    places = chosen(lw, flags, counted, lw.graph.counted[str(counted)])

    def read(c: Coordinates) -> Scalar:
        if axis is None:
            return lw.read(x, unravel(lw.read(places, c), x.shape))
        return lw.read(x, [*c[:axis], lw.read(places, [c[axis]]), *c[axis + 1 :]])

    return lw.virtual(dtype, shape, read)


@lowers("Unique")
def lower_unique(lw: Lowering, node: Node) -> list[Value]:
    """Every element's place among the different ones, by comparing all with all."""
    x = lw.input(node, 0)
    dtype, shape = lw.out(node)
    axis = node.attrs.get("axis")
    axis = None if axis is None else int(axis) % x.rank
    size = product(x.shape) if axis is None else x.shape[axis]
    lw.materialise(x)
    same, smaller = _comparisons(lw, x, axis, size)
    bound = sc.dim(size)

    def earliest(c: Coordinates, r: Coordinates) -> Scalar:
        return sc.select(same(c[0], r[0]), r[0], bound)

    first = _held(lw, lw.reduce(DType.I32, (size,), (size,), ReduceOp.MIN, earliest))

    def is_first(i: Scalar) -> Scalar:
        return sc.binary(Op.EQ, lw.read(first, [i]), i)

    def before(c: Coordinates, r: Coordinates) -> Scalar:
        if node.attrs.get("sorted", 1):
            ahead = smaller(r[0], c[0])
        else:
            ahead = less(r[0], lw.read(first, [c[0]]))
        return _number(both(is_first(r[0]), ahead))

    inverse = _held(lw, lw.reduce(DType.I32, (size,), (size,), ReduceOp.SUM, before))
    total = lw.reduce(DType.I32, (), (size,), ReduceOp.SUM, lambda c, r: _number(is_first(r[0])))
    counted = lw.graph.types[node.outputs[0]].shape[axis or 0]
    lw.count(str(counted), lw.flag(total), lw.graph.counted[str(counted)])
    (length,) = lw.local([counted])

    def here(c: Coordinates, r: Coordinates) -> Scalar:
        return sc.binary(Op.EQ, lw.read(inverse, r), c[0])

    def place(c: Coordinates, r: Coordinates) -> Scalar:
        return sc.select(here(c, r), r[0], bound)

    indices = _held(lw, lw.reduce(DType.I64, (length,), (size,), ReduceOp.MIN, place))

    def value(c: Coordinates) -> Scalar:
        if axis is None:
            return lw.read(x, unravel(lw.read(indices, c), x.shape))
        return lw.read(x, [*c[:axis], lw.read(indices, [c[axis]]), *c[axis + 1 :]])

    counts = lw.reduce(
        DType.I64, (length,), (size,), ReduceOp.SUM, lambda c, r: _number(here(c, r))
    )
    back = lw.virtual(DType.I64, (size,), lambda c: lw.read(inverse, c))
    made = [lw.virtual(dtype, shape, value), indices, back, counts]
    return [v for v, name in zip(made, node.outputs, strict=False) if name]


Compare = Callable[[Scalar, Scalar], Scalar]


def _comparisons(lw: Lowering, x: Value, axis: int | None, size: Dim) -> tuple[Compare, Compare]:
    """(i equals j, i comes before j) for elements, or for slices as sequences of their elements."""
    if axis is None:

        def element(i: Scalar) -> Scalar:
            e = lw.read(x, unravel(i, x.shape))
            return _number(e) if e.type is Type.BOOL else e

        return (
            lambda i, j: sc.binary(Op.EQ, element(i), element(j)),
            lambda i, j: less(element(i), element(j)),
        )
    others = (*x.shape[:axis], *x.shape[axis + 1 :])
    length = product(others)

    def part(i: Scalar, p: Scalar) -> Scalar:
        there = unravel(p, others)
        e = lw.read(x, [*there[:axis], i, *there[axis:]])
        return _number(e) if e.type is Type.BOOL else e

    end = sc.dim(length)

    def differs(c: Coordinates, r: Coordinates) -> Scalar:
        equal = sc.binary(Op.EQ, part(c[0], r[0]), part(c[1], r[0]))
        return sc.select(equal, end, r[0])

    where = _held(lw, lw.reduce(DType.I32, (size, size), (length,), ReduceOp.MIN, differs))

    def smaller(i: Scalar, j: Scalar) -> Scalar:
        at = sc.binary(Op.MIN, lw.read(where, [i, j]), end - 1)
        return less(part(i, at), part(j, at))

    return lambda i, j: sc.binary(Op.EQ, lw.read(where, [i, j]), end), smaller


@lowers("NonMaxSuppression")
def lower_non_max_suppression(lw: Lowering, node: Node) -> Value:
    """Turn by turn, in every class: the best box that is left, and out with those it covers."""
    boxes, scores = (_held(lw, lw.input(node, i)) for i in (0, 1))
    batch, classes, count = scores.shape
    limit, overlap, threshold = (lw.optional(node, i) for i in (2, 3, 4))
    trips = _turns(lw, node, limit, count)
    (rows,) = lw.local([trips])

    def setting(value: Value | None, default: float) -> Scalar:
        return sc.const(default) if value is None else lw.read(value, [sc.const(0)] * value.rank)

    def start(c: Coordinates) -> Scalar:
        score = lw.read(scores, c)
        if threshold is None:
            return score
        return sc.select(less(setting(threshold, 0.0), score), score, _DEAD)

    left = lw.virtual(DType.F32, scores.shape, start)
    type_ = TensorType(DType.F32, tuple(map(lw.outer, scores.shape)))
    turns = Turns(lw, [type_], [left])
    best_shape = (batch, classes)
    every = (batch, classes, rows)
    picked = lw.new_buffer(DType.I32.storage, every)
    inner = Lowering(Graph("turn", [], [], [], {}, {}, lw.graph.opsets), outer=lw)
    (score,) = turns.values()
    best = inner.reduce(
        DType.I32, best_shape, (count,), ReduceOp.ARGMAX, lambda c, r: inner.read(score, [*c, *r])
    )
    _held(inner, best)

    def alive(c: Coordinates) -> Scalar:
        return less(sc.const(_DEAD), inner.read(score, [*c, inner.read(best, c)]))

    answer = inner.virtual(
        DType.I32, best_shape, lambda c: sc.select(alive(c), inner.read(best, c), -1)
    )
    inner.fill(answer, picked, lambda c: sc.linear([*c, turns.number], every))
    centre = bool(node.attrs.get("center_point_box", 0))

    def after(c: Coordinates) -> Scalar:
        b, k, j = c
        i = inner.read(best, [b, k])
        iou = _overlap(inner, boxes, b, i, j, centre)
        out = either(sc.binary(Op.EQ, i, j), less(setting(overlap, 0.0), iou))
        return sc.select(out, _DEAD, inner.read(score, c))

    inner.copy_to(inner.virtual(DType.F32, scores.shape, after), turns.following[0])
    program = turns.end(inner)
    lw.program.append(Loop(trips, None, False, program, node.where()))
    found = Value(DType.I32, every, lw.reader(picked, DType.I32, every), "picked")
    found.buffer, found.order = picked, (0, 1, 2)
    flags = _vector(
        lw, product(every), lambda i: _number(less(sc.const(-1), lw.read(found, unravel(i, every))))
    )
    counted = lw.graph.types[node.outputs[0]].shape[0]
    places = chosen(lw, flags, counted, lw.graph.counted[str(counted)])
    dtype, shape = lw.out(node)

    def read(c: Coordinates) -> Scalar:
        b, k, turn = unravel(lw.read(places, [c[0]]), every)
        box = lw.read(found, [b, k, turn])
        last = sc.select(sc.binary(Op.EQ, c[1], 1), k, box)
        return sc.select(sc.binary(Op.EQ, c[1], 0), b, last)

    return lw.virtual(dtype, shape, read)


def _turns(lw: Lowering, node: Node, limit: Value | None, count: Dim) -> Dim:
    """How many boxes a class may have, over the model's symbols."""
    boxes = lw.outer(count)
    known = lw.graph.known(node.inputs[2]) if limit is not None else (0,)
    if known is not None:
        return dim_min(dim_max(known[0], 0), boxes)
    assert limit is not None
    wanted = _number(lw.read(limit, [sc.const(0)] * limit.rank))
    bounded = sc.binary(Op.MAX, sc.binary(Op.MIN, wanted, sc.dim(count)), 0)
    name = f"{node.outputs[0]}_turns"
    lw.graph.counted[name] = boxes
    lw.count(name, lw.flag(lw.virtual(DType.I32, (), lambda c: bounded)), boxes)
    return symbol(name)


def _overlap(lw: Lowering, boxes: Value, b: Scalar, i: Scalar, j: Scalar, centre: bool) -> Scalar:
    """Intersection over union of two boxes."""

    def corners(box: Scalar) -> list[tuple[Scalar, Scalar]]:
        a = [lw.read(boxes, [b, box, sc.const(k)]) for k in range(4)]
        if centre:  # x, y, width, height
            return [(a[k] - a[k + 2] * 0.5, a[k] + a[k + 2] * 0.5) for k in (0, 1)]
        return [(minimum(a[k], a[k + 2]), maximum(a[k], a[k + 2])) for k in (0, 1)]

    def area(box: Sequence[tuple[Scalar, Scalar]]) -> Scalar:
        (x0, x1), (y0, y1) = box
        return (x1 - x0) * (y1 - y0)

    one, other = corners(i), corners(j)
    sides = [
        maximum(minimum(p[1], q[1]) - maximum(p[0], q[0]), 0.0)
        for p, q in zip(one, other, strict=True)
    ]
    common = sides[0] * sides[1]
    union = area(one) + area(other) - common
    return sc.select(less(sc.const(0.0), union), common / union, 0.0)


def count_from_data(lw: Lowering, node: Node, position: int, counted: Dim) -> None:
    """Bind a size to the one element of an input."""
    value = lw.input(node, position)
    wanted = _number(lw.read(value, [sc.const(0)] * value.rank))
    name = str(counted)
    flag = lw.flag(lw.virtual(DType.I32, (), lambda c: wanted))
    lw.count(name, flag, lw.graph.counted[name])
