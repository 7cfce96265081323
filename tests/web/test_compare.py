"""The comparison with ONNX Runtime Web: both run, both are right, and what is missing is said."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from playwright.sync_api import Page, expect

from pywebgpu.site import build_site
from tests.executors_seen import record_executor
from tests.web import mini

pytestmark = pytest.mark.browser

DIGITS = Path(__file__).parents[2] / "examples" / "digits" / "digits.onnx"
READY_MS = 240_000

Visit = Callable[..., Page]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    mini.write(folder / "mini")
    # Weights in another file come along.
    model = onnx.load(DIGITS)
    onnx.save(model, folder / "split.onnx", save_as_external_data=True, size_threshold=0)
    models = [folder / "split.onnx", folder / "mini"]
    return build_site(models, folder / "out", pyodide="none", compare=True)


def compare(page: Page) -> str:
    page.wait_for_selector("html[data-state=ready]", timeout=READY_MS)
    page.get_by_role("button", name="Run both").click()
    done = "html[data-compare=done], html[data-compare=failed]"
    page.wait_for_selector(done, timeout=READY_MS)
    return str(page.locator("html").get_attribute("data-compare"))


@pytest.mark.parametrize("isolation", [True, False])
def test_both_run(site: Path, visit: Visit, isolation: bool) -> None:
    page = visit(site, "split.html?provider=wasm", isolation=isolation)
    assert compare(page) == "done", page.inner_text("#alert")
    expect(page.locator("#compare-state")).to_have_text(
        re.compile(r"(as quick|equally quick), by \d+ and \d+ runs")
    )
    rows = page.locator("#compare-rows tr")
    ours, theirs = (rows.nth(i).locator("td").all_inner_texts() for i in range(2))
    assert all(re.fullmatch(r"[\d.]+ [mµ]?s", text) for text in (*ours[:2], *theirs[:2]))
    assert re.fullmatch(r"\d+ kB", ours[2])
    assert re.fullmatch(r"1\d MB", theirs[2])
    record_executor("chromium-wasm")


def test_a_wrong_answer_is_no_result(site: Path, visit: Visit) -> None:
    """The peer's model is exchanged for one with other weights."""
    model = onnx.load(DIGITS)
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.float32:
            tensor.CopyFrom(onnx.numpy_helper.from_array(values * np.float32(0.5), tensor.name))
    page = visit(site, "split.html?provider=wasm")
    body = model.SerializeToString()
    page.route("**/model.onnx", lambda route: route.fulfill(body=body))
    assert compare(page) == "failed"
    expect(page.locator("#alert")).to_contain_text("different answers")
    expect(page.locator("#compare-rows td").first).to_have_text("–")


def test_what_is_missing_is_said(site: Path, visit: Visit, tmp_path: Path) -> None:
    page = visit(site, "mini.html?provider=wasm")
    expect(page.locator(".aside")).to_contain_text("without its ONNX file")
    mini.write(tmp_path / "mini")
    plain = build_site([tmp_path / "mini"], tmp_path / "out", pyodide="none")
    assert not (plain / "vendor" / "onnxruntime-web").exists()
    page = visit(plain, "mini.html?provider=wasm")
    expect(page.locator(".aside")).to_contain_text("pywebgpu site --compare")


def test_not_kept_for_use_without_a_network(site: Path) -> None:
    files = json.loads((site / "site.json").read_text())["files"]
    assert "own.html" in files
    assert not [name for name in files if "onnx" in name]
