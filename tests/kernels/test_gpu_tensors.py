"""Tensors that stay on the GPU between runs of desktop sessions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from pywebgpu.errors import DeviceError, InputError
from pywebgpu.session import InferenceSession
from tests.bench.layers import decoder

pytestmark = pytest.mark.wgpu
LAYERS = {"layers": 1, "hidden": 32, "heads": 4, "kv_heads": 2, "wide": 48}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found: Path = tmp_path_factory.mktemp("tensors") / "decoder.onnx"
    decoder(found, **LAYERS)
    return found


@pytest.fixture(scope="module")
def session(path: Path) -> InferenceSession:
    try:
        return InferenceSession(path, providers=["webgpu"])
    except DeviceError as error:
        pytest.skip(str(error))


def feeds(past: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"x": (1, 1, 32), "cos": (1, 1, 1, 8), "sin": (1, 1, 1, 8)}
    shapes |= {f"past_0_{part}": (1, 2, past, 8) for part in ("key", "value")}
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def test_a_cache_that_never_leaves_the_gpu(session: InferenceSession, path: Path) -> None:
    """Each step is fed the cache that the one before has made."""
    native = onnxruntime.InferenceSession(path)
    names = [o.name for o in native.get_outputs()]
    given = feeds(3)
    want, cache = dict(given), session.upload({n: given[n] for n in given if "past" in n})
    for step in range(4):
        fresh = {n: a for n, a in feeds(3, step).items() if "past" not in n}
        outputs = dict(zip(names, session.run_on_gpu(None, {**cache, **fresh}), strict=True))
        expected = dict(zip(names, native.run(None, {**want, **fresh}), strict=True))
        np.testing.assert_allclose(outputs["y"].numpy(), expected["y"], 1e-4, 1e-4)
        for tensor in cache.values():
            tensor.dispose()
        cache = {n.replace("present", "past"): t for n, t in outputs.items() if n != "y"}
        want |= {n.replace("present", "past"): a for n, a in expected.items() if n != "y"}
    assert cache["past_0_key"].shape == (1, 2, 7, 8)
    np.testing.assert_allclose(cache["past_0_key"].numpy(), want["past_0_key"], 1e-4, 1e-4)


def test_refusals(session: InferenceSession, path: Path) -> None:
    given = feeds(3)
    tensors = session.upload(given)
    with pytest.raises(InputError, match="no such input"):
        session.upload({"z": given["x"]})
    other = InferenceSession(path, providers=["webgpu"])
    with pytest.raises(InputError, match="another session's device"):
        other.run(None, tensors)
    other.close()
    with pytest.raises(InputError, match="wrong shape"):
        session.run(None, {**tensors, "past_0_key": tensors["cos"]})
    tensors["x"].dispose()
    with pytest.raises(InputError, match="disposed"):
        session.run(None, tensors)
    wasm = InferenceSession(path, providers=["wasm"])
    with pytest.raises(InputError, match="GPU"):
        wasm.upload(given)
    wasm.close()


def test_profile(session: InferenceSession) -> None:
    found = session.profile(feeds(5), repeats=2)
    assert found.dispatches == len(found.steps) == 7
    assert found.device > 0
    assert found.host > 0
    assert all(label and seconds >= 0 for label, seconds in found.steps)
