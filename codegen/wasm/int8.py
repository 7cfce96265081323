"""Products of bytes: rows of activations rounded to 7 bits, and the register tile over them.

A row record in scratch is 16 bytes (f32 scale, i32 zero point) and then the row's numbers. With
relaxed SIMD they are bytes, and four of them meet four weights of each of four columns in one
`relaxed_dot`; its sums of two products cannot leave 16 bits, whatever the engine, because one side
has 7 bits (see `spec.ACTIVATION_MAX`). Without, they are 16-bit numbers, weights are widened as
they are loaded, and `dot_i16x8` does the rest: the same integers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from ..spec import ACTIVATION_MAX, PANEL, int8_panel_bytes
from .asm import I32, V128, Function, Local, Module
from .product import Row

HEADER = 16
"""Bytes before a row's numbers."""

_MAGIC = 12582912.0
"""1.5 * 2^23: added to a small f32, it leaves the nearest integer in the low bits."""
_MAGIC_BITS = 0x4B400000
_TINY = 1e-30


def width(module: Module, exact: bool = False) -> int:
    """Bytes per number of a row; `exact`: rows hold numbers of 16 bits that are not rounded."""
    return 1 if module.target.relaxed and not exact else 2


def pitch(module: Module, k: int, exact: bool) -> int:
    """Bytes from one row record to the next."""
    return HEADER + -(-k // 16) * 16 * width(module, exact)


@dataclass(frozen=True, slots=True)
class Tile:
    """rows x (8 * panels) sums; `unroll` times four steps of K per iteration."""

    rows: int
    panels: int
    unroll: int

    @property
    def columns(self) -> int:
        return self.panels * PANEL

    def registers(self, relaxed: bool) -> int:
        """Vector registers that the inner loop keeps alive."""
        vectors = self.columns // 4 if relaxed else self.columns // 2
        loaded = vectors if self.rows > 1 else 1
        return self.rows * vectors + loaded + (3 if relaxed else 2)


TILES = tuple(
    Tile(*shape)
    for shape in (
        (4, 1, 4), (3, 1, 4), (5, 1, 4), (2, 1, 4), (2, 1, 8), (1, 4, 2), (1, 2, 4), (1, 1, 8),
        (4, 1, 2), (4, 1, 8), (3, 1, 8), (2, 2, 2), (2, 2, 4), (1, 4, 4), (1, 2, 8),
    )
)  # fmt: skip
"""Shapes worth trying, the usual best first; what does not fit the registers is left out."""


def cost(rows: int, panels: int) -> float:
    """Relative time of a tile per panel: one row uses each weight once for its load."""
    return rows * {1: 1.6 if panels > 1 else 2.0, 2: 1.1, 3: 1.0, 4: 1.0}.get(rows, 1.05)


class Core:
    """The sums of one tile, in one function; afterwards `acc` holds floats, or integers if exact.

    rows: where each row's record is. b: address of the first panel; it is moved.
    """

    def __init__(
        self, f: Function, tile: Tile, k: int, rows: list[Row], b: Local, exact: bool
    ) -> None:
        self.f, self.tile, self.k, self.rows, self.b = f, tile, k, rows, b
        self.exact = exact
        self.relaxed = f.module.target.relaxed and not exact
        self.quads = -(-k // 4)
        self.pointers = list(dict.fromkeys(pointer for pointer, _ in rows))
        self.width = width(f.module, exact)
        self.panel = int8_panel_bytes(k)
        vectors = tile.columns // 4
        self.vectors = [p * self.panel + 16 * v for p in range(tile.panels) for v in (0, 1)]
        each = 1 if self.relaxed else 2
        self.acc = [[f.local(V128) for _ in range(vectors)] for _ in rows]
        self.high = [[f.local(V128) for _ in range(vectors)] for _ in rows] if each == 2 else []
        self.columns = [f.local(V128) for _ in range(vectors * each)]
        self.spread, self.ones = f.local(V128), f.local(V128)

    def run(self) -> None:
        f = self.f
        for row in (*self.acc, *self.high):
            for acc in row:
                f.zero(acc)
        if self.relaxed:
            f.push(1)
            f.i16x8_splat()
            f.set(self.ones)
        unroll = self.tile.unroll
        rounds, tail = divmod(self.quads, unroll)
        moved = 0
        if rounds > 2:
            step = 4 * self.width * unroll
            end = f.value(self.pointers[0] + rounds * step)
            with f.loop() as again:
                self._steps(0, unroll)
                for pointer in self.pointers:
                    f.assign(pointer, pointer + step)
                f.assign(self.b, self.b + unroll * 4 * PANEL)
                f.push(self.pointers[0], end)
                f.i32_ne()
                f.br_if(again)
            moved = rounds * unroll
        else:
            tail = self.quads
        self._steps(0, tail)
        self._finish(moved)

    def _steps(self, first: int, count: int) -> None:
        f = self.f
        for quad in range(first, first + count):
            at = quad * 4 * PANEL
            if len(self.rows) > 1:
                self._load_columns(at)
            for r, (pointer, offset) in enumerate(self.rows):
                f.get(pointer)
                place = offset + HEADER + quad * 4 * self.width
                (f.v128_load32_splat if self.relaxed else f.v128_load64_splat)(place)
                f.set(self.spread)
                for v in range(len(self.vectors)):
                    self._multiply(r, v, at)

    def _load_columns(self, at: int) -> None:
        f = self.f
        for i, column in enumerate(self.columns):
            f.get(self.b)
            self._load(i, at)
            f.set(column)

    def _load(self, i: int, at: int) -> None:
        """[address] -> the weights of column vector `i`, or of half of one."""
        if self.relaxed:
            self.f.v128_load(self.vectors[i] + at)
        else:
            self.f.v128_load8x8_s(self.vectors[i // 2] + 8 * (i % 2) + at)

    def _column(self, i: int, at: int) -> None:
        if len(self.rows) > 1:
            self.f.get(self.columns[i])
        else:
            self.f.get(self.b)
            self._load(i, at)

    def _multiply(self, r: int, v: int, at: int) -> None:
        f = self.f
        if self.relaxed:
            self._column(v, at)
            f.get(self.spread)
            f.i16x8_relaxed_dot_i8x16_i7x16_s()
            f.get(self.ones)
            f.i32x4_dot_i16x8_s()
            f.get(self.acc[r][v])
            f.i32x4_add()
            f.set(self.acc[r][v])
            return
        for half, accs in enumerate((self.acc, self.high)):
            self._column(2 * v + half, at)
            f.get(self.spread)
            f.i32x4_dot_i16x8_s()
            f.get(accs[r][v])
            f.i32x4_add()
            f.set(accs[r][v])

    def _finish(self, moved: int) -> None:
        """acc = row scale * column scale * (sum - zero point * column sum); the sum if exact."""
        f = self.f
        if not self.relaxed:
            for low, high in zip(self.acc, self.high, strict=True):
                for a, b in zip(low, high, strict=True):
                    f.get(a, b)
                    f.i32x4_shuffle(0, 2, 4, 6)
                    f.get(a, b)
                    f.i32x4_shuffle(1, 3, 5, 7)
                    f.i32x4_add()
                    f.set(a)
        if self.exact:
            return
        back = moved * 4 * self.width
        tail = (self.quads - moved) * 4 * PANEL
        scale, zero = self.columns[0], self.spread
        for (pointer, offset), accs in zip(self.rows, self.acc, strict=True):
            header = f.value(pointer + (offset - back))
            f.v128_load32_splat(addr=header)
            f.set(scale)
            f.v128_load32_splat(addr=header + 4)
            f.set(zero)
            for v, acc in enumerate(accs):
                p, half = divmod(v, 2)
                at = p * self.panel + tail + 16 * half
                f.get(acc, zero)
                f.v128_load(addr=self.b + (at + 4 * PANEL))
                f.i32x4_mul()
                f.i32x4_sub()
                f.f32x4_convert_i32x4_s()
                f.get(scale)
                f.v128_load(addr=self.b + at)
                f.f32x4_mul()
                f.f32x4_mul()
                f.set(acc)


def row_function(module: Module, counts: Sequence[int], run: int, exact: bool) -> Function:
    """What makes row records: (source, target, strides...), see `quantise_row`."""
    return (_narrow_row if exact else quantise_row)(module, counts, run)


def _narrow_row(module: Module, counts: Sequence[int], run: int) -> Function:
    """Like `quantise_row` from i32 to i16, as they are."""

    def build(f: Function) -> None:
        source, target, *strides = f.params
        to, i = f.value(target + HEADER), f.local(I32)

        def store(lanes: int) -> None:
            for half in (0, 1):
                f.push(to)
                for v in (2 * half, 2 * half + 1):
                    f.v128_load(addr=at + 16 * v)
                    _mask(f, lanes - 4 * v)
                f.i16x8_narrow_i32x4_s()
                f.v128_store(16 * half)

        with _runs(f, source, counts, strides) as at:
            with f.loop_range(i, 0, run // 16):
                store(16)
                f.assign(at, at + 64)
                f.assign(to, to + 32)
            if run % 16:
                store(run % 16)
                f.assign(to, to + run % 16 * 2)

    name = "x".join(map(str, (*counts, run)))
    return module.helper(f"narrow_{name}", [I32] * (2 + len(counts)), [], build)


def quantise_row(module: Module, counts: Sequence[int], run: int) -> Function:
    """(source, target, strides...): runs of `run` adjacent floats become one row record.

    There are `counts` runs, outermost first, `strides` bytes apart.
    """

    def build(f: Function) -> None:
        source, target, *strides = f.params
        high, low, x = f.locals(V128, 3)
        f.zero(high)
        f.zero(low)

        def extremes() -> None:
            # As integers: the largest signed is the largest float, the largest unsigned the
            # smallest negative one; infinities and NaN exceed all numbers.
            f.set(x)
            f.get(x, high)
            f.i32x4_max_s()
            f.set(high)
            f.get(x, low)
            f.i32x4_max_u()
            f.set(low)

        i = f.local(I32)
        with _runs(f, source, counts, strides) as at:
            with f.loop_range(i, 0, run // 16):
                for v in range(4):
                    f.v128_load(addr=at + 16 * v)
                    extremes()
                f.assign(at, at + 64)
            for v in range(-(-(run % 16) // 4)):
                f.v128_load(addr=at + 16 * v)
                _mask(f, run % 16 - 4 * v)
                extremes()
        for lanes in ((2, 3, 0, 1), (1, 0, 3, 2)):
            for extreme, op in ((high, f.i32x4_max_s), (low, f.i32x4_max_u)):
                f.get(extreme, extreme, extreme)
                f.i32x4_shuffle(*lanes)
                op()
                f.set(extreme)
        scale, inverse, shift = _parameters(f, high, low)
        f.store(target, scale)
        to = f.value(target + HEADER)
        with _runs(f, source, counts, strides) as at:
            _quantise(f, at, to, run, inverse, shift)

    name = "x".join(map(str, (*counts, run)))
    return module.helper(f"quantise_{name}", [I32] * (2 + len(counts)), [], build)


@contextmanager
def _runs(
    f: Function, source: Local, counts: Sequence[int], strides: Sequence[Local]
) -> Iterator[Local]:
    """Loops over runs; gives a local that points at the run and may be moved."""
    at = f.local(I32)
    with ExitStack() as stack:
        pointer = source
        for count, stride in zip(counts, strides, strict=True):
            outer, pointer = pointer, f.local(I32)
            f.assign(pointer, outer)
            stack.enter_context(_stepping(f, pointer, count, stride))
        f.assign(at, pointer)
        yield at


@contextmanager
def _stepping(f: Function, pointer: Local, count: int, stride: Local) -> Iterator[None]:
    with f.loop_range(f.local(I32), 0, count):
        yield
        f.assign(pointer, pointer + stride)


def _mask(f: Function, lanes: int) -> None:
    """Zero all but the first `lanes` lanes of the vector on the stack."""
    if lanes < 4:
        f.i32x4_const(*[-1 if i < lanes else 0 for i in range(4)])
        f.v128_and()


def _parameters(f: Function, high: Local, low: Local) -> tuple[Local, Local, Local]:
    """Locals: [scale, zero point, -, -] to be stored, 1 / scale, and what makes a rounded float's
    bits the number."""
    scale, inverse, zero = f.locals(V128, 3)
    f.get(low, low)
    f.push(31)
    f.i32x4_shr_s()
    f.v128_and()
    f.set(low)
    f.get(high, low)
    f.f32x4_sub()
    f.set(high)  # now the range
    f.f32x4_const(float(ACTIVATION_MAX))
    f.get(high)
    f.f32x4_div()
    f.get(high)
    f.f32x4_const(_TINY)
    f.f32x4_gt()
    f.v128_and()
    f.set(inverse)
    f.get(low, inverse)
    f.f32x4_mul()
    f.f32x4_neg()
    f.f32x4_nearest()
    f.i32x4_trunc_sat_f32x4_s()
    f.set(zero)
    # An infinite range becomes NaN: inf - inf.
    f.get(high, high, high)
    f.f32x4_sub()
    f.f32x4_add()
    f.f32x4_const(float(ACTIVATION_MAX))
    f.f32x4_div()
    f.get(zero)
    f.i32x4_shuffle(0, 4, 0, 4)
    f.set(scale)
    f.get(zero)
    f.i32x4_const(_MAGIC_BITS)
    f.i32x4_sub()
    f.set(zero)
    return scale, inverse, zero


def _quantise(f: Function, at: Local, to: Local, run: int, inverse: Local, shift: Local) -> None:
    """Write the numbers of a run from `at` to `to`, and move both."""
    wide = width(f.module)
    i = f.local(I32)

    def whole(v: int, lanes: int) -> None:
        f.v128_load(addr=at + 16 * v)
        _mask(f, lanes)
        f.get(inverse)
        f.f32x4_mul()
        f.f32x4_const(_MAGIC)
        f.f32x4_add()
        f.get(shift)
        f.i32x4_add()

    def pair(v: int, lanes: int) -> None:
        whole(v, lanes)
        whole(v + 1, lanes - 4)
        f.i16x8_narrow_i32x4_s()
        if wide == 2:
            f.i32x4_const(ACTIVATION_MAX << 16 | ACTIVATION_MAX)
            f.i16x8_min_s()

    def store(lanes: int) -> None:
        """16 numbers from `at`; those past `lanes` are written too, as what 0 becomes."""
        if wide == 1:
            f.push(to)
            pair(0, lanes)
            pair(2, lanes - 8)
            f.i8x16_narrow_i16x8_s()
            f.v128_store()
        else:
            for half in (0, 1):
                f.push(to)
                pair(2 * half, lanes - 8 * half)
                f.v128_store(16 * half)

    with f.loop_range(i, 0, run // 16):
        store(16)
        f.assign(at, at + 64)
        f.assign(to, to + 16 * wide)
    if run % 16:
        # The next run, or the next row's record, is written over what is too much.
        store(run % 16)
        f.assign(to, to + (run % 16) * wide)
