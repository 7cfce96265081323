"""A small Llama of ONNX Runtime GenAI's form, token by token, with caches of its own.

One compiled model serves the prompt and every step after it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from pywebgpu.session import InferenceSession
from tests.bench.layers import genai_decoder
from tests.executors_seen import record_executor
from tests.models.genai_decoder import Array, Decoder, steps

each = pytest.mark.parametrize(
    ("provider", "executor"),
    [("wasm", "wasmtime"), pytest.param("webgpu", "wgpu", marks=pytest.mark.wgpu)],
)


@pytest.mark.parametrize("shared", [False, True], ids=["growing", "shared"])
@each
def test_every_step(provider: str, executor: str, shared: bool) -> None:
    rng = np.random.default_rng()
    content = Decoder(int(rng.integers(1 << 30))).model().SerializeToString()
    kept: dict[str, Array] = {}
    with InferenceSession(content, [provider]) as session:
        names = [port.name for port in session.get_inputs()[2:]]
        for feeds, want, lengths in steps(content, shared, 5, rng):
            got = session.run(None, feeds | kept)
            kept = dict(zip(names, got[1:], strict=True))
            assert [x.shape for x in got] == [x.shape for x in want]
            for row, length in enumerate(lengths):
                valid = min(feeds["input_ids"].shape[1], length)
                np.testing.assert_allclose(got[0][row, :valid], want[0][row, :valid], 1e-3, 1e-3)
                for ours, theirs in zip(got[1:], want[1:], strict=True):
                    pair = (x[row, :, :length] for x in (ours, theirs))
                    np.testing.assert_allclose(*pair, 1e-3, 1e-4)
    record_executor(executor)


@each
def test_a_step_of_known_size(provider: str, executor: str, tmp_path: Path) -> None:
    """One token: on a GPU, products normalise what they read and gate it."""
    path = tmp_path / "step.onnx"
    genai_decoder(path, layers=2, hidden=256, heads=4, kv_heads=2, wide=320, past=8)
    native = onnxruntime.InferenceSession(path)
    rng = np.random.default_rng()
    feeds = {
        port.name: rng.standard_normal(port.shape).astype(np.float32)
        for port in native.get_inputs()
        if port.name != "seqlens_k"
    }
    feeds["seqlens_k"] = np.array([8], np.int32)
    with InferenceSession(str(path), [provider]) as session:
        for got, want in zip(session.run(None, feeds), native.run(None, feeds), strict=True):
            np.testing.assert_allclose(got, want, 1e-4, 1e-4)
    record_executor(executor)
