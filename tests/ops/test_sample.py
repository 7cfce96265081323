"""Operators that sample images, on fresh shapes, against ONNX Runtime, ONNX or PyTorch's rules."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pywebgpu.compile import compile_model
from pywebgpu.errors import UnsupportedError
from tests.ops.agree import agree, by_definition, by_onnxruntime, feeds_of, model_of

Array = np.ndarray[Any, Any]
Inputs = dict[str, Array | None]
SEEDS = st.integers(0, 2**32 - 1)
few = settings(max_examples=4, deadline=None)


def _floats(rng: np.random.Generator, *shape: int) -> Array:
    return rng.normal(size=shape).astype(np.float32)


@few
@given(SEEDS, st.sampled_from([1, 2, 3]), st.sampled_from(["half_pixel", "output_half_pixel"]))
def test_roi_align(seed: int, ratio: int, coordinates: str) -> None:
    """Regions reach beyond the image, and one has no extent."""
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.uniform(-4, 20, (5, 2, 2)), axis=1).reshape(5, 4)
    corners[0, 2:] = corners[0, :2]
    inputs: Inputs = {
        "x": _floats(rng, 2, 3, 7, 9),
        "rois": corners.astype(np.float32),
        "batches": rng.integers(0, 2, 5),
    }
    attrs: dict[str, Any] = {
        "coordinate_transformation_mode": coordinates,
        "output_height": int(rng.integers(1, 5)),
        "output_width": 3,
        "sampling_ratio": ratio,
        "spatial_scale": 0.5,
    }
    model = model_of("RoiAlign", inputs, [("y", np.float32)], **attrs)
    feeds = feeds_of(model, inputs)
    agree(model, feeds, by_onnxruntime(model, feeds))


def test_roi_align_of_opset_10_has_no_offset() -> None:
    rng = np.random.default_rng(1)
    inputs: Inputs = {
        "x": _floats(rng, 1, 2, 6, 6),
        "rois": np.array([[0, 0, 4, 5]], np.float32),
        "batches": np.zeros(1, np.int64),
    }
    attrs: dict[str, Any] = {"output_height": 2, "output_width": 2, "sampling_ratio": 2}
    model = model_of("RoiAlign", inputs, [("y", np.float32)], opset=10, **attrs)
    feeds = feeds_of(model, inputs)
    agree(model, feeds, by_onnxruntime(model, feeds))


def test_an_adaptive_grid_is_refused() -> None:
    inputs: Inputs = {
        "x": np.zeros((1, 1, 4, 4), np.float32),
        "rois": np.zeros((1, 4), np.float32),
        "batches": np.zeros(1, np.int64),
    }
    model = model_of("RoiAlign", inputs, [("y", np.float32)])
    with pytest.raises(UnsupportedError, match="sampling_ratio 0"):
        compile_model(model.SerializeToString())


@few
@given(SEEDS, st.sampled_from([(1, 1), (2, 1), (1, 2), (2, 2)]), st.booleans(), st.booleans())
def test_deform_conv(seed: int, groups: tuple[int, int], masked: bool, constant: bool) -> None:
    rng = np.random.default_rng(seed)
    group, offset_group = groups
    x, w = _floats(rng, 2, 4, 5, 6), _floats(rng, 2, 4 // group, 2, 3)
    attrs: dict[str, Any] = {
        "group": group,
        "offset_group": offset_group,
        "pads": [1, 0, 0, 1],
        "strides": [2, 1],
        "kernel_shape": [2, 3],
    }
    height, width = (5 + 1 - 2) // 2 + 1, 6 + 1 - 3 + 1
    inputs: Inputs = {
        "x": x,
        "w": w,
        "offset": _floats(rng, 2, offset_group * 12, height, width),
        "bias": _floats(rng, 2),
        "mask": _floats(rng, 2, offset_group * 6, height, width) if masked else None,
    }
    model = model_of("DeformConv", inputs, [("y", np.float32)], ["w"] if constant else [], **attrs)
    feeds = feeds_of(model, inputs)
    agree(model, feeds, by_definition(model, feeds), 1e-3, 1e-4)


@few
@given(SEEDS)
def test_col2im(seed: int) -> None:
    rng = np.random.default_rng(seed)
    block = rng.integers(1, 4, 2)
    strides, dilations = rng.integers(1, 3, 2), rng.integers(1, 3, 2)
    image = np.array([8, 9])
    pads = [1, 0, 0, 2]
    room = image + np.array([1, 2]) - dilations * (block - 1) - 1
    columns = int(np.prod(room // strides + 1))
    inputs: Inputs = {
        "x": _floats(rng, 2, 3 * int(np.prod(block)), columns),
        "image": image,
        "block": block,
    }
    attrs: dict[str, Any] = {
        "strides": [int(s) for s in strides],
        "dilations": [int(d) for d in dilations],
        "pads": pads,
    }
    model = model_of("Col2Im", inputs, [("y", np.float32)], ["image", "block"], **attrs)
    feeds = feeds_of(model, inputs)
    agree(model, feeds, by_definition(model, feeds))


@few
@given(SEEDS, st.sampled_from([(2, 2), (3, 2), (3, 3)]))
def test_max_unpool_undoes_max_pool(seed: int, window: tuple[int, int]) -> None:
    """Windows may overlap: then one largest can be put back twice, always with one value."""
    rng = np.random.default_rng(seed)
    size, stride = window
    x = _floats(rng, 2, 3, 2 * stride + size, stride + size)
    attrs: dict[str, Any] = {"kernel_shape": [size, size], "strides": [stride, stride]}
    outputs = [("y", np.float32), ("i", np.int64)]
    pool = model_of("MaxPool", {"x": x}, outputs, **attrs)
    pooled, indices = by_onnxruntime(pool, {"x": x})
    inputs: Inputs = {"x": pooled, "i": indices}
    model = model_of("MaxUnpool", inputs, [("y", np.float32)], **attrs)
    feeds = feeds_of(model, inputs)
    agree(model, feeds, by_definition(model, feeds))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_determinant(n: int) -> None:
    rng = np.random.default_rng(n)
    x = _floats(rng, 3, n, n)
    model = model_of("Det", {"x": x}, [("y", np.float32)])
    agree(model, {"x": x}, [np.linalg.det(x.astype(np.float64)).astype(np.float32)], 1e-3)
