"""Runs the micro-benchmarks of `codegen.wasm.profile` in wasmtime on this machine."""

from __future__ import annotations

import time

import wasmtime

from .codegen.wasm.asm import Target
from .codegen.wasm.profile import PAGES, Time, WasmProfile, module, profile
from .executors.wasmtime_executor import PAGE, Memory, Team, Worker, default_threads, engine


def profile_wasmtime(threads: int | None = None) -> WasmProfile:
    """What wasmtime can do here, in some 50 ms.

    threads: as many as this process may use by default.
    """
    threads = threads or default_threads()
    code = wasmtime.Module(engine(), module(Target(relaxed=True, threads=True)))
    memory = Memory(True, PAGES * PAGE)
    workers = [Worker(code, memory) for _ in range(threads)]
    teams = {1: Team(workers[:1]), threads: Team(workers)}
    asking = profile(threads, relaxed=True)
    request: Time = next(asking)
    try:
        while True:
            start = time.perf_counter()
            teams[request.threads].call(request.function, *request.args)
            request = asking.send(time.perf_counter() - start)
    except StopIteration as done:
        found: WasmProfile = done.value
        return found
    finally:
        for team in teams.values():
            team.close()
