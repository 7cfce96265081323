"""The page for image classifiers: samples, chosen and dropped files, the camera, and what goes
wrong with each.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image
from playwright.sync_api import BrowserType, Page, expect

from pywebgpu.chromium import CHROMIUM_ARGS
from pywebgpu.serve import STRICT_CSP
from pywebgpu.site import build_site
from tests.conftest import CHROMIUM
from tests.executors_seen import record_executor

pytestmark = pytest.mark.browser

SHAPES = Path(__file__).parents[2] / "examples" / "shapes"
LABELS = json.loads((SHAPES / "labels.json").read_text())["labels"]
READY_MS = 120_000


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("picture")
    return build_site([SHAPES / "shapes.onnx"], folder / "site", pyodide="none")


@pytest.fixture
def url(site: Path, serve_site: Callable[..., str]) -> str:
    return f"{serve_site(site, csp=STRICT_CSP, base='/a/b/')}shapes.html"


def ready(page: Page, url: str) -> None:
    page.goto(url)
    expect(page.locator("html")).to_have_attribute("data-state", "ready", timeout=READY_MS)


def drawn(path: Path, label: str) -> Path:
    """A sample in the middle of a wide picture: the page looks at the middle square."""
    sample = Image.open(SHAPES / f"{label}.png").resize((480, 480), Image.Resampling.BICUBIC)
    wide = Image.new("RGB", (800, 480), sample.getpixel((2, 2)))
    wide.paste(sample, (160, 0))
    wide.save(path)
    return path


def test_the_committed_network_knows_its_samples() -> None:
    session = onnxruntime.InferenceSession(SHAPES / "shapes.onnx")
    pictures = [np.asarray(Image.open(SHAPES / f"{label}.png")) for label in LABELS]
    batch = np.stack(pictures).transpose(0, 3, 1, 2).astype(np.float32) / 255
    [probabilities] = session.run(None, {"picture": batch})
    assert probabilities.argmax(1).tolist() == list(range(len(LABELS)))


@pytest.mark.parametrize("provider", ["webgpu", "wasm"])
def test_samples_and_files(page: Page, url: str, provider: str, tmp_path: Path) -> None:
    ready(page, f"{url}?provider={provider}")
    for i, label in enumerate(LABELS):
        page.locator(".thumb").nth(i).click()
        expect(page.locator("#verdict")).to_have_text(label, timeout=READY_MS)
        expect(page.locator("#bars .class").first).to_have_text(label)
    record_executor(f"chromium-{provider}")
    page.locator("#file").set_input_files(drawn(tmp_path / "star.png", "star"))
    expect(page.locator("#verdict")).to_have_text("star")
    expect(page.locator("#sure")).to_have_text(re.compile(r"^\d+(\.\d)?% sure$"))


def test_dropped_and_pasted(page: Page, url: str, tmp_path: Path) -> None:
    ready(page, f"{url}?provider=wasm")
    for kind, target, label in (("drop", "#drop", "heart"), ("paste", "body", "arrow")):
        data = list(drawn(tmp_path / f"{label}.png", label).read_bytes())
        transfer = page.evaluate_handle(
            "(data) => { const t = new DataTransfer(); t.items.add("
            "new File([new Uint8Array(data)], 'x.png', { type: 'image/png' })); return t; }",
            data,
        )
        name = "clipboardData" if kind == "paste" else "dataTransfer"
        page.locator(target).evaluate(
            "(element, [kind, name, transfer]) => element.dispatchEvent(kind === 'paste'"
            " ? new ClipboardEvent(kind, { [name]: transfer, bubbles: true })"
            " : new DragEvent(kind, { [name]: transfer, bubbles: true, cancelable: true }))",
            [kind, name, transfer],
        )
        expect(page.locator("#verdict")).to_have_text(label)


def test_what_is_no_picture_is_told(page: Page, url: str, tmp_path: Path) -> None:
    ready(page, f"{url}?provider=wasm")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG but not really")
    page.locator("#file").set_input_files(tmp_path / "broken.png")
    expect(page.locator("#alert")).to_contain_text("not a picture")
    page.locator(".thumb").first.click()
    expect(page.locator("#verdict")).to_have_text(LABELS[0])
    expect(page.locator("#alert")).to_be_hidden()


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """A camera's view of a star, as the raw film (Y4M) that Chromium's test camera plays."""
    picture = Image.open(drawn(tmp_path / "star.png", "star")).resize((640, 384)).convert("YCbCr")
    y, cb, cr = (np.asarray(channel) for channel in picture.split())
    frame = b"FRAME\n" + y.tobytes() + cb[::2, ::2].tobytes() + cr[::2, ::2].tobytes()
    path = tmp_path / "camera.y4m"
    path.write_bytes(b"YUV4MPEG2 W640 H384 F10:1 Ip A1:1 C420jpeg\n" + frame * 10)
    return path


@pytest.fixture
def page_with_camera(browser_type: BrowserType, film: Path) -> Iterator[Page]:
    fake = ["--use-fake-device-for-media-stream", f"--use-file-for-fake-video-capture={film}"]
    browser = browser_type.launch(executable_path=CHROMIUM, args=[*CHROMIUM_ARGS, *fake])
    yield browser.new_context().new_page()
    browser.close()


def test_camera(page_with_camera: Page, url: str) -> None:
    page = page_with_camera
    page.context.grant_permissions(["camera"])
    ready(page, f"{url}?provider=wasm")
    button = page.locator("#camera")
    button.click()
    expect(page.locator("#verdict")).to_have_text("star", timeout=READY_MS)
    expect(page.locator("#fact-time-label")).to_contain_text("Median of")
    button.click()
    expect(button).to_have_attribute("aria-pressed", "false")
    assert page.locator("#video").evaluate("video => video.srcObject") is None
    page.locator(".thumb").nth(1).click()
    expect(page.locator("#verdict")).to_have_text(LABELS[1])


def test_a_refused_camera_is_told(page: Page, url: str) -> None:
    ready(page, f"{url}?provider=wasm")
    page.locator("#camera").click()
    expect(page.locator("#alert")).to_contain_text(re.compile("no camera|not allowed"))
