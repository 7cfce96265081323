"""The kernel database as a process of its own, over SQLite and over a real PostgreSQL."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import pgserver
import psycopg
import pytest

from pywebgpu.codegen import GENERATOR_VERSION
from pywebgpu.records import Record, Timing, records_from_json
from tests.database.running import running

DEFAULT, FAST = {"tile": 4}, {"tile": 8}
DEVICE = "features=f16 limits=big speed=5"


def record(kernel: int, fast: float = 0.5, device: str = DEVICE) -> Record:
    timings = (Timing(DEFAULT, 2.0), Timing(FAST, 2.0 * fast))
    return Record(f"{kernel:024x}", "webgpu", device, GENERATOR_VERSION, timings, FAST)


def body(*records: Record) -> dict[str, Any]:
    return {"format_version": 1, "records": [asdict(r) for r in records]}


def network(number: int) -> dict[str, str]:
    """The header by which a trusted proxy tells whose request it is."""
    return {"X-Forwarded-For": f"10.{number // 250}.{number % 250}.7"}


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    """A real server's URI, of its first database."""
    with tempfile.TemporaryDirectory() as folder:
        server = pgserver.get_server(folder, cleanup_mode="stop")
        yield server.get_uri()
        server.cleanup()


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'records.db'}"
    uri: str = request.getfixturevalue("postgresql")
    name = f"t{uuid.uuid4().hex}"
    with psycopg.connect(uri, autocommit=True) as connection:
        connection.execute(f"create database {name}".encode())
    return uri.replace("postgresql://", "postgresql+psycopg://").replace("/postgres?", f"/{name}?")


def winners(client: httpx.Client, **query: Any) -> tuple[Record, ...]:
    asked = {"target": "webgpu", "device": DEVICE, **query}
    given = {name: value for name, value in asked.items() if value is not None}
    answer = client.get("v1/winners", params=given)
    assert answer.status_code == 200, answer.text
    return records_from_json(answer.content)


def test_contributions_become_winners_and_survive_a_restart(database: str) -> None:
    mine, other = record(1), record(2)
    with running(database, "--confirmations", "3") as (client, _):
        for number in range(3):
            assert winners(client) == ()
            for _ in range(2):  # saying it twice makes it no truer
                answer = client.post("v1/records", json=body(mine, other), headers=network(number))
                assert (answer.status_code, answer.json()) == (201, {"accepted": 2})
        assert [r.kernel for r in winners(client)] == [mine.kernel, other.kernel]
        assert winners(client, kernel=mine.kernel)[0].best == FAST
        assert winners(client, device="another") == ()
        assert len(winners(client, device=None)) == 2
        # One more, who claims the contrary of everything.
        liar = Record(mine.kernel, "webgpu", DEVICE, GENERATOR_VERSION,
                      (Timing(DEFAULT, 1e-9), Timing(FAST, 1e9)), DEFAULT)  # fmt: skip
        client.post("v1/records", json=body(liar), headers=network(9))
        assert winners(client, kernel=mine.kernel)[0].best == FAST
    with running(database, "--confirmations", "3") as (client, _):
        assert len(winners(client)) == 2
        health = client.get("health").json()
        assert health["status"] == "ok"
        assert (health["keys"], health["contributors"]) == (2, 4)


def test_hostile_input_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    good = body(record(1))
    deep = '{"format_version": 1, "records": ' + "[" * 100_000 + "]" * 100_000 + "}"
    spoiled = [
        b"", b"{", b"\xff\xfe", b"[]", b"null", deep.encode(), b'{"format_version": 1}',
        json.dumps({**good, "extra": 1}).encode(),
        json.dumps({**good, "format_version": 2}).encode(),
        json.dumps(good).replace("2.0", "NaN").encode(),
        json.dumps(good).replace("2.0", "-1").encode(),
        json.dumps(good).replace("2.0", "1e999").encode(),
        json.dumps(good).replace("2.0", '"fast"').encode(),
        json.dumps(good).replace('"webgpu"', '"wasm; drop table contributions"').encode(),
        json.dumps(body(record(1, device="x" * 501))).encode(),
        json.dumps(body(*(record(i) for i in range(501)))).encode(),
        json.dumps({"format_version": 1, "records": [good["records"][0]] * 2}).encode(),
        json.dumps(good).replace(f'"{GENERATOR_VERSION}"', '"0"').encode(),
    ]  # fmt: skip
    database = f"sqlite:///{tmp_path / 'records.db'}"
    with running(database, "--rate", "") as (client, _):
        for data in spoiled:
            answer = client.post("v1/records", content=data)
            assert answer.status_code == 422, (data[:80], answer.text)
            assert "Traceback" not in answer.text
        assert client.post("v1/records", content=b" " * 600_000).status_code == 413
        endless = client.post("v1/records", content=(b" " * 65536 for _ in range(1000)))
        assert endless.status_code == 413
        quoted = client.get("v1/winners", params={"target": "webgpu", "device": "' or 1=1 --"})
        assert quoted.json()["records"] == []
        assert client.get("v1/winners", params={"target": "gpu"}).status_code == 422
        assert client.get("v1/winners?target=webgpu&device=" + "x" * 501).status_code == 422
        assert client.get("nothing/here").status_code == 404
        assert client.get("health").json()["contributions"] == 0
        metrics = client.get("metrics").text
        assert 'route="/v1/records",status="422"' in metrics
        assert "nothing" not in metrics


def test_rate_limit_is_per_network(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path / 'records.db'}"
    with running(database, "--rate", "3/hour") as (client, _):
        url = "v1/winners?target=webgpu"
        statuses = [client.get(url, headers=network(1)).status_code for _ in range(5)]
        assert statuses == [200, 200, 200, 429, 429]
        refused = client.get(url, headers=network(1))
        assert 0 < int(refused.headers["Retry-After"]) <= 3601
        assert client.get(url, headers=network(2)).status_code == 200


def test_only_named_origins_and_conditional_requests(tmp_path: Path) -> None:
    options = ["--origin", "https://example.org"]
    with running(f"sqlite:///{tmp_path / 'records.db'}", *options) as (client, _):
        asked = {
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type",
        }
        for origin, allowed in (("https://example.org", True), ("https://evil.example", False)):
            answer = client.options("v1/records", headers={"Origin": origin, **asked})
            assert (answer.headers.get("access-control-allow-origin") == origin) is allowed
        first = client.get("v1/winners?target=webgpu")
        again = client.get(
            "v1/winners?target=webgpu", headers={"If-None-Match": first.headers["etag"]}
        )
        assert again.status_code == 304
        page = client.get("docs")
        assert page.status_code == 200
        assert "https://" not in page.text, "the page must not ask other origins"
        assert "/v1/winners" in client.get("openapi.json").json()["paths"]


def test_200_requests_a_second_lose_nothing(database: str) -> None:
    """600 requests spread over 3 seconds by 16 clients, each another record."""
    count, rate = 600, 200
    with running(database, "--rate", "", "--confirmations", "2") as (client, _):
        started = time.perf_counter()
        local = threading.local()

        def send(number: int) -> int:
            if not hasattr(local, "client"):
                local.client = httpx.Client(base_url=client.base_url, timeout=60)
            time.sleep(max(0.0, started + number / rate - time.perf_counter()))
            sent = body(record(1_000_000 + number // 2))
            answer = local.client.post("v1/records", json=sent, headers=network(number % 2))
            return int(answer.status_code)

        with ThreadPoolExecutor(16) as pool:
            statuses = list(pool.map(send, range(count)))
        assert statuses == [201] * count
        assert client.get("health").json()["contributions"] == count
        known = {r.kernel for r in winners(client)}
        assert {record(1_000_000 + n).kernel for n in range(count // 2)} <= known


def test_sigterm_finishes_what_is_under_way(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path / 'records.db'}"
    with running(database, "--rate", "") as (client, process):
        data = json.dumps(body(*(record(i) for i in range(300)))).encode()
        stopping = threading.Event()

        def slowly() -> Iterator[bytes]:
            yield data[:1000]
            process.send_signal(signal.SIGTERM)
            time.sleep(1)
            stopping.set()
            yield data[1000:]

        answer = client.post("v1/records", content=slowly())
        assert stopping.is_set()
        assert answer.status_code == 201
        assert process.wait(30) == 0
    with running(database) as (client, _):
        assert client.get("health").json()["contributions"] == 300


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--database", "nonsense"], "--database"),
        (["--database", "oracle://x"], "--database"),
        (["--database", "sqlite:////nowhere/at/all.db"], "cannot be opened"),
        (["--database", "postgresql+psycopg://u:hidden@127.0.0.1:1/x"], "cannot be opened"),
        (["--confirmations", "1"], "--confirmations"),
        (["--rate", "often"], "--rate"),
    ],
)
def test_wrong_options(options: list[str], told: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pywebgpu", "records", "serve", "--port", "0", *options]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert result.returncode == 2, result.stderr
    assert told in result.stderr
    assert "Traceback" not in result.stderr
    assert "hidden" not in result.stderr
