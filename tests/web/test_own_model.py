"""The page for a visitor's own model: a bundle chosen, dropped or zipped runs there, an ONNX file
is told how to become one, and what is neither is refused in words."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from pywebgpu import InferenceSession
from pywebgpu.export import export
from pywebgpu.site import build_site
from pywebgpu.vendored import NpmPackage, package_folder
from tests.executors_seen import record_executor
from tests.web import mini

pytestmark = pytest.mark.browser

DIGITS = Path(__file__).parents[2] / "examples" / "digits" / "digits.onnx"
AXE = NpmPackage("axe-core", "4.14.1", {})
READY_MS = 120_000
TUNED_MS = 400_000

Visit = Callable[..., Page]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own") / "my model"
    export(DIGITS, folder)
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site that knows another model."""
    folder = tmp_path_factory.mktemp("site")
    mini.write(folder / "mini")
    return build_site([folder / "mini"], folder / "out", pyodide="none")


def ready(page: Page) -> None:
    page.wait_for_selector("html[data-state=ready], html[data-state=failed]", timeout=READY_MS)
    assert page.locator("html").get_attribute("data-state") == "ready", page.inner_text("#alert")
    expect(page.locator("#status")).to_contain_text("took", timeout=READY_MS)


def run_once(page: Page, bundle: Path, image: np.ndarray) -> np.ndarray:
    """Type the image, run, and wait for the answer that the desktop gives, which is returned."""
    # With brackets and commas, as it is printed elsewhere.
    page.get_by_label("image", exact=True).fill(str(image.tolist()))
    page.get_by_role("button", name="Run once").click()
    (wanted,) = InferenceSession(bundle, providers=["wasm"]).run(None, {"image": image})
    page.wait_for_function(
        "(first) => Math.abs(parseFloat(document.querySelector('#result pre').textContent) - first)"
        " < 1e-3",
        arg=float(wanted[0, 0]),
    )
    return np.asarray(wanted)


@pytest.mark.parametrize("provider", ["webgpu", "wasm"])
def test_a_folder_runs_on_what_is_typed(
    site: Path, visit: Visit, bundle: Path, provider: str
) -> None:
    page = visit(site, f"own.html?provider={provider}")
    expect(page.locator("#model")).to_be_hidden()
    page.set_input_files("#folder", bundle)
    ready(page)
    expect(page.locator("#given")).to_contain_text(f"my model: {len(list(bundle.iterdir()))} files")
    expect(page.locator("#inputs tr")).to_have_count(1)
    image = np.random.default_rng().random((1, 1, 8, 8)).astype(np.float32).round(3)
    page.get_by_label("batch", exact=True).fill("1")
    wanted = run_once(page, bundle, image)
    shown = [float(text) for text in page.inner_text("#result pre").replace("−", "-").split()]
    assert np.allclose(shown, wanted[0], rtol=1e-3, atol=1e-4)
    assert page.evaluate("caches.keys()") == [], "the visitor's files are not kept"
    record_executor(f"chromium-{provider}")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def test_a_zip_without_threads_and_another_model_after_it(
    site: Path, visit: Visit, bundle: Path, tmp_path: Path, method: int
) -> None:
    page = visit(site, "own.html?provider=wasm", isolation=False)
    packed = tmp_path / "packed.zip"
    with zipfile.ZipFile(packed, "w", method) as archive:
        archive.comment = b"with a comment at its end"
        for path in bundle.iterdir():
            archive.write(path, f"somewhere/{path.name}")
    page.set_input_files("#file", packed)
    ready(page)
    expect(page.locator("#given")).to_contain_text(
        f"somewhere: {len(list(bundle.iterdir()))} files"
    )
    expect(page.locator("#notes")).to_contain_text("threads")
    page.get_by_role("button", name="Run 20 times").click()
    expect(page.locator("#status")).to_contain_text("median", timeout=READY_MS)
    mini.write(tmp_path / "mini")
    page.set_input_files("#folder", tmp_path / "mini")
    expect(page.locator("#inputs tr")).to_have_count(2)
    expect(page.locator("#result h3")).to_have_count(2, timeout=READY_MS)
    expect(page.locator("#alert")).to_be_hidden()


def test_a_dropped_folder(site: Path, visit: Visit, bundle: Path) -> None:
    """Chromium gives scripts no way to drop a folder: its files, by themselves, are dropped."""
    page = visit(site, "own.html?provider=wasm")
    files = [[path.name, list(path.read_bytes())] for path in bundle.iterdir()]
    transfer = page.evaluate_handle(
        "(files) => { const t = new DataTransfer(); for (const [name, data] of files)"
        " t.items.add(new File([new Uint8Array(data)], name)); return t; }",
        files,
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})
    ready(page)
    expect(page.locator("#outputs tr")).to_have_count(1)


@pytest.mark.parametrize("provider", ["webgpu", "wasm"])
def test_it_is_tuned_like_the_sites_own(
    tmp_path: Path, visit: Visit, bundle: Path, provider: str
) -> None:
    """Its kernels are found in the files that were dropped, and it computes the same after."""
    mini.write(tmp_path / "mini")
    site = build_site([tmp_path / "mini"], tmp_path / "out")
    page = visit(site, f"own.html?provider={provider}")
    page.set_default_timeout(TUNED_MS)
    page.set_input_files("#folder", bundle)
    ready(page)
    page.click("#tuning-start")
    page.wait_for_selector("html[data-tuning=done]")
    assert "forms tried" in page.inner_text("#tuning-state")
    expect(page.locator("#alert")).to_be_hidden()
    manifest = json.loads((bundle / "manifest.json").read_text())
    steps = (manifest if provider == "wasm" else manifest["webgpu"])["steps"]
    shown = page.locator("#tuning-kernels tr td:first-child").all_inner_texts()
    assert shown
    assert set(shown) <= {step["label"] for step in steps}
    image = np.random.default_rng().random((1, 1, 8, 8)).astype(np.float32).round(3)
    run_once(page, bundle, image)
    with page.expect_download() as download:
        page.click("#tuning-export")
    assert json.loads(Path(download.value.path()).read_text())["records"]
    record_executor(f"chromium-{provider}")


def test_an_onnx_file_is_told_what_to_run(site: Path, visit: Visit, tmp_path: Path) -> None:
    page = visit(site, "own.html", permissions=["clipboard-read", "clipboard-write"])
    shutil.copyfile(DIGITS, tmp_path / "my digits.onnx")
    page.set_input_files("#file", tmp_path / "my digits.onnx")
    expect(page.locator("#recipe")).to_be_visible()
    wanted = "pywebgpu check 'my digits.onnx'\npywebgpu export 'my digits.onnx' -o my-digits"
    assert page.inner_text("#commands") == wanted
    page.get_by_role("button", name="Copy").click()
    expect(page.locator("#copied")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == wanted
    axe = (package_folder(AXE) / "axe.min.js").read_text()
    console = page.context.new_cdp_session(page)  # the page's policy forbids code from strings
    options = {"awaitPromise": True, "returnByValue": True}
    run = "axe.run().then((found) => found.violations.map((v) => v.id).join(' '))"
    answer = console.send("Runtime.evaluate", {"expression": f"{axe};{run}", **options})
    assert answer["result"]["value"] == ""


def test_what_is_no_bundle_is_refused(
    site: Path, visit: Visit, bundle: Path, tmp_path: Path
) -> None:
    page = visit(site, "own.html?provider=wasm")
    alert: Any = page.locator("#alert")
    (tmp_path / "broken.zip").write_bytes(b"PK but no more")
    page.set_input_files("#file", tmp_path / "broken.zip")
    expect(alert).to_contain_text("broken.zip: this zip cannot be read")
    with zipfile.ZipFile(tmp_path / "other.zip", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("manifest.json", "{}")
    page.set_input_files("#file", tmp_path / "other.zip")
    expect(alert).to_contain_text("compressed by method 12")
    damaged = bytearray((tmp_path / "other.zip").read_bytes())
    damaged[damaged.rindex(b"PK\x01\x02")] ^= 1
    (tmp_path / "other.zip").write_bytes(damaged)
    page.set_input_files("#file", tmp_path / "other.zip")
    expect(alert).to_contain_text("directory is damaged")
    (tmp_path / "thesis.txt").write_text("")
    page.set_input_files("#file", tmp_path / "thesis.txt")
    expect(alert).to_contain_text("no manifest.json in thesis.txt")
    two = tmp_path / "two"
    for name in ("a", "b"):
        shutil.copytree(bundle, two / name)
    page.set_input_files("#folder", two)
    expect(alert).to_contain_text("2 bundles")
    shard = two / "a" / "weights-000.bin"
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    page.set_input_files("#folder", two / "a")
    expect(alert).to_contain_text("SHA-256 differs", timeout=READY_MS)
    shard.unlink()
    page.set_input_files("#folder", two / "a")
    expect(alert).to_contain_text("weights-000.bin", timeout=READY_MS)
    expect(alert).to_contain_text("not among those given")
    page.set_input_files("#folder", bundle)
    ready(page)
    page.get_by_label("image", exact=True).fill("1 2 3")
    page.get_by_role("button", name="Run once").click()
    expect(alert).to_contain_text("image: 3 values are typed, but its shape 1 × 1 × 8 × 8 takes 64")
    page.get_by_label("image", exact=True).fill("one")
    page.get_by_role("button", name="Run once").click()
    expect(alert).to_contain_text('"one" is not a number')
    page.get_by_label("image", exact=True).fill("1")
    page.get_by_role("button", name="Run once").click()
    expect(alert).to_be_hidden()
