"""A folder like a built site, and a page in it that has the runtime at hand."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page

from pywebgpu.link import write_runtime
from pywebgpu.serve import STRICT_CSP
from tests.web import mini

WEB = Path(__file__).parents[2] / "web"

# `mini` builds the feeds of the hand-written bundle; `facts` turns an error into plain data.
_HELPERS = """
export * from "./web/pywebgpu.js";
import * as runtime from "./web/pywebgpu.js";
const { InferenceSession, Tensor } = runtime;
export const feeds = (x, k = 7) => ({
  x: new Tensor("float32", x),
  k: new Tensor("int64", [BigInt(k), 0n]),
});
export const create = (provider, options = {}, url = "mini") =>
  InferenceSession.create(url, { executionProviders: [provider], ...options });
export const ask = async (session, x, k) => {
  const { y, k_out } = await session.run(feeds(x, k));
  return { y: [...y.data], k: Number(k_out.data[0]), dims: [...y.dims] };
};
export const facts = async (promise) => {
  try { await promise; return null; }
  catch (error) {
    return { name: error.name, isOurs: error instanceof runtime.PywebgpuError,
             message: error.message, ...(error.toJSON?.() ?? {}) };
  }
};
"""


def write_site(folder: Path) -> None:
    """The runtime under web/ as sites carry it, the mini bundle under mini/, an empty page."""
    write_runtime(WEB, folder / "web")
    mini.write(folder / "mini")
    (folder / "helpers.js").write_text(_HELPERS)
    (folder / "index.html").write_text("<!doctype html><link rel='icon' href='data:,'>")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder that a test may change."""
    write_site(tmp_path / "site")
    return tmp_path / "site"


OpenPage = Callable[..., Page]


@pytest.fixture
def open_page(browser: Browser, serve_site: Callable[..., str], site: Path) -> Iterator[OpenPage]:
    """`open_page(isolation=True, csp=None, base="/")`: a new context on the site, ready to
    evaluate; `page.requests` collects the URLs it asks for."""
    contexts: list[BrowserContext] = []

    def open_(**server: Any) -> Page:
        url = serve_site(site, **server)
        context = browser.new_context()
        contexts.append(context)
        page = context.new_page()
        page.requests = []  # type: ignore[attr-defined]
        context.on("request", lambda r: page.requests.append(r.url))  # type: ignore[attr-defined]
        page.goto(url)
        return page

    yield open_
    for context in contexts:
        context.close()


@pytest.fixture
def visit(browser: Browser, serve_site: Callable[..., str]) -> Iterator[Callable[..., Page]]:
    """A page of a built site as a visitor opens it, from a sub-path under the strict policy:
    `visit(site, "digits.html?provider=wasm", isolation=True, **context options)`.

    At the end of the test: no request to another origin, no policy violated, no uncaught error.
    """
    contexts: list[BrowserContext] = []
    problems: list[str] = []

    def open_(site: Path, path: str, *, isolation: bool = True, **options: Any) -> Page:
        url = serve_site(site, isolation=isolation, csp=STRICT_CSP, base="/some/where/")
        origin = re.match(r"https?://[^/]+/", url)
        assert origin is not None
        context = browser.new_context(**options)
        contexts.append(context)
        context.on(
            "request",
            lambda r: r.url.startswith((origin[0], "data:", "blob:")) or problems.append(r.url),
        )
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "console",
            lambda m: "Content Security Policy" in m.text and problems.append(m.text),
        )
        page.goto(url + path)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert problems == []


def run(page: Page, body: str, arg: Any = None, *, helpers: str = "helpers.js") -> Any:
    """Evaluate the body of an async function with the helpers in scope as `t`, `arg` as `arg`."""
    return page.evaluate(
        f"async (arg) => {{ const t = await import(new URL('./{helpers}', document.baseURI));"
        + body
        + "}",
        arg,
    )
