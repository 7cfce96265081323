"""Products of bytes: rows of activations rounded to 7 bits, and the register tile over them.

A row record in scratch is 16 bytes (f32 scale, then the zero point) and then the row's numbers.
With relaxed SIMD they are bytes, and four of them meet four weights of each of four columns in one
`relaxed_dot`; its sums of two products cannot leave 16 bits, whatever the engine, because one side
has 7 bits (see `spec.ACTIVATION_MAX`), and neither can the sum of two of those, because the weights
are chosen so (`spec.GROUP_MAX`): a step to 32 bits serves four products. Without, they are 16-bit
numbers, weights are widened as they are loaded, and `dot_i16x8` does the rest: the same integers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod

from ..spec import ACTIVATION_MAX, PANEL, int8_panel_bytes
from .asm import I32, V128, Function, Int, Local, Module
from .product import Row

HEADER = 16
"""Bytes before a row's numbers."""

_MAGIC = 12582912.0
"""1.5 * 2^23: added to a small f32, it leaves the nearest integer in the low bits."""
_MAGIC_BITS = 0x4B400000
_TINY = 1e-30
_STRETCH = 64
"""Numbers that are rounded without a loop, or in one turn of it."""


def width(module: Module, exact: bool = False) -> int:
    """Bytes per number of a row; `exact`: rows hold numbers of 16 bits that are not rounded."""
    return 1 if module.target.relaxed and not exact else 2


def in_floats(k: int) -> bool:
    """Are all sums over K, and what the zero point adds to them, integers that f32 holds? Then a
    row's zero point is a float, too."""
    return k * ACTIVATION_MAX * 128 <= 1 << 24


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
        vectors = self.columns // 4
        loaded = 2 * vectors if self.rows > 1 else 1
        if relaxed:  # columns, numbers of the row and products of two steps at a time, and the ones
            return self.rows * vectors + loaded + 4
        return 2 * self.rows * vectors + loaded + 2


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
        together = 2 if self.relaxed else 1
        self.columns = [f.locals(V128, vectors * each) for _ in range(together)]
        self.spreads, self.ones = f.locals(V128, 2), f.local(V128)
        self.fresh: set[Local] = set()
        """Accumulators whose first sums need not be added to a zero."""

    def run(self) -> None:
        f = self.f
        rounds, tail = divmod(self.quads, self.tile.unroll)
        accs = [acc for row in (*self.acc, *self.high) for acc in row]
        if rounds > 2 or not self.quads:
            for acc in accs:
                f.zero(acc)
        else:
            self.fresh.update(accs)
        if self.relaxed:
            f.push(1)
            f.i16x8_splat()
            f.set(self.ones)
        unroll = self.tile.unroll
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
        """Steps of four of K; of bytes two at a time, so long as there are two."""
        f = self.f
        together = 2 if self.relaxed else 1
        for at in range(first, first + count, together):
            quads = range(at, min(at + together, first + count))
            if len(self.rows) > 1:
                for quad, columns in zip(quads, self.columns, strict=False):
                    for i, column in enumerate(columns):
                        f.get(self.b)
                        self._load(i, quad)
                        f.set(column)
            for r, (pointer, offset) in enumerate(self.rows):
                for quad, spread in zip(quads, self.spreads, strict=False):
                    f.get(pointer)
                    place = offset + HEADER + quad * 4 * self.width
                    (f.v128_load32_splat if self.relaxed else f.v128_load64_splat)(place)
                    f.set(spread)
                for v in range(len(self.vectors)):
                    if self.relaxed:
                        self._multiply_bytes(r, v, quads)
                    else:
                        self._multiply_words(r, v, at)

    def _load(self, i: int, quad: int) -> None:
        """[address] -> the weights of column vector `i`, or of half of one."""
        at = quad * 4 * PANEL
        if self.relaxed:
            self.f.v128_load(self.vectors[i] + at)
        else:
            self.f.v128_load8x8_s(self.vectors[i // 2] + 8 * (i % 2) + at)

    def _column(self, i: int, quad: int, number: int) -> None:
        if len(self.rows) > 1:
            self.f.get(self.columns[number][i])
        else:
            self.f.get(self.b)
            self._load(i, quad)

    def _multiply_bytes(self, r: int, v: int, quads: range) -> None:
        """Sums of two steps are added in 16 bits, which the weights see to (`spec.GROUP_MAX`)."""
        f = self.f
        for number, quad in enumerate(quads):
            self._column(v, quad, number)
            f.get(self.spreads[number])
            f.i16x8_relaxed_dot_i8x16_i7x16_s()
            if number:
                f.i16x8_add()
        f.get(self.ones)
        f.i32x4_dot_i16x8_s()
        self._add(self.acc[r][v])

    def _multiply_words(self, r: int, v: int, quad: int) -> None:
        f = self.f
        for half, accs in enumerate((self.acc, self.high)):
            self._column(2 * v + half, quad, 0)
            f.get(self.spreads[0])
            f.i32x4_dot_i16x8_s()
            self._add(accs[r][v])

    def _add(self, acc: Local) -> None:
        """acc += what is on the stack."""
        f = self.f
        if acc in self.fresh:
            self.fresh.remove(acc)
        else:
            f.get(acc)
            f.i32x4_add()
        f.set(acc)

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
        # Of two vectors there is room for what belongs to their columns, which all rows need.
        near = len(self.rows) > 1 and len(self.vectors) == 2
        columns: list[tuple[Local, Local]] = []
        for v in range(len(self.vectors)) if near else ():
            columns.append((f.local(V128), f.local(V128)))
            for local, load in zip(columns[v], (self._scales, self._sums), strict=True):
                load(tail, v)
                f.set(local)
        scale, zero = self.columns[0][0], self.spreads[0]
        for (pointer, offset), accs in zip(self.rows, self.acc, strict=True):
            header = f.value(pointer + (offset - back))
            f.v128_load32_splat(addr=header)
            f.set(scale)
            f.v128_load32_splat(addr=header + 4)
            f.set(zero)
            for v, acc in enumerate(accs):
                self._shift(acc, zero, tail, v, columns)
                f.get(scale)
                if near:
                    f.get(columns[v][0])
                else:
                    self._scales(tail, v)
                f.f32x4_mul()
                f.f32x4_mul()
                f.set(acc)

    def _shift(
        self, acc: Local, zero: Local, tail: int, v: int, columns: list[tuple[Local, Local]]
    ) -> None:
        """-> acc - zero * sums of the columns, as floats."""
        f = self.f
        if not in_floats(self.k):
            f.get(acc, zero)
            self._sums(tail, v)
            f.i32x4_mul()
            f.i32x4_sub()
            f.f32x4_convert_i32x4_s()
            return
        if not f.module.target.relaxed:
            f.get(acc)
            f.f32x4_convert_i32x4_s()
        f.get(zero)
        if columns:
            f.get(columns[v][1])
        else:
            self._sums(tail, v)
        if f.module.target.relaxed:
            f.get(acc)
            f.f32x4_convert_i32x4_s()
            f.f32x4_relaxed_nmadd()
        else:
            f.f32x4_mul()
            f.f32x4_sub()

    def _place(self, tail: int, v: int) -> Int:
        """Where the scales of a vector's columns are, `tail` bytes after `b`; sums follow."""
        return self.b + (v // 2 * self.panel + tail + 16 * (v % 2))

    def _scales(self, tail: int, v: int) -> None:
        self.f.v128_load(addr=self._place(tail, v))

    def _sums(self, tail: int, v: int) -> None:
        """Of the columns' weights, as what `zero` is multiplied with."""
        self.f.v128_load(addr=self._place(tail, v) + 4 * PANEL)
        if in_floats(self.k):
            self.f.f32x4_convert_i32x4_s()


def row_function(module: Module, counts: Sequence[int], run: int, exact: bool) -> Function:
    """What makes row records: (source, target, strides...), see `quantise_row`."""
    return (_narrow_row if exact else quantise_row)(module, counts, run)


def _narrow_row(module: Module, counts: Sequence[int], run: int) -> Function:
    """Like `quantise_row` from i32 to i16, as they are."""

    def build(f: Function) -> None:
        source, target, *strides = f.params
        to = f.value(target + HEADER)

        def store(first: int, lanes: int) -> None:
            for half in (0, 1):
                f.push(to)
                for v in (2 * half, 2 * half + 1):
                    f.v128_load(addr=at + (4 * first + 16 * v))
                    _mask(f, lanes - 4 * v)
                f.i16x8_narrow_i32x4_s()
                f.v128_store(2 * first + 16 * half)

        with _runs(f, source, counts, strides) as at:
            _along(f, run, {at: 4, to: 2}, store)

    name = "x".join(map(str, (*counts, run)))
    return module.helper(f"narrow_{name}", [I32] * (2 + len(counts)), [], build)


def quantise_row(module: Module, counts: Sequence[int], run: int) -> Function:
    """(source, target, strides...): runs of `run` adjacent floats become one row record.

    There are `counts` runs, outermost first, `strides` bytes apart.
    """

    def build(f: Function) -> None:
        source, target, *strides = f.params
        # As integers: the largest signed is the largest float, the largest unsigned the smallest
        # negative one; infinities and NaN exceed all numbers. Two of each, since one would have to
        # wait for itself.
        ops = f.i32x4_max_s, f.i32x4_max_u
        best, x = [f.locals(V128, 2) for _ in ops], f.local(V128)
        for local in (*best[0], *best[1]):
            f.zero(local)

        def extremes(first: int, lanes: int) -> None:
            for v in range(-(-lanes // 4)):
                f.v128_load(addr=at + (4 * first + 16 * v))
                _mask(f, lanes - 4 * v)
                f.set(x)
                for pair, op in zip(best, ops, strict=True):
                    f.get(x, pair[v % 2])
                    op()
                    f.set(pair[v % 2])

        with _runs(f, source, counts, strides) as at:
            _along(f, run, {at: 4}, extremes)
        for (local, other), op in zip(best, ops, strict=True):
            f.get(local, other)
            op()
            f.set(local)
            for lanes in ((2, 3, 0, 1), (1, 0, 3, 2)):
                f.get(local, local, local)
                f.i32x4_shuffle(*lanes)
                op()
                f.set(local)
        (high, _), (low, _) = best
        scale, *rounding = _parameters(f, high, low, in_floats(prod(counts) * run))
        f.store(target, scale)
        to = f.value(target + HEADER)
        with _runs(f, source, counts, strides) as at:
            _quantise(f, at, to, run, *rounding)

    name = "x".join(map(str, (*counts, run)))
    return module.helper(f"quantise_{name}", [I32] * (2 + len(counts)), [], build)


def _along(
    f: Function, run: int, pointers: dict[Local, int], body: Callable[[int, int], None]
) -> None:
    """body(first, lanes) for every 16 numbers of a run, or what is left of them.

    `first` counts from where the pointers are, which are moved by so many bytes a number.
    """

    def stretch(count: int) -> None:
        for first in range(0, count, 16):
            body(first, min(16, count - first))
        for pointer, width in pointers.items():
            f.assign(pointer, pointer + width * count)

    rounds = run // _STRETCH
    if rounds > 1:
        with f.loop_range(f.local(I32), 0, rounds):
            stretch(_STRETCH)
        run %= _STRETCH
    stretch(run)


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


def _parameters(
    f: Function, high: Local, low: Local, floats: bool
) -> tuple[Local, Local, Local, Local]:
    """Locals: [scale, zero point, -, -] to be stored, 1 / scale, what makes a rounded float's
    bits the number, and `_MAGIC`. floats: the zero point is stored as a float."""
    scale, inverse, shift, stored, magic = f.locals(V128, 5)
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
    # 1.5 * 2^23 - low * inverse, the zero point in its low bits, rounded as it was added.
    # A splat, since engines make a vector constant anew wherever it is used.
    f.f32_const(_MAGIC)
    f.f32x4_splat()
    f.tee(magic)
    f.get(low, inverse)
    f.f32x4_mul()
    f.f32x4_sub()
    f.tee(stored)
    f.i32x4_const(2 * _MAGIC_BITS)
    f.i32x4_sub()
    f.set(shift)
    f.get(stored, magic)
    (f.f32x4_sub if floats else f.i32x4_sub)()
    f.set(stored)
    # An infinite range becomes NaN: inf - inf.
    f.get(high, high, high)
    f.f32x4_sub()
    f.f32x4_add()
    f.f32x4_const(float(ACTIVATION_MAX))
    f.f32x4_div()
    f.get(stored)
    f.i32x4_shuffle(0, 4, 0, 4)
    f.set(scale)
    return scale, inverse, shift, magic


def _quantise(
    f: Function, at: Local, to: Local, run: int, inverse: Local, shift: Local, magic: Local
) -> None:
    """Write the numbers of a run from `at` to `to`, and move both."""
    wide, last = width(f.module), f.local(V128)

    def whole(first: int) -> None:
        f.v128_load(addr=at + 4 * first)
        f.get(inverse)
        f.f32x4_mul()
        f.get(magic)
        f.f32x4_add()
        f.get(shift)
        f.i32x4_add()

    def twice(lanes: int, half: int, part: Callable[[int, int], None], first: int) -> None:
        """Two parts, or the first again: what is past a run belongs to the next one, or the next
        row's record, and is written over; at the end of a record it meets weights of 0."""
        part(first, lanes)
        if lanes > half:
            part(first + half, lanes - half)
        else:
            f.tee(last)
            f.get(last)

    def pair(first: int, lanes: int) -> None:
        twice(lanes, 4, lambda first, _: whole(first), first)
        f.i16x8_narrow_i32x4_s()
        if wide == 2:
            f.i32x4_const(ACTIVATION_MAX << 16 | ACTIVATION_MAX)
            f.i16x8_min_s()

    def store(first: int, lanes: int) -> None:
        if wide == 1:
            f.push(to)
            twice(lanes, 8, pair, first)
            f.i8x16_narrow_i16x8_s()
            f.v128_store(first)
        else:
            for half in range(0, lanes, 8):
                f.push(to)
                pair(first + half, lanes - half)
                f.v128_store(2 * (first + half))

    _along(f, run, {at: 4, to: wide}, store)
