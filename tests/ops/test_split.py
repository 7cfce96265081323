"""Weights larger than a GPU binds: played in parts they give what ONNX Runtime gives.

The limit is lowered to some kB, for the plan and for the device, so that every way of cutting is
met by small models; `tests/web/test_split.py` has a vocabulary of real size on a device that binds
128 MiB.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from pywebgpu.build import wgsl_kernels
from pywebgpu.codegen.caps import WGSL_VARIANTS
from pywebgpu.codegen.spec import Matmul
from pywebgpu.compile import Compiled, compile_model
from pywebgpu.executors.wgpu_device import Gpu
from pywebgpu.executors.wgpu_executor import WgpuExecutor
from pywebgpu.lower import Int8
from pywebgpu.lower.int4 import Int4
from pywebgpu.plan import WeightBuffer
from pywebgpu.session import InferenceSession
from tests.executors_seen import record_executor
from tests.plan_eval import play

F = np.float32
RNG = np.random.default_rng()
Array = np.ndarray[Any, Any]


def normal(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(F)


def model_of(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, list[int | str]]],
    constants: dict[str, Array],
    outputs: tuple[str, ...] = ("y",),
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "split",
        [helper.make_tensor_value_info(n, t, s) for n, (t, s) in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def node(op: str, inputs: str, output: str = "y", **attrs: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [output], **attrs)


FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64
ROWS: dict[str, tuple[int, list[int | str]]] = {"x": (FLOAT, ["rows", 64])}
IDS: dict[str, tuple[int, list[int | str]]] = {"ids": (INT, ["rows"])}


def some_rows(rows: int) -> dict[str, Array]:
    return {"x": normal(rows, 64)}


def some_ids(rows: int, count: int) -> dict[str, Array]:
    """The first and the last are among them, and negative ones, which count from the end."""
    ids = RNG.integers(-count, count, rows)
    ids[:2] = 0, count - 1
    return {"ids": ids}


def product(rows: int = 5) -> tuple[onnx.ModelProto, dict[str, Array]]:
    nodes = [node("MatMul", "x w", "a"), node("Add", "a b", "c"), node("Tanh", "c")]
    return model_of(nodes, ROWS, {"w": normal(64, 203) / 8, "b": normal(203)}), some_rows(rows)


def normalised(rows: int) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """A norm on either side of a product with a large matrix, and a residual past each."""
    nodes = [
        node("LayerNormalization", "x g", "n"),
        node("MatMul", "n w", "a"),
        node("Add", "a n", "r"),
        node("LayerNormalization", "r g", "m"),
        node("Add", "m r"),
    ]
    return model_of(nodes, ROWS, {"w": normal(64, 64) / 8, "g": normal(64)}), some_rows(rows)


def table() -> tuple[onnx.ModelProto, dict[str, Array]]:
    """Rows of one table beside those of another, normalised in the kernel that looks them up."""
    nodes = [
        node("Gather", "t ids", "a"),
        node("Gather", "s ids", "b"),
        node("Add", "a b", "c"),
        node("LayerNormalization", "c g b0"),
    ]
    constants = {"t": normal(101, 40), "s": normal(101, 40), "g": normal(40), "b0": normal(40)}
    return model_of(nodes, IDS, constants), some_ids(9, 101)


def tied() -> tuple[onnx.ModelProto, dict[str, Array]]:
    """A vocabulary that is both looked up and multiplied with: one packed matrix for both."""
    words = normal(4099, 64)
    nodes = [node("Gather", "t ids", "h"), node("Relu", "h", "r"), node("MatMul", "r w")]
    return model_of(nodes, IDS, {"t": words, "w": words.T.copy()}), some_ids(7, 4099)


def branches() -> tuple[onnx.ModelProto, dict[str, Array]]:
    """A large product in one branch, a table in the other, one more product behind them."""
    shape = helper.make_tensor_value_info
    bodies = {
        "then_branch": [node("MatMul", "x w", "p"), node("Relu", "p", "r")],
        "else_branch": [node("Gather", "t ids", "q"), node("Tanh", "q", "r")],
    }
    made = {
        name: helper.make_graph(body, name, [], [shape("r", FLOAT, None)])
        for name, body in bodies.items()
    }
    nodes = [
        node("ReduceSum", "x", "sum", keepdims=0),
        node("Greater", "sum zero", "more"),
        helper.make_node("If", ["more"], ["h"], **made),
        node("MatMul", "h v"),
    ]
    constants = {"w": normal(64, 96), "v": normal(96, 40), "t": normal(50, 96)}
    constants["zero"] = np.array(0, F)
    model = model_of(nodes, ROWS | IDS, constants)
    return model, some_rows(5) | some_ids(5, 50)


def convolution() -> tuple[onnx.ModelProto, dict[str, Array]]:
    nodes = [node("Conv", "x w b", "a", pads=[1, 1, 1, 1]), node("Relu", "a")]
    constants = {"w": normal(37, 8, 3, 3) / 8, "b": normal(37)}
    return model_of(nodes, {"x": (FLOAT, ["n", 8, 6, 5])}, constants), {"x": normal(2, 8, 6, 5)}


def experts() -> tuple[onnx.ModelProto, dict[str, Array]]:
    """A matrix for each element of a batch axis."""
    nodes = [node("MatMul", "x w", "a"), node("Add", "a b")]
    constants = {"w": normal(6, 16, 24), "b": normal(6, 1, 24)}
    return model_of(nodes, {"x": (FLOAT, [6, "rows", 16])}, constants), {"x": normal(6, 3, 16)}


def four_bits(zeros: bool, rows: int) -> tuple[onnx.ModelProto, dict[str, Array]]:
    codes = RNG.integers(0, 256, (203, 4, 8), np.uint8)
    constants = {"q": codes, "s": (normal(203 * 4) / 8).astype(F)}
    if zeros:
        constants["z"] = RNG.integers(0, 256, 203 * 2, np.uint8)
    inputs = "x q s z" if zeros else "x q s"
    sizes = {"N": 203, "K": 64, "bits": 4, "block_size": 16}
    nodes = [
        node("MatMulNBits", inputs, "a", domain="com.microsoft", **sizes),
        node("Relu", "a"),
    ]
    return model_of(nodes, ROWS, constants), some_rows(rows)


@dataclass(frozen=True)
class Case:
    make: Callable[[], tuple[onnx.ModelProto, dict[str, Array]]]
    limit: int
    settings: Callable[[], dict[str, Any]] = dict
    tolerance: float = 1e-4
    """Of ONNX Runtime's numbers: relative to the largest; where weights are quantised, of the root
    mean squares, since the largest of many roundings differs from draw to draw."""


CASES: dict[str, Case] = {
    "product": Case(product, 20_000),
    "product in many parts": Case(product, 2048),
    "few rows": Case(lambda: normalised(2), 5000),
    "many rows": Case(lambda: normalised(33), 5000),
    "table": Case(table, 11_000),
    "tied": Case(tied, 300_000),
    "branches": Case(branches, 9000),
    "convolution": Case(convolution, 5000),
    "experts": Case(experts, 4000),
    "four bits": Case(lambda: four_bits(False, 1), 1500),
    "four bits, zeros, rows": Case(lambda: four_bits(True, 17), 2000),
    "int8": Case(lambda: product(17), 4000, lambda: {"int8": Int8()}, 0.02),
    "int8, one row": Case(lambda: product(1), 4000, lambda: {"int8": Int8()}, 0.02),
    "tied in int8": Case(tied, 100_000, lambda: {"int8": Int8()}, 0.02),
    "int4": Case(product, 3000, lambda: {"int8": Int4()}, 0.12),
    "f16": Case(product, 9000, lambda: {"half": True}, 5e-3),
    "tied in f16": Case(tied, 150_000, lambda: {"half": True}, 5e-3),
}


def expected(model: onnx.ModelProto, feeds: dict[str, Array]) -> Array:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    found: Array = session.run(None, feeds)[0]
    return found


def compiled_case(case: Case) -> tuple[Compiled, dict[str, Array], Array]:
    """With what it is to give. What quantising costs is not the matter here: a quantised model,
    once it is near ONNX Runtime's numbers, is to give what its whole weights give."""
    model, feeds = case.make()
    made = compile_model(model.SerializeToString(), max_binding=case.limit, **case.settings())
    want = expected(model, feeds)
    if "int8" in case.settings():
        (whole,) = play(
            dataclasses.replace(made, plan=dataclasses.replace(made.plan, gpu=None)), feeds
        ).values()
        error = np.sqrt(np.mean((whole - want) ** 2) / np.mean(want**2))
        assert error <= case.tolerance
        want = whole
    return made, feeds, want


def close(got: Array, want: Array, tolerance: float) -> None:
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= tolerance * np.abs(want).max()


def bound(compiled: Compiled) -> list[int]:
    """Bytes of the weights that a GPU's steps bind."""
    plan = compiled.plan.on_gpu
    numbers = {b for step in plan.steps for b in step.operands}
    found = [plan.buffers[n] for n in numbers]
    return [b.bytes for b in found if isinstance(b, WeightBuffer)]


@pytest.mark.parametrize("name", CASES)
def test_parts_give_what_the_whole_gives(name: str) -> None:
    case = CASES[name]
    compiled, feeds, want = compiled_case(case)
    assert max(bound(compiled)) <= case.limit
    assert any(
        isinstance(b, WeightBuffer) and b.bytes > case.limit for b in compiled.plan.buffers
    ), "nothing was large"
    if "half" not in case.settings():
        (got,) = play(compiled, feeds).values()
        close(got, want, 1e-4)


@pytest.mark.wgpu
@pytest.mark.parametrize("variant", [v.name for v in WGSL_VARIANTS if not v.caps.matrix])
@pytest.mark.parametrize("name", CASES)
def test_a_gpu_that_binds_less(
    gpu: Gpu, name: str, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    compiled, feeds, want = compiled_case(case)
    # As little as the activations allow, which is less than the weight.
    least = max(case.limit, want.nbytes + 16, 16384)
    limits = {**gpu.limits, "max-storage-buffer-binding-size": least, "max-buffer-size": least}
    monkeypatch.setattr(gpu, "limits", limits)
    kernels = wgsl_kernels(compiled.plan, variant=variant)
    weights = b"".join(compiled.weight_chunks())
    executor = WgpuExecutor(compiled.plan, kernels, weights, gpu=gpu, poison=True)
    record_executor("wgpu")
    (got,) = executor.run(feeds).values()
    executor.close()
    close(got, want, 5e-3 if "half" in case.settings() else 1e-4)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_program_has_its_parts_on_wasm_too(sign: int) -> None:
    model, feeds = branches()
    feeds["x"] = sign * np.abs(feeds["x"])
    compiled = compile_model(model.SerializeToString(), max_binding=9000)
    with InferenceSession(compiled, ["wasm"], threads=1) as session:
        (got,) = session.run(None, dict(feeds))
    record_executor("wasmtime")
    (played,) = play(compiled, feeds).values()
    for found in (got, played):
        close(found, expected(model, feeds), 1e-4)


def test_only_the_first_part_keeps_rows() -> None:
    compiled, _, _ = compiled_case(CASES["few rows"])
    plan = compiled.plan.on_gpu
    kept = [s for s in plan.steps if s.kept is not None]
    assert len(kept) <= 1
    for step in plan.steps:
        spec = plan.kernels[step.kernel]
        if isinstance(spec, Matmul):
            assert (spec.keep is not None) == (step.kept is not None)


def test_a_plan_within_the_limit_is_the_same() -> None:
    model, _ = product()
    usual, low = (
        compile_model(model.SerializeToString(), max_binding=limit).plan
        for limit in (128 << 20, 64 * 208 * 4)
    )
    assert usual == low


def test_a_table_has_as_many_parts_as_a_kernel_binds() -> None:
    """Beyond that they are larger, and the device has to bind more."""
    model, feeds = table()
    compiled = compile_model(model.SerializeToString(), max_binding=1000)
    plan = compiled.plan.on_gpu
    assert all(len(step.operands) <= 7 for step in plan.steps)
    assert max(bound(compiled)) > 1000
    (got,) = play(compiled, feeds).values()
    close(got, expected(model, feeds), 1e-4)
