"""Products with block-quantised weights on every executor, and how weights become codes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pywebgpu.packing import quantise_blocks
from tests.kernels.cases import blocks_case
from tests.kernels.harness import check, executors, some, space


@pytest.mark.parametrize("executor", executors())
@pytest.mark.parametrize(
    ("sizes", "bits", "size"),
    [((1, 40, 96), 4, 32), ((2, 21, 70), 8, 16), ((13, 24, 64), 4, 64), ((7, 9, 260), 4, 256),
     ((70, 33, 48), 8, 128), ((0, 8, 16), 4, 16)],
)  # fmt: skip
@pytest.mark.parametrize("zeros", [False, True])
def test_sizes(
    executor: str, sizes: tuple[int, int, int], bits: int, size: int, zeros: bool
) -> None:
    case = blocks_case(*sizes, bits, size, zeros, dynamic=zeros)
    check(
        executor, case.spec, case.operands, case.args, case.out_size, rtol=1e-4, atol=1e-3,
        candidates=some(executor, space(executor, case.spec)),
    )  # fmt: skip


@pytest.mark.parametrize("executor", executors())
@settings(max_examples=5, deadline=None)
@given(
    st.integers(1, 20), st.integers(1, 40), st.integers(1, 130), st.sampled_from([4, 8]),
    st.sampled_from([16, 32, 128]), st.booleans(), st.integers(0, 9),
)  # fmt: skip
def test_any(
    executor: str, m: int, n: int, k: int, bits: int, size: int, zeros: bool, pick: int
) -> None:
    case = blocks_case(m, n, k, bits, size, zeros, seed=pick, dynamic=pick % 2 == 0)
    check(
        executor, case.spec, case.operands, case.args, case.out_size, rtol=1e-4, atol=1e-3,
        candidates=some(executor, space(executor, case.spec), pick),
    )  # fmt: skip


@pytest.mark.parametrize("bits", [4, 8])
def test_codes_are_close(bits: int) -> None:
    """Within half a step of what is in the range; narrower ranges only where they help."""
    rng = np.random.default_rng()
    matrix = rng.standard_normal((70, 11)).astype(np.float32)
    codes, scales, zeros = quantise_blocks(matrix, bits, 32)
    assert codes.shape == matrix.shape
    assert codes.max() < 1 << bits

    def spread(x: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        return np.repeat(x, 32, axis=0)[:70]

    off = (codes - spread(zeros)) * spread(scales) - matrix
    blocks = np.concatenate([matrix, np.zeros((26, 11))]).reshape(3, 32, 11)
    widest = np.maximum(blocks.max(1), 0) - np.minimum(blocks.min(1), 0)
    step = spread(widest / ((1 << bits) - 1))
    assert (off**2).mean() <= (step**2 / 12).mean() * 1.4
    whole = (rng.integers(0, 1 << bits, (64, 5)) - 3).astype(np.float32)
    whole[0], whole[1], whole[32], whole[33] = -3, (1 << bits) - 4, -3, (1 << bits) - 4
    codes, scales, zeros = quantise_blocks(whole, bits, 32)
    found = (codes - np.repeat(zeros, 32, 0)) * np.repeat(scales, 32, 0)
    np.testing.assert_allclose(found, whole, atol=1e-5 * (1 << bits))
