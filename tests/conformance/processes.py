"""How the runners start the processes that work for them."""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import BaseContext


def context() -> BaseContext:
    """Not by fork: this process may have threads (a GPU's, an engine's), and a copy of it would
    wait for ever for the locks that they hold."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(["tests.conformance.desktop", "tests.conformance.browser"])
    return made
