"""A GPU without the memory for a run: what the error says, and that the session goes on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pywebgpu.export import export
from tests.executors_seen import record_executor
from tests.web.conftest import OpenPage

pytestmark = pytest.mark.browser

WIDE = 1 << 16


def outer() -> onnx.ModelProto:
    """y[n, i] = x[n] row[i]: few bytes in, many out."""
    nodes = [
        helper.make_node("Mul", ["x", "row"], ["y"], "outer"),
        helper.make_node("ReduceMax", ["y", "axes"], ["most"], keepdims=0),
    ]
    weights = [
        numpy_helper.from_array(np.linspace(0, 2, WIDE, dtype=np.float32), "row"),
        numpy_helper.from_array(np.array([1]), "axes"),
    ]
    graph = helper.make_graph(
        nodes,
        "outer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("y", "most")],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_a_run_that_the_memory_is_too_small_for(site: Path, open_page: OpenPage) -> None:
    """SwiftShader allocates less than 1 GiB at once, though it says that it binds as much."""
    export(outer().SerializeToString(), site / "outer")
    page = open_page()
    got = page.evaluate(
        """async () => {
          const { InferenceSession, Tensor, facts } = await import("./helpers.js");
          const options = { executionProviders: ["webgpu"] };
          const session = await InferenceSession.create("outer", options);
          const most = async (n) => {
            const x = new Tensor("float32", new Float32Array(n).fill(3), [n, 1]);
            const { most } = await session.run({ x });
            return [...most.data];
          };
          const before = await most(2);
          const refused = await facts(most(4096));
          const beyond = await facts(most(5000));
          return { before, refused, beyond, after: await most(3) };
        }"""
    )
    record_executor("chromium-webgpu")
    assert got["before"] == [6, 6]
    refused, beyond = got["refused"], got["beyond"]
    assert refused["name"] == "DeviceError"
    assert "not enough memory" in refused["message"]
    assert f"{4 * 4096 * (WIDE + 2)} for tensors" in refused["message"]
    assert "smaller inputs" in refused["message"]
    assert "the result of outer is larger than this device binds" in beyond["message"]
    assert f"{5000 * WIDE * 4} bytes" in beyond["message"]
    assert got["after"] == [6, 6, 6]
