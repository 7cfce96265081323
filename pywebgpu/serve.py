"""A small static file server for built sites, for development and for the tests.

It is not meant for production: any static host will do there. What it adds to
`python -m http.server`: the right MIME types whatever the machine's registry says, the two headers
that make a page cross-origin isolated (threads in WebAssembly need that), an optional
Content-Security-Policy, a sub-path to serve under, and no directory listings.
"""

from __future__ import annotations

import errno
import json
import sys
import threading
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

from pywebgpu.errors import InputError

#: The policy under which a built site must work: nothing from elsewhere, no eval, no inline code.
STRICT_CSP = (
    "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; "
    "style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)


def strict_csp(service: str = "") -> str:
    """`STRICT_CSP`, with the origin of a records service that pages may ask too."""
    asked = f" {origin(service)}" if service else ""
    return STRICT_CSP.replace("connect-src 'self'", f"connect-src 'self'{asked}")


def records_service(site: Path) -> str:
    """The address of the records service that a site was built with (`site.json`), if any."""
    try:
        return str(json.loads((site / "site.json").read_text(encoding="utf-8")).get("records", ""))
    except (OSError, ValueError, AttributeError):
        return ""  # a folder that `site` has not written


def origin(url: str) -> str:
    """Scheme, host and port."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


_ISOLATION_HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
}

# Browsers refuse module scripts and streaming compilation under any other type.
_MIME_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".map": "application/json",
    ".webmanifest": "application/manifest+json",
    ".wasm": "application/wasm",
    ".wgsl": "text/plain; charset=utf-8",
    ".py": "text/plain; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
    ".md": "text/plain; charset=utf-8",
    ".ts": "text/plain; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".ico": "image/x-icon",
    ".woff2": "font/woff2",
    ".zip": "application/zip",
    ".whl": "application/zip",
    "": "application/octet-stream",
}


def normal_base(base: str) -> str:
    """`demo`, `/demo` and `/demo/` all mean the sub-path `/demo/`; the root is `/`."""
    inner = base.strip("/")
    return f"/{inner}/" if inner else "/"


class _Handler(SimpleHTTPRequestHandler):
    """GET and HEAD on files below one folder, under one sub-path."""

    protocol_version = "HTTP/1.1"
    # Or else a small file's body waits, for 40 ms, until the client has acknowledged its headers.
    disable_nagle_algorithm = True
    server_version = "pywebgpu"
    extensions_map = _MIME_TYPES

    def __init__(
        self,
        *args: object,
        root: Path,
        base: str,
        headers: dict[str, str],
        log: Callable[[str], None] | None,
    ) -> None:
        self.root = root
        self.base = base
        self.extra_headers = headers
        self.log = log
        super().__init__(*args, directory=str(root))  # type: ignore[arg-type]

    def guess_type(self, path: object) -> str:
        return _MIME_TYPES.get(Path(str(path)).suffix.lower(), _MIME_TYPES[""])

    def send_head(self) -> Any:
        if self._target() is None:
            self.send_error(HTTPStatus.NOT_FOUND, "File not found")
            return None
        return super().send_head()

    def translate_path(self, path: str) -> str:
        """The file for the request; only called when `_target` found one inside the folder."""
        target = self._target()
        assert target is not None
        # The base class tells `folder` from `folder/` by the trailing slash.
        return f"{target}/" if urlsplit(path).path.endswith("/") else str(target)

    def _target(self) -> Path | None:
        """The file that the request's path names, or None when it leads outside the folder.

        Symbolic links are resolved first, so a link cannot lead outside either.
        """
        url_path = unquote(urlsplit(self.path).path)
        if not url_path.startswith(self.base) or "\0" in url_path or "\\" in url_path:
            return None
        target = (self.root / url_path[len(self.base) :].lstrip("/")).resolve()
        return target if target.is_relative_to(self.root) else None

    def copyfile(self, source: Any, outputfile: Any) -> None:
        """The kernel does it: large files cost this process next to nothing."""
        self.connection.sendfile(source)

    def list_directory(self, path: object) -> None:
        self.send_error(HTTPStatus.NOT_FOUND, "No index.html here")

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-cache")
        self.send_header("X-Content-Type-Options", "nosniff")
        for name, value in self.extra_headers.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:
        if self.log is not None:
            self.log(f"{self.address_string()} {format % args}")


class _Server(ThreadingHTTPServer):
    """One thread per connection; a browser that hangs up is no error worth a traceback."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class SiteServer:
    """Serves the folder `site`; use it as a context manager, or call `serve_forever`.

    port: 0 takes any free one; see `url` for the address.
    isolation: send the headers that make pages cross-origin isolated.
    csp: the value of the Content-Security-Policy header, or None for no such header.
    base: the sub-path that the site appears under.
    log: called with one line per request; None keeps quiet.
    """

    def __init__(
        self,
        site: Path,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        isolation: bool = True,
        csp: str | None = None,
        base: str = "/",
        log: Callable[[str], None] | None = None,
    ) -> None:
        if not site.is_dir():
            raise InputError(
                "no such folder to serve",
                where=str(site),
                remedy="Build one with `pywebgpu site MODEL.onnx -o SITE`.",
            )
        headers = dict(_ISOLATION_HEADERS) if isolation else {}
        if csp:
            headers["Content-Security-Policy"] = csp
        self.base = normal_base(base)
        handler = partial(_Handler, root=site.resolve(), base=self.base, headers=headers, log=log)
        try:
            self._server = _Server((host, port), handler)
        except OverflowError:
            raise InputError(
                "not a port number", where="--port", got=port, expected="0 to 65535"
            ) from None
        except OSError as error:
            raise _listen_error(error, host, port) from error
        self._thread: threading.Thread | None = None
        self.host = host
        self.port = int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """The address of the site's first page, with a trailing slash."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{name}:{self.port}{self.base}"

    def serve_forever(self) -> None:
        """Serve in this thread until interrupted or closed."""
        self._server.serve_forever(poll_interval=0.2)

    def start(self) -> SiteServer:
        """Serve in a background thread until `close`."""
        self._thread = threading.Thread(target=self.serve_forever, daemon=True)
        self._thread.start()
        return self

    def close(self) -> None:
        """Stop serving and free the port."""
        if self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._thread = None
        self._server.server_close()

    def __enter__(self) -> SiteServer:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _listen_error(error: OSError, host: str, port: int) -> InputError:
    remedies = {
        errno.EADDRINUSE: "Another program uses this port; choose another one with --port.",
        errno.EACCES: "Ports below 1024 need special rights; choose another one with --port.",
    }
    return InputError(
        f"cannot listen: {error.strerror or error}",
        where=f"{host}:{port}",
        remedy=remedies.get(error.errno or 0, "Choose another address with --host or --port."),
    )
