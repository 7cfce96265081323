"""The kernel database over HTTP.

    POST /v1/records     what a page's tuner found, in the form of `records.schema.json`
    GET  /v1/winners     what enough contributors agree on, in the same form
    GET  /health         is the database there
    GET  /metrics        for Prometheus
    GET  /docs           the OpenAPI page, from files of its own

What a client sends is bounded in size and in rate before it is read, and checked against the schema
before it is believed; what it claims is believed only as far as others confirm it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import jsonschema
from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.middleware.cors import CORSMiddleware
from fastapi_offline import FastAPIOffline
from limits import parse
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram
from prometheus_client import generate_latest as metrics_text

from .. import __version__
from ..codegen import GENERATOR_VERSION
from ..errors import InputError
from ..records import records_from_json, records_json
from .store import Store

MAX_BODY = 512 * 1024
"""Bytes of a request's body: some hundreds of kernels with all their candidates."""

MAX_RECORDS = 500
"""Records in one request."""

Target = Literal["wasm-relaxed", "wasm-simd", "webgpu", "webgpu-emulated"]


@dataclass(frozen=True, slots=True)
class Settings:
    """How the service behaves.

    origins: the sites whose pages may use it; "*" for any. confirmations: see `aggregate`.
    rate: requests that one network may make, such as "120/minute"; "" for no limit.
    """

    origins: tuple[str, ...] = ()
    confirmations: int = 3
    rate: str = "120/minute"


def create_app(store: Store, settings: Settings) -> FastAPI:
    """The service over a store, which it closes at its end.

    Raises:
        InputError: the settings make no sense.
    """
    if settings.confirmations < 2:
        raise InputError(
            "one contributor alone could decide",
            where="--confirmations",
            got=settings.confirmations,
            expected="2 or more",
        )
    allowed = _limiter(settings.rate)
    metrics = _Metrics()

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        yield
        store.close()

    app: FastAPI = FastAPIOffline(
        title="pywebgpu kernel records",
        description="Which kernels are the quickest on which devices, as visitors measured it.",
        version=__version__,
        lifespan=life,
    )
    app.add_middleware(
        CORSMiddleware,
        allow_origins=list(settings.origins),
        allow_methods=["GET", "POST"],
        allow_headers=["Content-Type"],
        max_age=3600,
    )

    @app.middleware("http")
    async def observe(request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
        start = time.perf_counter()
        response = await call(request)
        # The route and not the path: a hostile client must not be able to invent labels.
        route = request.scope.get("route")
        metrics.observe(
            getattr(route, "path", "other"), response.status_code, time.perf_counter() - start
        )
        return response

    def contributor_of(request: Request) -> str:
        """Who asks; raises 429 where they ask too often."""
        who = store.contributor(request.client.host if request.client else "unknown")
        wait = allowed(who)
        if wait > 0:
            raise HTTPException(
                429, "too many requests; try again later", {"Retry-After": str(int(wait) + 1)}
            )
        return who

    body = {"content": {"application/json": {"schema": _schema()}}, "required": True}

    @app.post("/v1/records", status_code=201, openapi_extra={"requestBody": body})
    async def contribute(request: Request) -> dict[str, int]:
        """Keep records that this client measured; they replace what it said of the same kernels.

        413: too large. 422: not such records, or of another generator version. 429: too often.
        """
        who = contributor_of(request)
        records = _checked(await _read_body(request))
        kept = await run_in_threadpool(store.contribute, who, records)
        metrics.records.inc(kept)
        return {"accepted": kept}

    @app.get("/v1/winners")
    async def winners(
        request: Request,
        target: Target,
        device: Annotated[str | None, Query(max_length=500)] = None,
        kernel: Annotated[list[str] | None, Query(max_length=MAX_RECORDS)] = None,
        generator_version: Annotated[str, Query(max_length=40)] = GENERATOR_VERSION,
    ) -> Response:
        """The records that enough contributors confirm, of one device or, left out, of all."""
        contributor_of(request)
        found = await run_in_threadpool(
            store.winners,
            target,
            generator_version,
            confirmations=settings.confirmations,
            device=device,
            kernels=kernel or (),
        )
        text = records_json(found).encode()
        tag = f'"{hashlib.sha256(text).hexdigest()[:32]}"'
        headers = {"ETag": tag, "Cache-Control": "public, max-age=300"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(text, media_type="application/json", headers=headers)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """200 with a few counts while the database answers."""
        try:
            counts = await run_in_threadpool(store.counts)
        except Exception as error:  # drivers have their own kinds
            raise HTTPException(503, "the database does not answer") from error
        return {"status": "ok", "version": __version__, **counts}

    @app.get("/metrics", include_in_schema=False)
    async def metrics_page() -> Response:
        return Response(metrics_text(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


class _Metrics:
    """Counters of one app; a registry of its own, so that several apps can live in a process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "pywebgpu_requests", "Requests answered", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "pywebgpu_request_seconds", "Time to answer", ["route"], registry=self.registry
        )
        self.records = Counter("pywebgpu_records", "Records accepted", registry=self.registry)

    def observe(self, route: str, status: int, seconds: float) -> None:
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)


def _limiter(rate: str) -> Callable[[str], float]:
    """A function that counts a request and says how many seconds to wait; 0 lets it through."""
    if not rate:
        return lambda who: 0.0
    try:
        item = parse(rate)
    except ValueError as error:
        raise InputError(
            "not a rate", where="--rate", got=rate, expected='such as "120/minute", or ""'
        ) from error
    limiter = MovingWindowRateLimiter(MemoryStorage())

    def wait(who: str) -> float:
        if limiter.hit(item, who):
            return 0.0
        return max(0.1, limiter.get_window_stats(item, who).reset_time - time.time())

    return wait


@functools.cache
def _schema() -> dict[str, Any]:
    text = (Path(__file__).parents[1] / "records.schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


@functools.cache
def _validator() -> Any:
    return jsonschema.Draft202012Validator(_schema())


async def _read_body(request: Request) -> bytes:
    """The body, while it stays within `MAX_BODY`."""
    declared = request.headers.get("content-length", "0")
    chunks: list[bytes] = []
    size = int(declared) if declared.isdecimal() else 0
    if size <= MAX_BODY:
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > MAX_BODY:
                break
            chunks.append(chunk)
    if size > MAX_BODY:
        raise HTTPException(413, f"at most {MAX_BODY} bytes")
    return b"".join(chunks)


def _checked(body: bytes) -> tuple[Any, ...]:
    """The body's records; 422 says what is wrong with it."""
    try:
        data = json.loads(body, parse_constant=_refuse)
        error = next(_validator().iter_errors(data), None)
    except (ValueError, RecursionError) as failure:
        raise HTTPException(422, f"not JSON: {type(failure).__name__}") from failure
    if error is not None:
        where = "/".join(str(part) for part in error.absolute_path)
        raise HTTPException(422, f"{where or 'the body'}: not of the records' form")
    count = len(data["records"])
    if count > MAX_RECORDS:
        raise HTTPException(422, f"at most {MAX_RECORDS} records at once, got {count}")
    try:
        records = records_from_json(body)
    except InputError as failure:
        raise HTTPException(422, failure.what) from failure
    if len(records) < count:
        raise HTTPException(
            422, f"records of one key, or not of generator version {GENERATOR_VERSION!r}"
        )
    return records


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")
