"""Depthwise convolution: every channel on its own, four of them in a vector.

A tile is several neighbouring pixels of one output row. Its loop runs over the channels, so that
input, weights and output are all read in the order they lie; an input column is loaded once per
kernel row and used for every pixel that it contributes to. Rows above and below the image are a
row of zeros in scratch. Pixels whose window leaves the image at the sides take a path with tests.
Images whose channels are planes are left to `planar`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ..caps import WasmCaps
from ..dims import Dim, align
from ..spec import Conv, Storage
from . import planar
from .asm import I32, V128, Function, IntLike, Local, Module, affine, imax, imin
from .kernel import WasmKernel
from .partition import shares
from .product import Frame, fill_zero, multiply_add, offset_of, size, view_index
from .scalar import Lanes

_SEGMENT = 128
"""Pixels of a row that are one piece of work."""


@dataclass(frozen=True, slots=True)
class Knobs:
    """Pixels that are computed together."""

    pixels: int = 6


def space(spec: Conv, caps: WasmCaps) -> list[Knobs] | list[planar.Knobs]:
    """Tiles that fit the registers."""
    if planar.suits(spec):
        return planar.space(spec, caps)
    kw, ow = spec.kernel[1], spec.out_size[1]
    taps = spec.kernel[0] * kw
    found = []
    for pixels in (6, 5, 8, 4, 7, 3, 2, 12, 1):
        registers = pixels + min(kw, 8) + 1
        # Long kernels are laid out flat, so many pixels would make much code.
        if registers > caps.simd_registers or pixels * taps > 400:
            continue
        if isinstance(ow, int) and pixels > max(ow, 1):
            continue
        found.append(Knobs(pixels))
    return found or [Knobs(1)]


def emit(module: Module, spec: Conv, knobs: Knobs | planar.Knobs) -> WasmKernel:
    if isinstance(knobs, planar.Knobs):
        return planar.emit(module, spec, knobs)
    return _Emitter(module, spec, knobs).kernel()


class _Emitter:
    def __init__(self, module: Module, spec: Conv, knobs: Knobs) -> None:
        self.module, self.spec, self.pixels = module, spec, knobs.pixels
        self.integer = spec.operands[0] is Storage.I32
        self.vectors = spec.x.strides[3] == 1
        self.index = view_index(spec.out)
        # Reading a row of zeros moves as far as reading a row of the image.
        row: Dim = spec.in_size[1] * spec.x.strides[2] + spec.cin * spec.x.strides[3]
        self.scratch: Dim = align(row * 4 + 128, 64)

    def _widths(self) -> list[tuple[int, int, int]]:
        """(lanes, first channel, end): whole vectors, then what is left one by one."""
        channels = self.spec.cin
        whole = channels // 4 * 4 if self.vectors else 0
        parts = [(4, 0, whole), (1, whole, channels)]
        return [p for p in parts if p[1] < p[2]]

    def _lanes(self, f: Function, frame: Frame, width: int) -> Lanes:
        spec = self.spec
        return Lanes(
            f,
            list(zip(frame.operands, spec.operands, strict=True)),
            frame.args,
            rank=4,
            vector=3 if width == 4 else None,
            values=[spec.final],
            stores=[(frame.output, self.index)],
        )

    def _load(self, f: Function, address: IntLike, width: int, to: Local) -> None:
        (f.v128_load if width == 4 else f.v128_load32_zero)(addr=address)
        f.set(to)

    @contextmanager
    def _channels(
        self, f: Function, part: tuple[int, int, int], rows: list[Local], weights: Local,
        channel_stride: IntLike,
    ) -> Iterator[Local]:  # fmt: skip
        """The loop over channels; `rows` and `weights` move along."""
        width, begin, end = part
        c = f.local(I32)
        with f.loop_range(c, begin, end, width):
            yield c
            for row in rows:
                f.assign(row, row + affine(channel_stride) * width)
            f.assign(weights, weights + 4 * width)

    # -- pixels whose window is inside the image ---------------------------------------------------

    def _inner(self) -> Function:
        """(frame, kernel rows' pointers to x = -left..., b, y, x, end)."""
        spec, pixels = self.spec, self.pixels
        kh, kw = spec.kernel
        f = self.module.function("depthwise", Frame.types(spec, kh + 4))
        frame, params = Frame.inner(spec, f)
        rows, (image, y, x, end) = params[:kh], params[kh:]
        stride, c_stride = (f.hold(affine(size(s, frame.args)) * 4) for s in spec.x.strides[2:])
        columns: dict[int, list[tuple[int, int]]] = {}
        for p in range(pixels):
            for kx in range(kw):
                at = p * spec.stride[1] + kx * spec.dilation[1]
                columns.setdefault(at, []).append((p, kx))
        first = f.local(I32)
        with f.loop_range(x, None, end, pixels):
            f.assign(first, imin(x, f.hold(end - pixels)))
            with f.scope():
                move = f.value(affine(first) * spec.stride[1] * stride)
                at_rows = [f.value(row + move) for row in rows]
                weights = f.value(frame.operands[1])
                for part in self._widths():
                    with f.scope():
                        self._tile(f, frame, part, at_rows, weights, columns,
                                   (stride, c_stride), (image, y, first))  # fmt: skip
        return f

    def _tile(
        self, f: Function, frame: Frame, part: tuple[int, int, int], rows: list[Local],
        weights: Local, columns: dict[int, list[tuple[int, int]]],
        strides: tuple[IntLike, IntLike], at: tuple[Local, Local, Local],
    ) -> None:  # fmt: skip
        spec, width = self.spec, part[0]
        kw = spec.kernel[1]
        image, y, first = at
        acc, taps = f.locals(V128, self.pixels), f.locals(V128, kw)
        column = f.local(V128)
        lanes = self._lanes(f, frame, width)
        with (
            lanes.level({0: image, 1: y}),
            self._channels(f, part, rows, weights, strides[1]) as c,
        ):
            for a in acc:
                f.zero(a)
            for ky, row in enumerate(rows):
                for kx, tap in enumerate(taps):
                    self._load(f, weights + (ky * kw + kx) * spec.cin * 4, width, tap)
                for offset, uses in sorted(columns.items()):
                    self._load(f, row + affine(strides[0]) * offset, width, column)
                    for p, kx in uses:
                        f.get(column, taps[kx])
                        multiply_add(f, acc[p], self.integer)
            with lanes.level({3: c}):
                for p, a in enumerate(acc):
                    with lanes.level({2: first + p}, acc=a):
                        lanes.store(0, spec.final)

    # -- pixels whose window may not be ------------------------------------------------------------

    def _edge(self) -> Function:
        """(frame, kernel rows' pointers to x = -left..., b, y, x, end): tests every column."""
        spec = self.spec
        kh, kw = spec.kernel
        f = self.module.function("depthwise_edge", Frame.types(spec, kh + 4))
        frame, params = Frame.inner(spec, f)
        rows, (image, y, x, end) = params[:kh], params[kh:]
        args = frame.args
        stride, c_stride = (f.hold(affine(size(s, args)) * 4) for s in spec.x.strides[2:])
        left, iw = f.hold(size(spec.pad[1], args)), f.hold(size(spec.in_size[1], args))
        with f.loop_range(x, None, end), f.scope():
            begin = f.value(x * spec.stride[1])
            at_rows = [f.value(row + begin * affine(stride)) for row in rows]
            inside = f.value(begin - left)
            weights = f.value(frame.operands[1])
            for part in self._widths():
                width = part[0]
                with f.scope():
                    acc, column = f.locals(V128, 2)
                    lanes = self._lanes(f, frame, width)
                    with (
                        lanes.level({0: image, 1: y, 2: x}),
                        self._channels(f, part, at_rows, weights, c_stride) as c,
                    ):
                        f.zero(acc)
                        for kx in range(kw):
                            f.push(inside + kx * spec.dilation[1], iw)
                            f.i32_lt_u()
                            with f.if_(), f.scope():
                                for ky, row in enumerate(at_rows):
                                    # The row may begin before address 0, where an offset in
                                    # the instruction would not wrap round.
                                    where = f.value(row + affine(stride) * (kx * spec.dilation[1]))
                                    self._load(f, where, width, column)
                                    f.get(column)
                                    tap = weights + (ky * kw + kx) * spec.cin * 4
                                    (f.v128_load if width == 4 else f.v128_load32_zero)(addr=tap)
                                    multiply_add(f, acc, self.integer)
                        with lanes.level({3: c}, acc=acc):
                            lanes.store(0, spec.final)
        return f

    # -- rows --------------------------------------------------------------------------------------

    def kernel(self) -> WasmKernel:
        spec = self.spec
        kh, kw = spec.kernel
        inner, edge = self._inner(), self._edge()
        f, thread, threads, scratch, frame = Frame.entry(self.module, spec, "depthwise_rows")
        operands, args = frame.operands, frame.args
        bytes_ = f.hold(size(self.scratch, args))
        f.assign(scratch, scratch + affine(thread) * bytes_)
        oh, ow, ih, iw = (f.hold(size(d, args)) for d in (*spec.out_size, *spec.in_size))
        top, left = (f.hold(size(d, args)) for d in spec.pad)
        batch = f.hold(size(spec.batch, args))
        stride = f.hold(affine(size(spec.x.strides[2], args)) * 4)
        f.push(scratch, f.hold(affine(bytes_) - 64))
        f.call(fill_zero(self.module))
        # Pixels [low, high) have their whole window inside the image.
        low = f.value((affine(left) + (spec.stride[1] - 1)) // spec.stride[1])
        reach = (kw - 1) * spec.dilation[1]
        # One stride is added so that nothing negative is divided.
        room = f.value(affine(iw) + left + (spec.stride[1] - 1 - reach))
        f.assign(room, imax(room, 0))
        high = f.value(affine(room) // spec.stride[1])
        f.assign(high, imin(high, ow))
        segments = f.hold((affine(ow) + (_SEGMENT - 1)) // _SEGMENT)
        per_image = f.hold(affine(oh) * segments)
        total = f.hold(affine(batch) * per_image)
        with (
            shares(f, thread, threads, total) as (start, end),
            f.loop_range(start, None, end),
            f.scope(),
        ):
            image = f.value(affine(start) // per_image)
            rest = f.value(start - affine(image) * per_image)
            y = f.value(affine(rest) // segments)
            begin = f.value((rest - affine(y) * segments) * _SEGMENT)
            stop = f.value(imin(f.value(begin + _SEGMENT), ow))
            rows = []
            for ky in range(kh):
                line = f.value(y * spec.stride[0] + ky * spec.dilation[0] - top)
                f.push(offset_of(operands[0], spec.x, [image, line, 0, 0], args))
                f.push(scratch, line, ih)
                f.i32_lt_u()
                f.select()
                rows.append(f.local(I32))
                f.set(rows[-1])
                f.assign(rows[-1], rows[-1] - affine(left) * stride)
            from_ = f.value(imax(begin, low))
            to = f.value(imin(stop, high))
            # Too few pixels for a tile: all of them by the careful path.
            f.push(to - from_, self.pixels)
            f.i32_lt_s()
            with f.if_():
                f.assign(from_, stop)
                f.assign(to, stop)
            for function, a, b in ((edge, begin, from_), (inner, from_, to), (edge, to, stop)):
                f.push(a, b)
                f.i32_lt_s()
                with f.if_():
                    f.push(*frame.all, *rows, image, y, a, b)
                    f.call(function)
        return WasmKernel(f.index, self.scratch)
