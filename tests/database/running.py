"""`pywebgpu records serve` as a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx


@contextmanager
def running(database: str, *options: str) -> Iterator[tuple[httpx.Client, subprocess.Popen[str]]]:
    """The service behind a client; tests speak for the proxy at 127.0.0.1."""
    command = [sys.executable, "-m", "pywebgpu", "records", "serve", "--database", database]
    command += ["--port", "0", "--trust-proxy", "127.0.0.1", "--json", *options]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    try:
        assert process.stdout is not None
        lines = ""
        while True:  # the object may be printed over several lines
            lines += process.stdout.readline()
            try:
                url = json.loads(lines)["url"]
                break
            except ValueError:
                assert process.poll() is None, lines
        with httpx.Client(base_url=url, timeout=60) as client:
            yield client, process
    finally:
        process.terminate()
        process.wait(30)
