"""f16 bundles: half the bytes, the same answers within half precision, or refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
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
