"""Softmax and normalisations: every candidate on every executor.

Tolerances: a few roundings, the error of exp (2e-7), and that of sums of up to 3,000 terms.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pywebgpu.codegen import scalar as sc
from pywebgpu.codegen.scalar import Op
from pywebgpu.codegen.spec import Row, RowOp, Storage
from tests.kernels.cases import linear, row_case
from tests.kernels.harness import check, executors

EXECUTORS = pytest.mark.parametrize("executor", [*executors("wasm"), "wgpu"])
F = Storage.F32
SIZES = st.lists(st.integers(0, 11), max_size=2).map(tuple)


@EXECUTORS
@settings(max_examples=20, deadline=None)
@given(SIZES, SIZES, st.sampled_from(list(RowOp)), st.booleans(), st.booleans())
def test_sizes(
    executor: str, sizes: tuple[int, ...], inner: tuple[int, ...], op: RowOp, first: bool,
    dynamic: bool,
) -> None:  # fmt: skip
    case = row_case(sizes, inner, op, first=first, dynamic=dynamic)
    check(executor, case.spec, case.operands, case.args, case.out_size, rtol=1e-5, atol=1e-5)


@EXECUTORS
@pytest.mark.parametrize("op", RowOp)
@pytest.mark.parametrize("sizes", [((3,), (2999,)), ((), (37,)), ((600,), (9,)), ((2,), (5, 7, 3))])
def test_shapes(executor: str, op: RowOp, sizes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    case = row_case(*sizes, op)
    check(executor, case.spec, case.operands, (), case.out_size, rtol=1e-5, atol=1e-5)


@EXECUTORS
@pytest.mark.parametrize("op", RowOp)
def test_prologue_and_residual(executor: str, op: RowOp) -> None:
    """value is an expression of two operands, final of scale, shift and a residual."""
    i, j = sc.axis(0), sc.axis(1)
    at = i * 45 + j
    value = sc.unary(Op.TANH, sc.load(0, at)) + sc.load(1, j)
    final = sc.acc() * sc.load(2, j) + sc.load(1, j) + sc.load(3, at)
    spec = Row((7,), (45,), op, 1e-5, value, final, at, (F, F, F, F), F)
    rng = np.random.default_rng()
    operands = [rng.normal(size=n) for n in (315, 45, 45, 315)]
    check(executor, spec, operands, (), 315, rtol=1e-5, atol=1e-5)


@EXECUTORS
@pytest.mark.parametrize("channels", [3, 8, 21])
def test_instance_norm_channels_last(executor: str, channels: int) -> None:
    """Rows are strided, neighbours in memory belong to different rows."""
    n, c, p = (sc.axis(k) for k in range(3))
    at = (n * 30 + p) * channels + c
    final = sc.acc() * sc.load(1, c) + sc.load(2, c)
    spec = Row((2, channels), (30,), RowOp.LAYER, 1e-5, sc.load(0, at), final, at, (F, F, F), F)
    rng = np.random.default_rng()
    operands = [rng.normal(size=s) for s in (60 * channels, channels, channels)]
    check(executor, spec, operands, (), 60 * channels, rtol=1e-5, atol=1e-5)


@EXECUTORS
def test_large_scores_and_masked_rows(executor: str) -> None:
    """exp must not overflow; a row of -inf is NaN, as in NumPy."""
    x = np.random.default_rng().normal(size=(6, 13)).astype(np.float32) * 30
    x[0] += 1000
    x[1, 3:] = -np.inf
    x[2] = -np.inf
    x[3, 5] = np.nan
    x[4] -= 1e30
    for op in (RowOp.SOFTMAX, RowOp.LOG_SOFTMAX):
        spec = Row((6,), (13,), op, 0.0, sc.load(0, linear((6, 13))), sc.acc(), linear((6, 13)),
                   (F,), F)  # fmt: skip
        check(executor, spec, [x], (), 78, rtol=2e-5, atol=1e-6)


@EXECUTORS
def test_offset_rows_keep_their_variance(executor: str) -> None:
    """Two passes: a mean of 1,000 must not drown a deviation of 1 (one pass would lose it)."""
    x = np.random.default_rng().normal(size=(4, 64)).astype(np.float32) + 1000
    at = linear((4, 64))
    spec = Row((4,), (64,), RowOp.LAYER, 1e-5, sc.load(0, at), sc.acc(), at, (F,), F)
    check(executor, spec, [x], (), 256, rtol=1e-4, atol=2e-4)
