"""A spec that went through JSON is the spec: equal, with shared nodes still shared."""

from __future__ import annotations

import json

import pytest

from pywebgpu.codegen import scalar as sc
from pywebgpu.codegen.codec import spec_from_json, spec_to_json
from pywebgpu.codegen.dims import dim_max, symbol
from pywebgpu.codegen.scalar import Op
from pywebgpu.codegen.spec import (
    Attention,
    Beside,
    Conv,
    KernelSpec,
    Map,
    Matmul,
    Reduce,
    ReduceOp,
    Row,
    RowOp,
    Storage,
    View,
)

F32 = Storage.F32
A0, A1 = symbol("a0"), symbol("a1")
INDEX = sc.linear([sc.axis(0), sc.axis(1)], (A0, 7))
X = sc.load(0, INDEX)
GELU = X * 0.5 * (sc.unary(Op.ERF, X * 0.70710678) + 1.0)

SPECS: list[KernelSpec] = [
    Map((A0, 7), sc.select(sc.unary(Op.ISNAN, X), float("-inf"), GELU), INDEX, (F32,), F32, 1),
    Map((A0, 7), sc.const(float("nan")) + X, INDEX, (F32,), Storage.F16, 1),
    Map((A0, 7), X * 2.0, INDEX, (F32,), F32, 1, Beside(GELU, Storage.F16)),
    Reduce((A0,), (7,), ReduceOp.ARGMAX, X, sc.acc(sc.Type.I32), sc.axis(0), (F32,), F32, 1),
    Row((A0,), (7,), RowOp.LAYER, 1e-5, X, sc.acc(), INDEX, (F32,), F32, 1),
    Matmul((), A0 * A1, 7, 3, View((3, 1)), None, View((7, 1)), GELU, (F32, F32), F32, 2),
    Conv(
        A0, (8, 8), (4, dim_max(A1, 1)), 3, 8, 1, (3, 3), (2, 2), (1, 1), (1, 0),
        View((192, 8, 1, 64)), View((128, 32, 8, 1)), sc.acc(), (F32, F32), F32, 2,
    ),
    Attention(
        1, 12, 4, A0, A1, 32, 32, 0.125, True, False,
        View((0, 32, 384, 1)), View((0, 32, 384, 1)), View((0, 32, 384, 1)), View((0, 32, 384, 1)),
        None, (F32,) * 3, F32, 2,
    ),
]  # fmt: skip


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: type(s).__name__)
def test_round_trip(spec: KernelSpec) -> None:
    text = json.dumps(spec_to_json(spec), sort_keys=True)
    again = spec_from_json(json.loads(text))
    assert again == spec
    assert json.dumps(spec_to_json(again), sort_keys=True) == text


def test_minus_zero_and_nan_are_kept_apart() -> None:
    assert sc.const(0.0) is not sc.const(-0.0)
    assert sc.const(float("nan")) is sc.const(float("nan"))
    assert sc.const(1) is not sc.const(1.0)
    assert sc.const(1) is not sc.const(True)
