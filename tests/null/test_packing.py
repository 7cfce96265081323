"""The packed layouts, spelled out element by element."""

from __future__ import annotations

import numpy as np
import pytest

from pywebgpu.packing import pack_conv, pack_depthwise, pack_panels


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
