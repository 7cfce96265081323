"""Quantised operators on fresh shapes, to the last bit, against ONNX Runtime and ONNX."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops.agree import agree, by_definition, by_onnxruntime, feeds_of, model_of

Array = np.ndarray[Any, Any]
SEEDS = st.integers(0, 2**32 - 1)
_INTEGERS = [
    np.uint8, np.int8, np.uint16, np.int16,
    ml_dtypes.int4, ml_dtypes.uint4, ml_dtypes.int2, ml_dtypes.uint2,
]  # fmt: skip
few = settings(max_examples=4, deadline=None)


def _some(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Array:
    info = ml_dtypes.iinfo(dtype)
    return rng.integers(info.min, info.max + 1, shape).astype(dtype)


@few
@given(SEEDS, st.sampled_from(_INTEGERS), st.sampled_from("tab"))
def test_there_and_back(seed: int, dtype: Any, how: str) -> None:
    """Per tensor, per axis and in blocks; powers of two, so that ties are met exactly."""
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(1, 4)), 6, int(rng.integers(1, 5)))
    x = (rng.integers(-900, 900, shape) / 4).astype(np.float32)
    sizes = {"t": (), "a": (6,), "b": (shape[0], 3, shape[2])}[how]
    scale = (2.0 ** rng.integers(-2, 3, sizes)).astype(np.float32)
    zero = _some(rng, sizes, dtype)
    attrs: dict[str, Any] = {"t": {}, "a": {"axis": 1}, "b": {"axis": -2, "block_size": 2}}[how]
    inputs: dict[str, Array | None] = {"x": x, "scale": scale, "zero": zero}
    model = model_of("QuantizeLinear", inputs, [("y", dtype)], ["scale", "zero"], **attrs)
    feeds = feeds_of(model, inputs)
    found = by_definition(model, feeds)
    agree(model, feeds, found)
    back: dict[str, Array | None] = {"x": found[0], "scale": scale, "zero": zero}
    model = model_of("DequantizeLinear", back, [("y", np.float32)], **attrs)
    feeds = feeds_of(model, back)
    agree(model, feeds, by_definition(model, feeds))


@few
@given(SEEDS)
def test_dynamic_quantize(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.integers(-64, 65, (3, int(rng.integers(1, 9)))).astype(np.float32)
    x.flat[0], x.flat[-1] = -127.5, 127.5  # a scale of exactly 1
    inputs: dict[str, Array | None] = {"x": x}
    outputs = [("y", np.uint8), ("scale", np.float32), ("zero", np.uint8)]
    model = model_of("DynamicQuantizeLinear", inputs, outputs)
    feeds = feeds_of(model, inputs)
    agree(model, feeds, by_definition(model, feeds))


@few
@given(SEEDS, st.booleans(), st.sampled_from([5, 300, 1500]))
def test_matmul_integer(seed: int, constant: bool, depth: int) -> None:
    """Depths within one exact f32 product, within a few, and beyond."""
    rng = np.random.default_rng(seed)
    m, n = (int(i) for i in rng.integers(1, 9, 2))
    inputs: dict[str, Array | None] = {
        "a": _some(rng, (2, m, depth), np.uint8),
        "b": _some(rng, (depth, n), np.int8),
        "a_zero": _some(rng, (), np.uint8),
        "b_zero": _some(rng, (n,), np.int8),
    }
    fixed = ["b", "b_zero"] if constant else []
    model = model_of("MatMulInteger", inputs, [("y", np.int32)], fixed)
    feeds = feeds_of(model, inputs)
    agree(model, feeds, by_onnxruntime(model, feeds))


def test_extremes_stay_exact() -> None:
    """Every product is the largest there is."""
    inputs = {
        "a": np.full((3, 2000), 255, np.uint8),
        "b": np.full((2000, 9), 255, np.uint8),
    }
    model = model_of("MatMulInteger", dict(inputs), [("y", np.int32)], ["b"], {"a": ("rows", 2000)})
    agree(model, {"a": inputs["a"]}, [np.full((3, 9), 2000 * 255 * 255, np.int32)])


@few
@given(SEEDS, st.booleans())
def test_q_linear_matmul(seed: int, constant: bool) -> None:
    rng = np.random.default_rng(seed)
    m, k, n = (int(i) for i in rng.integers(1, 30, 3))
    inputs: dict[str, Array | None] = {
        "a": _some(rng, (m, k), np.uint8),
        "a_scale": np.array(0.5, np.float32),
        "a_zero": _some(rng, (), np.uint8),
        "b": _some(rng, (k, n), np.uint8),
        "b_scale": np.array(0.25, np.float32),
        "b_zero": _some(rng, (), np.uint8),
        "y_scale": np.array(64.0, np.float32),
        "y_zero": _some(rng, (), np.uint8),
    }
    fixed = [name for name in inputs if name != "a"] if constant else []
    model = model_of("QLinearMatMul", inputs, [("y", np.uint8)], fixed)
    feeds = feeds_of(model, inputs)
    agree(model, feeds, by_onnxruntime(model, feeds))


@few
@given(SEEDS, st.sampled_from([1, 2, 4]), st.booleans(), st.sampled_from([1, 3]))
def test_q_linear_conv(seed: int, groups: int, constant: bool, size: int) -> None:
    rng = np.random.default_rng(seed)
    x = _some(rng, (2, 4, 5, 6), np.uint8)
    w = _some(rng, (8, 4 // groups, size, size), np.int8)
    inputs: dict[str, Array | None] = {
        "x": x,
        "x_scale": np.array(0.5, np.float32),
        "x_zero": _some(rng, (), np.uint8),
        "w": w,
        "w_scale": (2.0 ** rng.integers(-3, 1, 8)).astype(np.float32),
        "w_zero": np.zeros(8, np.int8),
        "y_scale": np.array(32.0, np.float32),
        "y_zero": _some(rng, (), np.uint8),
        "bias": rng.integers(-9000, 9000, 8).astype(np.int32),
    }
    fixed = [name for name in inputs if name != "x"] if constant else []
    attrs: dict[str, Any] = {"group": groups, "pads": [size // 2] * 4, "strides": [1, 2]}
    model = model_of("QLinearConv", inputs, [("y", np.uint8)], fixed, **attrs)
    feeds = feeds_of(model, inputs)
    agree(model, feeds, by_onnxruntime(model, feeds))


@pytest.mark.parametrize("channels", [3, 2000])
def test_conv_integer(channels: int) -> None:
    """The second one cannot be summed in f32."""
    rng = np.random.default_rng(channels)
    inputs: dict[str, Array | None] = {
        "x": _some(rng, (1, channels, 3, 4), np.uint8),
        "w": _some(rng, (2, channels, 2, 2), np.uint8),
        "x_zero": np.array(7, np.uint8),
    }
    attrs: dict[str, Any] = {"pads": [1, 0, 0, 1]}
    model = model_of("ConvInteger", inputs, [("y", np.int32)], ["w", "x_zero"], **attrs)
    feeds = feeds_of(model, inputs)
    agree(model, feeds, by_onnxruntime(model, feeds))
