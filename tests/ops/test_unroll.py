"""Loop and Scan of known length are written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pywebgpu.compile import compile_model
from tests.plan_eval import play

F, I64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
info = helper.make_tensor_value_info


def loop(keep: str = "on") -> onnx.ModelProto:
    """y = x doubled n times, and x as it was before each step; `keep` is the body's condition."""
    nodes = [
        helper.make_node("Identity", ["on"], ["same"]),
        helper.make_node("Add", ["v", "v"], ["w"]),
        helper.make_node("Identity", ["v"], ["seen"]),
    ]
    if keep == "data":
        nodes.insert(0, helper.make_node("ReduceMax", ["v"], ["most"], keepdims=0))
        nodes.insert(1, helper.make_node("Cast", ["most"], ["data"], to=BOOL))
    body = helper.make_graph(
        nodes,
        "body",
        [info("i", I64, []), info("on", BOOL, []), info("v", F, [3])],
        [info("same" if keep == "on" else keep, BOOL, []), info("w", F, [3]), info("seen", F, [3])],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["n", "", "x"], ["y", "all"], body=body)],
        "g",
        [info("n", I64, []), info("x", F, [3])],
        [info("y", F, [3]), info("all", F, [None, 3])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_loop() -> None:
    x = np.array([1, 2, 3], np.float32)
    for n in (1, 3):
        compiled = compile_model(loop().SerializeToString(), values={"n": np.array(n)})
        assert not compiled.plan.program
        played = play(compiled, {"x": x})
        np.testing.assert_array_equal(played["y"], x * 2**n)
        np.testing.assert_array_equal(played["all"], [x * 2**i for i in range(n)])


def test_loops_that_data_end_or_that_are_long_stay_loops() -> None:
    for model, n in ((loop("data"), 3), (loop(), 1000)):
        compiled = compile_model(model.SerializeToString(), values={"n": np.array(n)})
        assert compiled.plan.program


@pytest.mark.parametrize("backward", [0, 1])
def test_scan(backward: int) -> None:
    """A running sum over the columns, from either end."""
    body = helper.make_graph(
        [
            helper.make_node("Add", ["total", "column"], ["sum"]),
            helper.make_node("Identity", ["sum"], ["now"]),
        ],
        "body",
        [info("total", F, [2]), info("column", F, [2])],
        [info("sum", F, [2]), info("now", F, [2])],
    )
    attributes: dict[str, Any] = {
        "num_scan_inputs": 1,
        "scan_input_axes": [1],
        "scan_output_axes": [1],
        "scan_input_directions": [backward],
        "scan_output_directions": [backward],
    }
    graph = helper.make_graph(
        [helper.make_node("Scan", ["zero", "x"], ["end", "sums"], body=body, **attributes)],
        "g",
        [info("zero", F, [2]), info("x", F, [2, 4])],
        [info("end", F, [2]), info("sums", F, [2, 4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    feeds = {"zero": np.zeros(2, np.float32), "x": x}
    got = play(compile_model(model.SerializeToString()), feeds)
    np.testing.assert_array_equal(got["end"], x.sum(1))
    want = x[:, ::-1].cumsum(1)[:, ::-1] if backward else x.cumsum(1)
    np.testing.assert_array_equal(got["sums"], want)
