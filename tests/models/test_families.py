"""Families of models as people export them, on every executor of this machine and in the browser:
PyTorch's own answers to the inputs of the export, native ONNX Runtime's at other sizes, and their
kernel counts, which may only fall.

A sample runs always. All of them, which takes an hour, or half a minute each:

    PYWEBGPU_ALL_FAMILIES=1 python -m pytest tests/models/test_families.py [-k "vit and wasmtime"]
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest

from pywebgpu.codegen.spec import family
from pywebgpu.compile import Compiled, compile_model
from pywebgpu.errors import DeviceError
from pywebgpu.session import InferenceSession
from tests.conformance import browser as in_browser
from tests.conformance.chromium import Chromium
from tests.executors_seen import record_executor
from tests.models.families import FAMILIES, path_of, torch_answers
from tests.models.zoo import feeds_for

TOLERANCE = 1e-3
"""Largest difference relative to the largest element of the reference."""

# What is quick to export. A kernel takes a software GPU a good part of a second to compile.
FAST = {
    "bert-torchscript",
    "llama",
    "resnet",
    "unet-torchscript",
    "autoencoder",
    "mobilenet-v3",
    "large-kernel",
    "super-resolution",
    "gcn-edges",
}
FAST_ON_GPU = {"autoencoder", "super-resolution", "gcn-edges"}
FAST_IN_BROWSER = {
    "wasm": {
        "bert-torchscript", "gpt2-step", "llama", "vit", "resnet", "unet-torchscript", "lstm",
        "mobilenet-v3", "large-kernel", "super-resolution", "timesnet", "gcn-edges",
    },
    "webgpu": {"bert-torchscript", "large-kernel", "super-resolution", "gcn-edges"},
}  # fmt: skip

# Steps per model: what a run dispatches on WebGPU, one-pass kernels counted.
STEPS: dict[str, int] = {
    "bert": 16,
    "bert-torchscript": 16,
    "roberta": 18,
    "distilbert": 16,
    "distilbert-torchscript": 16,
    "albert": 17,
    "mpnet": 19,
    "modernbert": 27,
    "deberta-v2": 38,
    "gpt2": 18,
    "gpt2-step": 22,
    "gpt-neox": 22,
    "llama": 25,
    "llama-step": 29,
    "qwen2": 25,
    "qwen2-step": 29,
    "qwen3": 31,
    "mistral": 25,
    "phi": 21,
    "phi3": 25,
    "gemma": 25,
    "opt": 19,
    "mamba": 26,
    "t5-encoder": 20,
    "t5-decoder": 29,
    "t5-step": 32,
    "bart-encoder": 16,
    "bart-decoder": 25,
    "whisper-encoder": 17,
    "whisper-decoder": 29,
    "vit": 17,
    "deit": 17,
    "beit": 16,
    "dinov2": 17,
    "clip-vision": 17,
    "swin": 45,
    "segformer": 33,
    "mobilevit": 106,
    "convnext": 13,
    "convnextv2": 19,
    "poolformer": 12,
    "efficientnet": 71,
    "resnet": 16,
    "regnet": 17,
    "clip-text": 21,
    "detr": 48,
    "unet": 17,
    "unet-torchscript": 18,
    "yolo": 30,
    "autoencoder": 4,
    "vae": 26,
    "large-kernel": 11,
    "inception-next": 13,
    "mobilenet-v3": 17,
    "super-resolution": 3,
    "audio-conv": 6,
    "wavenet": 18,
    "wav2vec2": 15,
    "gcn": 8,
    "gcn-edges": 3,
    "timesnet": 18,
    "mlp-mixer": 19,
    "lstm": 6,
    "gru": 6,
    "timm-resnet": 21,
    "timm-mobilenet-v3": 73,
    "timm-mobilenet-v3-torchscript": 73,
    "timm-mobilenet-v4": 48,
    "timm-efficientnet": 23,
    "timm-convnext": 27,
    "timm-convnext-torchscript": 27,
    "timm-inception-next": 32,
    "timm-mobilevit": 108,
    "timm-eva": 25,
    "timm-eva-torchscript": 25,
    "timm-densenet": 37,
    "timm-starnet": 27,
    "timm-mambaout": 43,
    "timm-nfnet": 42,
}

# On both targets in Chromium, where the software GPU compiles more slowly still.
IN_BROWSER = (
    "bert-torchscript",
    "distilbert",
    "gpt2-step",
    "llama",
    "qwen2-step",
    "t5-encoder",
    "whisper-decoder",
    "mamba",
    "vit",
    "swin",
    "segformer",
    "convnext",
    "resnet",
    "timm-eva-torchscript",
    "timm-inception-next",
    "unet-torchscript",
    "mobilenet-v3",
    "large-kernel",
    "super-resolution",
    "timesnet",
    "gcn-edges",
    "lstm",
)


def _chosen(fast: set[str], every: Iterable[str] = STEPS) -> list[str]:
    asked = os.environ.get("PYWEBGPU_ALL_FAMILIES")
    return [name for name in every if asked or name in fast]


def _path(name: str) -> str:
    missing = FAMILIES[name].missing()
    if missing:
        pytest.skip(
            f"needs {', '.join(missing)} (pip install 'pywebgpu[examples]'; "
            "python -m tests.models.timm_families install)"
        )
    return str(path_of(name))


@cache
def _compiled(name: str) -> Compiled:
    return compile_model(_path(name))


def _other_sizes(name: str) -> dict[str, int]:
    """None of the sizes is what the model was exported with."""
    dims = dict(FAMILIES[name].dims)
    for dim in dims:
        dims[dim] += 1 if dim == "batch" else 3
    if "height" in dims:
        dims |= {"height": dims["height"] + 5, "width": dims["width"] - 19}  # 56 x 48
    return dims


Tensors = dict[str, Any]


def _questions(name: str) -> Iterator[tuple[Tensors, Tensors]]:
    """(inputs, expected outputs): PyTorch's own, then ONNX Runtime's for sizes that differ."""
    yield torch_answers(name)
    ort = pytest.importorskip("onnxruntime")
    reference = ort.InferenceSession(_path(name), providers=["CPUExecutionProvider"])
    names = [port.name for port in reference.get_outputs()]
    feeds = feeds_for(FAMILIES[name], seed=1, dims=_other_sizes(name))
    yield feeds, dict(zip(names, reference.run(None, feeds), strict=True))


def _assert_close(got: Any, want: Any, name: str) -> None:
    assert got.shape == want.shape, name
    assert got.dtype == want.dtype, name
    scale = float(np.abs(want).max()) or 1.0
    error = float(np.abs(got - want).max()) / scale
    assert error <= TOLERANCE, f"{name}: {error:.2e} of the output's scale"


def _compare(name: str, provider: str) -> None:
    _path(name)
    try:
        session = InferenceSession(_compiled(name), [provider])
    except DeviceError as error:
        if provider == "webgpu":
            pytest.skip(str(error))
        raise
    with session:
        for feeds, expected in _questions(name):
            given = {port.name: feeds[port.name] for port in session.get_inputs()}
            for got, (port, want) in zip(session.run(None, given), expected.items(), strict=True):
                _assert_close(got, want, port)


@pytest.mark.parametrize("name", _chosen(FAST))
def test_kernel_count(name: str) -> None:
    plan = _compiled(name).plan
    kinds = Counter(family(plan.kernels[step.kernel]) for step in plan.steps)
    assert len(plan.steps) <= STEPS[name], dict(kinds)


@pytest.mark.parametrize("name", _chosen(FAST))
def test_on_wasmtime(name: str) -> None:
    _compare(name, "wasm")
    record_executor("wasmtime")


@pytest.mark.parametrize("name", _chosen(FAST_ON_GPU))
def test_on_wgpu(name: str) -> None:
    _compare(name, "webgpu")
    record_executor("wgpu")


@pytest.fixture(scope="module")
def chromium(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Chromium]]:
    """A page that runs bundles on one of the two targets."""
    folder = tmp_path_factory.mktemp("families")
    in_browser.furnish(folder, in_browser.TARGETS[f"chromium-{request.param}"])
    with Chromium(folder, "page/index.html") as running:
        yield request.param, running


@pytest.mark.browser
@pytest.mark.parametrize(
    ("chromium", "name"),
    [(p, n) for p, fast in FAST_IN_BROWSER.items() for n in _chosen(fast, IN_BROWSER)],
    indirect=["chromium"],
    scope="module",
)
def test_in_browser(chromium: tuple[str, Chromium], name: str) -> None:
    provider, page = chromium
    _path(name)
    compiled = _compiled(name)
    in_browser.write_variants(compiled, page.folder / name, provider)
    names = [port.name for port in compiled.plan.inputs]
    questions = list(_questions(name))
    runs = [
        {"model": f"../{name}/", "feeds": [in_browser.packed(n, feeds[n]) for n in names]}
        for feeds, _ in questions
    ]
    answer = page.ask({"runtime": "ours", "provider": provider, "runs": runs}, 300)
    assert "results" in answer, answer
    for outputs, (_, expected) in zip(answer["results"], questions, strict=True):
        for output in outputs:
            _assert_close(in_browser.unpacked(output), expected[output[0]], output[0])
    record_executor(f"chromium-{provider}")


def test_every_family_is_tested() -> None:
    assert set(STEPS) == set(FAMILIES)
    assert set(STEPS) >= FAST >= FAST_ON_GPU
    for fast in FAST_IN_BROWSER.values():
        assert set(STEPS) >= set(IN_BROWSER) >= fast
    assert len(FAST_IN_BROWSER["wasm"]) >= 12
