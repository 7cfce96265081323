"""Attention on every executor against float64.

Tolerance: scores are sums of up to 64 products and their exponentials turn an absolute error of
1e-6 into a relative one of the same size; weights sum to 1, so outputs err by about 1e-5 at most.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pywebgpu.codegen import scalar as sc
from pywebgpu.codegen import wgsl
from pywebgpu.codegen.caps import WgslCaps
from pywebgpu.codegen.dims import symbol
from pywebgpu.codegen.scalar import Op, Scalar
from pywebgpu.codegen.spec import Attention, Storage, View
from pywebgpu.codegen.wgsl.attention import Direct
from tests.kernels.harness import check, executors, some, space

F32 = Storage.F32

Sizes = tuple[int, int, int, int, int, int, int]
"""batch, heads, kv heads, queries, positions, head size, value size"""


def make(
    sizes: Sizes, causal: bool, zero: bool, bias: str, dynamic: bool, heads_inside: bool
) -> tuple[Attention, list[Any], list[int], int]:
    """`heads_inside`: (batch, position, head, feature); else features lie across positions."""
    rng = np.random.default_rng()
    batch, heads, kv_heads, queries, positions, d, vd = sizes
    args = [batch, queries, positions]
    b, q, s = (symbol(f"a{i}") if dynamic else v for i, v in enumerate(args))

    def view(length: Any, count: int, width: int) -> View:
        if heads_inside:
            return View((length * count * width, width, count * width, 1))
        return View((length * count * width, length * width, 1, length))

    def normal(count: int) -> Any:
        return rng.standard_normal(count).astype(np.float32)

    operands = [
        normal(batch * queries * heads * d),
        normal(batch * positions * kv_heads * d),
        normal(batch * positions * kv_heads * vd),
    ]
    value: Scalar | None = None
    if bias == "mask":  # hides some positions of each batch, maybe all
        value = sc.load(3, sc.axis(0) * sc.dim(s) + sc.axis(3))
        hidden = rng.random(batch * positions) < rng.random()
        operands.append(np.where(hidden, -np.inf, 0).astype(np.float32))
    elif bias == "per head, positions apart":
        row = sc.axis(2) * sc.dim(s) + sc.axis(3)
        value = sc.load(3, row * heads + sc.axis(1))
        operands.append(normal(queries * positions * heads))
    elif bias == "computed":
        later = sc.binary(Op.LT, sc.axis(2), sc.axis(3))
        value = sc.unary(Op.TO_F32, later) * -3.0
    spec = Attention(
        b, heads, kv_heads, q, s, d, vd, 0.37, causal, zero, view(q, heads, d),
        view(s, kv_heads, d), view(s, kv_heads, vd), view(q, heads, vd), value,
        (F32,) * len(operands), F32, 3,
    )  # fmt: skip
    return spec, operands, args, batch * queries * heads * vd


def check_attention(
    executor: str,
    sizes: Sizes,
    causal: bool = False,
    zero: bool = True,
    bias: str = "none",
    dynamic: bool = False,
    heads_inside: bool = True,
    pick: int | None = None,
) -> None:
    """`pick`: see `harness.some`."""
    spec, operands, args, count = make(sizes, causal, zero, bias, dynamic, heads_inside)
    all_ = space(executor, spec)
    candidates = some(executor, all_, pick)
    check(executor, spec, operands, args, count, rtol=1e-4, atol=3e-5, candidates=candidates)


SIZES: dict[str, Sizes] = {
    "small": (1, 2, 2, 5, 7, 4, 8),
    "grouped": (2, 4, 2, 33, 70, 32, 32),
    "decode": (1, 1, 1, 1, 130, 16, 12),
    "odd": (1, 3, 1, 9, 3, 5, 7),
    "several blocks": (1, 2, 1, 130, 130, 8, 16),
    "narrow values": (3, 1, 1, 2, 65, 33, 1),
    "no queries": (2, 2, 2, 0, 4, 4, 4),
    "no positions": (1, 2, 2, 4, 0, 4, 4),
}


@pytest.mark.parametrize("executor", executors())
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("sizes", list(SIZES))
def test_sizes(executor: str, sizes: str, causal: bool, dynamic: bool) -> None:
    pick = None if causal and not dynamic else 0
    check_attention(executor, SIZES[sizes], causal, dynamic=dynamic, pick=pick)


@pytest.mark.parametrize("executor", executors())
@pytest.mark.parametrize("bias", ["mask", "per head, positions apart", "computed"])
@pytest.mark.parametrize("zero", [False, True])
def test_bias(executor: str, bias: str, zero: bool) -> None:
    for pick, sizes in enumerate(["small", "grouped", "odd", "decode"]):
        check_attention(executor, SIZES[sizes], zero=zero, bias=bias, pick=pick)


@pytest.mark.wgpu
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("sizes", list(SIZES))
def test_one_query_per_thread_for_adapters_in_software(sizes: str, causal: bool) -> None:
    for zero, bias, inside in [(False, "mask", True), (True, "computed", False)]:
        made = make(SIZES[sizes], causal, zero, bias, causal, inside)
        spec, operands, args, count = made
        candidates = wgsl.space(spec, WgslCaps(emulated=True))[:2]
        assert [type(knobs) for knobs in candidates] == [Direct, Direct]
        check("wgpu", spec, operands, args, count, rtol=1e-4, atol=3e-5, candidates=candidates)
        for knobs in candidates:  # barriers are what makes such adapters slow to compile
            code = wgsl.render(spec, knobs).passes[0].code
            assert "workgroupBarrier" not in code
            assert "var<workgroup>" not in code


@pytest.mark.parametrize("executor", executors())
@pytest.mark.parametrize("sizes", ["small", "grouped", "odd", "decode"])
def test_features_lie_apart(executor: str, sizes: str) -> None:
    check_attention(executor, SIZES[sizes], heads_inside=False, bias="mask", pick=0)


@pytest.mark.parametrize("executor", executors())
@settings(max_examples=10, deadline=None)
@given(
    batch=st.integers(0, 2),
    heads=st.sampled_from([(1, 1), (4, 2), (3, 3)]),
    lengths=st.tuples(st.integers(0, 70), st.integers(0, 140)),
    widths=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    flags=st.tuples(*[st.booleans()] * 4),
    bias=st.sampled_from(["none", "mask", "computed"]),
    pick=st.integers(0, 11),
)
def test_any_size(
    executor: str,
    batch: int,
    heads: tuple[int, int],
    lengths: tuple[int, int],
    widths: tuple[int, int],
    flags: tuple[bool, bool, bool, bool],
    bias: str,
    pick: int,
) -> None:
    causal, zero, dynamic, inside = flags
    sizes = (batch, *heads, *lengths, *widths)
    check_attention(executor, sizes, causal, zero, bias, dynamic, inside, pick)
