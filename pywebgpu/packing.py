"""Constant operands of products, in the order the kernels read them.

Packing happens once, at export. The layouts are those of `codegen.spec`: panels of `PANEL` columns
for `Matmul` and `Conv`, taps by channels for a depthwise `Conv`. Both targets read the same bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .codegen.spec import GROUP_MAX, PANEL

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
    return pack_panels(_columns(weight, groups))


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


def quantise_columns(matrix: Array) -> tuple[Array, Array]:
    """A K x N matrix as i8 in [-127, 127] and one f32 scale per column: weights = i8 * scale.

    Leading axes are kept. A column of zeros has scale 0.
    """
    largest = np.abs(matrix.astype(np.float32)).max(axis=-2, initial=0)
    scale = (largest / np.float32(127)).astype(np.float32)
    step = np.where(scale > 0, scale, 1)[..., None, :]
    return np.clip(np.rint(matrix / step), -127, 127).astype(np.int8), scale


_STRETCH = (1.0, 1.03, 1.06, 1.1, 1.15, 1.2, 1.3, 1.4, 1.5, 1.6, 1.8, 2.0)
"""Of a column's scale, where its weights would come to more than `GROUP_MAX`."""


def quantise_weights(matrix: Array) -> tuple[Array, Array]:
    """The same for a product: four weights that are added up in 16 bits keep to `GROUP_MAX`.

    In a column where some would not, they are made smaller, with the scale or a larger one,
    whichever leaves the least square error.
    """
    weights, scale = quantise_columns(matrix)
    over = _outside(weights).any(axis=(-3, -2))
    if not over.any():
        return weights, scale
    columns = np.swapaxes(matrix, -1, -2)[over].T.astype(np.float32)  # K x what there is of them
    best = np.full(columns.shape[1], np.inf)
    found, scales = np.zeros(columns.shape, np.int8), np.zeros(columns.shape[1], np.float32)
    for stretch in _STRETCH:
        step = scale[over] * np.float32(stretch)
        tried = _limit(np.rint(columns / step).astype(np.int32))
        error = ((columns - tried * step) ** 2).sum(axis=0)
        better = error < best
        best = np.where(better, error, best)
        found, scales = np.where(better, tried, found), np.where(better, step, scales)
    np.swapaxes(weights, -1, -2)[over] = found.T
    scale[over] = scales
    return weights, scale


def _groups(weights: Array) -> Array:
    """(..., K, N) as (..., J, 2, 2, 2, N): axes -4 and -2 are those of a group of four."""
    *lead, k, n = weights.shape
    eights = -(-k // 8)
    padded = np.zeros((*lead, eights * 8, n), np.int32)
    padded[..., :k, :] = weights
    return padded.reshape(*lead, eights, 2, 2, 2, n)


def _outside(weights: Array) -> NDArray[np.bool_]:
    """Of each group of (..., K, N), is it past `GROUP_MAX`? (..., J, 2, N)"""
    groups = _groups(weights)
    above, below = (np.maximum(sign * groups, 0).sum(axis=(-4, -2)) for sign in (1, -1))
    outside: NDArray[np.bool_] = np.maximum(above, below) > GROUP_MAX
    return outside


def _limit(weights: Array) -> Array:
    """K x N weights, nearest ones that keep to `GROUP_MAX`: of what is too much, each of a group
    gives the same."""
    groups = _groups(weights)
    for sign in (1, -1):
        part = np.maximum(sign * groups, 0)
        while (excess := part.sum(axis=(-4, -2), keepdims=True) - GROUP_MAX).max(initial=0) > 0:
            each = -(-excess // np.maximum((part > 0).sum(axis=(-4, -2), keepdims=True), 1))
            part = np.maximum(part - np.maximum(each, 0), 0)
        groups = np.where(sign * groups > 0, sign * part, groups)
    return groups.reshape(-1, weights.shape[1])[: len(weights)]


def pack_int8_panels(matrix: Array) -> Array:
    """A K x N float matrix as int8 panels, flat i8: the layout that `codegen.spec.Matmul` gives.

    Leading axes, if any, are kept: (..., K, N) gives (..., bytes).
    """
    weights, scale = quantise_weights(matrix)
    return pack_int8_quantised(weights, scale)


def pack_int8_quantised(weights: Array, scale: Array) -> Array:
    """The same from i8 weights (..., K, N) and scales (..., N)."""
    *lead, k, n = weights.shape
    k4, panels = -(-k // 4) * 4, -(-n // PANEL)
    padded = np.zeros((*lead, k4, panels * PANEL), np.int8)
    padded[..., :k, :n] = weights
    scales = np.zeros((*lead, panels * PANEL), np.float32)
    scales[..., :n] = scale
    sums = padded.sum(axis=-2, dtype=np.int32)
    quads = padded.reshape(*lead, k4 // 4, 4, panels, PANEL)
    order = np.moveaxis(quads, (-2, -4, -1, -3), (-4, -3, -2, -1))
    parts = [
        np.ascontiguousarray(order).reshape(*lead, panels, -1),
        scales.reshape(*lead, panels, PANEL).view(np.int8),
        sums.reshape(*lead, panels, PANEL).view(np.int8),
    ]
    return np.concatenate(parts, axis=-1).reshape(*lead, -1)


def pack_int8_conv(weight: Array, groups: int) -> Array:
    """ONNX's weight (cout, cin/groups, [kh,] kw) as int8 panels per group; one scale per cout."""
    return pack_int8_panels(_columns(weight, groups))


def pack_exact_conv(weight: Array, groups: int) -> Array:
    """The same of whole numbers that fit i8; all scales are 1."""
    columns = _columns(weight, groups).astype(np.int8)
    return pack_int8_quantised(columns, np.ones((groups, columns.shape[-1]), np.float32))


def _columns(weight: Array, groups: int) -> Array:
    """ONNX's weight as K x N matrices, one per group, K over (ky, kx, channel)."""
    if weight.ndim == 3:
        weight = weight[:, :, None, :]
    cout, cin, kh, kw = weight.shape
    matrix = weight.reshape(groups, cout // groups, cin, kh * kw).transpose(0, 3, 2, 1)
    return matrix.reshape(groups, kh * kw * cin, cout // groups)


def bit_fields(data: Array, bits: int) -> Array:
    """Bytes (..., B) as unsigned numbers (..., B * 8 / bits), the low bits of a byte first."""
    parts = [(data >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
    return np.stack(parts, axis=-1).reshape(*data.shape[:-1], -1)


def pack_codes(codes: Array, bits: int) -> Array:
    """Unsigned codes (K, N) of 4 or 8 bits as `codegen.spec.Blocks` lays them out, flat i8."""
    k, n = codes.shape
    padded = np.zeros((-(-k // 4) * 4, n), np.uint8)
    padded[:k] = codes
    panels = pack_panels(padded)
    if bits == 4:
        panels = panels[..., 0::2] | panels[..., 1::2] << 4
    return panels.reshape(-1).view(np.int8)


def quantise_blocks(matrix: Array, bits: int, size: int) -> tuple[Array, Array, Array]:
    """A K x N matrix as codes (K, N) and, per block of `size` rows, scales and zero points
    (ceil(K/size), N): matrix = (codes - zeros) * scales.

    Of a few ranges, the block's own and narrower ones, each block takes the one with the least
    square error: what is beyond is rounded to its end.
    """
    k, n = matrix.shape
    blocks, most = -(-k // size), (1 << bits) - 1
    padded = np.zeros((blocks * size, n), np.float32)
    padded[:k] = matrix
    values = padded.reshape(blocks, size, n)
    low, high = np.minimum(values.min(1), 0), np.maximum(values.max(1), 0)
    best = np.full((blocks, n), np.inf, np.float32)
    scales, zeros = np.zeros((blocks, n), np.float32), np.zeros((blocks, n), np.float32)
    codes = np.zeros(values.shape, np.uint8)
    for part in (1.0, 0.95, 0.9, 0.85, 0.8, 0.7) if bits == 4 else (1.0,):
        scale = (high - low) * np.float32(part / most)
        step = np.where(scale > 0, scale, 1)
        zero = np.clip(np.rint(-low * part / step), 0, most)
        code = np.clip(np.rint(values / step[:, None]) + zero[:, None], 0, most)
        error = (((code - zero[:, None]) * scale[:, None] - values) ** 2).sum(1)
        better = error < best
        best, scales, zeros = (
            np.where(better, new, old)
            for new, old in ((error, best), (scale, scales), (zero, zeros))
        )
        codes = np.where(better[:, None], code, codes).astype(np.uint8)
    return codes.reshape(-1, n)[:k], scales, zeros


def quantise_rows(table: Array) -> tuple[Array, Array]:
    """A table of rows x features as i8 and one f32 scale per row."""
    weights, scale = quantise_columns(table.T)
    return np.ascontiguousarray(weights.T), scale
