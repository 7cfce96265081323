"""f16 bundles: half the bytes, the same answers within half precision, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from pywebgpu.build import fitting_variants
from pywebgpu.bundle import Bundle
from pywebgpu.codegen.caps import MATRIX
from pywebgpu.errors import BundleError, DeviceError
from pywebgpu.export import export
from pywebgpu.session import InferenceSession
from tests.executors_seen import record_executor

DIGITS = Path(__file__).parents[2] / "examples/digits/digits.onnx"

# Every stored activation is rounded to 11 bits: 5e-4 each, and a network adds up several.
TOLERANCE = 5e-3


def _gpu(bundle: Path) -> InferenceSession:
    try:
        session = InferenceSession(bundle, providers=["webgpu"])
    except DeviceError as error:
        pytest.skip(str(error))
    record_executor("wgpu")
    return session


@pytest.mark.wgpu
def test_digits_in_half_precision(tmp_path: Path) -> None:
    whole = export(DIGITS, tmp_path / "f32")
    half = export(DIGITS, tmp_path / "f16", dtype="f16")
    assert half.weight_bytes < 0.52 * whole.weight_bytes
    images = np.random.default_rng().random((5, 1, 8, 8), dtype=np.float32)
    (want,) = InferenceSession(tmp_path / "f32", providers=["wasm"]).run(None, {"image": images})
    (got,) = _gpu(tmp_path / "f16").run(None, {"image": images})
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, atol=TOLERANCE)


@pytest.mark.wgpu
def test_a_weight_beyond_the_range_stays_f32(tmp_path: Path) -> None:
    large = np.linspace(1e5, 2e5, 40, dtype=np.float32)
    node = helper.make_node("Div", ["x", "large"], ["y"])
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 40]) for n in "xy"]
    constants = [numpy_helper.from_array(large, "large")]
    graph = helper.make_graph([node], "large", ports[:1], ports[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    export(model.SerializeToString(), tmp_path / "bundle", dtype="f16")
    x = np.full((3, 40), 6e4, np.float32)
    (got,) = _gpu(tmp_path / "bundle").run(None, {"x": x})
    np.testing.assert_allclose(got, x / large, rtol=2e-3)


def test_webassembly_refuses_by_name(tmp_path: Path) -> None:
    export(DIGITS, tmp_path / "f16", dtype="f16")
    with pytest.raises((BundleError, DeviceError), match="wasm variant"):
        InferenceSession(tmp_path / "f16", providers=["wasm"])


def test_devices_with_subgroup_matrices_have_shaders_of_their_own(tmp_path: Path) -> None:
    """Only where products are stored as f16, and only for devices that meet every need."""
    rng = np.random.default_rng()
    weight = rng.standard_normal((256, 512)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [256, 256])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [256, 512])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    for dtype, expected in (("f32", []), ("f16", ["matrix"])):
        export(model.SerializeToString(), tmp_path / dtype, dtype=dtype)
        bundle = Bundle.load(tmp_path / dtype)
        variants = bundle.wgsl_variants()
        assert [n for n, _ in variants if n not in ("emulated", "default")] == expected
        assert fitting_variants(variants, ["shader-f16", "subgroups"])[0] == "default"
    assert fitting_variants(variants, MATRIX) == ["matrix", "default"]
    (kernel,) = bundle.wgsl_kernels("matrix")
    assert "subgroupMatrixMultiplyAccumulate" in kernel.passes[0].code
    assert "chromium-experimental-subgroup-matrix" in kernel.features


@pytest.mark.wgpu
@pytest.mark.parametrize("given", [False, True])
def test_activations_beyond_the_range_stay_f32(tmp_path: Path, given: bool) -> None:
    """Squares of numbers in the thousands are normalised afterwards; tiny ones are scaled up. What
    only given feeds show is found with them."""
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((32, 32)).astype(np.float32)
    scale = np.float32(1 if given else 3e3)
    nodes = [
        helper.make_node("Mul", ["x", "scale"], ["scaled"]),
        helper.make_node("MatMul", ["scaled", "w"], ["product"]),
        helper.make_node("Mul", ["product", "product"], ["square"]),
        helper.make_node("MatMul", ["square", "w"], ["mixed"]),
        helper.make_node("LayerNormalization", ["mixed", "ones"], ["y"]),
    ]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [5, 32]) for n in "xy"]
    arrays = {"w": weight, "scale": scale, "ones": np.ones(32, np.float32)}
    constants = [numpy_helper.from_array(np.asarray(a), n) for n, a in arrays.items()]
    graph = helper.make_graph(nodes, "wide", ports[:1], ports[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    x = rng.standard_normal((5, 32)).astype(np.float32) * np.float32(3e3 if given else 1)
    feeds = {"x": x} if given else None
    report = export(model.SerializeToString(), tmp_path / "bundle", dtype="f16", feeds=feeds)
    assert report.ranges is not None
    assert report.ranges.feeds == ("given" if given else "random")
    assert 0 < len(report.ranges.kept) <= report.ranges.tensors
    assert all(t.largest > 16000 for t in report.ranges.kept)
    assert json.loads(json.dumps(report.to_json()))["ranges"]["kept"]
    assert "stays f32" in str(report)
    (want,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    (got,) = _gpu(tmp_path / "bundle").run(None, {"x": x})
    np.testing.assert_allclose(got, want, atol=3e-2)


def test_ordinary_activations_are_all_f16(tmp_path: Path) -> None:
    report = export(DIGITS, tmp_path / "bundle", dtype="f16")
    assert report.ranges is not None
    assert report.ranges.kept == ()
    assert "none beyond f16's range" in str(report)
