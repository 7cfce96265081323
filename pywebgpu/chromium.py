"""Chromium as tests and benchmarks start it."""

from __future__ import annotations

import shutil

#: WebGPU without a GPU too, and no traffic of the browser's own.
CHROMIUM_ARGS = (
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-unsafe-webgpu",
)
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find_chromium() -> str | None:
    """The path of the first Chromium on the PATH."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)
