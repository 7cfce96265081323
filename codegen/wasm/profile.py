"""Micro-benchmarks: what an engine on a machine can do, learnt in some 50 milliseconds.

Nothing is read off names. `module` holds the loops, `profile` decides what to time and what it
means; a host (wasmtime, a page) only calls exports and holds the clock:

    asking = profile(threads=2, relaxed=True)
    request = next(asking)
    while True:
        seconds = ...          # of request.function(thread, threads, *request.args) on all threads
        request = asking.send(seconds)   # StopIteration.value is the WasmProfile

Every export is called as (thread, threads, ...) on `request.threads` threads at once. The memory
must have `PAGES` pages and begin as zeros.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..caps import WasmCaps
from ..spec import PANEL
from .asm import I32, V128, Function, Module, Target
from .model import add_barrier
from .product import Core, Panels, Tile

_CHAINS, _UNROLL = 10, 4
"""Independent sums: enough to hide the latency of a multiply-add, few enough for 16 registers."""
TILE_ROWS = (4, 6, 8, 10, 12)
"""Rows of a product's register tile of 8 columns: 2 accumulators each, and 3 registers more."""
_K = 256
_RING = 1 << 16  # address of the linked lines
_LINE = 64
SIZES = tuple(1 << n for n in range(13, 23))
"""Working sets in bytes: 8 KiB to 4 MiB."""
PAGES = (_RING + SIZES[-1]) // 65536 + 1
_STEPS = 40_000


@dataclass(frozen=True, slots=True)
class Time:
    """A request: seconds that one call of an export takes, on so many threads at once."""

    function: str
    args: tuple[int, ...]
    threads: int = 1


@dataclass(frozen=True, slots=True)
class WasmProfile:
    """What was measured; `caps` is what follows for the candidates.

    gflops: f32 multiply-adds on registers, one thread.
    tile_gflops: the same in a product whose operands lie in the first-level cache, by the rows of
        its register tile.
    latency_ns: from load to dependent load, by the bytes that are visited.
    scaling: work done by `threads` threads over that of one in the same time.
    barrier_us: from one barrier to the next on `threads` threads.
    """

    caps: WasmCaps
    gflops: float
    tile_gflops: dict[int, float]
    latency_ns: dict[int, float]
    threads: int
    scaling: float
    barrier_us: float

    def to_json(self) -> dict[str, Any]:
        """For storing; integers become strings where they are keys."""
        found = asdict(self)
        for name in _TABLES:
            found[name] = {str(k): round(v, 3) for k, v in found[name].items()}
        for name in ("gflops", "scaling", "barrier_us"):
            found[name] = round(found[name], 3)
        return found

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> WasmProfile:
        """The inverse of `to_json`; TypeError or ValueError if it is of another form."""
        tables = {n: {int(k): float(v) for k, v in data[n].items()} for n in _TABLES}
        return WasmProfile(**{**data, **tables, "caps": WasmCaps(**data["caps"])})


_TABLES = ("tile_gflops", "latency_ns")


# -- the loops -------------------------------------------------------------------------------------


def module(target: Target) -> bytes:
    """Exports fma(count), tile_<rows>(count), link(bytes), chase(steps), barriers(count)."""
    m = Module(target)
    m.export("fma", _fma(m))
    for rows in TILE_ROWS:
        m.export(f"tile_{rows}", _tile(m, rows))
    m.export("link", _link(m))
    m.export("chase", _chase(m))
    if target.threads:
        m.export("barriers", _barriers(m))
    return m.encode()


FMA_FLOPS = _CHAINS * _UNROLL * 4 * 2
"""Operations of fma(1)."""


def _fma(m: Module) -> Function:
    f = m.function("fma", [I32] * 3)
    i = f.local(I32)
    x, y = f.local(V128), f.local(V128)
    f.f32x4_const(*[0.999] * 4)
    f.set(x)
    f.f32x4_const(*[0.001] * 4)
    f.set(y)
    sums = f.locals(V128, _CHAINS)
    for each in sums:
        f.zero(each)
    with f.loop_range(i, 0, f.params[2]):
        for _ in range(_UNROLL):
            for each in sums:
                f.get(each, x)  # sum = sum * x + y, which cannot be simplified away
                f.fma(y)
                f.set(each)
    # Results must be seen: whoever left them out would leave the loop out.
    to = f.value(f.params[0] * 1024)
    for number, each in enumerate(sums):
        f.store(to, each, 1024 + 16 * number)
    return f


def _tile(m: Module, rows: int) -> Function:
    """rows x 8 results over K = 256, of zeros: speed does not depend on the values."""
    f = m.function(f"tile_{rows}", [I32] * 3)
    i, a, b, sink = f.local(I32), f.local(I32), f.local(I32), f.local(V128)
    tile = Tile(rows, 1, 4)
    f.zero(sink)
    with f.loop_range(i, 0, f.params[2]), f.scope():
        f.assign(b, _RING)
        f.assign(a, _RING + _K * PANEL * 4)
        at = [(a, r * (_K * 4 + _LINE)) for r in range(rows)]
        core = Core(f, tile, at, b, Panels.packed(_K, 1), False)
        core.clear()
        core.run(_K)
        for row in core.acc:
            for acc in row:
                f.get(acc, sink)
                f.f32x4_add()
                f.set(sink)
    f.store(f.value(f.params[0] * 1024), sink, 1024)
    return f


def _link(m: Module) -> Function:
    """Every line of the ring holds the address of the next one, far away and in no order that a
    prefetcher knows: n -> 5 n + 1 in different words modulo a power of two visits all numbers
    (Knuth, TAOCP vol. 2, 3.2.1.2, theorem A)."""
    f = m.function("link", [I32] * 3)
    i = f.local(I32)
    lines = f.value(f.params[2] // _LINE)
    with f.loop_range(i, 0, lines):
        f.push(i * _LINE + _RING)
        f.push(((i * 1664525 + 1013904223) % lines) * _LINE + _RING)
        f.i32_store()
    return f


def _chase(m: Module) -> Function:
    f = m.function("chase", [I32] * 3)
    i, at = f.local(I32), f.value(_RING)
    with f.loop_range(i, 0, f.params[2], 4):
        for _ in range(4):
            f.i32_load(addr=at)
            f.set(at)
    f.push(0, at)
    f.i32_store(1024)
    return f


def _barriers(m: Module) -> Function:
    f = m.function("barriers", [I32] * 3)
    barrier, i = add_barrier(m), f.local(I32)
    with f.loop_range(i, 0, f.params[2]):
        f.push(f.params[1])
        f.call(barrier)
    return f


# -- what to time, and what it means ---------------------------------------------------------------


def profile(
    threads: int, relaxed: bool, settle_s: float = 0.0
) -> Generator[Time, float, WasmProfile]:
    """Learn what the engine can do; see the module's head.

    settle_s: how long a loop is repeated at least; for engines that optimise what has run for a
    while (0.005 in browsers).
    """
    call = yield from _least(Time("chase", (0,)), 0)  # what a call costs, whatever it does
    count = 50_000  # 0.3 ms at 50 GFLOP/s: a browser's clock has steps of 5 microseconds
    seconds = yield from _least(Time("fma", (count,)), settle_s)
    gflops = FMA_FLOPS * count / max(seconds - call, 1e-9) / 1e9
    tiles = {}
    for rows in TILE_ROWS:
        seconds = yield from _least(Time(f"tile_{rows}", (400,)), settle_s)
        tiles[rows] = 800 * rows * PANEL * _K / max(seconds - call, 1e-9) / 1e9
    latency = {}
    for size in SIZES:
        yield Time("link", (size,))
        yield Time("chase", (size // _LINE,))
        seconds = yield from _least(Time("chase", (_STEPS,)), settle_s if size == SIZES[0] else 0)
        latency[size] = max(seconds - call, 1e-9) / _STEPS * 1e9
    scaling, barrier_us = 1.0, 0.0
    if threads > 1:
        long = 50_000
        alone = yield from _least(Time("fma", (long,)), 0)
        together = yield from _least(Time("fma", (long,), threads), settle_s)
        scaling = threads * alone / max(together, 1e-9)
        few = yield from _least(Time("barriers", (10,), threads), settle_s)
        many = yield from _least(Time("barriers", (1010,), threads), settle_s)
        barrier_us = max(many - few, 0.0) * 1e3
    caps = WasmCaps(
        relaxed=relaxed,
        threads=threads > 1,
        simd_registers=registers(tiles),
        l1_bytes=_cache(latency, SIZES[0], 1.6),
        l2_bytes=_cache(latency, 4 * _cache(latency, SIZES[0], 1.6), 2.0),
    )
    return WasmProfile(caps, gflops, tiles, latency, threads, scaling, barrier_us)


def registers(tile_gflops: Mapping[int, float]) -> int:
    """16 or 32 SIMD registers: with 16, a tile of 10 rows (23 values) goes through memory."""
    return 32 if tile_gflops[10] > 0.85 * tile_gflops[6] else 16


def _cache(latency: Mapping[int, float], least: int, factor: float) -> int:
    """The largest working set from `least` on that is about as quick as `least`."""
    found = least = min(least, SIZES[-1])
    for size in SIZES:
        if size >= least and latency[size] <= factor * latency[least]:
            found = size
        elif size > least:
            break
    return found


def _least(request: Time, settle_s: float) -> Generator[Time, float, float]:
    """The least of several calls: until five in a row gain nothing, and for `settle_s`."""
    best, spent, stale = float("inf"), 0.0, 0
    while stale < 5 or spent < settle_s:
        seconds = yield request
        spent += seconds
        stale = 0 if seconds < 0.97 * best else stale + 1
        best = min(best, seconds)
    return best
