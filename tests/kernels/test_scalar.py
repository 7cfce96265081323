"""Random expressions: what is hoisted, shared, splatted or gathered must not change the result."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pywebgpu.codegen import scalar as sc
from pywebgpu.codegen.dims import Dim, symbol
from pywebgpu.codegen.scalar import Op, Scalar, Type
from pywebgpu.codegen.spec import Map, Reduce, ReduceOp, Row, RowOp, Storage
from tests.kernels.harness import check, executors

F, I = Storage.F32, Storage.I32  # noqa: E741
ELEMENTS = 61
Draw = Callable[[st.SearchStrategy[Any]], Any]


class Expressions:
    """Draws expressions over `rank` axes and two operands of ELEMENTS elements each."""

    def __init__(self, draw: Draw, rank: int, n_args: int) -> None:
        self.draw, self.rank, self.n_args = draw, rank, n_args
        self.made: list[Scalar] = []  # floats to use again, so that graphs share nodes

    def pick(self, *options: Any) -> Any:
        return self.draw(st.sampled_from(options))

    def index(self, depth: int = 2) -> Scalar:
        """An element number, always in range."""
        top = ELEMENTS - 1
        return sc.binary(Op.MIN, sc.binary(Op.MAX, self.integer(depth), 0), top)

    def plain_index(self) -> Scalar:
        """An affine element number: axes are below 8, so 7 * (4 + 2 + 1) + 3 is the largest."""
        total = sc.const(self.draw(st.integers(0, 3)))
        for axis, strides in zip(range(self.rank), ((0, 1, 4), (0, 1, 2), (0, 1)), strict=False):
            total = total + sc.axis(axis) * self.pick(*strides)
        return total

    def integer(self, depth: int) -> Scalar:
        kind = self.pick("axis", "axis", "const", "arg", "load", "add", "mul", "div", "float", "if")
        if depth == 0 or kind in ("axis", "const", "arg"):
            if kind == "arg" and self.n_args:
                return sc.arg(self.draw(st.integers(0, self.n_args - 1)))
            if kind == "const" or not self.rank:
                return sc.const(self.draw(st.integers(0, 9)))
            return sc.axis(self.draw(st.integers(0, self.rank - 1)))
        a = self.integer(depth - 1)
        if kind == "load":
            return sc.load(1, self.index(depth - 1), Type.I32)
        if kind == "div":  # the operands of these must not be negative
            op = self.pick(Op.UDIV, Op.UMOD)
            return sc.binary(op, sc.binary(Op.MAX, a, 0), self.pick(1, 2, 3, 8, 7))
        if kind == "float":
            return sc.unary(Op.TO_I32, sc.unary(Op.FLOOR, sc.unary(Op.TO_F32, a) * 0.5))
        if kind == "if":
            return sc.select(self.condition(depth - 1), a, self.integer(depth - 1))
        if kind == "mul":
            return a * self.draw(st.integers(-3, 3))
        return sc.binary(self.pick(Op.ADD, Op.SUB, Op.MIN), a, self.integer(depth - 1))

    def condition(self, depth: int) -> Scalar:
        op = self.pick(Op.EQ, Op.LT, Op.LE)
        if depth and self.pick(True, False):
            both = self.pick(Op.AND, Op.OR, Op.XOR)
            return sc.binary(both, self.condition(depth - 1), sc.unary(Op.NOT, self.condition(0)))
        return sc.binary(op, self.integer(depth), self.integer(0))

    def number(self, depth: int) -> Scalar:
        kind = self.pick(
            "load", "load", "plain", "int", "const", "again", "add", "mul", "one", "if"
        )
        if kind == "again" and self.made:
            return self.pick(*self.made)
        if kind == "const":
            return sc.const(self.pick(0.5, -2.0, 1.0, 0.0))
        if depth == 0 or kind in ("load", "plain"):
            value = sc.load(0, self.plain_index() if kind == "plain" else self.index())
        elif kind == "int":
            value = sc.unary(Op.TO_F32, self.integer(depth))
        elif kind == "if":
            value = sc.select(self.condition(1), self.number(depth - 1), self.number(depth - 1))
        elif kind == "one":
            op = self.pick(Op.NEG, Op.ABS, Op.TANH, Op.SIGN)
            value = sc.unary(op, self.number(depth - 1))
        else:
            op = self.pick(Op.MUL) if kind == "mul" else self.pick(Op.ADD, Op.SUB, Op.MIN, Op.MAX)
            value = sc.binary(op, self.number(depth - 1), self.number(depth - 1))
        self.made.append(value)
        return value


def operands() -> list[Any]:
    rng = np.random.default_rng()
    # Few bits, so that sums are exact and no comparison is decided by a rounding.
    return [rng.integers(-8, 8, ELEMENTS) / 4, rng.integers(0, 9, ELEMENTS)]


@st.composite
def spaces(draw: Draw, most: int = 3) -> tuple[tuple[int, ...], bool]:
    return tuple(draw(st.lists(st.integers(1, 7), min_size=1, max_size=most))), draw(st.booleans())


def _shape(sizes: tuple[int, ...], dynamic: bool) -> tuple[tuple[Dim, ...], tuple[int, ...]]:
    if not dynamic:
        return sizes, ()
    return tuple(symbol(f"a{i}") for i in range(len(sizes))), sizes


EXECUTORS = pytest.mark.parametrize("executor", [e for e in executors("wasm") if e.endswith("1")])


@EXECUTORS
@settings(max_examples=60, deadline=None)
@given(spaces(), st.data())
def test_map(executor: str, space: tuple[tuple[int, ...], bool], data: st.DataObject) -> None:
    sizes, dynamic = space
    shape, args = _shape(sizes, dynamic)
    make = Expressions(data.draw, len(sizes), len(args))
    value = make.number(4)
    order = data.draw(st.permutations(range(len(sizes))))
    axes = [sc.axis(i) for i in range(len(sizes))]
    index = sc.linear([axes[i] for i in order], [shape[i] for i in order])
    spec = Map(shape, value, index, (F, I), F, len(args))
    check(executor, spec, operands(), args, math.prod(sizes), rtol=1e-5, atol=1e-5)


@EXECUTORS
@settings(max_examples=30, deadline=None)
@given(spaces(2), spaces(1), st.sampled_from([ReduceOp.SUM, ReduceOp.MAX, ReduceOp.ARGMIN]),
       st.data())  # fmt: skip
def test_reduce(executor: str, outer: Any, inner: Any, op: ReduceOp, data: st.DataObject) -> None:
    sizes, dynamic = outer
    whole, args = _shape((*sizes, *inner[0]), dynamic)
    n = len(sizes)
    value = Expressions(data.draw, len(whole), len(args)).number(3)
    arg = op is ReduceOp.ARGMIN
    final = sc.acc(Type.I32) if arg else sc.acc() + Expressions(data.draw, n, len(args)).number(2)
    axes = [sc.axis(i) for i in range(n)]
    spec = Reduce(whole[:n], whole[n:], op, value, final, sc.linear(axes, whole[:n]), (F, I),
                  I if arg else F, len(args))  # fmt: skip
    if arg and any(x.op is Op.TANH for x in sc.walk([value])):
        return  # its last bits would decide between near equals
    check(executor, spec, operands(), args, math.prod(sizes), rtol=1e-5, atol=1e-5)


@EXECUTORS
@settings(max_examples=30, deadline=None)
@given(spaces(2), spaces(1), st.sampled_from([RowOp.SOFTMAX, RowOp.RMS]), st.data())
def test_row(executor: str, outer: Any, inner: Any, op: RowOp, data: st.DataObject) -> None:
    sizes, dynamic = outer
    every = (*sizes, *inner[0])
    whole, args = _shape(every, dynamic)
    n = len(sizes)
    make = Expressions(data.draw, len(whole), len(args))
    value, final = make.number(3), sc.acc() * make.number(2)
    index = sc.linear([sc.axis(i) for i in range(len(whole))], whole)
    spec = Row(whole[:n], whole[n:], op, 1e-3, value, final, index, (F, I), F, len(args))
    check(executor, spec, operands(), args, math.prod(every), rtol=2e-5, atol=2e-4)
