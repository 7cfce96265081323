"""What the families of models share: their registry, how they are written, and their inputs.

Beside each ONNX file lie PyTorch's own answers to the inputs that it was exported with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.models.zoo import ZooModel, _export, build_once

FAMILIES: dict[str, ZooModel] = {}

VOCABULARY = 96
TEXT = {"batch": 2, "sequence": 7}
IDS = {"input_ids": VOCABULARY, "decoder_input_ids": VOCABULARY}

Forward = Callable[..., Any]


def family(
    name: str, *, package: str | None = "transformers", **rest: Any
) -> Callable[[Callable[[Path], None]], Any]:
    def register(build: Callable[[Path], None]) -> Callable[[Path], None]:
        packages = ("torch", "onnxscript", *([package] if package else []))
        rest.setdefault("vocabulary", IDS)
        FAMILIES[name] = ZooModel(f"family-{name}", "fast", build, needs=packages, **rest)
        return build

    return register


def path_of(name: str) -> Path:
    """The ONNX file of family `name`, built now when the cache lacks it."""
    return build_once(FAMILIES[name], answers=True)


def torch_answers(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(inputs, PyTorch's outputs for them) by their names in the ONNX file."""
    with np.load(path_of(name).with_suffix(".npz")) as kept:
        arrays = dict(kept)
    inputs = {n.removeprefix("in:"): a for n, a in arrays.items() if n.startswith("in:")}
    return inputs, {n.removeprefix("out:"): a for n, a in arrays.items() if n.startswith("out:")}


def write(
    path: Path,
    module: Any,
    forward: Forward,
    inputs: dict[str, tuple[Any, dict[int, str]]],
    outputs: Sequence[str] = ("output",),
    *,
    torchscript: bool = False,
) -> None:
    """Export `forward(module, *inputs)`; `inputs` are examples and the names of their free axes."""
    import torch

    names = list(inputs)

    class Call(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

    # The exporter reads the names of the arguments off the signature.
    scope: dict[str, Any] = {"call": forward}
    exec(f"def run(self, {', '.join(names)}): return call(self.module, {', '.join(names)})", scope)
    Call.forward = scope["run"]
    args = tuple(example for example, _ in inputs.values())
    dynamic = {name: axes for name, (_, axes) in inputs.items() if axes}
    call = Call().eval()
    with torch.no_grad():
        answer = call(*args)
    answers = [answer] if isinstance(answer, torch.Tensor) else list(answer)
    kept = [*zip([f"in:{n}" for n in names], args, strict=True)]
    kept += zip([f"out:{n}" for n in outputs], answers, strict=True)
    np.savez(path.with_suffix(".npz"), **{n: t.numpy() for n, t in kept})
    _export(call, args, path, names, list(outputs), dynamic, torchscript=torchscript)


def token_ids(batch: int = 2, length: int = 7) -> Any:
    import torch

    return torch.randint(3, VOCABULARY, (batch, length))


def text_inputs(names: Sequence[str] = ("input_ids", "attention_mask")) -> dict[str, Any]:
    import torch

    tokens = token_ids()
    axes = {0: "batch", 1: "sequence"}
    return {
        n: (tokens if n.endswith("input_ids") else torch.ones_like(tokens), axes) for n in names
    }


def image_input(size: int, batch: int = 2) -> dict[str, Any]:
    import torch

    return {"image": (torch.randn(batch, 3, size, size), {0: "batch"})}


def picture_input(
    batch: int = 2, height: int = 48, width: int = 64, channels: int = 3
) -> dict[str, Any]:
    """An image whose size is free, too."""
    import torch

    axes = {0: "batch", 2: "height", 3: "width"}
    return {"image": (torch.randn(batch, channels, height, width), axes)}
