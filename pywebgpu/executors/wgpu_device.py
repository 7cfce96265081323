"""A GPU through wgpu-py: its device, pipelines, bind groups. No plan, no feeds.

What the executor, the kernel tests and the tuner share.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..codegen.caps import WgslCaps
from ..codegen.dims import evaluate
from ..codegen.wgsl.kernel import Pass, Role, WgslKernel
from ..errors import DeviceError
from .wgpu_adapter import choose, describe, features, wgpu_module

UNIFORM_ALIGNMENT = 256  # of offsets into a uniform buffer, on every device
_POISON = 0x7FC0BAD1  # a NaN, and an unlikely integer


BindGroups = dict[tuple[Any, ...], tuple[Any, list[Any]]]
"""Bind groups by what they bind, each with its buffers."""


@dataclass(frozen=True, slots=True)
class Dispatch:
    """One pass with its buffers and its grid: what encoding needs."""

    pipeline: Any
    bind_group: Any
    grid: tuple[int, int, int]


class ShaderError(DeviceError):
    """A shader that this device's driver does not compile, or computes wrongly: another form of the
    kernel may do."""


class Gpu:
    """One device. Buffers are `wgpu` buffers; sizes are bytes."""

    def __init__(
        self,
        power_preference: str = "high-performance",
        name: str | None = None,
        index: int | None = None,
    ) -> None:
        self.wgpu = wgpu_module()
        adapter = choose(power_preference, name, index)
        self.info = describe(adapter)
        asked = features(adapter)
        try:
            self.device = adapter.request_device_sync(
                required_features=list(asked.values()), required_limits=self.info.limits
            )
        except Exception as error:
            raise DeviceError(f"the adapter gives no device: {error}", where="webgpu") from error
        self.features = frozenset(asked)
        self.limits: Mapping[str, int] = dict(self.device.limits)
        self.name = self.info.name
        self.emulated = self.info.kind == "CPU"
        """Shaders run on the CPU, as mesa's llvmpipe has it."""
        self.lost: DeviceError | None = None
        """Set when the device was found to be lost: nothing works on it any more."""
        self._probe = self.buffer(16)
        self._staging: Any = None
        self._layouts: dict[tuple[str, ...], tuple[Any, Any]] = {}
        self._pipelines: dict[tuple[str, tuple[str, ...]], Any] = {}

    @classmethod
    def chosen(cls, adapter: str | int | None, power_preference: str) -> Gpu:
        """By a number or part of a name, else by power preference."""
        if isinstance(adapter, int):
            return cls(index=adapter)
        return cls(power_preference, name=adapter)

    def caps(self) -> WgslCaps:
        limit = self.limits
        sizes = self.info.subgroup_sizes
        return WgslCaps(
            max_workgroup_storage=limit["max-compute-workgroup-storage-size"],
            max_invocations=limit["max-compute-invocations-per-workgroup"],
            max_workgroup_size=(
                limit["max-compute-workgroup-size-x"],
                limit["max-compute-workgroup-size-y"],
                limit["max-compute-workgroup-size-z"],
            ),
            max_workgroups=limit["max-compute-workgroups-per-dimension"],
            max_storage_buffers=limit["max-storage-buffers-per-shader-stage"],
            max_binding=limit["max-storage-buffer-binding-size"],
            subgroup_size=sizes if all(sizes) and "subgroups" in self.features else None,
            f16="shader-f16" in self.features,
        )

    def offers(self) -> frozenset[str]:
        """Names that shader variants may need: see `codegen.caps.WgslVariant`."""
        found = set(self.features)
        if self.emulated:
            found.add("emulated")
        if self.info.subgroup_sizes == (32, 32):
            found.add("subgroups-of-32")
        if self.limits["max-compute-workgroup-storage-size"] >= 32 << 10:
            found.add("workgroup-storage-32k")
        return frozenset(found)

    @contextmanager
    def failing(self, where: str) -> Iterator[None]:
        """What wgpu raises inside becomes a DeviceError, and `lost` says whether the device is.

        wgpu-py keeps what it is told of a loss to itself, so that a write that cannot fail for any
        other reason has to show it.
        """
        try:
            yield
        except self.wgpu.GPUError as error:
            try:
                self.device.queue.write_buffer(self._probe, 0, bytes(16))
            except self.wgpu.GPUError as cause:
                self.lost = DeviceError(
                    "the GPU device was lost", where=where, got=cause,
                    remedy="Make the session again",
                )  # fmt: skip
                raise self.lost from error
            if isinstance(error, self.wgpu.GPUOutOfMemoryError):
                raise no_room(error, where) from error
            raise DeviceError(
                f"the GPU refuses the work: {error}", where=where,
                remedy="Use the wasm provider, and report this with the GPU and its driver",
            ) from error  # fmt: skip

    # ---- buffers -----------------------------------------------------------------------------

    def buffer(self, size: int, what: str = "buffer", poison: bool = False) -> Any:
        """A storage buffer of at least `size` bytes; vec4 views need multiples of 16."""
        size = max(16, -(-size // 16) * 16)
        limit = min(self.limits["max-storage-buffer-binding-size"], self.limits["max-buffer-size"])
        if size > limit:
            raise DeviceError(
                "is larger than this GPU can bind",
                where=what,
                got=f"{size} bytes",
                expected=f"at most {limit} bytes",
                remedy="Use the wasm provider, smaller inputs or a GPU with a higher limit",
            )
        usage = self.wgpu.BufferUsage
        try:
            buffer = self.device.create_buffer(
                size=size, usage=usage.STORAGE | usage.COPY_SRC | usage.COPY_DST
            )
        except self.wgpu.GPUOutOfMemoryError as error:
            raise no_room(error, what, size) from error
        if poison:
            self.poison(buffer)
        return buffer

    def poison(self, buffer: Any) -> None:
        """Fill with a value that no kernel should ever show: tests find what is not written."""
        self.device.queue.write_buffer(buffer, 0, np.full(buffer.size // 4, _POISON, np.uint32))

    def write(self, buffer: Any, data: Any, offset: int = 0) -> None:
        """Bytes or an array of any size: WebGPU wants multiples of four."""
        raw = np.frombuffer(memoryview(data).cast("B"), np.uint8) if len(data) else b""
        if len(raw) % 4:
            raw = np.concatenate([raw, np.zeros(-len(raw) % 4, np.uint8)])
        if len(raw):
            self.device.queue.write_buffer(buffer, offset, raw)

    def read(self, parts: Sequence[tuple[Any, int]]) -> list[memoryview]:
        """The first bytes of several buffers; see `run`."""
        return self.run((), parts)

    def run(
        self, dispatches: Iterable[Dispatch], parts: Sequence[tuple[Any, int]]
    ) -> list[memoryview]:
        """All dispatches, then the first bytes of some buffers: one submission, one wait, one
        staging buffer, which stays for the next run."""
        offsets = list(itertools.accumulate((-(-n // 16) * 16 for _, n in parts), initial=0))
        total = max(offsets[-1], 16)
        if self._staging is None or self._staging.size < total:
            if self._staging is not None:
                self._staging.destroy()
            usage = self.wgpu.BufferUsage
            self._staging = self.device.create_buffer(
                size=total, usage=usage.MAP_READ | usage.COPY_DST
            )
        encoder = self.encode(dispatches)
        for (buffer, size), offset in zip(parts, offsets, strict=False):
            if size:
                encoder.copy_buffer_to_buffer(buffer, 0, self._staging, offset, -(-size // 4) * 4)
        self.device.queue.submit([encoder.finish()])
        self._staging.map_sync(self.wgpu.MapMode.READ, 0, total)
        raw = memoryview(self._staging.read_mapped(0, total, copy=True)).cast("B")
        self._staging.unmap()
        return [raw[o : o + n] for (_, n), o in zip(parts, offsets, strict=False)]

    # ---- pipelines ---------------------------------------------------------------------------

    def layout(self, roles: tuple[str, ...]) -> tuple[Any, Any]:
        """(bind group layout, pipeline layout) for bindings of these kinds, in order."""
        if roles not in self._layouts:
            kinds = {
                Role.OPERAND.value: "read-only-storage",
                Role.OUTPUT.value: "storage",
                Role.KEPT.value: "storage",
                Role.ARGS.value: "uniform",
                Role.SCRATCH.value: "storage",
            }
            group = self.device.create_bind_group_layout(entries=[
                {"binding": i, "visibility": self.wgpu.ShaderStage.COMPUTE,
                 "buffer": {"type": kinds[role]}}
                for i, role in enumerate(roles)
            ])  # fmt: skip
            whole = self.device.create_pipeline_layout(bind_group_layouts=[group])
            self._layouts[roles] = (group, whole)
        return self._layouts[roles]

    def pipelines(self, kernels: Iterable[WgslKernel]) -> None:
        """Compile every pass of these kernels that is not compiled yet, in parallel.

        Raises:
            ShaderError: names the kernel (its name carries the knobs) and the message.
            DeviceError: the device lacks a feature that a kernel needs.
        """
        todo: dict[tuple[str, tuple[str, ...]], str] = {}
        for kernel in kernels:
            missing = [f for f in kernel.features if f not in self.features]
            if missing:
                raise DeviceError(
                    f"this GPU has no {', '.join(missing)}", where=f"kernel {kernel.name}"
                )
            for one in kernel.passes:
                key = _key(one)
                if key not in self._pipelines:
                    todo.setdefault(key, kernel.name)
                    self.layout(key[1])
        if len(todo) < 3:
            for key, name in todo.items():
                self._pipelines[key] = self._compile(key, name)
            return
        # The native call compiles before it returns, without holding Python's lock.
        with ThreadPoolExecutor() as pool:
            made = pool.map(lambda item: self._compile(*item), todo.items())
            for key, pipeline in zip(todo, made, strict=True):
                self._pipelines[key] = pipeline

    def _compile(self, key: tuple[str, tuple[str, ...]], name: str) -> Any:
        code, roles = key
        try:
            module = self.device.create_shader_module(label=name, code=code)
            return self.device.create_compute_pipeline(
                label=name,
                layout=self.layout(roles)[1],
                compute={"module": module, "entry_point": "main"},
            )
        except Exception as error:
            raise ShaderError(
                f"the shader does not compile: {error}",
                where=f"kernel {name}",
                remedy="Please report this with the name of the GPU and its driver",
            ) from error

    def dispatches(
        self,
        kernel: WgslKernel,
        operands: Sequence[Any],
        output: Any,
        scratch: Sequence[Any],
        args: Sequence[int],
        uniform: tuple[Any, int] | None,
        kept: Any = None,
        groups: BindGroups | None = None,
    ) -> list[Dispatch]:
        """A kernel call ready to encode; `uniform`: buffer and offset of its arguments; `kept`:
        the buffer of a second output; `groups`: bind groups that were made before, added to.

        The kernel's pipelines must be compiled. Passes with an empty grid are left out.
        """
        symbols = {f"a{i}": value for i, value in enumerate(args)}
        found = []
        for one in kernel.passes:
            grid = tuple(evaluate(d, symbols) for d in one.grid)
            if 0 in grid:
                continue
            entries = []
            for i, binding in enumerate(one.bindings):
                resource: dict[str, Any]
                if binding.role is Role.ARGS:
                    assert uniform is not None
                    size = -(-len(args) // 4) * 16
                    resource = {"buffer": uniform[0], "offset": uniform[1], "size": size}
                elif binding.role is Role.OPERAND:
                    resource = _whole(operands[binding.index])
                elif binding.role is Role.OUTPUT:
                    resource = _whole(output)
                elif binding.role is Role.KEPT:
                    resource = _whole(kept)
                else:
                    resource = _whole(scratch[binding.index])
                entries.append({"binding": i, "resource": resource})
            key = _key(one)
            group = self._group(key[1], entries, {} if groups is None else groups)
            found.append(Dispatch(self._pipelines[key], group, (grid[0], grid[1], grid[2])))
        return found

    def _group(
        self, roles: tuple[str, ...], entries: list[dict[str, Any]], groups: BindGroups
    ) -> Any:
        """A bind group: wgpu-py takes a quarter of a millisecond for one, so none is made twice."""
        bound = [entry["resource"] for entry in entries]
        key = (roles, tuple((id(r["buffer"]), r["offset"], r["size"]) for r in bound))
        if key not in groups:
            group = self.device.create_bind_group(layout=self.layout(roles)[0], entries=entries)
            # With the buffers, so that no other one gets the id of one that is gone.
            groups[key] = (group, [r["buffer"] for r in bound])
        return groups[key][0]

    def encode(self, dispatches: Iterable[Dispatch], timestamps: Any = None) -> Any:
        """One command buffer with all dispatches, each after the one before."""
        encoder = self.device.create_command_encoder()
        writes = None
        if timestamps is not None:
            writes = {"query_set": timestamps, "beginning_of_pass_write_index": 0,
                      "end_of_pass_write_index": 1}  # fmt: skip
        one = encoder.begin_compute_pass(timestamp_writes=writes)
        pipeline = None
        for d in dispatches:
            if d.pipeline is not pipeline:
                pipeline = d.pipeline
                one.set_pipeline(pipeline)
            one.set_bind_group(0, d.bind_group)
            one.dispatch_workgroups(*d.grid)
        one.end()
        return encoder

    def submit(self, dispatches: Iterable[Dispatch]) -> None:
        self.device.queue.submit([self.encode(dispatches).finish()])

    def prepare(
        self,
        kernel: WgslKernel,
        operands: Sequence[np.ndarray[Any, Any]],
        args: Sequence[int],
        out_bytes: int,
        poison: bool = False,
    ) -> Prepared:
        """Buffers filled with `operands`, and the dispatches over them."""
        inputs = []
        for array in operands:
            inputs.append(self.buffer(array.nbytes))
            self.write(inputs[-1], np.ascontiguousarray(array).tobytes())
        output = self.buffer(out_bytes, poison=poison)
        symbols = {f"a{i}": value for i, value in enumerate(args)}
        scratch = [self.buffer(evaluate(n, symbols), poison=poison) for n in kernel.scratch]
        uniform = None
        if args:
            uniform = self.uniforms([args])
        found = self.dispatches(
            kernel, inputs, output, scratch, args, (uniform, 0) if uniform else None
        )
        extra = [uniform] if uniform else []
        return Prepared(output, found, [*inputs, output, *scratch, *extra])

    def uniforms(self, calls: Sequence[Sequence[int]]) -> Any:
        """One buffer with each call's arguments at a multiple of `uniform_stride(calls)`."""
        usage = self.wgpu.BufferUsage
        return self.device.create_buffer_with_data(
            data=_uniform_bytes(calls), usage=usage.UNIFORM | usage.COPY_DST
        )

    def set_uniforms(self, buffer: Any, calls: Sequence[Sequence[int]]) -> None:
        """Other arguments into a buffer that `uniforms` made for as many calls of that length."""
        self.device.queue.write_buffer(buffer, 0, _uniform_bytes(calls))

    def time(self, dispatches: Sequence[Dispatch], repeats: int) -> float:
        """Seconds of `repeats` runs on the device, by timestamps where it has them."""
        import time

        work = list(dispatches) * repeats
        if "timestamp-query" not in self.features:
            self.submit(())
            start = time.perf_counter()
            self.submit(work)
            self.device.queue.on_submitted_work_done_sync()
            return time.perf_counter() - start
        usage = self.wgpu.BufferUsage
        queries = self.device.create_query_set(type="timestamp", count=2)
        result = self.device.create_buffer(size=16, usage=usage.QUERY_RESOLVE | usage.COPY_SRC)
        encoder = self.encode(work, queries)
        encoder.resolve_query_set(queries, 0, 2, result, 0)
        self.device.queue.submit([encoder.finish()])
        (raw,) = self.read([(result, 16)])
        first, last = struct.unpack("<QQ", raw)
        result.destroy()
        return float(last - first) * 1e-9


def no_room(error: Exception, where: str, size: int | None = None) -> DeviceError:
    """`size`: bytes that were asked for."""
    return DeviceError(
        f"the GPU has not enough memory: {error}", where=where,
        got=None if size is None else f"{size} bytes needed",
        remedy="Use smaller inputs, a bundle in f16, int8 or int4, or the wasm provider; close"
        " other sessions",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Prepared:
    """A kernel call on buffers of its own."""

    output: Any
    dispatches: list[Dispatch]
    buffers: list[Any]

    def destroy(self) -> None:
        for buffer in self.buffers:
            buffer.destroy()


def uniform_stride(calls: Sequence[Sequence[int]]) -> int:
    """Bytes from one call's arguments to the next's."""
    longest = max((len(c) for c in calls), default=0)
    return max(1, math.ceil(longest * 4 / UNIFORM_ALIGNMENT)) * UNIFORM_ALIGNMENT


def _uniform_bytes(calls: Sequence[Sequence[int]]) -> bytes:
    stride = uniform_stride(calls)
    return b"".join(struct.pack(f"<{len(c)}I", *c).ljust(stride, b"\0") for c in calls)


def _whole(buffer: Any) -> dict[str, Any]:
    return {"buffer": buffer, "offset": 0, "size": buffer.size}


def _key(one: Pass) -> tuple[str, tuple[str, ...]]:
    return one.code, tuple(b.role.value for b in one.bindings)
