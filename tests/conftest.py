"""Fixtures and rules for the whole test suite.

- `browser_type_launch_args`: Playwright runs Debian's Chromium with WebGPU switched on.
- `pywebgpu.testing` brings `serve_site` and `browser_session`, as it does for users.
- With PYWEBGPU_REQUIRE_EXECUTORS=wgpu,wasmtime,... the run fails if one of these executors was
  never exercised: a skipped test must not look like a passed one.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pywebgpu.chromium import CHROMIUM_ARGS, find_chromium
from pywebgpu.errors import DeviceError
from tests import executors_seen

if TYPE_CHECKING:
    from pywebgpu.executors.wgpu_device import Gpu

__all__ = ["CHROMIUM", "CHROMIUM_ARGS"]

# Users get it by its entry point; a checkout need not be installed.
pytest_plugins = ["pywebgpu.testing"]

CHROMIUM = os.environ.get("PYWEBGPU_CHROMIUM") or find_chromium() or "/usr/bin/chromium"


@pytest.fixture(scope="session")
def browser_type_launch_args(browser_type_launch_args: dict[str, Any]) -> dict[str, Any]:
    """How pytest-playwright starts the browser."""
    if not Path(CHROMIUM).exists():
        pytest.skip(f"{CHROMIUM} is not installed (apt-get install chromium)")
    return {**browser_type_launch_args, "executable_path": CHROMIUM, "args": list(CHROMIUM_ARGS)}


@pytest.fixture(scope="module")
def gpu() -> Gpu:
    """This machine's adapter, or llvmpipe; that the executor ran is asserted at the end."""
    from pywebgpu.executors.wgpu_device import Gpu  # only here is wgpu needed

    try:
        return Gpu()
    except DeviceError as error:
        pytest.skip(str(error))


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
