"""Every scalar operator as wasm, awkward values included; elementary functions over their range."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pywebgpu.codegen import scalar as sc
from pywebgpu.codegen.scalar import Op
from pywebgpu.codegen.spec import Map, Storage
from pywebgpu.codegen.wasm.map import Knobs
from tests.kernels.cases import Case, every_operator
from tests.kernels.harness import check, executors, run_spec
from tests.reference import evaluate

Array = np.ndarray[Any, Any]
LANES = pytest.mark.parametrize("vector", [0, -1], ids=["lanes", "single"])
VARIANTS = pytest.mark.parametrize("executor", ["wasm-simd-1", "wasm-relaxed-1"])

_OPERATORS = [
    pytest.param(c, id=f"{o.value}-{c.spec.operands[0].value}{i}")
    for i, (o, c) in enumerate(every_operator())
]


@VARIANTS
@LANES
@pytest.mark.parametrize("case", _OPERATORS)
def test_operator(executor: str, vector: int, case: Case) -> None:
    # Powers of large numbers amplify the roundings of their logarithm: 2e-5.
    loose = any(n.op is Op.POW for n in sc.walk([case.spec.value]))  # type: ignore[union-attr]
    with np.errstate(over="ignore"):  # what is finite in float64 only, is infinite here
        want = evaluate(case.spec, case.operands, case.args, case.out_size).astype(np.float32)
    got = run_spec(executor, case.spec, Knobs(vector), case.operands, case.args, case.out_size)
    np.testing.assert_allclose(got, want, rtol=2e-5 if loose else 2e-6, atol=1e-37)


def _around(*centres: float) -> Array:
    """All magnitudes of f32, both signs, and what lies close to some points."""
    rng = np.random.default_rng()
    powers = np.exp2(rng.uniform(-126, 127.99, 20000))
    near = [c + rng.normal(size=2000) * 10.0 ** rng.uniform(-6, 0, 2000) for c in centres]
    return np.concatenate([powers, -powers, *near]).astype(np.float32)


def _within(low: float, high: float, n: int = 40000) -> Array:
    return np.random.default_rng().uniform(low, high, n).astype(np.float32)


_erf = np.vectorize(math.erf)
_FUNCTIONS: list[tuple[Op, Callable[[Array], Array], Array, float]] = [
    (Op.EXP, np.exp, np.concatenate([_within(-86, 88.7), _around(0)]), 2e-7),
    (Op.LOG, np.log, np.concatenate([abs(_around(1.0, 2.0)), _within(0.4, 2.5)]), 3e-7),
    (Op.TANH, np.tanh, np.concatenate([_within(-10, 10), _around(0)]), 5e-7),
    (Op.ERF, _erf, np.concatenate([_within(-5, 5), _around(0)]), 5e-7),
    (Op.ATAN, np.arctan, np.concatenate([_within(-5, 5), _around(0, 1)]), 3e-7),
    (Op.ASIN, np.arcsin, np.concatenate([_within(-1, 1), _within(0.99, 1)]), 4e-7),
    (Op.ACOS, np.arccos, np.concatenate([_within(-1, 0.99), _within(0.99, 1)]), 4e-7),
    (Op.SINH, np.sinh, np.concatenate([_within(-80, 80), _around(0, 1)]), 5e-7),
    (Op.COSH, np.cosh, np.concatenate([_within(-80, 80), _around(0)]), 6e-7),
    (Op.ASINH, np.arcsinh, _around(0, 1, -1), 5e-7),
    (Op.ACOSH, np.arccosh, abs(_around(0)) + 1, 5e-7),
    (Op.ATANH, np.arctanh, np.concatenate([_within(-1, 1), _within(-0.1, 0.1)]), 6e-7),
    (Op.RSQRT, lambda x: 1 / np.sqrt(x), abs(_around(1)), 2e-7),
]


@VARIANTS
@pytest.mark.parametrize(
    ("op", "exact", "x", "bound"), [pytest.param(*f, id=f[0].value) for f in _FUNCTIONS]
)
def test_relative_error(
    executor: str, op: Op, exact: Callable[[Array], Array], x: Array, bound: float
) -> None:
    with np.errstate(all="ignore"):
        want = exact(x.astype(np.float64))
    # What may be flushed to zero is not judged, nor what f32 cannot hold.
    kept = (np.abs(want) > 1.7e-38) & (np.abs(want) < 3.4e38)
    x, want = x[kept], want[kept]
    got = _apply(executor, op, x)
    error = np.abs(got / want - 1)
    worst = int(error.argmax())
    assert error[worst] <= bound, f"{op.value}({x[worst]!r}): {error[worst]:.3g}"


@VARIANTS
@pytest.mark.parametrize(("op", "exact"), [(Op.SIN, np.sin), (Op.COS, np.cos)])
def test_absolute_error(executor: str, op: Op, exact: Callable[[Array], Array]) -> None:
    x = np.concatenate([_within(-8000, 8000), _within(-10, 10), _around(0)[:0]])
    got = _apply(executor, op, x)
    np.testing.assert_allclose(got, exact(x.astype(np.float64)), rtol=0, atol=2e-7)


def _apply(executor: str, op: Op, x: Array) -> Array:
    f32, at = Storage.F32, sc.axis(0)
    spec = Map((len(x),), sc.unary(op, sc.load(0, at)), at, (f32,), f32)
    return run_spec(executor, spec, Knobs(0), [x], (), len(x))


@VARIANTS
def test_power(executor: str) -> None:
    """Bases and exponents as they occur: the error grows with y, see codegen/wasm/math.py."""
    f32, at = Storage.F32, sc.axis(0)
    spec = Map((40000,), sc.binary(Op.POW, sc.load(0, at), sc.load(1, at)), at, (f32, f32), f32)
    x, y = _within(1e-3, 30), _within(-6, 6)
    got = run_spec(executor, spec, Knobs(0), [x, y], (), 40000)
    np.testing.assert_allclose(got, x.astype(np.float64) ** y, rtol=1e-6)


@VARIANTS
@pytest.mark.parametrize("exponent", [2.0, 3.0, -1.0, 0.5, -0.5, 1.0, 0.0, 7.0, 2.5, math.inf])
def test_constant_power(executor: str, exponent: float) -> None:
    f32, at = Storage.F32, sc.axis(0)
    spec = Map((1000,), sc.binary(Op.POW, sc.load(0, at), exponent), at, (f32,), f32)
    check(executor, spec, [_within(0.1, 20, 1000)], out_size=1000, rtol=3e-6)


@VARIANTS
@pytest.mark.parametrize("divisor", [1, 2, 3, 5, 7, 12, 64, 100, 641, 65537, 2**30, 2**31 - 1])
def test_division_by_a_constant(executor: str, divisor: int) -> None:
    near = [k * divisor + d for k in (0, 1, 2, 99, 2**31 // divisor) for d in (-1, 0, 1)]
    x = np.concatenate([np.random.default_rng().integers(0, 2**31, 3000), near, [2**31 - 1]])
    x = x[(x >= 0) & (x < 2**31)]
    at = sc.axis(0)
    n = sc.load(0, at, sc.Type.I32)
    for op in (Op.UDIV, Op.UMOD):
        spec = Map((len(x),), sc.binary(op, n, divisor), at, (Storage.I32,), Storage.I32)
        check(executor, spec, [x], out_size=len(x))


@VARIANTS
@pytest.mark.parametrize("divisor", [2.0, -0.25, 3.0, 1.0, math.inf, 0.0])
def test_float_division_by_a_constant(executor: str, divisor: float) -> None:
    at = sc.axis(0)
    spec = Map((99,), sc.load(0, at) / divisor, at, (Storage.F32,), Storage.F32)
    with np.errstate(all="ignore"):
        check(executor, spec, [_within(-9, 9, 99)], out_size=99)


def test_every_wasm_executor_is_registered() -> None:
    assert len(executors("wasm")) == 4
