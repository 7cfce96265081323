"""The tuner on this machine: hosts for wasmtime and wgpu, and `pywebgpu tune`.

A host has buffers of its own, filled with random values, so that a candidate that is wrong or stops
harms nothing. See `tune` for what is asked of it.
"""

from __future__ import annotations

import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import wasmtime

from .bundle import Bundle
from .codegen.dims import Dim, evaluate
from .codegen.spec import Storage
from .codegen.wasm import abi
from .codegen.wgsl.kernel import Role, WgslKernel
from .compile import compile_model
from .console import human_ms
from .errors import DeviceError, InputError
from .executors import base
from .executors.wasmtime_executor import PAGE, engine
from .executors.wgpu_device import Gpu
from .executors.wgpu_profile import measure
from .feeds import default_dim
from .plan import Plan, WeightBuffer
from .records import Record
from .tune import (
    TIME_LIMIT_S,
    TOLERANCE,
    CandidateError,
    Code,
    Host,
    Job,
    Result,
    Target,
    WasmBinary,
    WasmTarget,
    WgslTarget,
    drive,
    tune,
    unique,
)

Array = np.ndarray[Any, Any]
SAMPLE_S = 1e-3
"""What a measurement should take at least: the clock and the call are then nothing beside it."""
_BLOCK = 1 << 16  # random values that fill operands of any size


# -- what is there to tune -------------------------------------------------------------------------


def jobs(plan: Plan, dims: Mapping[str, int] | None = None) -> list[Job]:
    """The plan's distinct kernels with the sizes that they have for these symbols.

    Raises:
        InputError: the model has no such symbol, or cannot take these sizes.
    """
    symbols = _symbols(plan, dims or {})

    def size(number: int) -> int:
        buffer = plan.buffers[number]
        return buffer.bytes if isinstance(buffer, WeightBuffer) else evaluate(buffer.bytes, symbols)

    return unique(
        [
            Job(
                plan.kernels[step.kernel],
                tuple(evaluate(arg, symbols) for arg in step.args),
                tuple(size(b) for b in step.operands),
                size(step.output),
                1,
                step.label,
            )
            for step in plan.steps
        ]
    )


def _symbols(plan: Plan, dims: Mapping[str, int]) -> dict[str, int]:
    for name in dims:
        if name not in plan.symbols:
            raise InputError(
                "no input has this dimension",
                where=f"--dim {name}={dims[name]}",
                expected=", ".join(plan.symbols) or "no dimensions: all shapes are fixed",
            )
    symbols = {name: dims.get(name, default_dim(name)) for name in plan.symbols}
    shapes = {p.name: tuple(evaluate(d, symbols) for d in p.shape) for p in plan.inputs}
    return base.bind_symbols(plan, shapes)


def _random(storage: Storage, size: int) -> Array:
    """`size` bytes of the values that `tune.Load` asks for."""
    rng = np.random.default_rng(1)
    if storage is Storage.I32:
        block: Array = rng.integers(0, 2, _BLOCK).astype(np.int32)
    elif storage is Storage.I8:
        # Among weights lie scales, which are f32: these bytes make ordinary ones.
        block = rng.integers(0x3D, 0x40, _BLOCK).astype(np.int8)
    else:
        block = rng.standard_normal(_BLOCK).astype(base.storage_dtype(storage))
    # An odd block keeps rows of a large matrix from being equal.
    return np.resize(block[: _BLOCK - 1], size // storage.bytes)


def _difference(got: Array, want: Array, storage: Storage) -> str | None:
    """What is wrong with an output, if anything."""
    if storage is Storage.I32:
        wrong = int(np.count_nonzero(got != want))
        return f"wrong: {wrong} of {want.size} elements differ" if wrong else None
    nan = np.isnan(want)
    if not np.array_equal(nan, np.isnan(got)):
        return "wrong: NaN where the default has none, or vice versa"
    finite = np.isfinite(want)
    if not np.array_equal(got[~finite & ~nan], want[~finite & ~nan]):
        return "wrong: an infinity is missing"
    a, b = got[finite].astype(np.float64), want[finite].astype(np.float64)
    scale = float(np.abs(b).max(initial=0.0))
    off = float(np.abs(a - b).max(initial=0.0))
    if not off <= TOLERANCE[storage] * scale:
        return f"wrong: differs by {off:.3g} where the largest element is {scale:.3g}"
    return None


class _Limit:
    """How long a first run may take: learnt from the default's."""

    def __init__(self) -> None:
        self.seconds = 60.0

    def learn(self, number: int, took: float) -> None:
        if number == 0:
            self.seconds = max(TIME_LIMIT_S, 20 * took)


# -- wasmtime --------------------------------------------------------------------------------------


class _Side:
    """Buffers in a memory of one engine, and the modules that work on them."""

    def __init__(self, own: wasmtime.Engine, guarded: bool, job: Job) -> None:
        self.engine, self.guarded, self.job = own, guarded, job
        self.store = wasmtime.Store(own)
        self.addresses, end = [], 4096
        for size in (*job.operands, job.output):
            self.addresses.append(end)
            end += -(-(size + abi.READ_SLACK) // abi.SLOT_ALIGN) * abi.SLOT_ALIGN
        self.scratch = end
        pages = -(-(end + abi.READ_SLACK) // PAGE)
        kind = wasmtime.MemoryType(wasmtime.Limits(pages, None))
        self.memory = wasmtime.Memory(self.store, kind)
        for storage, size, at in zip(job.spec.operands, job.operands, self.addresses, strict=False):
            values = _random(storage, size)
            self.data()[at : at + values.nbytes] = values.view(np.uint8)

    def data(self) -> Array:
        pointer = self.memory.data_ptr(self.store)
        shape = (self.memory.size(self.store) * PAGE,)
        view: Array = np.ctypeslib.as_array(pointer, shape=shape)
        return view

    def function(self, code: WasmBinary) -> Callable[[int], None]:
        """`f(count)` runs the candidate that often."""
        args = self.job.args
        scratch = evaluate(code.scratch, {f"a{i}": a for i, a in enumerate(args)})
        missing = self.scratch + scratch + abi.READ_SLACK - self.memory.size(self.store) * PAGE
        if missing > 0:
            self.memory.grow(self.store, -(-missing // PAGE))
        module = wasmtime.Module(self.engine, code.binary)
        instance = wasmtime.Instance(self.store, module, [self.memory])
        repeat = instance.exports(self.store)["repeat"]
        assert isinstance(repeat, wasmtime.Func)
        whole = (0, 1)  # one thread does all
        return lambda count: repeat(self.store, count, *whole, *self.addresses, self.scratch, *args)

    def output(self) -> Array:
        at, dtype = self.addresses[-1], base.storage_dtype(self.job.spec.output)
        size = self.job.output // dtype.itemsize * dtype.itemsize
        return self.data()[at : at + size].view(dtype)


class WasmtimeHost:
    """See `tune.Host`. The first run is in an engine that can be stopped; that costs time in every
    loop, so the clock is held to another."""

    def __init__(self) -> None:
        config = wasmtime.Config()
        config.wasm_relaxed_simd = True
        config.epoch_interruption = True
        self._stoppable = wasmtime.Engine(config)
        self._limit = _Limit()

    @property
    def features(self) -> str:
        return f"wasmtime {platform.machine()}"

    def load(self, job: Job) -> None:
        try:
            self._trial = _Side(self._stoppable, True, job)
            self._timed = _Side(engine(), False, job)
        except wasmtime.WasmtimeError as error:
            raise CandidateError(f"no memory for the operands: {error}") from error
        self._functions: dict[int, Callable[[int], None]] = {}
        self._repeats: dict[int, int] = {}
        self._limit = _Limit()

    def make(self, number: int, code: Code) -> None:
        assert isinstance(code, WasmBinary)
        try:
            self._try(number, code)
            self._functions[number] = self._timed.function(code)
            self._functions[number](1)
        except (wasmtime.WasmtimeError, wasmtime.Trap) as error:
            raise CandidateError(str(error)) from error

    def _try(self, number: int, code: WasmBinary) -> None:
        side = self._trial
        function = side.function(code)
        output = side.output()
        output[:] = 1
        side.store.set_epoch_deadline(1)
        watch = threading.Timer(self._limit.seconds, self._stoppable.increment_epoch)
        watch.start()
        start = time.perf_counter()
        try:
            function(1)
        except wasmtime.Trap as error:
            if error.trap_code is wasmtime.TrapCode.INTERRUPT:
                raise CandidateError(f"takes longer than {self._limit.seconds:.3g} s") from error
            raise
        finally:
            watch.cancel()
        self._limit.learn(number, time.perf_counter() - start)
        output = side.output()
        if number == 0:
            self._want = output.copy()
        elif (problem := _difference(output, self._want, side.job.spec.output)) is not None:
            raise CandidateError(problem)

    def measure(self, numbers: Sequence[int]) -> list[float]:
        try:
            return [self._measure(number) for number in numbers]
        except (wasmtime.WasmtimeError, wasmtime.Trap) as error:
            raise CandidateError(str(error)) from error

    def _measure(self, number: int) -> float:
        function = self._functions[number]
        repeats = self._repeats.get(number)
        if repeats is None:
            repeats = self._repeats[number] = _repeats(lambda n: _timed(function, n))
        return _timed(function, repeats) / repeats * 1e3


def _timed(function: Callable[[int], None], count: int) -> float:
    start = time.perf_counter()
    function(count)
    return time.perf_counter() - start


def _repeats(seconds: Callable[[int], float]) -> int:
    """How many runs fill a sample. The runs that find out also settle caches and clock rates."""
    repeats = 1
    while repeats < 1 << 16:
        # Twice: one interruption must not make a short kernel look long.
        took = min(seconds(repeats), seconds(repeats))
        if took >= SAMPLE_S:
            break
        wanted = int(repeats * 1.2 * SAMPLE_S / max(took, 1e-9))
        repeats = max(2 * repeats, min(16 * repeats, wanted))
    return repeats


# -- wgpu ------------------------------------------------------------------------------------------


class WgpuHost:
    """See `tune.Host`. What hangs is the driver's to stop; it is only refused afterwards."""

    def __init__(self, gpu: Gpu | None = None) -> None:
        self.gpu = gpu or Gpu()
        self.caps = replace(self.gpu.caps(), emulated=self.gpu.emulated)
        if not self.gpu.emulated:
            self.caps = replace(self.caps, fill=measure(self.gpu).fill)
        self._buffers: list[Any] = []
        self._scratch: list[Any] = []
        self._uniform: Any = None
        self._limit = _Limit()

    @property
    def features(self) -> str:
        caps = asdict(self.caps)
        del caps["fill"]  # measured: it would never be quite the same
        facts = [*sorted(self.gpu.features), *(f"{k}={v}" for k, v in caps.items())]
        return "wgpu " + ", ".join(str(fact).replace(" ", "") for fact in facts)

    def load(self, job: Job) -> None:
        self._drop()
        self._job, self._limit = job, _Limit()
        try:
            for storage, size in zip(job.spec.operands, job.operands, strict=True):
                self._buffers.append(self.gpu.buffer(size, "operand"))
                self.gpu.write(self._buffers[-1], _random(storage, size).view(np.uint8))
            self._buffers.append(self.gpu.buffer(job.output, "output"))
        except DeviceError as error:  # too large for this device: the other kernels go on
            raise CandidateError(str(error)) from error
        self._uniform = self.gpu.uniforms([job.args]) if job.args else None
        self._made: dict[int, list[Any]] = {}
        self._repeats: dict[int, int] = {}

    def _drop(self) -> None:
        for buffer in (*self._buffers, *self._scratch):
            buffer.destroy()
        if self._uniform is not None:
            self._uniform.destroy()
        self._buffers, self._scratch, self._uniform = [], [], None

    def make(self, number: int, code: Code) -> None:
        assert isinstance(code, WgslKernel)
        try:
            self._make(number, code)
        except CandidateError:
            raise
        except Exception as error:  # wgpu-py has many kinds for what a device refuses
            raise CandidateError(f"{type(error).__name__}: {error}") from error

    def _kept_for(self, code: WgslKernel) -> Any:
        """A second output's buffer, as large as the first or as what it is made from, as far as one
        can know; None where there is none."""
        if not any(b.role is Role.KEPT for p in code.passes for b in p.bindings):
            return None
        (kept,) = self._scratch_for((max(*self._job.operands, self._job.output),))
        return kept

    def _make(self, number: int, code: WgslKernel) -> None:
        job, (*operands, output) = self._job, self._buffers
        self.gpu.pipelines([code])
        scratch = self._scratch_for(code.scratch)
        uniform = (self._uniform, 0) if self._uniform is not None else None
        made = self.gpu.dispatches(
            code, operands, output, scratch, job.args, uniform, self._kept_for(code)
        )
        dtype = base.storage_dtype(job.spec.output)
        size = job.output // dtype.itemsize * dtype.itemsize
        self.gpu.write(output, np.ones(size // dtype.itemsize, dtype).view(np.uint8))
        for _ in range(2):
            start = time.perf_counter()
            (raw,) = self.gpu.run(made, [(output, size)])
            took = time.perf_counter() - start
            if took <= self._limit.seconds:
                break  # else once more: drivers finish a pipeline at its first use
        else:
            raise CandidateError(f"took {took:.3g} s, more than {self._limit.seconds:.3g} s")
        self._limit.learn(number, took)
        got = np.frombuffer(raw, np.uint8).view(dtype).copy()
        if number == 0:
            self._want = got
        elif (problem := _difference(got, self._want, job.spec.output)) is not None:
            raise CandidateError(problem)
        self._made[number] = made

    def _scratch_for(self, sizes: Sequence[Dim]) -> list[Any]:
        symbols = {f"a{i}": a for i, a in enumerate(self._job.args)}
        found = [self.gpu.buffer(evaluate(size, symbols), "scratch") for size in sizes]
        self._scratch += found
        return found

    def measure(self, numbers: Sequence[int]) -> list[float]:
        try:
            return [self._measure(number) for number in numbers]
        except Exception as error:
            raise CandidateError(f"{type(error).__name__}: {error}") from error

    def _measure(self, number: int) -> float:
        made = self._made[number]
        repeats = self._repeats.get(number)
        if repeats is None:
            repeats = self._repeats[number] = _repeats(lambda n: self.gpu.time(made, n))
        return self.gpu.time(made, repeats) / repeats * 1e3

    def close(self) -> None:
        self._drop()


# -- the command -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TuneReport:
    """What `pywebgpu tune` says. Times: all kernel calls of one run, one after the other."""

    model: str
    provider: str
    result: Result

    @property
    def records(self) -> tuple[Record, ...]:
        return self.result.records

    def to_json(self) -> dict[str, Any]:
        r = self.result
        return {
            "model": self.model,
            "provider": self.provider,
            "device": r.device,
            "seconds": r.seconds,
            "candidates": r.measured,
            "stopped": r.stopped,
            "default_ms": r.default_ms,
            "best_ms": r.best_ms,
            "gain": round(r.default_ms / r.best_ms - 1, 4) if r.best_ms else 0.0,
            "kernels": [{**asdict(row), "gain": round(row.gain, 4)} for row in r.rows],
        }


def tune_model(
    model: str | os.PathLike[str] | bytes | Any,
    provider: str = "wasm",
    *,
    dims: Mapping[str, int] | None = None,
    budget_s: float = 20.0,
    progress: Callable[[str, int, int], None] | None = None,
    adapter: str | int | None = None,
    power_preference: str = "high-performance",
) -> TuneReport:
    """Measure the kernels of a model (an ONNX file or a bundle) on this machine.

    provider: "wasm" or "webgpu". dims: sizes of symbolic dimensions.
    adapter, power_preference: which GPU, as `InferenceSession` has it.

    Raises:
        ModelError, UnsupportedError, BundleError: the model cannot be read or compiled.
        InputError: an option is wrong.
        DeviceError: there is no such device.
    """
    if not budget_s > 0:
        raise InputError("not a number of seconds", where="budget", got=budget_s, expected="> 0")
    if provider not in ("wasm", "webgpu"):
        raise InputError(
            "unknown provider", where="provider", got=provider, expected="wasm or webgpu"
        )
    plan = _plan(model)
    work = jobs(plan if provider == "wasm" else plan.on_gpu, dims)
    target: Target
    host: WasmtimeHost | WgpuHost
    if provider == "wasm":
        host, target = WasmtimeHost(), WasmTarget()
    else:
        host = WgpuHost(Gpu.chosen(adapter, power_preference))
        target = WgslTarget(host.caps)
    asking = tune(work, target, host.features, budget_s, progress=progress)
    try:
        result: Result = _drive(asking, host)
    finally:
        if isinstance(host, WgpuHost):
            host.close()
    return TuneReport(str(model) if not isinstance(model, bytes) else "model", provider, result)


def print_report(report: TuneReport) -> None:
    """A table of the kernels that were searched, for people."""
    from rich.console import Console
    from rich.table import Table

    result = report.result
    defaults = {record.kernel: record.candidates[0].knobs for record in result.records}
    table = Table(box=None, pad_edge=False)
    for name in ("kernel", "what it computes", "calls", "share", "default", "best", "gain"):
        numbers = name not in ("kernel", "what it computes")
        table.add_column(name, justify="right" if numbers else "left", no_wrap=True)
    table.add_column("other than by default", overflow="fold", min_width=12)
    for row in result.rows:
        default = defaults[row.kernel]
        table.add_row(
            row.kernel[:8],
            row.label if len(row.label) <= 24 else row.label[:23] + "…",
            str(row.calls),
            f"{row.share:.1%}",
            human_ms(row.default_ms),
            human_ms(row.best_ms),
            f"{row.gain:+.1%}" if row.gain else "",
            " ".join(f"{k}={v}" for k, v in row.knobs.items() if default.get(k) != v),
        )
    print(f"{report.model} on {report.provider} ({result.device})")
    if result.rows:
        # A file or a pipe has no width.
        Console(width=None if sys.stdout.isatty() else 120).print(table)
    print(
        f"{result.measured} candidates of {len(result.records)} kernels in {result.seconds:.1f} s "
        f"({result.stopped}). All kernels of a run: {human_ms(result.default_ms)} by default, "
        f"{human_ms(result.best_ms)} tuned."
    )


def _drive(asking: Any, host: Host) -> Any:
    try:
        return drive(asking, host)
    except CandidateError as error:  # not even the first product ran
        raise DeviceError(f"cannot be measured: {error}", where="tuner") from error


def _plan(model: Any) -> Plan:
    if isinstance(model, (str, os.PathLike)) and (
        Path(model).is_dir() or Path(model).suffix == ".zip"
    ):
        return Bundle.load(model).plan()
    return compile_model(model).plan
