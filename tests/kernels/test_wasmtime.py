"""The wasmtime executor: a plan from feeds to outputs, on one thread and on several."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pywebgpu.codegen import scalar as sc
from pywebgpu.codegen import wasm
from pywebgpu.codegen.caps import WasmCaps
from pywebgpu.codegen.dims import symbol
from pywebgpu.codegen.scalar import Op, Type
from pywebgpu.codegen.spec import Map, Row, RowOp, Storage
from pywebgpu.codegen.wasm.asm import Target
from pywebgpu.codegen.wasm.model import (
    Call,
    ModelModule,
    Slot,
    Weight,
    assemble,
    assemble_kernel,
)
from pywebgpu.errors import DeviceError, InputError
from pywebgpu.executors.wasmtime_executor import WasmtimeExecutor
from pywebgpu.graph import DType
from pywebgpu.plan import Plan, Port, SlotBuffer, Step, WeightBuffer
from tests.executors_seen import record_executor

F, I = Storage.F32, Storage.I32  # noqa: E741
N, A0 = symbol("n"), symbol("a0")
WIDTH = 24
TARGETS = [
    pytest.param(Target(), 1, id="simd"),
    pytest.param(Target(relaxed=True), 1, id="relaxed"),
    pytest.param(Target(threads=True), 1, id="simd-threads-1"),
    pytest.param(Target(threads=True), 2, id="simd-threads-2"),
    pytest.param(Target(relaxed=True, threads=True), 3, id="relaxed-threads-3"),
]


def _plan(rounds: int = 20) -> Plan:
    """`rounds` times softmax and a bias from the weights, then counts of what is positive."""
    i, j = sc.axis(0), sc.axis(1)
    at = i * WIDTH + j
    soft = Row((A0,), (WIDTH,), RowOp.SOFTMAX, 0.0, sc.load(0, at), sc.acc(), at, (F,), F, 1)
    add = Map((A0, WIDTH), sc.load(0, at) * 3.0 + sc.load(1, j), at, (F, F), F, 1)
    sign = Map((A0, WIDTH), sc.unary(Op.TO_I32, sc.binary(Op.LT, 0.0, sc.load(0, at)))
               * sc.load(1, i, Type.I32), at, (F, I), I, 1)  # fmt: skip
    size = N * (4 * WIDTH)
    buffers = (*(SlotBuffer(k, size) for k in range(3)), WeightBuffer(256, 4 * WIDTH),
               SlotBuffer(3, N * 4), SlotBuffer(4, size))  # fmt: skip
    steps = [Step(0, (0,), 1, (N,), "soft"), Step(1, (1, 3), 2, (N,), "add")]
    for _ in range(rounds - 1):
        steps += [Step(0, (2,), 1, (N,), "soft"), Step(1, (1, 3), 2, (N,), "add")]
    steps.append(Step(2, (2, 4), 5, (N,), "sign"))
    return Plan(
        "test", ("n",),
        (Port("x", DType.F32, (N, WIDTH), F, 0), Port("k", DType.I64, (N,), I, 4)),
        (Port("y", DType.F32, (N, WIDTH), F, 2), Port("s", DType.I64, (N, WIDTH), I, 5)),
        buffers, (size, size, size, N * 4, size), (soft, add, sign), tuple(steps), 256 + 4 * WIDTH,
    )  # fmt: skip


def _module(plan: Plan, target: Target) -> ModelModule:
    def operand(number: int) -> Weight | Slot:
        buffer = plan.buffers[number]
        return Weight(buffer.offset) if isinstance(buffer, WeightBuffer) else Slot(buffer.slot)

    caps = WasmCaps(relaxed=target.relaxed, threads=target.threads)
    calls = [Call(s.kernel, tuple(map(operand, s.operands)), operand(s.output), s.args)
             for s in plan.steps]  # fmt: skip
    return assemble([(k, wasm.space(k, caps)[0]) for k in plan.kernels], calls, target)


def _weights() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    bias = np.random.default_rng().normal(size=WIDTH).astype(np.float32)
    return bias, np.concatenate([np.zeros(64, np.float32), bias])


def _expected(x: np.ndarray[Any, Any], bias: np.ndarray[Any, Any], rounds: int = 20) -> Any:
    y = x.astype(np.float64)
    for _ in range(rounds):
        e = np.exp(y - y.max(1, keepdims=True))
        y = e / e.sum(1, keepdims=True) * 3 + bias
    return y


@pytest.mark.parametrize(("target", "threads"), TARGETS)
def test_runs_a_plan(target: Target, threads: int) -> None:
    plan, (bias, weights) = _plan(), _weights()
    executor = WasmtimeExecutor(plan, _module(plan, target), weights, threads=threads, poison=True)
    rng = np.random.default_rng()
    for n in (5, 3001, 0, 1, 64):  # grows, shrinks, vanishes
        x, k = rng.normal(size=(n, WIDTH)).astype(np.float32), rng.integers(-9, 9, n)
        got = executor.run({"x": x, "k": k})
        if n:
            want = _expected(x, bias)
            np.testing.assert_allclose(got["y"], want, rtol=1e-5, atol=1e-5)
            clear = np.abs(want) > 1e-4
            np.testing.assert_array_equal(got["s"][clear], ((want > 0) * k[:, None])[clear])
        assert got["y"].shape == (n, WIDTH)
        assert got["s"].dtype == np.int64
    assert list(executor.run({"x": x, "k": k}, ["s"])) == ["s"]
    record_executor("wasmtime")
    executor.close()


def test_threads_and_variants_agree() -> None:
    """The number of threads changes no bit of a result."""
    plan, (_, weights) = _plan(), _weights()
    x = np.random.default_rng().normal(size=(97, WIDTH)).astype(np.float32)
    results = []
    for target, threads in ((Target(), 1), (Target(threads=True), 1), (Target(threads=True), 2)):
        executor = WasmtimeExecutor(plan, _module(plan, target), weights, threads=threads)
        results.append(executor.run({"x": x, "k": np.ones(97, np.int64)})["y"])
        executor.close()
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_times_another_candidate() -> None:
    plan, (_, weights) = _plan(1), _weights()
    executor = WasmtimeExecutor(plan, _module(plan, Target()), weights)
    feeds = {"x": np.random.default_rng().normal(size=(50, WIDTH)).astype(np.float32),
             "k": np.ones(50, np.int64)}  # fmt: skip
    executor.run(feeds)
    want = executor.step_output(0, 50 * WIDTH)
    assert len(executor.time_runs(feeds, 3)) == 3
    for knobs in wasm.space(plan.kernels[0], WasmCaps()):
        binary, scratch = assemble_kernel(plan.kernels[0], knobs, Target())
        times = executor.time_kernel(binary, 0, feeds, scratch, 3)
        assert len(times) == 3
        assert min(times) > 0
        np.testing.assert_allclose(executor.step_output(0, 50 * WIDTH), want, rtol=1e-5)


X, K = np.zeros((2, WIDTH), np.float32), np.zeros(2, np.int64)


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({"x": X, "k": K, "z": X}, "input 'z': no such input"),
        ({"x": X}, "input 'k': is missing"),
        ({"x": X.astype(np.float64), "k": K}, "wrong element type"),
        ({"x": X, "k": K.astype(np.int32)}, "wrong element type"),
        ({"x": X[0], "k": K}, "wrong shape"),
        ({"x": X[:, :5], "k": K}, r"\[n, 24\] with n = 2"),
        ({"x": X, "k": np.zeros(3, np.int64)}, "wrong shape"),
        ({"x": X, "k": np.array([1, 1 << 40])}, "does not fit 32 bits"),
        ({"x": X, "k": "no"}, "not an array"),
    ],
)
def test_bad_feeds(feeds: dict[str, Any], message: str) -> None:
    plan, (_, weights) = _plan(1), _weights()
    executor = WasmtimeExecutor(plan, _module(plan, Target()), weights)
    with pytest.raises(InputError, match=message):
        executor.run(feeds)
    assert executor.run({"x": X.tolist(), "k": [1, 2]})["y"].shape == (2, WIDTH)
    with pytest.raises(InputError, match="no such output"):
        executor.run({"x": X, "k": K}, ["q"])


def test_more_memory_than_there_is() -> None:
    plan, (_, weights) = _plan(1), _weights()
    huge = replace(plan, slots=(N * (1 << 32), *plan.slots[1:]))
    executor = WasmtimeExecutor(huge, _module(plan, Target()), weights)
    with pytest.raises(DeviceError, match=r"cannot grow \(got \d+ bytes needed"):
        executor.run({"x": X, "k": K})


def test_a_trap_is_an_error_on_every_thread_count() -> None:
    """A load far outside memory: reported, not waited for."""
    bad = Map((A0,), sc.load(0, sc.axis(0) * (1 << 20) + (1 << 28)), sc.axis(0), (F,), F, 1)
    plan = Plan(
        "trap", ("n",), (Port("x", DType.F32, (N,), F, 0),), (Port("y", DType.F32, (N,), F, 1),),
        (SlotBuffer(0, N * 4), SlotBuffer(1, N * 4)), (N * 4, N * 4), (bad,),
        (Step(0, (0,), 1, (N,), "bad"), Step(0, (0,), 1, (N,), "bad")), 4,
    )  # fmt: skip
    for target, threads in ((Target(), 1), (Target(threads=True), 2)):
        module = _module(plan, target)
        executor = WasmtimeExecutor(plan, module, np.zeros(1, np.float32), threads=threads)
        with pytest.raises(DeviceError, match="stopped"):
            executor.run({"x": np.zeros(9000, np.float32)})
        with pytest.raises(DeviceError, match="earlier fault"):
            executor.run({"x": np.zeros(9000, np.float32)})


def test_independent_steps_do_not_wait() -> None:
    """A barrier comes before a step that depends on one in flight, and before no other."""
    at = sc.axis(0)
    copy = Map((64,), sc.load(0, at), at, (F,), F)
    kernel = [(copy, wasm.space(copy, WasmCaps())[0])]

    def barriers(*steps: tuple[int, int]) -> int:
        """Calls of the barrier beyond those of the kernel and the one that ends a run, for steps
        (from slot, to slot)."""
        calls = [Call(0, (Slot(a),), Slot(b)) for a, b in steps]
        counts = [
            assemble(kernel, calls, target).binary.count(b"\x20\x01\x10")
            for target in (Target(threads=True), Target())
        ]
        return counts[0] - counts[1] - 1

    assert barriers((0, 1), (0, 2), (0, 3)) == 0
    assert barriers((0, 1), (1, 2)) == 1  # reads what was written
    assert barriers((0, 1), (2, 0)) == 1  # writes what was read
    assert barriers((0, 1), (2, 1)) == 1  # writes the same
    assert barriers((0, 1), (0, 2), (1, 3), (2, 4), (3, 5)) == 2


def test_f16_storage_has_no_candidates() -> None:
    half = Map((4,), sc.load(0, sc.axis(0)), sc.axis(0), (Storage.F16,), F)
    assert wasm.space(half, WasmCaps()) == []


def test_threads_need_a_threaded_module() -> None:
    plan, (_, weights) = _plan(1), _weights()
    with pytest.raises(DeviceError, match="one thread"):
        WasmtimeExecutor(plan, _module(plan, Target()), weights, threads=2)


@pytest.mark.parametrize("target", [Target(), Target(relaxed=True, threads=True)], ids=str)
def test_modules_are_deterministic(target: Target, tmp_path: Path) -> None:
    plan = _plan()
    module = _module(plan, target)
    assert module == _module(plan, target)
    tool = shutil.which("wasm-validate")
    if tool is None:
        pytest.skip("wabt is not installed (apt-get install wabt)")
    path = tmp_path / f"{target.name}.wasm"
    path.write_bytes(module.binary)
    subprocess.run([tool, "--enable-all", path], check=True)
