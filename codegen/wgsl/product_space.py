"""Which forms of a product are legal on a device, and which of them to try first."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

from ..caps import WgslCaps
from ..dims import ceildiv
from ..spec import STATISTICS
from .module import ENOUGH
from .product import Direct, Few, Knobs, Matrix, Order, Product, Tile

_TILES = (
    # (bm, bn, bk, tm, tn), large to small
    (128, 128, 8, 8, 8), (128, 128, 16, 8, 8), (128, 128, 32, 8, 8), (128, 64, 8, 8, 8),
    (128, 64, 16, 8, 8), (128, 64, 32, 8, 8), (64, 128, 32, 8, 8), (64, 64, 32, 8, 8),
    (64, 128, 8, 8, 8), (64, 128, 16, 8, 8), (64, 96, 24, 8, 4), (96, 48, 24, 8, 4),
    (64, 64, 8, 8, 4), (64, 64, 16, 8, 4), (64, 64, 16, 4, 4), (64, 64, 16, 8, 8),
    (64, 64, 32, 8, 4), (64, 32, 16, 4, 4), (64, 32, 32, 4, 4), (32, 64, 16, 4, 4),
    (32, 64, 32, 4, 4), (32, 32, 32, 4, 4), (32, 32, 16, 2, 4), (16, 64, 32, 2, 4),
    (16, 64, 16, 4, 4), (16, 32, 32, 2, 4), (64, 16, 32, 4, 4), (16, 32, 64, 2, 4),
    (32, 32, 64, 2, 4),
)  # fmt: skip
_MATRICES = (
    # (bm, bn, bk, sm, sn)
    (128, 128, 32, 64, 64), (128, 128, 32, 64, 32), (128, 128, 32, 32, 64), (128, 128, 16, 64, 64),
    (128, 128, 64, 64, 32), (128, 64, 32, 64, 32), (64, 128, 32, 32, 64), (64, 64, 32, 32, 32),
    (64, 64, 64, 32, 32), (64, 64, 32, 64, 32), (64, 32, 32, 32, 32), (32, 64, 64, 32, 32),
    (32, 32, 64, 16, 32), (16, 64, 64, 16, 32),
)  # fmt: skip


def everything(p: Product, caps: WgslCaps) -> list[Knobs]:
    """All that is legal: for benchmarks that the estimates below are judged by."""
    few = [f for f in _few(p) if _legal_few(f, caps)]
    direct = _legal_direct(p, caps)
    return [*_matrices(p, caps), *_tiles(p, caps), *few, *direct]


def space(p: Product, caps: WgslCaps) -> list[Knobs]:
    """What a rough model of a GPU thinks fastest, first; few-rows forms first for small M."""
    few = [f for f in _few(p) if _legal_few(f, caps)]
    tiles: list[Tile] = []
    shapes: Counter[tuple[int, ...]] = Counter()
    for t in sorted(_tiles(p, caps), key=lambda t: _typical(_cycles, p, t, caps)):
        shape = (t.bm, t.bn, t.bk, t.tm, t.tn)
        shapes[shape] += 1
        if shapes[shape] <= 2:  # its best variants; tuning wants different shapes
            tiles.append(t)
    direct = _legal_direct(p, caps)
    if isinstance(p.m, int) and p.m <= 8:
        return [*few, *tiles[:8], *direct[:2]]
    if caps.emulated:
        return [*direct[:3], *tiles[:16], *few[:3]]
    work = _multiplications(p)
    if p.b is Order.PANEL and _sizes(p)[3] > 64 and work <= _MEDIUM:
        return [*few[:3], *tiles[:14], *direct[:3]]
    if work <= _SMALL:
        return [*direct[:3], *tiles[:16], *few[:3]]
    matrices = sorted(_matrices(p, caps), key=lambda t: _typical(_matrix_cycles, p, t, caps))
    return [*matrices[:12], *tiles[: 6 if matrices else 16], *direct[:3], *few[:3]]


_SMALL = 8 << 20
"""Multiplications of a product too small for staging to pay: it would take microseconds on any
GPU, while a shader with workgroup memory takes several times as long to compile."""


_MEDIUM = 24 << 20
"""Of a product whose tiles are too few for the device: threads that divide k are more."""


def _sizes(p: Product) -> tuple[int, int, int, int]:
    """z, m, n, k, with a guess for those known at run time only."""
    z = p.z if isinstance(p.z, int) else 8
    m, n, k = (x if isinstance(x, int) else _USUAL for x in (p.m, p.n, p.k))
    return z, m, n, k


def _multiplications(p: Product) -> int:
    z, m, n, k = _sizes(p)
    return z * m * n * k


def _legal_direct(p: Product, caps: WgslCaps) -> list[Direct]:
    found = [d for d in _direct(p) if d.tx * d.ty <= caps.max_invocations]
    return [d for d in found if not p.statistics or d.tn * d.tx % STATISTICS == 0]


def _direct(p: Product) -> list[Direct]:
    """Small tiles first where there are few columns, so that enough threads have work."""
    n = p.n if isinstance(p.n, int) else _USUAL
    wide = [Direct(4, 4, 8, 8), Direct(4, 8, 8, 8), Direct(2, 4, 8, 8), Direct(4, 4, 16, 4)]
    narrow = [Direct(2, 4, 8, 8), Direct(4, 4, 4, 16), Direct(1, 4, 4, 16)]
    return wide if n >= 32 else narrow


def _splits(p: Product, bk: int) -> list[int]:
    """Into how many parts the k axis may be cut; a second pass would take the statistics."""
    if p.statistics:
        return [1]
    k = p.k if isinstance(p.k, int) else 64
    elements = p.z * p.m * ceildiv(p.n, 4) * 4
    # Of a size known at run time only, a product is cut where it is small (`module.parts`).
    room = _MOST_PARTIAL // (4 * max(elements, 1)) if isinstance(elements, int) else 16
    return [s for s in (1, 2, 4, 8, 16) if s == 1 or (k >= s * bk * 4 and s <= room)]


def _tiles(p: Product, caps: WgslCaps) -> list[Tile]:
    # A device without f16 cannot hold the operands either.
    kinds = (True, False) if p.half and not caps.emulated else (False,)
    found = (
        Tile(*shape, splits, buffers, half)
        for shape in _TILES
        for splits in _splits(p, shape[2])
        for buffers in (1, 2)
        for half in kinds
        # Ninety-six rows leave half of the device idle where rows are 128 and columns few.
        if shape[0] != 96 or (isinstance(p.n, int) and p.n >= 3072)
        # Longer sums lose more, and large tiles gain nothing by them.
        if not half or (shape[2] <= 32 and shape[2] * shape[3] * shape[4] <= 1024)
        if not p.statistics or shape[1] % STATISTICS == 0
    )
    return [t for t in found if _legal(t, caps)]


def _matrices(p: Product, caps: WgslCaps) -> list[Matrix]:
    if not (caps.matrix and p.half):
        return []
    found = (Matrix(*shape, splits) for shape in _MATRICES for splits in _splits(p, shape[2]))
    return [t for t in found if _legal(t, caps)]


_MOST_PARTIAL = 32 << 20
"""Bytes of partial sums that a split product may take."""

_USUAL = 256  # what a size known at run time only is taken for
_ROWS = (128, 384)  # and what rows are, in turn: a choice is to suit both
_LATENCY = 3000  # cycles of a step that nothing hides, with one workgroup at a time


def _typical(
    estimate: Callable[[Product, Any, WgslCaps, int], float], p: Product, t: Any, caps: WgslCaps
) -> float:
    """For as many rows as there are, or as inputs of models often have."""
    return sum(estimate(p, t, caps, m) for m in ([p.m] if isinstance(p.m, int) else _ROWS))


def _splits_of(p: Product, t: Tile | Matrix, workgroups: int) -> int:
    """As many as there would be at run time (`module.parts`)."""
    known = all(isinstance(size, int) for size in (p.z, p.m, p.n))
    return t.splits if known else max(1, min(t.splits, ENOUGH // max(1, workgroups)))


def _cycles(p: Product, t: Tile, caps: WgslCaps, m: int) -> float:
    """An estimate that orders candidates; only measuring tells how long they take.

    Its numbers are fitted to what `tests.bench.candidates` measured of 20 products in Chromium on
    an H100, those of encoders among them: there its first choice takes 3 % longer on average, 11 at
    most, than the best of those that need no more than 16 KiB of workgroup memory. Only what they
    are to each other means something.
    """
    z, _, n, k = _sizes(p)
    groups = -(-m // t.bm) * -(-n // t.bn) * z
    splits = _splits_of(p, t, groups)
    groups *= splits
    beside = max(1.0, groups / caps.fill)  # workgroups that hide each other's latency
    waves = beside + (math.ceil(beside) - beside) / math.sqrt(beside)  # the last one is not full
    # Reads from workgroup memory per multiplication fall as a thread's tile grows.
    busy: float = (t.tm * t.tn / (t.tm + t.tn) / 41) ** 0.3
    # Two f16 products at a time; each step's sums join the f32 ones.
    depth = t.bk / 1.6 + 3 if t.half else t.bk
    step = t.bm * t.bn * depth / 128 / busy
    stage = 143.0 * (t.bm + t.bn) * t.bk / 128 * (0.5 if t.half else 1)
    wait = _LATENCY / beside * (1.02 if t.buffers == 2 else 1)  # seldom of use
    steps = max(1, -(-k // (t.bk * splits)))
    cycles = waves * steps * (step + stage + wait)
    if t.splits > 1:
        cycles *= 1.1  # a small gain is not worth it: other devices have less bandwidth
    return cycles + _second_pass(p, t, m * splits, 52_000, 235)


def _matrix_cycles(p: Product, t: Matrix, caps: WgslCaps, m: int) -> float:
    z, _, n, k = _sizes(p)
    groups = -(-m // t.bm) * -(-n // t.bn) * z
    splits = _splits_of(p, t, groups)
    groups *= splits
    waves = max(1.0, groups / caps.fill)
    beside = min(3.0, waves)
    rate = min(1024.0, t.threads * 6 * beside)
    # Matrices loaded per multiplication of two of them.
    busy = min(1.0, t.sm * t.sn / (t.sm + t.sn) / 32)
    step = t.bm * t.bn * t.bk / rate / busy
    wait = 240 / beside
    return waves * max(1, -(-k // (t.bk * splits))) * (step + wait) + _second_pass(
        p, t, m * splits, 6700, 1100
    )


def _second_pass(
    p: Product, t: Tile | Matrix, rows: int, launch: float, bytes_per_cycle: float
) -> float:
    """Partial sums, so many rows of them, go out to memory and come back."""
    if t.splits == 1 and not p.twice:
        return 0.0
    z, _, n, _ = _sizes(p)
    return launch + rows * n * z * 8 / bytes_per_cycle


def _legal(t: Tile | Matrix, caps: WgslCaps) -> bool:
    return (
        t.storage <= caps.max_workgroup_storage
        and t.threads <= min(caps.max_invocations, caps.max_workgroup_size[0])
    )  # fmt: skip


def _few(p: Product) -> list[Few]:
    _, m, _, k = _sizes(p)
    rows = next(r for r in (1, 2, 4, 8) if r >= min(m, 8))
    if m > 8:
        pairs = {
            Order.PANEL: [(4, 16), (2, 32), (2, 16), (4, 32), (2, 64)],
            Order.N: [(8, 8), (16, 4), (8, 16)],
            Order.K: [(1, 32), (2, 32), (1, 64)],
        }[p.b]
        if p.statistics:
            pairs = [(8, 16), (8, 8), (16, 4)]
    elif p.b is Order.PANEL:
        # As many shares as have some steps each: the more are in flight, the less each waits.
        pairs = [(2, 64), (2, 32), (4, 64), (4, 32), (2, 16), (4, 16)]
        pairs.insert(0 if k >= 1024 else 1, (2, 128))
    elif p.b is Order.N:
        pairs = [(8, 8), (8, 16), (16, 8), (4, 16), (8, 32), (16, 4), (32, 4)]
    else:
        pairs = [(1, 64), (1, 32), (2, 32), (1, 128), (2, 64), (4, 32), (1, 256)]
    found = [Few(rows, columns, shares) for columns, shares in pairs]
    return [f for f in found if not p.statistics or f.columns * 4 % STATISTICS == 0]


def _legal_few(f: Few, caps: WgslCaps) -> bool:
    threads = f.columns * f.shares
    return (
        threads <= min(caps.max_invocations, caps.max_workgroup_size[0])
        and storage(f) <= caps.max_workgroup_storage
    )


def storage(knobs: Knobs) -> int:
    """Bytes of workgroup memory."""
    if isinstance(knobs, Direct):
        return 0
    if isinstance(knobs, Few):
        return 16 * knobs.rows * knobs.columns * knobs.shares
    return knobs.storage
