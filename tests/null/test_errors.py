"""The error classes: one readable message, the same facts as JSON, and safe to pass on."""

from __future__ import annotations

import pickle

import pytest

from pywebgpu import errors
from pywebgpu.errors import InputError, PywebgpuError


def test_message_says_what_where_got_expected_remedy() -> None:
    error = InputError(
        "wrong rank", where="input 'x'", got=5, expected="3 or 4", remedy="Reshape it."
    )
    assert str(error) == "input 'x': wrong rank (got 5, expected 3 or 4). Reshape it."
    assert error.to_json() == {
        "type": "InputError",
        "what": "wrong rank",
        "where": "input 'x'",
        "got": "5",
        "expected": "3 or 4",
        "remedy": "Reshape it.",
    }


def test_parts_that_say_nothing_are_left_out() -> None:
    assert str(PywebgpuError("is broken")) == "is broken"
    assert str(PywebgpuError("is broken", got=0)) == "is broken (got 0)"
    assert str(PywebgpuError("is broken", where="a", remedy="Fix it.")) == "a: is broken. Fix it."


def test_survives_a_trip_to_another_process() -> None:
    error = InputError("wrong", where="x", got=1, expected=2, remedy="Fix it.")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is InputError
    assert str(copy) == str(error)


@pytest.mark.parametrize("name", [n for n in dir(errors) if n.endswith("Error")])
def test_all_share_one_base_and_one_exit_code(name: str) -> None:
    error_class = getattr(errors, name)
    assert issubclass(error_class, PywebgpuError)
    assert error_class.exit_code == 2
