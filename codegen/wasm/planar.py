"""Depthwise convolution of an image whose rows lie in one piece, as in a graph's own NCHW input.

Work is a list of (image, channel, block of rows). A block's input is copied to scratch with its
border of zeros, so that the loops know none; with a stride of s along the row, the columns are
dealt out to s planes, so that neighbouring outputs read neighbouring floats. Then a register tile
of `rows` output rows by `vectors` vectors goes along the row: each column of taps is spread over
the lanes once, and each input vector is loaded once for all of the rows that it contributes to.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..caps import WasmCaps
from ..dims import Dim, align, dim_min
from ..spec import Conv, Storage
from .asm import I32, V128, Function, IntLike, Local, Module, affine, imax, imin
from .kernel import WasmKernel
from .partition import shares
from .product import (
    Frame,
    copy_floats,
    copy_plane,
    fill_zero,
    multiply_add,
    offset_of,
    size,
    view_index,
)
from .scalar import Lanes

_BLOCK_BYTES = 16 << 10
"""What a block's input may take: half of a small first-level cache."""
_MOST_TAPS = 64
"""All taps are laid out flat."""


@dataclass(frozen=True, slots=True)
class Knobs:
    """Output rows and vectors of four pixels that are computed together."""

    rows: int = 4
    vectors: int = 2


_SHAPES = ((4, 2), (2, 4), (3, 2), (2, 2), (4, 1), (6, 1), (3, 3), (1, 4), (2, 1), (1, 2), (1, 1))


def suits(spec: Conv) -> bool:
    """Is this the way to read the input?"""
    strides, taps = spec.x.strides, spec.kernel[0] * spec.kernel[1]
    return strides[2] == 1 and (strides[3] != 1 or spec.cin == 1) and taps <= _MOST_TAPS


def space(spec: Conv, caps: WasmCaps) -> list[Knobs]:
    """Tiles that fit the registers and the image."""
    (oh, ow), (kh, kw) = spec.out_size, spec.kernel
    found = []
    for rows, vectors in _SHAPES:
        tile = rows * vectors
        if tile + kh + 1 > max(caps.simd_registers - 2, kh + 2) or tile * kh * kw > 400 > kh * kw:
            continue
        if isinstance(oh, int) and rows > max(oh, 1):
            continue
        if isinstance(ow, int) and vectors > max(ow // 4, 1):
            continue
        found.append(Knobs(rows, vectors))
    return found or [Knobs(1, 1)]


def emit(module: Module, spec: Conv, knobs: Knobs) -> WasmKernel:
    return _Emitter(module, spec, knobs).kernel()


class _Emitter:
    def __init__(self, module: Module, spec: Conv, knobs: Knobs) -> None:
        self.module, self.spec, self.vectors = module, spec, knobs.vectors
        self.integer = spec.operands[0] is Storage.I32
        self.index = view_index(spec.out)
        self.wide = 4 * self.vectors
        oh, ow = spec.out_size
        (sy, sx), (dy, dx), (kh, kw) = spec.stride, spec.dilation, spec.kernel
        self.phases = sorted({kx * dx % sx for kx in range(kw)})
        # The last tile of a narrow image reads on to its own width.
        self.phase: Dim = align(align(ow, self.wide) + (kw - 1) * dx // sx, 4)
        self.pitch: Dim = self.phase * len(self.phases)
        self.reach = (kh - 1) * dy + 1
        self.rows = [knobs.rows] if isinstance(oh, int) or knobs.rows == 1 else [knobs.rows, 1]
        block = self._block()
        self.height: Dim = dim_min(oh, block) if not isinstance(oh, int) else min(oh, block)
        patch = ((self.height - 1) * sy + self.reach) * self.pitch * 4 + 128
        dump = knobs.rows * self.wide * 4
        self.patch_at = -(-dump // 64) * 64
        self.scratch: Dim = align(self.patch_at + patch, 64)

    def _block(self) -> int:
        """Output rows of a block, about the same in all of them."""
        (oh, _), sy, rows = self.spec.out_size, self.spec.stride[0], self.rows[0]
        pitch = self.pitch if isinstance(self.pitch, int) else 128
        height = max(rows, (_BLOCK_BYTES // (4 * pitch) - self.reach) // sy + 1)
        if isinstance(oh, int):
            blocks = -(-oh // height) or 1
            height = -(-oh // blocks)
        return max(1, -(-height // rows) * rows)

    # -- the tile ----------------------------------------------------------------------------------

    def _tile(self, rows: int) -> Function:
        """(frame, patch from the first row on, weights, dump, b, channel, y): one row of tiles."""
        spec = self.spec
        f = self.module.function(f"planar_{rows}x{self.wide}", Frame.types(spec, 6))
        frame, (patch, weights, dump, image, channel, y) = Frame.inner(spec, f)
        ow = f.hold(size(spec.out_size[1], frame.args))
        at: dict[int, IntLike] = {0: image, 3: channel}
        never = isinstance(ow, int) and ow < self.wide
        always = isinstance(ow, int) and not never
        if not always and not never:
            f.push(ow, self.wide)
            f.i32_lt_s()
            with f.if_():
                self._narrow(f, frame, rows, (patch, weights, dump), at, y, ow)
                f.return_()
        if never:
            self._narrow(f, frame, rows, (patch, weights, dump), at, y, ow)
            return f
        lanes = self._lanes(f, frame, vector=True)
        x, first = f.local(I32), f.local(I32)
        last = f.hold(affine(ow) - self.wide)
        with lanes.level(), lanes.level(at), f.loop_range(x, 0, ow, self.wide), f.scope():
            f.assign(first, imin(x, last))
            acc = self._sums(f, frame, rows, f.value(patch + first * 4), weights)
            for r, row in enumerate(acc):
                with lanes.level({1: y + r}):
                    for v, local in enumerate(row):
                        with lanes.level({2: first + 4 * v}, acc=local):
                            lanes.store(0, spec.final)
        return f

    def _lanes(self, f: Function, frame: Frame, vector: bool) -> Lanes:
        spec = self.spec
        return Lanes(
            f,
            list(zip(frame.operands, spec.operands, strict=True)),
            frame.args,
            rank=4,
            vector=2 if vector else None,
            values=[spec.final],
            stores=[(frame.output, self.index)],
        )

    def _narrow(
        self, f: Function, frame: Frame, rows: int, pointers: tuple[Local, Local, Local],
        at: dict[int, IntLike], y: Local, ow: IntLike,
    ) -> None:  # fmt: skip
        """Rows shorter than a tile: the sums go to memory, from there one by one."""
        patch, weights, dump = pointers
        with f.scope():
            for r, row in enumerate(self._sums(f, frame, rows, patch, weights)):
                for v, local in enumerate(row):
                    f.store(dump, local, (r * self.wide + 4 * v) * 4)
        lanes = self._lanes(f, frame, vector=False)
        x, acc = f.local(I32), f.local(V128)
        with lanes.level(), lanes.level(at), f.loop_range(x, 0, ow):
            from_ = f.value(dump + x * 4)
            for r in range(rows):
                f.v128_load32_zero(r * self.wide * 4, addr=from_)
                f.set(acc)
                with lanes.level({1: y + r, 2: x}, acc=acc):
                    lanes.store(0, self.spec.final)

    def _sums(
        self, f: Function, frame: Frame, rows: int, patch: Local, weights: Local
    ) -> list[list[Local]]:
        """The tile's sums; `patch` is where its first output's first tap lies."""
        spec = self.spec
        (sy, sx), (dy, dx), (kh, kw) = spec.stride, spec.dilation, spec.kernel
        pitch, phase = (f.hold(affine(size(d, frame.args)) * 4) for d in (self.pitch, self.phase))
        acc = [f.locals(V128, self.vectors) for _ in range(rows)]
        taps, column = f.locals(V128, kh), f.local(V128)
        uses: dict[int, list[tuple[int, int]]] = {}
        for r in range(rows):
            for ky in range(kh):
                uses.setdefault(r * sy + ky * dy, []).append((r, ky))
        # Lines whose distance is not known until run time have a pointer each.
        lines: dict[tuple[int, int], tuple[IntLike, int]] = {}
        for line in sorted(uses):
            for number in range(len(self.phases)):
                away = affine(pitch) * line + affine(phase) * number
                static = isinstance(pitch, int)
                lines[line, number] = (
                    (patch, away.constant) if static else (f.value(patch + away), 0)
                )
        for row in acc:
            for local in row:
                f.zero(local)
        for kx in range(kw):
            number, along = self.phases.index(kx * dx % sx), kx * dx // sx
            for ky, tap in enumerate(taps):
                f.get(weights)
                f.v128_load32_splat((ky * kw + kx) * spec.cin * 4)
                f.set(tap)
            for line in sorted(uses):
                pointer, offset = lines[line, number]
                for v in range(self.vectors):
                    f.push(pointer)
                    f.v128_load(offset + (along + 4 * v) * 4)
                    f.set(column)
                    for r, ky in uses[line]:
                        f.get(column, taps[ky])
                        multiply_add(f, acc[r][v], self.integer)
        return acc

    # -- the patch ---------------------------------------------------------------------------------

    def _patch(self) -> Function:
        """(frame, target, b, channel, y, rows): the input of `rows` output rows from row y."""
        spec, module = self.spec, self.module
        sx = spec.stride[1]
        f = module.function("planar_patch", Frame.types(spec, 5))
        frame, (target, image, channel, y, rows) = Frame.inner(spec, f)
        args = frame.args
        ih, iw, top, left = (
            f.hold(size(d, args)) for d in (*spec.in_size, spec.pad[0], spec.pad[1])
        )
        phase = f.hold(size(self.phase, args))
        pitch = f.hold(size(self.pitch, args))
        line = f.value(y * spec.stride[0] - top)
        end = f.value(line + (rows - 1) * spec.stride[0] + self.reach)
        with f.loop_range(line, None, end), f.scope():
            f.push(line, ih)
            f.i32_lt_u()
            with f.if_():
                for number, residue in enumerate(self.phases):
                    with f.scope():
                        # Floats [begin, stop) of this plane lie in the image.
                        begin = f.value(imin((affine(left) - residue + (sx - 1)) // sx, phase))
                        stop = f.value((affine(iw) + left - residue + (sx - 1)) // sx)
                        f.assign(stop, imax(imin(stop, phase), begin))
                        to = f.value(target + affine(phase) * (4 * number))
                        f.push(to, begin * 4)
                        f.call(fill_zero(module))
                        f.assign(to, to + begin * 4)
                        x = f.value(begin * sx + residue - left)
                        from_ = offset_of(
                            frame.operands[0], spec.x, [image, line, x, channel], args
                        )
                        count = f.value(stop - begin)
                        if sx == 1:
                            f.push(from_, to, count * 4)
                            f.call(copy_floats(module))
                        elif sx == 2:
                            f.push(from_, to, count)
                            f.call(_copy_even(module))
                        else:
                            f.push(from_, to, 1, 0, count, 4 * sx, 0)
                            f.call(copy_plane(module))
                        f.push(to + count * 4, (affine(phase) - stop) * 4)
                        f.call(fill_zero(module))
                f.else_()
                f.push(target, affine(pitch) * 4)
                f.call(fill_zero(module))
            f.assign(target, target + affine(pitch) * 4)
        return f

    # -- the work list -----------------------------------------------------------------------------

    def kernel(self) -> WasmKernel:
        spec = self.spec
        tiles, patch = [self._tile(rows) for rows in self.rows], self._patch()
        f, thread, threads, scratch, frame = Frame.entry(self.module, spec, "planar")
        operands, args = frame.operands, frame.args
        f.assign(scratch, scratch + affine(thread) * size(self.scratch, args))
        oh, ow, batch = (f.hold(size(d, args)) for d in (*spec.out_size, spec.batch))
        height = f.hold(size(self.height, args))
        pitch = f.hold(affine(size(self.pitch, args)) * (4 * spec.stride[0]))
        f.push(height, 0)
        f.i32_le_s()
        f.push(ow, 0)
        f.i32_le_s()
        f.i32_or()
        with f.if_():
            f.return_()
        blocks = f.hold((affine(oh) + height - 1) // height)
        per_image = f.hold(affine(blocks) * spec.cin)
        base = f.value(scratch + self.patch_at)
        y = f.local(I32)
        total = f.hold(affine(batch) * per_image)
        with (
            shares(f, thread, threads, total) as (start, end),
            f.loop_range(start, None, end),
            f.scope(),
        ):
            image = f.value(affine(start) // per_image)
            rest = f.value(start - affine(image) * per_image)
            channel = f.value(affine(rest) // blocks)
            y0 = f.value((rest - affine(channel) * blocks) * height)
            f.assign(y0, imin(y0, f.hold(affine(oh) - height)))
            f.push(*frame.all, base, image, channel, y0, height)
            f.call(patch)
            weights = f.value(operands[1] + channel * 4)

            def go(rows: int, tile: Function) -> None:
                with f.loop_range(y, 0, height, rows), f.scope():
                    first = f.value(imin(y, f.hold(affine(height) - rows)))
                    f.push(*frame.all, base + affine(first) * pitch, weights, scratch, image,
                           channel, y0 + first)  # fmt: skip
                    f.call(tile)

            if len(tiles) == 1:
                go(self.rows[0], tiles[0])
            else:
                f.push(height, self.rows[0])
                f.i32_ge_s()
                with f.if_():
                    go(self.rows[0], tiles[0])
                    f.else_()
                    go(self.rows[1], tiles[1])
        return WasmKernel(f.index, self.scratch)


def _copy_even(module: Module) -> Function:
    """(source, target, count): every second float; may write up to 12 bytes past the end."""

    def build(f: Function) -> None:
        source, target, count = f.params
        i, even = f.local(I32), f.local(V128)
        with f.loop_range(i, 0, count, 4):
            f.v128_load(addr=source)
            f.v128_load(16, addr=source)
            f.i32x4_shuffle(0, 2, 4, 6)
            f.set(even)
            f.store(target, even)
            f.assign(source, source + 32)
            f.assign(target, target + 16)

    return module.helper("copy_even", [I32] * 3, [], build)
