"""What a device can do: the facts that decide which candidates are legal there."""

from __future__ import annotations

from dataclasses import dataclass


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
    matrix: bool = False  # what `MATRIX` names: f16 products of a whole subgroup, 16 x 16 x 16
    fill: int = 132  # workgroups of 128 to 256 threads that keep all of the device busy


MATRIX = (
    "shader-f16",
    "subgroups",
    "subgroups-of-32",
    "workgroup-storage-32k",
    "chromium-experimental-subgroup-matrix",
    "matrix-f16-f32-16x16x16",
)
"""What a device offers on which a subgroup multiplies 16 x 16 f16 matrices into f32 ones."""


@dataclass(frozen=True, slots=True)
class WgslVariant:
    """Shaders for the devices that offer all of `needs`.

    What a device offers is names: its WebGPU features; "emulated" where shaders run on the CPU;
    "subgroups-of-32" where every subgroup has that size; "workgroup-storage-32k" where a
    workgroup may have as much; and "matrix-A-R-MxNxK" for each subgroup matrix configuration, A
    and R being the operands' and the result's types.
    """

    name: str
    caps: WgslCaps
    needs: tuple[str, ...] = ()
    check: str = ""
    """The template of a shader that tries what the variant rests on: its one output is a u32, 0 if
    all is right. A device on which it is not goes on with the next variant."""


WGSL_VARIANTS = (
    WgslVariant("emulated", WgslCaps(emulated=True), ("emulated",)),
    WgslVariant(
        "matrix",
        WgslCaps(
            max_workgroup_storage=32 << 10, subgroup_size=(32, 32), f16=True, matrix=True, fill=256
        ),
        MATRIX,
        "check_matrix",
    ),
    WgslVariant("default", WgslCaps()),
)
"""A device takes the first whose needs it meets; the last runs on every WebGPU device."""


@dataclass(frozen=True, slots=True)
class WasmCaps:
    """A WebAssembly engine on a machine. SIMD128 is the floor.

    The defaults are for strangers; `codegen.wasm.profile` measures what a machine has.
    """

    relaxed: bool = False  # relaxed-SIMD fused multiply-add
    threads: bool = False  # shared memory and atomics
    simd_registers: int = 16
    l1_bytes: int = 32 << 10
    l2_bytes: int = 512 << 10
