"""A small Llama of ONNX Runtime GenAI's form, token by token, with caches of its own.

One compiled model serves the prompt and every step after it.
"""

from __future__ import annotations

import numpy as np
import pytest

from pywebgpu.session import InferenceSession
from tests.executors_seen import record_executor
from tests.models.genai_decoder import Array, Decoder, steps


@pytest.mark.parametrize("shared", [False, True], ids=["growing", "shared"])
@pytest.mark.parametrize(
    ("provider", "executor"),
    [("wasm", "wasmtime"), pytest.param("webgpu", "wgpu", marks=pytest.mark.wgpu)],
)
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
