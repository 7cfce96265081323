"""What a family of models is asked, and how far an answer may be off."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from pywebgpu.compile import Compiled
from pywebgpu.session import InferenceSession
from tests.conformance import browser as in_browser
from tests.conformance.chromium import Chromium
from tests.models.families import FAMILIES, path_of, torch_answers
from tests.models.zoo import feeds_for

TOLERANCE = 1e-3
"""Largest difference relative to the largest element of the reference."""

Tensors = dict[str, Any]


def other_sizes(name: str) -> dict[str, int]:
    """None of the sizes is what the model was exported with."""
    dims = dict(FAMILIES[name].dims)
    for dim in dims:
        dims[dim] += 1 if dim == "batch" else 3
    if "height" in dims:
        dims |= {"height": dims["height"] + 5, "width": dims["width"] - 19}  # 56 x 48
    return dims


def questions(name: str) -> Iterator[tuple[Tensors, Tensors]]:
    """(inputs, expected outputs): PyTorch's own, then ONNX Runtime's for sizes that differ."""
    yield torch_answers(name)
    ort = pytest.importorskip("onnxruntime")
    reference = ort.InferenceSession(str(path_of(name)), providers=["CPUExecutionProvider"])
    names = [port.name for port in reference.get_outputs()]
    feeds = feeds_for(FAMILIES[name], seed=1, dims=other_sizes(name))
    yield feeds, dict(zip(names, reference.run(None, feeds), strict=True))


def error_of(got: Any, want: Any, name: str) -> float:
    """The largest difference, relative to the largest element of `want`."""
    assert got.shape == want.shape, f"{name}: shape {got.shape}, expected {want.shape}"
    assert got.dtype == want.dtype, f"{name}: {got.dtype}, expected {want.dtype}"
    scale = float(np.abs(want).max()) or 1.0
    error = float(np.abs(got - want).max()) / scale
    assert error <= TOLERANCE, f"{name}: {error:.2e} of the output's scale"
    return error


def on_desktop(name: str, compiled: Compiled, provider: str) -> float:
    """The largest error of all outputs; a DeviceError where there is no such device."""
    errors = []
    with InferenceSession(compiled, [provider]) as session:
        for feeds, expected in questions(name):
            given = {port.name: feeds[port.name] for port in session.get_inputs()}
            found = session.run(None, given)
            errors += [
                error_of(got, want, port)
                for got, (port, want) in zip(found, expected.items(), strict=True)
            ]
    return max(errors)


def in_a_page(name: str, compiled: Compiled, provider: str, page: Chromium) -> float:
    """Likewise, in a page that has been furnished for the provider."""
    in_browser.write_variants(compiled, page.folder / name, provider)
    names = [port.name for port in compiled.plan.inputs]
    asked = list(questions(name))
    runs = [
        {"model": f"../{name}/", "feeds": [in_browser.packed(n, feeds[n]) for n in names]}
        for feeds, _ in asked
    ]
    answer = page.ask({"runtime": "ours", "provider": provider, "runs": runs}, 300)
    assert "results" in answer, answer
    return max(
        error_of(in_browser.unpacked(output), expected[output[0]], output[0])
        for outputs, (_, expected) in zip(answer["results"], asked, strict=True)
        for output in outputs
    )
