"""Resize with antialiasing, on fresh sizes, against ONNX's reference and PyTorch's rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pywebgpu.compile import compile_model
from pywebgpu.errors import UnsupportedError
from tests.ops.agree import agree, by_definition, model_of

Array = np.ndarray[Any, Any]
few = settings(max_examples=5, deadline=None)


@few
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(["linear", "cubic"]),
    st.sampled_from(["half_pixel", "align_corners", "asymmetric"]),
    st.booleans(),
)
def test_as_the_reference(seed: int, mode: str, transform: str, exclude: bool) -> None:
    """One axis shrinks, the other may grow."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2, 3, int(rng.integers(6, 12)), int(rng.integers(3, 9)))).astype("f4")
    sizes = np.array([2, 3, int(rng.integers(2, 6)), int(rng.integers(2, 12))])
    inputs: dict[str, Array | None] = {"x": x, "roi": None, "scales": None, "sizes": sizes}
    attrs: dict[str, Any] = {
        "mode": mode,
        "antialias": 1,
        "coordinate_transformation_mode": transform,
        "exclude_outside": int(exclude),
        "cubic_coeff_a": -0.5,
    }
    model = model_of("Resize", inputs, [("y", np.float32)], ["sizes"], **attrs)
    agree(model, {"x": x}, by_definition(model, {"x": x}), 1e-3, 1e-4)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_as_pytorch(mode: str) -> None:
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(1).normal(size=(1, 2, 9, 8)).astype("f4")
    want = torch.nn.functional.interpolate(
        torch.from_numpy(x), (4, 5), mode=mode, antialias=True, align_corners=False
    ).numpy()
    sizes = np.array([1, 2, 4, 5])
    inputs: dict[str, Array | None] = {"x": x, "roi": None, "scales": None, "sizes": sizes}
    attrs: dict[str, Any] = {
        "mode": {"bilinear": "linear", "bicubic": "cubic"}[mode],
        "antialias": 1,
        "exclude_outside": 1,
        "cubic_coeff_a": -0.5,
    }
    model = model_of("Resize", inputs, [("y", np.float32)], ["sizes"], **attrs)
    agree(model, {"x": x}, [want], 1e-3, 1e-4)


def test_sizes_must_be_static() -> None:
    x = np.zeros((1, 1, 8, 8), np.float32)
    scales = np.array([1, 1, 0.5, 0.5], np.float32)
    inputs: dict[str, Array | None] = {"x": x, "roi": None, "scales": scales}
    shape = {"x": (1, 1, "height", 8)}
    attrs: dict[str, Any] = {"mode": "linear", "antialias": 1}
    model = model_of("Resize", inputs, [("y", np.float32)], ["scales"], shape, **attrs)
    with pytest.raises(UnsupportedError, match="static image sizes"):
        compile_model(model.SerializeToString())
