"""Constant operands of products, in the order the kernels read them.

Packing happens once, at export. The layouts are those of `codegen.spec`: panels of `PANEL` columns
for `Matmul` and `Conv`, taps by channels for a depthwise `Conv`. Both targets read the same bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .codegen.spec import PANEL

Array = NDArray[Any]


def pack_panels(matrix: Array) -> Array:
    """A K x N matrix as [ceil(N/8)][K][8]; columns past N are zero.

    Leading axes, if any, are kept: (..., K, N) gives (..., ceil(N/8), K, 8).
    """
    *lead, k, n = matrix.shape
    panels = -(-n // PANEL)
    padded = np.zeros((*lead, k, panels * PANEL), matrix.dtype)
    padded[..., :n] = matrix
    return np.ascontiguousarray(np.swapaxes(padded.reshape(*lead, k, panels, PANEL), -3, -2))


def pack_conv(weight: Array, groups: int) -> Array:
    """ONNX's weight (cout, cin/groups, [kh,] kw) as [groups][ceil(cout/groups/8)][kh*kw*cin][8].

    K runs over (ky, kx, channel in group), as an image with contiguous channels is read.
    """
    if weight.ndim == 3:
        weight = weight[:, :, None, :]
    cout, cin, kh, kw = weight.shape
    matrix = weight.reshape(groups, cout // groups, cin, kh * kw).transpose(0, 3, 2, 1)
    return pack_panels(matrix.reshape(groups, kh * kw * cin, cout // groups))


def pack_depthwise(weight: Array) -> Array:
    """ONNX's weight (channels, 1, [kh,] kw) as [kh*kw][channels]."""
    return np.ascontiguousarray(weight.reshape(weight.shape[0], -1).T)


def pack_recurrent(weight: Array, gates: int) -> Array:
    """R (directions, gates * hidden, hidden) as [directions][ceil(hidden/8)][k][gates][8]."""
    directions, _, hidden = weight.shape
    tiles = -(-hidden // PANEL)
    padded = np.zeros((directions, gates, tiles * PANEL, hidden), weight.dtype)
    padded[:, :, :hidden] = weight.reshape(directions, gates, hidden, hidden)
    tiled = padded.reshape(directions, gates, tiles, PANEL, hidden)
    return np.ascontiguousarray(tiled.transpose(0, 2, 4, 1, 3))
