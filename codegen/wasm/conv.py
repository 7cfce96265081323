"""Convolution as a product without an im2col buffer.

The output is cut into blocks of pixels. If the kernel's window can leave the image, or channels
are not side by side, the block's part of the input is first copied to scratch with its border of
zeros: each input is copied about once and used kh * kw * cout times, and the loops that follow
know no borders. Then the register tile of `product` runs over the block: its rows are pixels, its
K is (ky, kx, channel), which are runs of contiguous floats.

Blocks, groups, panels and tiles form one list, in that order, of which threads take equal shares.
Blocks and tiles at the far edges are moved back, as in `matmul`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..caps import WasmCaps
from ..dims import Dim, align, align_int, dim_max, dim_min, floordiv
from ..spec import PANEL, Conv, Storage, int8_panel_bytes
from . import depthwise, int8, planar, winograd
from .asm import I32, Function, Int, IntLike, Local, Module, affine, imin
from .kernel import WasmKernel
from .partition import shares
from .patch import copy_patch, slack
from .product import (
    Core,
    Epilogue,
    Frame,
    Panels,
    Row,
    Tile,
    check_storage,
    offset_of,
    size,
)

_BLOCK_BYTES = 192 << 10
"""What a block's input may take, so that it stays in the second-level cache."""


_RECORD_BYTES = 192 << 10
"""The same for the records of an int8 block's rows."""


@dataclass(frozen=True, slots=True)
class Knobs:
    """rows (pixels) x (8 * panels) channels in registers; K is unrolled by `unroll`.

    block: output rows and columns of a block.
    """

    rows: int = 4
    panels: int = 1
    unroll: int = 4
    block: tuple[int, int] = (1, 64)


_SHAPES = ((6, 1, 4), (6, 1, 2), (5, 1, 4), (4, 1, 4), (2, 2, 4), (4, 1, 8), (3, 1, 4), (1, 2, 4),
           (3, 2, 4), (4, 2, 4), (8, 1, 4), (7, 1, 4), (6, 2, 2))  # fmt: skip


AnyKnobs = Knobs | depthwise.Knobs | planar.Knobs | winograd.Knobs

MOST = 16
"""Candidates of a kernel."""


def space(spec: Conv, caps: WasmCaps) -> Sequence[AnyKnobs]:
    """Tiles that fit the registers, least wasted pixels first; Winograd's before them if they
    should take less time, else behind."""
    if spec.depthwise:
        return depthwise.space(spec, caps)
    direct = _direct_space(spec, caps)
    found = winograd.space(spec, caps)
    better = [knobs for cost, knobs in found if cost < winograd.direct_cost(spec)]
    others = [knobs for _, knobs in found if knobs not in better]
    candidates: list[AnyKnobs] = [*better, *direct[: max(4, MOST - len(found))], *others]
    return candidates[:MOST]


def _direct_space(spec: Conv, caps: WasmCaps) -> list[Knobs]:
    panels = -(-spec.cout // spec.groups // PANEL)
    if spec.operands[1] is Storage.I8:
        return _int8_space(spec, caps, panels)
    block = _block(spec)
    pixels = _pixels(spec, block)
    found = []
    for rows, p, unroll in _SHAPES:
        fits = Tile(rows, p, unroll).registers <= caps.simd_registers and p <= max(panels, 1)
        if fits and (pixels is None or rows <= max(pixels, 1)):
            found.append(Knobs(rows, p, unroll, block))
    if not found:
        found.append(Knobs(1, 1, 4, block))
    if pixels is not None:
        found.sort(key=lambda c: Tile(c.rows, c.panels, c.unroll).cost(pixels))
    return found


def _int8_space(spec: Conv, caps: WasmCaps, panels: int) -> list[Knobs]:
    """Tiles over row records, which must stay near too."""
    depth = spec.kernel[0] * spec.kernel[1] * spec.cin // spec.groups
    most = max(8, _RECORD_BYTES // depth)
    height, width = _block(spec)
    width = min(width, most)
    block = (_even(spec.out_size[0], max(1, min(height, most // width))), width)
    pixels = _pixels(spec, block)
    found: dict[Knobs, None] = {}
    short = caps.relaxed and spec.operands[0] is not Storage.I32
    for tile in int8.TILES:
        fits = tile.registers(short) <= caps.simd_registers
        if fits and tile.panels <= panels and (pixels is None or tile.rows <= pixels):
            found[Knobs(tile.rows, tile.panels, tile.unroll, block)] = None
    candidates = list(found)
    if pixels is not None:
        candidates.sort(key=lambda c: -(-pixels // c.rows) * int8.cost(c.rows, c.panels))
    return candidates


def _even(size: Dim, most: int) -> int:
    """Rows of a block, at most `most`, so that blocks overlap least: what two of them have in
    common is computed twice."""
    if not isinstance(size, int):
        return most
    return min(range(most, most // 2, -1), key=lambda rows: -(-size // rows) * rows)


def _block(spec: Conv) -> tuple[int, int]:
    """Rows and columns: whole rows if they fit, more than one of them if several fit."""
    (oh, ow), per_pixel = spec.out_size, 4 * spec.cin * spec.stride[1]
    reach = (spec.kernel[0] - 1) * spec.dilation[0] + 1
    width = max(32, _BLOCK_BYTES // (per_pixel * reach) // 8 * 8)
    if isinstance(ow, int):
        blocks = -(-ow // width) or 1
        width = max(1, min(ow, align_int(-(-ow // blocks), 8)))
    per_row = per_pixel * width
    height = max(1, (_BLOCK_BYTES // per_row - reach) // spec.stride[0] + 1)
    if isinstance(oh, int):
        blocks = -(-oh // height) or 1
        height = max(1, -(-oh // blocks))
    elif not isinstance(ow, int):
        height = min(height, 16)
    return height, width


def _pixels(spec: Conv, block: tuple[int, int]) -> int | None:
    oh, ow = spec.out_size
    if isinstance(oh, int) and isinstance(ow, int):
        return min(oh, block[0]) * min(ow, block[1])
    return None


def emit(module: Module, spec: Conv, knobs: AnyKnobs) -> WasmKernel:
    check_storage(spec)
    if isinstance(knobs, winograd.Knobs):
        return winograd.emit(module, spec, knobs)
    if not isinstance(knobs, Knobs):
        return depthwise.emit(module, spec, knobs)
    if spec.operands[1] is Storage.I8:
        return _Int8Emitter(module, spec, knobs).kernel()
    return _Emitter(module, spec, knobs).kernel()


def stays_inside(spec: Conv) -> bool:
    """Can it be told that no window leaves the image?"""
    for i in range(2):
        reach = (spec.kernel[i] - 1) * spec.dilation[i] + 1
        inner, outer, stride = spec.in_size[i], spec.out_size[i], spec.stride[i]
        if spec.pad[i] != 0:
            return False
        if isinstance(inner, int) and isinstance(outer, int):
            if (outer - 1) * stride + reach > inner:
                return False
        elif outer != floordiv(inner - reach, stride) + 1:
            return False
    return True


class _Emitter:
    def __init__(self, module: Module, spec: Conv, knobs: Knobs) -> None:
        self.module, self.spec, self.knobs = module, spec, knobs
        self.cin, self.cout = spec.cin // spec.groups, spec.cout // spec.groups
        self.k = spec.kernel[0] * spec.kernel[1] * self.cin
        self.column_bytes = self.k * 4  # of a packed column of weights
        self.panels = -(-self.cout // PANEL)
        side_by_side = spec.x.strides[3] == 1 or spec.cin == 1
        self.copy = not (side_by_side and stays_inside(spec))
        oh, ow = spec.out_size
        self.height: Dim = dim_max(1, dim_min(oh, knobs.block[0]))
        self.width: Dim = dim_max(1, dim_min(ow, knobs.block[1]))
        self.pixels = self.height * self.width
        wide = max(1, min(knobs.panels, self.panels))
        if isinstance(self.pixels, int):
            rows = min(knobs.rows, self.pixels)
            self.variants = [Tile(rows, wide, knobs.unroll)]
        else:
            self.variants = [Tile(knobs.rows, wide, knobs.unroll)]
            if knobs.rows > 1:
                self.variants.append(Tile(1, wide, 2))
        self.epilogue = Epilogue(module, spec, self.cout)
        # What a block reads: (kh - 1) * dilation + 1 rows for its first row, `stride` more for
        # each further one; columns alike.
        reach = [(spec.kernel[i] - 1) * spec.dilation[i] + 1 for i in range(2)]
        self.in_rows: Dim = (self.height - 1) * spec.stride[0] + reach[0]
        self.in_columns: Dim = (self.width - 1) * spec.stride[1] + reach[1]
        dump = max(t.rows * t.columns * 4 for t in self.variants)
        self.patch_at = align_int(dump, 64)
        patch: Dim = 0
        if self.copy:
            patch = self.in_rows * self.in_columns * spec.cin * 4 + slack(spec) + 64
        self.scratch: Dim = align(self.patch_at + patch, 64)

    def _strides(self) -> tuple[Dim, Dim]:
        """Elements from row to row and pixel to pixel of what the tiles read."""
        if self.copy:
            return self.in_columns * self.spec.cin, self.spec.cin
        return self.spec.x.strides[1], self.spec.x.strides[2]

    # -- the tile ---------------------------------------------------------------------------------

    def _tile(self, tile: Tile) -> Function:
        """(frame, block's input, weights, first pixel, tiles, column, channel, dump, b, y, x)."""
        spec = self.spec
        f = self.module.function(f"conv_{tile.rows}x{tile.columns}", Frame.types(spec, 10))
        frame, (a, b, row, count, n0, channel, dump, image, y0, x0) = Frame.inner(spec, f)
        width = f.hold(size(self.width, frame.args))
        down, right = self._prepare(f, frame)
        i, first, b_now = f.locals(I32, 3)
        with f.loop_range(i, 0, count):
            f.assign(first, row)
            if not (isinstance(self.pixels, int) and self.pixels % tile.rows == 0):
                last = f.hold(affine(size(self.pixels, frame.args)) - tile.rows)
                f.assign(first, imin(first, last))
            with f.scope():
                y = f.value(affine(first) // width)
                x = f.value(first - affine(y) * width)
                at: list[list[IntLike]] = []
                rows: list[Row] = []
                pointer = f.value(a + affine(y) * down + affine(x) * right)
                f.assign(y, y + y0)
                if isinstance(width, int) and width % tile.rows == 0 and isinstance(right, int):
                    f.assign(x, x + x0)
                    rows = [(pointer, r * right) for r in range(tile.rows)]
                    at = [[image, y, x + r] for r in range(tile.rows)]
                else:
                    self._wander(f, tile.rows, (y, x, x0), width, (down, right), pointer, rows)
                    at = [[image, *c] for c in self._where]
                f.assign(b_now, b)
                acc = self._products(f, tile, rows, b_now)
                self.epilogue.store_tile(f, frame, acc, at, n0, channel, dump)
            f.assign(row, row + tile.rows)
        return f

    def _prepare(self, f: Function, frame: Frame) -> tuple[IntLike, IntLike]:
        """Bytes from a pixel's operands to those of the pixel below and to the right."""
        y_stride, x_stride = (f.hold(affine(size(s, frame.args)) * 4) for s in self._strides())
        self.loops, self.run = self._loops(y_stride, x_stride)
        down = f.hold(affine(y_stride) * self.spec.stride[0])
        return down, f.hold(affine(x_stride) * self.spec.stride[1])

    def _products(self, f: Function, tile: Tile, rows: list[Row], b: Local) -> list[list[Local]]:
        """A tile's sums; `b`, which it may move, points at the first panel."""
        core = Core(f, tile, rows, b, Panels.packed(self.k, tile.panels), self.integer)
        core.clear()
        core.run(self.run, self.loops)
        return core.acc

    @property
    def integer(self) -> bool:
        return self.spec.operands[0] is Storage.I32

    def _wander(
        self, f: Function, count: int, start: tuple[Local, Local, Local], width: IntLike,
        steps: tuple[IntLike, IntLike], pointer: Local, rows: list[Row],
    ) -> None:  # fmt: skip
        """Pointers and coordinates of pixels that may go on in the next line."""
        y, x, x0 = start
        down, right = steps
        back = f.hold(affine(down) - affine(width) * right)
        inside = x
        self._where = [(y, f.value(inside + x0))]
        rows.append((pointer, 0))
        for _ in range(1, count):
            y, pointer = f.value(y), f.value(pointer + right)
            inside = f.value(inside + 1)
            f.push(inside, width)
            f.i32_eq()
            with f.if_():
                f.assign(inside, 0)
                f.assign(y, y + 1)
                f.assign(pointer, pointer + back)
            self._where.append((y, f.value(inside + x0)))
            rows.append((pointer, 0))

    def _loops(
        self, y_stride: IntLike, x_stride: IntLike
    ) -> tuple[list[tuple[IntLike, IntLike]], int]:
        """Loops around the contiguous runs of K, and the length of a run."""
        kh, kw = self.spec.kernel
        dy, dx = self.spec.dilation
        run = self.cin
        loops: list[tuple[IntLike, IntLike]] = []
        if kw > 1:
            if dx == 1 and x_stride == 4 * self.cin:
                run *= kw
            else:
                loops.append((kw, affine(x_stride) * dx))
        if kh > 1:
            loops.insert(0, (kh, affine(y_stride) * dy))
        return loops, run

    # -- the work list ----------------------------------------------------------------------------

    def kernel(self) -> WasmKernel:
        spec = self.spec
        tiles = [self._tile(t) for t in self.variants]
        patch = None
        if self.copy:
            patch = copy_patch(self.module, spec, self.in_rows, self.in_columns)
        f, thread, threads, scratch, frame = Frame.entry(self.module, spec, "conv")
        operands, args = frame.operands, frame.args
        f.assign(scratch, scratch + affine(thread) * size(self.scratch, args))
        oh, ow, batch = (f.hold(size(d, args)) for d in (*spec.out_size, spec.batch))
        height, width = (f.hold(size(d, args)) for d in (self.height, self.width))
        pixels = f.hold(size(self.pixels, args))
        down = f.hold((affine(oh) + height - 1) // height)
        across = f.hold((affine(ow) + width - 1) // width)
        main = self.variants[0]
        rows: IntLike = main.rows
        if len(self.variants) > 1:
            rows = f.value(main.rows)
            f.push(pixels, main.rows)
            f.i32_lt_s()
            with f.if_():
                f.assign(rows, 1)
        row_tiles = f.hold((affine(pixels) + rows - 1) // rows)
        groups = -(-self.panels // main.panels)
        per_block = f.hold(affine(row_tiles) * (groups * spec.groups))
        total = f.hold(affine(batch) * down * across * per_block)
        packed = f.value(-1)
        self._begin(f)
        with shares(f, thread, threads, total) as (start, end), f.loop() as again:
            with f.scope():
                block = f.value(affine(start) // per_block)
                rest = f.value(start - affine(block) * per_block)
                panel = f.value(affine(rest) // row_tiles)
                tile = f.value(rest - affine(panel) * row_tiles)
                remaining = f.value(end - start)
                here = f.value(affine(row_tiles) - tile)
                count = f.value(imin(here, remaining))
                row = f.value(tile * affine(rows))
                line = f.value(affine(block) // across)
                x0 = f.value(affine(block - affine(line) * across) * width)
                image = f.value(affine(line) // down)
                y0 = f.value(affine(line - affine(image) * down) * height)
                f.assign(x0, imin(x0, f.hold(affine(ow) - width)))
                f.assign(y0, imin(y0, f.hold(affine(oh) - height)))
                if patch is not None:
                    a = f.value(scratch + self.patch_at)
                    f.push(packed, block)
                    f.i32_ne()
                    with f.if_():
                        f.assign(packed, block)
                        f.push(*frame.all, a, image, y0, x0)
                        f.call(patch)
                else:
                    corner: list[IntLike] = [image, y0 * spec.stride[0], x0 * spec.stride[1], 0]
                    a = f.value(offset_of(operands[0], spec.x, corner, args))
                group: IntLike = 0
                if spec.groups > 1:
                    group = f.value(affine(panel) // groups)
                    f.assign(panel, panel - affine(group) * groups)
                    f.assign(a, a + affine(group) * (self.cin * 4))
                self._bring(f, frame, a, scratch, affine(block) * spec.groups + group)
                n0 = f.value(panel * main.columns)
                f.assign(n0, imin(n0, (self.panels - main.panels) * PANEL))
                per_group = self.panels * PANEL * self.column_bytes
                b = f.value(operands[1] + affine(group) * per_group + n0 * self.column_bytes)
                channel = f.value(n0 + affine(group) * self.cout)
                for variant, function in zip(self.variants, tiles, strict=True):

                    def call(function: Function = function) -> None:
                        f.push(*frame.all, a, b, row, count, n0, channel, scratch, image, y0, x0)
                        f.call(function)

                    if len(tiles) == 1:
                        call()
                        continue
                    f.push(rows, variant.rows)
                    f.i32_eq()
                    with f.if_():
                        call()
                f.assign(start, start + count)
            f.push(start, end)
            f.i32_lt_s()
            f.br_if(again)
        return WasmKernel(f.index, self.scratch)

    def _begin(self, f: Function) -> None:
        """What the entry function remembers from block to block, beside the patch."""

    def _bring(self, f: Function, frame: Frame, a: Local, scratch: Local, key: Int) -> None:
        """Change `a`, the input of a block and group, into what the tiles read."""


class _Int8Emitter(_Emitter):
    """Each window of a block becomes a row record (see `int8`), once per group."""

    def __init__(self, module: Module, spec: Conv, knobs: Knobs) -> None:
        super().__init__(module, spec, knobs)
        self.column_bytes = int8_panel_bytes(self.k) // PANEL
        self.pitch = int8.pitch(module, self.k, self.integer)
        self.records_at = self.scratch
        self.scratch = align(self.records_at + self.pixels * self.pitch + 128, 64)
        self._records = self._round()

    def _prepare(self, f: Function, frame: Frame) -> tuple[IntLike, IntLike]:
        return f.hold(affine(size(self.width, frame.args)) * self.pitch), self.pitch

    def _products(self, f: Function, tile: Tile, rows: list[Row], b: Local) -> list[list[Local]]:
        bytes_tile = int8.Tile(tile.rows, tile.panels, tile.unroll)
        core = int8.Core(f, bytes_tile, self.k, rows, b, self.integer)
        core.run()
        return core.acc

    def _begin(self, f: Function) -> None:
        self._rounded = f.value(-1)

    def _bring(self, f: Function, frame: Frame, a: Local, scratch: Local, key: Int) -> None:
        records = f.value(scratch + size(self.records_at, frame.args))
        here = f.value(key)
        f.push(self._rounded, here)
        f.i32_ne()
        with f.if_():
            f.assign(self._rounded, here)
            f.push(*frame.all, a, records)
            f.call(self._records)
        f.assign(a, records)

    def _round(self) -> Function:
        """(frame, block's input, records): the windows of a block, rounded."""
        f = self.module.function("conv_round", Frame.types(self.spec, 2))
        frame, (source, target) = Frame.inner(self.spec, f)
        height, width = (f.hold(size(d, frame.args)) for d in (self.height, self.width))
        down, right = super()._prepare(f, frame)
        back = f.hold(affine(down) - affine(width) * right)
        strides = [f.hold(stride) for _, stride in self.loops]
        counts = [int(count) for count, _ in self.loops if isinstance(count, int)]
        row = int8.row_function(self.module, counts, self.run, self.integer)
        i, j = f.locals(I32, 2)
        with f.loop_range(i, 0, height):
            with f.loop_range(j, 0, width):
                f.push(source, target, *strides)
                f.call(row)
                f.assign(target, target + self.pitch)
                f.assign(source, source + right)
            f.assign(source, source + back)
        return f
