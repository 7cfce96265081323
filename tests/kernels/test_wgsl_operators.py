"""Every scalar operator as WGSL, awkward values included, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from pywebgpu.codegen.scalar import Op
from tests.kernels import harness
from tests.kernels.cases import Case, every_operator
from tests.reference import evaluate

# GPUs compute these to fewer bits than libm; see the WGSL specification's table of accuracies.
_LOOSE = {Op.POW: 2e-5, Op.EXP: 4e-5, Op.SINH: 4e-5, Op.COSH: 4e-5, Op.TAN: 2e-5}


@pytest.mark.wgpu
@pytest.mark.parametrize(
    ("op", "case"), [pytest.param(o, c, id=f"{o.value}-{c.spec.operands[0].value}{i}")
                     for i, (o, c) in enumerate(every_operator())]
)  # fmt: skip
def test_operator(op: Op, case: Case) -> None:
    with np.errstate(over="ignore"):  # what is finite in float64 only, is infinite here
        want = evaluate(case.spec, case.operands, case.args, case.out_size).astype(np.float32)
    knobs = harness.space("wgpu", case.spec)[0]
    got = harness.run_spec("wgpu", case.spec, knobs, case.operands, case.args, case.out_size)
    np.testing.assert_allclose(got, want, rtol=_LOOSE.get(op, 3e-6), atol=2e-6)
