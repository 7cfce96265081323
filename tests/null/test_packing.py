"""The packed layouts, spelled out element by element."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pywebgpu.packing import (
    pack_conv,
    pack_depthwise,
    pack_panels,
    quantise_columns,
    quantise_weights,
)


@pytest.mark.parametrize(("k", "n"), [(3, 8), (1, 1), (5, 17), (4, 0), (0, 9)])
def test_panels_hold_eight_columns_and_end_in_zeros(k: int, n: int) -> None:
    matrix = np.arange(1, k * n + 1, dtype=np.float32).reshape(k, n)
    packed = pack_panels(matrix)
    assert packed.shape == (-(-n // 8), k, 8)
    assert packed.flags.c_contiguous
    for panel, row, lane in np.ndindex(packed.shape):
        column = panel * 8 + lane
        assert packed[panel, row, lane] == (matrix[row, column] if column < n else 0)


@pytest.mark.parametrize(
    ("cout", "cin", "groups", "kernel"),
    [(6, 4, 1, (3, 2)), (18, 6, 2, (1, 3)), (4, 2, 2, (5,))],
)
def test_convolution_weights_are_one_matrix_per_group(
    cout: int, cin: int, groups: int, kernel: tuple[int, ...]
) -> None:
    per = cin // groups
    weight = np.random.default_rng(0).random((cout, per, *kernel), dtype=np.float32)
    packed = pack_conv(weight, groups)
    kh, kw = kernel if len(kernel) == 2 else (1, *kernel)
    image = weight.reshape(cout, per, kh, kw)
    assert packed.shape == (groups, -(-(cout // groups) // 8), kh * kw * per, 8)
    for o, c, y, x in np.ndindex(image.shape):
        group, column = divmod(o, cout // groups)
        row = (y * kw + x) * per + c
        assert packed[group, column // 8, row, column % 8] == image[o, c, y, x]


@pytest.mark.parametrize("kernel", [(3, 3), (5,)])
def test_depthwise_weights_are_taps_by_channels(kernel: tuple[int, ...]) -> None:
    weight = np.random.default_rng(0).random((10, 1, *kernel), dtype=np.float32)
    packed = pack_depthwise(weight)
    assert packed.flags.c_contiguous
    np.testing.assert_array_equal(packed, weight.reshape(10, -1).T)


def groups(weights: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    """The weights of a K x N matrix that a kernel adds up in 16 bits, each group K's x N."""
    k = np.arange(len(weights))
    numbers = [
        [8 * j + p + i for i in (0, 1, 4, 5)] for j in range(k.size // 8 + 1) for p in (0, 2)
    ]
    return [weights[np.isin(k, group)].astype(int) for group in numbers]


@pytest.mark.parametrize("shape", [(384, 40), (2, 3, 21, 9), (16, 96), (1, 5), (0, 3), (7, 0)])
@pytest.mark.parametrize("spread", ["normal", "uniform", "equal"])
def test_products_of_four_bytes_fit_16_bits(shape: tuple[int, ...], spread: str) -> None:
    rng = np.random.default_rng()
    matrix = {
        "normal": rng.standard_normal(shape),
        "uniform": rng.uniform(-1, 1, shape),
        "equal": np.broadcast_to(rng.choice([-0.3, 2.0], shape[-1]), shape),
    }[spread].astype(np.float32)
    weights, scale = quantise_weights(matrix)
    assert weights.dtype == np.int8
    assert scale.shape == (*shape[:-2], shape[-1])
    for at in np.ndindex(shape[:-2]):
        for group in groups(weights[at]):
            for part in (np.maximum(group, 0), np.minimum(group, 0)):
                # Activations are 0 .. 127.
                assert np.abs(127 * part.sum(0)).max(initial=0) < 1 << 15
    exact = matrix.astype(np.float64)
    off, plain = (
        np.linalg.norm(w * s.astype(np.float64)[..., None, :] - exact, axis=-2)
        for w, s in ((weights, scale), quantise_columns(matrix))
    )
    # At most a bit is lost.
    most = np.maximum(2.1 * plain, 0.01 * np.linalg.norm(exact, axis=-2))
    np.testing.assert_array_less(off, most + 1e-9)


def test_columns_that_keep_to_the_limit_are_rounded_as_ever() -> None:
    matrix = np.random.default_rng().standard_normal((64, 30)).astype(np.float32)
    matrix[0] = 20  # so all others are small
    for got, want in zip(quantise_weights(matrix), quantise_columns(matrix), strict=True):
        np.testing.assert_array_equal(got, want)
