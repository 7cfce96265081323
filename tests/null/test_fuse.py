"""What a GPU plays in fewer kernels: which steps disappear, which stay, and that both agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from pywebgpu.codegen.codec import spec_from_json, spec_to_json
from pywebgpu.codegen.spec import Attention, Matmul, Row, family
from pywebgpu.compile import Compiled, compile_model
from tests.bench.layers import decoder, encoder
from tests.plan_eval import play

SIZES = {"layers": 2, "hidden": 32, "heads": 4}


@pytest.fixture
def compiled(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Compiled, Path]:
    path = tmp_path / "model.onnx"
    if request.param == "encoder":
        encoder(path, **SIZES)
    else:
        decoder(path, **SIZES, kv_heads=2, wide=48)
    return compile_model(path), path


@pytest.mark.parametrize(
    ("compiled", "per_layer", "around"),
    [("encoder", 6, 1), ("decoder", 7, 1)],
    indirect=["compiled"],
)
def test_dispatches_per_layer(
    compiled: tuple[Compiled, Path], per_layer: int, around: int
) -> None:  # fmt: skip
    """An encoder's six: normalising product, attention, product, normalisation, two products. A
    decoder's seven: both normalise as they read, and two write the longer cache."""
    plan = compiled[0].plan
    assert len(plan.on_gpu.steps) == 2 * per_layer + around
    assert plan.gpu is not None
    assert len(plan.steps) > len(plan.gpu.steps)
    assert all(getattr(k, "prologue", None) is None for k in plan.kernels), "wasm has none"
    assert all(getattr(k, "query", None) is None for k in plan.kernels)
    rows = [s for s in plan.gpu.steps if isinstance(plan.gpu.kernels[s.kernel], Row)]
    assert len(rows) == (3 if per_layer == 6 else 1)
    for spec in plan.gpu.kernels:
        assert spec_from_json(spec_to_json(spec)) == spec
        kept = isinstance(spec, Matmul) and spec.prologue is not None and bool(spec.prologue.keep)
        assert len(spec.operands) + kept <= 7


@pytest.mark.parametrize("compiled", ["encoder", "decoder"], indirect=True)
def test_both_programs_mean_the_model(compiled: tuple[Compiled, Path]) -> None:
    model, path = compiled
    native = onnxruntime.InferenceSession(path)
    rng = np.random.default_rng(2)
    sizes = {"batch": 2, "sequence": 5, "past": 3}
    feeds = {
        port.name: rng.standard_normal([sizes.get(d, d) for d in port.shape]).astype(np.float32)
        for port in native.get_inputs()
    }
    wanted = dict(zip([o.name for o in native.get_outputs()], native.run(None, feeds), strict=True))
    for name, got in play(model, feeds).items():  # plays both, and compares them
        np.testing.assert_allclose(got, wanted[name], 1e-4, 1e-4, err_msg=name)


@pytest.mark.parametrize("compiled", ["decoder"], indirect=True)
def test_a_decoder_turns_its_queries_where_they_are_read(compiled: tuple[Compiled, Path]) -> None:
    gpu = compiled[0].plan.on_gpu
    attentions = [k for k in gpu.kernels if isinstance(k, Attention)]
    assert attentions
    assert all(a.query is not None for a in attentions)


def test_a_port_is_stored_by_the_product_that_normalises_it(tmp_path: Path) -> None:
    """The hidden state is an output, and a product reads it."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    constants = {"g": rng.random(16), "b": rng.random(16), "w": rng.standard_normal((16, 24))}
    nodes = [
        helper.make_node("LayerNormalization", ["x", "g", "b"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "w"], ["y"]),
    ]
    ports = {n: helper.make_tensor_value_info(n, TensorProto.FLOAT, ["rows", size])
             for n, size in (("x", 16), ("hidden", 16), ("y", 24))}  # fmt: skip
    graph = helper.make_graph(
        nodes, "port", [ports["x"]], [ports["hidden"], ports["y"]],
        [numpy_helper.from_array(a.astype(np.float32), n) for n, a in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.save(model, tmp_path / "port.onnx")
    compiled = compile_model(tmp_path / "port.onnx")
    (step,) = compiled.plan.on_gpu.steps
    assert family(compiled.plan.on_gpu.kernels[step.kernel]) == "matmul"
    assert step.kept == compiled.plan.outputs[0].buffer
    x = rng.standard_normal((7, 16)).astype(np.float32)
    native = onnxruntime.InferenceSession(tmp_path / "port.onnx").run(None, {"x": x})
    found = play(compiled, {"x": x})
    np.testing.assert_allclose(found["hidden"], native[0], 1e-5, 1e-5)
    np.testing.assert_allclose(found["y"], native[1], 1e-4, 1e-4)
