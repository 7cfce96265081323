"""Winograd's candidates of a convolution: sizes, accuracy, and what is not finite.

Tolerance of values: as in test_conv, for K below 800. How accurate F(2x2) and F(4x4) are beyond
that is measured by `test_accuracy`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pywebgpu.codegen.caps import WasmCaps
from pywebgpu.codegen.spec import Conv
from pywebgpu.codegen.wasm import conv, winograd
from pywebgpu.codegen.wasm.transforms import transforms
from tests.kernels.harness import check, executors, run_spec
from tests.kernels.test_conv import Case, make
from tests.reference import evaluate as reference

WASM = [name for name in executors() if name.startswith("wasm")]


def candidates(spec: Conv) -> list[Any]:
    """What the space has, also on a machine with many registers, and small blocks."""
    found = [knobs for _, knobs in winograd.space(spec, WasmCaps(simd_registers=32))]
    assert found
    return [
        *found,
        *(replace(knobs, block=knobs.rows, group=1, keep=keep)
          for knobs in found[:: len(found) - 1] for keep in (False, True)),
    ]  # fmt: skip


@pytest.mark.parametrize("m", [2, 4])
def test_transforms_make_a_correlation(m: int) -> None:
    t = transforms(m)
    output, weight, input_ = (np.array(matrix) for matrix in (t.output, t.weight, t.input))
    rng = np.random.default_rng()
    signal, taps = rng.standard_normal(m + 2), rng.standard_normal(3)
    got = output @ ((weight @ taps) * (input_ @ signal))
    np.testing.assert_allclose(got, np.correlate(signal, taps), atol=1e-11)


CASES = {
    "one tile": Case(1, (6, 6), 4, 8, 1, (3, 3)),
    "smaller than a tile": Case(1, (1, 2), 4, 8, 1, (3, 3), pads=(1, 1, 1, 1)),
    "primes, batch": Case(3, (11, 17), 12, 13, 1, (3, 3), pads=(1, 1, 1, 1)),
    "several blocks": Case(1, (40, 44), 16, 24, 1, (3, 3), pads=(1, 1, 1, 1)),
    "more panels than tiles": Case(1, (5, 5), 8, 100, 1, (3, 3), pads=(1, 1, 1, 1)),
    "padding on one side": Case(1, (9, 10), 4, 5, 1, (3, 3), pads=(2, 0, 0, 3)),
    "more padding than image": Case(1, (1, 1), 4, 4, 1, (3, 3), pads=(5, 4, 3, 6)),
    "no batch": Case(0, (9, 9), 4, 8, 1, (3, 3)),
    "one output channel": Case(1, (9, 9), 8, 1, 1, (3, 3)),
}


@pytest.mark.parametrize("executor", WASM)
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("case", list(CASES))
def test_every_candidate(executor: str, case: str, dynamic: bool) -> None:
    spec, operands, args, count = make(CASES[case], dynamic)
    check(
        executor, spec, operands, args, count, rtol=1e-5, atol=2e-4, candidates=candidates(spec)
    )  # fmt: skip


@pytest.mark.parametrize("executor", WASM)
@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(0, 3),
    size=st.tuples(st.integers(1, 23), st.integers(1, 23)),
    channels=st.tuples(st.integers(1, 6), st.integers(1, 40)),
    pads=st.tuples(*[st.integers(0, 3)] * 4),
    dynamic=st.booleans(),
    nchw=st.tuples(st.booleans(), st.booleans()),
    pick=st.integers(0, 30),
)
def test_any_size(
    executor: str,
    batch: int,
    size: tuple[int, int],
    channels: tuple[int, int],
    pads: tuple[int, int, int, int],
    dynamic: bool,
    nchw: tuple[bool, bool],
    pick: int,
) -> None:
    case = Case(batch, size, 4 * channels[0], channels[1], 1, (3, 3), pads=pads)
    assume(all(size[i] + pads[i] + pads[i + 2] >= 3 for i in range(2)))
    spec, operands, args, count = make(case, dynamic, *nchw)
    found = candidates(spec)
    picked = [found[pick % len(found)]]
    check(executor, spec, operands, args, count, rtol=1e-5, atol=2e-4, candidates=picked)


@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize("executor", ["wasm-simd-1", "wasm-relaxed-1"])
@pytest.mark.parametrize("cin", [64, 512])
def test_accuracy(executor: str, cin: int, m: int) -> None:
    """Largest error, relative to the largest output, in units of 2^-24 * sqrt(9 cin): direct sums
    are below 1, F(2x2) too, having fewer terms, and F(4x4) below 3."""
    spec, operands, args, count = make(Case(1, (12, 12), cin, 16, 1, (3, 3), pads=(1, 1, 1, 1)))
    want = reference(spec, operands, tuple(args), count)
    knobs = next(k for _, k in winograd.space(spec, WasmCaps()) if k.m == m)
    got = run_spec(executor, spec, knobs, operands, args, count)
    error = np.abs(got - want).max() / np.abs(want).max()
    assert error < {2: 1, 4: 3}[m] * 2.0**-24 * np.sqrt(9 * cin)


SPECIAL = [np.nan, np.inf, -np.inf]


@pytest.mark.parametrize("executor", WASM)
@pytest.mark.parametrize("where", ["input", "weight"])
def test_what_is_not_finite_goes_where_a_sum_takes_it(executor: str, where: str) -> None:
    """NaN and infinities reach the outputs whose windows hold them, and no others."""
    spec, operands, args, count = make(Case(1, (13, 14), 8, 20, 1, (3, 3), pads=(1, 1, 1, 1)))
    operand = operands[where == "weight"].astype(np.float32)
    at = np.random.default_rng().choice(operand.size, len(SPECIAL), replace=False)
    if where == "weight":
        at = at // 8 * 8 + at % 4  # not in a padding column: 20 channels fill half a last panel
    operand.reshape(-1)[at] = SPECIAL
    operands[where == "weight"] = operand
    plain = next(k for k in conv.space(spec, WasmCaps()) if isinstance(k, conv.Knobs))
    want = run_spec(executor, spec, plain, operands, args, count)
    assert not np.isfinite(want).all()
    for knobs in candidates(spec):
        got = run_spec(executor, spec, knobs, operands, args, count)
        finite = np.isfinite(want)
        np.testing.assert_array_equal(got[~finite], want[~finite], err_msg=str(knobs))
        np.testing.assert_allclose(got[finite], want[finite], rtol=1e-5, atol=2e-4)


@pytest.mark.parametrize("executor", WASM)
def test_transforms_that_overflow(executor: str) -> None:
    """The sums are finite, and most of the transformed inputs are not."""
    spec, operands, args, count = make(Case(1, (13, 14), 8, 20, 1, (3, 3), pads=(1, 1, 1, 1)))
    operands[0] = np.clip(operands[0], -3, 3) * 1e38
    operands[1] = operands[1] * np.float32(1e-3)
    largest = float(np.abs(reference(spec, operands, tuple(args), count)).max())
    check(
        executor, spec, operands, args, count, rtol=1e-5, atol=1e-5 * largest,
        candidates=candidates(spec),
    )  # fmt: skip


def test_it_is_the_default_where_it_saves_time() -> None:
    """Not for a pixel, nor for a stem's three channels."""

    def default(case: Case) -> Any:
        return conv.space(make(case)[0], WasmCaps(relaxed=True))[0]

    big = Case(1, (56, 56), 64, 64, 1, (3, 3), pads=(1, 1, 1, 1))
    assert default(big).m == 4
    for other in (
        replace(big, size=(1, 1)), replace(big, stride=(2, 2)), replace(big, cin=3),
        replace(big, dilation=(2, 2)), replace(big, groups=2),
    ):  # fmt: skip
        assert isinstance(default(other), conv.Knobs), other
