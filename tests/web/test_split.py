"""Weights in parts in the browser: ways of cutting at small scale, and a vocabulary of real size
on a device that binds 128 MiB and no more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pywebgpu.build import wasm_code, wgsl_kernels
from pywebgpu.bundle import write_bundle
from pywebgpu.export import export
from tests.executors_seen import record_executor
from tests.ops.test_split import CASES, bound, close, compiled_case
from tests.web.conftest import OpenPage

pytestmark = pytest.mark.browser

WORDS, WIDTH = 50257, 768  # GPT-2's: 154 MB, looked up and multiplied with


def model(table: np.ndarray) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Gather", ["t", "ids"], ["h"]),
        helper.make_node("MatMul", ["h", "w"], ["logits"]),
        helper.make_node("ArgMax", ["logits"], ["found"], axis=-1, keepdims=0),
    ]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["rows"])
    outputs = [
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, None),
        helper.make_tensor_value_info("found", TensorProto.INT64, None),
    ]
    weights = [numpy_helper.from_array(table, "t"), numpy_helper.from_array(table.T.copy(), "w")]
    graph = helper.make_graph(nodes, "vocabulary", [ids], outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_a_vocabulary_over_the_limit_of_every_device(site: Path, open_page: OpenPage) -> None:
    rng = np.random.default_rng()
    table = rng.standard_normal((WORDS, WIDTH), np.float32)
    made = model(table)
    export(made.SerializeToString(), site / "vocabulary")
    ids = np.array([0, WORDS - 1, WORDS // 2, *rng.integers(0, WORDS, 2)])
    want = table[ids] @ table.T
    page = open_page()
    got = page.evaluate(
        """async (ids) => {
          const { InferenceSession, Tensor } = await import("./helpers.js");
          const adapter = await navigator.gpu.requestAdapter();
          const device = await adapter.requestDevice();
          const failed = [];
          device.addEventListener("uncapturederror", ({ error }) => failed.push(error.message));
          const options = { executionProviders: ["webgpu"], device };
          const session = await InferenceSession.create("vocabulary", options);
          const feeds = { ids: new Tensor("int64", ids.map(BigInt), [ids.length]) };
          const { logits, found } = await session.run(feeds);
          const every = 997;
          return {
            limit: device.limits.maxStorageBufferBindingSize,
            failed,
            found: [...found.data].map(Number),
            logits: [...logits.data].filter((_, i) => i % every === 0),
          };
        }""",
        ids.tolist(),
    )
    record_executor("chromium-webgpu")
    assert got["limit"] == 128 << 20 < table.nbytes
    assert got["failed"] == []
    assert got["found"] == ids.tolist()
    np.testing.assert_allclose(got["logits"], want.ravel()[::997], atol=1e-4 * np.abs(want).max())


# No software adapter has shader-f16, whose weights are cut as these are.
@pytest.mark.parametrize("name", ["product", "table", "four bits", "int8, one row", "int4"])
def test_parts_of_small_weights(site: Path, open_page: OpenPage, name: str) -> None:
    compiled, feeds, want = compiled_case(CASES[name])
    assert max(bound(compiled)) <= CASES[name].limit
    plan = compiled.plan
    wgsl = {"default": wgsl_kernels(plan)}
    write_bundle(site / "parts", plan, compiled.weight_chunks(), wasm_code(plan, ["simd"]), wgsl)
    given = {k: [str(v.dtype), v.ravel().tolist(), list(v.shape)] for k, v in feeds.items()}
    shape, data = open_page().evaluate(
        """async (given) => {
          const { InferenceSession, Tensor } = await import("./helpers.js");
          const options = { executionProviders: ["webgpu"] };
          const session = await InferenceSession.create("parts", options);
          const feeds = Object.entries(given).map(([name, [type, data, dims]]) =>
            [name, new Tensor(type, type === "int64" ? data.map(BigInt) : data, dims)]);
          const [y] = Object.values(await session.run(Object.fromEntries(feeds)));
          return [[...y.dims], [...y.data]];
        }""",
        given,
    )
    record_executor("chromium-webgpu")
    close(np.array(data, np.float32).reshape(shape), want, 1e-4)
