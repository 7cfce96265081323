"""Elementwise work and data movement: every candidate on every executor."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pywebgpu.codegen import scalar as sc
from pywebgpu.codegen import wasm
from pywebgpu.codegen.caps import WasmCaps
from pywebgpu.codegen.coalesce import coalesce
from pywebgpu.codegen.dims import symbol
from pywebgpu.codegen.scalar import Op, Scalar, Type
from pywebgpu.codegen.spec import Map, Storage
from tests.kernels.cases import linear, map_case
from tests.kernels.harness import check, executors

EXECUTORS = pytest.mark.parametrize("executor", [*executors("wasm"), "wgpu"])
F, I = Storage.F32, Storage.I32  # noqa: E741
SIZE = st.integers(0, 13)


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng().standard_normal(shape)


@EXECUTORS
@settings(max_examples=12, deadline=None)
@given(st.lists(SIZE, min_size=1, max_size=3), st.booleans(), st.integers(0, 1000))
def test_elementwise(executor: str, sizes: list[int], dynamic: bool, seed: int) -> None:
    case = map_case(tuple(sizes), dynamic=dynamic, seed=seed)
    check(executor, case.spec, case.operands, case.args, case.out_size)


@EXECUTORS
@settings(max_examples=10, deadline=None)
@given(
    st.lists(SIZE, min_size=2, max_size=4).flatmap(
        lambda s: st.tuples(st.just(s), st.permutations(range(len(s))))
    ),
    st.booleans(),
)
def test_transpose(executor: str, drawn: tuple[list[int], list[int]], dynamic: bool) -> None:
    sizes, order = drawn
    shape = tuple(symbol(f"a{i}") for i in range(len(sizes))) if dynamic else tuple(sizes)
    axes = [sc.axis(i) for i in range(len(shape))]
    store = sc.linear([axes[i] for i in order], [shape[i] for i in order])
    args = tuple(sizes) if dynamic else ()
    spec = Map(shape, sc.load(0, linear(shape)) * 2.0, store, (F,), F, len(args))
    n = int(np.prod(sizes))
    check(executor, spec, [random(n)], args, n)


@EXECUTORS
@pytest.mark.parametrize("sizes", [(64, 48), (70, 9), (5, 3), (2100, 5)])
def test_blocks(executor: str, sizes: tuple[int, int]) -> None:
    """Reads along one axis, writes along the other: 4 x 4 blocks and their edges."""
    rows, columns = sizes
    i, j = sc.axis(0), sc.axis(1)
    value = sc.load(0, j * rows + i) + sc.load(1, i * columns + j) * sc.load(2, j)
    spec = Map((rows, columns), value, i * columns + j, (F, F, F), F)
    n = rows * columns
    check(executor, spec, [random(n), random(n), random(columns)], (), n)


@EXECUTORS
def test_long_rows_are_cut_into_pieces(executor: str) -> None:
    n = 4096 * 3 + 7
    spec = Map((n,), sc.load(0, sc.axis(0)) + 1.0, sc.axis(0), (F,), F)
    check(executor, spec, [random(n)], (), n)


@EXECUTORS
def test_gather(executor: str) -> None:
    """Indexes from a tensor, along the lanes and across them."""
    table, rows = random(9, 6), np.random.default_rng().integers(0, 9, 11)
    i, j = sc.axis(0), sc.axis(1)
    along = sc.load(0, sc.load(1, i, Type.I32) * 6 + j)
    spec = Map((11, 6), along, i * 6 + j, (F, I), F)
    check(executor, spec, [table, rows], (), 66)
    across = sc.load(0, j + sc.load(1, i, Type.I32) * 6)
    spec = Map((11, 6), across, j * 11 + i, (F, I), F)
    check(executor, spec, [table, rows], (), 66)


@EXECUTORS
def test_scatter(executor: str) -> None:
    """A store whose place comes from a tensor."""
    to = np.random.default_rng().permutation(21)
    spec = Map((21,), sc.load(0, sc.axis(0)), sc.load(1, sc.axis(0), Type.I32), (F, I), F)
    check(executor, spec, [random(21), to], (), 21)


@EXECUTORS
def test_pad_and_slice(executor: str) -> None:
    """Clamped loads under a condition, a negative step, part of the output left alone."""
    i, j = sc.axis(0), sc.axis(1)

    def clamp(x: Scalar, top: int) -> Scalar:
        return sc.binary(Op.MIN, sc.binary(Op.MAX, x, 0), top)

    inside = sc.binary(Op.AND, sc.binary(Op.LE, 2, j), sc.binary(Op.LT, j, 9))
    value = sc.select(inside, sc.load(0, i * 7 + clamp(j - 2, 6)), -1.5)
    spec = Map((3, 12), value, i * 20 + j + 5, (F,), F)
    check(executor, spec, [random(21)], (), 70)
    back = Map((13,), sc.load(0, 24 - sc.axis(0) * 2), sc.axis(0), (F,), F)
    check(executor, back, [random(25)], (), 13)


@EXECUTORS
def test_resize_by_scale(executor: str) -> None:
    """An index that goes through floating point."""
    i = sc.axis(0)
    at = sc.unary(Op.TO_I32, sc.unary(Op.FLOOR, sc.unary(Op.TO_F32, i) * (7 / 19)))
    spec = Map((19, 6), sc.load(0, at * 6 + sc.axis(1)), i * 6 + sc.axis(1), (F,), F)
    check(executor, spec, [random(42)], (), 114)
    spec = Map((19,), sc.load(0, at), i, (F,), F)
    check(executor, spec, [random(7)], (), 19)


@EXECUTORS
def test_integers_and_masks(executor: str) -> None:
    i = sc.axis(0)
    x, y = sc.load(0, i, Type.I32), sc.load(1, i, Type.I32)
    mask = sc.binary(Op.LT, x, y)
    value = sc.select(mask, x * y, sc.unary(Op.TO_I32, mask) - sc.binary(Op.DIV, x, y))
    rng = np.random.default_rng()
    operands = [rng.integers(-50, 50, 37), rng.integers(-3, 3, 37)]
    check(executor, Map((37,), value, i, (I, I), I), operands, (), 37)


@EXECUTORS
def test_nan_and_infinity_pass(executor: str) -> None:
    x = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, np.nan, -1.0, 3.0])
    i = sc.axis(0)
    for value in (
        sc.binary(Op.MAX, sc.load(0, i), 0.0),
        sc.binary(Op.MIN, sc.load(0, i), sc.load(0, 8 - i)),
        sc.unary(Op.TANH, sc.load(0, i)),
        sc.unary(Op.EXP, sc.load(0, i)),
    ):
        check(executor, Map((9,), value, i, (F,), F), [x], (), 9)


def test_axes_run_together() -> None:
    shape = (2, 3, 5, 7)
    whole = Map(shape, sc.load(0, linear(shape)) + 1.0, linear(shape), (F,), F)
    assert coalesce(whole).shape == (210,)
    bias = Map(shape, sc.load(0, linear(shape)) + sc.load(1, sc.axis(3)), linear(shape), (F, F), F)
    assert coalesce(bias).shape == (30, 7)
    n, one = symbol("a0"), Map((1, 4, 1), sc.load(0, sc.axis(1)), sc.axis(1), (F,), F)
    assert coalesce(one).shape == (4,)
    dynamic = Map((n, 4), sc.load(0, linear((n, 4))), linear((n, 4)), (F,), F, 1)
    assert coalesce(dynamic).shape == (n * 4,)
    uses_axis = Map((3, 4), sc.unary(Op.TO_F32, sc.axis(1)), linear((3, 4)), (), F)
    assert coalesce(uses_axis).shape == (3, 4)


def test_space_is_small() -> None:
    shape = (8, 9, 10, 11)
    turned = sc.linear([sc.axis(3), sc.axis(1), sc.axis(0), sc.axis(2)], (11, 9, 8, 10))
    spec = Map(shape, sc.load(0, linear(shape)), turned, (F,), F)
    assert 1 <= len(wasm.space(spec, WasmCaps())) <= 16
