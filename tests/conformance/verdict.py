"""What came of a case, and the comparison that decides it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.conformance.cases import Case

Verdict = tuple[str, str]
"""("passed" | "failed" | "unsupported" | "out_of_scope", reason)"""

Array = np.ndarray[Any, Any]


def compare(got: Sequence[Any], expected: Sequence[Any], case: Case) -> Verdict:
    """One data set's outputs against what the suite expects."""
    if len(got) != len(expected):
        return "failed", f"{len(got)} outputs, expected {len(expected)}"
    for i, (value, want) in enumerate(zip(got, expected, strict=True)):
        problem = difference(np.asarray(value), np.asarray(want), case)
        if problem:
            return "failed", f"output {i}: {problem}"
    return "passed", ""


def difference(got: Array, want: Array, case: Case) -> str:
    """What is wrong with `got`; "" when nothing is."""
    if got.shape != want.shape:
        return f"shape {got.shape}, expected {want.shape}"
    if got.dtype != want.dtype:
        return f"dtype {got.dtype}, expected {want.dtype}"
    if want.dtype.kind in "biu":
        wrong = int((got != want).sum())
        return f"{wrong} of {want.size} elements differ" if wrong else ""
    # The suite's 1e-7 is a unit in the last place of numbers about 1; sums have those of what is
    # summed up. In test_dft_inverse the exact result, rounded, is farther than 1e-7 from the
    # expected one, whose elements are up to 54.
    got64, want64 = got.astype(np.float64), want.astype(np.float64)
    scale = np.abs(want64[np.isfinite(want64)]).max(initial=0)
    rtol, atol = case.rtol, max(case.atol, scale * 2.0**-23)
    if want.dtype.itemsize == 2:
        # One unit in the last place: 2**-10 of float16, 2**-7 of bfloat16.
        unit = 2.0**-7 if want.dtype.name == "bfloat16" else 1e-3
        rtol, atol = max(rtol, unit), max(atol, 1e-3)
    if np.allclose(got64, want64, rtol=rtol, atol=atol, equal_nan=True):
        return ""
    with np.errstate(invalid="ignore"):
        worst = np.max(np.abs(got64 - want64), initial=0)
    return f"differs by up to {worst:.3g}"


def one_line(error: object) -> str:
    """An error's text for a table."""
    return " ".join(str(error).split())[:300] or type(error).__name__
