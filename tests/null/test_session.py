"""The desktop session: what it takes, what it tells, and that nothing falls back silently."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pywebgpu.errors import DeviceError, InputError
from pywebgpu.export import export
from pywebgpu.session import InferenceSession


def _model() -> bytes:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Neg", ["x"], ["z"])],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3]),
            helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", 3]),
        ],
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    data: bytes = model.SerializeToString()
    return data


X = np.array([[-1.0, 2.0, -3.0]], np.float32)


def _refuse(*_: Any, **__: Any) -> None:
    raise DeviceError("no adapter was found", where="webgpu")


def test_runs_and_describes_itself_as_onnxruntime_does() -> None:
    with InferenceSession(_model(), ["wasm"], threads=1) as session:
        assert session.provider == "wasm"
        assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [
            ("x", "tensor(float)", ["batch", 3])
        ]
        assert [o.name for o in session.get_outputs()] == ["y", "z"]
        y, z = session.run(None, {"x": X})
        np.testing.assert_array_equal(y, np.maximum(X, 0))
        np.testing.assert_array_equal(z, -X)
        (only,) = session.run(["z"], {"x": X})
        np.testing.assert_array_equal(only, -X)


def test_async() -> None:
    async def main() -> dict[str, Any]:
        session = await InferenceSession.create(_model(), ["wasm"], threads=1)
        return await session.run_async({"x": X})

    # In a thread of its own: Playwright's loop may already run in this one.
    with ThreadPoolExecutor(1) as pool:
        results = pool.submit(asyncio.run, main()).result()
    np.testing.assert_array_equal(results["z"], -X)


def test_from_a_bundle(tmp_path: Path) -> None:
    export(_model(), tmp_path / "bundle")
    with InferenceSession(tmp_path / "bundle", ["wasm"], threads=2) as session:
        np.testing.assert_array_equal(session.run(["y"], {"x": X})[0], np.maximum(X, 0))


def test_unknown_provider_and_bad_threads() -> None:
    with pytest.raises(InputError, match="unknown provider"):
        InferenceSession(_model(), ["cuda"])
    with pytest.raises(InputError, match="no providers"):
        InferenceSession(_model(), [])
    with pytest.raises(InputError, match="threads"):
        InferenceSession(_model(), ["wasm"], threads=0)


def test_a_provider_asked_alone_fails_when_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(InferenceSession, "_webgpu", _refuse)
    with pytest.raises(DeviceError, match="no adapter"):
        InferenceSession(_model(), ["webgpu"])


def test_the_next_provider_is_taken_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(InferenceSession, "_webgpu", _refuse)
    with pytest.warns(RuntimeWarning, match="running on wasm instead: webgpu: no adapter"):
        session = InferenceSession(_model(), ["webgpu", "wasm"], threads=1)
    assert session.provider == "wasm"
    session.close()


def test_no_provider_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(InferenceSession, "_webgpu", _refuse)
    monkeypatch.setattr("pywebgpu.session._wasm", _refuse)
    with pytest.raises(DeviceError, match="no provider works") as caught:
        InferenceSession(_model(), ["webgpu", "wasm"])
    assert "no adapter" in str(caught.value)
