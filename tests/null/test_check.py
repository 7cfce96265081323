"""The report before an export."""

from __future__ import annotations

import json

import numpy as np
import pytest
from onnx import TensorProto, helper

from pywebgpu.check import check
from pywebgpu.errors import ModelError
from tests.null.test_load import model, small


def test_a_model_that_can_be_exported() -> None:
    report = check(small(), name="small")
    assert report.ok
    assert report.model == "small"
    assert report.symbols == ("batch",)
    assert report.inputs[0].shape == ("batch", 4)
    assert report.outputs[0].shape == ("batch", 3)
    assert report.opsets[""] == 20
    # The bias is zero and the Reshape keeps the shape, so neither is left.
    assert report.nodes == {"Add": 1, "MatMul": 1, "Reshape": 1, "Softmax": 1}
    assert report.operators == {"MatMul": 1, "Softmax": 1}
    assert report.weight_bytes == 4 * 12
    json.dumps(report.to_json())


def test_everything_unsupported_is_listed_at_once() -> None:
    nodes = [
        helper.make_node("Frobnicate", ["x"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="between"),
        helper.make_node("Twiddle", ["x"], ["c"], name="second", domain="com.acme"),
        helper.make_node("Add", ["b", "c"], ["y"], name="last"),
    ]
    report = check(model(nodes, {"x": [2]}, ["y"], domains=("com.acme",)))
    assert not report.ok
    assert [r.op for r in report.unsupported] == ["Frobnicate", "Twiddle"]
    assert all(r.reason and r.remedy for r in report.unsupported)
    assert any("between" in name for name in report.blocked)


def test_sizes_that_depend_on_data_are_refused() -> None:
    nodes = [
        helper.make_node("ReduceSum", ["x", "one"], ["sums"], keepdims=0),
        helper.make_node("Cast", ["sums"], ["sizes"], to=TensorProto.INT64),
        helper.make_node("Expand", ["zero", "sizes"], ["y"]),
    ]
    constants = {"one": np.array([1]), "zero": np.zeros(1, np.float32)}
    report = check(model(nodes, {"x": [2, 4]}, ["y"], constants))
    assert [r.op for r in report.unsupported] == ["Expand"]
    assert "depend on data" in report.unsupported[0].reason


def test_large_buffers_checks_and_integers_are_mentioned() -> None:
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("MatMul", ["rows", "wide"], ["y"]),
    ]
    constants = {
        "table": np.arange(32, dtype=np.float32).reshape(8, 4),
        "wide": np.arange(4 * 9_000_000, dtype=np.float32).reshape(4, -1) % 7,
    }
    made = model(nodes, {}, ["y"], constants)
    made.graph.input.append(helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"]))
    report = check(made)
    (wide,) = report.large_buffers
    assert (wide.name, wide.weight, wide.whole) == ("wide", True, False)
    assert any("ids" in text and "32 bits" in text for text in report.remarks)


def test_a_weight_that_cannot_be_had_in_parts() -> None:
    """A recurrent matrix is read whole, in every step."""
    rng = np.random.default_rng()
    hidden = 2944
    constants = {
        "w": rng.standard_normal((1, 4 * hidden, 2), np.float32),
        "r": rng.standard_normal((1, 4 * hidden, hidden), np.float32),
    }
    nodes = [helper.make_node("LSTM", ["x", "w", "r"], ["", "y"], "lstm", hidden_size=hidden)]
    report = check(model(nodes, {"x": [3, 1, 2]}, ["y"], constants))
    assert report.ok
    whole = [b for b in report.large_buffers if b.whole]
    assert [(b.name, b.bytes) for b in whole] == [("lstm", 16 * hidden * hidden)]


def test_bad_bytes_raise() -> None:
    with pytest.raises(ModelError):
        check(b"nonsense")
