"""Recurrent layers on every executor against float64.

Tolerance: errors of a step (1e-6) are carried on, but gates below 1 damp them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pywebgpu.codegen import scalar as sc
from pywebgpu.codegen.dims import symbol
from pywebgpu.codegen.scalar import Op, Scalar
from pywebgpu.codegen.spec import Cell, Recurrent, Storage, View
from tests.kernels.harness import check, executors, some, space

F32 = Storage.F32


def _activations(cell: Cell, odd: bool) -> tuple[Scalar, ...]:
    x = sc.acc()
    sigmoid = 1.0 / (sc.unary(Op.EXP, -x) + 1.0)
    tanh = sc.unary(Op.TANH, x)
    soft = x / (sc.unary(Op.ABS, x) + 1.0)
    if cell is Cell.RNN:
        return (soft if odd else tanh,)
    return (sigmoid, soft if odd else tanh, tanh)[: cell.functions]


def make(
    cell: Cell, steps: int, batch: int, hidden: int, reverse: tuple[bool, ...],
    initial: bool = False, lengths: bool = False, peephole: bool = False, coupled: bool = False,
    mixed: bool = False, dynamic: bool = False,
) -> tuple[Recurrent, list[Any], list[int], int]:  # fmt: skip
    """`mixed`: the second direction has other activations."""
    rng = np.random.default_rng()
    d, g, tiles = len(reverse), cell.gates, -(-hidden // 8)

    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(np.float32)

    packed = normal(d, tiles, hidden, g, 8) / np.sqrt(hidden, dtype=np.float32)
    keep = np.arange(tiles * 8).reshape(tiles, 1, 1, 8) < hidden
    operands = [normal(steps, batch, d * g * hidden), np.where(keep, packed, 0)]
    n: Any = batch
    t: Any = steps
    if dynamic:
        t, n = symbol("a0"), symbol("a1")
    views: tuple[View, ...] = ()
    if initial:
        count = 2 if cell is Cell.LSTM else 1
        operands += [normal(d, hidden, batch) for _ in range(count)]
        views = (View((n * hidden, 1, n)),) * count  # not contiguous
    if cell is Cell.GRU_RESET:
        operands.append(normal(d, hidden))
    if peephole:
        operands.append(normal(d, 3, hidden))
    storage = [F32] * len(operands)
    if lengths:
        operands.append(rng.integers(0, steps + 1, batch).astype(np.int32))
        storage.append(Storage.I32)
    spec = Recurrent(
        cell, t, n, hidden, reverse,
        tuple(_activations(cell, mixed and i == 1) for i in range(d)), coupled, peephole, lengths,
        View((n * (d * g * hidden), d * g * hidden, g * hidden, 1)), views,
        tuple(storage), F32, 2 if dynamic else 0,
    )  # fmt: skip
    size = (steps + spec.parts) * d * batch * hidden
    return spec, [o.ravel() for o in operands], [steps, batch] if dynamic else [], size


def check_recurrent(executor: str, *sizes: Any, pick: int | None = None, **options: Any) -> None:
    """`pick`: see `harness.some`."""
    spec, operands, args, size = make(*sizes, **options)
    candidates = some(executor, space(executor, spec), pick)
    assert candidates
    check(executor, spec, operands, args, size, rtol=1e-4, atol=2e-5, candidates=candidates)


@pytest.mark.parametrize("executor", executors())
@pytest.mark.parametrize("cell", list(Cell))
def test_layers(executor: str, cell: Cell) -> None:
    for pick in range(4):
        check_recurrent(executor, cell, 5, 2, 16, (False,), pick=pick)
        check_recurrent(executor, cell, 7, 3, 13, (False, True), initial=True, lengths=True,
                        dynamic=True, pick=pick)  # fmt: skip
    check_recurrent(executor, cell, 3, 1, 9, (True,), pick=0)
    check_recurrent(executor, cell, 3, 2, 5, (False, True), mixed=True, pick=1)
    check_recurrent(executor, cell, 2, 1, 300, (False,), initial=True, pick=0)


@pytest.mark.parametrize("executor", executors())
def test_lstm_variants(executor: str) -> None:
    check_recurrent(executor, Cell.LSTM, 4, 2, 12, (False,), peephole=True, pick=0)
    check_recurrent(executor, Cell.LSTM, 4, 2, 12, (True,), coupled=True, pick=1)
    check_recurrent(executor, Cell.LSTM, 4, 2, 7, (False, True), peephole=True, coupled=True,
                    initial=True, lengths=True, pick=2)  # fmt: skip


@pytest.mark.parametrize("executor", executors())
def test_a_layer_too_wide_for_workgroup_memory(executor: str) -> None:
    check_recurrent(executor, Cell.RNN, 2, 1, 4200, (False,), pick=0)


@pytest.mark.parametrize("executor", executors())
def test_no_steps_and_no_sequences(executor: str) -> None:
    check_recurrent(executor, Cell.LSTM, 0, 2, 8, (False,), initial=True, dynamic=True, pick=0)
    check_recurrent(executor, Cell.GRU, 3, 0, 8, (False,), dynamic=True, pick=0)


@settings(deadline=None, max_examples=15)
@given(
    st.sampled_from(list(Cell)), st.integers(1, 9), st.integers(1, 4), st.integers(1, 40),
    st.sampled_from([(False,), (True,), (False, True)]), st.booleans(), st.booleans(),
    st.booleans(), st.integers(0, 30),
)  # fmt: skip
def test_random_layers(
    cell: Cell, steps: int, batch: int, hidden: int, reverse: tuple[bool, ...], initial: bool,
    lengths: bool, dynamic: bool, pick: int,
) -> None:  # fmt: skip
    for executor in executors():
        check_recurrent(executor, cell, steps, batch, hidden, reverse, initial=initial,
                        lengths=lengths, dynamic=dynamic, pick=pick)  # fmt: skip
