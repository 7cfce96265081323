"""What matrix products and convolutions share: the register tile and the store of its results.

A tile is `rows` output rows by `panels` panels of 8 columns, held in vector locals while K runs
through it: per step of K one vector of B per 4 columns is loaded, and per row one element of A is
loaded and spread over the lanes. All offsets that do not change with K are immediates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .. import scalar as sc
from ..dims import Atom, Dim, _terms
from ..scalar import Scalar, walk
from ..spec import PANEL, Attention, Conv, Matmul, Recurrent, Storage, View
from .asm import I32, V128, Function, Int, IntLike, Local, Module, ValType, affine, imax, imin
from .math import expand
from .scalar import Lanes

VECTORS = PANEL // 4
"""Vectors in a row of a panel."""


def check_storage(spec: Matmul | Conv | Attention | Recurrent) -> None:
    """Raises ValueError for what WebAssembly has no loads for."""
    if Storage.F16 in (*spec.operands, spec.output):
        raise ValueError("f16 storage is not available in WebAssembly")


def size(dim: Dim, args: Sequence[Local]) -> IntLike:
    """A size as an integer of a function whose parameters hold the spec's arguments."""
    if isinstance(dim, int):
        return dim
    total: IntLike = 0
    for monomial, coefficient in _terms(dim):
        term: IntLike = coefficient
        for atom in monomial:
            term = affine(term) * _atom(atom, args)
        total = affine(total) + term
    return total


def _atom(atom: Atom, args: Sequence[Local]) -> IntLike:
    if isinstance(atom, str):
        return args[int(atom[1:])]
    values = [size(a, args) for a in atom.args]
    if atom.op == "//":
        return affine(values[0]) // values[1]
    if atom.op == "%":
        return affine(values[0]) % values[1]
    result = values[0]
    for value in values[1:]:
        result = imin(result, value) if atom.op == "min" else imax(result, value)
    return result


@dataclass(frozen=True, slots=True)
class Frame:
    """What every function of one kernel receives first: buffers and run-time sizes."""

    operands: list[Local]
    output: Local
    args: list[Local]

    @staticmethod
    def types(spec: Matmul | Conv, extra: int) -> list[ValType]:
        """Parameter types of an inner function with `extra` integers of its own."""
        return [I32] * (len(spec.operands) + 1 + spec.n_args + extra)

    @staticmethod
    def entry(
        module: Module, spec: Matmul | Conv, name: str
    ) -> tuple[Function, Local, Local, Local, Frame]:
        """A function with the calling convention of docs/design.md: it, thread, threads, scratch
        and the frame."""
        n = len(spec.operands)
        f = module.function(name, [I32] * (4 + n + spec.n_args))
        p = f.params
        return f, p[0], p[1], p[3 + n], Frame(p[2 : 2 + n], p[2 + n], p[4 + n :])

    @staticmethod
    def inner(spec: Matmul | Conv, f: Function) -> tuple[Frame, list[Local]]:
        """The frame of an inner function and its own parameters."""
        n = len(spec.operands)
        m = n + 1 + spec.n_args
        return Frame(f.params[:n], f.params[n], f.params[n + 1 : m]), f.params[m:]

    @property
    def all(self) -> list[Local]:
        return [*self.operands, self.output, *self.args]


@dataclass(frozen=True, slots=True)
class Tile:
    """A register tile: rows x (8 * panels) accumulators, `unroll` steps of K per iteration."""

    rows: int
    panels: int
    unroll: int

    @property
    def columns(self) -> int:
        return self.panels * PANEL

    @property
    def registers(self) -> int:
        """Vector registers that the inner loop keeps alive."""
        vectors = self.panels * VECTORS
        # A single row uses each vector of B once: it needs no register of its own for long.
        return self.rows * vectors + (vectors if self.rows > 1 else 1) + 1

    def cost(self, rows: int) -> float:
        """Relative time for so many rows: tiles that overlap compute some twice.

        Small tiles load more per multiplication; the factors are measured, on x86-64.
        """
        wide = self.panels > 1
        small = {1: 1.9 if wide else 2.0, 2: 1.065 if wide else 1.5, 3: 1.05 if wide else 1.37}
        small |= {4: 1.08, 5: 1.06}
        return -(-rows // self.rows) * self.rows * small.get(self.rows, 1.0)


Row = tuple[Local, int]
"""Where a row of A is: a pointer and a constant offset in bytes. Rows may share a pointer."""


@dataclass(frozen=True, slots=True)
class Panels:
    """Where B is: bytes from one k to the next, and the offset of each column vector."""

    row: IntLike
    vectors: list[int]

    @staticmethod
    def packed(k: int, panels: int) -> Panels:
        """Panels of a packed constant with K = k."""
        vectors = [p * k * PANEL * 4 + 16 * v for p in range(panels) for v in range(VECTORS)]
        return Panels(PANEL * 4, vectors)

    @staticmethod
    def rows(row: IntLike, panels: int) -> Panels:
        """Columns lie side by side, rows `row` bytes apart."""
        return Panels(row, [16 * v for v in range(panels * VECTORS)])


class Core:
    """The loop over K of one tile, in one function.

    loops: (count, bytes) outermost first: after each round of what is inside, A's pointers have
    moved by `bytes` altogether. B runs on without a jump.
    """

    def __init__(
        self, f: Function, tile: Tile, rows: list[Row], b: Local, panels: Panels, integer: bool
    ) -> None:
        self.f, self.tile, self.rows, self.b, self.panels = f, tile, rows, b, panels
        self.integer = integer
        self.pointers = list(dict.fromkeys(pointer for pointer, _ in rows))
        columns = tile.panels * VECTORS
        self.acc = [[f.local(V128) for _ in range(columns)] for _ in rows]
        self.columns = [f.local(V128) for _ in range(columns)]
        self.spread = f.local(V128)

    def clear(self) -> None:
        """Start from zero; otherwise set `acc` before `run`."""
        for row in self.acc:
            for acc in row:
                self.f.zero(acc)

    def run(self, run: IntLike, loops: Sequence[tuple[IntLike, IntLike]] = ()) -> None:
        """Add the products over K = loops x run."""
        self._loops(run, loops)

    def _loops(self, run: IntLike, loops: Sequence[tuple[IntLike, IntLike]]) -> None:
        if not loops:
            self._k(run, last=True)
            return
        self._nest(run, list(loops))

    def _nest(self, run: IntLike, loops: list[tuple[IntLike, IntLike]]) -> None:
        f = self.f
        if not loops:
            self._k(run, last=False)
            return
        (count, total), inner = loops[0], loops[1:]
        if inner:
            advanced = affine(inner[0][0]) * inner[0][1]
        else:
            advanced = affine(run) * 4
        jump = f.hold(affine(total) - advanced)
        i = f.local(I32)
        with f.loop_range(i, 0, count):
            self._nest(run, inner)
            self._advance(jump, 0)

    def _k(self, run: IntLike, last: bool) -> None:
        f, unroll = self.f, self.tile.unroll
        if isinstance(run, int):
            rounds = run // unroll
            # Short runs are laid out flat: the loop would cost more than it saves.
            if rounds <= 2:
                self._steps(run)
                if not last:
                    self._advance(run * 4, affine(self.panels.row) * run)
                return
            end = f.value(self.pointers[0] + rounds * unroll * 4)
            with f.loop() as again:
                self._block(unroll)
                f.push(self.pointers[0], end)
                f.i32_ne()
                f.br_if(again)
            tail = run - rounds * unroll
            self._steps(tail)
            if not last:
                self._advance(tail * 4, affine(self.panels.row) * tail)
            return
        stop = f.value(self.pointers[0] + affine(run) * 4)
        end = f.value(stop - (unroll - 1) * 4)
        for step, bound in ((unroll, end), (1, stop)):
            with f.block() as done:
                f.push(self.pointers[0], bound)
                f.i32_ge_u()
                f.br_if(done)
                with f.loop() as again:
                    self._block(step)
                    f.push(self.pointers[0], bound)
                    f.i32_lt_u()
                    f.br_if(again)

    def _block(self, count: int) -> None:
        self._steps(count)
        self._advance(count * 4, affine(self.panels.row) * count)

    def _advance(self, a: IntLike, b: Int | int) -> None:
        """Move A's pointers by `a` bytes, B's by `b` unless `_steps` has moved it already."""
        f = self.f
        for pointer in self.pointers:
            f.assign(pointer, pointer + a)
        if isinstance(self.panels.row, int):
            f.assign(self.b, self.b + b)

    def _steps(self, count: int) -> None:
        f, row = self.f, self.panels.row
        for step in range(count):
            static = row * step if isinstance(row, int) else 0
            if len(self.rows) == 1:
                self._single(step, static)
                if not isinstance(row, int):
                    f.assign(self.b, self.b + row)
                continue
            for column, offset in zip(self.columns, self.panels.vectors, strict=True):
                f.get(self.b)
                f.v128_load(offset + static)
                f.set(column)
            for (pointer, offset), accs in zip(self.rows, self.acc, strict=True):
                f.get(pointer)
                f.v128_load32_splat(offset + 4 * step)
                f.set(self.spread)
                for column, acc in zip(self.columns, accs, strict=True):
                    f.get(self.spread, column)
                    multiply_add(f, acc, self.integer)
            if not isinstance(row, int):
                f.assign(self.b, self.b + row)

    def _single(self, step: int, static: int) -> None:
        """One k of one row: B is used where it is loaded."""
        f = self.f
        ((pointer, offset),) = self.rows
        f.get(pointer)
        f.v128_load32_splat(offset + 4 * step)
        f.set(self.spread)
        for at, acc in zip(self.panels.vectors, self.acc[0], strict=True):
            f.get(self.spread, self.b)
            f.v128_load(at + static)
            multiply_add(f, acc, self.integer)


def multiply_add(f: Function, acc: Local, integer: bool) -> None:
    """acc += a * b for [a, b] on the stack."""
    if integer:
        f.i32x4_mul()
        f.get(acc)
        f.i32x4_add()
        f.set(acc)
    else:
        f.madd(acc)


def offset_of(
    pointer: Local, view: View, coordinates: Sequence[IntLike], args: Sequence[Local]
) -> Int:
    """Byte address of a view's element."""
    total = affine(size(view.offset, args))
    for coordinate, stride in zip(coordinates, view.strides, strict=True):
        if not (isinstance(coordinate, int) and coordinate == 0):
            total = total + affine(coordinate) * size(stride, args)
    return pointer + total * 4


def copy_plane(module: Module) -> Function:
    """(source, target, outer, outer stride, inner, inner stride, target row), strides in bytes.

    target[o][i] = source[o, i] with the inner elements side by side.
    """

    def build(f: Function) -> None:
        source, target, outer, outer_stride, inner, inner_stride, row = f.params
        i, j, from_, to = f.locals(I32, 4)
        with f.loop_range(i, 0, outer):
            f.assign(from_, source)
            f.assign(to, target)
            with f.loop_range(j, 0, inner):
                f.push(to)
                f.i32_load(addr=from_)
                f.i32_store()
                f.assign(from_, from_ + inner_stride)
                f.assign(to, to + 4)
            f.assign(source, source + outer_stride)
            f.assign(target, target + row)

    return module.helper("copy_plane", [I32] * 7, [], build)


def copy_floats(module: Module) -> Function:
    """(source, target, bytes): may write up to 60 bytes past the end of the target."""

    def build(f: Function) -> None:
        source, target, count = f.params
        end = f.value(source + count)
        lanes = f.locals(V128, 4)
        with f.block() as done:
            f.push(source, end)
            f.i32_ge_u()
            f.br_if(done)
            with f.loop() as again:
                for n, local in enumerate(lanes):
                    f.get(source)
                    f.v128_load(16 * n)
                    f.set(local)
                for n, local in enumerate(lanes):
                    f.store(target, local, 16 * n)
                f.assign(target, target + 64)
                f.assign(source, source + 64)
                f.push(source, end)
                f.i32_lt_u()
                f.br_if(again)

    return module.helper("copy_floats", [I32] * 3, [], build)


def copy_rows(module: Module) -> Function:
    """(source, target, rows, source pitch, bytes, target pitch): like `copy_floats`, per row."""

    def build(f: Function) -> None:
        source, target, rows, from_pitch, count, to_pitch = f.params
        i = f.local(I32)
        with f.loop_range(i, 0, rows):
            f.push(source, target, count)
            f.call(copy_floats(module))
            f.assign(source, source + from_pitch)
            f.assign(target, target + to_pitch)

    return module.helper("copy_rows", [I32] * 6, [], build)


def fill_zero(module: Module) -> Function:
    """(target, bytes): may write up to 60 bytes past the end."""

    def build(f: Function) -> None:
        target, count = f.params
        zero = f.local(V128)
        f.zero(zero)
        i = f.local(I32)
        with f.loop_range(i, 0, count, 64):
            for n in range(4):
                f.store(target, zero, 16 * n)
            f.assign(target, target + 64)

    return module.helper("fill_zero", [I32] * 2, [], build)


def transpose(f: Function, rows: Sequence[Local]) -> list[Local]:
    """Four vectors as the columns of the 4 x 4 block whose rows they are; new locals."""
    a, b, c, d = rows
    low, high, low2, high2 = f.locals(V128, 4)
    out = f.locals(V128, 4)
    for x, y, lanes, to in (
        (a, b, (0, 4, 1, 5), low),
        (a, b, (2, 6, 3, 7), high),
        (c, d, (0, 4, 1, 5), low2),
        (c, d, (2, 6, 3, 7), high2),
        (low, low2, (0, 1, 4, 5), out[0]),
        (low, low2, (2, 3, 6, 7), out[1]),
        (high, high2, (0, 1, 4, 5), out[2]),
        (high, high2, (2, 3, 6, 7), out[3]),
    ):
        f.get(x, y)
        f.i32x4_shuffle(*lanes)
        f.set(to)
    return out


def pack_transposed(module: Module, panels: int) -> Function:
    """(source, target, K, column stride in bytes, columns present): target[k][column].

    The elements of a column lie side by side in the source. The target has room for K rounded up
    to 4; columns that are not present hold copies of the last one.
    """
    columns = panels * PANEL

    def build(f: Function) -> None:
        source, target, k, stride, present = f.params
        i, to = f.locals(I32, 2)
        last = f.value(present - 1)
        for block in range(0, columns, 4):
            with f.scope():
                pointers = [f.value(source + imin(last, block + c) * stride) for c in range(4)]
                f.assign(to, target + block * 4)
                with f.loop_range(i, 0, k, 4), f.scope():
                    rows = []
                    for pointer in pointers:
                        f.v128_load(addr=pointer)
                        rows.append(f.local(V128))
                        f.set(rows[-1])
                        f.assign(pointer, pointer + 16)
                    for r, column in enumerate(transpose(f, rows)):
                        f.store(to, column, r * columns * 4)
                    f.assign(to, to + columns * 16)

    return module.helper(f"pack_transposed_{columns}", [I32] * 5, [], build)


def view_index(view: View) -> Scalar:
    """The element number of a view over AXIS 0, 1, ..."""
    total = sc.dim(view.offset)
    for number, stride in enumerate(view.strides):
        total = total + sc.axis(number) * sc.dim(stride)
    return total


LIGHT = 14
"""An epilogue with more operators than this is emitted once per kernel, not once per vector."""


class Epilogue:
    """final(ACC) of a tile, stored.

    Whole vectors of a short epilogue are stored from the accumulators. For a long epilogue, or
    where columns are missing at the right edge, the accumulators go to memory and a function that
    all tiles share brings them home row by row.
    """

    def __init__(self, module: Module, spec: Matmul | Conv, columns: Dim) -> None:
        self.module, self.spec, self.columns = module, spec, columns
        self.rank = len(spec.out.strides)
        self.index = view_index(spec.out)
        self.inline = len([n for n in walk([expand(spec.final)]) if n.args]) <= LIGHT
        self._rows: Function | None = None

    def _lanes(self, f: Function, frame: Frame, vector: bool) -> Lanes:
        spec = self.spec
        return Lanes(
            f,
            list(zip(frame.operands, spec.operands, strict=True)),
            frame.args,
            rank=self.rank,
            vector=self.rank - 1 if vector else None,
            values=[spec.final],
            stores=[(frame.output, self.index)],
        )

    def store_tile(
        self,
        f: Function,
        frame: Frame,
        acc: list[list[Local]],
        coordinates: Sequence[Sequence[IntLike]],
        n0: Local,
        channel: Local,
        dump: Local,
    ) -> None:
        """Store acc[row][vector].

        coordinates: of each row, all axes but the last. n0: the tile's first column among
        `columns`; channel: the same on the last axis. dump: memory for the accumulators.
        """
        width = 4 * len(acc[0])
        whole = isinstance(self.columns, int) and self.columns % PANEL == 0
        never = isinstance(self.columns, int) and self.columns < width
        if self.inline and whole and not never:
            self._store_inline(f, frame, acc, coordinates, channel)
        elif self.inline and not never:
            f.push(n0 + width, size(self.columns, frame.args))
            f.i32_le_s()
            with f.if_():
                self._store_inline(f, frame, acc, coordinates, channel)
                f.else_()
                self._store_rows(f, frame, acc, coordinates, n0, channel, dump)
        else:
            self._store_rows(f, frame, acc, coordinates, n0, channel, dump)

    def _store_inline(
        self,
        f: Function,
        frame: Frame,
        acc: list[list[Local]],
        coordinates: Sequence[Sequence[IntLike]],
        channel: Local,
    ) -> None:
        lanes = self._lanes(f, frame, vector=True)
        with lanes.level():
            for v in range(len(acc[0])):
                with lanes.level({self.rank - 1: channel + 4 * v}):
                    for row, at in zip(acc, coordinates, strict=True):
                        with lanes.level(dict(enumerate(at)), acc=row[v]):
                            lanes.store(0, self.spec.final)

    def _store_rows(
        self,
        f: Function,
        frame: Frame,
        acc: list[list[Local]],
        coordinates: Sequence[Sequence[IntLike]],
        n0: Local,
        channel: Local,
        dump: Local,
    ) -> None:
        width = 4 * len(acc[0])
        for r, row in enumerate(acc):
            for v, local in enumerate(row):
                f.store(dump, local, (r * width + v * 4) * 4)
        with f.scope():
            left = f.value(affine(size(self.columns, frame.args)) - n0)
            present = f.value(imin(left, width))
            together = _consecutive(coordinates)
            rows = len(coordinates) if together else 1
            for r, at in enumerate(coordinates[:1] if together else coordinates):
                f.push(*frame.all, *at, rows, channel, present, dump + r * width * 4, width * 4)
                f.call(self.rows_function())

    def rows_function(self) -> Function:
        """(frame, coordinates..., rows, first column, columns, accumulators, bytes per row).

        The last coordinate but one counts up from row to row.
        """
        if self._rows is None:
            f = self._rows = self.module.function("finish", Frame.types(self.spec, self.rank + 4))
            self._finish(f)
        return self._rows

    def _finish(self, f: Function) -> None:
        frame, (*at, rows, channel, count, dump, pitch) = Frame.inner(self.spec, f)
        acc, j = f.local(V128), f.local(I32)
        whole = f.value(count & -4)
        outer: dict[int, IntLike] = dict(enumerate(at[:-1]))
        row = at[-1]
        exact = isinstance(self.columns, int) and self.columns % 4 == 0
        first_row, first_dump, i = f.value(row), f.value(dump), f.local(I32)
        for vector, begin, end, step in ((True, 0, whole, 4), (False, whole, count, 1)):
            if not vector:
                if exact:
                    continue
                f.assign(row, first_row)
                f.assign(dump, first_dump)
            lanes = self._lanes(f, frame, vector)
            with lanes.level(outer), f.loop_range(i, 0, rows):
                with lanes.level({self.rank - 2: row}), f.loop_range(j, begin, end, step):
                    if vector:
                        f.v128_load(addr=dump + j * 4)
                    else:
                        f.v128_load32_zero(addr=dump + j * 4)
                    f.set(acc)
                    with lanes.level({self.rank - 1: f.value(channel + j)}, acc=acc):
                        lanes.store(0, self.spec.final)
                f.assign(row, row + 1)
                f.assign(dump, dump + pitch)


def _consecutive(coordinates: Sequence[Sequence[IntLike]]) -> bool:
    """Do rows differ only in the last coordinate, each by one from the row before?"""
    first = coordinates[0]
    for r, at in enumerate(coordinates):
        step = affine(at[-1]) - first[-1]
        if (
            step.terms
            or step.constant != r
            or any(a is not b for a, b in zip(at[:-1], first[:-1], strict=True))
        ):
            return False
    return True
