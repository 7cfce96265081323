"""Types of 8, 4 and 2 bits that NumPy lacks: every rounding, to the last bit, against ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from pywebgpu.compare import compare_output
from pywebgpu.errors import InputError
from pywebgpu.feeds import save_arrays
from pywebgpu.session import InferenceSession
from tests.executors_seen import record_executor
from tests.ops.agree import by_definition

Array = np.ndarray[Any, Any]

FLOATS = {
    "FLOAT8E4M3FN": ml_dtypes.float8_e4m3fn,
    "FLOAT8E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "FLOAT8E5M2": ml_dtypes.float8_e5m2,
    "FLOAT8E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
    "FLOAT4E2M1": ml_dtypes.float4_e2m1fn,
}
INTEGERS = {
    "INT4": ml_dtypes.int4,
    "UINT4": ml_dtypes.uint4,
    "INT2": ml_dtypes.int2,
    "UINT2": ml_dtypes.uint2,
}
EXECUTORS = [
    pytest.param("wasm", id="wasmtime"),
    pytest.param("webgpu", id="wgpu", marks=pytest.mark.wgpu),
]


def _cast_there_and_back(element: int, size: int, saturate: int) -> Any:
    nodes = [
        helper.make_node("Cast", ["x"], ["y"], to=element, saturate=saturate),
        helper.make_node("Cast", ["y"], ["z"], to=TensorProto.FLOAT),
    ]
    ports = [
        helper.make_tensor_value_info(name, code, [size])
        for name, code in (("x", TensorProto.FLOAT), ("y", element), ("z", TensorProto.FLOAT))
    ]
    graph = helper.make_graph(nodes, "cast", ports[:1], ports[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)], ir_version=12)


def _numbers(dtype: Any) -> Array:
    """All numbers of `dtype`, what lies halfway between two and right beside it, and others of
    any size."""
    rng = np.random.default_rng()
    codes = np.arange(256 >> (dtype is ml_dtypes.float4_e2m1fn) * 4, dtype=np.uint8)
    grid = codes.view(dtype).astype(np.float32)
    grid = np.unique(grid[np.isfinite(grid)])
    half = (grid[1:] + grid[:-1]) / 2
    beside = [np.nextafter(half, np.float32(way)) for way in (np.inf, -np.inf)]
    scale = np.exp2(rng.uniform(-24, 20, 4000))
    others = (rng.standard_normal(4000) * scale).astype(np.float32)
    special = np.array([np.inf, -np.inf, np.nan, 0, 3e38, -3e38], np.float32)
    return np.concatenate([grid, half, *beside, others, special])


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("saturate", [1, 0])
@pytest.mark.parametrize("name", FLOATS)
def test_floats_round_to_the_nearest(name: str, saturate: int, executor: str) -> None:
    x = _numbers(FLOATS[name])
    model = _cast_there_and_back(TensorProto.DataType.Value(name), len(x), saturate)
    expected = by_definition(model, {"x": x})
    with InferenceSession(model.SerializeToString(), providers=[executor]) as session:
        found = session.run(None, {"x": x})
    record_executor({"wasm": "wasmtime", "webgpu": "wgpu"}[executor])
    for got, want in zip(found, expected, strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got.astype(np.float32), want.astype(np.float32))


@pytest.mark.parametrize("name", [*FLOATS, *INTEGERS])
def test_constants_lie_packed_and_are_folded_in_their_type(name: str) -> None:
    """A constant that is an output, and casts of constants that no kernel computes."""
    rng = np.random.default_rng()
    dtype = (FLOATS | INTEGERS)[name]
    code = TensorProto.DataType.Value(name)
    constant = rng.integers(-2, 4, (3, 5)).astype(np.float32).astype(dtype)
    wide = (rng.standard_normal((3, 5)) * 3).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["c"], ["widened"], to=TensorProto.FLOAT),
        helper.make_node("CastLike", ["w", "c"], ["narrowed"]),
        helper.make_node("Cast", ["narrowed"], ["again"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["x", "widened"], ["s"]),
        helper.make_node("Add", ["s", "again"], ["y"]),
        helper.make_node("Transpose", ["c"], ["turned"]),
    ]
    graph = helper.make_graph(
        nodes,
        "constants",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 5])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 5]),
            helper.make_tensor_value_info("turned", code, [5, 3]),
        ],
        [numpy_helper.from_array(constant, "c"), numpy_helper.from_array(wide, "w")],
    )
    opsets = [helper.make_opsetid("", 25)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=12)
    feeds = {"x": rng.standard_normal((3, 5)).astype(np.float32)}
    with InferenceSession(model.SerializeToString(), providers=["wasm"]) as session:
        y, turned = session.run(None, feeds)
    want = by_definition(model, feeds)
    np.testing.assert_allclose(y, want[0], 1e-5, 1e-6)
    assert turned.dtype == dtype
    np.testing.assert_array_equal(turned.astype(np.float32), constant.T.astype(np.float32))


@pytest.mark.parametrize("name", INTEGERS)
def test_feeds_come_in_either_form_and_must_fit(name: str) -> None:
    dtype = INTEGERS[name]
    element = TensorProto.DataType.Value(name)
    graph = helper.make_graph(
        [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.INT32)],
        "feeds",
        [helper.make_tensor_value_info("x", element, [2])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [2])],
    )
    opsets = [helper.make_opsetid("", 25)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=12)
    info = ml_dtypes.iinfo(dtype)
    ends = [int(info.min), int(info.max)]
    held = np.dtype(np.int8 if ends[0] else np.uint8)
    with InferenceSession(model.SerializeToString(), providers=["wasm"]) as session:
        assert session.get_inputs()[0].type == f"tensor({name.lower()})"
        for feed in (np.array(ends, held), np.array(ends).astype(dtype), ends):
            np.testing.assert_array_equal(session.run(None, {"x": feed})[0], ends)
        with pytest.raises(InputError, match=f"does not fit {name.lower()}") as caught:
            session.run(None, {"x": np.array([0, ends[1] + 1], held)})
        assert caught.value.expected == f"{ends[0]}..{ends[1]}"


@pytest.mark.parametrize("name", [*FLOATS, *INTEGERS])
def test_outputs_can_be_saved_and_compared(name: str, tmp_path: Path) -> None:
    values = np.array([0, 1, 0]).astype((FLOATS | INTEGERS)[name])
    save_arrays(tmp_path / "y.npz", {"y": values})
    with np.load(tmp_path / "y.npz") as back:
        np.testing.assert_array_equal(back["y"], [0, 1, 0])
    if name.startswith("FLOAT8"):  # ONNX Runtime gives bits
        assert compare_output("y", values, values.view(np.uint8)).max_abs == 0
        assert compare_output("y", values, values[::-1].copy()).max_abs == 0
        assert compare_output("y", values, (values * 0).view(np.uint8)).max_abs == 1
