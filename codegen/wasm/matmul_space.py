"""Candidates of a product in WebAssembly: tiles, and how much of the operands is kept near."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..caps import WasmCaps
from ..dims import Dim, ceildiv
from ..spec import PANEL, Matmul, Storage
from . import int8
from .product import Tile


@dataclass(frozen=True, slots=True)
class Knobs:
    """rows x (8 * panels) results are held in registers; K is unrolled by `unroll`."""

    rows: int = 6
    panels: int = 1
    unroll: int = 2
    block: int = 64
    """Rows of A that are kept near while B passes."""
    direct: bool = False
    """Read a B with contiguous columns where it lies instead of packing it."""
    depth: int = 0
    """At most so much of K at a time, so that a panel and some rows of A stay in the first-level
    cache; the sums wait in scratch meanwhile. 0: all of K."""
    pack: bool = False
    """Copy blocks of A to scratch even if its rows are contiguous: there, they lie where they do
    not push each other out of the cache, as rows of a power of two of bytes do."""

    @property
    def tile(self) -> Tile:
        return Tile(self.rows, self.panels, self.unroll)


_WIDE = {6: 1.0, 5: 1.04, 4: 1.07}
"""Panels side by side with one row, and what they take per panel: a processor that reads the
constant from memory has more of it on the way with more of them. In its caches all are alike."""


def few_rows(rows: int, panels: Dim) -> int | None:
    """With one, two or three rows, how many panels at a time: enough sums in flight to hide the
    latency of one. None for more rows."""
    if rows == 1 and isinstance(panels, int):
        return min(_WIDE, key=lambda wide: -(-panels // wide) * wide * _WIDE[wide])
    return {1: 4, 2: 2, 3: 1}.get(rows)


SHORTER = {6: 2, 8: 2, 10: 2}
"""By how many rows the last tiles of a product are shorter, where that leaves less to compute
twice, for the heights of tile that have short ones."""
SHORTER_INT8 = {4: 1, 5: 1}
"""The same of products of bytes."""

_SHAPES = ((6, 1, 2), (6, 1, 4), (5, 1, 4), (4, 1, 4), (2, 2, 4), (5, 1, 2), (4, 1, 8), (3, 1, 8),
           (3, 2, 4), (4, 2, 4), (8, 1, 4), (6, 2, 2), (10, 1, 4))  # fmt: skip


def space(spec: Matmul, caps: WasmCaps) -> list[Knobs]:
    """Tiles that fit the registers, those that take the least work for the rows there are first."""
    panels = ceildiv(spec.n, PANEL)
    most = max(panels, 1) if isinstance(panels, int) else 1
    rows = spec.m if isinstance(spec.m, int) else None
    if is_int8(spec):
        return _int8_space(spec, caps, most)
    shapes: tuple[tuple[int, int, int], ...] = _SHAPES
    wide = None if rows is None else few_rows(rows, panels)
    if rows and wide:
        less, more = max(1, wide * 2 // 3), wide + 2
        shapes = tuple(
            (rows, p, u)
            for p, u in ((wide, 4), (wide, 8), (wide, 2), (less, 4), (less, 8), (more, 4), (1, 4))
        )
    found: dict[Tile, None] = {}
    for r, p, unroll in shapes:
        tile = Tile(r, min(p, most), unroll)
        if tile.registers <= caps.simd_registers and (rows is None or r <= max(rows, 1)):
            found[tile] = None
    tiles = list(found) or [Tile(max(1, min(rows or 1, 4)), 1, 4)]
    if rows is not None:
        tiles.sort(key=lambda t: _cost(t, rows))
    ways = _ways(spec)
    found_knobs = [
        Knobs(t.rows, t.panels, t.unroll, _block(spec, direct), direct)
        for t in tiles[: 16 // len(ways)]
        for direct in ways
    ]
    if _deep(spec):
        found_knobs = _blocked(spec, caps, found_knobs)
    return found_knobs[:16]


def _cost(tile: Tile, rows: int) -> float:
    """Of so many rows, with short tiles at their end (see `_Emitter._short`)."""
    tall, few = _mix(rows, tile.rows, SHORTER)
    if not few:
        return tile.cost(rows)
    short = replace(tile, rows=tile.rows - SHORTER[tile.rows])
    return tile.cost(tall * tile.rows) + short.cost(few * short.rows)


def _int8_cost(tile: int8.Tile, rows: int) -> float:
    tall, few = _mix(rows, tile.rows, SHORTER_INT8)
    cost = tall * int8.cost(tile.rows, tile.panels)
    return cost + (few * int8.cost(tile.rows - SHORTER_INT8[tile.rows], tile.panels) if few else 0)


def _mix(rows: int, height: int, shorter: dict[int, int]) -> tuple[int, int]:
    """How many tiles of that height, and how many short ones, make so many rows."""
    tiles = -(-rows // height)
    few = min(-rows % height // shorter[height], tiles - 1) if height in shorter else 0
    return tiles - max(few, 0), max(few, 0)


def is_int8(spec: Matmul) -> bool:
    return spec.blocks is None and spec.operands[1] is Storage.I8


def _deep(spec: Matmul) -> bool:
    """Is it a product of many rows with a constant so deep that a panel and A's rows push each
    other out of the first-level cache?"""
    many = not isinstance(spec.m, int) or spec.m >= 24
    constant = spec.b is None and spec.blocks is None
    return constant and many and isinstance(spec.k, int) and spec.k > 512


def _blocked(spec: Matmul, caps: WasmCaps, plain: list[Knobs]) -> list[Knobs]:
    """`plain` with K cut, blocks whose part of A takes some of the second-level cache, and packing;
    the default and two more shapes also without."""
    assert isinstance(spec.k, int)
    depth = max(128, caps.l1_bytes // 128)
    block = max(96, min(512, caps.l2_bytes * 3 // 8 // (4 * depth)))
    # Rows at multiples of 4 kB: all of them fall into the same sets of the first-level cache.
    pack = spec.k * 4 % 4096 == 0
    cut = [replace(k, block=block, depth=depth, pack=pack) for k in plain]
    first = cut[0]
    others = [replace(first, pack=not pack), replace(first, block=block // 2), *plain[:3]]
    return [first, *others, *cut[1:]]


def _int8_space(spec: Matmul, caps: WasmCaps, most: int) -> list[Knobs]:
    """Tiles for bytes: four times as many rows of A stay near."""
    found: dict[Knobs, None] = {}
    rows = spec.m if isinstance(spec.m, int) else None
    assert isinstance(spec.k, int)
    block = max(32, min(512, (128 << 10) // max(spec.k, 1)))
    short = caps.relaxed and spec.operands[0] is not Storage.I32
    for tile in int8.TILES:
        fits = tile.registers(short) <= caps.simd_registers
        if fits and tile.panels <= most and (rows is None or tile.rows <= max(rows, 1)):
            found[Knobs(tile.rows, tile.panels, tile.unroll, block)] = None
    candidates = list(found)
    if rows is not None:
        candidates.sort(key=lambda c: _int8_cost(int8.Tile(c.rows, c.panels, c.unroll), rows))
    return candidates


def _ways(spec: Matmul) -> list[bool]:
    """Whether to read B where it lies, the better guess first."""
    if spec.b is None or spec.b.strides[-1] != 1:
        return [False]
    if isinstance(spec.m, int) and spec.m <= 12:
        return [True]
    # Rows of a large B are far apart, and powers of two at that: they push each other out of
    # the cache. A small B stays there as it is.
    small = isinstance(spec.k, int) and isinstance(spec.n, int) and spec.k * spec.n <= 16 << 10
    return [True, False] if small else [False, True]


def _block(spec: Matmul, direct: bool) -> int:
    """Rows so that a block of A takes about 192 kB; more if every block packs B again."""
    k = spec.k if isinstance(spec.k, int) else 512
    rows = max(24, min(512, (192 << 10) // (4 * max(k, 1))))
    packed_once = spec.b is None and spec.blocks is None
    return rows if packed_once or direct else 4 * rows
