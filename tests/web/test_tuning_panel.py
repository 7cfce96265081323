"""The tuning panel of a site's pages: start, pause, stop, the plots and the table, records."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from pywebgpu.serve import STRICT_CSP, records_service, strict_csp
from pywebgpu.site import build_site
from pywebgpu.vendored import NpmPackage, package_folder
from tests.database.running import running
from tests.executors_seen import record_executor

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "examples" / "digits" / "digits.onnx"
AXE = NpmPackage("axe-core", "4.14.1", {})
TIMEOUT_MS = 400_000


@pytest.fixture(scope="module")
def page(
    browser: Browser, serve_site: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Page]:
    site = build_site([DIGITS], tmp_path_factory.mktemp("panel") / "site")
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(TIMEOUT_MS)
    asked: list[str] = []
    context.on("request", lambda request: asked.append(request.url))
    page.asked = asked  # type: ignore[attr-defined]
    page.goto(serve_site(site, csp=STRICT_CSP) + "digits.html?provider=wasm")
    page.wait_for_selector("html[data-state=ready]")
    yield page
    context.close()


@pytest.fixture
def tuned(page: Page) -> Page:
    """After a tuning, whichever test was first."""
    if page.locator("html[data-tuning=done]").count() == 0:
        page.click("#tuning-start")
        page.wait_for_selector("html[data-tuning=done]")
    return page


def test_tunes_and_shows_it(page: Page, tmp_path: Path) -> None:
    asked: list[str] = page.asked  # type: ignore[attr-defined]
    assert not [url for url in asked if "pyodide" in url or "uPlot.esm" in url]
    page.click("#tuning-start")
    page.click("#tuning-cancel")
    page.wait_for_selector("html[data-tuning=done]")
    assert page.inner_text("#tuning-state") == "Stopped"
    assert page.locator("#tuning-found").is_hidden(), "nothing was found"
    page.click("#tuning-start")
    before = page.locator("#tuning").bounding_box()
    page.click("#tuning-pause")  # as soon as Python is there
    assert page.inner_text("#tuning-pause") == "Resume"
    assert page.inner_text("#tuning-state") == "Paused"
    page.click("#tuning-pause")
    page.wait_for_selector("html[data-tuning=done]")
    assert "forms tried" in page.inner_text("#tuning-state")
    assert page.locator("#alert").is_hidden()
    rows = page.locator("#tuning-kernels tr")
    shares = [
        float(rows.nth(i).locator("td").nth(1).inner_text()[:-2]) for i in range(rows.count())
    ]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100, abs=1)
    assert "runs in" in str(page.locator("#tuning-latency").get_attribute("aria-label"))
    assert "GFLOP/s" in str(page.locator("#tuning-roofline").get_attribute("aria-label"))
    assert "GFLOP/s on one core" in page.inner_text("#tuning-device")
    after = page.locator("#tuning").bounding_box()
    assert before is not None
    assert after is not None
    assert after["height"] == before["height"], "filling the panel in moves nothing"
    assert not [url for url in asked if not url.startswith((page.url.split("digits")[0], "data:"))]
    record_executor("chromium-wasm")


def test_a_site_with_a_records_service(browser: Browser, serve_site: Any, tmp_path: Path) -> None:
    """Its pages ask the service under their policy, and tell it what the visitor lets them tell."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    service = f"http://127.0.0.1:{port}/"
    site = build_site([DIGITS], tmp_path / "site", records=service)
    assert records_service(site) == service
    url = serve_site(site, csp=strict_csp(service))
    options = ["--port", str(port), "--origin", url.rstrip("/"), "--confirmations", "2"]
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(TIMEOUT_MS)
    asked: list[str] = []
    page.on("request", lambda r: asked.append(r.url) if r.url.startswith(service) else None)
    try:
        with running(f"sqlite:///{tmp_path / 'records.db'}", *options) as (client, _):
            page.goto(f"{url}digits.html?provider=wasm")
            for ticked in (False, True):
                page.wait_for_selector("#tuning-start:enabled")
                assert not page.is_checked("#tuning-contribute")
                page.set_checked("#tuning-contribute", ticked)
                page.click("#tuning-start")
                page.wait_for_selector("html[data-tuning=done]")
                assert page.locator("#alert").is_hidden()
                told = int(client.get("health").json()["contributions"])
                assert (told > 0) is ticked
                assert any("v1/winners" in address for address in asked)
                asked.clear()
                page.reload()
    finally:
        context.close()


def test_records_leave_and_come_back(tuned: Page, tmp_path: Path) -> None:
    page = tuned
    with page.expect_download() as download:
        page.click("#tuning-export")
    path = tmp_path / "records.json"
    download.value.save_as(path)
    records = json.loads(path.read_text())["records"]
    assert records
    page.set_input_files("#tuning-import", path)
    page.wait_for_selector(f"#tuning-state:text('{len(records)} records added')")
    path.write_text('{"format_version": 9}')
    page.set_input_files("#tuning-import", path)
    page.wait_for_selector("#alert:text('not tuning records')")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_accessible_at_any_width(tuned: Page, width: int, scheme: Any) -> None:
    page = tuned
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    assert not page.evaluate("() => document.documentElement.scrollWidth > innerWidth")
    axe = (package_folder(AXE) / "axe.min.js").read_text()
    run = "axe.run().then((found) => JSON.stringify(found.violations.map((v) => [v.id, v.impact])))"
    # The page's policy forbids code from strings; the browser's own console does not ask it.
    console = page.context.new_cdp_session(page)
    options = {"expression": f"{axe};{run}", "awaitPromise": True, "returnByValue": True}
    answer = console.send("Runtime.evaluate", options)
    found = json.loads(answer["result"]["value"])
    assert [name for name, impact in found if impact in ("serious", "critical")] == []
