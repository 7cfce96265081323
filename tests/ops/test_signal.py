"""Fourier transforms and windows against NumPy and ONNX; bits against NumPy's views."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pywebgpu.compile import compile_model
from pywebgpu.errors import UnsupportedError
from tests.ops.agree import agree, by_definition, feeds_of, model_of

Array = np.ndarray[Any, Any]
Inputs = dict[str, Array | None]
SEEDS = st.integers(0, 2**32 - 1)
few = settings(max_examples=6, deadline=None)


def _floats(rng: np.random.Generator, *shape: int) -> Array:
    return rng.normal(size=shape).astype(np.float32)


def _pairs(x: Array) -> Array:
    return np.stack([x.real, x.imag], axis=-1).astype(np.float32)


@few
@given(SEEDS, st.sampled_from([0, 1, 2]), st.booleans(), st.integers(1, 2), st.booleans())
def test_forward(seed: int, axis: int, onesided: bool, parts: int, longer: bool) -> None:
    """Longer transforms fill up with zeros, shorter ones drop the end."""
    rng = np.random.default_rng(seed)
    shape = [int(i) for i in rng.integers(2, 7, 3)]
    x = _floats(rng, *shape, parts)
    onesided = onesided and parts == 1
    length = shape[axis] + (3 if longer else -1)
    inputs: Inputs = {"x": x, "length": np.array(length), "axis": np.array(axis)}
    model = model_of(
        "DFT", inputs, [("y", np.float32)], ["length", "axis"], onesided=int(onesided)
    )  # fmt: skip
    signal = x[..., 0] + (1j * x[..., 1] if parts == 2 else 0)
    transform = np.fft.rfft if onesided else np.fft.fft
    agree(model, {"x": x}, [_pairs(transform(signal, length, axis))])


@few
@given(SEEDS, st.integers(2, 9))
def test_there_and_back(seed: int, length: int) -> None:
    rng = np.random.default_rng(seed)
    x = _floats(rng, 2, length, 2)
    inputs: Inputs = {"x": x, "length": None, "axis": np.array(1)}
    model = model_of("DFT", inputs, [("y", np.float32)], ["axis"], inverse=1)
    agree(model, {"x": x}, [_pairs(np.fft.ifft(x[..., 0] + 1j * x[..., 1], axis=1))])


@pytest.mark.parametrize("length", [7, 8])
@pytest.mark.parametrize("given_bins", [3, 4, 5, 6])
def test_half_the_bins_give_a_real_signal(length: int, given_bins: int) -> None:
    rng = np.random.default_rng(length)
    x = _floats(rng, 2, given_bins, 2)
    inputs: Inputs = {"x": x, "length": np.array(length), "axis": np.array(1)}
    model = model_of(
        "DFT", inputs, [("y", np.float32)], ["length", "axis"], inverse=1, onesided=1
    )  # fmt: skip
    want = np.fft.irfft(x[..., 0] + 1j * x[..., 1], length, axis=1)
    agree(model, {"x": x}, [want[..., None].astype(np.float32)])


@few
@given(SEEDS, st.booleans(), st.sampled_from(["none", "constant", "computed"]), st.booleans())
def test_stft(seed: int, onesided: bool, window: str, batched: bool) -> None:
    rng = np.random.default_rng(seed)
    x = _floats(rng, 2 if batched else 1, 40, 1)
    length, step = int(rng.integers(3, 12)), int(rng.integers(1, 6))
    inputs: Inputs = {
        "x": x,
        "step": np.array(step),
        "window": None if window == "none" else _floats(rng, length),
        "length": np.array(length),
    }
    fixed = ["step", "length"] + (["window"] if window == "constant" else [])
    model = model_of(
        "STFT", inputs, [("y", np.float32)], fixed, {"x": ("batch", 40, 1)}, onesided=int(onesided)
    )
    feeds = feeds_of(model, inputs)
    weight = np.ones(length) if inputs["window"] is None else inputs["window"]
    starts = range(0, 40 - length + 1, step)
    frames = np.stack([x[:, s : s + length, 0] * weight for s in starts], axis=1)
    transform = np.fft.rfft if onesided else np.fft.fft
    agree(model, feeds, [_pairs(transform(frames, axis=-1))], 1e-3, 1e-4)


@pytest.mark.parametrize("op", ["HannWindow", "HammingWindow", "BlackmanWindow"])
@pytest.mark.parametrize("periodic", [0, 1])
def test_windows(op: str, periodic: int) -> None:
    inputs: Inputs = {"size": np.array(11)}
    model = model_of(op, inputs, [("y", np.float32)], ["size"], periodic=periodic)
    agree(model, {}, by_definition(model, {}))


NUMBERS = np.array([0, 1, -1, 255, -128, 2**31 - 1, -(2**31), 0x3F800000], np.int64)


@pytest.mark.parametrize(
    ("source", "to"),
    [
        (np.int32, np.float32), (np.float32, np.int32), (np.int8, np.uint8), (np.uint8, np.int8),
        (np.uint16, np.int16), (np.int16, np.uint16), (np.int32, np.int32),
    ],
)  # fmt: skip
def test_bit_cast(source: Any, to: Any) -> None:
    x = np.array([1.5, -0.0, 3e-39, np.inf], np.float32)
    if source is not np.float32:
        x = NUMBERS.astype(source)
    from onnx import helper

    model = model_of(
        "BitCast", {"x": x}, [("y", to)], opset=26, to=helper.np_dtype_to_tensor_dtype(np.dtype(to))
    )
    agree(model, {"x": x}, [x.view(to)], 0, 0)


def test_bits_of_wide_types_are_refused() -> None:
    x = np.zeros(2, np.float64)
    model = model_of("BitCast", {"x": x}, [("y", np.int64)], opset=26, to=7)
    with pytest.raises(UnsupportedError, match="float64 as int64"):
        compile_model(model.SerializeToString())
