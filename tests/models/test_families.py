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

import pytest

from pywebgpu.codegen.spec import family
from pywebgpu.compile import Compiled, compile_model
from pywebgpu.errors import DeviceError
from tests.conformance import browser as in_browser
from tests.conformance.chromium import Chromium
from tests.executors_seen import record_executor
from tests.models.families import FAMILIES, path_of
from tests.models.judge import in_a_page, on_desktop

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


def _compare(name: str, provider: str) -> None:
    _path(name)
    try:
        on_desktop(name, _compiled(name), provider)
    except DeviceError as error:
        if provider == "webgpu":
            pytest.skip(str(error))
        raise


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
    in_a_page(name, _compiled(name), provider, page)
    record_executor(f"chromium-{provider}")


def test_every_family_is_tested() -> None:
    assert set(STEPS) == set(FAMILIES)
    assert set(STEPS) >= FAST >= FAST_ON_GPU
    for fast in FAST_IN_BROWSER.values():
        assert set(STEPS) >= set(IN_BROWSER) >= fast
    assert len(FAST_IN_BROWSER["wasm"]) >= 12
