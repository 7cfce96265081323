"""Attention with an online softmax: no matrix of all scores is ever held.

For each batch, head and block of query rows, keys and values pass in blocks. Of each block the
keys are transposed into panels, so that the scores are a product along vectors of positions; then
every row rescales what it has (Milakov and Gimelshein, "Online normalizer calculation for
softmax", 2018) and the values are added as a second product. Both products are the register tile
of `product`, over scratch that stays in the caches.

Rows past the end of a block's queries are computed from whatever lies there and never stored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .. import scalar as sc
from ..caps import WasmCaps
from ..scalar import Scalar
from ..spec import PANEL, Attention
from .asm import I32, V128, Function, IntLike, Local, Module, affine, imax, imin
from .kernel import WasmKernel
from .loops import Frame, entry, inner
from .math import exp_of_negative
from .partition import shares
from .product import (
    Core,
    Panels,
    Tile,
    check_storage,
    copy_plane,
    copy_rows,
    offset_of,
    pack_transposed,
)
from .scalar import Lanes

_EXP: Scalar = exp_of_negative(sc.acc())


@dataclass(frozen=True, slots=True)
class Knobs:
    """Blocks of q_block query rows and kv_block positions; tiles of `rows` x 8."""

    rows: int = 6
    q_block: int = 66
    kv_block: int = 128
    unroll: int = 4


def space(spec: Attention, caps: WasmCaps) -> list[Knobs]:
    found: dict[Knobs, None] = {}
    # Short blocks of queries skip more of the positions that a causal mask hides.
    first = (4, 32, 128, 4) if spec.causal else (6, 66, 128, 4)
    for rows, q_block, kv_block, unroll in (
        first,
        (4, 64, 128, 4),
        (4, 64, 64, 4),
        (4, 128, 64, 4),
        (4, 32, 128, 4),
        (4, 32, 64, 4),
        (6, 60, 64, 4),
        (6, 60, 128, 4),
        (4, 16, 256, 4),
        (5, 60, 64, 4),
        (8, 64, 64, 4),
        (8, 64, 128, 4),
        (6, 66, 128, 4),
    ):
        if Tile(rows, 1, unroll).registers > caps.simd_registers:
            continue
        # No block needs to be longer than what it cuts.
        if isinstance(spec.q_len, int):
            q_block = min(q_block, -(-max(spec.q_len, 1) // rows) * rows)
        if isinstance(spec.kv_len, int):
            kv_block = min(kv_block, -(-max(spec.kv_len, 1) // PANEL) * PANEL)
        found[Knobs(rows, q_block, kv_block, unroll)] = None
    return list(found)


def emit(module: Module, spec: Attention, knobs: Knobs) -> WasmKernel:
    check_storage(spec)
    return _Emitter(module, spec, knobs).kernel()


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


class _Emitter:
    def __init__(self, module: Module, spec: Attention, knobs: Knobs) -> None:
        self.module, self.spec, self.knobs = module, spec, knobs
        self.d, self.vd = spec.head_dim, spec.v_dim
        self.d4, self.vd8 = _up(self.d, 4), _up(self.vd, PANEL)
        q, kv = knobs.q_block, knobs.kv_block
        at = 0
        self.at: dict[str, int] = {}
        # Scaled queries, transposed keys, values, scores, results, and each row's maximum and sum.
        for name, floats in (
            ("q", q * self.d4),
            ("k", kv * self.d4),
            ("v", kv * self.vd8),
            ("s", q * kv),
            ("o", q * self.vd8),
            ("state", q * 8),
        ):
            self.at[name] = at
            at += _up(floats * 4 + 64, 64)
        self.bytes = at
        single = spec.q_len == 1
        several = [] if single else [Tile(knobs.rows, 1, knobs.unroll)]
        alone = [Tile(1, 1, knobs.unroll)] if single or not isinstance(spec.q_len, int) else []
        self.tiles = several + alone

    # -- the two products --------------------------------------------------------------------------

    def _scores(self, tile: Tile) -> Function:
        """(scratch, rows, positions): s = q k."""
        f = self.module.function(f"attention_scores_{tile.rows}", [I32] * 3)
        scratch, rows, positions = f.params
        kv = self.knobs.kv_block
        panels = Panels.rows(PANEL * 4, 1)
        j, r, a, b = f.locals(I32, 4)
        panel = f.value(scratch + self.at["k"])
        with f.loop_range(j, 0, positions, PANEL):
            with f.loop_range(r, 0, rows, tile.rows), f.scope():
                f.assign(a, scratch + r * (self.d4 * 4) + self.at["q"])
                f.assign(b, panel)
                at = [(a, i * self.d4 * 4) for i in range(tile.rows)]
                core = Core(f, tile, at, b, panels, False)
                core.clear()
                core.run(self.d)
                to = f.value(scratch + r * (kv * 4) + j * 4)
                self._keep(f, core, to, self.at["s"], kv * 4)
            f.assign(panel, panel + self.d4 * PANEL * 4)
        return f

    def _values(self, tile: Tile) -> Function:
        """(scratch, rows, positions, values, their stride): o += s v.

        Values that several rows share have been copied to scratch; there the stride is known.
        """
        f = self.module.function(f"attention_values_{tile.rows}", [I32] * 5)
        scratch, rows, positions, values, stride = f.params
        kv, width = self.knobs.kv_block, self.vd8 * 4
        panels = Panels.rows(width if tile.rows > 1 else stride, 1)
        c, r, a, b = f.locals(I32, 4)
        with f.loop_range(c, 0, width, PANEL * 4), f.loop_range(r, 0, rows, tile.rows), f.scope():
            f.assign(a, scratch + r * (kv * 4) + self.at["s"])
            f.assign(b, values + c)
            core = Core(f, tile, [(a, i * kv * 4) for i in range(tile.rows)], b, panels, False)
            to = f.value(scratch + r * width + c)
            for i, row in enumerate(core.acc):
                for v, acc in enumerate(row):
                    f.v128_load(self.at["o"] + i * width + 16 * v, addr=to)
                    f.set(acc)
            core.run(positions)
            self._keep(f, core, to, self.at["o"], width)
        return f

    def _keep(self, f: Function, core: Core, to: Local, offset: int, stride: int) -> None:
        for i, row in enumerate(core.acc):
            for v, acc in enumerate(row):
                f.store(to, acc, offset + i * stride + 16 * v)

    # -- the softmax -------------------------------------------------------------------------------

    def _soften(self) -> Frame:
        """(row, b, h, i, first position, visible, positions): scores to weights, o rescaled."""
        spec, kv = self.spec, self.knobs.kv_block
        frame = inner(self.module, spec, 7, "soften")
        f = frame.f
        row, b, h, i, j0, visible, positions = frame.own
        scratch = frame.scratch
        s = f.value(scratch + row * (kv * 4) + self.at["s"])
        state = f.value(scratch + row * 32 + self.at["state"])
        f.assign(visible, imax(imin(visible, positions), 0))
        if spec.bias is not None:
            self._add_bias(frame, s, (b, h, i), j0, visible)
        top, x, total = f.locals(V128, 3)
        j, at = f.locals(I32, 2)
        self._mask(f, s, visible, positions)
        f.v128_load(addr=state)
        f.set(top)
        with f.loop_range(j, 0, positions, 4):
            # One instruction, unlike f32x4.max. It passes NaN over, but exp(NaN - top) is NaN too.
            f.get(top)
            f.v128_load(addr=s + j * 4)
            f.f32x4_pmax()
            f.set(top)
        _across(f, top, Function.f32x4_pmax)
        # While every score is -inf, the maximum is taken to be 0: exp(-inf - 0) is 0, not NaN.
        shift, old = f.locals(V128, 2)
        f.get(top)
        f.f32x4_const(float("-inf"))
        f.f32x4_ne()
        f.get(top)
        f.v128_and()
        f.set(shift)
        lanes = Lanes(f, [], [], rank=1, vector=0, values=[_EXP])
        with lanes.level():
            f.v128_load(addr=state)
            f.get(shift)
            f.f32x4_sub()
            f.set(x)
            f.store(state, top)
            with lanes.level({0: 0}, acc=x):
                lanes.push(_EXP)
            f.set(old)
            f.zero(total)
            f.assign(at, s)
            end = f.value(s + positions * 4)
            with f.loop_range(at, None, end, 16):
                f.v128_load(addr=at)
                f.get(shift)
                f.f32x4_sub()
                f.set(x)
                with lanes.level({0: 0}, acc=x):
                    lanes.push(_EXP)
                f.set(x)
                f.store(at, x)
                f.get(total, x)
                f.f32x4_add()
                f.set(total)
        _across(f, total, Function.f32x4_add)
        f.v128_load(16, addr=state)
        f.get(old)
        f.f32x4_mul()
        f.get(total)
        f.f32x4_add()
        f.set(total)
        f.store(state, total, 16)
        f.assign(at, scratch + row * (self.vd8 * 4) + self.at["o"])
        end = f.value(at + self.vd8 * 4)
        with f.loop_range(at, None, end, 16):
            f.v128_load(addr=at)
            f.get(old)
            f.f32x4_mul()
            f.set(x)
            f.store(at, x)
        return frame

    def _add_bias(
        self, frame: Frame, s: Local, at: tuple[Local, Local, Local], j0: Local, visible: Local
    ) -> None:
        """s[j] += bias for the visible positions: vectors, then the rest one by one."""
        spec, f = self.spec, frame.f
        assert spec.bias is not None
        x, j = f.local(V128), f.local(I32)
        whole = f.value(visible - 3)
        f.assign(j, 0)
        for vector, end, step in ((3, whole, 4), (None, visible, 1)):
            lanes = frame.lanes(spec, rank=4, vector=vector, values=[spec.bias])
            with lanes.level(dict(enumerate(at))), f.loop_range(j, None, end, step):
                position = f.value(s + j * 4)
                with lanes.level({3: f.value(j + j0)}):
                    lanes.push(spec.bias)
                if vector:
                    f.v128_load(addr=position)
                else:
                    f.v128_load32_zero(addr=position)
                f.f32x4_add()
                f.set(x)
                f.push(position)
                f.get(x)
                if vector:
                    f.v128_store()
                else:
                    f.v128_store32_lane(0)

    def _mask(self, f: Function, s: Local, visible: Local, positions: Local) -> None:
        """s[j] = -inf from `visible` to the end of the vector that holds the last position."""
        j, lane = f.local(I32), f.local(V128)
        f.assign(j, visible)
        f.f32x4_const(float("-inf"))
        f.set(lane)
        with f.loop_range(j, None, f.value((positions + 3) & -4)):
            f.push(s + j * 4)
            f.get(lane)
            f.v128_store32_lane(0)

    # -- queries in, results out -------------------------------------------------------------------

    def _begin(self) -> Frame:
        """(b, h, first row, rows): scaled queries to scratch, states reset."""
        spec = self.spec
        frame = inner(self.module, spec, 4, "begin")
        f = frame.f
        b, h, i0, rows = frame.own
        scratch = frame.scratch
        x, i, c = f.local(V128), f.local(I32), f.local(I32)
        # The sum over no positions at all is 0, as a product with no terms is.
        none = f.local(V128)
        f.push(frame.size(spec.kv_len))
        f.i32_eqz()
        f.i32x4_splat()
        f.f32x4_convert_i32x4_s()
        f.set(none)
        step = f.hold(affine(frame.size(spec.q.strides[3])) * 4)
        with f.loop_range(i, 0, rows), f.scope():
            from_ = f.value(offset_of(frame.operands[0], spec.q, [b, h, i0 + i, 0], frame.args))
            to = f.value(scratch + i * (self.d4 * 4) + self.at["q"])
            vectors = spec.q.strides[3] == 1
            with f.loop_range(c, 0, self.d, 4 if vectors else 1):
                f.push(to)
                if vectors:
                    f.v128_load(addr=from_)
                else:
                    f.v128_load32_zero(addr=from_)
                f.f32x4_const(spec.scale)
                f.f32x4_mul()
                if vectors:
                    f.v128_store()
                else:
                    f.v128_store32_lane(0)
                f.assign(to, to + (16 if vectors else 4))
                f.assign(from_, from_ + (16 if vectors else affine(step)))
            state = f.value(scratch + i * 32 + self.at["state"])
            f.f32x4_const(float("-inf"))
            f.set(x)
            f.store(state, x)
            f.store(state, none, 16)
            f.zero(x)
            f.assign(to, scratch + i * (self.vd8 * 4) + self.at["o"])
            with f.loop_range(c, 0, self.vd8, 4):
                f.store(to, x)
                f.assign(to, to + 16)
        return frame

    def _finish(self) -> Frame:
        """(b, h, first row, rows): results divided by their sums and stored."""
        spec = self.spec
        frame = inner(self.module, spec, 4, "finish")
        f = frame.f
        b, h, i0, rows = frame.own
        sums, masked, x = f.locals(V128, 3)
        i = f.local(I32)
        step = f.hold(affine(frame.size(spec.out.strides[3])) * 4)
        with f.loop_range(i, 0, rows), f.scope():
            from_ = f.value(frame.scratch + i * (self.vd8 * 4) + self.at["o"])
            to = f.value(offset_of(frame.output, spec.out, [b, h, i0 + i, 0], frame.args))
            state = f.value(frame.scratch + i * 32 + self.at["state"])
            f.v128_load(16, addr=state)
            f.set(sums)
            f.v128_load(addr=state)
            f.f32x4_const(float("-inf"))
            f.f32x4_eq()
            f.set(masked)
            for c in range(0, self.vd, 4):
                f.v128_load(4 * c, addr=from_)
                f.get(sums)
                f.f32x4_div()
                if spec.zero_masked_rows:
                    f.get(masked)
                    f.v128_andnot()
                f.set(x)
                if spec.out.strides[3] == 1 and c + 4 <= self.vd:
                    f.store(to, x, 4 * c)
                    continue
                for lane in range(min(4, self.vd - c)):
                    offset = f._push_address(to + affine(step) * (c + lane))
                    f.get(x)
                    f.v128_store32_lane(lane, offset)
        return frame

    # -- keys and values ---------------------------------------------------------------------------

    def _keys(self) -> Frame:
        """(b, kv head, first position, positions): transposed to panels of 8 in scratch."""
        spec = self.spec
        frame = inner(self.module, spec, 4, "keys")
        f = frame.f
        b, h, j0, positions = frame.own
        j = f.local(I32)
        step, along = (f.hold(affine(frame.size(s)) * 4) for s in spec.k.strides[2:])
        from_ = f.value(offset_of(frame.operands[1], spec.k, [b, h, j0, 0], frame.args))
        to = f.value(frame.scratch + self.at["k"])
        with f.loop_range(j, 0, positions, PANEL), f.scope():
            left = f.value(positions - j)
            present = f.value(imin(left, PANEL))
            if spec.k.strides[3] == 1:
                f.push(from_, to, self.d, step, present)
                f.call(pack_transposed(self.module, 1))
            else:
                f.push(from_, to, self.d, along, present, step, PANEL * 4)
                f.call(copy_plane(self.module))
            f.assign(to, to + self.d4 * PANEL * 4)
            f.assign(from_, from_ + affine(step) * PANEL)
        return frame

    def _copy_values(self) -> Frame:
        """(b, kv head, first position, positions): side by side in scratch."""
        spec = self.spec
        frame = inner(self.module, spec, 4, "copy_values")
        f = frame.f
        b, h, j0, positions = frame.own
        step, along = (f.hold(affine(frame.size(s)) * 4) for s in spec.v.strides[2:])
        from_ = f.value(offset_of(frame.operands[2], spec.v, [b, h, j0, 0], frame.args))
        to = f.value(frame.scratch + self.at["v"])
        if spec.v.strides[3] == 1:
            f.push(from_, to, positions, step, self.vd * 4, self.vd8 * 4)
            f.call(copy_rows(self.module))
        else:
            f.push(from_, to, positions, step, self.vd, along, self.vd8 * 4)
            f.call(copy_plane(self.module))
        return frame

    # -- the work list -----------------------------------------------------------------------------

    def kernel(self) -> WasmKernel:
        spec, knobs = self.spec, self.knobs
        scores = [self._scores(t) for t in self.tiles]
        values = [self._values(t) for t in self.tiles]
        begin, soften, finish, keys = self._begin(), self._soften(), self._finish(), self._keys()
        copy_values = self._copy_values()
        frame = entry(self.module, spec)
        f, scratch = frame.f, frame.scratch
        f.assign(scratch, scratch + frame.thread * self.bytes)
        batch, q_len, kv_len = (
            f.hold(frame.size(d)) for d in (spec.batch, spec.q_len, spec.kv_len)
        )
        blocks = f.hold((affine(q_len) + (knobs.q_block - 1)) // knobs.q_block)
        total = f.hold(affine(batch) * blocks * spec.heads)
        j0, r = f.locals(I32, 2)
        v_step = f.hold(affine(frame.size(spec.v.strides[2])) * 4)
        with (
            shares(f, frame.thread, frame.threads, total) as (at, stop),
            f.loop_range(at, None, stop),
            f.scope(),
        ):
            rest = f.value(affine(at) // blocks)
            i0 = f.value((at - affine(rest) * blocks) * knobs.q_block)
            b = f.value(rest // spec.heads)
            h = f.value(rest - b * spec.heads)
            kv_head = f.value(h // (spec.heads // spec.kv_heads))
            left = f.value(affine(q_len) - i0)
            rows = f.value(imin(left, knobs.q_block))
            frame.call(begin, b, h, i0, rows)
            end = f.value(kv_len)
            # Row i sees positions up to i + offset.
            offset = f.value(affine(kv_len) - q_len)
            if spec.causal:
                f.assign(end, imin(end, f.value(i0 + rows + offset)))
            with f.loop_range(j0, 0, end, knobs.kv_block), f.scope():
                here = f.value(end - j0)
                positions = f.value(imin(here, knobs.kv_block))
                frame.call(keys, b, kv_head, j0, positions)
                self._pick(f, scores, rows, lambda n: f.push(scratch, rows, positions))
                with f.loop_range(r, 0, rows), f.scope():
                    i = f.value(i0 + r)
                    visible: IntLike = positions
                    if spec.causal:
                        visible = f.value(i + offset + 1 - j0)
                    frame.call(soften, r, b, h, i, j0, visible, positions)
                self._weigh(frame, values, copy_values, (b, kv_head, j0, positions, rows), v_step)
            frame.call(finish, b, h, i0, rows)
        return WasmKernel(f.index, self.bytes)

    def _weigh(
        self, frame: Frame, values: list[Function], copy_values: Frame,
        at: tuple[Local, Local, Local, Local, Local], v_step: IntLike,
    ) -> None:  # fmt: skip
        """o += s v, with the values in scratch if more than one row uses them."""
        f, spec, scratch = frame.f, self.spec, frame.scratch
        b, h, j0, positions, rows = at

        def push(n: int) -> None:
            if n > 1 or spec.v.strides[3] != 1:
                frame.call(copy_values, b, h, j0, positions)
                f.push(scratch, rows, positions, scratch + self.at["v"], self.vd8 * 4)
            else:
                f.push(scratch, rows, positions)
                f.push(offset_of(frame.operands[2], spec.v, [b, h, j0, 0], frame.args), v_step)

        self._pick(f, values, rows, push)

    def _pick(
        self, f: Function, functions: list[Function], rows: Local, push: Callable[[int], None]
    ) -> None:
        """Call the function for several rows, or the one for a single row."""
        if len(functions) == 1:
            push(self.tiles[0].rows)
            f.call(functions[0])
            return
        f.push(rows, 1)
        f.i32_gt_s()
        with f.if_():
            push(self.tiles[0].rows)
            f.call(functions[0])
            f.else_()
            push(1)
            f.call(functions[1])


def _across(f: Function, x: Local, op: Callable[[Function], None]) -> None:
    """x = op over the lanes of x, in every lane."""
    for lanes in ((2, 3, 0, 1), (1, 0, 3, 2)):
        f.get(x, x, x)
        f.i32x4_shuffle(*lanes)
        op(f)
        f.set(x)
