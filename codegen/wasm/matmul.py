"""Matrix products: a register tile over packed panels, with the elementwise tail in its store.

Work is a list of tiles in the order (batch, block of rows, group of panels, rows of the block):
a block of A stays in the second-level cache while the panels pass, a panel stays in the first-level
cache while the rows of the block pass. Threads take equal shares of that list: with few rows they
divide the columns, with many the rows, since blocks are then cut so that each thread has its own.

A tile that would hang over the last row or panel is moved back instead, and computes some results
twice: one inner function then serves all of a product with at least `rows` rows. Tall tiles have
shorter ones take their place at the end, so that at most one row is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ..dims import Dim, align, ceildiv
from ..spec import PANEL, Matmul, Storage, View, int8_panel_bytes
from . import blocks, int8
from .asm import I32, Function, Int, IntLike, Local, Module, affine, imax, imin
from .kernel import WasmKernel
from .matmul_space import SHORTER, SHORTER_INT8, Knobs, few_rows, is_int8, space
from .partition import shares
from .product import (
    Core,
    Epilogue,
    Frame,
    Panels,
    Tile,
    check_storage,
    copy_plane,
    copy_rows,
    fill_zero,
    offset_of,
    pack_transposed,
    size,
)

__all__ = ["Knobs", "emit", "space"]

OWN_ROWS = 24
"""With as many rows a thread takes some of its own; with fewer, threads divide the columns, since
each of them reads all of B otherwise."""

LEAST_MULTIPLICATIONS = 400_000
"""Of a part of a thread's share: some 15 microseconds."""


def emit(module: Module, spec: Matmul, knobs: Knobs) -> WasmKernel:
    check_storage(spec)
    if spec.blocks is not None:
        return _BlocksEmitter(module, spec, knobs).kernel()
    if is_int8(spec):
        return _Int8Emitter(module, spec, knobs).kernel()
    return _Emitter(module, spec, knobs).kernel()


def _contiguous(view: View, axis: int) -> bool:
    return view.strides[axis] == 1


class _Emitter:
    shorter = SHORTER

    def __init__(self, module: Module, spec: Matmul, knobs: Knobs) -> None:
        self.module, self.spec, self.knobs = module, spec, knobs
        self.integer = spec.operands[0] is Storage.I32
        self.rank = len(spec.batch)
        self.pack_a = knobs.pack or not (_contiguous(spec.a, -1) or spec.k == 1)
        self.row_pitch: Dim = align(spec.k, 16) + 16  # of packed rows: an odd number of cache lines
        direct = knobs.direct and spec.b is not None and _contiguous(spec.b, -1)
        self.pack_b = spec.blocks is not None or (spec.b is not None and not direct)
        panels = ceildiv(spec.n, PANEL)
        self.panels = panels
        # Moving back the last group takes at least a group; only a static size can promise it.
        self.most = panels if isinstance(panels, int) else 1
        self.variants = self._variants()
        self.parts = self._parts()
        rows = max(v.rows for v in self.variants)
        # So many rows before the end the first of the short tiles begins, at most.
        by = self.shorter.get(rows, rows)
        self.last_rows = max(rows, (rows - 1) // by * (rows - by))
        self.block_tiles = max(-(-self.last_rows // rows), -(-knobs.block // rows))
        self.block_rows = self.block_tiles * rows
        self.epilogue = Epilogue(module, spec, spec.n)
        dump = max(v.rows * v.columns * 4 for v in self.variants)
        self.b_at: Dim = align(dump, 64)
        columns = max(v.columns for v in self.variants)
        k4 = align(spec.k, 4)
        self.c_at: Dim = self.b_at + (k4 * columns * 4 if self.pack_b else 0)
        # Zeroing goes on to the end of a cache line.
        sums = align(self.block_rows * columns * 4, 64) if self.parts else 0
        self.a_at: Dim = self.c_at + sums
        self.scratch: Dim = align(self.a_at + self._a_bytes(), 64)

    def _a_bytes(self) -> Dim:
        """Scratch for the block of A, if it is copied."""
        return self.row_pitch * self.block_rows * 4 + 64 if self.pack_a else 0

    def _constant_panel(self, b: Local, n0: Local, k: IntLike) -> Int:
        """Address of the packed panel that begins with column `n0`."""
        return b + n0 * (affine(k) * 4)

    def _variants(self) -> list[Tile]:
        """The tile; if fewer rows may come at run time, also tiles of two rows and of one."""
        knobs, m = self.knobs, self.spec.m
        wide = max(1, min(knobs.panels, self.most))
        if isinstance(m, int):
            return [Tile(max(1, min(knobs.rows, m)), wide, knobs.unroll)]
        tiles = [Tile(knobs.rows, wide, knobs.unroll)]
        for rows in (2, 1):
            if rows < knobs.rows:
                panels = max(1, min(few_rows(rows, self.panels) or 1, self.most))
                tiles.append(Tile(rows, panels, 4))
        return tiles

    def _parts(self) -> list[int]:
        """The lengths that K is cut into, all but the last the same; empty if it is not cut."""
        k, knobs = self.spec.k, self.knobs
        if not knobs.depth or not isinstance(k, int) or k <= knobs.depth:
            return []
        each = -(-k // -(-k // knobs.depth))
        each = -(-each // knobs.unroll) * knobs.unroll
        return [min(each, k - at) for at in range(0, k, each)]

    # -- the tile ---------------------------------------------------------------------------------

    def _tile(self, tile: Tile) -> Function:
        """(frame, A's row 0, B's panel, first tile, tiles, first column, dump, batch...)."""
        spec = self.spec
        f = self.module.function(
            f"matmul_{tile.rows}x{tile.columns}", Frame.types(spec, 6 + self.rank)
        )
        frame, (a, b, first, count, n0, dump, *batch) = Frame.inner(spec, f)
        m, k = (f.hold(size(d, frame.args)) for d in (spec.m, spec.k))
        stride: IntLike
        if self.pack_a:
            stride = f.hold(affine(size(self.row_pitch, frame.args)) * 4)
        else:
            stride = f.hold(affine(size(spec.a.strides[-2], frame.args)) * 4)
        panels = self._panels(f, frame, tile, k)
        i, m0, b_now, c, ahead, seen = f.locals(I32, 6)
        f.zero(seen)
        parts = self.parts if tile == self.variants[0] else []
        heights = self._heights(f, tile, m)

        def one(of: Tile, run: IntLike, from_k: IntLike, last: bool) -> None:
            """Add `run` of K to the tile that begins with row `m0`."""
            base = f.value(a + affine(m0) * stride + affine(from_k) * 4)
            rows = [(base, 0)]
            for r in range(1, of.rows):
                if isinstance(stride, int):
                    rows.append((base, r * stride))
                else:
                    rows.append((f.value(rows[-1][0] + stride), 0))
            f.assign(b_now, b + affine(panels.row) * from_k)
            core = Core(f, of, rows, b_now, panels, self.integer)
            if parts:
                self._sums(f, core, c, load=True)
            else:
                core.clear()
            core.run(run)
            if last:
                at: list[list[IntLike]] = [[*batch, m0 + r] for r in range(of.rows)]
                self.epilogue.store_tile(f, frame, core.acc, at, n0, n0, dump)
            else:
                self._sums(f, core, c, load=False)

        def tiles(run: IntLike, from_k: IntLike, last: bool) -> None:
            """Add `run` of K to all tiles, from `from_k` on."""
            if parts:
                f.assign(c, dump + size(self.c_at, frame.args))
            lines = self._ahead(f, frame, tile, b, n0, (run, from_k), last, ahead)
            with f.loop_range(i, 0, count):
                for line in range(lines):
                    f.i32_load(64 * line, addr=ahead)
                    f.push(seen)
                    f.i32_xor()
                    f.set(seen)
                if lines:
                    f.assign(ahead, ahead + 64 * lines)
                heights.pick(first + i, m0, lambda of: one(of, run, from_k, last))
                if parts:
                    f.assign(c, c + tile.rows * tile.columns * 4)

        if not parts:
            tiles(k, 0, last=True)
            f.push(dump)
            f.push(seen)
            f.i32_store()
            return f
        f.push(dump + size(self.c_at, frame.args), count * (tile.rows * tile.columns * 4))
        f.call(fill_zero(self.module))
        at_k = f.local(I32)
        with f.loop_range(at_k, 0, sum(parts[:-1]), parts[0]):
            tiles(parts[0], at_k, last=False)
        tiles(parts[-1], sum(parts[:-1]), last=True)
        f.push(dump)
        f.push(seen)
        f.i32_store()
        return f

    def _heights(self, f: Function, tile: Tile, m: IntLike) -> _Heights:
        """The tile, and the short one that takes its place at the end if that leaves less to
        compute twice."""
        by = self.shorter.get(tile.rows)
        if by is None or (isinstance(m, int) and -m % tile.rows < by):
            return _Heights(f, m, tile)
        return _Heights(f, m, tile, replace(tile, rows=tile.rows - by))

    def _ahead(
        self, f: Function, frame: Frame, tile: Tile, b: Local, n0: Local,
        part: tuple[IntLike, IntLike], last: bool, ahead: Local,
    ) -> int:  # fmt: skip
        """Cache lines of the constant that each tile reads ahead; `ahead` is set to the first."""
        spec = self.spec
        run, from_k = part
        if spec.b is not None or tile.panels != 1 or not isinstance(run, int):
            return 0
        tiles = self.block_tiles
        if isinstance(spec.m, int):
            tiles = min(tiles, -(-spec.m // tile.rows))
        lines = run * PANEL * 4 // 64 // max(tiles, 1)
        if tiles < 3 or not lines:
            return 0
        f.assign(ahead, b + (affine(from_k) + run) * (PANEL * 4))
        if last:
            f.push(ahead, b, n0 + tile.columns, size(spec.n, frame.args))
            f.i32_lt_s()
            f.select()
            f.set(ahead)
        return lines

    @staticmethod
    def _sums(f: Function, core: Core, c: Local, load: bool) -> None:
        """The accumulators from or to memory."""
        for number, acc in enumerate(acc for row in core.acc for acc in row):
            if load:
                f.v128_load(16 * number, addr=c)
                f.set(acc)
            else:
                f.store(c, acc, 16 * number)

    def _panels(self, f: Function, frame: Frame, tile: Tile, k: IntLike) -> Panels:
        spec = self.spec
        if self.pack_b:
            return Panels.rows(tile.columns * 4, tile.panels)
        if spec.b is None:
            assert isinstance(k, int), "a packed constant has a static K"
            return Panels.packed(k, tile.panels)
        return Panels.rows(f.hold(affine(size(spec.b.strides[-2], frame.args)) * 4), tile.panels)

    # -- the work list ----------------------------------------------------------------------------

    def kernel(self) -> WasmKernel:
        spec = self.spec
        tiles = [self._tile(v) for v in self.variants]
        f, thread, threads, scratch, frame = Frame.entry(self.module, spec, "matmul")
        args = frame.args
        f.assign(scratch, scratch + affine(thread) * size(self.scratch, args))
        m, n, k = (f.hold(size(d, args)) for d in (spec.m, spec.n, spec.k))
        rows, groups = self._choose(f, m, size(self.panels, args))
        row_tiles = f.hold((affine(m) + rows - 1) // rows)
        per_batch = f.hold(affine(row_tiles) * groups)
        batch: list[IntLike] = [f.hold(size(d, args)) for d in spec.batch]
        total: IntLike = per_batch
        for d in batch:
            total = affine(total) * d
        total = f.hold(total)
        in_blocks = self._in_blocks(f, threads, row_tiles, rows)
        one_block = isinstance(in_blocks, int) and in_blocks == row_tiles
        packed_a, packed_b = f.value(-1), f.value(-1)
        work = shares(f, thread, threads, total, least=self._least(f, k))
        with work as (start, end), f.loop() as again:
            with f.scope():
                rest: IntLike = start
                at: IntLike = 0
                if self.rank:
                    at = f.value(affine(start) // per_batch)
                    rest = f.value(start - at * per_batch)
                block: IntLike = 0
                in_block = row_tiles
                if not one_block:
                    block = f.value(affine(rest) // (affine(groups) * in_blocks))
                    rest = f.value(affine(rest) - affine(block) * (affine(groups) * in_blocks))
                    left = f.value(affine(row_tiles) - affine(block) * in_blocks)
                    in_block = f.value(imin(left, in_blocks))
                group = f.value(affine(rest) // in_block)
                tile = f.value(affine(rest) - affine(group) * in_block)
                remaining = f.value(end - start)
                here = f.value(affine(in_block) - tile)
                count = f.value(imin(here, remaining))
                coordinates = self._coordinates(f, at, batch)
                first = f.value(affine(block) * in_blocks)
                f.assign(tile, first + tile)
                self._call(f, frame, tiles, rows, scratch, coordinates, first, tile, count, group,
                           (m, n, k), (at, block, packed_a, packed_b))  # fmt: skip
                f.assign(start, start + count)
            f.push(start, end)
            f.i32_lt_s()
            f.br_if(again)
        return WasmKernel(f.index, self.scratch)

    def _least(self, f: Function, k: IntLike) -> IntLike:
        """Tiles that are worth asking for: rows of few tiles are done before the asking pays."""
        main = self.variants[0]
        long = LEAST_MULTIPLICATIONS // (main.rows * main.columns)
        return f.hold(affine(long) // imax(k, 1) + 1)

    def _in_blocks(self, f: Function, threads: Local, row_tiles: IntLike, rows: IntLike) -> IntLike:
        """Tiles of a block of rows. Several threads get blocks of their own if those have enough
        rows: what the next kernel reads of its rows is then in its own processor's cache, and no
        row of A is rounded or copied twice."""
        most, few = self.block_tiles, False
        if isinstance(row_tiles, int):
            most = min(most, row_tiles)
            few = -(-row_tiles // 2) * self.variants[0].rows < OWN_ROWS
        if few or self.pack_b:
            return most
        each = f.value((affine(row_tiles) + threads - 1) // threads)
        # Equal blocks, as many as it takes for each thread.
        parts = f.value((each + (most - 1)) // most)
        each = f.value((each + parts - 1) // imax(parts, 1))
        f.push(each, most, each * rows, OWN_ROWS)
        f.i32_ge_s()
        f.select()
        f.set(each)
        return each

    def _choose(self, f: Function, m: IntLike, panels: IntLike) -> tuple[IntLike, IntLike]:
        """Rows of a tile and number of panel groups, for the rows there are."""

        def groups(tile: Tile) -> IntLike:
            return (affine(panels) + (tile.panels - 1)) // tile.panels

        main = self.variants[0]
        if isinstance(m, int):
            return main.rows, f.hold(groups(main))
        rows, with_rows = f.value(main.rows), f.value(groups(main))
        for tile, larger in zip(self.variants[1:], self.variants, strict=False):
            f.push(m, larger.rows)
            f.i32_lt_s()
            with f.if_():
                f.assign(rows, tile.rows)
                f.assign(with_rows, groups(tile))
        return rows, with_rows

    def _coordinates(self, f: Function, at: IntLike, batch: list[IntLike]) -> list[IntLike]:
        coordinates: list[IntLike] = []
        for d in reversed(batch[1:]):
            coordinates.append(f.value(affine(at) % d))
            at = f.value(affine(at) // d)
        if batch:
            coordinates.append(at)
        return coordinates[::-1]

    def _call(
        self, f: Function, frame: Frame, tiles: list[Function], rows: IntLike, scratch: Local,
        coordinates: list[IntLike], first: Local, tile: Local, count: Local, group: Local,
        sizes: tuple[IntLike, IntLike, IntLike], state: tuple[IntLike, IntLike, Local, Local],
    ) -> None:  # fmt: skip
        """Bring A and B into place and run `count` tiles of one group of panels, from number `tile`
        on; the block begins with number `first`."""
        spec, args = self.spec, frame.args
        m, n, k = sizes
        at, block, packed_a, packed_b = state
        a = f.value(offset_of(frame.operands[0], spec.a, [*coordinates, 0, 0], args))
        if self.pack_a:
            self._pack_a(f, frame, a, first, rows, m, k, (at, block, packed_a), scratch)

        def call(shape: Tile, function: Function) -> None:
            columns = shape.columns
            last = f.hold((affine(size(self.panels, args)) - shape.panels) * PANEL)
            n0 = f.value(group * columns)
            f.assign(n0, imin(n0, last))
            if spec.b is None:
                b = f.value(self._constant_panel(frame.operands[1], n0, k))
            else:
                b = f.value(offset_of(frame.operands[1], spec.b, [*coordinates, 0, n0], args))
            if self.pack_b:
                self._pack_b(f, frame, b, shape, n0, n, k, (at, group, packed_b), scratch)
            f.push(*frame.all, a, b, tile, count, n0, scratch, *coordinates)
            f.call(function)

        if len(tiles) == 1:
            call(self.variants[0], tiles[0])
            return
        for shape, function in zip(self.variants, tiles, strict=True):
            f.push(rows, shape.rows)
            f.i32_eq()
            with f.if_(), f.scope():
                call(shape, function)

    def _pack_a(
        self, f: Function, frame: Frame, a: Local, first: Local, rows: IntLike, m: IntLike,
        k: IntLike, state: tuple[IntLike, IntLike, Local], scratch: Local,
    ) -> None:  # fmt: skip
        """Copy the block's rows to scratch; leaves in `a` where row 0 would be there."""
        at, block, packed = state
        spec, args = self.spec, frame.args
        target = f.value(scratch + size(self.a_at, args))
        pitch = f.hold(affine(size(self.row_pitch, args)) * 4)
        # The last tiles may be moved back to before the block's first row.
        begin = f.value(first * rows)
        f.assign(begin, imax(imin(begin, f.hold(affine(m) - self.last_rows)), 0))
        key = f.value(affine(at) * 0x10000 + block)
        f.push(packed, key)
        f.i32_ne()
        with f.if_():
            f.assign(packed, key)
            left = f.value(affine(m) - begin)
            how_many = f.value(imin(left, self.block_rows))
            sm = affine(size(spec.a.strides[-2], args)) * 4
            sk = affine(size(spec.a.strides[-1], args)) * 4
            if _contiguous(spec.a, -1):
                f.push(a + begin * sm, target, how_many, sm, affine(k) * 4, pitch)
                f.call(copy_rows(self.module))
            else:
                f.push(a + begin * sm, target, how_many, sm, k, sk, pitch)
                f.call(copy_plane(self.module))
        f.assign(a, target - begin * pitch)

    def _pack_b(
        self, f: Function, frame: Frame, b: Local, tile: Tile, n0: Local, n: IntLike, k: IntLike,
        state: tuple[IntLike, Local, Local], scratch: Local,
    ) -> None:  # fmt: skip
        """Copy a group of columns to scratch as [K][columns]; leaves its address in `b`."""
        at, group, packed = state
        spec, args = self.spec, frame.args
        assert spec.b is not None
        target = f.value(scratch + size(self.b_at, args))
        key = f.value(affine(at) * 0x10000 + group)
        f.push(packed, key)
        f.i32_ne()
        with f.if_():
            f.assign(packed, key)
            sk = affine(size(spec.b.strides[-2], args)) * 4
            sn = affine(size(spec.b.strides[-1], args)) * 4
            left = f.value(affine(n) - n0)
            columns = f.value(imin(left, tile.columns))
            if _contiguous(spec.b, -2):
                f.push(b, target, k, sn, columns)
                f.call(pack_transposed(self.module, tile.panels))
            else:
                f.push(b, target, k, sk, columns, sn, tile.columns * 4)
                f.call(copy_plane(self.module))
        f.assign(b, target)


class _Heights:
    """Where the tiles of so many rows begin, the last few of which may be short ones: each takes
    back some of what all tiles reach beyond the last row. The first is never short."""

    def __init__(self, f: Function, m: IntLike, tile: Tile, short: Tile | None = None) -> None:
        self.f, self.m, self.tile, self.short = f, m, tile, short
        self.all = f.hold((affine(m) + (tile.rows - 1)) // tile.rows)
        self.last = f.hold(affine(m) - tile.rows)
        if short is not None:
            beyond = affine(self.all) * tile.rows - m
            few = f.hold(affine(beyond) // (tile.rows - short.rows))
            self.tall = f.hold(imax(f.hold(affine(self.all) - few), 1))

    def pick(self, number: Int, m0: Local, body: Callable[[Tile], None]) -> None:
        """`body` for the shape of tile `number`, with its first row in `m0`."""
        f, tile = self.f, self.tile
        f.assign(m0, number * tile.rows)
        if not (isinstance(self.m, int) and self.m % tile.rows == 0):
            f.assign(m0, imin(m0, self.last))
        if self.short is None:
            with f.scope():
                body(tile)
            return
        f.push(number, self.tall)
        f.i32_lt_s()
        with f.if_():
            with f.scope():
                body(tile)
            f.else_()
            with f.scope():
                f.assign(m0, affine(self.m) - (affine(self.all) - number) * self.short.rows)
                body(self.short)


class _BlocksEmitter(_Emitter):
    """Weights in codes: a group of panels becomes floats before the tiles run over it."""

    def _constant_panel(self, b: Local, n0: Local, k: IntLike) -> Int:
        assert self.spec.blocks is not None
        k4 = align(self.spec.k, 4)
        assert isinstance(k4, int), "a packed constant has a static K"
        return b + n0 * (k4 * self.spec.blocks.bits // PANEL)

    def _pack_b(
        self, f: Function, frame: Frame, b: Local, tile: Tile, n0: Local, n: IntLike, k: IntLike,
        state: tuple[IntLike, Local, Local], scratch: Local,
    ) -> None:  # fmt: skip
        """Leaves the address of [K][columns] floats in `b`, which was that of their codes."""
        _, group, packed = state
        spec, coded = self.spec, self.spec.blocks
        assert coded is not None
        assert isinstance(spec.k, int), "a packed constant has a static K"
        target = f.value(scratch + size(self.b_at, frame.args))
        f.push(packed, group)
        f.i32_ne()
        with f.if_():
            f.assign(packed, group)
            settings = n0 * (-(-spec.k // coded.size) * 4)
            scales, zeros = frame.operands[2], frame.operands[3 if coded.zeros else 2]
            f.push(b, scales + settings, zeros + settings, target)
            f.call(blocks.unpack(self.module, coded, spec.k, tile.panels))
        f.assign(b, target)


class _Int8Emitter(_Emitter):
    """Bytes against bytes: a block of A becomes row records (see `int8`), B is int8 panels."""

    shorter = SHORTER_INT8

    def __init__(self, module: Module, spec: Matmul, knobs: Knobs) -> None:
        assert isinstance(spec.k, int), "a packed constant has a static K"
        self.k = spec.k
        self.exact = spec.operands[0] is Storage.I32
        self.pitch = int8.pitch(module, self.k, self.exact)
        self.row_at = 0
        super().__init__(module, spec, knobs)
        self.pack_a = True

    def _a_bytes(self) -> Dim:
        # Where A's elements are not side by side, one row at a time is brought together first.
        self.row_at = self.pitch * self.block_rows + 64
        return self.row_at + 4 * self.k + 128

    def _constant_panel(self, b: Local, n0: Local, k: IntLike) -> Int:
        return b + n0 * (int8_panel_bytes(self.k) // PANEL)

    def _tile(self, tile: Tile) -> Function:
        spec = self.spec
        f = self.module.function(
            f"matmul_int8_{tile.rows}x{tile.columns}", Frame.types(spec, 6 + self.rank)
        )
        frame, (a, b, first, count, n0, dump, *_) = Frame.inner(spec, f)
        i, m0, b_now = f.locals(I32, 3)
        heights = self._heights(f, tile, f.hold(size(spec.m, frame.args)))

        def one(of: Tile) -> None:
            base = f.value(a + affine(m0) * self.pitch)
            rows = [(base, r * self.pitch) for r in range(of.rows)]
            f.assign(b_now, b)
            bytes_tile = int8.Tile(of.rows, of.panels, of.unroll)
            core = int8.Core(f, bytes_tile, self.k, rows, b_now, self.exact)
            core.run()
            at: list[list[IntLike]] = [[m0 + r] for r in range(of.rows)]
            self.epilogue.store_tile(f, frame, core.acc, at, n0, n0, dump)

        with f.loop_range(i, 0, count):
            heights.pick(first + i, m0, one)
        return f

    def _pack_a(
        self, f: Function, frame: Frame, a: Local, first: Local, rows: IntLike, m: IntLike,
        k: IntLike, state: tuple[IntLike, IntLike, Local], scratch: Local,
    ) -> None:  # fmt: skip
        at, block, packed = state
        spec, args = self.spec, frame.args
        target = f.value(scratch + size(self.a_at, args))
        begin = f.value(first * rows)
        f.assign(begin, imax(imin(begin, f.hold(affine(m) - self.last_rows)), 0))
        key = f.value(affine(at) * 0x10000 + block)
        f.push(packed, key)
        f.i32_ne()
        with f.if_(), f.scope():
            f.assign(packed, key)
            left = f.value(affine(m) - begin)
            how_many = f.value(imin(left, self.block_rows))
            sm = affine(size(spec.a.strides[-2], args)) * 4
            source, to, i = f.value(a + begin * sm), f.value(target), f.local(I32)
            side_by_side = _contiguous(spec.a, -1) or self.k == 1
            with f.loop_range(i, 0, how_many):
                near = source
                if not side_by_side:
                    near = f.value(target + self.row_at)
                    sk = affine(size(spec.a.strides[-1], args)) * 4
                    f.push(source, near, 1, 0, self.k, sk, 0)
                    f.call(copy_plane(self.module))
                f.push(near, to)
                f.call(int8.row_function(self.module, (), self.k, self.exact))
                f.assign(source, source + sm)
                f.assign(to, to + self.pitch)
        f.assign(a, target - begin * self.pitch)
