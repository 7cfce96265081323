"""Element types at a model's border: what a feed must fit, and what a caller gets back."""

from __future__ import annotations

import numpy as np
import pytest

from pywebgpu.codegen.spec import Storage
from pywebgpu.errors import InputError
from pywebgpu.executors.base import check_feeds, from_storage
from pywebgpu.feeds import parse_value
from pywebgpu.graph import DType
from pywebgpu.plan import Plan, Port


def port(dtype: DType, storage: Storage | None = None) -> Port:
    return Port("x", dtype, (2,), storage or dtype.storage, 0)


def fed(p: Port, values: object) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    plan = Plan("p", (), (p,), (), (), (), (), (), 0)
    return check_feeds(plan, {"x": values})[0]["x"]


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (DType.I64, 2**31),
        (DType.I64, -(2**31) - 1),
        (DType.U64, 2**40),
        (DType.U32, 2**31),
        (DType.F64, 1e39),
        (DType.F64, -1e300),
    ],
)
def test_numbers_that_a_buffer_cannot_hold_are_refused(dtype: DType, value: float) -> None:
    with pytest.raises(InputError, match="does not fit") as caught:
        fed(port(dtype), np.array([0, value], dtype.numpy))
    assert caught.value.where == "input 'x'"
    assert caught.value.expected


def test_half_precision_buffers_are_checked_too() -> None:
    with pytest.raises(InputError, match="does not fit float16"):
        fed(port(DType.F32, Storage.F16), np.array([0, 1e6], np.float32))


def test_infinity_and_nan_pass() -> None:
    given = np.array([np.inf, np.nan])
    np.testing.assert_array_equal(fed(port(DType.F64), given), given.astype(np.float32))


def test_the_largest_numbers_pass() -> None:
    given = np.array([2**31 - 1, -(2**31)])
    np.testing.assert_array_equal(fed(port(DType.I64), given), given)


def test_bfloat16_goes_in_and_comes_out() -> None:
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    given = np.array([1.5, -0.1]).astype(bfloat16)
    stored = fed(port(DType.BF16), given)
    assert stored.dtype == np.float32
    back = from_storage(port(DType.BF16), stored.view(np.uint8), {})
    assert back.dtype == bfloat16
    np.testing.assert_array_equal(back, given)


@pytest.mark.parametrize("dtype", [DType.F64, DType.F16, DType.I64, DType.U8, DType.BOOL])
def test_outputs_have_the_type_that_the_model_declares(dtype: DType) -> None:
    stored = np.array([1, 0], np.float32 if dtype.is_float else np.int32)
    back = from_storage(port(dtype), stored.view(np.uint8), {})
    assert back.dtype == dtype.numpy
    np.testing.assert_array_equal(back, np.array([1, 0], dtype.numpy))


@pytest.mark.parametrize(
    ("option", "value"),
    [("k=5", 5), ("axes=[1,2]", [1, 2]), ("scale=0.5", 0.5), ("none=[]", []), ("on=true", True)],
)
def test_values_of_the_command_line(option: str, value: object) -> None:
    name, array = parse_value(option)
    assert option.startswith(name + "=")
    assert array.tolist() == value
    assert array.dtype.kind in "iufb"


@pytest.mark.parametrize("option", ["k", "=5", "k=", "k=five", "k=[1,[2]]", "k=null", 'k="5"'])
def test_what_is_no_value(option: str) -> None:
    with pytest.raises(InputError, match="not a value"):
        parse_value(option)
