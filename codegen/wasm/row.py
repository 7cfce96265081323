"""Softmax and normalisations: each row is read two or three times and written once.

Lanes go along the innermost row axis, or, where rows are strided and an outer axis is contiguous
(instance normalisation with channels last), across four rows at a time. With `keep`, what the
first pass has computed stays in scratch memory, so that a costly `value`, and the exponentials of
a softmax, are computed once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .. import scalar as sc
from ..caps import WasmCaps
from ..coalesce import coalesce
from ..dims import Dim, align, ceildiv, product
from ..scalar import Op, Scalar, Type, coefficient
from ..spec import Row, RowOp, Storage
from .asm import I32, V128, Function, IntLike, Local, Module, affine, imin
from .kernel import WasmKernel
from .loops import (
    Frame,
    entry,
    fold_lanes,
    inner,
    nested,
    pieces,
    remainder,
    spread_lane,
    walk,
)
from .math import exp_of_negative
from .scalar import Lanes


@dataclass(frozen=True, slots=True)
class Knobs:
    """Lanes along `vector`, an axis of the coalesced spec (-1: none)."""

    vector: int = -1
    unroll: int = 1
    """Vectors per step, each with a running sum of its own. 1 when lanes go across rows."""
    keep: bool = False


_SOFT = {RowOp.SOFTMAX, RowOp.LOG_SOFTMAX}


def space(spec: Row, caps: WasmCaps) -> list[Knobs]:
    """Lanes where loads are contiguous, values kept when they cost more than a load."""
    spec = _normal(spec)
    sizes, rank = (*spec.shape, *spec.row), len(spec.shape)
    loads = [n for n in sc.walk([spec.value]) if n.op is Op.LOAD]
    last = len(sizes) - 1

    def usable(axis: int) -> bool:
        size = sizes[axis]
        return (not isinstance(size, int) or size >= 4) and (
            axis == last or any(_is_one(coefficient(n.args[0], axis)) for n in loads)
        )

    along = any(_is_one(coefficient(n.args[0], last)) for n in loads)
    outer = [a for a in reversed(range(rank)) if usable(a)]
    axes = [last, *outer] if along else [*outer, last]
    keep = spec.value.op is not Op.LOAD or spec.op in _SOFT
    found: dict[Knobs, None] = {}
    for axis in [a for a in axes if usable(a)][:2]:
        size = sizes[axis]
        steps = (4, 2, 1) if isinstance(size, int) and size >= 256 else (2, 4, 1)
        for unroll in steps if axis == last else (1,):
            if not isinstance(size, int) or size >= 4 * unroll:
                found[Knobs(axis, unroll, keep)] = None
                found[Knobs(axis, unroll, not keep)] = None
    if not found:
        found[Knobs(-1, 1, keep)] = None
    return list(found)


def emit(module: Module, spec: Row, knobs: Knobs) -> WasmKernel:
    """See `Knobs`."""
    if Storage.F16 in (*spec.operands, spec.output):
        raise ValueError("f16 storage is not available in WebAssembly")
    spec = _normal(spec)
    rank = len(spec.shape)
    across = 0 <= knobs.vector < rank
    split = knobs.vector if across else rank - 1
    outer = [a for a in range(rank) if a != split]
    step = pieces(spec.shape[split], product(spec.row), 4)

    part = inner(module, spec, len(outer) + 2)
    f = part.f
    coordinates: dict[int, IntLike] = dict(zip(outer, part.own, strict=False))
    start, end = part.own[-2:]
    u = f.local(I32)
    f.assign(u, start)
    if across:
        with f.loop_range(u, None, end - 3, 4), f.scope():
            _Rows(part, spec, knobs, {**coordinates, split: u}, split).emit()
    if not across or remainder(spec.shape[split], 4):
        along = None if across or knobs.vector < 0 else knobs.vector
        with f.loop_range(u, None, end), f.scope():
            _Rows(part, spec, knobs, {**coordinates, split: u}, along).emit()

    scratch: Dim = 0
    if knobs.keep:
        scratch = align(product(spec.row) * (16 if across else 4), 64) + 64
    main = entry(module, spec)
    f = main.f
    f.assign(main.scratch, main.scratch + main.thread * main.size(scratch))
    held = f.hold(main.size(spec.shape[split]))

    def piece(at: Sequence[IntLike]) -> None:
        first = f.hold(affine(at[-1]) * step)
        main.call(part, *at[:-1], first, imin(f.hold(affine(first) + step), held))

    counts = [main.size(spec.shape[a]) for a in outer]
    walk(main, [*counts, main.size(ceildiv(spec.shape[split], step))], piece)
    return WasmKernel(main.f.index, scratch)


def _normal(spec: Row) -> Row:
    """Coalesced, with at least one outer axis and one row axis."""
    spec = coalesce(spec)
    rank = len(spec.shape)
    if rank and spec.row:
        return spec
    up = 0 if rank else 1

    def leaf(node: Scalar) -> Scalar | None:
        return sc.axis(int(node.value or 0) + up) if node.op is Op.AXIS else None

    return Row(
        spec.shape or (1,), spec.row or (1,), spec.op, spec.eps, sc.transform(spec.value, leaf),
        sc.transform(spec.final, leaf), sc.transform(spec.index, leaf), spec.operands,
        spec.output, spec.n_args,
    )  # fmt: skip


def _is_one(c: Scalar | None) -> bool:
    return c is not None and c.op is Op.CONST and c.value == 1


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a pass over the row is: a vector of elements, or a single one in lane 0."""

    number: int
    """Of the running result to use."""
    single: bool
    vector: int | None
    axes: dict[int, IntLike]
    kept: Local
    offset: int
    """The place in scratch memory: kept + offset."""


class _Rows:
    """The passes over one row, or over four rows side by side."""

    def __init__(
        self,
        part: Frame,
        spec: Row,
        knobs: Knobs,
        coordinates: dict[int, IntLike],
        vector: int | None,
    ) -> None:
        self.part, self.f, self.spec, self.knobs = part, part.f, spec, knobs
        self.coordinates, self.vector = coordinates, vector
        rank = len(spec.shape)
        self.row = [(rank + i, size) for i, size in enumerate(spec.row)]
        self.along = vector is not None and vector >= rank
        self.across = vector is not None and not self.along
        self.unroll = knobs.unroll if self.along else 1

    # -- the algorithms ---------------------------------------------------------------------------

    def emit(self) -> None:
        if self.spec.op in _SOFT:
            self._softmax()
        else:
            self._normalise()

    def _softmax(self) -> None:
        f, log = self.f, self.spec.op is RowOp.LOG_SOFTMAX
        value = [self.spec.value]
        # The one-instruction maximum may lose a NaN; the sum of exponentials brings it back.
        top = self._fold(value, self._value, Function.f32x4_pmax, -math.inf, keep=True)

        x = f.local(V128)

        def shifted(lanes: Lanes) -> None:
            self._again(lanes)
            f.get(top)
            f.f32x4_sub()

        def power(lanes: Lanes) -> None:
            shifted(lanes)
            f.set(x)
            with lanes.level(acc=x):
                lanes.push(_EXP)

        total = self._fold([*value, _EXP], power, Function.f32x4_add, 0.0, keep=not log)
        if log:
            # v - (top + log(total)), in the order that keeps the small differences.
            with (whole := self.part.lanes(self.spec, rank=0, values=[_LOG])).level(acc=total):
                whole.push(_LOG)
            f.set(total)

            def result(lanes: Lanes) -> None:
                shifted(lanes)
                f.get(total)
                f.f32x4_sub()

            self._store(value, result)
            return
        f.f32x4_const(1.0)
        f.get(total)
        f.f32x4_div()
        f.set(total)

        def share(lanes: Lanes) -> None:
            if self.knobs.keep:
                self._again(lanes)
            else:
                power(lanes)
            f.get(total)
            f.f32x4_mul()

        self._store([*value, _EXP], share)

    def _normalise(self) -> None:
        f, layer = self.f, self.spec.op is RowOp.LAYER
        value = [self.spec.value]
        count: IntLike = 1
        for _, size in self.row:
            count = f.hold(affine(count) * self.part.size(size))
        mean, x = f.locals(V128, 2)
        if layer:
            mean = self._fold(value, self._value, Function.f32x4_add, 0.0, keep=True)
            self._divide(mean, count)

        def square(lanes: Lanes) -> None:
            if layer:
                self._again(lanes)
                f.get(mean)
                f.f32x4_sub()
            else:
                self._value(lanes)
            f.tee(x)
            f.get(x)
            f.f32x4_mul()

        scale = self._fold(value, square, Function.f32x4_add, 0.0, keep=False, keep_x=x)
        self._divide(scale, count)
        f.f32x4_const(1.0)
        f.get(scale)
        f.f32x4_const(self.spec.eps)
        f.f32x4_add()
        f.f32x4_sqrt()
        f.f32x4_div()
        f.set(scale)

        def result(lanes: Lanes) -> None:
            self._again(lanes)
            if layer and not self.knobs.keep:
                f.get(mean)
                f.f32x4_sub()
            f.get(scale)
            f.f32x4_mul()

        self._store(value, result)

    def _divide(self, total: Local, count: IntLike) -> None:
        f = self.f
        f.get(total)
        f.push(count)
        f.i32x4_splat()
        f.f32x4_convert_i32x4_s()
        f.f32x4_div()
        f.set(total)

    # -- passes -----------------------------------------------------------------------------------

    def _value(self, lanes: Lanes) -> None:
        lanes.push(self.spec.value)

    def _again(self, lanes: Lanes) -> None:
        """Push what the last pass has kept, or compute the value again."""
        if not self.knobs.keep:
            lanes.push(self.spec.value)
            return
        place = self._place
        if place.single and not self.across:
            self.f.v128_load32_zero(place.offset, addr=place.kept)
        else:
            self.f.v128_load(place.offset, addr=place.kept)

    def _fold(
        self,
        values: list[Scalar],
        push: Callable[[Lanes], None],
        join: Callable[[Function], None],
        identity: float,
        keep: bool,
        keep_x: Local | None = None,
    ) -> Local:
        """Combine what `push` gives over the row; all lanes of the result alike unless they are
        rows of their own. The pushed vector, or `keep_x`, is kept for the next pass."""
        f = self.f
        running = f.locals(V128, self.unroll + 1)
        for local in running:
            f.f32x4_const(identity)
            f.set(local)
        y = f.local(V128)

        def step(lanes: Lanes) -> None:
            place = self._place
            push(lanes)
            if (keep or keep_x is not None) and self.knobs.keep:
                f.set(y)
                self._keep(keep_x or y)
                f.get(y)
            acc = running[-1 if place.single else place.number]
            f.get(acc)
            join(f)
            f.set(acc)

        self._pass(values, [], step)
        result = running[0]
        if self.along:
            for other in running[1 : self.unroll]:
                f.get(result, other)
                join(f)
                f.set(result)
            fold_lanes(f, result, join)
        if self.along or self.vector is None:
            # Single elements were gathered in lane 0 of the last one.
            f.get(result, running[-1])
            join(f)
            f.set(result)
            spread_lane(f, result)
        return result

    def _keep(self, value: Local) -> None:
        place = self._place
        self.f.push(place.kept)
        self.f.get(value)
        if place.single and not self.across:
            self.f.v128_store32_lane(0, place.offset)
        else:
            self.f.v128_store(place.offset)

    def _store(self, values: list[Scalar], push: Callable[[Lanes], None]) -> None:
        """The last pass: out[index] = final(what `push` gives)."""
        f, spec = self.f, self.spec
        y = f.local(V128)

        def step(lanes: Lanes) -> None:
            push(lanes)
            f.set(y)
            with lanes.level(acc=y):
                lanes.store(0, spec.final)

        self._pass([*values, spec.final], [(self.part.output, spec.index)], step)

    def _pass(
        self,
        values: list[Scalar],
        stores: list[tuple[Local, Scalar]],
        step: Callable[[Lanes], None],
    ) -> None:
        """Call `step` for all elements of the row, in vectors where there are enough."""
        f, part, spec = self.f, self.part, self.spec
        rank = len(spec.shape) + len(spec.row)

        def lanes_along(vector: int | None) -> Lanes:
            return part.lanes(spec, rank=rank, vector=vector, values=values, stores=stores)

        lanes, tail = lanes_along(self.vector), lanes_along(None)
        kept = f.local(I32)
        f.assign(kept, part.scratch)
        if not self.along:
            with lanes.level(self.coordinates), nested(part, self.row, lanes) as at:
                self._place = _Place(0, self.vector is None, self.vector, at, kept, 0)
                step(lanes)
                f.assign(kept, kept + (16 if self.across else 4))
            return
        *others, (axis, size) = self.row
        end = f.hold(part.size(size))
        wide = 4 * self.unroll
        r = f.local(I32)
        with lanes.level(self.coordinates), nested(part, others, lanes) as at:
            f.assign(r, 0)
            with f.loop_range(r, None, affine(end) - (wide - 1), wide):
                for k in range(self.unroll):
                    self._place = _Place(k, False, self.vector, at, kept, 16 * k)
                    with lanes.level({axis: r + 4 * k}):
                        step(lanes)
                f.assign(kept, kept + 4 * wide)
            if wide > 4 and remainder(size, wide) >= 4:
                self._place = _Place(0, False, self.vector, at, kept, 0)
                with f.loop_range(r, None, affine(end) - 3, 4), lanes.level({axis: r}):
                    step(lanes)
                    f.assign(kept, kept + 16)
            if remainder(size, 4):
                self._place = _Place(0, True, None, at, kept, 0)
                whole = {**self.coordinates, **at, axis: r}
                with f.loop_range(r, None, end), tail.level(whole):
                    step(tail)
                    f.assign(kept, kept + 4)


_EXP = exp_of_negative(sc.acc(Type.F32))
_LOG = sc.unary(Op.LOG, sc.acc(Type.F32))
