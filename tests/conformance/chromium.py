"""One headless Chromium with one page that asks for jobs and posts its answers.

The page pulls, so that nothing here waits inside a browser that may hang or die: an answer that
does not come within the time limit costs the browser, and the next job starts in a new one.
"""

from __future__ import annotations

import json
import queue
import subprocess
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

from pywebgpu.serve import SiteServer
from tests.conftest import CHROMIUM, CHROMIUM_ARGS

Job = dict[str, Any]
Answer = dict[str, Any]

START_SECONDS = 60
"""What a browser may take until its page asks for the first job."""


class BrowserGone(Exception):
    """The browser died or gave no answer in time."""


class _Channel(BaseHTTPRequestHandler):
    """GET gives the next job as soon as there is one, POST takes an answer."""

    protocol_version = "HTTP/1.1"
    jobs: queue.Queue[Job]
    answers: queue.Queue[Answer]
    asked: threading.Event

    def do_GET(self) -> None:
        self.asked.set()
        self._reply(json.dumps(self.jobs.get()).encode())

    def do_POST(self) -> None:
        self.answers.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self._reply(b"{}")

    def _reply(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Access-Control-Allow-Origin", "*")
        self.send_header("Cross-Origin-Resource-Policy", "cross-origin")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that is killed hangs up."""


class Chromium:
    """A context manager; `folder` is what the page may fetch, `page` its address in there."""

    def __init__(
        self,
        folder: Path,
        page: str,
        *,
        binary: str = CHROMIUM,
        flags: tuple[str, ...] = tuple(CHROMIUM_ARGS),
    ) -> None:
        self.folder, self.page = folder, page
        self.command = [binary, "--headless", "--remote-debugging-port=0", *flags]
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: ThreadingHTTPServer | None = None
        self._profile: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Chromium:
        self._site = SiteServer(self.folder, isolation=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()
        self._site.close()

    def ask(self, job: Job, seconds: float) -> Answer:
        """The page's answer to `job`.

        Raises:
            BrowserGone: there is none; the next call begins with a new browser.
        """
        if self._process is None:
            self._start()
        process = self._process
        assert process is not None
        self._handler.jobs.put(job)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                return self._handler.answers.get(timeout=1)
            except queue.Empty:
                if process.poll() is not None:
                    break
        late = process.poll() is None
        self._stop()
        raise BrowserGone(f"no answer in {seconds:.0f} s" if late else "the browser died")

    def _start(self) -> None:
        # A new channel for a new browser: nothing that the old one still sends can be mistaken.
        self._handler = type(
            "Channel",
            (_Channel,),
            {"jobs": queue.Queue(), "answers": queue.Queue(), "asked": threading.Event()},
        )
        self._channel = _Server(("127.0.0.1", 0), self._handler)
        threading.Thread(target=self._channel.serve_forever, daemon=True).start()
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        address = f"{self._site.url}{self.page}?channel={self._channel.server_port}"
        self._process = subprocess.Popen(
            [*self.command, f"--user-data-dir={self._profile.name}", address],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        if not self._handler.asked.wait(START_SECONDS):
            self._stop()
            raise RuntimeError(f"{self.command[0]} does not open its page")

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._channel is not None:
            self._channel.shutdown()
            self._channel.server_close()
            self._channel = None
        if self._profile is not None:
            self._profile.cleanup()
            self._profile = None
