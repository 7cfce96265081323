"""Whole models on every executor of this machine against native ONNX Runtime, and their kernel
counts, which may only fall.

The fast tier runs always; the full tier where PYWEBGPU_FULL_MODELS is set.
"""

from __future__ import annotations

import os
from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import pytest

from pywebgpu.codegen.spec import family
from pywebgpu.compile import Compiled, compile_model
from pywebgpu.errors import DeviceError
from pywebgpu.session import InferenceSession
from tests.executors_seen import record_executor
from tests.models import zoo
from tests.plan_eval import play

TOLERANCE = 1e-3
"""Largest difference relative to the largest element of the reference."""

# Steps per model: what a run dispatches on WebGPU, one-pass kernels counted.
STEPS = {
    "digits": 9,
    "bert-tiny": 17,  # 7 per layer, embeddings, mask, pooler
    "bert-tiny-torchscript": 17,
    "gpt2-tiny": 17,  # 7 per layer, embeddings, last norm, logits
    "vit-micro": 18,
    "resnet-micro": 20,
    "mobilenet-v2-micro": 54,
    "mobilenet-v3-small-96": 73,
    "minilm": 48,  # 7 per layer, embeddings, mask, pooling
    "bert-base-2": 17,
    "bert-base-12": 87,
    "bert-minilm-6": 45,
    "gpt2-2": 17,
    "vit-tiny": 88,
    "resnet-50": 56,  # 53 convolutions, 2 pools, 1 product: at most 4 per bottleneck
    "resnet-50-torchscript": 56,
    "mobilenet-v2": 54,
    "mobilenet-v3-small": 73,
    "squeezenet-1.1": 30,
    "light-resnet50": 57,
    "light-squeezenet": 31,
    "light-shufflenet": 75,
    "light-densenet121": 241,
    "light-inception_v2": 84,
}

# Other sizes than the models' own: one element, odd ones, longer than a tile.
SIZES: dict[str, list[dict[str, int]]] = {
    "digits": [{"batch": 1}, {"batch": 17}],
    "bert-tiny": [{"batch": 1, "sequence": 1}, {"batch": 3, "sequence": 70}],
    "gpt2-tiny": [{"batch": 1, "sequence": 1}, {"batch": 3, "sequence": 70}],
    "vit-micro": [{"batch": 1}, {"batch": 5}],
    "resnet-micro": [{"batch": 1}],
}


def _models() -> list[Any]:
    full = bool(os.environ.get("PYWEBGPU_FULL_MODELS"))
    found = []
    for model in zoo.MODELS.values():
        skip = pytest.mark.skipif(model.tier == "full" and not full, reason="full tier not asked")
        found.append(pytest.param(model.name, marks=skip, id=model.name))
    return found


def _path(name: str) -> str:
    missing = zoo.MODELS[name].missing()
    if missing:
        pytest.skip(f"needs {', '.join(missing)} (pip install 'pywebgpu[examples]')")
    return str(zoo.path_of(name))


@cache
def _compiled(name: str) -> Compiled:
    return compile_model(_path(name))


def _expected(name: str, feeds: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    ort = pytest.importorskip("onnxruntime")
    session = ort.InferenceSession(_path(name), providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def _check(got: dict[str, Any], want: dict[str, Any]) -> None:
    assert list(got) == list(want)
    for name, reference in want.items():
        assert got[name].shape == reference.shape, name
        assert got[name].dtype == reference.dtype, name
        scale = float(np.abs(reference).max()) or 1.0
        error = float(np.abs(got[name] - reference).max()) / scale
        assert error <= TOLERANCE, f"{name}: {error:.2e} of the output's scale"


@pytest.mark.parametrize("name", _models())
def test_kernel_count(name: str) -> None:
    compiled = _compiled(name)
    plan = compiled.plan
    kinds = Counter(family(plan.kernels[step.kernel]) for step in plan.steps)
    assert len(plan.steps) <= STEPS[name], dict(kinds)
    assert len(plan.kernels) <= len(plan.steps)


@pytest.mark.parametrize("name", _models())
def test_plan_means_the_model(name: str) -> None:
    if zoo.MODELS[name].tier == "full":
        pytest.skip("too large for the NumPy interpreter; the executors run it")
    feeds = zoo.random_feeds(name)
    _check(play(_compiled(name), feeds), _expected(name, feeds))


def _session(name: str, provider: str, threads: int | None) -> InferenceSession:
    try:
        return InferenceSession(_compiled(name), [provider], threads=threads)
    except DeviceError as error:
        if provider == "webgpu":
            pytest.skip(str(error))
        raise


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", _models())
def test_on_wasmtime(name: str, threads: int) -> None:
    with _session(name, "wasm", threads) as session:
        for dims in [{}, *SIZES.get(name, [])]:
            feeds = zoo.random_feeds(name, dims=dims)
            names = [o.name for o in session.get_outputs()]
            _check(dict(zip(names, session.run(None, feeds), strict=True)), _expected(name, feeds))
    record_executor("wasmtime")


@pytest.mark.parametrize("name", _models())
def test_on_wgpu(name: str) -> None:
    with _session(name, "webgpu", None) as session:
        for dims in [{}, *SIZES.get(name, [])]:
            feeds = zoo.random_feeds(name, dims=dims)
            names = [o.name for o in session.get_outputs()]
            _check(dict(zip(names, session.run(None, feeds), strict=True)), _expected(name, feeds))
    record_executor("wgpu")
