"""How outputs are compared: relative to their scale, with NaN and infinity taken seriously."""

from __future__ import annotations

import numpy as np
import pytest

from pywebgpu.compare import OutputReport, RunReport, compare_output
from pywebgpu.errors import ModelError


def report(*outputs: OutputReport) -> RunReport:
    return RunReport("m", "wasm", "cpu", {}, {}, outputs, 1, 0.0, 0.0, 0.0, 0.0, "onnxruntime")


def test_difference_is_relative_to_the_largest_reference_value() -> None:
    expected = np.array([0.001, -4.0], np.float32)
    output = compare_output("y", expected + np.array([0.002, 0.0], np.float32), expected)
    assert output.scale == pytest.approx(4.0)
    assert output.max_abs == pytest.approx(0.002, rel=1e-3)
    assert output.max_rel_to_scale == pytest.approx(0.0005, rel=1e-3)


def test_integers_and_booleans_and_empty_outputs() -> None:
    assert compare_output("y", np.array([1, 2]), np.array([1, 4])).max_abs == 2
    assert compare_output("y", np.array([True]), np.array([False])).max_abs == 1
    empty = np.zeros((0, 3), np.float32)
    assert compare_output("y", empty, empty).max_abs == 0


def test_special_values_must_agree() -> None:
    nan, inf = np.float32(np.nan), np.float32(np.inf)
    special = np.array([nan, inf, -inf, 1], np.float32)
    assert compare_output("y", special, special).max_abs == 0
    for wrong in ([0, inf, -inf, 1], [nan, -inf, -inf, 1], [nan, inf, -inf, nan]):
        assert compare_output("y", np.array(wrong, np.float32), special).max_abs is None


def test_a_wrong_shape_is_an_error_not_a_broadcast() -> None:
    with pytest.raises(ModelError, match="shape differs"):
        compare_output("y", np.zeros((1, 3)), np.zeros(3))


def test_one_incomparable_output_is_not_hidden_by_a_good_one() -> None:
    good = OutputReport("a", "float32", (1,), 1.0, 0.5, 0.5)
    bad = OutputReport("b", "float32", (1,), 1.0, None, None)
    assert report(good).to_json()["max_abs"] == 0.5
    assert report(good, bad).to_json()["max_abs"] is None
