"""Train the shapes network and write shapes.onnx, labels.json and samples/ beside this file.

    python examples/shapes/train.py        # about four minutes on two cores

Needs ``pip install torch onnxscript pillow``. Nothing is downloaded: every picture is made up. A
shape's outline is a polygon, wobbled as a hand would draw it, turned, stretched and moved; it is
filled or stroked, on a ground with a gradient, stray lines, shadow, blur and noise, as a camera
would see it. So the network has to tell shapes, and nothing else, apart.

The model is built as mobile networks are, from depthwise and pointwise convolutions:
picture f32[batch, 3, 64, 64], RGB in 0..1 -> probabilities f32[batch, 8] (Softmax included).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn import functional

HERE = Path(__file__).parent
SEED = 11
STEPS = 1200
BATCH = 96
POOL = 16_000  # drawings; their colours, ground and light are new in every batch
SIDE = 64
FINE = 4  # drawings are made so many times as fine, and averaged
POINTS = 60  # along every outline
LABELS = ["circle", "triangle", "square", "star", "heart", "cross", "arrow", "crescent"]


# ---------------------------------------------------------------- outlines


def _corners(*points: tuple[float, float]) -> Tensor:
    """`POINTS` points evenly along a closed polygon."""
    corner = torch.tensor(points)
    following = corner.roll(-1, 0)
    length = (following - corner).norm(dim=1)
    end = length.cumsum(0)
    place = torch.arange(POINTS) / POINTS * end[-1]
    edge = torch.searchsorted(end, place, right=True).clamp(max=len(points) - 1)
    along = ((place - (end - length)[edge]) / length[edge]).unsqueeze(1)
    return corner[edge] + along * (following - corner)[edge]


def outlines() -> Tensor:
    """f32[8, POINTS, 2]: every shape once, about the origin, within the unit circle."""
    turn = torch.arange(POINTS) / POINTS * math.tau
    circle = torch.stack([turn.cos(), turn.sin()], 1)
    star = [
        (r * math.sin(i * math.pi / 5), -r * math.cos(i * math.pi / 5))
        for i, r in enumerate([1.0, 0.42] * 5)
    ]
    heart = torch.stack(
        [
            turn.sin() ** 3,
            -(13 * turn.cos() - 5 * (2 * turn).cos() - 2 * (3 * turn).cos() - (4 * turn).cos())
            / 16,
        ],
        1,
    )
    w, x = 0.32, 0.95
    cross = [(-w, -x), (w, -x), (w, -w), (x, -w), (x, w), (w, w),
             (w, x), (-w, x), (-w, w), (-x, w), (-x, -w), (-w, -w)]  # fmt: skip
    arrow = [(-1, -0.25), (0.15, -0.25), (0.15, -0.7), (1, 0),
             (0.15, 0.7), (0.15, 0.25), (-1, 0.25)]  # fmt: skip
    half = torch.linspace(0.5, math.tau - 0.5, POINTS // 2)
    outer = torch.stack([half.cos(), half.sin()], 1)
    inner = torch.stack([0.42 + 0.72 * half.cos(), 0.72 * half.sin()], 1).flip(0)
    triangle = [(0.0, -1.0), (0.87, 0.5), (-0.87, 0.5)]
    square = [(-0.75, -0.75), (0.75, -0.75), (0.75, 0.75), (-0.75, 0.75)]
    return torch.stack(
        [circle, _corners(*triangle), _corners(*square), _corners(*star), heart,
         _corners(*cross), _corners(*arrow), torch.cat([outer, inner])]
    )  # fmt: skip


# ---------------------------------------------------------------- pictures


def uniform(low: float, high: float, *size: int) -> Tensor:
    return torch.rand(size) * (high - low) + low


def _smooth_noise(count: int, channels: int, coarse: int) -> Tensor:
    """f32[count, channels, SIDE, SIDE]: soft blotches of size SIDE / coarse, about -1 to 1."""
    noise = torch.randn(count, channels, coarse, coarse)
    return functional.interpolate(noise, size=(SIDE, SIDE), mode="bicubic", align_corners=False)


def drawings(labels: Tensor) -> Tensor:
    """u8[n, SIDE, SIDE]: ink, 0 to 255, of a new drawing for every label."""
    n = len(labels)
    shape = outlines()[labels]
    # A hand's wobble: a few waves along the outline, and a little jitter.
    turn = torch.arange(POINTS) / POINTS * math.tau
    for waves in (2, 3, 5):
        phase, size = uniform(0, math.tau, n, 1, 2), uniform(0, 0.12 / waves, n, 1, 2)
        shape = shape + size * torch.sin(waves * turn[None, :, None] + phase)
    shape = shape + 0.01 * torch.randn_like(shape)
    angle = uniform(-math.pi, math.pi, n)
    shear, stretch = uniform(-0.15, 0.15, n), uniform(0.8, 1.0, n)
    size = uniform(0.42, 0.85, n)
    cos, sin = angle.cos(), angle.sin()
    matrix = torch.stack(
        [torch.stack([cos, -sin], 1), torch.stack([sin + shear * cos, cos - shear * sin], 1)], 1
    )
    matrix = matrix * size[:, None, None] * torch.stack([torch.ones(n), stretch], 1)[:, :, None]
    middle = uniform(-1, 1, n, 1, 2) * (0.95 - size)[:, None, None].clamp(min=0)
    shape = (shape @ matrix.transpose(1, 2) + middle + 1) / 2 * SIDE * FINE

    filled, width = torch.rand(n) < 0.45, uniform(1.3, 4.2, n) * FINE
    made = torch.empty(n, SIDE, SIDE, dtype=torch.uint8)
    for i in range(n):
        image = Image.new("L", (SIDE * FINE, SIDE * FINE))
        draw = ImageDraw.Draw(image)
        points = [tuple(point) for point in shape[i].tolist()]
        if filled[i]:
            draw.polygon(points, fill=255)
        else:
            draw.line([*points, *points[:2]], fill=255, width=round(float(width[i])), joint="curve")
        small = image.resize((SIDE, SIDE), Image.Resampling.BOX)
        made[i] = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).view(SIDE, SIDE)
    return made


def photographed(drawn: Tensor) -> Tensor:
    """f32[n, 3, SIDE, SIDE], RGB in 0..1: drawings as a camera might see them."""
    n = len(drawn)
    ink = drawn.float() / 255
    ground = uniform(0, 1, n, 3)
    colour = uniform(0, 1, n, 3)
    # On paper, and on a board: what people hold into a camera.
    paper = torch.rand(n) < 0.4
    ground = torch.where(paper[:, None], uniform(0.7, 1, n, 1) + uniform(-0.05, 0.05, n, 3), ground)
    colour = torch.where(paper[:, None], uniform(0, 0.45, n, 3), colour)
    contrast = (colour - ground).abs().mean(1, keepdim=True)
    colour = torch.where(contrast < 0.22, (ground + 0.5) % 1.0, colour)
    picture = ground[:, :, None, None] + 0.06 * _smooth_noise(n, 3, 3)
    picture = picture + uniform(-0.35, 0.35, n, 3, 1, 1) * _stray_lines(n)[:, None]
    picture = picture + ink[:, None] * (colour[:, :, None, None] - picture)
    picture = picture * (1 + uniform(0, 0.3, n, 1, 1, 1) * _smooth_noise(n, 1, 2))
    blurred = functional.avg_pool2d(functional.pad(picture, (1, 1, 1, 1), "replicate"), 3, 1)
    picture = torch.where((torch.rand(n) < 0.5)[:, None, None, None], blurred, picture)
    return (picture + uniform(0, 0.05, n, 1, 1, 1) * torch.randn_like(picture)).clamp(0, 1)


def _stray_lines(n: int) -> Tensor:
    """f32[n, SIDE, SIDE]: up to two thin straight lines across the ground."""
    along = (torch.arange(SIDE) + 0.5) / SIDE * 2 - 1
    y, x = torch.meshgrid(along, along, indexing="ij")
    lines = torch.zeros(n, SIDE, SIDE)
    for _ in range(2):
        angle, offset = uniform(0, math.pi, n, 1, 1), uniform(-0.9, 0.9, n, 1, 1)
        away = (x * angle.cos() + y * angle.sin() - offset).abs()
        drawn = (torch.rand(n, 1, 1) < 0.3).float()
        lines = torch.maximum(lines, drawn * (1 - away * SIDE / 3).clamp(0, 1))
    return lines


# ---------------------------------------------------------------- the network


def block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """A depthwise convolution, then a pointwise one (Howard et al., arXiv 1704.04861)."""
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
        nn.BatchNorm2d(inputs),
        nn.ReLU6(),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(),
    )


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(),
            block(16, 32, 1), block(32, 48, 2), block(48, 48, 1), block(48, 96, 2),
            block(96, 96, 1), block(96, 128, 2), block(128, 128, 1),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1), nn.Linear(128, len(LABELS)),
        )  # fmt: skip

    def forward(self, picture: Tensor) -> Tensor:
        scores: Tensor = self.body((picture - 0.5) * 4)
        return scores


class WithSoftmax(nn.Module):
    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, picture: Tensor) -> Tensor:
        return functional.softmax(self.network(picture), dim=1)


def train() -> Network:
    network = Network()
    print(f"{sum(p.numel() for p in network.parameters()):,} weights")
    optimiser = torch.optim.AdamW(network.parameters(), lr=4e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=STEPS)
    pool_labels = torch.randint(len(LABELS), (POOL,))
    pool = drawings(pool_labels)
    print(f"{POOL:,} drawings", flush=True)
    for step in range(STEPS):
        chosen = torch.randint(POOL, (BATCH,))
        pictures, labels = photographed(pool[chosen]), pool_labels[chosen]
        loss = functional.cross_entropy(network(pictures), labels, label_smoothing=0.05)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 50 == 49:
            print(f"step {step + 1} of {STEPS}: loss {loss.item():.3f}", flush=True)
    return network.eval()


def accuracy(network: Network, batches: int = 20) -> float:
    right = 0
    with torch.no_grad():
        for _ in range(batches):
            labels = torch.randint(len(LABELS), (100,))
            right += int((network(photographed(drawings(labels))).argmax(1) == labels).sum())
    return right / (100 * batches)


def write(network: Network) -> None:
    import onnx

    dim: Any = torch.export.Dim("batch")
    program = torch.onnx.export(
        WithSoftmax(network).eval(), (torch.rand(2, 3, SIDE, SIDE),),
        input_names=["picture"], output_names=["probabilities"],
        dynamo=True, dynamic_shapes={"picture": {0: dim}},
    )  # fmt: skip
    assert program is not None
    model = program.model_proto
    onnx.checker.check_model(model)
    (HERE / "shapes.onnx").write_bytes(model.SerializeToString(deterministic=True))
    samples = [f"{name}.png" for name in LABELS]
    labels = {"labels": LABELS, "mean": [0, 0, 0], "std": [1, 1, 1], "samples": samples}
    (HERE / "labels.json").write_text(json.dumps(labels) + "\n")
    drawn = (photographed(drawings(torch.arange(len(LABELS)))) * 255).round().byte()
    for name, sample in zip(samples, drawn, strict=True):
        image = Image.fromarray(sample.permute(1, 2, 0).numpy(), "RGB")
        image.save(HERE / name, optimize=True)


def main() -> None:
    torch.manual_seed(SEED)
    network = train()
    print(f"{accuracy(network):.1%} of 2,000 new pictures")
    write(network)


if __name__ == "__main__":
    main()
