"""The console of the Python page: values, errors, blocks, history, completion, the keyboard."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from pywebgpu.site import build_site
from tests.web import mini

pytestmark = pytest.mark.browser

READY_MS = 120_000

Visit = Callable[..., Page]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("console")
    mini.write(folder / "mini")
    return build_site([folder / "mini"], folder / "out")


@pytest.fixture
def patience() -> Iterator[None]:
    """Loading Python takes a while."""
    expect.set_options(timeout=READY_MS)
    yield
    expect.set_options(timeout=5_000)


@pytest.mark.usefixtures("patience")
def test_console(site: Path, visit: Visit) -> None:
    page = visit(site, "python.html")
    line, output, found = (
        page.locator("#line"),
        page.locator("#output"),
        page.locator("#completions"),
    )
    page.set_default_timeout(READY_MS)

    def enter(text: str) -> None:
        line.fill(text)
        line.press("Enter")
        expect(line).to_have_value("")

    # The first statement loads Python, and the session is there.
    enter("len(session.get_outputs()), *feeds")
    expect(output).to_contain_text("(2, 'x', 'k')")
    enter("outputs = await session.run_async(feeds)")
    enter("outputs['y'].shape")
    expect(output).to_contain_text("(1,)")
    enter("_ == outputs['y'].shape")
    expect(output).to_contain_text("True")

    # A block: Enter goes on in it, an empty line ends it.
    line.press_sequentially("for i in range(3):")
    line.press("Enter")
    expect(line).to_have_value("for i in range(3):\n    ")
    line.press_sequentially("print('turn', i)")
    line.press("Enter")
    expect(line).to_have_value("for i in range(3):\n    print('turn', i)\n    ")
    line.press("Enter")
    expect(output).to_contain_text("turn 0\nturn 1\nturn 2")
    expect(line).to_have_value("")

    # History: back over the block to the statement before, and forth again.
    line.press_sequentially("dra")
    line.press("ArrowUp")
    expect(line).to_have_value("for i in range(3):\n    print('turn', i)\n    ")
    line.press("Home")
    line.evaluate("(field) => field.setSelectionRange(0, 0)")
    line.press("ArrowUp")
    expect(line).to_have_value("_ == outputs['y'].shape")
    line.press("ArrowDown")
    expect(line).to_have_value("for i in range(3):\n    print('turn', i)\n    ")
    line.press("ArrowDown")
    expect(line).to_have_value("dra")

    # Completion, of one name and of several.
    line.fill("")
    line.press_sequentially("session.get_inp")
    line.press("Tab")
    expect(line).to_have_value("session.get_inputs()")
    line.fill("")
    line.press_sequentially("x = session.get_")
    line.press("Tab")
    expect(found).to_contain_text("get_outputs()")
    expect(line).to_have_value("x = session.get_")
    line.press_sequentially("nothing")
    line.press("Tab")
    expect(found).to_have_text("No completion")

    # Errors are Python's, without the page's own frames.
    enter("1 / 0")
    expect(output.locator(".error").last).to_contain_text("ZeroDivisionError")
    assert "page_console" not in output.inner_text()
    enter("a b")
    expect(output.locator(".error").last).to_contain_text("SyntaxError")

    # Tab leaves an empty field, and any field after Escape.
    line.fill("")
    line.press("Tab")
    expect(line).not_to_be_focused()
    line.fill("x")
    line.press("Escape")
    line.press("Tab")
    expect(line).not_to_be_focused()

    # An endless loop is ended; the next statement finds Python afresh.
    enter("while True: pass")
    expect(output).to_contain_text(">>> while True: pass")
    page.get_by_role("button", name="Stop").click()
    expect(output.locator(".error").last).to_contain_text("terminated")
    enter("'session' in globals(), 'outputs' in globals()")
    expect(output).to_contain_text("(True, False)")
