"""What inference assumes of sizes, a runtime verifies: no position is read past its table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pywebgpu.errors import InputError
from pywebgpu.export import export
from pywebgpu.session import InferenceSession

POSITIONS = 8


def _positions() -> bytes:
    """y[n, 4] = x + table[:n], with a table of eight rows, as a transformer's positions are."""
    table = np.arange(POSITIONS * 4, dtype=np.float32).reshape(POSITIONS, 4)
    nodes = [
        helper.make_node("Shape", ["x"], ["size"], start=0, end=1),
        helper.make_node("Slice", ["table", "zero", "size", "zero"], ["rows"]),
        helper.make_node("Add", ["x", "rows"], ["y"]),
    ]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 4]) for n in "xy"]
    constants = [
        numpy_helper.from_array(table, "table"),
        numpy_helper.from_array(np.array([0], np.int64), "zero"),
    ]
    graph = helper.make_graph(nodes, "positions", ports[:1], ports[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def test_sizes_within_the_table_run_and_larger_ones_are_refused(tmp_path: Path) -> None:
    export(_positions(), tmp_path / "bundle")
    assert json.loads((tmp_path / "bundle/manifest.json").read_text())["checks"]
    for source in (_positions(), tmp_path / "bundle"):
        session = InferenceSession(source, providers=["wasm"])
        x = np.random.default_rng().standard_normal((POSITIONS, 4)).astype(np.float32)
        (y,) = session.run(None, {"x": x})
        np.testing.assert_allclose(y, x + np.arange(32, dtype=np.float32).reshape(8, 4), rtol=1e-6)
        with pytest.raises(InputError, match=r"cannot take inputs of these sizes") as caught:
            session.run(None, {"x": np.zeros((POSITIONS + 1, 4), np.float32)})
        assert "n = 9" in str(caught.value)
