"""Product kernels on threads that really run at the same time.

Tiles at the edges overlap, and two threads may then store the same element: with the same bits,
so the number of threads must change no bit of a result.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from pywebgpu.codegen import wasm
from pywebgpu.codegen.caps import WasmCaps
from pywebgpu.codegen.spec import Attention, Conv, Matmul, Storage
from pywebgpu.codegen.wasm.asm import Target
from pywebgpu.codegen.wasm.model import Call, Slot, assemble
from pywebgpu.executors.wasmtime_executor import WasmtimeExecutor
from pywebgpu.graph import DType
from pywebgpu.packing import pack_panels
from pywebgpu.plan import Plan, Port, SlotBuffer, Step
from tests.executors_seen import record_executor
from tests.kernels import test_attention, test_conv, test_matmul
from tests.reference import evaluate

Operands = list[Any]


def _matmul() -> tuple[Matmul, Operands, int]:
    rng = np.random.default_rng()
    spec = dataclasses.replace(
        test_matmul.packed(101, 67, 40, test_matmul.EPILOGUES["gelu"]), n_args=0
    )
    b, bias = rng.standard_normal((40, 67)), rng.standard_normal(67)
    return spec, [rng.standard_normal(101 * 40), pack_panels(b), bias], 101 * 67


def _deep() -> tuple[Matmul, Operands, int]:
    """K in parts, A copied, blocks that do not divide the rows."""
    rng = np.random.default_rng()
    spec = dataclasses.replace(
        test_matmul.packed(307, 24, 1024, test_matmul.EPILOGUES["gelu"]), n_args=0
    )
    b = rng.standard_normal((1024, 24))
    return (
        spec,
        [rng.standard_normal(307 * 1024), pack_panels(b), rng.standard_normal(24)],
        307 * 24,
    )


def _conv() -> tuple[Conv, Operands, int]:
    case = test_conv.Case(2, (17, 23), 12, 20, 2, (3, 3), pads=(1, 1, 1, 1))
    spec, operands, _, count = test_conv.make(case)
    return dataclasses.replace(spec, n_args=0), operands, count


def _depthwise() -> tuple[Conv, Operands, int]:
    case = test_conv.Case(1, (31, 33), 22, 22, 22, (3, 3), pads=(1, 1, 1, 1))
    spec, operands, _, count = test_conv.make(case)
    return dataclasses.replace(spec, n_args=0), operands, count


def _attention() -> tuple[Attention, Operands, int]:
    sizes = (2, 3, 3, 70, 150, 16, 20)
    spec, operands, _, count = test_attention.make(sizes, True, True, "mask", False, True)
    return dataclasses.replace(spec, n_args=0), operands, count


@pytest.mark.parametrize("make", [_matmul, _deep, _conv, _depthwise, _attention])
def test_the_number_of_threads_changes_no_bit(make: Any) -> None:
    spec, operands, count = make()
    flat = [np.ascontiguousarray(o, np.float32).ravel() for o in operands]
    out = len(flat)
    sizes = [4 * o.size for o in flat] + [4 * count]
    inputs = tuple(Port(f"x{i}", DType.F32, (o.size,), Storage.F32, i) for i, o in enumerate(flat))
    plan = Plan(
        "threads", (), inputs, (Port("y", DType.F32, (count,), Storage.F32, out),),
        tuple(SlotBuffer(i, n) for i, n in enumerate(sizes)), tuple(sizes), (spec,),
        (Step(0, tuple(range(out)), out, (), "kernel"),), 0,
    )  # fmt: skip
    feeds = {f"x{i}": o for i, o in enumerate(flat)}
    results = []
    for threads in (1, 2, 3):
        target = Target(threads=threads > 1)
        calls = [Call(0, tuple(map(Slot, range(out))), Slot(out), ())]
        knobs = wasm.space(spec, WasmCaps(threads=threads > 1))[0]
        module = assemble([(spec, knobs)], calls, target)
        executor = WasmtimeExecutor(
            plan, module, np.zeros(0, np.float32), threads=threads, poison=True
        )
        results.append(executor.run(feeds)["y"])
        executor.close()
    record_executor("wasmtime")
    np.testing.assert_allclose(results[0], evaluate(spec, flat, (), count), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])
