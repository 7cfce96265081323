"""Fixtures and rules for the whole test suite.

- `browser_type_launch_args`: Playwright runs Debian's Chromium with WebGPU switched on.
- `serve_site`: a loopback web server for a folder, with or without isolation headers and a CSP.
- With PYWEBGPU_REQUIRE_EXECUTORS=wgpu,wasmtime,... the run fails if one of these executors was
  never exercised: a skipped test must not look like a passed one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pywebgpu.serve import SiteServer
from tests import executors_seen

CHROMIUM = os.environ.get("PYWEBGPU_CHROMIUM", "/usr/bin/chromium")

# WebGPU on the software adapter, and no traffic of the browser's own.
CHROMIUM_ARGS = [
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-unsafe-webgpu",
]

ServeSite = Callable[..., str]


@pytest.fixture(scope="session")
def browser_type_launch_args(browser_type_launch_args: dict[str, Any]) -> dict[str, Any]:
    """How pytest-playwright starts the browser."""
    if not Path(CHROMIUM).exists():
        pytest.skip(f"{CHROMIUM} is not installed (apt-get install chromium)")
    return {**browser_type_launch_args, "executable_path": CHROMIUM, "args": CHROMIUM_ARGS}


@pytest.fixture(scope="session")
def serve_site() -> Iterator[ServeSite]:
    """`serve_site(folder, isolation=True, csp=None, base="/")` gives the URL of a running server.

    The same arguments give the same server; all are closed at the end of the session.
    """
    servers: dict[tuple[Path, bool, str | None, str], SiteServer] = {}

    def serve(
        folder: Path, *, isolation: bool = True, csp: str | None = None, base: str = "/"
    ) -> str:
        key = (Path(folder).resolve(), isolation, csp, base)
        if key not in servers:
            server = SiteServer(key[0], isolation=isolation, csp=csp, base=base)
            servers[key] = server.start()
        return servers[key].url

    yield serve
    for server in servers.values():
        server.close()


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def pytest_configure(config: pytest.Config) -> None:
    if not _is_worker(config):
        executors_seen.start()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail the run when an executor that had to be tested was not."""
    required = os.environ.get("PYWEBGPU_REQUIRE_EXECUTORS", "")
    if _is_worker(session.config) or session.config.option.collectonly or not required:
        return
    missing = executors_seen.missing(required)
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if missing:
        if reporter is not None:
            reporter.write_line("")
            reporter.write_line(
                f"Executors that had to be exercised and were not: {', '.join(missing)}",
                red=True,
                bold=True,
            )
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    elif reporter is not None:
        reporter.write_line(f"\nExecutors exercised: {', '.join(sorted(executors_seen.seen()))}")
