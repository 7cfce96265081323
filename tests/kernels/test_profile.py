"""The micro-benchmarks: their loops, what is concluded from times, and a run on this machine."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import wasmtime

from pywebgpu.codegen.wasm.asm import Target
from pywebgpu.codegen.wasm.profile import (
    FMA_FLOPS,
    PAGES,
    SIZES,
    TILE_ROWS,
    Time,
    WasmProfile,
    module,
    profile,
)
from pywebgpu.device_profile import profile_wasmtime
from tests.executors_seen import record_executor


def simulate(machine: Callable[[Time], float], threads: int = 2) -> WasmProfile:
    """What is concluded on a machine that takes `machine(request)` seconds."""
    asking = profile(threads, relaxed=True)
    request = next(asking)
    try:
        for _ in range(10_000):
            request = asking.send(machine(request))
    except StopIteration as done:
        found: WasmProfile = done.value
        return found
    raise AssertionError("it never ends")


def machine(registers: int, l1: int, l2: int, overhead: float = 1e-5) -> Callable[[Time], float]:
    """50 GFLOP/s, or half of it for tiles beyond the registers; 1, 4 and 20 ns of latency."""
    ring = [0]

    def seconds(request: Time) -> float:
        name, args = request.function, request.args
        if name == "link":
            ring[0] = args[0]
            return 1e-4
        if name == "chase":
            each = 1e-9 if ring[0] <= l1 else 4e-9 if ring[0] <= l2 else 20e-9
            return overhead + args[0] * each
        if name == "barriers":
            return overhead + args[0] * 2e-6
        if name == "fma":
            return overhead + FMA_FLOPS * args[0] / 50e9 * (1 if request.threads == 1 else 1.25)
        rows = int(name.removeprefix("tile_"))
        rate = 48e9 if 2 * rows + 3 <= registers else 26e9
        return overhead + args[0] * rows * 8 * 256 * 2 / rate

    return seconds


@pytest.mark.parametrize("registers", [16, 32])
@pytest.mark.parametrize(("l1", "l2"), [(32 << 10, 1 << 20), (64 << 10, 512 << 10)])
def test_what_times_mean(registers: int, l1: int, l2: int) -> None:
    found = simulate(machine(registers, l1, l2))
    assert found.caps.simd_registers == registers
    assert (found.caps.l1_bytes, found.caps.l2_bytes) == (l1, l2)
    assert found.gflops == pytest.approx(50, rel=1e-3)
    assert found.tile_gflops[TILE_ROWS[0]] == pytest.approx(48, rel=1e-3)
    assert found.latency_ns[SIZES[-1]] == pytest.approx(20, rel=1e-3)
    assert found.scaling == pytest.approx(1.6, rel=0.01)
    assert found.barrier_us == pytest.approx(2, rel=1e-3)
    assert WasmProfile.from_json(json.loads(json.dumps(found.to_json()))).caps == found.caps


def test_one_thread_asks_for_no_other() -> None:
    asked: list[Time] = []
    answers = machine(16, 32 << 10, 512 << 10)

    def seconds(request: Time) -> float:
        asked.append(request)
        return answers(request)

    found = simulate(seconds, threads=1)
    assert {r.threads for r in asked} == {1}
    assert (found.scaling, found.barrier_us, found.caps.threads) == (1.0, 0.0, False)


def test_the_ring_visits_every_line() -> None:
    """Else a "working set" would be smaller than it says."""
    engine = wasmtime.Engine(_relaxed())
    store = wasmtime.Store(engine)
    memory = wasmtime.Memory(store, wasmtime.MemoryType(wasmtime.Limits(PAGES, None)))
    code = wasmtime.Module(engine, module(Target(relaxed=True)))
    exports = wasmtime.Instance(store, code, [memory]).exports(store)
    link = exports["link"]
    assert isinstance(link, wasmtime.Func)
    for size in SIZES:
        link(store, 0, 1, size)
        data = memory.data_ptr(store)
        at = start = 65536
        seen = set()
        while at not in seen:
            seen.add(at)
            at = int.from_bytes(bytes(data[at : at + 4]), "little")
        assert at == start
        assert seen == set(range(start, start + size, 64))


def _relaxed() -> wasmtime.Config:
    config = wasmtime.Config()
    config.wasm_relaxed_simd = True
    return config


def test_on_this_machine() -> None:
    found = profile_wasmtime(2)
    record_executor("wasmtime")
    assert found.threads == 2
    assert found.gflops > 0.1
    assert all(found.tile_gflops[rows] > 0.1 for rows in TILE_ROWS)
    assert found.caps.simd_registers in (16, 32)
    assert SIZES[0] <= found.caps.l1_bytes <= found.caps.l2_bytes <= SIZES[-1]
    assert found.scaling > 0
