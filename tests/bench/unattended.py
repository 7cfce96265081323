"""The stage without Playwright: a browser is started on a page that runs a list of jobs itself.

For machines with a GPU where no driver for browsers can be installed. Any Chromium will do.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from pywebgpu.serve import SiteServer


class _Collector(BaseHTTPRequestHandler):
    """Takes the page's posts."""

    results: dict[int, dict[str, Any]]
    done: threading.Event

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body.pop("done", False):
            self.done.set()
        else:
            self.results[body.pop("index")] = body
        self.send_response(204)
        self.send_header("Access-Control-Allow-Origin", "*")
        self.send_header("Cross-Origin-Resource-Policy", "cross-origin")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def run(
    folder: Path, jobs: list[dict[str, Any]], browser: str, flags: list[str], timeout: float
) -> list[dict[str, Any]]:
    """One result per job, in order; a job that never answered has {"failed": ...}."""
    handler = type("Collector", (_Collector,), {"results": {}, "done": threading.Event()})
    collector = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{collector.server_port}/"
    (folder / "jobs.json").write_text(json.dumps({"jobs": jobs, "collector": url}))
    server = SiteServer(folder, isolation=True).start()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [
                *shlex.split(browser), "--headless", f"--user-data-dir={profile}",
                "--remote-debugging-port=0", *flags, server.url + "page/auto.html",
            ],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            handler.done.wait(timeout)
        finally:
            process.kill()
            process.wait()
            server.close()
            collector.shutdown()
    missing = {"failed": "no answer from the page"}
    return [handler.results.get(i, missing) for i in range(len(jobs))]
