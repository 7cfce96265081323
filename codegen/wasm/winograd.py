"""3x3 convolution through F(2x2, 3x3) or F(4x4, 3x3): fewer multiplications (see `transforms`).

The output is cut into square tiles. A thread takes a block of tiles and
1. transforms their input: for each of the (m + 2)^2 points a matrix of tiles x channels;
2. for a group of panels of output channels: transforms the weights, which are the plain ones of
   `spec.Conv`, multiplies the matrices point by point with the register tile of `product`, and
3. transforms what came out, with the epilogue in the store.
All of it lies in the thread's scratch, whose size does not depend on the image's. Weights are
transformed in every run: kept for good, they would take 16/9 or 4 times the memory, and where tiles
are few, fetching that much costs about what making them anew does.

Threads share tiles, or panels where there are more of those.

An infinity or NaN among a tile's inputs would spread over all its outputs, and a product may
overflow where the sum would not. So a tile and panel with an output that is not finite are computed
again as a plain sum.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..caps import WasmCaps
from ..dims import align_int, ceildiv
from ..spec import PANEL, Conv, Storage
from .asm import I32, V128, Function, IntLike, Local, Module, affine, imin
from .kernel import WasmKernel
from .partition import shares
from .patch import copy_patch, slack
from .product import VECTORS, Core, Epilogue, Frame, Panels, Tile, offset_of, size
from .transforms import Linear, transforms


@dataclass(frozen=True, slots=True)
class Knobs:
    """m x m outputs per tile; `rows` tiles x 8 channels in registers, K unrolled by `unroll`.

    block: tiles whose transformed input a thread holds, a multiple of `rows`. group: panels whose
    transformed weights it holds; `keep`: those of all groups, for all its blocks.
    """

    m: int = 4
    rows: int = 6
    unroll: int = 4
    block: int = 24
    group: int = 4
    keep: bool = False


def legal(spec: Conv) -> bool:
    """Is it a plain 3x3 convolution of f32, with channels in whole vectors?"""
    return (
        spec.kernel == (3, 3)
        and spec.stride == spec.dilation == (1, 1)
        and spec.groups == 1
        and spec.cin % 4 == 0
        and spec.operands[:2] == (Storage.F32, Storage.F32)
    )


_SHAPES = ((6, 4), (4, 4), (6, 2), (5, 4), (8, 4))
"""Register tiles: rows and unrolling."""


def space(spec: Conv, caps: WasmCaps) -> list[tuple[float, Knobs]]:
    """Candidates with their cost, in vector multiply-adds, that `direct_cost` has too."""
    if not legal(spec):
        return []
    found: dict[Knobs, float] = {}
    for m in (4, 2):
        for rows, unroll in _SHAPES:
            if Tile(rows, 1, unroll).registers > caps.simd_registers:
                continue
            knobs = _blocked(spec, caps, m, rows, unroll)
            found.setdefault(knobs, _cost(spec, knobs))
    return sorted(((cost, knobs) for knobs, cost in found.items()), key=lambda pair: pair[0])


def _tiles(spec: Conv, m: int) -> int:
    """How many there are; a guess where sizes come at run time."""
    oh, ow = (s if isinstance(s, int) else 32 for s in spec.out_size)
    batch = spec.batch if isinstance(spec.batch, int) else 1
    return batch * -(-oh // m) * -(-ow // m)


def _blocked(spec: Conv, caps: WasmCaps, m: int, rows: int, unroll: int) -> Knobs:
    """Sizes of blocks and groups for the caches."""
    points, panels, tiles = (m + 2) ** 2, -(-spec.cout // PANEL), max(1, _tiles(spec, m))
    per_tile, per_panel = points * spec.cin * 4, points * spec.cin * PANEL * 4
    rows = min(rows, tiles)
    keep = panels * per_panel <= caps.l2_bytes * 5 // 4
    room = caps.l2_bytes // 2 if keep else 8 * caps.l2_bytes
    block = max(1, room // per_tile // rows) * rows
    if isinstance(spec.batch, int) and all(isinstance(s, int) for s in spec.out_size):
        block = min(block, -(-tiles // rows) * rows)
    # Few tiles make little use of each weight, which then should be near.
    group = min(panels, 4 if block >= 32 or keep else 1)
    return Knobs(m, rows, unroll, block, group, keep)


_INPUT = {2: 50, 4: 200}
_WEIGHT = {2: 60, 4: 110}
_OUTPUT = {2: 50, 4: 180}
"""What a transform of four channels costs, in vector multiply-adds of a product: measured."""


def _cost(spec: Conv, knobs: Knobs) -> float:
    tiles, m = _tiles(spec, knobs.m), knobs.m
    cout = align_int(spec.cout, PANEL)
    tile = Tile(knobs.rows, 1, knobs.unroll)
    products = (m + 2) ** 2 * tile.cost(tiles) * spec.cin * cout
    times = 1 if knobs.keep else -(-tiles // knobs.block)
    weights = _WEIGHT[m] * spec.cin * cout * times
    return (products + weights + tiles * (_INPUT[m] * spec.cin + _OUTPUT[m] * cout)) / 4


def direct_cost(spec: Conv) -> float:
    """The same for the plain sum."""
    return pixels(spec) * 9 * spec.cin * align_int(spec.cout, PANEL) / 4


def pixels(spec: Conv) -> int:
    """Of the output; a guess where sizes come at run time."""
    oh, ow = (s if isinstance(s, int) else 32 for s in spec.out_size)
    batch = spec.batch if isinstance(spec.batch, int) else 1
    return batch * oh * ow


def _odd_lines(count: int) -> int:
    """Bytes rounded up to an odd number of cache lines: planes that far apart do not push each
    other out of the cache."""
    lines = -(-count // 64)
    return (lines + 1 - lines % 2) * 64


def emit(module: Module, spec: Conv, knobs: Knobs) -> WasmKernel:
    return _Emitter(module, spec, knobs).kernel()


class _Emitter:
    def __init__(self, module: Module, spec: Conv, knobs: Knobs) -> None:
        self.module, self.spec, self.knobs = module, spec, knobs
        m = self.m = knobs.m
        self.side = m + 2
        self.points = self.side**2
        self.transforms = transforms(m)
        oh, ow = spec.out_size
        self.down, self.across = ceildiv(oh, m), ceildiv(ow, m)
        self.panels = -(-spec.cout // PANEL)
        self.tile = Tile(knobs.rows, 1, knobs.unroll)
        self.epilogue = Epilogue(module, spec, spec.cout)
        # Where things lie in the scratch of a thread, and how far apart.
        cin = spec.cin
        self.row = cin * 4  # of a transformed input: one tile's channels
        self.v_plane = _odd_lines(knobs.block * self.row)
        self.u_panel = cin * PANEL * 4
        self.u_plane = _odd_lines(knobs.group * self.u_panel)
        self.m_tile = self.points * PANEL * 4  # of the products: [panel][tile][point][8]
        self.m_panel = knobs.block * self.m_tile
        held = -(-self.panels // knobs.group) if knobs.keep else 1
        self.u_group = self.points * self.u_plane
        # At 0: a tile's outputs.
        self.patch_at = align_int(m * m * PANEL * 4, 64)
        self.u_at = align_int(self.patch_at + self.side**2 * cin * 4 + slack(spec), 64)
        self.v_at = self.u_at + held * self.u_group
        self.m_at = self.v_at + self.points * self.v_plane
        self.scratch = align_int(self.m_at + knobs.group * self.m_panel, 64)
        self.patch = copy_patch(module, spec, self.side, self.side)

    # -- 1. the input -----------------------------------------------------------------------------

    def _input(self) -> Function:
        """(frame, scratch, first tile, tiles): their transformed input, in the scratch."""
        spec = self.spec
        pixel = spec.cin * 4
        from_patch = self._input_tile(self.side * pixel, pixel)
        column = spec.x.strides[2]
        from_image = None
        row = spec.x.strides[1]
        if spec.x.strides[3] == 1 and isinstance(column, int):
            from_image = self._input_tile(row * 4 if isinstance(row, int) else None, column * 4)
        f = self.module.function("winograd_input", Frame.types(spec, 3))
        frame, (scratch, first, count) = Frame.inner(spec, f)
        args = frame.args
        ih, iw, top, left = (
            f.hold(size(d, args)) for d in (*spec.in_size, spec.pad[0], spec.pad[1])
        )
        stride = f.hold(affine(size(row, args)) * 4)
        here, target = f.value(scratch + self.patch_at), f.value(scratch + self.v_at)
        i = f.local(I32)
        with f.loop_range(i, 0, count), f.scope():
            image, y0, x0 = self._place(f, frame, f.value(first + i))
            with f.block() as done:
                if from_image is not None:
                    y, x = f.value(y0 - top), f.value(x0 - left)
                    f.push(y, x)
                    f.i32_or()
                    f.push(affine(ih) - y - self.side)
                    f.i32_or()
                    f.push(affine(iw) - x - self.side)
                    f.i32_or()
                    f.push(0)
                    f.i32_ge_s()
                    with f.if_():
                        f.push(offset_of(frame.operands[0], spec.x, [image, y, x, 0], args))
                        f.push(target, stride)
                        f.call(from_image)
                        f.br(done)
                f.push(*frame.all, here, image, y0, x0)
                f.call(self.patch)
                f.push(here, target, 0)
                f.call(from_patch)
            f.assign(target, target + self.row)
        return f

    def _place(self, f: Function, frame: Frame, tile: Local) -> tuple[Local, Local, Local]:
        """Image and first output pixel of a tile."""
        down, across = (f.hold(size(d, frame.args)) for d in (self.down, self.across))
        line = f.value(tile // across)
        x = f.value((tile - affine(line) * across) * self.m)
        image = f.value(line // down)
        y = f.value((line - affine(image) * down) * self.m)
        return image, y, x

    def _input_tile(self, row: int | None, column: int) -> Function:
        """(source, target, row stride): one tile. `row`: that stride if it is known."""
        f = self.module.function("winograd_input_tile", [I32] * 3)
        source, target, stride = f.params
        transform = Linear(f, self.transforms.input)
        rows = [source]
        if row is None:
            for _ in range(1, self.side):
                rows.append(f.value(rows[-1] + stride))

        def load(i: int, j: int) -> None:
            f.get(source if row is not None else rows[i])
            f.v128_load(column * j + (row * i if row is not None else 0))

        def use(i: int, j: int, element: Local) -> None:
            f.store(target, element, (i * self.side + j) * self.v_plane)

        c = f.local(I32)
        with f.loop_range(c, 0, self.spec.cin, 4):
            transform.square(self.side, load, use)
            for pointer in (*rows, target):
                f.assign(pointer, pointer + 16)
        return f

    # -- 2. the weights and the products ----------------------------------------------------------

    def _weights(self) -> Function:
        """(source, target): the transformed weights of a panel."""
        f = self.module.function("winograd_weights", [I32] * 2)
        source, target = f.params
        transform = Linear(f, self.transforms.weight)
        tap = self.spec.cin * PANEL * 4

        def load(i: int, j: int) -> None:
            f.get(source)
            f.v128_load((3 * i + j) * tap)

        def use(i: int, j: int, element: Local) -> None:
            f.store(target, element, (i * self.side + j) * self.u_plane)

        i = f.local(I32)
        with f.loop_range(i, 0, self.spec.cin * VECTORS):
            transform.square(3, load, use)
            f.assign(source, source + 16)
            f.assign(target, target + 16)
        return f

    def _product(self) -> Function:
        """(a, b, c, tiles): one point's matrices of a block and panel.

        What rows past the last tile hold is multiplied too: a block is whole register tiles.
        """
        f = self.module.function("winograd_product", [I32] * 4)
        a, b, c, count = f.params
        tile = self.tile
        start, b_now = f.locals(I32, 2)
        with f.loop_range(start, 0, count, tile.rows), f.scope():
            f.assign(b_now, b)
            base = f.value(a)
            rows = [(base, r * self.row) for r in range(tile.rows)]
            core = Core(f, tile, rows, b_now, Panels.packed(self.spec.cin, 1), False)
            core.clear()
            core.run(self.spec.cin)
            for r, row in enumerate(core.acc):
                for v, acc in enumerate(row):
                    f.store(c, acc, r * self.m_tile + 16 * v)
            f.assign(a, a + tile.rows * self.row)
            f.assign(c, c + tile.rows * self.m_tile)
        return f

    def _multiply(self) -> Function:
        """(weights, scratch, u, tiles, panels, fresh): all points of a block and group; first the
        weights are transformed, if `fresh`."""
        weights, product = self._weights(), self._product()
        f = self.module.function("winograd_multiply", [I32] * 6)
        source, scratch, u, count, panels, fresh = f.params
        p, point = f.locals(I32, 2)
        a, c = f.value(scratch + self.v_at), f.value(scratch + self.m_at)
        f.push(fresh)
        with f.if_(), f.loop_range(p, 0, panels):
            f.push(source + p * (9 * self.u_panel), u + p * self.u_panel)
            f.call(weights)
        with f.loop_range(point, 0, self.points), f.loop_range(p, 0, panels):
            f.push(a + point * self.v_plane)
            f.push(u + point * self.u_plane + p * self.u_panel)
            f.push(c + point * (PANEL * 4) + p * self.m_panel, count)
            f.call(product)
        return f

    # -- 3. the output ----------------------------------------------------------------------------

    def _output(self) -> Function:
        """(frame, scratch, first tile, tiles, first panel, panels): the outputs of a block.

        0 times an output is NaN where it is not finite: `bad` sums that up."""
        spec, m = self.spec, self.m
        exact = self._exact()
        f = self.module.function("winograd_output", Frame.types(spec, 5))
        frame, (scratch, first, count, panel0, panels) = Frame.inner(spec, f)
        oh, ow = (f.hold(size(d, frame.args)) for d in spec.out_size)
        transform = Linear(f, self.transforms.output)
        zero, bad = f.locals(V128, 2)
        f.zero(zero)
        i, p, v = f.locals(I32, 3)
        source = f.local(I32)
        with f.loop_range(i, 0, count), f.scope():
            image, y0, x0 = self._place(f, frame, f.value(first + i))
            down = f.value(imin(f.value(affine(oh) - y0), m))
            across = f.value(imin(f.value(affine(ow) - x0), m))
            with f.loop_range(p, 0, panels), f.scope():
                n = f.value((panel0 + p) * PANEL)
                here = f.value(n)
                f.assign(source, scratch + self.m_at + p * self.m_panel + i * self.m_tile)
                f.zero(bad)
                vectors: IntLike = VECTORS
                if 0 < spec.cout % PANEL <= 4:
                    vectors = imin(f.value((affine(spec.cout) - n + 3) // 4), VECTORS)
                with f.loop_range(v, 0, vectors), f.scope():

                    def load(r: int, c: int) -> None:
                        f.get(source)
                        f.v128_load((r * self.side + c) * PANEL * 4)

                    def use(r: int, c: int, element: Local) -> None:
                        f.store(scratch, element, (r * m + c) * 16)
                        f.get(element, zero)
                        f.madd(bad)

                    transform.square(self.side, load, use)
                    self._store(f, frame, (image, y0, x0), (down, across), here, 4, scratch)
                    f.assign(source, source + 16)
                    f.assign(here, here + 4)
                f.get(bad, bad)
                f.f32x4_ne()
                f.v128_any_true()
                with f.if_():
                    f.push(*frame.all, scratch, image, y0, x0, n)
                    f.call(exact)
        return f

    def _store(
        self, f: Function, frame: Frame, at: tuple[Local, Local, Local],
        there: tuple[Local, Local], n: Local, columns: int, dump: Local,
    ) -> None:  # fmt: skip
        """Store a tile's outputs from [m][m][columns] at `dump`, as far as there are any."""
        image, y0, x0 = at
        present = f.value(imin(f.value(affine(self.spec.cout) - n), columns))
        r = f.local(I32)
        pitch = columns * 4
        with f.loop_range(r, 0, there[0]):
            f.push(*frame.all, image, y0 + r, x0, there[1], n, present)
            f.push(dump + r * (self.m * pitch), pitch)
            f.call(self.epilogue.rows_function())

    def _exact(self) -> Function:
        """(frame, scratch, b, y, x, first channel): one tile and panel as plain sums."""
        spec, m = self.spec, self.m
        f = self.module.function("winograd_exact", Frame.types(spec, 5))
        frame, (scratch, image, y0, x0, n) = Frame.inner(spec, f)
        here = f.value(scratch + self.patch_at)
        f.push(*frame.all, here, image, y0, x0)
        f.call(self.patch)
        pixel = spec.cin * 4
        b, to, r = f.value(0), f.value(scratch), f.local(I32)
        with f.loop_range(r, 0, m), f.scope():
            f.assign(b, frame.operands[1] + n * (9 * pixel))
            base = f.value(here)
            rows = [(base, c * pixel) for c in range(m)]
            core = Core(f, Tile(m, 1, 2), rows, b, Panels.packed(9 * spec.cin, 1), False)
            core.clear()
            core.run(3 * spec.cin, [(3, self.side * pixel)])
            for c, row in enumerate(core.acc):
                for v, acc in enumerate(row):
                    f.store(to, acc, (c * PANEL + 4 * v) * 4)
            f.assign(here, here + self.side * pixel)
            f.assign(to, to + m * PANEL * 4)
        oh, ow = (size(d, frame.args) for d in spec.out_size)
        down = f.value(imin(f.value(affine(oh) - y0), m))
        across = f.value(imin(f.value(affine(ow) - x0), m))
        self._store(f, frame, (image, y0, x0), (down, across), n, PANEL, scratch)
        return f

    # -- the work list ----------------------------------------------------------------------------

    def kernel(self) -> WasmKernel:
        spec, knobs = self.spec, self.knobs
        input_, output_ = self._input(), self._output()
        multiply = self._multiply()
        f, thread, threads, scratch, frame = Frame.entry(self.module, spec, "conv")
        operands, args = frame.operands, frame.args
        f.assign(scratch, scratch + thread * self.scratch)
        tiles = f.hold(affine(size(spec.batch * self.down * self.across, args)))
        f.push(tiles)
        f.i32_eqz()
        with f.if_():
            f.return_()
        fresh, u, panel = f.value(1), f.local(I32), f.local(I32)
        if self._share_panels():
            # All tiles are transformed for each part.
            sharing = shares(f, thread, threads, self.panels, least=self.panels)
        else:
            sharing = shares(f, thread, threads, tiles, knobs.rows, -(-knobs.block // knobs.rows))
        with sharing as (start, end):
            if self._share_panels():
                panel_start: IntLike = start
                panel_end: IntLike = end
                tile, tile_end = f.value(0), f.value(tiles)
                f.assign(fresh, 1)  # other panels than the part before
            else:
                panel_start, panel_end = 0, self.panels
                tile, tile_end = start, end
            # Blocks of the same size.
            every = f.value(tile_end - tile)
            blocks = f.value((every + (knobs.block - 1)) // knobs.block)
            f.assign(every, (every + blocks - 1) // blocks)
            f.assign(every, (every + (knobs.rows - 1)) // knobs.rows * knobs.rows)
            with f.loop() as again, f.scope():
                left = f.value(tile_end - tile)
                count = f.value(imin(every, left))
                f.push(*frame.all, scratch, tile, count)
                f.call(input_)
                f.assign(u, scratch + self.u_at)
                with f.loop_range(panel, panel_start, panel_end, knobs.group):
                    rest = f.value(panel_end - panel)
                    panels = f.value(imin(rest, knobs.group))
                    weights = operands[1] + panel * (9 * self.u_panel)
                    f.push(weights, scratch, u, count, panels, fresh)
                    f.call(multiply)
                    if knobs.keep:
                        f.assign(u, u + self.u_group)
                    f.push(*frame.all, scratch, tile, count, panel, panels)
                    f.call(output_)
                if knobs.keep:
                    f.assign(fresh, 0)
                f.assign(tile, tile + count)
                f.push(tile, tile_end)
                f.i32_lt_s()
                f.br_if(again)
        return WasmKernel(f.index, self.scratch)

    def _share_panels(self) -> bool:
        """Are there more panels to share than rows of tiles?"""
        tiles = self.spec.batch * self.down * self.across
        return isinstance(tiles, int) and tiles < self.panels * self.knobs.rows
