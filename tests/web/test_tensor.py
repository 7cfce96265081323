"""Elements on their way into buffers and back: types, ranges, half precision, size expressions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from playwright.sync_api import Page

from pywebgpu.codegen import dims
from tests.web.conftest import run

pytestmark = pytest.mark.browser

OpenPage = Callable[..., Page]


def test_every_half_float_round_trips(open_page: OpenPage) -> None:
    """fromHalf against NumPy on all 65,536, toHalf as its inverse (NaNs stay NaNs)."""
    page = open_page()
    values, back = run(
        page,
        """const { fromHalf, toHalf } = await import("./web/tensor.js");
        const values = Array.from({ length: 65536 }, (_, i) => fromHalf(i));
        return [values.map((v) => (Number.isFinite(v) ? v : String(v))), values.map(toHalf)];""",
    )
    bits = np.arange(65536, dtype=np.uint16)
    reference = bits.view(np.float16).astype(np.float64)
    ours = np.array(
        [float(v.replace("Infinity", "inf")) if isinstance(v, str) else v for v in values]
    )
    np.testing.assert_array_equal(ours, reference)
    number = ~np.isnan(reference)
    np.testing.assert_array_equal(np.array(back, np.uint16)[number], bits[number])
    assert np.isnan(np.array(back, np.uint16).view(np.float16)[~number]).all()


def test_rounding_to_half(open_page: OpenPage) -> None:
    rng = np.random.default_rng(5)
    exponents = rng.integers(-30, 18, 20000)
    x = (rng.standard_normal(20000) * 2.0**exponents).astype(np.float32)
    halves = (rng.integers(0, 0x7C00, 4000).astype(np.uint16)).view(np.float16).astype(np.float64)
    ties = ((halves[:-1] + halves[1:]) / 2).astype(np.float32)
    x = np.concatenate([x, ties, [0, -0.0, 65504, 65519.99, 65520, 1e9]]).astype(np.float32)
    back = run(
        open_page(),
        """const { toHalf } = await import("./web/tensor.js"); return arg.map(toHalf);""",
        [float(v) for v in x],
    )
    with np.errstate(over="ignore"):
        reference = x.astype(np.float16).view(np.uint16)
    # Playwright's JSON has no negative zero.
    differs = (np.array(back, np.uint16) != reference) & (x != 0)
    assert not differs.any(), x[differs][:5]


CONVERSIONS = [
    # type, storage, data as JavaScript, packed elements, unpacked elements
    ("float32", "f32", "[1.5, -2]", [1.5, -2], [1.5, -2]),
    ("float64", "f32", "[1.5, -2]", [1.5, -2], [1.5, -2]),
    ("float32", "f16", "[1.5, -2]", [0x3E00, 0xC000], [1.5, -2]),
    ("float16", "f32", "new Uint16Array([0x3E00])", [1.5], None),
    ("float16", "f16", "new Uint16Array([0x3E00])", [0x3E00], None),
    ("int64", "i32", "[3n, -(2n ** 31n)]", [3, -(2**31)], [3, -(2**31)]),
    ("int64", "i32", "new Int32Array([3, -4])", [3, -4], [3, -4]),
    ("int32", "i32", "[3, -4]", [3, -4], [3, -4]),
    ("uint8", "i32", "[0, 255]", [0, 255], [0, 255]),
    ("int8", "i32", "[-128, 127]", [-128, 127], [-128, 127]),
    ("int4", "i32", "[-8, 7]", [-8, 7], [-8, 7]),
    ("uint2", "i32", "new Uint8Array([0, 3])", [0, 3], [0, 3]),
    ("float8e5m2", "f32", "[57344, -0.5]", [57344, -0.5], [57344, -0.5]),
    ("bool", "i32", "[true, false]", [1, 0], [1, 0]),
    ("bool", "i32", "new Uint8Array([7, 0])", [1, 0], [1, 0]),
    ("uint32", "i32", "[2147483647]", [2147483647], [2147483647]),
]


@pytest.mark.parametrize(("type_", "storage", "data", "packed", "unpacked"), CONVERSIONS)
def test_conversions(
    open_page: OpenPage,
    type_: str,
    storage: str,
    data: str,
    packed: list[float],
    unpacked: list[float] | None,
) -> None:
    got, kind, back = run(
        open_page(),
        f"""const {{ pack, unpack }} = await import("./web/tensor.js");
        const [type, storage] = arg;
        const tensor = new t.Tensor(type, {data});
        const packed = pack(tensor, {{ name: "x", storage }});
        const back = unpack(packed.slice().buffer, storage, type, tensor.dims);
        return [[...packed], packed.constructor.name, [...back.data].map(Number)];""",
        [type_, storage],
    )
    assert got == packed
    assert kind == {"f32": "Float32Array", "i32": "Int32Array", "f16": "Uint16Array"}[storage]
    if unpacked is not None:
        assert back == unpacked


@pytest.mark.parametrize(
    ("type_", "storage", "number", "fits"),
    [
        ("float64", "f32", "1e39", False),
        ("float64", "f32", "3e38", True),
        ("float64", "f32", "-Infinity", True),
        ("float32", "f16", "70000", False),
        ("float32", "f16", "-65504", True),
        ("float32", "f16", "Infinity", True),
        ("int64", "i32", "2n ** 31n", False),
        ("int4", "i32", "8", False),
        ("uint4", "i32", "15", True),
        ("int2", "i32", "-3", False),
        ("uint2", "i32", "4", False),
    ],
)
def test_numbers_beyond_what_is_stored_are_refused(
    open_page: OpenPage, type_: str, storage: str, number: str, fits: bool
) -> None:
    """Never an infinity, nor other digits, in place of a number that was given."""
    error = run(
        open_page(),
        f"""const {{ pack }} = await import("./web/tensor.js");
        const [type, storage] = arg;
        const tensor = new t.Tensor(type, [{number}]);
        return await t.facts((async () => pack(tensor, {{ name: "x", storage }}))());""",
        [type_, storage],
    )
    if fits:
        assert error is None
    else:
        assert error["name"] == "InputError"
        assert "does not fit" in error["what"]
        assert error["where"] == 'input "x", element 0'


def test_a_port_may_ask_for_less_than_32_bits(open_page: OpenPage) -> None:
    """Also of arrays that are taken as they are; see `limits` in the manifest."""
    packed, *errors = run(
        open_page(),
        """const { pack } = await import("./web/tensor.js");
        const of = (type, value, limits) =>
          pack(new t.Tensor(type, [value]), { name: "x", storage: "i32", limits });
        const square = [-32768, 32767];
        return [
          [...of("int64", 32767n, square), ...of("uint32", 4294967295, [0, 4294967295])],
          await t.facts((async () => of("int64", 32768n, square))()),
          await t.facts((async () => of("int32", -32769, square))()),
        ];""",
    )
    assert packed == [32767, -1]
    for error in errors:
        assert "32 bits" in error["what"]
        assert error["expected"] == "-32768 to 32767"


_SYMBOLS = ("batch", "sequence", "constructor")  # the last is a name that objects have too


def _dims() -> st.SearchStrategy[dims.Dim]:
    leaf = st.one_of(st.integers(-9, 9), st.sampled_from(_SYMBOLS).map(dims.symbol))
    return st.recursive(
        leaf,
        lambda inner: st.one_of(
            st.tuples(inner, inner).map(lambda p: p[0] + p[1]),
            st.tuples(inner, inner).map(lambda p: p[0] * p[1]),
            st.tuples(inner, st.integers(1, 9)).map(lambda p: dims.floordiv(*p)),
            st.tuples(inner, st.integers(1, 9)).map(lambda p: dims.mod(*p)),
            st.tuples(inner, inner).map(lambda p: dims.dim_max(*p)),
            st.tuples(inner, inner).map(lambda p: dims.dim_min(*p)),
        ),
        max_leaves=6,
    )


def test_sizes_evaluate_as_in_python(open_page: OpenPage) -> None:
    cases: list[tuple[dims.DimJson, int]] = []
    values = {"batch": 3, "sequence": 130, "constructor": 0}

    @settings(max_examples=300, database=None, deadline=None)
    @given(_dims())
    def collect(dim: dims.Dim) -> None:
        cases.append((dims.dim_json(dim), dims.evaluate(dim, values)))

    collect()
    got = run(
        open_page(),
        """const { evaluate } = await import("./web/dims.js");
        const sizes = new Map(Object.entries(arg[1]));
        return arg[0].map((dim) => evaluate(dim, sizes));""",
        [[case for case, _ in cases], values],
    )
    assert got == [value for _, value in cases]
