"""Reductions and pooling: every candidate on every executor.

Sums of n terms may differ from the exact one by n roundings (6e-8 each) of the sum of magnitudes;
the sizes here stay below 5,000 terms of order 1, which gives the absolute tolerance.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pywebgpu.codegen import scalar as sc
from pywebgpu.codegen.scalar import Op, Scalar, Type
from pywebgpu.codegen.spec import Reduce, ReduceOp, Storage
from tests.kernels.cases import linear, reduce_case
from tests.kernels.harness import check, executors

EXECUTORS = pytest.mark.parametrize("executor", [*executors("wasm"), "wgpu"])
F, I = Storage.F32, Storage.I32  # noqa: E741
SIZES = st.lists(st.integers(0, 11), max_size=2).map(tuple)
ATOL = 2e-5


@EXECUTORS
@settings(max_examples=25, deadline=None)
@given(SIZES, SIZES, st.sampled_from(list(ReduceOp)), st.booleans(), st.booleans())
def test_sizes(
    executor: str, sizes: tuple[int, ...], inner: tuple[int, ...], op: ReduceOp, first: bool,
    dynamic: bool,
) -> None:  # fmt: skip
    if 0 in inner and op.value.startswith("arg"):
        return  # of nothing there is no first extreme
    case = reduce_case(sizes, inner, op, first=first, dynamic=dynamic)
    check(executor, case.spec, case.operands, case.args, case.out_size, rtol=5e-6, atol=ATOL)


@EXECUTORS
@pytest.mark.parametrize("op", ReduceOp)
@pytest.mark.parametrize("first", [False, True])
def test_integers(executor: str, op: ReduceOp, first: bool) -> None:
    whole = (9, 23) if first else (23, 9)
    order = [sc.axis(1), sc.axis(0)] if first else [sc.axis(0), sc.axis(1)]
    spec = Reduce(
        (23,), (9,), op, sc.load(0, sc.linear(order, whole), Type.I32), sc.acc(Type.I32),
        sc.axis(0), (I,), I,
    )  # fmt: skip
    # Few different values: ties.
    check(executor, spec, [np.random.default_rng().integers(-3, 3, 207)], (), 23)


@EXECUTORS
@pytest.mark.parametrize(
    "sizes", [((3,), (4999,)), ((), (4999,)), ((700,), (6,)), ((2, 2049), (2,))]
)
def test_long(executor: str, sizes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    case = reduce_case(*sizes, ReduceOp.SUM)
    check(executor, case.spec, case.operands, (), case.out_size, rtol=1e-5, atol=1e-4)


@EXECUTORS
def test_mean_with_an_epilogue(executor: str) -> None:
    """final reads another operand; value is an expression; the output is permuted."""
    i, j, k = (sc.axis(n) for n in range(3))
    value = sc.unary(Op.EXP, sc.load(0, (i * 6 + j) * 15 + k))
    final = sc.acc() * (1 / 15) + sc.load(1, j)
    spec = Reduce((5, 6), (15,), ReduceOp.SUM, value, final, j * 5 + i, (F, F), F)
    rng = np.random.default_rng()
    check(executor, spec, [rng.normal(size=450), rng.normal(size=6)], (), 30, rtol=5e-6)


@EXECUTORS
@pytest.mark.parametrize("channels_first", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 8, 19])
@pytest.mark.parametrize("op", [ReduceOp.MAX, ReduceOp.SUM])
def test_pooling(executor: str, channels_first: bool, channels: int, op: ReduceOp) -> None:
    """3 x 3 windows, stride 2, padding 1: loads clamped, what is outside left out."""
    height, width, out_h, out_w = 9, 7, 5, 4
    y, x, c, ky, kx = (sc.axis(n) for n in range(5))
    row, column = y * 2 + ky - 1, x * 2 + kx - 1

    def clamp(v: Scalar, top: int) -> Scalar:
        return sc.binary(Op.MIN, sc.binary(Op.MAX, v, 0), top)

    inside = sc.binary(Op.AND, _within(row, height), _within(column, width))
    r, k = clamp(row, height - 1), clamp(column, width - 1)
    if channels_first:
        at = (c * height + r) * width + k
        store = (c * out_h + y) * out_w + x
    else:
        at = (r * width + k) * channels + c
        store = (y * out_w + x) * channels + c
    outside = -math.inf if op is ReduceOp.MAX else 0.0
    value = sc.select(inside, sc.load(0, at), outside)
    spec = Reduce((out_h, out_w, channels), (3, 3), op, value, sc.acc(), store, (F,), F)
    x_values = np.random.default_rng().normal(size=height * width * channels)
    check(executor, spec, [x_values], (), out_h * out_w * channels, rtol=5e-6)


def _within(v: Scalar, size: int) -> Scalar:
    return sc.binary(Op.AND, sc.binary(Op.LE, 0, v), sc.binary(Op.LT, v, size))


@EXECUTORS
@pytest.mark.parametrize("op", [ReduceOp.MAX, ReduceOp.MIN, ReduceOp.SUM, ReduceOp.ARGMAX])
def test_nan_and_infinity(executor: str, op: ReduceOp) -> None:
    x = np.random.default_rng().normal(size=(6, 19)).astype(np.float32)
    x[0, 3], x[1, 18], x[2, 0], x[3, 5], x[4] = np.nan, np.nan, np.nan, np.inf, -np.inf
    arg = op is ReduceOp.ARGMAX
    final = sc.acc(Type.I32 if arg else Type.F32)
    spec = Reduce((6,), (19,), op, sc.load(0, linear((6, 19))), final, sc.axis(0), (F,),
                  I if arg else F)  # fmt: skip
    check(executor, spec, [x], (), 6, rtol=5e-6, atol=ATOL)
