"""What a device can do: the facts that decide which candidates are legal there."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class WgslCaps:
    """A WebGPU adapter. The defaults are what every WebGPU device guarantees."""

    max_workgroup_storage: int = 16384  # bytes
    max_invocations: int = 256  # per workgroup
    max_workgroup_size: tuple[int, int, int] = (256, 256, 64)
    max_workgroups: int = 65535  # per dimension of a dispatch
    max_storage_buffers: int = 8  # per shader stage
    max_binding: int = 128 << 20  # bytes
    subgroup_size: tuple[int, int] | None = None  # (min, max); None: no subgroups
    f16: bool = False
    emulated: bool = False  # shaders run on the CPU: there, compiling them is what takes long


@dataclass(frozen=True, slots=True)
class WasmCaps:
    """A WebAssembly engine on a machine. SIMD128 is the floor."""

    relaxed: bool = False  # relaxed-SIMD fused multiply-add
    threads: bool = False  # shared memory and atomics
    simd_registers: int = 16
    l1_bytes: int = 32 << 10


@dataclass(frozen=True, slots=True)
class DeviceCaps:
    wgsl: WgslCaps = field(default_factory=WgslCaps)
    wasm: WasmCaps = field(default_factory=WasmCaps)
