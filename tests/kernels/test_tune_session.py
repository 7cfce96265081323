"""A desktop session tunes itself while it is used."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from pywebgpu import tune as tune_module
from pywebgpu.errors import InputError
from pywebgpu.session import InferenceSession
from tests.executors_seen import record_executor

DIGITS = Path(__file__).parents[2] / "examples" / "digits" / "digits.onnx"


@pytest.mark.parametrize("provider", ["wasm", pytest.param("webgpu", marks=pytest.mark.wgpu)])
def test_runs_stay_right_while_it_is_tuned(monkeypatch: pytest.MonkeyPatch, provider: str) -> None:
    """Every candidate that is measured passes for a winner: the session changes its kernels."""
    monkeypatch.setattr(tune_module, "MARGIN", 1e9)
    monkeypatch.setattr(tune_module, "HOPELESS", ())
    peer = onnxruntime.InferenceSession(DIGITS)
    rng = np.random.default_rng()
    adopted = []
    with InferenceSession(DIGITS, [provider]) as session:
        name = session.get_inputs()[0].name
        adopt = session._adopt
        session._adopt = lambda winners: adopted.append(winners) or adopt(winners)  # type: ignore
        tuning = session.tune(budget=5)
        with pytest.raises(InputError, match="tuned already"):
            session.tune()
        tuning.pause()
        assert tuning.state == "paused"
        tuning.resume()
        count = 0
        while tuning.state == "running" or count < 3:
            image = rng.random((1, 1, 8, 8), dtype=np.float32)
            (answer,) = session.run(None, {name: image})
            np.testing.assert_allclose(answer, peer.run(None, {name: image})[0], atol=1e-4)
            count += 1
        # In a thread: a browser's tests may have left an event loop running in this one.
        with ThreadPoolExecutor(1) as thread:
            result = thread.submit(asyncio.run, tuning.finished()).result()
        assert result is not None
        assert tuning.state == "done"
        assert len(adopted) == 1
        assert session.records() == tuple(tuning.records) != ()
        image = rng.random((1, 1, 8, 8), dtype=np.float32)
        (answer,) = session.run(None, {name: image})
        np.testing.assert_allclose(answer, peer.run(None, {name: image})[0], atol=1e-4)
        again = session.tune(budget=30)
        again.cancel()
        assert again.wait() is None
        assert again.state == "cancelled"
        with pytest.raises(InputError, match="budget"):
            session.tune(budget=0)
    record_executor("wasmtime" if provider == "wasm" else "wgpu")
