"""Runs one spec under one choice of knobs on any executor, for tests that go over all of them.

    @pytest.mark.parametrize("executor", executors())
    def test_add(executor: str) -> None:
        for knobs in space(executor, spec):
            out = run_spec(executor, spec, knobs, operands, args=(), out_size=n)

Operands lie among garbage, which a kernel may read past a buffer's end but must not let through;
the output begins as garbage, and what lies around it must be untouched afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import wasmtime

from pywebgpu.codegen import wasm, wgsl
from pywebgpu.codegen.caps import WGSL_VARIANTS, WasmCaps, WgslCaps
from pywebgpu.codegen.dims import evaluate
from pywebgpu.codegen.scalar import Type
from pywebgpu.codegen.spec import KernelSpec, Map, Matmul, Storage
from pywebgpu.codegen.wasm.asm import Target
from pywebgpu.codegen.wasm.model import assemble_kernel
from pywebgpu.codegen.wgsl.kernel import WgslKernel
from pywebgpu.errors import DeviceError
from pywebgpu.executors.wgpu_device import Gpu
from tests.executors_seen import record_executor
from tests.kernels.matrices import spelt_out, uses_matrices
from tests.reference import evaluate as reference
from tests.reference import second_output

Array = np.ndarray[Any, Any]
Space = Callable[[KernelSpec], list[Any]]
Run = Callable[[KernelSpec, Any, Sequence[Array], Sequence[int], int], Array]

GARBAGE = {
    Storage.F32: np.dtype(np.float32).type(np.nan),
    Storage.F16: np.dtype(np.float16).type(np.nan),
    Storage.I32: np.int32(-0x7EDCBA99),
    Storage.I8: np.int8(-103),
}
"""What buffers hold before a run: no correct result contains it."""

DTYPE = {
    Storage.F32: np.float32,
    Storage.F16: np.float16,
    Storage.I32: np.int32,
    Storage.I8: np.int8,
}


@dataclass(frozen=True)
class KernelExecutor:
    """`space(spec)` are its candidates; `run(spec, knobs, operands, args, out_size)` the output."""

    space: Space
    run: Run


MATRIX = "wgpu-matrix"  # see `spelt_out`; for products and attention of f16 only
EXECUTORS: dict[str, KernelExecutor] = {}
"""By name; a target adds its own here."""


def executors(prefix: str = "") -> list[str]:
    """Names to parametrise a test with: of those that have candidates for every kernel."""
    return [name for name in EXECUTORS if name.startswith(prefix) and name != MATRIX]


def space(executor: str, spec: KernelSpec) -> list[Any]:
    """The candidates for `spec` on that executor."""
    return EXECUTORS[executor].space(spec)


def run_spec(
    executor: str,
    spec: KernelSpec,
    knobs: Any,
    operands: Sequence[Array],
    args: Sequence[int] = (),
    out_size: int = 0,
) -> Array:
    """The output buffer, flat. Elements that the kernel did not write are `GARBAGE`."""
    flat = [
        np.ascontiguousarray(o, dtype=DTYPE[s]).ravel()
        for o, s in zip(operands, spec.operands, strict=True)
    ]
    return EXECUTORS[executor].run(spec, knobs, flat, args, out_size)


def some(executor: str, candidates: Sequence[Any], pick: int | None = None) -> list[Any]:
    """The candidate numbered `pick`, counted round; or all of them, but on a GPU the default only.

    A candidate takes a GPU driver seconds to compile in software; test_wgsl_candidates.py goes
    over all of them once.
    """
    if pick is None and executor.startswith("wasm"):
        return list(candidates)
    return [candidates[(pick or 0) % len(candidates)]]


def check(
    executor: str,
    spec: KernelSpec,
    operands: Sequence[Array],
    args: Sequence[int] = (),
    out_size: int = 0,
    *,
    rtol: float = 2e-6,
    atol: float = 1e-6,
    candidates: Sequence[Any] | None = None,
) -> None:
    """Every candidate gives what tests/reference.py gives, within the tolerance.

    The defaults allow a few roundings of f32 (1.2e-7 each) and the error of the approximations in
    codegen/wasm/math.py (below 1e-6); sums need more and say so where they are tested.
    """
    want = reference(spec, operands, tuple(args), out_size)
    wrote = ~np.isnan(want) if spec.output is not Storage.I32 else want != np.iinfo(np.int64).min
    for knobs in space(executor, spec) if candidates is None else candidates:
        got = run_spec(executor, spec, knobs, operands, args, out_size)
        assert got.shape == want.shape
        note = f"{executor}, {knobs}"
        if spec.output is Storage.I32:
            np.testing.assert_array_equal(got[wrote], want[wrote], err_msg=note)
        else:
            np.testing.assert_allclose(got, want, rtol=rtol, atol=atol, err_msg=note)


# --- wasm through wasmtime ----------------------------------------------------------------------

BASE = 1 << 12
GAP = 256


@lru_cache(maxsize=1)
def _engine() -> wasmtime.Engine:
    config = wasmtime.Config()
    config.wasm_relaxed_simd = True
    return wasmtime.Engine(config)


@lru_cache(maxsize=512)
def _binary(spec: KernelSpec, knobs: Any, relaxed: bool) -> tuple[wasmtime.Module, Any]:
    # Memory is not shared here: the shares of several threads are computed one after the other,
    # which they must allow. tests/kernels/test_wasmtime.py runs them at the same time.
    binary, scratch = assemble_kernel(spec, knobs, Target(relaxed=relaxed))
    return wasmtime.Module(_engine(), binary), scratch


def _wasm_run(relaxed: bool, threads: int) -> Run:
    def run(
        spec: KernelSpec, knobs: Any, operands: Sequence[Array], args: Sequence[int], out_size: int
    ) -> Array:
        module, scratch_dim = _binary(spec, knobs, relaxed)
        scratch_bytes = evaluate(scratch_dim, {f"a{i}": a for i, a in enumerate(args)})
        addresses, end = [], BASE
        out_bytes = out_size * spec.output.bytes
        for size in (*(o.nbytes for o in operands), out_bytes, scratch_bytes * threads):
            addresses.append(end)
            end = (end + size + GAP + 63) // 64 * 64
        store = wasmtime.Store(_engine())
        pages = end // 65536 + 1
        memory = wasmtime.Memory(store, wasmtime.MemoryType(wasmtime.Limits(pages, None)))
        data = np.ctypeslib.as_array(memory.data_ptr(store), shape=(pages * 65536,))
        data.view(np.float32)[:] = np.nan  # the gaps
        for operand, address in zip(operands, addresses, strict=False):
            data[address : address + operand.nbytes] = operand.view(np.uint8)
        out = addresses[len(operands)]
        output = data[out : out + out_bytes].view(DTYPE[spec.output])
        output[:] = GARBAGE[spec.output]
        before = data.copy()
        instance = wasmtime.Instance(store, module, [memory])
        kernel = instance.exports(store)["kernel"]
        assert isinstance(kernel, wasmtime.Func)
        for thread in range(threads):
            kernel(store, thread, threads, *addresses, *args)
        record_executor("wasmtime")
        changed = np.flatnonzero(data != before)
        own = (changed >= out) & (changed < out + out_bytes)
        scratch = addresses[-1]
        own |= (changed >= scratch) & (changed < scratch + scratch_bytes * threads)
        assert own.all(), f"wrote outside its output, at {changed[~own][:8]} (output at {out})"
        return output.copy()

    return run


def _wasm_space(relaxed: bool, threads: int) -> Space:
    return lambda spec: wasm.space(spec, WasmCaps(relaxed=relaxed, threads=threads > 1))


for _relaxed in (False, True):
    for _threads in (1, 2):
        EXECUTORS[f"wasm-{'relaxed' if _relaxed else 'simd'}-{_threads}"] = KernelExecutor(
            _wasm_space(_relaxed, _threads), _wasm_run(_relaxed, _threads)
        )


# --- WGSL through wgpu-py -----------------------------------------------------------------------

MARGIN = 256
"""Bytes of garbage after every buffer's elements, bound with them."""


@lru_cache(maxsize=1)
def _gpu() -> Gpu:
    try:
        return Gpu()
    except DeviceError as error:
        pytest.skip(str(error))


@lru_cache(maxsize=512)
def _shader(spec: KernelSpec, knobs: Any) -> WgslKernel:
    kernel = wgsl.render(spec, knobs)
    return spelt_out(kernel) if uses_matrices(kernel) else kernel


def _matrix_space(spec: KernelSpec) -> list[Any]:
    """What runs on subgroup matrices, which `spelt_out` brings to this adapter."""
    (caps,) = (v.caps for v in WGSL_VARIANTS if v.name == "matrix")
    return [k for k in wgsl.space(spec, caps) if uses_matrices(wgsl.render(spec, k))]


def forget() -> None:
    """Let go of the device and its pipelines, and of what was generated."""
    for kept in (_gpu, _shader, _binary):
        kept.cache_clear()


def _wgpu_buffer(elements: Array, storage: Storage) -> Any:
    odd = -elements.size % 4 if storage is Storage.I8 else 0  # a binding is whole words
    tail = np.full(MARGIN // storage.bytes + odd, GARBAGE[storage], DTYPE[storage])
    padded = np.concatenate([elements.ravel(), tail])
    buffer = _gpu().buffer(padded.nbytes)
    _gpu().write(buffer, padded.view(np.uint8))
    return buffer


class _Kept:
    """A second output."""

    def __init__(
        self, spec: Map | Matmul, storage: Storage, operands: Sequence[Array], args: Sequence[int]
    ) -> None:
        wide = [
            o.astype(np.int64 if s.type is Type.I32 else np.float64)
            for o, s in zip(operands, spec.operands, strict=True)
        ]
        self.index, self.want = second_output(spec, wide, args)
        self.spec, self.storage = spec, storage
        self.size = int(self.index.max(initial=-1)) + 1
        blank = np.full(self.size, GARBAGE[storage], DTYPE[storage])
        self.buffer = _wgpu_buffer(blank, storage)

    def check(self, knobs: Any) -> None:
        (raw,) = _gpu().read([(self.buffer, self.size * self.storage.bytes + MARGIN)])
        found = np.frombuffer(raw, DTYPE[self.storage])
        untouched = np.delete(found, self.index).view(np.uint8)
        before = np.full(found.size - self.index.size, GARBAGE[self.storage], DTYPE[self.storage])
        assert np.array_equal(untouched, before.view(np.uint8)), "wrote beyond its second output"
        found = found[self.index]
        # A product's own values may have been summed up in f16 for a step.
        summed = isinstance(self.spec, Matmul) and (self.spec.epilogue or self.spec.statistics)
        half = Storage.F16 in (self.storage, self.spec.output)  # statistics are of what is stored
        rounding = (2e-2 if summed else 2e-3) if half else 1e-4
        np.testing.assert_allclose(found, self.want, rounding, rounding, err_msg=f"kept, {knobs}")
        self.buffer.destroy()


def _wgpu_run(
    spec: KernelSpec, knobs: Any, operands: Sequence[Array], args: Sequence[int], out_size: int
) -> Array:
    gpu, kernel = _gpu(), _shader(spec, knobs)
    gpu.pipelines([kernel])
    inputs = [_wgpu_buffer(o, s) for o, s in zip(operands, spec.operands, strict=True)]
    blank = np.full(out_size, GARBAGE[spec.output], DTYPE[spec.output])
    output = _wgpu_buffer(blank, spec.output)
    sizes = {f"a{i}": a for i, a in enumerate(args)}
    scratch = [gpu.buffer(evaluate(n, sizes), poison=True) for n in kernel.scratch]
    uniform = (gpu.uniforms([args]), 0) if args else None
    kept = None
    if isinstance(spec, (Map, Matmul)) and spec.keep is not None:
        kept = _Kept(spec, spec.keep, operands, args)
    buffer = None if kept is None else kept.buffer
    gpu.submit(gpu.dispatches(kernel, inputs, output, scratch, args, uniform, buffer))
    (raw,) = gpu.read([(output, blank.nbytes + MARGIN)])
    if kept is not None:
        kept.check(knobs)
    record_executor("wgpu")
    for buffer in (*inputs, output, *scratch):
        buffer.destroy()
    found = np.frombuffer(raw, DTYPE[spec.output])
    after = found[out_size:].view(np.uint8)
    before = np.full(MARGIN // spec.output.bytes, GARBAGE[spec.output], DTYPE[spec.output])
    assert np.array_equal(after, before.view(np.uint8)), "wrote beyond its output"
    return found[:out_size].copy()


# What the adapter here offers, and what every WebGPU device does.
EXECUTORS["wgpu"] = KernelExecutor(lambda spec: wgsl.space(spec, _gpu().caps()), _wgpu_run)
EXECUTORS["wgpu-floor"] = KernelExecutor(lambda spec: wgsl.space(spec, WgslCaps()), _wgpu_run)
EXECUTORS[MATRIX] = KernelExecutor(_matrix_space, _wgpu_run)
