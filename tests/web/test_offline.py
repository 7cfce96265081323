"""A site that a visitor keeps works when its server is gone."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from pywebgpu.serve import STRICT_CSP, SiteServer
from pywebgpu.site import build_site
from tests.executors_seen import record_executor

pytestmark = pytest.mark.browser

DIGITS = Path(__file__).parents[2] / "examples" / "digits" / "digits.onnx"
READY_MS = 90_000


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_site([DIGITS], tmp_path_factory.mktemp("offline") / "site", pyodide="none")


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context()
    yield context.new_page()
    context.close()


def keep(page: Page) -> None:
    """Press the button on the home page and wait until all is there."""
    button = page.locator("#offline-button")
    expect(button).to_have_text(re.compile(r"^Keep \d+ kB$"), timeout=READY_MS)
    button.click()
    expect(page.locator("#offline")).to_have_attribute("data-kept", "true", timeout=READY_MS)


def answers(page: Page) -> None:
    """The digits page loads and reads a sample."""
    expect(page.locator("html")).to_have_attribute("data-state", "ready", timeout=READY_MS)
    page.locator(".thumb").first.click()
    expect(page.locator("#verdict")).to_have_text(re.compile(r"^\d$"))


def test_a_kept_site_needs_no_server(site: Path, page: Page) -> None:
    """Threads by the worker too: both of its jobs at once, on a host that sends no headers."""
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    with SiteServer(site, isolation=False, csp=STRICT_CSP, base="/some/where/") as server:
        page.goto(f"{server.url}digits.html?provider=wasm")
        expect(page.locator("html")).to_have_attribute("data-state", "ready", timeout=READY_MS)
        assert not page.evaluate("crossOriginIsolated")
        page.get_by_role("button", name="Turn threads on").click()
        page.wait_for_function("() => crossOriginIsolated")  # text would be evaluated again
        page.goto(server.url)
        keep(page)
        url = server.url
    for _ in range(2):
        page.goto(f"{url}digits.html?provider=wasm")
        answers(page)
        assert page.evaluate("crossOriginIsolated")
        expect(page.locator("#fact-how")).to_contain_text("2 threads")
    record_executor("chromium-wasm")
    page.goto(url)
    expect(page.locator("#offline-text")).to_contain_text("works without a network")
    assert errors == []


def test_a_new_upload_is_seen_and_the_copy_can_be_removed(site: Path, page: Page) -> None:
    index = site / "index.html"
    before = index.read_text()
    with SiteServer(site, csp=STRICT_CSP) as server:
        page.goto(server.url)
        keep(page)
        index.write_text(before.replace("Models that run", "Networks that run"))
        later = time.time() + 5  # the server tells times by the second
        os.utime(index, (later, later))
        try:
            page.goto(server.url)
            expect(page.locator("h1")).to_contain_text("Networks that run")
        finally:
            index.write_text(before)
        port = server.port
    page.reload()
    expect(page.locator("h1")).to_contain_text("Networks that run")
    with SiteServer(site, csp=STRICT_CSP, port=port) as server:
        page.goto(server.url)
        page.locator("#offline-button").click()
        expect(page.locator("#offline")).to_have_attribute("data-kept", "false")
        assert page.evaluate("navigator.serviceWorker.getRegistrations()") == []
        assert "pywebgpu-site" not in page.evaluate("caches.keys()")


def test_a_server_that_fails_half_way_is_told(site: Path, page: Page) -> None:
    with SiteServer(site, csp=STRICT_CSP) as server:
        page.goto(server.url)
        expect(page.locator("#offline-button")).to_be_enabled()
        page.route("**/app/digits.js", lambda route: route.fulfill(status=500))
        page.locator("#offline-button").click()
        expect(page.locator("#offline-text")).to_contain_text("could not be kept")
        expect(page.locator("#offline-text")).to_contain_text("500")
        assert page.evaluate("navigator.serviceWorker.getRegistrations()") == []
        page.unroute("**/app/digits.js")
        page.locator("#offline-button").click()
        expect(page.locator("#offline")).to_have_attribute("data-kept", "true", timeout=READY_MS)
