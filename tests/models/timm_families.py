"""Architectures of `timm`, made small: the package's own code with fewer and narrower layers.

    python -m tests.models.timm_families install    # timm and torchvision, into build/timm

timm imports torchvision, and a torchvision that does not fit torch breaks transformers, which looks
whether it is there. So the two stand apart, and a process of its own exports these models.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.models.family import family, image_input, write
from tests.models.zoo import APART, REPOSITORY, _calibrate, _seeded

PACKAGES = ("timm==1.0.31", "torchvision==0.28.0")

_MODELS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "timm-resnet": ("test_resnet", 64, {}),
    "timm-mobilenet-v3": ("mobilenetv3_small_050", 64, {}),
    "timm-mobilenet-v4": ("mobilenetv4_conv_small_035", 64, {}),
    "timm-efficientnet": ("test_efficientnet", 64, {}),
    "timm-convnext": ("convnext_atto", 64, {"depths": (1, 1, 1, 1), "dims": (16, 32, 48, 64)}),
    "timm-inception-next": (
        "inception_next_atto",
        64,
        {"depths": (1, 1, 1, 1), "dims": (24, 48, 72, 96)},
    ),
    "timm-mobilevit": ("mobilevit_xxs", 64, {}),
    "timm-eva": ("eva02_tiny_patch14_224", 56, {"embed_dim": 48, "depth": 2, "num_heads": 4}),
    "timm-densenet": ("densenet121", 64, {"growth_rate": 8, "block_config": (2, 2, 2, 2)}),
    "timm-starnet": ("starnet_s050", 64, {"depths": (1, 1, 1, 1)}),
    "timm-mambaout": ("test_mambaout", 64, {}),
    "timm-nfnet": ("test_nfnet", 64, {}),
}
_OLDER_EXPORTER = ("timm-mobilenet-v3", "timm-convnext", "timm-eva")


def install() -> None:
    """Put timm and the torchvision that it imports where only `_timm` looks for them."""
    APART.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade"]
    subprocess.run([*command, "--target", str(APART), *PACKAGES], check=True)


def _timm(path: Path, family_name: str) -> None:
    """Export in a process of its own, which alone sees those packages."""
    search = [str(APART), str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    command = [sys.executable, "-m", "tests.models.timm_families", family_name, str(path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(search)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{family_name} was not exported:\n{done.stderr[-2000:]}")


def _declare_operators() -> Any:
    """torchvision's wheels are made for one build of torch: where it is another (a CPU-only one),
    its compiled operators do not load, and importing it stumbles over describing them. timm's
    models use none of them."""
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library  # the declarations last as long as it does


def _export(name: str, path: Path) -> None:
    declared = _declare_operators()
    import timm
    import torch

    model_name, size, options = _MODELS[name.removesuffix("-torchscript")]
    _seeded()
    if size != 64:
        options = {**options, "img_size": size}
    model = timm.create_model(
        model_name, pretrained=False, num_classes=10, exportable=True, **options
    )
    model = _calibrate(model, torch.randn(2, 3, size, size))
    older = name.endswith("-torchscript")
    write(path, model, lambda m, x: m(x), image_input(size), ["logits"], torchscript=older)
    del declared


_NAMES = [*_MODELS, *(f"{name}-torchscript" for name in _OLDER_EXPORTER)]
for _name in _NAMES:
    family(_name, package="timm", dims={"batch": 2})(lambda path, n=_name: _timm(path, n))

if __name__ == "__main__":
    if sys.argv[1:] == ["install"]:
        install()
    else:
        _export(sys.argv[1], Path(sys.argv[2]))
