"""int8 products on every executor against exact integers.

The integers must be the reference's own, so all that differs is a few roundings of f32 after them:
tolerances are relative, with nothing allowed for a number that was rounded to its neighbour.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pywebgpu.codegen import scalar as sc
from pywebgpu.codegen.dims import Dim, symbol
from pywebgpu.codegen.scalar import Op, Scalar, Type
from pywebgpu.codegen.spec import Map, Matmul, Storage, View
from pywebgpu.packing import (
    pack_exact_conv,
    pack_int8_conv,
    pack_int8_panels,
    pack_int8_quantised,
)
from tests.kernels.harness import check, executors, run_spec, some, space
from tests.kernels.test_conv import Case, make

F32, I8 = Storage.F32, Storage.I8
WASM = executors("wasm")


def product(m: Dim, n: int, k: int, final: Scalar, loads: int = 0, transposed: bool = False) -> Any:
    a = View((1, m)) if transposed else View((k, 1))
    operands = (F32, I8, *(F32,) * loads)
    return Matmul((), m, n, k, a, None, View((n, 1)), final, operands, F32, 1)


def relu_of_bias() -> Scalar:
    return sc.binary(Op.MAX, sc.acc() + sc.load(2, sc.axis(1)), 0.0)


def check_product(
    executor: str, sizes: tuple[int, int, int], dynamic: bool, transposed: bool,
    rng: np.random.Generator, pick: int | None = None,
) -> None:  # fmt: skip
    m, n, k = sizes
    spec = product(symbol("a0") if dynamic else m, n, k, relu_of_bias(), 1, transposed)
    a = (rng.standard_normal((m, k)) * rng.uniform(0.01, 100)).astype(np.float32)
    a += rng.choice([0.0, 1.0, -30.0])
    b = rng.standard_normal((k, n)).astype(np.float32)
    bias = rng.standard_normal(n).astype(np.float32)
    operands = [a.T if transposed else a, pack_int8_panels(b), bias]
    scale = float(np.abs(a).max(initial=1e-3)) * max(k, 1)
    candidates = some(executor, space(executor, spec), pick)
    check(executor, spec, operands, [m], m * n, rtol=3e-6, atol=1e-6 * scale, candidates=candidates)


@pytest.mark.parametrize("executor", executors())
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    "sizes",
    [(64, 48, 32), (1, 100, 33), (2, 40, 16), (3, 33, 9), (13, 17, 19), (1, 1, 1), (130, 16, 7),
     (5, 9, 384), (0, 8, 4), (600, 8, 80)],
)  # fmt: skip
def test_product(executor: str, sizes: tuple[int, int, int], dynamic: bool) -> None:
    check_product(executor, sizes, dynamic, False, np.random.default_rng())


@pytest.mark.parametrize("executor", WASM)
@pytest.mark.parametrize("m", [*range(4, 17), 49])
@pytest.mark.parametrize("dynamic", [False, True])
def test_any_number_of_rows_is_made_of_tall_and_short_tiles(
    executor: str, m: int, dynamic: bool
) -> None:
    check_product(executor, (m, 24, 40), dynamic, False, np.random.default_rng())


@pytest.mark.parametrize("executor", WASM)
@settings(max_examples=25, deadline=None)
@given(
    sizes=st.tuples(st.integers(0, 41), st.integers(1, 41), st.integers(1, 70)),
    dynamic=st.booleans(),
    transposed=st.booleans(),
    pick=st.integers(0, 11),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_size(
    executor: str,
    sizes: tuple[int, int, int],
    dynamic: bool,
    transposed: bool,
    pick: int,
    seed: int,
) -> None:
    check_product(executor, sizes, dynamic, transposed, np.random.default_rng(seed), pick)


@pytest.mark.parametrize("executor", WASM)
@pytest.mark.parametrize("group", [(127, 127, 4, 0), (-128, -127, -3, 0), (65, 64, 65, 64)])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_extremes_do_not_saturate(executor: str, group: tuple[int, ...], sign: float) -> None:
    """All sums of four products at their largest, over a long K: none may leave 16 bits."""
    m, n, k = 5, 11, 1028
    spec = product(m, n, k, sc.acc())
    order = np.random.default_rng().permuted(np.tile(group, ((k + 7) // 8, 2, n, 1)), axis=-1)
    # (eights of k, pair, column, in the group) to (eights, which four, pair, which of it, column)
    weights = order.reshape(-1, 2, n, 2, 2).transpose(0, 3, 1, 4, 2).reshape(-1, n)[:k]
    panels = pack_int8_quantised(weights.astype(np.int8), np.ones(n, np.float32))
    a = np.full((m, k), sign, np.float32)
    for knobs in space(executor, spec):
        got = run_spec(executor, spec, knobs, [a, panels], [m], m * n).reshape(m, n)
        np.testing.assert_array_equal(got, np.broadcast_to(sign * weights.sum(0), (m, n)))


@pytest.mark.parametrize("executor", WASM)
def test_integers_come_through_unrounded(executor: str) -> None:
    """Numbers that need no rounding give the exact product: 0 .. 127 with one 127 per row."""
    rng = np.random.default_rng()
    m, n, k = 9, 20, 67
    a = rng.integers(0, 128, (m, k)).astype(np.float32)
    a[:, 3] = 127
    b = rng.integers(-64, 65, (k, n))
    spec = product(m, n, k, sc.acc())
    operands = [a, pack_int8_quantised(b.astype(np.int8), np.ones(n, np.float32))]
    for knobs in space(executor, spec):
        got = run_spec(executor, spec, knobs, operands, [m], m * n).reshape(m, n)
        np.testing.assert_array_equal(got, a.astype(np.int64) @ b)


@pytest.mark.parametrize("executor", WASM)
@pytest.mark.parametrize("special", [np.nan, -np.nan, np.inf, -np.inf])
def test_specials_make_their_row_nan_and_no_other(executor: str, special: float) -> None:
    rng = np.random.default_rng()
    a = rng.standard_normal((9, 21)).astype(np.float32)
    a[4, 19] = special
    spec = product(9, 20, 21, sc.acc())
    panels = pack_int8_panels(rng.standard_normal((21, 20)))
    for knobs in space(executor, spec):
        got = run_spec(executor, spec, knobs, [a, panels], [9], 180).reshape(9, 20)
        np.testing.assert_array_equal(np.isnan(got).all(1), np.arange(9) == 4)
        np.testing.assert_array_equal(np.isfinite(got).all(1), np.arange(9) != 4)


@pytest.mark.parametrize("executor", WASM)
@pytest.mark.parametrize("value", [0.0, -0.0, 1e-38, -3e-39])
def test_rows_without_a_range_are_zero(executor: str, value: float) -> None:
    a = np.full((3, 17), value, np.float32)
    spec = product(3, 8, 17, sc.acc())
    panels = pack_int8_panels(np.ones((17, 8)))
    for knobs in space(executor, spec):
        got = run_spec(executor, spec, knobs, [a, panels], [3], 24)
        np.testing.assert_array_equal(got, np.zeros(24))


@pytest.mark.parametrize("executor", executors())
@pytest.mark.parametrize("columns", [12, 7])
def test_bytes_are_read_along_lanes_across_them_and_by_index(executor: str, columns: int) -> None:
    rng = np.random.default_rng()
    table = rng.integers(-128, 128, (9, columns)).astype(np.int8)
    rows, scale = rng.integers(0, 9, 11), rng.uniform(0.5, 2, 9)
    i, j = sc.axis(0), sc.axis(1)
    row = sc.load(1, i, Type.I32)
    along = sc.load(0, row * columns + j, Type.I32)
    across = sc.load(0, sc.load(1, j, Type.I32) * columns + i, Type.I32)
    for value, shape in ((along, (11, columns)), (across, (columns, 11))):
        at = row if shape[0] == 11 else sc.const(0)
        scaled = sc.unary(Op.TO_F32, value) * sc.load(2, at)
        spec = Map(shape, scaled, sc.linear((i, j), shape), (I8, Storage.I32, F32), F32)
        check(executor, spec, [table, rows, scale], (), 11 * columns)


def check_conv(executor: str, case: Case, pick: int | None = None, **layout: bool) -> None:
    spec, (image, _, bias), args, count = make(case, **layout)
    spec = replace(spec, operands=(F32, I8, F32))
    shape = (case.cout, case.cin // case.groups, *case.kernel)
    weight = np.random.default_rng().standard_normal(shape).astype(np.float32)
    operands = [image, pack_int8_conv(weight, case.groups), bias]
    candidates = some(executor, space(executor, spec), pick)
    depth = weight[0].size
    check(
        executor, spec, operands, args, count, rtol=3e-6, atol=5e-6 * depth, candidates=candidates
    )


CONVOLUTIONS = {
    "plain": Case(1, (9, 11), 16, 24, 1, (3, 3), pads=(1, 1, 1, 1)),
    "strided": Case(2, (13, 10), 5, 9, 1, (3, 3), (2, 2), pads=(1, 0, 1, 1)),
    "valid": Case(1, (8, 7), 7, 8, 1, (3, 2)),
    "grouped": Case(1, (6, 6), 24, 32, 2, (3, 3), pads=(1, 1, 1, 1)),
    "dilated": Case(1, (14, 14), 4, 12, 1, (3, 3), dilation=(2, 3), pads=(2, 3, 2, 3)),
    "pointwise, strided": Case(1, (7, 9), 18, 16, 1, (1, 1), (2, 2)),
    "line": Case(2, (1, 20), 3, 8, 1, (1, 5), pads=(0, 2, 0, 2)),
    "many blocks": Case(1, (40, 40), 64, 8, 1, (5, 5), pads=(2, 2, 2, 2)),
}


@pytest.mark.parametrize("executor", executors())
@pytest.mark.parametrize("name", list(CONVOLUTIONS))
@pytest.mark.parametrize("dynamic", [False, True])
def test_convolution(executor: str, name: str, dynamic: bool) -> None:
    check_conv(executor, CONVOLUTIONS[name], dynamic=dynamic)


@pytest.mark.parametrize("executor", executors())
@pytest.mark.parametrize("layout", ["nchw_in", "nchw_out"])
def test_convolution_layouts(executor: str, layout: str) -> None:
    check_conv(executor, CONVOLUTIONS["plain"], **{layout: True})


@pytest.mark.parametrize("executor", executors())
@pytest.mark.parametrize("sizes", [(9, 20, 67), (1, 33, 300), (64, 8, 16), (2, 11, 1)])
@pytest.mark.parametrize("dynamic", [False, True])
def test_exact_products_of_integers(
    executor: str, sizes: tuple[int, int, int], dynamic: bool
) -> None:
    m, n, k = sizes
    rng = np.random.default_rng()
    final = sc.acc(Type.I32) + sc.axis(1)
    rows = symbol("a0") if dynamic else m
    i32 = Storage.I32
    spec = Matmul((), rows, n, k, View((k, 1)), None, View((n, 1)), final, (i32, I8), i32, 1)
    a, b = rng.integers(-255, 256, (m, k)), rng.integers(-128, 128, (k, n)).astype(np.int8)
    a[0], b[:, 0] = 255, 127
    operands = [a, pack_int8_quantised(b, np.ones(n, np.float32))]
    candidates = some(executor, space(executor, spec))
    check(executor, spec, operands, [m], m * n, candidates=candidates)


@pytest.mark.parametrize("executor", executors())
@pytest.mark.parametrize("name", ["plain", "strided", "grouped", "dilated"])
def test_exact_convolutions_of_integers(executor: str, name: str) -> None:
    case = CONVOLUTIONS[name]
    rng = np.random.default_rng()
    spec, (image, _, _), args, count = make(case)
    i32 = Storage.I32
    final = sc.acc(Type.I32) - sc.axis(3)
    spec = replace(spec, operands=(i32, I8), output=i32, final=final)
    weight = rng.integers(-128, 128, (case.cout, case.cin // case.groups, *case.kernel))
    operands = [rng.integers(-255, 256, image.size), pack_exact_conv(weight, case.groups)]
    candidates = some(executor, space(executor, spec))
    check(executor, spec, operands, args, count, candidates=candidates)
