"""Reductions: out[index] = final(op over the reduced axes of value).

Lanes go along an output axis (pooling with channels last, sums over rows), where each lane is a
result of its own, or along the innermost reduced axis, where the lanes are combined at the end.
The order of additions depends on the candidate, never on the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .. import scalar as sc
from ..caps import WasmCaps
from ..coalesce import coalesce
from ..dims import Dim, ceildiv, product
from ..scalar import Op, Scalar, Type, coefficient
from ..spec import Reduce, ReduceOp, Storage
from .asm import I32, V128, Function, IntLike, Local, Module, affine, imin
from .kernel import WasmKernel
from .loops import Frame, entry, fold_lanes, inner, nested, pieces, remainder, walk
from .scalar import Lanes


@dataclass(frozen=True, slots=True)
class Knobs:
    """Lanes along `vector`, an axis of the coalesced spec (-1: none), `unroll` vectors of them."""

    vector: int = -1
    unroll: int = 1


_ARG = {ReduceOp.ARGMIN, ReduceOp.ARGMAX, ReduceOp.ARGMIN_LAST, ReduceOp.ARGMAX_LAST}
_LOW = {ReduceOp.MIN, ReduceOp.ARGMIN, ReduceOp.ARGMIN_LAST}


def space(spec: Reduce, caps: WasmCaps) -> list[Knobs]:
    """Output axes along which loads are contiguous first, then the innermost reduced axis."""
    spec = _normal(spec)
    sizes, rank = (*spec.shape, *spec.reduce), len(spec.shape)
    loads = [n for n in sc.walk([spec.value]) if n.op is Op.LOAD]

    def contiguous(axis: int) -> bool:
        return any(_is_one(coefficient(n.args[0], axis)) for n in loads)

    def long(axis: int) -> bool:
        size = sizes[axis]
        return not isinstance(size, int) or size >= 4

    axes = [a for a in reversed(range(rank)) if long(a) and contiguous(a)]
    last = len(sizes) - 1
    if spec.op not in _ARG and last >= rank and long(last) and contiguous(last):
        axes.append(last)
    stores = [a for a in range(rank) if long(a) and _is_one(coefficient(spec.index, a))]
    axes += [a for a in stores if a not in axes]
    found: dict[Knobs, None] = {}
    for axis in axes[:3]:
        for unroll in (4, 2, 1):  # enough running results to hide an addition's latency
            size = sizes[axis]
            if not isinstance(size, int) or size >= 4 * unroll:
                found[Knobs(axis, unroll)] = None
    if not axes:
        found[Knobs()] = None
    return list(found)


def emit(module: Module, spec: Reduce, knobs: Knobs) -> WasmKernel:
    """See `Knobs`."""
    if Storage.F16 in (*spec.operands, spec.output):
        raise ValueError("f16 storage is not available in WebAssembly")
    spec = _normal(spec)
    rank = len(spec.shape)
    across = 0 <= knobs.vector < rank
    split = knobs.vector if across else rank - 1
    outer = [a for a in range(rank) if a != split]
    step = pieces(spec.shape[split], product(spec.reduce), 4 * knobs.unroll)

    part = inner(module, spec, len(outer) + 2)
    coordinates: dict[int, IntLike] = dict(zip(outer, part.own, strict=False))
    start, end = part.own[-2:]
    if across:
        _across(part, spec, knobs, coordinates, start, end)
    else:
        _along(part, spec, knobs, coordinates, start, end)

    main = entry(module, spec)
    f = main.f
    held = f.hold(main.size(spec.shape[split]))

    def piece(at: Sequence[IntLike]) -> None:
        first = f.hold(affine(at[-1]) * step)
        main.call(part, *at[:-1], first, imin(f.hold(affine(first) + step), held))

    counts = [main.size(spec.shape[a]) for a in outer]
    walk(main, [*counts, main.size(ceildiv(spec.shape[split], step))], piece)
    return WasmKernel(main.f.index)


def _normal(spec: Reduce) -> Reduce:
    """Coalesced, with at least one output axis and one reduced axis."""
    spec = coalesce(spec)
    rank = len(spec.shape)
    if rank and spec.reduce:
        return spec
    up = 0 if rank else 1  # a new output axis moves the reduced axes up by one

    def leaf(node: Scalar) -> Scalar | None:
        return sc.axis(int(node.value or 0) + up) if node.op is Op.AXIS else None

    return Reduce(
        spec.shape or (1,), spec.reduce or (1,), spec.op, sc.transform(spec.value, leaf),
        spec.final, spec.index, spec.operands, spec.output, spec.n_args,
    )  # fmt: skip


def _is_one(c: Scalar | None) -> bool:
    return c is not None and c.op is Op.CONST and c.value == 1


# --- accumulation -------------------------------------------------------------------------------


class _Accumulator:
    """One vector of running results."""

    def __init__(self, f: Function, spec: Reduce) -> None:
        self.f, self.op = f, spec.op
        self.float = spec.value.type is Type.F32
        self.best = f.local(V128)
        self.where = f.local(V128) if spec.op in _ARG else None
        # min and max that keep a NaN take eight instructions on x86. The ones that may lose it
        # take one, so NaNs are collected on the side, as lane masks (all ones is a NaN).
        aside = self.float and spec.op in (ReduceOp.MIN, ReduceOp.MAX)
        self.nan = f.local(V128) if aside else None

    def finish(self) -> Local:
        """The result, when all has been taken in."""
        if self.nan is not None:
            self.f.get(self.best, self.nan)
            self.f.v128_or()
            self.f.set(self.best)
        return self.where or self.best

    def begin(self) -> None:
        f = self.f
        value = {ReduceOp.SUM: 0.0, ReduceOp.PROD: 1.0}.get(self.op)
        if value is None:
            value = math.inf if self.op in _LOW else -math.inf
        if self.float:
            f.f32x4_const(value)
        else:
            f.i32x4_const(int(max(-(2.0**31), min(2.0**31 - 1, value))))
        f.set(self.best)
        for extra in (self.where, self.nan):
            if extra is not None:
                f.zero(extra)

    def add(self, number: Local | None) -> None:
        """Take in the vector on the stack; `number` is its place in the reduced space."""
        f = self.f
        if self.nan is not None:
            x = f.local(V128)
            f.set(x)
            f.get(self.best, x)
            (f.f32x4_pmin if self.op is ReduceOp.MIN else f.f32x4_pmax)()
            f.set(self.best)
            f.get(x, x)
            f.f32x4_ne()
            f.get(self.nan)
            f.v128_or()
            f.set(self.nan)
            f.free_local(x)
            return
        if self.where is None:
            f.get(self.best)
            combine(self.op, self.float)(f)
            f.set(self.best)
            return
        assert number is not None
        x, better = f.local(V128), f.local(V128)
        f.set(x)
        self._better(x)
        f.set(better)
        f.get(x, self.best, better)
        f.v128_bitselect()
        f.set(self.best)
        f.push(number)
        f.i32x4_splat()
        f.get(self.where, better)
        f.v128_bitselect()
        f.set(self.where)
        f.free_local(x, better)

    def _better(self, x: Local) -> None:
        """Mask of lanes where x takes over. The first NaN wins and stays, as in NumPy."""
        f, best = self.f, self.best
        low = self.op in _LOW
        last = self.op in (ReduceOp.ARGMIN_LAST, ReduceOp.ARGMAX_LAST)
        if low:
            f.get(x, best)
        else:
            f.get(best, x)
        if not self.float:
            (f.i32x4_le_s if last else f.i32x4_lt_s)()
            return
        (f.f32x4_le if last else f.f32x4_lt)()
        f.get(x, x)
        f.f32x4_ne()
        f.v128_or()
        if not last:
            f.get(best, best)
            f.f32x4_eq()
            f.v128_and()


def combine(op: ReduceOp, is_float: bool) -> Callable[[Function], None]:
    """The instruction that joins two vectors of partial results."""
    table: dict[ReduceOp, tuple[Callable[[Function], None], Callable[[Function], None]]] = {
        ReduceOp.SUM: (Function.f32x4_add, Function.i32x4_add),
        ReduceOp.PROD: (Function.f32x4_mul, Function.i32x4_mul),
        ReduceOp.MIN: (Function.f32x4_min, Function.i32x4_min_s),
        ReduceOp.MAX: (Function.f32x4_max, Function.i32x4_max_s),
    }
    return table[op][0 if is_float else 1]


def _reduced(spec: Reduce) -> list[tuple[int, Dim]]:
    rank = len(spec.shape)
    return [(rank + i, size) for i, size in enumerate(spec.reduce)]


def _lanes(part: Frame, spec: Reduce, vector: int | None) -> Lanes:
    rank = len(spec.shape) + len(spec.reduce)
    return part.lanes(spec, rank=rank, vector=vector, values=[spec.value])


def _final(part: Frame, spec: Reduce, vector: int | None) -> Lanes:
    return part.lanes(
        spec,
        rank=len(spec.shape),
        vector=vector,
        values=[spec.final],
        stores=[(part.output, spec.index)],
    )


# --- lanes along an output axis -----------------------------------------------------------------


def _across(
    part: Frame,
    spec: Reduce,
    knobs: Knobs,
    coordinates: dict[int, IntLike],
    start: Local,
    end: Local,
) -> None:
    f, axis = part.f, knobs.vector
    size = spec.shape[axis]
    v = f.local(I32)
    f.assign(v, start)

    def results(vectors: int, vector: int | None) -> None:
        lanes, final = _lanes(part, spec, vector), _final(part, spec, vector)
        with lanes.level(coordinates), final.level(coordinates):
            width = 4 * vectors if vector is not None else 1
            with f.loop_range(v, None, affine(end) - (width - 1), width):
                at: list[dict[int, IntLike]] = [{axis: v + 4 * k} for k in range(vectors)]
                sums = _reduce(part, spec, lanes, at)
                for each, acc in zip(at, sums, strict=True):
                    with final.level(each, acc=acc.finish()):
                        final.store(0, spec.final)

    if knobs.unroll > 1:
        results(knobs.unroll, axis)
    if knobs.unroll == 1 or remainder(size, 4 * knobs.unroll) >= 4:
        results(1, axis)
    if remainder(size, 4):
        results(1, None)


def _reduce(
    part: Frame, spec: Reduce, lanes: Lanes, at: Sequence[dict[int, IntLike]]
) -> list[_Accumulator]:
    """Reduce `value` for each of several bindings of the output axes."""
    f = part.f
    sums = [_Accumulator(f, spec) for _ in at]
    for acc in sums:
        acc.begin()
    number = f.local(I32) if spec.op in _ARG else None
    if number is not None:
        f.assign(number, 0)
    with nested(part, _reduced(spec), lanes):
        for each, acc in zip(at, sums, strict=True):
            with lanes.level(each):
                lanes.push(spec.value)
                acc.add(number)
        if number is not None:
            f.assign(number, number + 1)
    return sums


# --- lanes along the innermost reduced axis, or none ---------------------------------------------


def _along(
    part: Frame,
    spec: Reduce,
    knobs: Knobs,
    coordinates: dict[int, IntLike],
    start: Local,
    end: Local,
) -> None:
    f, split = part.f, len(spec.shape) - 1
    final = _final(part, spec, None)
    vector = knobs.vector if knobs.vector >= 0 else None
    lanes, tail = _lanes(part, spec, vector), _lanes(part, spec, None)
    u = f.local(I32)
    with (
        lanes.level(coordinates),
        final.level(coordinates),
        f.loop_range(u, start, end),
        lanes.level({split: u}),
    ):
        if vector is None:
            acc = _reduce(part, spec, lanes, [{}])[0]
        else:
            acc = _horizontal(part, spec, knobs, lanes, tail, {**coordinates, split: u})
        with final.level({split: u}, acc=acc.finish()):
            final.store(0, spec.final)


def _horizontal(
    part: Frame,
    spec: Reduce,
    knobs: Knobs,
    lanes: Lanes,
    tail: Lanes,
    coordinates: dict[int, IntLike],
) -> _Accumulator:
    f = part.f
    *others, (axis, size) = _reduced(spec)
    join = combine(spec.op, spec.value.type is Type.F32)
    sums = [_Accumulator(f, spec) for _ in range(knobs.unroll)]
    single = _Accumulator(f, spec)  # elements that do not fill a vector, in lane 0
    for acc in (*sums, single):
        acc.begin()
    end = f.hold(part.size(size))
    wide = 4 * knobs.unroll
    r = f.local(I32)
    with nested(part, others, lanes) as at:
        f.assign(r, 0)
        with f.loop_range(r, None, affine(end) - (wide - 1), wide):
            for k, acc in enumerate(sums):
                with lanes.level({axis: r + 4 * k}):
                    lanes.push(spec.value)
                    acc.add(None)
        if wide > 4 and remainder(size, wide) >= 4:
            with f.loop_range(r, None, affine(end) - 3, 4), lanes.level({axis: r}):
                lanes.push(spec.value)
                sums[0].add(None)
        if remainder(size, 4):
            with f.loop_range(r, None, end), tail.level({**coordinates, **at, axis: r}):
                tail.push(spec.value)
                single.add(None)
    first, *more = [acc.finish() for acc in sums]
    for other in more:
        f.get(first, other)
        join(f)
        f.set(first)
    fold_lanes(f, first, join)
    f.get(first, single.finish())
    join(f)
    f.set(first)
    return sums[0]
