"""Product kernels on threads that really run at the same time.

Tiles at the edges overlap, and two threads may then store the same element: with the same bits,
so the number of threads must change no bit of a result.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import pytest

from pywebgpu.codegen import scalar as sc
from pywebgpu.codegen import wasm
from pywebgpu.codegen.caps import WasmCaps
from pywebgpu.codegen.dims import symbol
from pywebgpu.codegen.spec import KernelSpec, Matmul, Storage, View
from pywebgpu.codegen.wasm import winograd
from pywebgpu.codegen.wasm.abi import MOST_COUNTED
from pywebgpu.codegen.wasm.asm import Target
from pywebgpu.codegen.wasm.model import Call, Slot, assemble
from pywebgpu.executors.wasmtime_executor import WasmtimeExecutor
from pywebgpu.graph import DType
from pywebgpu.packing import pack_panels
from pywebgpu.plan import Plan, Port, SlotBuffer, Step
from tests.executors_seen import record_executor
from tests.kernels import test_attention, test_conv, test_matmul
from tests.reference import evaluate


class Case(NamedTuple):
    """`args`: values of the sizes that are known only at run time."""

    spec: KernelSpec
    operands: list[Any]
    count: int
    args: tuple[int, ...] = ()


def _matmul() -> Case:
    rng = np.random.default_rng()
    spec = dataclasses.replace(
        test_matmul.packed(101, 67, 40, test_matmul.EPILOGUES["gelu"]), n_args=0
    )
    b, bias = rng.standard_normal((40, 67)), rng.standard_normal(67)
    return Case(spec, [rng.standard_normal(101 * 40), pack_panels(b), bias], 101 * 67)


def _run_time_depth() -> Case:
    """Scores times values, whose K only a run knows."""
    rng = np.random.default_rng()
    m, n, k = 150, 40, 130
    depth = symbol("a0")
    a, b, out = View((m * depth, depth, 1)), View((n * depth, n, 1)), View((m * n, n, 1))
    spec = Matmul((3,), m, n, depth, a, b, out, sc.acc(), (Storage.F32,) * 2, Storage.F32, 1)
    operands = [rng.standard_normal(3 * size) for size in (m * k, k * n)]
    return Case(spec, operands, 3 * m * n, (k,))


def _deep() -> Case:
    """K in parts, A copied, blocks that do not divide the rows."""
    rng = np.random.default_rng()
    spec = dataclasses.replace(
        test_matmul.packed(307, 24, 1024, test_matmul.EPILOGUES["gelu"]), n_args=0
    )
    b = rng.standard_normal((1024, 24))
    return Case(
        spec,
        [rng.standard_normal(307 * 1024), pack_panels(b), rng.standard_normal(24)],
        307 * 24,
    )


def _gemv() -> Case:
    rng = np.random.default_rng()
    spec = dataclasses.replace(
        test_matmul.packed(1, 3000, 515, test_matmul.EPILOGUES["gelu"]), n_args=0
    )
    b = rng.standard_normal((515, 3000))
    operands = [rng.standard_normal(515), pack_panels(b), rng.standard_normal(3000)]
    return Case(spec, operands, 3000)


def _winograd() -> Case:
    case = test_conv.Case(1, (30, 34), 32, 40, 1, (3, 3), pads=(1, 1, 1, 1))
    spec, operands, _, count = test_conv.make(case)
    spec = dataclasses.replace(spec, n_args=0)
    assert isinstance(wasm.space(spec, WasmCaps(threads=True))[0], winograd.Knobs)
    return Case(spec, operands, count)


def _conv() -> Case:
    case = test_conv.Case(2, (17, 23), 12, 20, 2, (3, 3), pads=(1, 1, 1, 1))
    spec, operands, _, count = test_conv.make(case)
    return Case(dataclasses.replace(spec, n_args=0), operands, count)


def _depthwise() -> Case:
    case = test_conv.Case(1, (31, 33), 22, 22, 22, (3, 3), pads=(1, 1, 1, 1))
    spec, operands, _, count = test_conv.make(case)
    return Case(dataclasses.replace(spec, n_args=0), operands, count)


def _attention() -> Case:
    sizes = (2, 3, 3, 70, 150, 16, 20)
    spec, operands, _, count = test_attention.make(sizes, True, True, "mask", False, True)
    return Case(dataclasses.replace(spec, n_args=0), operands, count)


@pytest.mark.parametrize(
    "make",
    [_matmul, _run_time_depth, _deep, _gemv, _conv, _winograd, _depthwise, _attention],
)
def test_the_number_of_threads_changes_no_bit(make: Any) -> None:
    spec, operands, count, args = make()
    flat = [np.ascontiguousarray(o, np.float32).ravel() for o in operands]
    out = len(flat)
    sizes = [4 * o.size for o in flat] + [4 * count]
    inputs = tuple(Port(f"x{i}", DType.F32, (o.size,), Storage.F32, i) for i, o in enumerate(flat))
    plan = Plan(
        "threads", (), inputs, (Port("y", DType.F32, (count,), Storage.F32, out),),
        tuple(SlotBuffer(i, n) for i, n in enumerate(sizes)), tuple(sizes), (spec,),
        (Step(0, tuple(range(out)), out, args, "kernel"),), 0,
    )  # fmt: skip
    feeds = {f"x{i}": o for i, o in enumerate(flat)}
    results = []
    for threads in (1, 2, 3, MOST_COUNTED + 1):
        target = Target(threads=threads > 1)
        calls = [Call(0, tuple(map(Slot, range(out))), Slot(out), args)]
        knobs = wasm.space(spec, WasmCaps(threads=threads > 1))[0]
        module = assemble([(spec, knobs)], calls, target)
        executor = WasmtimeExecutor(
            plan, module, np.zeros(0, np.float32), threads=threads, poison=True
        )
        found = [executor.run(feeds)["y"] for _ in range(4)]
        for again in found[1:]:
            np.testing.assert_array_equal(found[0], again)
        results.append(found[0])
        executor.close()
    record_executor("wasmtime")
    np.testing.assert_allclose(results[0], evaluate(spec, flat, args, count), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])
    np.testing.assert_array_equal(results[0], results[3])


def test_more_steps_without_a_barrier_than_have_counters() -> None:
    """Independent products, each with a result of its own, twice."""
    rng = np.random.default_rng()
    steps = MOST_COUNTED + 3
    spec = dataclasses.replace(
        test_matmul.packed(40, 64, 128, test_matmul.EPILOGUES["gelu"]), n_args=0
    )
    flat = [
        o.astype(np.float32).ravel()
        for o in (
            rng.standard_normal(40 * 128),
            pack_panels(rng.standard_normal((128, 64))),
            rng.standard_normal(64),
        )
    ]
    count, outs = 40 * 64, range(3, 3 + steps)
    sizes = [4 * o.size for o in flat] + [4 * count] * steps
    inputs = tuple(Port(f"x{i}", DType.F32, (o.size,), Storage.F32, i) for i, o in enumerate(flat))
    outputs = tuple(Port(f"y{i}", DType.F32, (count,), Storage.F32, i) for i in outs)
    plan = Plan(
        "steps", (), inputs, outputs, tuple(SlotBuffer(i, n) for i, n in enumerate(sizes)),
        tuple(sizes), (spec,), tuple(Step(0, (0, 1, 2), i, (), f"kernel {i}") for i in outs), 0,
    )  # fmt: skip
    calls = [Call(0, tuple(map(Slot, range(3))), Slot(i), ()) for i in outs]
    knobs = wasm.space(spec, WasmCaps(threads=True))[0]
    module = assemble([(spec, knobs)], calls, Target(threads=True))
    executor = WasmtimeExecutor(plan, module, np.zeros(0, np.float32), threads=3, poison=True)
    expected = evaluate(spec, flat, (), count)
    for _ in range(2):
        for found in executor.run({f"x{i}": o for i, o in enumerate(flat)}).values():
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    executor.close()
    record_executor("wasmtime")
