"""Plays a plan's WebAssembly module on the desktop through wasmtime.

The same binary as in the browser, in a memory laid out as docs/design.md says. With several
threads the memory is shared and each thread has a store and an instance of its own; the threads
wait for each other inside the module, so a run is one call per thread.
"""

from __future__ import annotations

import os
import platform
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from queue import SimpleQueue
from typing import Any

import numpy as np
import wasmtime
from wasmtime import _ffi as ffi

from ..codegen.dims import Dim, evaluate
from ..codegen.program import Loop, Read, walk
from ..codegen.wasm import abi
from ..codegen.wasm.asm import MAX_PAGES
from ..codegen.wasm.model import ModelModule, Scratch, Size, Slot
from ..errors import DeviceError
from ..plan import Plan, Port, WeightBuffer
from . import base
from .base import Array, Feeds

PAGE = 1 << 16
_GARBAGE = 0x7FC0DEAD
"""What `poison` fills buffers with: as a float NaN, as an integer far out of range."""


@lru_cache(maxsize=1)
def engine() -> wasmtime.Engine:
    """One for the process: modules and memories of different engines do not mix."""
    config = wasmtime.Config()
    config.wasm_relaxed_simd = True
    config.wasm_threads = True
    config.cranelift_opt_level = "speed"
    if hasattr(wasmtime.Config, "shared_memory"):  # older releases have it always on
        config.shared_memory = True
    return wasmtime.Engine(config)


class SharedMemory(wasmtime.SharedMemory):
    """wasmtime-py 50 wraps the pointer once too often, so its own class cannot be imported."""

    def _as_extern(self) -> Any:
        union = ffi.wasmtime_extern_union(sharedmemory=self.ptr())
        return ffi.wasmtime_extern_t(ffi.WASMTIME_EXTERN_SHAREDMEMORY, union)


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where things lie for one set of sizes."""

    slots: list[int]
    sizes: list[int]
    scratch: int
    end: int
    params: Array


class WasmtimeExecutor:
    """See `base.Executor`. Not for use from several threads at once."""

    provider = "wasm"
    lost = False

    def __init__(
        self,
        plan: Plan,
        module: ModelModule,
        weights: Any,
        *,
        threads: int = 1,
        poison: bool = False,
    ) -> None:
        """
        Args:
            module: what `assemble` makes of the plan, or the same read from a bundle.
            weights: the weight space: `plan.weight_bytes` bytes, as anything with a buffer.
            threads: how many work on a run; more than 1 takes a module with threads.
            poison: fill all slots with garbage before each run, for tests.

        Raises:
            DeviceError: not enough memory, or the engine refuses the module.
        """
        if threads > 1 and not module.target.threads:
            raise DeviceError(
                "the module is for one thread", where="wasmtime", got=f"{threads} threads"
            )
        self.plan, self.module, self.threads, self.poison = plan, module, max(1, threads), poison
        self.device = f"wasmtime on {platform.machine()}, {_count(self.threads, 'thread')}"
        weight_bytes = memoryview(weights).cast("B")
        self._weights_end = module.weights_base + max(plan.weight_bytes, len(weight_bytes))
        self._memory = Memory(module.target.threads, self._weights_end)
        self._memory.data[module.weights_base : module.weights_base + len(weight_bytes)] = (
            np.frombuffer(weight_bytes, np.uint8)
        )
        try:
            compiled = wasmtime.Module(engine(), module.binary)
            self._team = Team([Worker(compiled, self._memory) for _ in range(self.threads)])
        except wasmtime.WasmtimeError as error:
            raise DeviceError(f"the module cannot be loaded: {error}", where="wasmtime") from error
        self._layouts: dict[tuple[int, ...], _Layout] = {}
        self._current: _Layout | None = None

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        wanted = base.wanted_outputs(self.plan, outputs)
        symbols = self._prepare(feeds)
        self._play()
        self._count(symbols)
        return {port.name: self._read(port, symbols) for port in wanted}

    def _play(self) -> None:
        self._memory.data[abi.FAULT : abi.FAULT + 4] = 0
        self._team.call("run")

    def _count(self, symbols: dict[str, int]) -> None:
        """The sizes that the run has found out; raises what it has found wrong."""
        if not self.plan.program:
            return
        assert self._current is not None
        fault = int(self._memory.data[abi.FAULT : abi.FAULT + 4].view(np.int32)[0])
        for number, item in enumerate(walk(self.plan.program), 1):
            if isinstance(item, Loop) and number == fault:
                raise base.endless(item, symbols)
            # Those inside a body say nothing of outputs, and may not have been reached.
            if isinstance(item, Read) and (item in self.plan.program or number == fault):
                at = self._address(self._current, item.buffer)
                found = int(self._memory.data[at : at + 4].view(np.int32)[0])
                base.count(item, found, symbols)

    def time_runs(self, feeds: Feeds, repeats: int = 10) -> list[float]:
        """Seconds of each of several runs, without moving feeds and outputs."""
        self._prepare(feeds)
        return [self._team.timed("run") for _ in range(repeats)]

    def time_kernel(
        self, binary: bytes, step: int, feeds: Feeds, scratch: Dim = 0, repeats: int = 10
    ) -> list[float]:
        """Seconds per run of another candidate for a step's kernel, at the step's operands.

        binary, scratch: what `assemble_kernel` gives for the same variant of the target. The
        step's output holds the candidate's result afterwards; `step_output` reads it.
        """
        symbols = self._prepare(feeds)
        layout, call = self._layout(symbols), self.plan.steps[step]
        args = [evaluate(dim, symbols) for dim in call.args]
        need = evaluate(scratch, {f"a{i}": a for i, a in enumerate(args)}) * self.threads
        self._memory.grow_to(layout.scratch + need + abi.READ_SLACK)
        pointers = [self._address(layout, b) for b in (*call.operands, call.output)]
        compiled = wasmtime.Module(engine(), binary)
        team = Team([Worker(compiled, self._memory) for _ in range(self.threads)])
        try:
            return [team.timed("kernel", *pointers, layout.scratch, *args) for _ in range(repeats)]
        finally:
            team.close()

    def step_output(self, step: int, elements: int) -> Array:
        """The first elements of a step's output buffer, as its last run left them."""
        assert self._current is not None
        call = self.plan.steps[step]
        dtype = base.storage_dtype(self.plan.kernels[call.kernel].output)
        at = self._address(self._current, call.output)
        found: Array = self._memory.data[at : at + elements * dtype.itemsize].view(dtype).copy()
        return found

    def close(self) -> None:
        self._team.close()

    # -- layout -----------------------------------------------------------------------------------

    def _prepare(self, feeds: Feeds) -> dict[str, int]:
        arrays, symbols = base.check_feeds(self.plan, feeds)
        layout = self._layout(symbols)
        memory = self._memory
        if layout is not self._current:
            memory.grow_to(layout.end)
            start = abi.PARAMS_BASE
            memory.data[start : start + layout.params.nbytes] = layout.params.view(np.uint8)
            self._current = layout
        if self.poison:
            words = memory.data[self._weights_end // 4 * 4 + 4 : layout.end // 4 * 4]
            words.view(np.uint32)[:] = _GARBAGE
        for port in self.plan.inputs:
            at = self._address(layout, port.buffer)
            array = arrays[port.name]
            memory.data[at : at + array.nbytes] = array.reshape(-1).view(np.uint8)
        return symbols

    def _layout(self, symbols: dict[str, int]) -> _Layout:
        key = tuple(symbols.get(name, 0) for name in self.plan.symbols)
        layout = self._layouts.get(key)
        if layout is None:
            layout = self._layouts[key] = self._lay_out(symbols)
            if len(self._layouts) > 64:
                del self._layouts[next(iter(self._layouts))]
        return layout

    def _lay_out(self, symbols: dict[str, int]) -> _Layout:
        sizes = base.slot_bytes(self.plan, symbols)
        end, slots = self._weights_end, []
        for size in sizes:
            start = _align(end + abi.READ_SLACK)
            slots.append(start)
            end = start + size
        scratch = _align(end + abi.READ_SLACK)
        each = evaluate(self.module.scratch_per_thread, symbols)
        end = scratch + each * self.threads + abi.READ_SLACK
        params = []
        for param in self.module.params:
            if isinstance(param, Slot):
                params.append(slots[param.number])
            elif isinstance(param, Scratch):
                params.append(scratch)
            else:
                assert isinstance(param, Size)
                params.append(evaluate(param.dim, symbols))
        # Addresses beyond 2 GiB are negative as i32.
        entries = np.array(params, np.int64).astype(np.uint32) if end < 1 << 32 else np.array(0)
        return _Layout(slots, sizes, scratch, end, entries)

    def _address(self, layout: _Layout, number: int) -> int:
        buffer = self.plan.buffers[number]
        if isinstance(buffer, WeightBuffer):
            return self.module.weights_base + buffer.offset
        return layout.slots[buffer.slot]

    def _read(self, port: Port, symbols: dict[str, int]) -> Array:
        assert self._current is not None
        at = self._address(self._current, port.buffer)
        size = base.port_bytes(port, symbols)
        return base.from_storage(port, self._memory.data[at : at + size], symbols)


def _align(address: int) -> int:
    return -(-address // abi.SLOT_ALIGN) * abi.SLOT_ALIGN


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


class Memory:
    """The module's memory, and `data`: all of it as bytes."""

    def __init__(self, shared: bool, size: int) -> None:
        self.shared = shared
        self.pages = -(-size // PAGE)
        limits = wasmtime.Limits(self.pages, MAX_PAGES if shared else None)
        type_ = wasmtime.MemoryType(limits, shared=shared)
        try:
            if shared:
                self.memory: Any = SharedMemory(engine(), type_)
            else:
                self.store = wasmtime.Store(engine())
                self.memory = wasmtime.Memory(self.store, type_)
        except wasmtime.WasmtimeError as error:
            raise self._refused(size) from error
        self._view()

    def _view(self) -> None:
        pointer = self.memory.data_ptr() if self.shared else self.memory.data_ptr(self.store)
        self.data: Array = np.ctypeslib.as_array(pointer, shape=(self.pages * PAGE,))

    def grow_to(self, size: int) -> None:
        """At least `size` bytes; DeviceError if there are none to be had."""
        more = -(-size // PAGE) - self.pages
        if more <= 0:
            return
        if self.pages + more > MAX_PAGES:
            raise self._refused(size)
        try:
            if self.shared:
                self.memory.grow(more)
            else:
                self.memory.grow(self.store, more)
        except wasmtime.WasmtimeError as error:
            raise self._refused(size) from error
        self.pages += more
        self._view()

    @staticmethod
    def _refused(size: int) -> DeviceError:
        return DeviceError(
            "the memory cannot grow",
            where="wasmtime",
            got=f"{size} bytes needed",
            expected=f"at most {MAX_PAGES * PAGE}",
            remedy="Use smaller inputs, or run on the GPU",
        )


class Worker:
    """One thread's instance of a module."""

    def __init__(self, module: wasmtime.Module, memory: Memory) -> None:
        # A memory that is not shared lives in its store, and so must the instance.
        self.store = wasmtime.Store(engine()) if memory.shared else memory.store
        instance = wasmtime.Instance(self.store, module, [memory.memory])
        self.exports = instance.exports(self.store)

    def call(self, name: str, *args: int) -> None:
        function = self.exports[name]
        assert isinstance(function, wasmtime.Func)
        function(self.store, *args)


Tasks = SimpleQueue[Callable[[], None] | None]


class Team:
    """Calls a function of the module on all threads at once.

    With more than one, all run on threads of the team, so that a trap in one is reported although
    the others wait for it for ever. (They are daemons, and the executor is of no more use.)
    """

    def __init__(self, workers: list[Worker]) -> None:
        self.workers = workers
        self._results: SimpleQueue[BaseException | None] = SimpleQueue()
        self._tasks: list[Tasks] = []
        self._broken: BaseException | None = None
        if len(workers) == 1:
            return
        self._tasks += [SimpleQueue() for _ in workers]
        for tasks in self._tasks:
            threading.Thread(target=_serve, args=(tasks, self._results), daemon=True).start()
        # A session that nobody closes takes its threads along.
        weakref.finalize(self, _dismiss, list(self._tasks))

    def call(self, name: str, *args: int) -> None:
        """name(thread, threads, *args) on every thread; returns when all have."""
        if self._broken is not None:
            raise DeviceError("stopped after an earlier fault", where="wasmtime")
        threads = len(self.workers)
        try:
            if threads == 1:
                self.workers[0].call(name, 0, 1, *args)
                return
            for thread, (worker, tasks) in enumerate(zip(self.workers, self._tasks, strict=True)):
                tasks.put(
                    lambda w=worker, t=thread: w.call(name, t, threads, *args)  # type: ignore[misc]
                )
            for _ in range(threads):
                error = self._results.get()
                if error is not None:
                    raise error
        except (wasmtime.WasmtimeError, wasmtime.Trap) as error:
            self._broken = error
            raise DeviceError(f"the module stopped: {error}", where="wasmtime") from error

    def timed(self, name: str, *args: int) -> float:
        start = time.perf_counter()
        self.call(name, *args)
        return time.perf_counter() - start

    def close(self) -> None:
        _dismiss(self._tasks)
        self._tasks = []


# Neither holds the team, nor longer than a call what it works on: else it would never be forgotten.


def _serve(tasks: Tasks, results: SimpleQueue[BaseException | None]) -> None:
    while (task := tasks.get()) is not None:
        try:
            task()
        except BaseException as error:
            results.put(error)
        else:
            results.put(None)
        del task


def _dismiss(threads: Sequence[Tasks]) -> None:
    for tasks in threads:
        tasks.put(None)


def default_threads() -> int:
    """As many as this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
