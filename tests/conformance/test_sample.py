"""A sample of ONNX's suite on all four executors, and that the runners notice what goes wrong."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conformance import browser, desktop
from tests.conformance.cases import collect
from tests.conformance.chromium import BrowserGone, Chromium
from tests.conformance.report import merge, page
from tests.conformance.verdict import compare
from tests.executors_seen import record_executor

SAMPLE = (
    "test_add_bcast",
    "test_argmax_negative_axis_keepdims_example",
    "test_attention_4d_gqa",
    "test_cast_FLOAT_to_FLOAT16",
    "test_cast_FLOAT_to_FLOAT8E5M2",
    "test_conv_with_strides_padding",
    "test_gather_negative_indices",
    "test_layer_normalization_4d_axis2",
    "test_max_int8",
    "test_maxpool_2d_ceil",
    "test_quantizelinear_int4",
    "test_reduce_sum_empty_set",
    "test_reshape_reordered_all_dims",  # its shape is an input
    "test_softmax_axis_1",
    "test_Conv2d_groups",  # several data sets would need several bundles
)
OUTSIDE = "test_string_concat"


def _four() -> Iterator[Any]:
    for name in desktop.PROVIDERS:
        yield pytest.param(name, marks=pytest.mark.wgpu if name == "wgpu" else ())
    for name in browser.PEER:
        yield pytest.param(name, marks=pytest.mark.browser)


def _run(executor: str, names: tuple[str, ...]) -> dict[str, tuple[str, str]]:
    runner = browser if executor in browser.TARGETS else desktop
    return dict(runner.run(list(names), executor))


@pytest.mark.parametrize("executor", list(_four()))
def test_sample(executor: str) -> None:
    verdicts = _run(executor, (*SAMPLE, OUTSIDE))
    assert verdicts.pop(OUTSIDE) == ("out_of_scope", "StringConcat: works on strings")
    assert verdicts == dict.fromkeys(SAMPLE, ("passed", ""))
    record_executor(executor)


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.browser
def test_the_peer_runs_the_same_cases() -> None:
    """Needs ONNX Runtime Web from the npm registry, unless an earlier run has fetched it."""
    if not (browser.WORK / "npm/node_modules/onnxruntime-web").exists():
        pytest.skip("python -m tests.conformance --executor ort-web-wasm fetches the package")
    verdicts = _run("ort-web-webgpu", ("test_add_bcast", "test_det_2d"))
    assert verdicts["test_add_bcast"] == ("passed", "")
    assert verdicts["test_det_2d"] == ("passed", browser.ON_CPU)


@pytest.fixture
def chromium(tmp_path: Path) -> Iterator[tuple[Chromium, dict[str, Any]]]:
    """A browser on the page, and a job for it."""
    target = browser.TARGETS["chromium-wasm"]
    browser.furnish(tmp_path, target)
    job = browser.prepare("test_add_bcast", tmp_path, target)
    assert isinstance(job, dict)
    with Chromium(tmp_path, "page/index.html") as running:
        yield running, job


@pytest.mark.browser
def test_a_browser_that_dies_or_hangs_is_replaced(
    chromium: tuple[Chromium, dict[str, Any]],
) -> None:
    running, job = chromium
    assert "results" in running.ask(job, 60)
    assert running._process is not None
    running._process.kill()
    with pytest.raises(BrowserGone, match="died"):
        running.ask(job, 60)
    assert "results" in running.ask(job, 60)
    with pytest.raises(BrowserGone, match="no answer"):
        running.ask(job, 0)
    assert "results" in running.ask(job, 60)


@pytest.mark.browser
def test_a_bundle_that_is_damaged_fails(
    chromium: tuple[Chromium, dict[str, Any]], tmp_path: Path
) -> None:
    running, job = chromium
    shutil.rmtree(next((tmp_path / "cases").glob("*/bundle")))
    answer = running.ask(job, 60)
    verdict, reason = browser._verdict(
        collect()["test_add_bcast"], answer, browser.TARGETS["chromium-wasm"]
    )
    assert verdict == "failed"
    assert "404" in reason


def test_wrong_answers_do_not_pass() -> None:
    case = collect()["test_add_bcast"]
    [(_, [want])] = case.data()
    assert compare([want], [want], case) == ("passed", "")
    assert compare([want + 0.01], [want], case)[0] == "failed"
    assert compare([want.astype(np.float64)], [want], case)[0] == "failed"
    assert compare([want[None]], [want], case)[0] == "failed"
    assert compare([np.full_like(want, np.nan)], [want], case)[0] == "failed"
    assert compare([], [want], case)[0] == "failed"
    assert compare([want + 0.01], [want], replace(case, atol=0.1)) == ("passed", "")


def test_the_page_sets_ours_beside_the_peer() -> None:
    def cases(passed: str, failed: str, reason: str = "") -> dict[str, Any]:
        return {
            "test_add": {passed: {"verdict": "passed", "reason": reason}},
            "test_abs": {failed: {"verdict": "failed", "reason": "output 0: shape"}},
        }

    ours, theirs = "chromium-webgpu", "ort-web-webgpu"
    both = merge(
        [
            {"cases": cases(ours, ours)},
            {"cases": cases(theirs, theirs, browser.ON_CPU)},
            {"cases": {"test_abs": {ours: {"verdict": "passed", "reason": ""}}}},
        ]
    )
    assert both["executors"][ours]["passed"] == 2
    text = page(both, note="Light models are left out.")
    assert "\nLight models are left out.\n" in text
    assert "0 of 2 cases (0.0%)" in text
    assert "1 (of which 1 partly on the CPU)" in text
    assert "1 pass with ours only, 0 with theirs only" in text
    assert "0 without the CPU's help" in text


def test_a_result_as_exact_as_float32_can_be_passes() -> None:
    """The expected values of an inverse transform are themselves off by more than the suite's 1e-7,
    next to elements of 54: a unit in the last place of those is allowed, and no more."""
    case = collect()["test_dft_inverse"]
    ((inputs, (want, *_)), *_) = case.data()
    x = inputs[0].astype(np.float64)
    exact = np.fft.ifft(x[..., 0] + 1j * x[..., 1], axis=1)
    got = np.stack([exact.real, exact.imag], axis=-1).astype(np.float32)
    assert not np.allclose(got, want, rtol=case.rtol, atol=case.atol)
    assert compare([got], [want], case) == ("passed", "")
    assert compare([got + np.float32(2e-5)], [want], case)[0] == "failed"
