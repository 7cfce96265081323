"""Index arithmetic: what must cancel does, and nothing changes its value."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pywebgpu.codegen import scalar as sc
from pywebgpu.codegen.dims import Dim, symbol
from pywebgpu.codegen.scalar import Op, Scalar
from pywebgpu.codegen.spec import View
from pywebgpu.lower.index import Space, unravel
from tests import reference

B, S = symbol("a0"), symbol("a1")


def test_split_then_merged_axis_is_the_axis() -> None:
    space = Space((B * S * 12,))
    there = unravel(sc.axis(0), (B, S, 12))
    assert space.simplify(sc.linear(there, (B, S, 12))) is sc.axis(0)


def test_attention_heads_become_strides() -> None:
    space = Space((B, 12, S, 32))
    b, h, s, d = space.axes
    # (b, s, h * 32 + d) of a row-major [B, S, 384]
    index = sc.linear((b, s, h * 32 + d), (B, S, 384))
    assert space.view(index) == View((S * 384, 32, 384, 1))
    back = unravel(sc.linear((b, s, h * 32 + d), (B, S, 384)), (B, S, 12, 32))
    assert [space.simplify(x) for x in back] == [b, s, h, d]


def test_channel_shuffle_reads_strided() -> None:
    space = Space((B, 4, 6, 5, 7))
    flat = sc.linear(space.axes, (B, 4, 6, 5, 7))
    _, channel, y, x = unravel(flat, (B, 24, 5, 7))
    assert space.simplify(channel) is space.simplify(space.axes[1] * 6 + space.axes[2])
    assert (space.simplify(y), space.simplify(x)) == space.axes[3:]


def test_symbolic_image_sizes_cancel() -> None:
    height, width = symbol("a0"), symbol("a1")
    space = Space((4, 6, height, width))
    flat = sc.linear(space.axes, (4, 6, height, width))
    channel, y, x = unravel(flat, (24, height, width))
    assert space.simplify(channel) is space.simplify(space.axes[0] * 6 + space.axes[1])
    assert (space.simplify(y), space.simplify(x)) == space.axes[2:]


def test_checks_that_always_hold_vanish() -> None:
    space = Space((10, B))
    i, j = space.axes
    inside = sc.binary(
        Op.AND,
        sc.binary(Op.LE, sc.const(0), i),
        sc.binary(Op.LT, j, sc.dim(B)),
    )
    assert space.simplify(inside) is sc.const(True)
    assert space.simplify(sc.binary(Op.MIN, j, sc.dim(B) - 1)) is j
    assert space.simplify(sc.binary(Op.MAX, i, 0)) is i


def test_what_may_fail_stays() -> None:
    space = Space((10,))
    (i,) = space.axes
    assert space.simplify(sc.binary(Op.LT, i, sc.const(9))).op is Op.LT
    assert space.simplify(sc.binary(Op.MAX, i - 1, 0)).op is Op.MAX


@st.composite
def _expressions(draw: Any) -> tuple[tuple[Dim, ...], Scalar]:
    extents: tuple[Dim, ...] = tuple(
        draw(st.lists(st.sampled_from([1, 2, 3, 4, 6, B, S, B * 2, S * 3]), min_size=1, max_size=3))
    )
    leaves = [*Space(extents).axes, sc.const(0), sc.const(1), sc.const(5), sc.dim(S)]
    node = draw(st.sampled_from(leaves))
    for _ in range(draw(st.integers(1, 7))):
        kind = draw(st.sampled_from(["add", "mul", "udiv", "umod", "min", "max", "pair"]))
        if kind in ("add", "min", "max"):
            node = sc.binary(Op(kind), node, draw(st.sampled_from(leaves)))
        else:
            d = sc.dim(draw(st.sampled_from([2, 3, 4, 6, 12, S, S * 2])))
            if kind == "mul":
                node = node * d
            elif kind == "pair":
                node = sc.binary(Op.UDIV, node, d) * d * 2 + sc.binary(Op.UMOD, node, d) * 2
            else:
                node = sc.binary(Op(kind), node, d)
    return extents, node


@settings(max_examples=300, deadline=None)
@given(_expressions(), st.integers(1, 4), st.integers(1, 5))
def test_simplifying_never_changes_a_value(
    case: tuple[tuple[Dim, ...], Scalar], b: int, s: int
) -> None:
    extents, node = case
    env = {"a0": b, "a1": s}
    axes = reference._grid(reference._dims(extents, env))
    before = reference.scalar(node, axes, [], env)
    after = reference.scalar(Space(extents).simplify(node), axes, [], env)
    assert np.array_equal(*np.broadcast_arrays(before, after))


@pytest.mark.parametrize("offset", [0, 3, 8])
def test_offsets_survive_division(offset: int) -> None:
    space = Space((5, 4))
    i, j = space.axes
    node = sc.binary(Op.UDIV, i * 4 + j + offset, 4)
    axes = reference._grid([5, 4])
    want = (axes[0] * 4 + axes[1] + offset) // 4
    got = reference.scalar(space.simplify(node), axes, [], {})
    assert np.array_equal(*np.broadcast_arrays(got, want))
