"""Matrix products on every executor against float64.

Tolerance: a sum of K products in f32 differs from the exact one by at most about K * 2**-24 of the
sum of their magnitudes, and inputs are drawn from a normal distribution, so `K_EPS * (K + 8)`
relative to the largest output covers it with room.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pywebgpu.codegen import scalar as sc
from pywebgpu.codegen.dims import Dim, symbol
from pywebgpu.codegen.scalar import Op, Scalar
from pywebgpu.codegen.spec import Matmul, Storage, View
from pywebgpu.packing import pack_panels
from tests.kernels.harness import check, executors, run_spec, some, space

F32 = Storage.F32
K_EPS = 6e-7

EPILOGUES: dict[str, Scalar] = {
    "plain": sc.acc(),
    "bias and relu": sc.binary(Op.MAX, sc.acc() + sc.load(2, sc.axis(1)), 0.0),
    "gelu": (sc.acc() + sc.load(2, sc.axis(1)))
    * (sc.unary(Op.ERF, (sc.acc() + sc.load(2, sc.axis(1))) * 0.70710678) + 1.0)
    * 0.5,
}


def normal(rng: np.random.Generator, *shape: int) -> Any:
    return rng.standard_normal(shape).astype(np.float32)


def packed(m: Dim, n: int, k: int, final: Scalar, residual: bool = False) -> Matmul:
    """Rows of A times a constant, operand 2 a bias, operand 3 (if any) a residual."""
    if residual:
        final = final + sc.load(3, sc.axis(0) * n + sc.axis(1))
    operands = (F32,) * (4 if residual else 3)
    return Matmul((), m, n, k, View((k, 1)), None, View((n, 1)), final, operands, F32, 1)


def check_packed(
    executor: str, m: int, n: int, k: int, dynamic: bool, final: Scalar, residual: bool = False
) -> None:
    rng = np.random.default_rng()
    spec = packed(symbol("a0") if dynamic else m, n, k, final, residual)
    a, b, bias = normal(rng, m, k), normal(rng, k, n), normal(rng, n)
    operands = [a, pack_panels(b), bias, *([normal(rng, m, n)] if residual else [])]
    size = max(1.0, k**0.5 * 5)
    candidates = some(executor, space(executor, spec))
    check(
        executor, spec, operands, [m], m * n, rtol=1e-5, atol=K_EPS * (k + 8) * size,
        candidates=candidates,
    )  # fmt: skip


@pytest.mark.parametrize("executor", executors())
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    ("m", "n", "k"),
    [(64, 48, 32), (1, 100, 33), (2, 40, 16), (3, 33, 9), (13, 17, 19), (1, 1, 1), (130, 16, 7)],
)
def test_packed_constant(executor: str, m: int, n: int, k: int, dynamic: bool) -> None:
    check_packed(executor, m, n, k, dynamic, EPILOGUES["bias and relu"])


@pytest.mark.parametrize("executor", executors("wasm"))
@pytest.mark.parametrize(
    ("m", "n", "k", "dynamic"),
    [
        (101, 20, 2560, False),
        (67, 9, 700, False),
        (70, 9, 1024, True),
        (1, 9, 515, True),
        (5, 24, 512, True),
    ],
)
def test_deep_products_are_cut(executor: str, m: int, n: int, k: int, dynamic: bool) -> None:
    check_packed(executor, m, n, k, dynamic, EPILOGUES["bias and relu"])


@pytest.mark.parametrize("executor", executors("wasm"))
@pytest.mark.parametrize("m", [*range(6, 24), 128])
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("k", [5, 600])
def test_any_number_of_rows_is_made_of_tall_and_short_tiles(
    executor: str, m: int, dynamic: bool, k: int
) -> None:
    """With A copied and in blocks of the fewest rows, too."""
    rng = np.random.default_rng()
    spec = packed(symbol("a0") if dynamic else m, 12, k, sc.acc())
    default = next(knobs for knobs in space(executor, spec) if knobs.rows >= 6)
    candidates = [
        replace(default, pack=pack, block=block, depth=depth)
        for pack, block, depth in ((False, 64, 0), (True, 6, 0), (True, 12, 256), (False, 48, 128))
    ]
    operands = [normal(rng, m, k), pack_panels(normal(rng, k, 12)), normal(rng, 12)]
    size = max(1.0, k**0.5 * 5)
    check(
        executor, spec, operands, [m], m * 12, rtol=1e-5, atol=K_EPS * (k + 8) * size,
        candidates=candidates,
    )  # fmt: skip


@pytest.mark.parametrize("executor", executors())
@pytest.mark.parametrize("final", list(EPILOGUES))
@pytest.mark.parametrize("n", [24, 29, 5])
def test_epilogue(executor: str, final: str, n: int) -> None:
    check_packed(executor, 9, n, 12, False, EPILOGUES[final], residual=True)


@pytest.mark.parametrize("executor", executors())
@pytest.mark.parametrize(("m", "n", "k"), [(0, 8, 4), (6, 0, 4), (4, 8, 0)])
@pytest.mark.parametrize("dynamic", [False, True])
def test_nothing_to_do(executor: str, m: int, n: int, k: int, dynamic: bool) -> None:
    check_packed(executor, m, n, k, dynamic, EPILOGUES["bias and relu"])


def check_views(
    executor: str,
    sizes: tuple[int, int, int, int],
    dynamic: tuple[bool, bool, bool, bool],
    transposed: tuple[bool, bool, bool],
    pick: int | None = None,
) -> None:
    """`pick`: see `harness.some`."""
    rng = np.random.default_rng()
    batch, m, n, k = sizes
    b, m_, n_, k_ = (
        symbol(f"a{i}") if d else s for i, (s, d) in enumerate(zip(sizes, dynamic, strict=True))
    )
    a_view = View((m_ * k_, 1, m_) if transposed[0] else (m_ * k_, k_, 1))
    b_view = View((n_ * k_, 1, k_) if transposed[1] else (n_ * k_, n_, 1))
    out = View((m_ * n_, 1, m_) if transposed[2] else (m_ * n_, n_, 1))
    final = sc.acc() * 0.5 + sc.unary(Op.TO_F32, sc.axis(0) + sc.axis(1))
    spec = Matmul((b,), m_, n_, k_, a_view, b_view, out, final, (F32, F32), F32, 4)
    operands = [normal(rng, batch * m * k), normal(rng, batch * n * k)]
    atol = K_EPS * (k + 8) * max(1.0, k**0.5 * 5)
    all_ = space(executor, spec)
    check(
        executor, spec, operands, sizes, batch * m * n, rtol=1e-5, atol=atol,
        candidates=some(executor, all_, pick),
    )  # fmt: skip


@pytest.mark.parametrize("executor", executors())
@pytest.mark.parametrize("transposed", list(itertools.product((False, True), repeat=3)))
@pytest.mark.parametrize("dynamic", [False, True])
def test_views(executor: str, transposed: tuple[bool, bool, bool], dynamic: bool) -> None:
    pick = 0 if dynamic and any(transposed) else None
    check_views(executor, (2, 9, 11, 13), (dynamic,) * 4, transposed, pick)
    for i, sizes in enumerate([(3, 1, 8, 16), (1, 33, 7, 5), (2, 0, 3, 3), (1, 2, 30, 9)]):
        check_views(executor, sizes, (dynamic,) * 4, transposed, pick=i)


@pytest.mark.parametrize("executor", executors())
@settings(max_examples=15, deadline=None)
@given(
    sizes=st.tuples(*[st.integers(0, 3)], *[st.integers(0, 41)] * 3),
    dynamic=st.tuples(*[st.booleans()] * 4),
    transposed=st.tuples(*[st.booleans()] * 3),
    pick=st.integers(0, 11),
)
def test_any_size(
    executor: str,
    sizes: tuple[int, int, int, int],
    dynamic: tuple[bool, bool, bool, bool],
    transposed: tuple[bool, bool, bool],
    pick: int,
) -> None:
    check_views(executor, sizes, dynamic, transposed, pick)


@pytest.mark.parametrize("executor", executors())
def test_batches_that_share_an_operand(executor: str) -> None:
    rng = np.random.default_rng()
    spec = Matmul(
        (2, 3), 5, 9, 4, View((60, 20, 4, 1)), View((0, 36, 9, 1)), View((135, 45, 9, 1)),
        sc.acc(), (F32, F32), F32,
    )  # fmt: skip
    check(executor, spec, [normal(rng, 120), normal(rng, 108)], (), 270, atol=1e-5)


@pytest.mark.parametrize("executor", executors("wasm"))
def test_integers_are_exact(executor: str) -> None:
    rng = np.random.default_rng()
    i32 = Storage.I32
    final = sc.acc(sc.Type.I32) + sc.axis(1)
    spec = Matmul((), 7, 9, 11, View((11, 1)), View((9, 1)), View((9, 1)), final, (i32, i32), i32)
    operands = [rng.integers(-1000, 1000, 77), rng.integers(-1000, 1000, 99)]
    check(executor, spec, operands, (), 63)


@pytest.mark.parametrize("executor", executors("wasm"))
@pytest.mark.parametrize("special", [np.nan, np.inf])
def test_specials_reach_their_row_and_no_other(executor: str, special: float) -> None:
    rng = np.random.default_rng()
    a, b = normal(rng, 9, 12), np.abs(normal(rng, 12, 20)) + 0.1
    a[4, 7] = special
    spec = packed(9, 20, 12, sc.acc())
    for knobs in space(executor, spec):
        got = run_spec(executor, spec, knobs, [a, pack_panels(b), b[0]], [9], 180).reshape(9, 20)
        np.testing.assert_array_equal(np.isfinite(got).all(1), np.arange(9) != 4)
        assert (np.isnan(got[4]) if np.isnan(special) else got[4] == np.inf).all()
