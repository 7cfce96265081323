"""The stage without Playwright: a browser is started on a page that runs a list of jobs itself.

For machines with a GPU where no driver for browsers can be installed. Any Chromium will do.
"""

from __future__ import annotations

import contextlib
import json
import queue
import shlex
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from pywebgpu.serve import SiteServer


class _Collector(BaseHTTPRequestHandler):
    """Takes the page's posts."""

    results: queue.Queue[dict[str, Any]]

    def do_POST(self) -> None:
        self.results.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.send_header("Access-Control-Allow-Origin", "*")
        self.send_header("Cross-Origin-Resource-Policy", "cross-origin")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def run(
    folder: Path, jobs: list[dict[str, Any]], browser: str, flags: list[str], timeout: float
) -> Iterator[dict[str, Any]]:
    """One result per job, in order, as they come; a job without an answer in `timeout` seconds has
    {"failed": ...}, and a new browser goes on with the next one."""
    results: queue.Queue[dict[str, Any]] = queue.Queue()
    handler = type("Collector", (_Collector,), {"results": results})
    collector = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{collector.server_port}/"
    (folder / "jobs.json").write_text(json.dumps({"jobs": jobs, "collector": url}))
    server = SiteServer(folder, isolation=True).start()
    first = 0
    try:
        while first < len(jobs):
            page = f"{server.url}page/auto.html?job={first}"
            with _browser([*shlex.split(browser), *flags], page):
                for expected in range(first, len(jobs)):
                    result = _answer(results, expected, timeout)
                    first = expected + 1
                    yield result
                    if "failed" in result:
                        break
    finally:
        server.close()
        collector.shutdown()


def _answer(results: queue.Queue[dict[str, Any]], expected: int, timeout: float) -> dict[str, Any]:
    """Job `expected`'s; a late one of a browser that was given up does not count."""
    end = time.monotonic() + timeout
    while True:
        try:
            result = results.get(timeout=max(0.0, end - time.monotonic()))
        except queue.Empty:
            return {"failed": f"no answer from the page in {timeout:.0f} s"}
        if result.pop("index") == expected:
            return result


@contextlib.contextmanager
def _browser(command: list[str], page: str) -> Iterator[None]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [
                *command, "--headless", f"--user-data-dir={profile}",
                "--remote-debugging-port=0", page,
            ],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            yield
        finally:
            process.kill()
            process.wait()
