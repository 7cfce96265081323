"""Train the digits network and write digits.onnx and samples.json beside this file.

    python examples/digits/train.py        # about two minutes on two cores

Needs ``pip install torch scikit-learn onnxscript``. Nothing is downloaded: the 1,797 handwritten
digits come with scikit-learn. A visitor draws with a mouse or a finger, which looks a little
different from that data, so half of every training batch is drawn: pen strokes along a few
skeletons per digit, bent and slanted at random, rendered as the page renders a drawing.

Accuracy is measured on 20% of scikit-learn's digits, which training never sees, and, apart from
that, on freshly drawn strokes (the same skeletons, new shapes: a check of the drawing path, not of
handwriting in general).

The model: image f32[batch, 1, 8, 8] in 0..1 -> probabilities f32[batch, 10] (Softmax included).
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from strokes import rasterise
from torch import Tensor, nn
from torch.nn import functional

HERE = Path(__file__).parent
SEED = 7
EPOCHS = 60
BATCH = 128
DRAWN_POOL = 12_000

Points = list[tuple[float, float]]

# Skeletons in a unit square, y downwards: for each digit the ways people write it, each a list of
# pen strokes. A stroke is smoothed into a curve, so a corner is where one stroke ends and the next
# starts.
SKELETONS: dict[int, list[list[Points]]] = {
    0: [
        [[(0.5, 0), (0.18, 0.2), (0.1, 0.55), (0.3, 0.95), (0.65, 0.97), (0.9, 0.6), (0.8, 0.15),
          (0.5, 0)]],
        [[(0.6, 0.03), (0.25, 0.12), (0.08, 0.5), (0.28, 0.93), (0.62, 0.98), (0.88, 0.65),
          (0.85, 0.25), (0.55, 0.02), (0.42, 0.06)]],
    ],
    1: [
        [[(0.5, 0), (0.5, 0.5), (0.5, 1)]],
        [[(0.25, 0.28), (0.55, 0)], [(0.55, 0), (0.55, 1)]],
        [[(0.25, 0.25), (0.5, 0)], [(0.5, 0), (0.5, 1)], [(0.2, 1), (0.8, 1)]],
    ],
    2: [
        [[(0.1, 0.25), (0.3, 0.03), (0.65, 0.02), (0.85, 0.25), (0.65, 0.55), (0.1, 1)],
         [(0.1, 1), (0.9, 1)]],
        [[(0.12, 0.2), (0.4, 0), (0.8, 0.15), (0.72, 0.5), (0.3, 0.95), (0.12, 0.95), (0.2, 0.82),
          (0.5, 0.93), (0.9, 0.95)]],
    ],
    3: [
        [[(0.1, 0.12), (0.5, 0), (0.85, 0.2), (0.7, 0.42), (0.4, 0.48)],
         [(0.4, 0.48), (0.75, 0.55), (0.9, 0.78), (0.5, 1), (0.1, 0.9)]],
        [[(0.1, 0), (0.85, 0)], [(0.85, 0), (0.45, 0.4)],
         [(0.45, 0.4), (0.88, 0.6), (0.8, 0.93), (0.4, 1), (0.1, 0.88)]],
    ],
    4: [
        [[(0.3, 0), (0.2, 0.3), (0.1, 0.55)], [(0.1, 0.55), (0.9, 0.52)], [(0.7, 0.1), (0.68, 1)]],
        [[(0.65, 0), (0.05, 0.65)], [(0.05, 0.65), (0.95, 0.65)], [(0.65, 0), (0.65, 1)]],
        [[(0.2, 0), (0.15, 0.45)], [(0.15, 0.45), (0.8, 0.45)], [(0.8, 0), (0.8, 1)]],
    ],
    5: [
        [[(0.85, 0), (0.2, 0)], [(0.2, 0), (0.15, 0.42)],
         [(0.15, 0.42), (0.55, 0.36), (0.88, 0.62), (0.7, 0.93), (0.4, 1), (0.1, 0.9)]],
        [[(0.3, 0), (0.25, 0.4)],
         [(0.25, 0.4), (0.6, 0.4), (0.85, 0.65), (0.6, 0.97), (0.15, 0.95)],
         [(0.3, 0), (0.9, 0.02)]],
    ],
    6: [
        [[(0.75, 0), (0.35, 0.25), (0.12, 0.65), (0.3, 0.97), (0.7, 0.97), (0.88, 0.72),
          (0.65, 0.5), (0.3, 0.55), (0.13, 0.75)]],
        [[(0.5, 0), (0.25, 0.35), (0.15, 0.75), (0.4, 1), (0.8, 0.9), (0.8, 0.62), (0.45, 0.55),
          (0.18, 0.72)]],
    ],
    7: [
        [[(0.1, 0), (0.9, 0)], [(0.9, 0), (0.35, 1)]],
        [[(0.1, 0), (0.9, 0)], [(0.9, 0), (0.55, 0.45), (0.4, 1)], [(0.3, 0.5), (0.78, 0.48)]],
        [[(0.1, 0.15), (0.12, 0)], [(0.12, 0), (0.9, 0)], [(0.9, 0), (0.5, 0.5), (0.4, 1)]],
    ],
    8: [
        [[(0.8, 0.15), (0.5, 0), (0.2, 0.2), (0.5, 0.47), (0.85, 0.75), (0.5, 1), (0.15, 0.75),
          (0.5, 0.47), (0.82, 0.2), (0.75, 0.1)]],
        [[(0.5, 0), (0.22, 0.2), (0.5, 0.45), (0.78, 0.2), (0.5, 0)],
         [(0.5, 0.45), (0.12, 0.72), (0.5, 1), (0.88, 0.72), (0.5, 0.45)]],
    ],
    9: [
        [[(0.85, 0.25), (0.55, 0), (0.18, 0.2), (0.3, 0.48), (0.65, 0.45), (0.85, 0.22)],
         [(0.85, 0.22), (0.8, 0.6), (0.7, 1)]],
        [[(0.85, 0.25), (0.5, 0), (0.15, 0.25), (0.45, 0.5), (0.85, 0.22)],
         [(0.85, 0.22), (0.86, 0.7), (0.55, 1), (0.15, 0.92)]],
    ],
}  # fmt: skip


class DigitsNet(nn.Module):
    """Four 3x3 convolutions, two poolings, two dense layers: 50,000 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(),
            nn.Conv2d(24, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(24, 48, 3, padding=1), nn.BatchNorm2d(48), nn.ReLU(),
            nn.Conv2d(48, 48, 3, padding=1), nn.BatchNorm2d(48), nn.ReLU(),
            nn.MaxPool2d(2),
        )  # fmt: skip
        self.classify = nn.Sequential(
            nn.Flatten(), nn.Dropout(0.3), nn.Linear(192, 64), nn.ReLU(), nn.Linear(64, 10)
        )

    def forward(self, image: Tensor) -> Tensor:
        return self.classify(self.features(image))


def draw(digit: int, rng: np.random.Generator) -> np.ndarray:
    """One drawn `digit`, float32 [8, 8]: a skeleton, bent, slanted, smoothed, inked."""
    styles = SKELETONS[digit]
    skeleton = styles[rng.integers(len(styles))]
    bend = rng.uniform(0.01, 0.06)
    angle, slant = rng.normal(0, 0.12), rng.normal(0, 0.18)
    width = rng.uniform(0.45, 1.05)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.array([[width, -slant], [0.0, 1.0]])
    strokes = []
    moved: dict[tuple[float, float], np.ndarray] = {}
    for stroke in skeleton:
        for point in stroke:
            # Strokes that meet in a corner must still meet after bending.
            moved.setdefault(point, np.array(point) + rng.normal(0, bend, 2))
        curve = smooth(np.array([moved[point] for point in stroke])) @ matrix.T
        strokes.append([(float(x), float(y)) for x, y in curve])
    return rasterise(strokes)


def smooth(points: np.ndarray, steps: int = 6) -> np.ndarray:
    """Catmull-Rom curve through `points` [n, 2], with `steps` segments between neighbours."""
    if len(points) < 3:
        return points
    padded = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    pieces = []
    for p0, p1, p2, p3 in zip(padded, padded[1:], padded[2:], padded[3:], strict=False):
        pieces.append(
            0.5 * (2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2
                   + (3 * p1 - p0 - 3 * p2 + p3) * t**3)
        )  # fmt: skip
    return np.concatenate([*pieces, points[-1:]])


def drawn_set(count: int, seed: int) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 10
    images = np.stack([draw(int(label), rng) for label in labels])
    return torch.from_numpy(images)[:, None], torch.from_numpy(labels)


def augment(images: Tensor) -> Tensor:
    """Shift, turn, scale and thicken or thin a batch [n, 1, 8, 8] at random."""
    n = len(images)
    angle = torch.empty(n).normal_(0, 0.13)
    scale_x, scale_y = torch.empty(n).uniform_(0.85, 1.15), torch.empty(n).uniform_(0.92, 1.12)
    shear = torch.empty(n).normal_(0, 0.12)
    right, down = torch.empty(n).normal_(0, 0.09), torch.empty(n).normal_(0, 0.05)
    row_x = torch.stack([scale_x * angle.cos(), shear - angle.sin(), right], 1)
    row_y = torch.stack([angle.sin(), scale_y * angle.cos(), down], 1)
    theta = torch.stack([row_x, row_y], 1)
    # At 32x32, so that a turn by a few degrees does not blur an 8x8 image.
    large = functional.interpolate(images, size=32, mode="bilinear", align_corners=False)
    grid = functional.affine_grid(theta, [n, 1, 32, 32], align_corners=False)
    turned = functional.grid_sample(large, grid, align_corners=False)
    small = functional.avg_pool2d(turned, 4)
    thickness = torch.exp(torch.empty(n, 1, 1, 1).normal_(0, 0.25))
    noise = torch.empty_like(small).normal_(0, 0.03)
    return (small.clamp(0, 1) ** thickness + noise).clamp(0, 1)


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    model.eval()
    return float((model(images).argmax(1) == labels).double().mean())


def train(images: Tensor, labels: Tensor) -> DigitsNet:
    model = DigitsNet()
    drawn_images, drawn_labels = drawn_set(DRAWN_POOL, seed=SEED)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    steps = EPOCHS * (2 * len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
    for step in range(steps):
        model.train()
        real = torch.randint(len(images), (BATCH // 2,))
        drawn = torch.randint(len(drawn_images), (BATCH // 2,))
        batch = augment(torch.cat([images[real], drawn_images[drawn]]))
        target = torch.cat([labels[real], drawn_labels[drawn]])
        # Smoothed labels keep the probabilities honest on ambiguous drawings.
        loss = functional.cross_entropy(model(batch), target, label_smoothing=0.05)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if (step + 1) % (steps // 6) == 0:
            print(f"step {step + 1}/{steps}  loss {loss.item():.3f}")
    return model.eval()


def export(model: nn.Module, path: Path) -> nn.Module:
    """Write ONNX with a symbolic batch and the Softmax in it; returns the exported module."""
    whole = nn.Sequential(model, nn.Softmax(dim=1)).eval()
    torch.onnx.export(
        whole,
        (torch.zeros(2, 1, 8, 8),),
        str(path),
        input_names=["image"],
        output_names=["probabilities"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    strip_exporter_notes(path)
    return whole


def strip_exporter_notes(path: Path) -> None:
    """Drop the exporter's stack traces and notes: they double the file and name local paths."""
    import onnx

    model = onnx.load(path)
    model.graph.doc_string = ""
    model.doc_string = ""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    values = [*model.graph.value_info, *model.graph.input, *model.graph.output]
    for item in [*model.graph.node, *model.graph.initializer, *values]:
        item.doc_string = ""
        del item.metadata_props[:]
    onnx.save(model, path)


def check(path: Path, images: Tensor, expected: Tensor) -> None:
    """Raise unless ONNX Runtime gives what torch gave for `images`."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"image": images.numpy()})
    np.testing.assert_allclose(got, expected.numpy(), atol=1e-5)


def main() -> None:
    random.seed(SEED)
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)

    digits = load_digits()
    split = train_test_split(
        digits.images.astype(np.float32) / 16,
        digits.target,
        test_size=0.2,
        random_state=SEED,
        stratify=digits.target,
    )
    train_images, test_images, train_labels, test_labels = map(torch.as_tensor, split)
    train_images, test_images = train_images[:, None], test_images[:, None]

    model = train(train_images, train_labels)
    drawn_images, drawn_labels = drawn_set(2_000, seed=SEED + 1)
    held_out = accuracy(model, test_images, test_labels)
    drawn = accuracy(model, drawn_images, drawn_labels)
    print(f"accuracy: {held_out:.4f} on {len(test_labels)} held-out handwritten digits")
    print(f"accuracy: {drawn:.4f} on {len(drawn_labels)} freshly drawn strokes")

    path = HERE / "digits.onnx"
    whole = export(model, path)
    with torch.no_grad():
        probabilities = whole(test_images)
    check(path, test_images, probabilities)
    right = probabilities.argmax(1) == test_labels
    # The first two of every class that are read right, and apart from them every one that is not.
    chosen = [int(i) for d in range(10) for i in (right & (test_labels == d)).nonzero()[:2, 0]]
    wrong = (~right).nonzero().flatten().tolist()

    def listed(indices: list[int]) -> list[dict[str, Any]]:
        return [
            {
                "label": int(test_labels[i]),
                # The data set's own 0..16; the network reads them divided by 16.
                "pixels": [int(v) for v in (test_images[i] * 16).round().flatten()],
                "probabilities": [round(float(p), 6) for p in probabilities[i]],
            }
            for i in indices
        ]

    samples = {
        "input": "image",
        "output": "probabilities",
        "shape": [1, 8, 8],
        "held_out": len(test_labels),
        "accuracy": {"held_out": round(held_out, 4), "drawn": round(drawn, 4)},
        "samples": listed(chosen),
        "mistakes": listed(wrong),
    }
    (HERE / "samples.json").write_text(json.dumps(samples) + "\n", encoding="utf-8")
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
