"""Plays a plan on the desktop's GPU through wgpu-py.

Everything that does not depend on shapes is made once, when the executor is: the device, all
pipelines in parallel, the weights. What depends on shapes (slots, bind groups, arguments) is kept
per set of sizes, so that a run is: write the feeds, submit one command buffer, read the outputs
back through one staging buffer.
"""

from __future__ import annotations

import itertools
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..codegen.caps import WgslCaps
from ..codegen.dims import evaluate
from ..codegen.dims import symbols as names_in
from ..codegen.program import Branch, Loop, Program, Range, Read, walk
from ..codegen.wgsl.kernel import Role, WgslKernel
from ..errors import DeviceError
from ..plan import Plan, Port, SlotBuffer, WeightBuffer
from . import base
from .base import Array, Feeds
from .gpu_tensor import GpuTensor
from .wgpu_device import BindGroups, Dispatch, Gpu, uniform_stride

_FRAMES = 16
"""Sets of sizes whose dispatches are kept."""

_BATCH = 4096
"""Dispatches that are submitted together where a program has many."""


@dataclass(frozen=True, slots=True)
class _Frame:
    """A part of a run for one set of sizes, ready to submit."""

    part: Range
    dispatches: list[Dispatch]
    steps: list[int]  # the step that each dispatch belongs to
    uniform: Any


@dataclass(frozen=True, slots=True)
class Profile:
    """Seconds of a run: each step alone on the device, all of them in a row there, and encoding
    them here; and how many kernel launches that is. Timestamps where the device has them."""

    steps: tuple[tuple[str, float], ...]
    device: float
    host: float
    dispatches: int


class WgpuExecutor:
    """See `base.Executor`. Not for use from several threads at once."""

    provider = "webgpu"

    def __init__(
        self,
        plan: Plan,
        kernels: Sequence[WgslKernel],
        weights: Any,
        *,
        gpu: Gpu,
        warmup: bool = True,
        poison: bool = False,
    ) -> None:
        """
        Args:
            kernels: one per kernel number that the steps of `plan.on_gpu` use.
            weights: the weight space: `plan.weight_bytes` bytes, as anything with a buffer.
            gpu: the device to run on; several executors may share one.
            warmup: run once on the smallest sizes: drivers finish a pipeline at its first use.
            poison: fill slots with NaN before every run, for tests.

        Raises:
            DeviceError: a shader that does not compile, a weight too large to bind.
        """
        self.plan, self.poison = plan.on_gpu, poison
        self.kernels = tuple(kernels)
        self.gpu = gpu
        self.device = self.gpu.name
        self._check_bindings()
        self.gpu.pipelines(self.kernels)
        with self.gpu.failing("loading the weights"):
            self._weights = self._upload(memoryview(weights).cast("B"))
        self._slots: list[Any] = [None] * len(plan.slots)
        self._scratch: list[Any] = []
        self._frames: OrderedDict[tuple[int, ...], _Frame] = OrderedDict()
        self._groups: BindGroups = {}
        self._spare: dict[Range, list[Any]] = {}  # uniform buffers of frames that are forgotten
        self._program: Program = plan.program or (Range(0, len(self.plan.steps)),)
        self._kept = _FRAMES * sum(isinstance(item, Range) for item in walk(self._program))
        self._names: dict[Range, tuple[str, ...]] = {}
        self._sizes: dict[str, int] = {}
        if warmup:
            self._warm_up()

    def caps(self) -> WgslCaps:
        """What the device can do, for `codegen.wgsl.space`."""
        return self.gpu.caps()

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """The named outputs (all by default), in that order. See `base.Executor.run`."""
        wanted = base.wanted_outputs(self.plan, outputs)
        with self.gpu.failing("a run"):
            symbols, waiting = self._start(feeds)
            parts = [(self._buffer(p.buffer), base.port_bytes(p, symbols)) for p in wanted]
            raw = self.gpu.run(waiting, parts)
        return {
            port.name: base.from_storage(port, np.frombuffer(data, np.uint8), symbols)
            for port, data in zip(wanted, raw, strict=True)
        }

    def run_on_gpu(
        self, feeds: Feeds, outputs: Sequence[str] | None = None
    ) -> dict[str, GpuTensor]:
        """As `run`, but the outputs stay on the GPU, and nobody waits for them."""
        with self.gpu.failing("a run"):
            return self._run_on_gpu(feeds, base.wanted_outputs(self.plan, outputs))

    def _run_on_gpu(self, feeds: Feeds, wanted: Sequence[Port]) -> dict[str, GpuTensor]:
        symbols, waiting = self._start(feeds)
        encoder = self.gpu.encode(waiting)
        found: dict[str, GpuTensor] = {}
        for port in wanted:
            size = base.port_bytes(port, symbols)
            buffer = self.gpu.buffer(size, f"output {port.name!r}")
            if size:
                words = -(-size // 4) * 4
                encoder.copy_buffer_to_buffer(self._buffer(port.buffer), 0, buffer, 0, words)
            found[port.name] = GpuTensor(self.gpu, buffer, port, base.shape_of(port, symbols))
        self.gpu.device.queue.submit([encoder.finish()])
        return found

    def upload(self, feeds: Feeds) -> dict[str, GpuTensor]:
        """Some of the inputs as tensors on the GPU.

        Raises:
            InputError: a name, an element type or a value does not fit.
        """
        ports = [p for p in self.plan.inputs if p.name in feeds]
        found: dict[str, GpuTensor] = {}
        for port in ports:
            array = base.typed_feeds([port], {port.name: feeds[port.name]})[port.name]
            stored = base.to_storage(port, array)
            with self.gpu.failing(f"input {port.name!r}"):
                buffer = self.gpu.buffer(stored.nbytes, f"input {port.name!r}")
                if stored.size:
                    self.gpu.write(buffer, stored.reshape(-1).view(np.uint8))
            found[port.name] = GpuTensor(self.gpu, buffer, port, array.shape)
        base.typed_feeds(ports, feeds)  # names that are no inputs
        return found

    def _start(self, feeds: Feeds) -> tuple[dict[str, int], list[Dispatch]]:
        """What the sizes are, with the feeds in place and all that is to be done queued."""
        resident = {n: t for n, t in feeds.items() if isinstance(t, GpuTensor)}
        given = [p for p in self.plan.inputs if p.name in resident]
        for port in given:
            resident[port.name].check(port, self.gpu)
        if resident:
            others = [p for p in self.plan.inputs if p not in given]
            rest = {n: f for n, f in feeds.items() if n not in {p.name for p in given}}
            typed = base.typed_feeds(others, rest)
            shapes = {p.name: resident[p.name].shape for p in given}
            symbols = base.bind_symbols(
                self.plan, {**shapes, **{n: a.shape for n, a in typed.items()}}
            )
            arrays = {p.name: base.to_storage(p, typed[p.name]) for p in others}
        else:
            arrays, symbols = base.check_feeds(self.plan, feeds)
        self._make_room(symbols)
        if self.poison:
            for slot in self._slots:
                self.gpu.poison(slot)
        for port in self.plan.inputs:
            if port.name in arrays:
                self._write(port, arrays[port.name])
        self._copy_in([(resident[p.name], p) for p in given])
        waiting: list[Dispatch] = []
        self._play(self._program, symbols, waiting)
        self._sizes = symbols
        return symbols, waiting

    def _copy_in(self, given: Sequence[tuple[GpuTensor, Port]]) -> None:
        if not any(tensor.nbytes for tensor, _ in given):
            return
        encoder = self.gpu.device.create_command_encoder()
        for tensor, port in given:
            if tensor.nbytes:
                words = -(-tensor.nbytes // 4) * 4
                target = self._buffer(port.buffer)
                encoder.copy_buffer_to_buffer(tensor.buffer, 0, target, 0, words)
        self.gpu.device.queue.submit([encoder.finish()])

    @property
    def lost(self) -> bool:
        """Whether the device was found to be lost: another executor has to take over."""
        return self.gpu.lost is not None

    def profile(self, feeds: Feeds, repeats: int = 20) -> Profile:
        """Where a run's time goes; see `Profile`."""
        seconds = self.time_steps(feeds, repeats)
        _, waiting = self._start(feeds)
        runs = sorted(self.gpu.time(waiting, 1) for _ in range(repeats))
        start = time.perf_counter()
        for _ in range(repeats):
            self.gpu.encode(waiting).finish()
        host = (time.perf_counter() - start) / repeats
        labels = [step.label for step in self.plan.steps]
        steps = tuple(zip(labels, seconds, strict=True))
        return Profile(steps, runs[len(runs) // 2], host, len(waiting))

    def _play(self, program: Program, symbols: dict[str, int], waiting: list[Dispatch]) -> None:
        """Queue the program's dispatches on `waiting`; they are submitted when the host has to
        look at a number. `symbols` gets the sizes that turn up."""
        for item in program:
            if isinstance(item, Range):
                waiting += self._dispatches(item, symbols, waiting)
                if len(waiting) > _BATCH:
                    self._submit(waiting)
            elif isinstance(item, Read):
                base.count(item, self._look(item.buffer, waiting), symbols)
            elif isinstance(item, Branch):
                chosen = item.then if self._look(item.condition, waiting) else item.otherwise
                self._play(chosen, symbols, waiting)
            else:
                self._loop(item, symbols, waiting)

    def _loop(self, item: Loop, symbols: dict[str, int], waiting: list[Dispatch]) -> None:
        trips = evaluate(item.trips, symbols)
        for _ in range(trips):
            if item.going is not None and not self._look(item.going, waiting):
                return
            self._play(item.body, symbols, waiting)
        if item.limited and item.going is not None and self._look(item.going, waiting):
            raise base.endless(item, symbols)
        if item.limited and item.going is None:
            raise base.endless(item, symbols)

    def _look(self, buffer: int, waiting: list[Dispatch]) -> int:
        """The element of a buffer, once everything before has been done."""
        (data,) = self.gpu.run(waiting, [(self._buffer(buffer), 4)])
        waiting.clear()
        return int.from_bytes(data, "little", signed=True)

    def _submit(self, waiting: list[Dispatch]) -> None:
        if waiting:
            self.gpu.submit(waiting)
            waiting.clear()

    def time_steps(self, feeds: Feeds, repeats: int = 10) -> list[float]:
        """Seconds that each step takes on the device with these feeds: what a tuner looks at."""
        self.run(feeds)
        frame = self._frame(Range(0, len(self.plan.steps)), self._sizes)
        seconds = [0.0] * len(self.plan.steps)
        for step in dict.fromkeys(frame.steps):
            own = [d for d, s in zip(frame.dispatches, frame.steps, strict=True) if s == step]
            seconds[step] = self.gpu.time(own, repeats) / repeats
        return seconds

    def close(self) -> None:
        """Give the GPU's memory back; the executor cannot be used afterwards."""
        self._forget_frames()
        for buffer in (*self._weights.values(), *self._slots, *self._scratch):
            if buffer is not None:
                buffer.destroy()
        self._weights, self._slots, self._scratch = {}, [], []

    # ---- what does not depend on shapes --------------------------------------------------------

    def _check_bindings(self) -> None:
        """Every pass within the device's number of storage buffers."""
        limit = self.gpu.limits["max-storage-buffers-per-shader-stage"]
        for step in self.plan.steps:
            for one in self.kernels[step.kernel].passes:
                count = sum(b.role is not Role.ARGS for b in one.bindings)
                if count > limit:
                    raise DeviceError(
                        "a kernel needs more buffers than this GPU binds at once",
                        where=f"step {step.label}",
                        got=count,
                        expected=f"at most {limit}",
                    )

    def _upload(self, weights: memoryview) -> dict[int, Any]:
        """Buffer number -> its own GPU buffer, for every weight that a step reads: of one that
        other executors have whole, a GPU may have parts."""
        found: dict[int, Any] = {}
        whole = self.plan.weight_bytes
        read = {number for step in self.plan.steps for number in step.operands}
        for number, buffer in enumerate(self.plan.buffers):
            if isinstance(buffer, WeightBuffer) and number in read:
                what = f"weight {number} (used by {self._users(number)}; {whole} bytes in all)"
                found[number] = self.gpu.buffer(buffer.bytes, what)
                data = weights[buffer.offset : buffer.offset + buffer.bytes]
                self.gpu.write(found[number], data)
        return found

    def _users(self, number: int) -> str:
        labels = [s.label for s in self.plan.steps if number in s.operands]
        return ", ".join(labels[:2]) or "no step"

    def _buffer(self, number: int) -> Any:
        buffer = self.plan.buffers[number]
        return self._slots[buffer.slot] if isinstance(buffer, SlotBuffer) else self._weights[number]

    def _write(self, port: Port, array: Array) -> None:
        if array.size:
            self.gpu.write(self._buffer(port.buffer), array.reshape(-1).view(np.uint8))

    def _warm_up(self) -> None:
        """Every dispatch once, with each symbol at 1, where that makes sense of all sizes."""
        symbols = dict.fromkeys([*self.plan.symbols, *(r.symbol for r in self.plan.counted)], 1)
        sizes = [*base.slot_bytes(self.plan, symbols), *itertools.chain(*self._calls(symbols))]
        if min(sizes, default=0) < 0:
            return
        self._make_room(symbols)
        frame = self._frame(Range(0, len(self.plan.steps)), symbols)
        if all(min(d.grid) > 0 for d in frame.dispatches):
            self.gpu.run(frame.dispatches, ())

    # ---- what does -----------------------------------------------------------------------------

    def _dispatches(
        self, part: Range, symbols: dict[str, int], waiting: list[Dispatch]
    ) -> list[Dispatch]:
        if self._key(part, symbols) not in self._frames:
            self._submit(waiting)  # buffers may be replaced
        return self._frame(part, symbols).dispatches

    def _key(self, part: Range, symbols: dict[str, int]) -> tuple[int, ...]:
        """The sizes that a part's kernels are given."""
        names = self._names.get(part)
        if names is None:
            steps = self.plan.steps[part.first : part.end]
            found = dict.fromkeys(n for step in steps for dim in step.args for n in names_in(dim))
            names = self._names[part] = tuple(found)
        return (part.first, part.end, *(symbols[name] for name in names))

    def _frame(self, part: Range, symbols: dict[str, int]) -> _Frame:
        key = self._key(part, symbols)
        frame = self._frames.get(key)
        if frame is None:
            if self._grow_scratch(part, symbols):
                self._forget_frames()
            frame = self._frames[key] = self._prepare(part, symbols)
            if len(self._frames) > self._kept:
                old = self._frames.popitem(last=False)[1]
                if old.uniform is not None:
                    self._spare.setdefault(old.part, []).append(old.uniform)
        self._frames.move_to_end(key)
        return frame

    def _calls(self, symbols: dict[str, int], part: Range | None = None) -> list[list[int]]:
        steps = self.plan.steps if part is None else self.plan.steps[part.first : part.end]
        return [[evaluate(d, symbols) for d in step.args] for step in steps]

    def _forget_frames(self) -> None:
        """Their bind groups hold buffers that are gone."""
        self._frames.clear()
        self._spare.clear()
        self._groups.clear()

    def _make_room(self, symbols: dict[str, int]) -> None:
        """Slots for these sizes of the inputs."""
        sizes = base.slot_bytes(self.plan, symbols)
        if self._grow_list(self._slots, sizes, lambda i: self._content(i, symbols, sum(sizes))):
            self._forget_frames()

    def _content(self, slot: int, symbols: dict[str, int], total: int) -> str:
        """The largest of what lies in a slot, for messages."""
        found: list[tuple[int, str]] = []
        ports = [(p.buffer, f"input {p.name!r}") for p in self.plan.inputs]
        results = [(s.output, f"the result of {s.label}") for s in self.plan.steps]
        for number, name in (*ports, *results):
            buffer = self.plan.buffers[number]
            if isinstance(buffer, SlotBuffer) and buffer.slot == slot:
                found.append((evaluate(buffer.bytes, symbols), name))
        name = max(found, key=lambda item: item[0], default=(0, f"slot {slot}"))[1]
        return f"{name} (activations: {total} bytes in all)"

    def _grow_scratch(self, part: Range, symbols: dict[str, int]) -> bool:
        """Whether any buffer was replaced."""
        scratch: list[int] = []
        steps = self.plan.steps[part.first : part.end]
        for step, args in zip(steps, self._calls(symbols, part), strict=True):
            names = {f"a{i}": value for i, value in enumerate(args)}
            for i, dim in enumerate(self.kernels[step.kernel].scratch):
                scratch += [0] * (i + 1 - len(scratch))
                scratch[i] = max(scratch[i], evaluate(dim, names))
        self._scratch += [None] * (len(scratch) - len(self._scratch))
        return self._grow_list(self._scratch, scratch, lambda i: f"scratch memory {i}")

    def _grow_list(
        self, buffers: list[Any], sizes: Sequence[int], what: Callable[[int], str]
    ) -> bool:
        grown = False
        for i, size in enumerate(sizes):
            if buffers[i] is None or buffers[i].size < size:
                new = self.gpu.buffer(size, what(i))
                if buffers[i] is not None:
                    buffers[i].destroy()
                buffers[i], grown = new, True
        return grown

    def _prepare(self, part: Range, symbols: dict[str, int]) -> _Frame:
        # Arguments lie where their expressions say, not their values: then other sizes need only
        # other numbers in a uniform buffer, and no bind groups.
        kinds = list(dict.fromkeys(tuple(s.args) for s in self.plan.steps[part.first : part.end]))
        calls = {kind: [evaluate(dim, symbols) for dim in kind] for kind in kinds}
        arguments = list(calls.values())
        stride = uniform_stride(arguments)
        offsets = {kind: i * stride for i, kind in enumerate(kinds)}
        uniform = None
        if any(kinds):
            spare = self._spare.get(part)
            if spare:
                uniform = spare.pop()
                self.gpu.set_uniforms(uniform, arguments)
            else:
                uniform = self.gpu.uniforms(arguments)
        dispatches: list[Dispatch] = []
        steps: list[int] = []
        for number in range(part.first, part.end):
            step = self.plan.steps[number]
            kind = tuple(step.args)
            made = self.gpu.dispatches(
                self.kernels[step.kernel],
                [self._buffer(b) for b in step.operands],
                self._buffer(step.output),
                self._scratch,
                calls[kind],
                (uniform, offsets[kind]) if uniform is not None else None,
                None if step.kept is None else self._buffer(step.kept),
                self._groups,
            )
            dispatches += made
            steps += [number] * len(made)
        return _Frame(part, dispatches, steps, uniform)
