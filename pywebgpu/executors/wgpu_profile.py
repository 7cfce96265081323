"""Micro-benchmarks of a GPU: what it can do at most, and how much work keeps all of it busy."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from ..codegen.wgsl.kernel import Binding, Pass, Role, WgslKernel
from ..codegen.wgsl.module import fill
from .wgpu_device import Dispatch, Gpu

WORKGROUP = 256
CHAINS = 8  # independent sums of four per thread: more than the latency of a multiply-add
FLOPS = CHAINS * 4 * 2  # per iteration and thread
WARM = 0.25  # seconds of work before anything is timed: clocks follow load


@dataclass(frozen=True, slots=True)
class GpuProfile:
    """`fill`: workgroups of 256 threads beyond which more work takes more time."""

    flops: float  # f32 operations per second, from registers alone
    bandwidth: float  # bytes per second, read and written, of buffers larger than caches
    fill: int


@dataclass(frozen=True, slots=True)
class PeakFields:
    """What the template of the arithmetic peak sees."""

    workgroup: int
    chains: int
    iterations: int


@dataclass(frozen=True, slots=True)
class CopyFields:
    """What the template of the copy sees."""

    workgroup: int
    quads: int


def measure(gpu: Gpu) -> GpuProfile:
    """Takes half a second on a GPU, some seconds where shaders run on the CPU."""
    iterations = 16 if gpu.emulated else 2048
    output = gpu.buffer(1 << 20)

    def peak(groups: int) -> list[Dispatch]:
        code = fill("profile_peak", PeakFields(WORKGROUP, CHAINS, iterations))
        kernel = WgslKernel("peak", (Pass(code, (Binding(Role.OUTPUT),), (groups, 1, 1)),))
        gpu.pipelines([kernel])
        return gpu.dispatches(kernel, [], output, [], (), None)

    many = 64 if gpu.emulated else 8192
    whole = peak(many)
    warmed = 0.0
    while warmed < (0.01 if gpu.emulated else WARM):
        warmed += max(gpu.time(whole, 1), 1e-5)
    flops = FLOPS * iterations * WORKGROUP * many / _median(gpu, whole)

    size = (4 if gpu.emulated else 256) << 20
    quads = size // 16
    source, target = gpu.buffer(size), gpu.buffer(size)
    code = fill("profile_copy", CopyFields(WORKGROUP, quads))
    bindings = (Binding(Role.OPERAND, 0), Binding(Role.OUTPUT))
    kernel = WgslKernel("copy", (Pass(code, bindings, (min(quads // WORKGROUP, 65535), 1, 1)),))
    gpu.pipelines([kernel])
    copy = gpu.dispatches(kernel, [source], target, [], (), None)
    bandwidth = 2 * size / _median(gpu, copy)

    # The time of one workgroup alone, and the most of them that take hardly longer.
    alone, groups = _median(gpu, peak(1)), 1
    while groups < 4096 and _median(gpu, peak(groups * 2)) < alone * 1.5:
        groups *= 2
    step = groups // 8
    while step and _median(gpu, peak(groups + step)) < alone * 1.5:
        groups += step
    for buffer in (output, source, target):
        buffer.destroy()
    return GpuProfile(flops, bandwidth, groups)


def _median(gpu: Gpu, dispatches: list[Dispatch]) -> float:
    return max(statistics.median(gpu.time(dispatches, 1) for _ in range(5)), 1e-9)
