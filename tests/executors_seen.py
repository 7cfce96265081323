"""Which executors the tests really ran, so that a skipped one cannot pass for a tested one.

A test that runs a model or a kernel on an executor calls `record_executor("wasmtime")` once it has
an answer from it. At the end of the run tests/conftest.py compares what was recorded with the
names in PYWEBGPU_REQUIRE_EXECUTORS and fails the run if one is missing.

Each name becomes an empty file in one folder: that works across the processes of pytest-xdist and
needs no lock.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

#: The executors that a complete run must have exercised.
KNOWN = ("wgpu", "wasmtime", "chromium-webgpu", "chromium-wasm")

_FOLDER = "PYWEBGPU_EXECUTORS_SEEN"


def record_executor(name: str) -> None:
    """Note that `name` (one of KNOWN) gave an answer in this test run."""
    if name not in KNOWN:
        raise ValueError(f"executor {name!r} is not known (expected one of {', '.join(KNOWN)})")
    folder = os.environ.get(_FOLDER)
    if folder:
        (Path(folder) / name).touch()


def start() -> None:
    """Begin an empty record; called once, before pytest-xdist starts its workers."""
    os.environ[_FOLDER] = tempfile.mkdtemp(prefix="pywebgpu-executors-")


def seen() -> set[str]:
    """The names recorded since `start`, by this process or any it started."""
    folder = os.environ.get(_FOLDER)
    return {path.name for path in Path(folder).iterdir()} if folder else set()


def missing(required: str) -> list[str]:
    """Names in the comma-separated `required` that were never recorded."""
    names = [name.strip() for name in required.split(",") if name.strip()]
    unknown = [name for name in names if name not in KNOWN]
    if unknown:
        raise ValueError(f"unknown executors {unknown} (expected some of {', '.join(KNOWN)})")
    return [name for name in names if name not in seen()]
