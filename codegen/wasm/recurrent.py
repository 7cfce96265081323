"""Recurrent layers: all steps of a sequence in one call, its state in the core's nearest cache.

Threads divide the sequences and directions. A step is one call of an inner function, which takes
the units in tiles of eight: a tile's sums for all gates lie in registers while the weights, packed
in that order, stream past; then its gates are finished, four units at a time.

Lanes past the last unit hold whatever lies there; they are never read as h, and never stored to
the output.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..caps import WasmCaps
from ..dims import Dim
from ..spec import PANEL, Cell, Recurrent, View
from .asm import I32, V128, Function, IntLike, Local, Module, affine, imax, imin
from .kernel import WasmKernel
from .loops import Frame, entry, inner
from .partition import shares
from .product import check_storage, offset_of
from .scalar import Lanes

TILE = PANEL * 4
"""Bytes of a tile's units in a vector."""

Sums = dict[tuple[int, int], Local]
"""Accumulators by gate and half of the tile."""


@dataclass(frozen=True, slots=True)
class Knobs:
    """Terms of the sums per turn of the loop."""

    unroll: int = 4


def space(spec: Recurrent, caps: WasmCaps) -> list[Knobs]:
    return [Knobs(n) for n in (4, 2, 8, 1) if n <= max(spec.hidden, 1)]


def emit(module: Module, spec: Recurrent, knobs: Knobs) -> WasmKernel:
    check_storage(spec)
    return _Emitter(module, spec, knobs).kernel()


@dataclass(frozen=True, slots=True)
class _Step:
    """What a step is called with: addresses."""

    x: Local
    weights: Local
    h: Local
    following: Local  # h of the next step
    kept: Local  # c of an LSTM, z of a GRU
    product: Local  # r * h of a GRU
    bias: Local
    holes: Local


class _Emitter:
    def __init__(self, module: Module, spec: Recurrent, knobs: Knobs) -> None:
        self.module, self.spec, self.knobs = module, spec, knobs
        self.gates, self.hidden = spec.cell.gates, spec.hidden
        self.tiles = -(-spec.hidden // PANEL)
        self.vector = (self.tiles * TILE + 63) // 64 * 64 + 64

    # -- one step ---------------------------------------------------------------------------------

    def _step(self, direction: int) -> Frame:
        spec = self.spec
        frame = inner(self.module, spec, 8, f"step_{direction}")
        f, step = frame.f, _Step(*frame.own)
        functions = spec.activations[direction]
        lanes = Lanes(f, [], [], rank=1, vector=0, values=functions)
        phases = [(0, 1), (2,)] if spec.cell is Cell.GRU else [tuple(range(self.gates))]
        with lanes.level():
            for phase, gates in enumerate(phases):
                source = step.product if phase else step.h
                tile, w = f.local(I32), f.value(step.weights)
                with f.loop_range(tile, 0, self.tiles * TILE, TILE), f.scope():
                    sums = self._sums(f, gates, source, w)
                    for half in (0, 1):
                        at = f.value(tile + 16 * half)
                        _Gates(self, f, step, lanes, direction, sums, half, at).finish(phase)
                    f.assign(w, w + self.hidden * self.gates * TILE)
        return frame

    def _sums(self, f: Function, gates: Iterable[int], source: Local, w: Local) -> Sums:
        """The products of a tile's units with the vector at `source`."""
        sums = {(g, half): f.local(V128) for g in gates for half in (0, 1)}
        for acc in sums.values():
            f.zero(acc)
        h, at, v, k = f.value(source), f.value(w), f.local(V128), f.local(I32)
        row = self.gates * TILE

        def term(i: int) -> None:
            f.v128_load32_splat(4 * i, addr=h)
            f.set(v)
            for (g, half), acc in sums.items():
                f.get(v)
                f.v128_load(i * row + g * TILE + 16 * half, addr=at)
                f.madd(acc)

        unroll = self.knobs.unroll
        with f.loop_range(k, 0, self.hidden // unroll * unroll, unroll):
            for i in range(unroll):
                term(i)
            f.assign(h, h + 4 * unroll)
            f.assign(at, at + row * unroll)
        for i in range(self.hidden % unroll):
            term(i)
        return sums

    # -- all steps --------------------------------------------------------------------------------

    def kernel(self) -> WasmKernel:
        spec = self.spec
        alike = len(set(spec.activations)) == 1
        steps = [self._step(d) for d in range(1 if alike else spec.directions)]
        main = entry(self.module, spec)
        f = main.f
        count = {Cell.LSTM: 3, Cell.GRU: 4}.get(spec.cell, 2)
        base = f.value(affine(main.scratch) + main.thread * (count * self.vector))
        h, following, spare = f.locals(I32, 3)
        kept, product = base + 2 * self.vector, base + 3 * self.vector
        batch = f.hold(main.size(spec.batch))
        length_all = f.hold(main.size(spec.steps))
        total = f.hold(affine(batch) * spec.directions)
        with (
            shares(f, main.thread, main.threads, total) as (number, end),
            f.loop_range(number, None, end),
            f.scope(),
        ):
            d = f.value(number // batch) if spec.directions > 1 else 0
            b = f.value(number - affine(batch) * d)
            f.assign(h, base)
            f.assign(following, base + self.vector)
            starts = [*spec.initial, *[None] * (2 - len(spec.initial))]
            targets = [h, kept] if spec.cell is Cell.LSTM else [h]
            for i, (view, to) in enumerate(zip(starts, targets, strict=False)):
                self._start(main, view, 2 + i, d, b, f.value(affine(to)))
            length = self._length(main, b, length_all)
            backward = self._backward(d)
            s = f.local(I32)
            row = affine(number) * (self.hidden * 4) + main.output
            block = f.hold(affine(batch) * (spec.directions * self.hidden * 4))
            weights = f.value(
                affine(d) * (self.tiles * self.hidden * self.gates * TILE) + main.operands[1]
            )
            bias = self._own(main, "bias", affine(d) * (self.hidden * 4))
            holes = self._own(main, "peephole", affine(d) * (3 * self.hidden * 4))
            with f.loop_range(s, 0, length), f.scope():
                t = f.value(s)
                if backward != 0:
                    f.push(affine(length) - 1 - s, t, backward)
                    f.select()
                    f.set(t)
                x = f.value(offset_of(main.operands[0], spec.x, [t, b, d, 0], main.args))
                own = [x, weights, h, following, kept, product, bias, holes]
                self._call(main, steps, d, own)
                f.assign(spare, h)
                f.assign(h, following)
                f.assign(following, spare)
                self._copy(f, h, f.value(affine(t) * block + row))
            t = f.local(I32)
            with f.loop_range(t, length, length_all), f.scope():
                self._copy(f, None, f.value(affine(t) * block + row))
            self._copy(f, h, f.value(affine(length_all) * block + row))
            if spec.cell is Cell.LSTM:
                self._copy(f, f.value(kept), f.value((affine(length_all) + 1) * block + row))
        return WasmKernel(f.index, count * self.vector)

    def _call(self, main: Frame, steps: list[Frame], d: IntLike, own: list[IntLike]) -> None:
        if len(steps) == 1:
            main.call(steps[0], *own)
            return
        f = main.f
        f.push(d)
        with f.if_():
            main.call(steps[1], *own)
            f.else_()
            main.call(steps[0], *own)

    def _backward(self, d: IntLike) -> IntLike:
        """1 where direction `d` runs from the end."""
        reverse = self.spec.reverse
        if len(set(reverse)) == 1:
            return int(reverse[0])
        return d if reverse[1] else 1 - affine(d)

    def _own(self, main: Frame, name: str, offset: IntLike) -> IntLike:
        number = self.spec.operand(name)
        return 0 if number is None else main.f.value(affine(offset) + main.operands[number])

    def _length(self, main: Frame, b: IntLike, most: IntLike) -> IntLike:
        number = self.spec.operand("lengths")
        if number is None:
            return most
        found = main.f.local(I32)
        main.f.i32_load(addr=affine(b) * 4 + main.operands[number])
        main.f.set(found)
        return main.f.hold(imax(imin(found, most), 0))

    def _start(
        self, main: Frame, view: View | None, operand: int, d: IntLike, b: IntLike, to: Local
    ) -> None:
        """The state before the first step, in scratch."""
        f = main.f
        if view is None:
            self._copy(f, None, to)
            return
        step: Dim = view.strides[2]
        at = f.value(offset_of(main.operands[operand], view, [d, b, 0], main.args))
        along = f.hold(affine(main.size(step)) * 4)
        j = f.local(I32)
        with f.loop_range(j, 0, self.hidden * 4, 4):
            f.push(to + j)
            f.i32_load(addr=at)
            f.i32_store()
            f.assign(at, at + along)

    def _copy(self, f: Function, source: Local | None, to: Local) -> None:
        """As many elements as there are units; zeros without a source."""
        j, x = f.local(I32), f.local(V128)
        if source is None:
            f.zero(x)
        with f.loop_range(j, 0, self.hidden // 4 * 16, 16):
            f.push(to + j)
            if source is None:
                f.get(x)
            else:
                f.v128_load(addr=source + j)
            f.v128_store()
        for i in range(self.hidden // 4 * 16, self.hidden * 4, 4):
            f.push(to)
            if source is None:
                f.push(0)
            else:
                f.i32_load(i, addr=source)
            f.i32_store(i)


class _Gates:
    """Finishes four units of a tile: `at` is their place in a vector, in bytes."""

    def __init__(
        self, emitter: _Emitter, f: Function, step: _Step, lanes: Lanes, direction: int,
        sums: Sums, half: int, at: Local,
    ) -> None:  # fmt: skip
        self.f, self.step, self.lanes, self.sums, self.half = f, step, lanes, sums, half
        self.spec, self.hidden = emitter.spec, emitter.hidden
        self.functions, self.at = emitter.spec.activations[direction], at

    def finish(self, phase: int) -> None:
        cell = self.spec.cell
        if cell is Cell.LSTM:
            self._lstm()
        elif cell is Cell.RNN:
            self._input(0)
            self._keep(self._act(0), self.step.following)
        elif cell is Cell.GRU_RESET:
            self._gru_reset()
        elif phase == 0:
            self._input(0)
            self._keep(self._act(0), self.step.kept)
            self._input(1)
            r = self._act(0)
            self.f.get(r)
            self._load(self.step.h)
            self.f.f32x4_mul()
            self._keep(self._pop(), self.step.product)
        else:
            z = self._loaded(self.step.kept)
            self._input(2)
            self._blend(z, self._act(1))

    def _lstm(self) -> None:
        f, step = self.f, self.step
        c = self._loaded(step.kept)
        self._input(0)
        self._peep(0, c)
        i = self._act(0)
        if self.spec.coupled:
            f.f32x4_const(1.0)
            f.get(i)
            f.f32x4_sub()
            forget = self._pop()
        else:
            self._input(2)
            self._peep(2, c)
            forget = self._act(0)
        self._input(3)
        g = self._act(1)
        f.get(forget, c)
        f.f32x4_mul()
        f.get(i, g)
        f.f32x4_mul()
        f.f32x4_add()
        f.set(c)
        self._keep(c, step.kept)
        self._input(1)
        self._peep(1, c)
        o = self._act(0)
        f.get(c)
        f.get(o, self._act(2))
        f.f32x4_mul()
        self._keep(self._pop(), step.following)

    def _gru_reset(self) -> None:
        f = self.f
        self._input(0)
        z = self._act(0)
        self._input(1)
        r = self._act(0)
        f.v128_load(2 * self.hidden * 4, addr=self.step.x + self.at)
        f.get(self.sums[2, self.half])
        self._load(self.step.bias)
        f.f32x4_add()
        f.get(r)
        f.f32x4_mul()
        f.f32x4_add()
        self._blend(z, self._act(1))

    def _blend(self, z: Local, fresh: Local) -> None:
        """The next h = (1 - z) * fresh + z * h."""
        f = self.f
        f.f32x4_const(1.0)
        f.get(z)
        f.f32x4_sub()
        f.get(fresh)
        f.f32x4_mul()
        f.get(z)
        self._load(self.step.h)
        f.f32x4_mul()
        f.f32x4_add()
        self._keep(self._pop(), self.step.following)

    def _input(self, gate: int) -> None:
        """Push what goes into a gate: x and the sum over h."""
        self.f.v128_load(gate * self.hidden * 4, addr=self.step.x + self.at)
        self.f.get(self.sums[gate, self.half])
        self.f.f32x4_add()

    def _peep(self, number: int, c: Local) -> None:
        if self.spec.peephole:
            self.f.v128_load(number * self.hidden * 4, addr=self.step.holes + self.at)
            self.f.get(c)
            self.f.f32x4_mul()
            self.f.f32x4_add()

    def _act(self, number: int) -> Local:
        """An activation of what lies on the stack."""
        x = self._pop()
        with self.lanes.level({0: 0}, acc=x):
            self.lanes.push(self.functions[number])
        return self._pop()

    def _pop(self) -> Local:
        local = self.f.local(V128)
        self.f.set(local)
        return local

    def _load(self, vector: Local) -> None:
        self.f.v128_load(addr=vector + self.at)

    def _loaded(self, vector: Local) -> Local:
        self._load(vector)
        return self._pop()

    def _keep(self, value: Local, vector: Local) -> None:
        self.f.store(vector + self.at, value)
