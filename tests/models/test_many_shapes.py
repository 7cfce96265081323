"""A thousand random shapes on one session: right answers, memory flat after warm-up, and no kernel
is compiled again. `tests/bench/shapes.py` measures what a new shape costs."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from pywebgpu.compile import compile_model
from pywebgpu.session import InferenceSession
from tests.conformance import browser as in_browser
from tests.conformance.chromium import Chromium
from tests.executors_seen import record_executor

RUNS = 1000
WARMUP = 200
BATCH, SEQUENCE, WIDTH = 4, 40, 16
SLACK = 16 * 2**20
"""Bytes of the process that may come and go with other things; a leak of one set of activations in
a hundred runs would be more."""

Array = np.ndarray[Any, Any]


def _model() -> onnx.ModelProto:
    """x [batch, sequence, 16]: a normalised projection, attention over itself, and means."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.normal(size=(WIDTH, WIDTH)).astype(np.float32) / 4,
        "scale": np.ones(WIDTH, np.float32),
        "axis": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("LayerNormalization", ["p", "scale"], ["q"], axis=-1),
        helper.make_node("Transpose", ["q"], ["k"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "k"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["share"], axis=-1),
        helper.make_node("MatMul", ["share", "q"], ["mixed"]),
        helper.make_node("ReduceMean", ["mixed", "axis"], ["mean"], keepdims=0),
    ]
    sizes = ["batch", "sequence", WIDTH]
    graph = helper.make_graph(
        nodes,
        "shapes",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, sizes)],
        [
            helper.make_tensor_value_info("mixed", TensorProto.FLOAT, sizes),
            helper.make_tensor_value_info("mean", TensorProto.FLOAT, ["batch", WIDTH]),
        ],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 20)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def _questions() -> Iterator[tuple[Array, list[Array]]]:
    """Inputs of random sizes with native ONNX Runtime's answers; the largest sizes come first."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = _model().SerializeToString()
    reference = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(1)
    for i in range(RUNS):
        b, s = (BATCH, SEQUENCE) if i == 0 else rng.integers(1, (BATCH + 1, SEQUENCE + 1))
        x = rng.normal(size=(b, s, WIDTH)).astype(np.float32)
        yield x, reference.run(None, {"x": x})


def _assert_right(got: list[Array], want: list[Array], run: int) -> None:
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape, f"run {run}"
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4, err_msg=f"run {run}")


def _resident() -> int:
    """Bytes of memory that this process holds."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    ("provider", "executor"),
    [("wasm", "wasmtime"), pytest.param("webgpu", "wgpu", marks=pytest.mark.wgpu)],
)
def test_on_the_desktop(provider: str, executor: str) -> None:
    before = 0
    with InferenceSession(compile_model(_model().SerializeToString()), [provider]) as session:
        running: Any = session._executor
        pipelines = len(running.gpu._pipelines) if provider == "webgpu" else 0
        for run, (x, want) in enumerate(_questions()):
            _assert_right(session.run(None, {"x": x}), want, run)
            if run == WARMUP:
                before = _resident()
        grown = _resident() - before
        assert grown <= SLACK, f"{grown / 2**20:.1f} MiB more after {RUNS - WARMUP} runs"
        assert provider == "wasm" or len(running.gpu._pipelines) == pipelines
    record_executor(executor)


@pytest.mark.browser
@pytest.mark.parametrize("provider", ["wasm", "webgpu"])
def test_in_the_browser(provider: str, tmp_path: Path) -> None:
    in_browser.furnish(tmp_path, in_browser.TARGETS[f"chromium-{provider}"])
    compiled = compile_model(_model().SerializeToString())
    in_browser.write_variants(compiled, tmp_path / "bundle", provider)
    questions = list(_questions())
    job = {
        "runtime": "manyShapes",
        "provider": provider,
        "model": "../bundle/",
        "warmup": WARMUP,
        "runs": [[in_browser.packed("x", x)] for x, _ in questions],
    }
    with Chromium(tmp_path, "page/index.html") as page:
        answer = page.ask(job, 500)
    assert "results" in answer, answer
    for run, (outputs, (_, want)) in enumerate(zip(answer["results"], questions, strict=True)):
        _assert_right([in_browser.unpacked(o) for o in outputs], want, run)
    before, after = answer["before"], answer["after"]
    # The page keeps all results: their text, in two bytes a character at most.
    kept = sum(2 * len(o[3]) for outputs in answer["results"][WARMUP:] for o in outputs)
    assert after["bytes"] - before["bytes"] <= kept + SLACK
    # Arguments of the last few shapes are kept: how many were at either time is chance.
    assert after["gpuBytes"] <= before["gpuBytes"] + 2**16
    assert after["pipelines"] == before["pipelines"]
    record_executor(f"chromium-{provider}")
