"""Candidates on subgroup matrices, which no adapter here has, with their matrices spelt out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from pywebgpu.codegen import wgsl
from pywebgpu.codegen.caps import WGSL_VARIANTS
from pywebgpu.codegen.spec import RowOp
from pywebgpu.codegen.wgsl.attention import Matrices
from pywebgpu.codegen.wgsl.product import Matrix
from pywebgpu.codegen.wgsl.product_space import everything
from tests.kernels import harness
from tests.kernels.cases import (
    Case,
    attention_case,
    matmul_case,
    statistics_case,
)

pytestmark = pytest.mark.wgpu
MATRIX_CAPS = next(v.caps for v in WGSL_VARIANTS if v.name == "matrix")


def check(case: Case, tolerance: float, candidates: list[Any]) -> None:
    assert candidates
    harness.check(
        harness.MATRIX, case.spec, case.operands, case.args, case.out_size,
        rtol=tolerance, atol=tolerance, candidates=candidates,
    )  # fmt: skip


ATTENTION: dict[str, tuple[Any, ...]] = {
    # heads, kv_heads, q_len, kv_len, head_dim, v_dim; causal, mask, zero
    "one block": (2, 2, 16, 16, 16, 16),
    "many blocks": (4, 2, 70, 70, 64, 64),
    "odd": (3, 1, 37, 37, 40, 24),
    "odd features": (2, 2, 21, 21, 10, 7),
    "wide": (1, 1, 40, 70, 128, 128),
    "causal": (2, 2, 70, 99, 32, 32, True),
    "masked": (2, 1, 33, 75, 64, 64, False, "some"),
    "masked rows": (2, 2, 20, 20, 32, 32, False, "rows", True),
}


@pytest.mark.parametrize("name", ATTENTION)
def test_attention(name: str) -> None:
    """The weights between the products are rounded to f16, as is the result.

    Blocks of few keys: a CPU takes minutes to compile the larger ones spelt out.
    """
    case = attention_case(2, *ATTENTION[name], half=True)
    found = harness.space(harness.MATRIX, case.spec)
    check(case, 3e-3, [k for k in found if k.bk == 16])


def test_attention_by_blocks() -> None:
    """Two matrices of keys a step, of a length known at run time only."""
    case = attention_case(1, 2, 2, 50, 50, 24, 24, half=True, dynamic=True)
    spec = dataclasses.replace(case.spec, q_len=case.spec.kv_len)
    check(dataclasses.replace(case, spec=spec), 3e-3, [Matrices(2, 32)])


PRODUCTS: dict[str, Callable[[], Case]] = {
    "plain": lambda: matmul_case(50, 70, 96, half=True),
    "thin": lambda: matmul_case(20, 40, 520, half=True),
    "statistics": lambda: statistics_case(70, 96, 64, RowOp.LAYER, half=True),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_product(name: str) -> None:
    case = PRODUCTS[name]()
    found = everything(wgsl.matmul.product_of(case.spec), MATRIX_CAPS)
    small = [k for k in found if isinstance(k, Matrix) and k.bm * k.bn <= 1024]
    check(case, 2e-2, [next(k for k in small if (k.splits > 1) == (name == "thin"))])
