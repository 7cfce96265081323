"""The GPU executor: a plan from feeds to outputs, and what it says when it cannot."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pywebgpu.codegen import scalar as sc
from pywebgpu.codegen import wgsl
from pywebgpu.codegen.caps import WgslCaps
from pywebgpu.codegen.dims import symbol
from pywebgpu.codegen.spec import Map, Matmul, Row, RowOp, Storage, View
from pywebgpu.codegen.wgsl.kernel import WgslKernel
from pywebgpu.codegen.wgsl.product import Tile
from pywebgpu.errors import DeviceError, InputError
from pywebgpu.executors import wgpu_adapter
from pywebgpu.executors.wgpu_adapter import list_adapters
from pywebgpu.executors.wgpu_device import Gpu
from pywebgpu.executors.wgpu_executor import WgpuExecutor
from pywebgpu.graph import DType
from pywebgpu.plan import Plan, Port, SlotBuffer, Step, WeightBuffer
from tests.executors_seen import record_executor
from tests.kernels.cases import pack

pytestmark = pytest.mark.wgpu
F, WIDTH, LONG = Storage.F32, 12, 640
N, A0 = symbol("n"), symbol("a0")
RNG = np.random.default_rng(5)
WEIGHT = RNG.standard_normal((LONG, WIDTH)).astype(np.float32)


def make_plan() -> Plan:
    """softmax(x W) and its double; the product's k axis may be divided, with scratch."""
    at = sc.axis(0) * WIDTH + sc.axis(1)
    product = Matmul((), A0, WIDTH, LONG, View((LONG, 1)), None, View((WIDTH, 1)), sc.acc(),
                     (F, F), F, 1)  # fmt: skip
    soft = Row((A0,), (WIDTH,), RowOp.SOFTMAX, 0.0, sc.load(0, at), sc.acc(), at, (F,), F, 1)
    double = Map((A0, WIDTH), sc.load(0, at) * 2.0, at, (F,), F, 1)
    size = N * (4 * WIDTH)
    buffers = (SlotBuffer(0, N * (4 * LONG)), WeightBuffer(0, WEIGHT.size // WIDTH * 16 * 4),
               SlotBuffer(1, size), SlotBuffer(2, size), SlotBuffer(3, size))  # fmt: skip
    steps = (Step(0, (0, 1), 2, (N,), "product"), Step(1, (2,), 3, (N,), "soft"),
             Step(2, (3,), 4, (N,), "double"))  # fmt: skip
    return Plan(
        "test", ("n",), (Port("x", DType.F32, (N, LONG), F, 0),),
        (Port("y", DType.F32, (N, WIDTH), F, 3), Port("z", DType.F32, (N, WIDTH), F, 4)),
        buffers, (N * (4 * LONG), size, size, size), (product, soft, double), steps,
        WEIGHT.size // WIDTH * 16 * 4,
    )  # fmt: skip


def kernels(plan: Plan, split: bool = False) -> list[WgslKernel]:
    found = []
    for spec in plan.kernels:
        space = wgsl.space(spec, WgslCaps())
        knobs = space[0]
        if split and isinstance(spec, Matmul):
            knobs = Tile(16, 32, 32, 2, 4, splits=4)
        found.append(wgsl.render(spec, knobs))
    return found


def make(gpu: Gpu, split: bool = False, **options: Any) -> WgpuExecutor:
    plan = make_plan()
    weights = pack(WEIGHT).astype(np.float32).tobytes()
    return WgpuExecutor(plan, kernels(plan, split), weights, gpu=gpu, poison=True, **options)


def expect(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    v = x.astype(np.float64) @ WEIGHT
    e = np.exp(v - v.max(-1, keepdims=True, initial=-np.inf))
    return np.asarray(e / e.sum(-1, keepdims=True))


@pytest.mark.parametrize("split", [False, True])
def test_sizes_come_and_go(gpu: Gpu, split: bool) -> None:
    """Buffers grow, bind groups follow, an empty batch has an empty answer."""
    executor = make(gpu, split)
    for n in (3, 1, 40, 3, 0, 17):
        x = RNG.standard_normal((n, LONG)).astype(np.float32) * 0.1
        found = executor.run({"x": x})
        assert list(found) == ["y", "z"]
        np.testing.assert_allclose(found["y"], expect(x), atol=1e-5)
        np.testing.assert_allclose(found["z"], 2 * expect(x), atol=1e-5)
    assert list(executor.run({"x": x}, ["z"])) == ["z"]
    record_executor("wgpu")
    executor.close()


def test_steps_are_timed(gpu: Gpu) -> None:
    executor = make(gpu)
    seconds = executor.time_steps({"x": np.zeros((4, LONG), np.float32)}, repeats=2)
    assert len(seconds) == 3
    assert all(s >= 0 for s in seconds)


def test_bad_feeds(gpu: Gpu) -> None:
    executor = make(gpu)
    with pytest.raises(InputError, match=r"'x'.*shape"):
        executor.run({"x": np.zeros((4, 3), np.float32)})
    with pytest.raises(InputError, match="no such output"):
        executor.run({"x": np.zeros((4, LONG), np.float32)}, ["nothing"])


def test_a_shader_that_does_not_compile(gpu: Gpu) -> None:
    plan = make_plan()
    broken = kernels(plan)
    bad = replace(broken[0].passes[0], code=broken[0].passes[0].code.replace("fn main", "fn 1ain"))
    broken[0] = replace(broken[0], passes=(bad,))
    with pytest.raises(DeviceError, match=r"kernel matmul_\w+.*does not compile"):
        WgpuExecutor(plan, broken, bytes(plan.weight_bytes), gpu=gpu)


def test_a_weight_too_large_to_bind(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {**gpu.limits, "max-storage-buffer-binding-size": 1024}
    monkeypatch.setattr(gpu, "limits", limits)
    with pytest.raises(DeviceError, match=r"weight 1 \(used by product;.*\d+ bytes.*at most 1024"):
        make(gpu)


def test_an_activation_too_large_to_bind(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    executor = make(gpu)
    limits = {**gpu.limits, "max-storage-buffer-binding-size": 4096 * 40}
    monkeypatch.setattr(gpu, "limits", limits)
    with pytest.raises(DeviceError, match=r"input 'x' \(activ.*got 256000 bytes.*at most 163840"):
        executor.run({"x": np.zeros((100, LONG), np.float32)})
    small = np.zeros((2, LONG), np.float32)
    assert executor.run({"x": small})["y"].shape == (2, WIDTH)


def test_adapters_by_name_and_number(gpu: Gpu) -> None:
    names = [adapter.name for adapter in list_adapters()]
    assert Gpu(index=0).name == names[0]
    assert Gpu(name=names[0].split()[0]).name == names[0]
    with pytest.raises(DeviceError, match="no such adapter"):
        Gpu(name="an adapter of this name")
    with pytest.raises(DeviceError, match="no such adapter"):
        Gpu(index=99)


def test_no_adapter_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    class Nothing:
        def request_adapter_sync(self, **_: Any) -> Any:
            raise RuntimeError("none")

    class Module:
        gpu = Nothing()

    monkeypatch.setattr(wgpu_adapter, "wgpu_module", Module)
    with pytest.raises(DeviceError, match="mesa-vulkan-drivers"):
        Gpu()


def test_caps_are_the_adapters(gpu: Gpu) -> None:
    caps = gpu.caps()
    floor = WgslCaps()
    assert caps.max_workgroup_storage >= floor.max_workgroup_storage
    assert caps.max_invocations >= floor.max_invocations
    assert caps.max_binding >= floor.max_binding
