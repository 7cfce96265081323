"""Pen strokes to the 8x8 image that the digits network reads. Not used at run time: the page does
the same in web/app/digits.js, and a test compares the two.

A stroke is a list of (x, y) points, y downwards, in any unit. The steps follow how the data set
was made, which is what makes drawn digits look like the ones the network learned from:

1. The drawing is scaled so that it is `BOX_HEIGHT` high; wider than `BOX_WIDTH`, it is squeezed.
   Every digit in the data set fills its 8 rows, whatever its width.
2. It is inked with a round pen on a 32x32 grid. The pen's width comes from the strokes' length:
   the data set's digits all carry about the same ink (19.5 of 64 pixels), a 1 as much as an 8.
3. Blocks of 4x4 are averaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

GRID = 32
BOX_WIDTH, BOX_HEIGHT = 25.0, 31.0
# Pixels of the 32x32 grid that a digit's ink covers, and the widths a pen may have.
INK = 19.5 * 16
PEN_MIN, PEN_MAX = 3.2, 9.0

Stroke = Sequence[tuple[float, float]]


def rasterise(strokes: Sequence[Stroke]) -> np.ndarray:
    """Draw `strokes` as a float32 [8, 8] image, 0 for paper and 1 for full ink."""
    points = np.array([point for stroke in strokes for point in stroke], dtype=np.float64)
    low, high = points.min(axis=0), points.max(axis=0)
    width, height = high - low
    # A dot or a dash must not be blown up to a full-height blot.
    height = max(height, 0.5 * width, 1e-6)

    # The pen's own width counts as part of the digit's box; first with the thinnest pen's.
    scale_y = (BOX_HEIGHT - PEN_MIN) / height
    scale_x = min(scale_y, (BOX_WIDTH - PEN_MIN) / max(width, 1e-6))
    length = _length(strokes, scale_x, scale_y)
    pen = min(max(INK / max(length, 1e-6), PEN_MIN), PEN_MAX)
    scale_y = (BOX_HEIGHT - pen) / height
    scale_x = min(scale_y, max(BOX_WIDTH - pen, 1.0) / max(width, 1e-6))

    middle = (low + high) / 2
    y, x = np.mgrid[0:GRID, 0:GRID] + 0.5
    distance = np.full((GRID, GRID), np.inf)
    for stroke in strokes:
        placed = [
            ((px - middle[0]) * scale_x + GRID / 2, (py - middle[1]) * scale_y + GRID / 2)
            for px, py in stroke
        ]
        for (ax, ay), (bx, by) in zip(placed, placed[1:] or placed, strict=False):
            distance = np.minimum(distance, _distance(x, y, ax, ay, bx, by))
    # One pixel of soft edge stands for anti-aliasing.
    ink = np.clip(pen / 2 - distance + 0.5, 0, 1)
    return ink.reshape(8, 4, 8, 4).mean(axis=(1, 3)).astype(np.float32)


def _length(strokes: Sequence[Stroke], scale_x: float, scale_y: float) -> float:
    total = 0.0
    for stroke in strokes:
        for (ax, ay), (bx, by) in pairwise(stroke):
            total += float(np.hypot((bx - ax) * scale_x, (by - ay) * scale_y))
    return total


def _distance(
    x: np.ndarray, y: np.ndarray, ax: float, ay: float, bx: float, by: float
) -> np.ndarray:
    """Distance from each pixel centre to the segment a-b, in pixels."""
    dx, dy = bx - ax, by - ay
    square = dx * dx + dy * dy
    if square == 0:
        return np.hypot(x - ax, y - ay)
    t = np.clip(((x - ax) * dx + (y - ay) * dy) / square, 0, 1)
    return np.hypot(x - ax - t * dx, y - ay - t * dy)
