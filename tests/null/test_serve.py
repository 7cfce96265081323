"""The static server: what it serves, as what, with which headers, and what it refuses."""

from __future__ import annotations

import http.client
import os
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from pywebgpu.errors import InputError
from pywebgpu.serve import STRICT_CSP, SiteServer, normal_base


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    (folder / "assets").mkdir(parents=True)
    (folder / "empty").mkdir()
    (folder / "index.html").write_text("<p>home</p>")
    (folder / "assets" / "index.html").write_text("<p>assets</p>")
    for name in ("a.js", "b.mjs", "c.wasm", "d.json", "e.css", "with space.txt"):
        (folder / name).write_bytes(b"content of " + name.encode())
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    return folder


def get(url: str, path: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    """One raw request: http.client sends `..` as it is, unlike urllib."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        headers = {name.title(): value for name, value in response.getheaders()}
        return response.status, headers, response.read()
    finally:
        connection.close()


def test_serves_files_with_types_that_browsers_accept(site: Path) -> None:
    expected = {
        "/": "text/html; charset=utf-8",
        "/assets/": "text/html; charset=utf-8",
        "/a.js": "text/javascript; charset=utf-8",
        "/b.mjs": "text/javascript; charset=utf-8",
        "/c.wasm": "application/wasm",
        "/d.json": "application/json",
        "/e.css": "text/css; charset=utf-8",
        "/with%20space.txt": "text/plain; charset=utf-8",
    }
    with SiteServer(site) as server:
        for path, mime in expected.items():
            status, headers, body = get(server.url, path)
            assert (status, headers["Content-Type"]) == (200, mime), path
            assert int(headers["Content-Length"]) == len(body)
        assert get(server.url, "/a.js?v=1#x")[2] == b"content of a.js"
        assert get(server.url, "/a.js", "HEAD")[2] == b""
        assert get(server.url, "/assets")[0] == 301


def test_files_of_any_size_on_one_connection_without_waiting_for_acknowledgements(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = os.urandom(3_000_001)
    (site / "large.bin").write_bytes(large)
    served: list[tuple[socket.socket, Any]] = []
    with SiteServer(site) as server:
        accept = server._server.get_request

        def get_request() -> tuple[socket.socket, Any]:
            served.append(accept())
            return served[-1]

        monkeypatch.setattr(server._server, "get_request", get_request)
        parts = urlsplit(server.url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
        for path, content in [("/a.js", b"content of a.js"), ("/large.bin", large)] * 2:
            connection.request("GET", path)
            assert connection.getresponse().read() == content
        ((accepted, _),) = served
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        connection.close()


@pytest.mark.parametrize("isolation", [True, False])
@pytest.mark.parametrize("csp", [None, STRICT_CSP])
def test_headers(site: Path, isolation: bool, csp: str | None) -> None:
    with SiteServer(site, isolation=isolation, csp=csp) as server:
        for path in ("/", "/missing"):
            headers = get(server.url, path)[1]
            assert headers.get("Cross-Origin-Opener-Policy") == (
                "same-origin" if isolation else None
            )
            assert ("Cross-Origin-Embedder-Policy" in headers) is isolation
            assert headers.get("Content-Security-Policy") == csp


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.txt",
        "/%2e%2e/secret.txt",
        "/assets/../../secret.txt",
        "/..%2fsecret.txt",
        "/..\\secret.txt",
        "//../secret.txt",
        "/%00",
        "/link.txt",
        "/empty/",
        "/missing.js",
    ],
)
def test_gives_nothing_outside_the_folder_and_no_listing(site: Path, path: str) -> None:
    with SiteServer(site) as server:
        status, _, body = get(server.url, path)
    assert status == 404
    assert body != b"secret"


def test_sub_path(site: Path) -> None:
    with SiteServer(site, base="my/demo") as server:
        assert server.url.endswith("/my/demo/")
        assert get(server.url, "/my/demo/a.js")[0] == 200
        assert get(server.url, "/my/demo/")[2] == b"<p>home</p>"
        assert get(server.url, "/a.js")[0] == 404
        assert get(server.url, "/my/demo-other/a.js")[0] == 404


@pytest.mark.parametrize(
    ("base", "normal"), [("", "/"), ("/", "/"), ("x", "/x/"), ("/x/", "/x/"), ("/x/y", "/x/y/")]
)
def test_normal_base(base: str, normal: str) -> None:
    assert normal_base(base) == normal


def test_errors_say_what_to_do(site: Path) -> None:
    with pytest.raises(InputError, match=r"no such folder.*pywebgpu site"):
        SiteServer(site / "missing")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match=r"cannot listen.*--port"):
            SiteServer(site, port=taken.getsockname()[1])
    with pytest.raises(InputError, match="not a port number"):
        SiteServer(site, port=70000)
