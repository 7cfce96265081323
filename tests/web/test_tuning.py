"""The page that tunes itself: first answers do not wait for it, runs stay right while winners are
taken into use, the next visit starts with them, and what a candidate breaks is not the page's.

What is measured is a matter of chance, so where a test needs winners it makes them: `Rigged` stands
between the page and its Python and says that the candidate after the default took half the time.
Of the device it says what it said the first time, so that all tunings of a page have the same
candidates. All else is real: Python, the measuring worker, the checks, the swaps.
"""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnxruntime
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Route

from pywebgpu import pyodide_archive
from pywebgpu.codegen.wasm.asm import I32, Module
from pywebgpu.export import export
from pywebgpu.serve import STRICT_CSP
from pywebgpu.vendored import PYODIDE, package_folder
from tests.database.running import running
from tests.executors_seen import record_executor
from tests.models import zoo
from tests.web import conftest

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "examples" / "digits" / "digits.onnx"
TIMEOUT_MS = 400_000

HELPERS = """
import { PythonRuntime } from "./web/py/client.js";
import { InferenceSession, Tensor } from "./web/pywebgpu.js";
export * from "./web/pywebgpu.js";

let shared;
export const python = () => (shared ??= PythonRuntime.create());

const clocks = [];  // what each of the micro-benchmarks took, in their order

export class Rigged {
  numbers = null;  // of the candidates being measured
  clock = -1;  // the micro-benchmark in hand
  clocked = 0;
  searched = 0;
  // `edit(request)` may change what Python asks for; `after(n)` is told of each searched kernel.
  // `known(text)` is told what a records service had to say.
  constructor(python, { edit, after, known, wins = true } = {}) {
    Object.assign(this, { python, edit, after, known, wins });
  }
  async call(module, name, ...args) {
    if (name === "step" && this.wins && this.numbers && args[1].ms) {
      args[1].ms = this.numbers.map((n) => (n === 1 ? 0.5 : 1));
    }
    if (name === "step" && this.clock >= 0 && args[1].ms) {
      args[1].ms = clocks[this.clock] ??= args[1].ms;
    }
    if (name === "step" && "records" in args[1]) this.known?.(args[1].records);
    const value = await this.python.call(module, name, ...args);
    this.numbers = value?.kind === "measure" ? value.numbers : null;
    this.clock = value?.kind === "clock" ? this.clocked++ : -1;
    if (value?.kind === "searched") await this.after?.(++this.searched);
    if (value?.kind) await this.edit?.(value);
    return value;
  }
}
export const create = (provider, options = {}) =>
  InferenceSession.create("digits", { executionProviders: [provider], ...options });
export const feeds = (pixels) => ({ image: new Tensor("float32", pixels, [1, 1, 8, 8]) });
export const ask = async (session, pixels) =>
  Array.from((await session.run(feeds(pixels)))[session.outputNames[0]].data);
export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
export const facts = (promise) => promise.then(() => null, (e) => e.toJSON?.() ?? String(e));
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuning") / "site"
    conftest.write_site(folder)
    pyodide_archive.build(folder / "web", package_folder(PYODIDE))
    export(DIGITS, folder / "digits")
    old = json.loads((folder / "digits" / "manifest.json").read_text())
    shutil.copytree(folder / "digits", folder / "old")
    (folder / "old" / "manifest.json").write_text(json.dumps(old | {"generator_version": "0"}))
    (folder / "tuning.js").write_text(HELPERS)
    return folder


OpenPage = Callable[..., Page]


@pytest.fixture
def open_page(browser: Browser, serve_site: Callable[..., str], site: Path) -> Iterator[OpenPage]:
    """`open_page(context=None, isolation=True)`: a page on the site; `page.asked` has its URLs."""
    contexts: list[BrowserContext] = []

    def open_(context: BrowserContext | None = None, **server: Any) -> Page:
        if context is None:
            context = browser.new_context()
            contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(TIMEOUT_MS)
        asked: list[str] = []
        page.asked = asked  # type: ignore[attr-defined]
        context.on("request", lambda request: asked.append(request.url))
        page.goto(serve_site(site, **{"csp": STRICT_CSP, **server}))
        return page

    yield open_
    for context in contexts:
        context.close()


run = partial(conftest.run, helpers="tuning.js")


def images(count: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng().random((count, 1, 1, 8, 8), dtype=np.float32)


def expected(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(DIGITS)
    name = session.get_inputs()[0].name
    return np.array([session.run(None, {name: one})[0][0] for one in pixels])


def flat(pixels: np.ndarray[Any, Any]) -> list[list[float]]:
    return [one.ravel().tolist() for one in pixels]


def agree(answers: list[list[float]], pixels: np.ndarray[Any, Any]) -> None:
    np.testing.assert_allclose(np.array(answers), expected(pixels), rtol=1e-4, atol=1e-5)


# A stream of 200 runs, the last of them after the last swap, begun before Python is loaded.
STREAM = """
  const session = await t.create(arg.provider);
  const before = performance.getEntriesByType("resource").map((entry) => entry.name);
  const python = arg.rigged ? new t.Rigged(await t.python()) : undefined;
  const tuning = await session.tune({ budget: 60, python });
  let ended = false;
  tuning.finished.finally(() => (ended = true)).catch(() => {});
  const answers = [], seen = new Set();
  while (answers.length < 199 || !ended) {
    const i = answers.length % arg.images.length;
    answers.push([i, await t.ask(session, arg.images[i])]);
    seen.add(tuning.swaps.length);
    await t.sleep(answers.length < 199 ? 5 : 40);
  }
  answers.push([0, await t.ask(session, arg.images[0])]);
  const report = await tuning.finished;
  const records = await session.records();
  const { info } = session;
  session.release();
  return { answers, seen: [...seen], report, records, info, before, state: tuning.state };
"""


@pytest.mark.parametrize(
    ("provider", "isolation"), [("wasm", True), ("wasm", False), ("webgpu", True)]
)
def test_swaps_during_a_stream_of_runs(open_page: OpenPage, provider: str, isolation: bool) -> None:
    page = open_page(isolation=isolation)
    pixels = images(20)
    arg = {"provider": provider, "images": flat(pixels), "rigged": True}
    found = run(page, STREAM, arg)
    assert len(found["answers"]) >= 200
    agree([answer for _, answer in found["answers"]], pixels[[i for i, _ in found["answers"]]])
    report = found["report"]
    assert found["state"] == "done"
    assert len(report["swaps"]) >= 1
    assert len(found["seen"]) >= 2, "runs before and after a swap"
    assert found["info"]["tuned"]
    won = [row for row in report["rows"] if row["gain"] > 0.5]
    assert won
    assert all(row["knobs"] != row["default_knobs"] for row in won)
    assert report["rows"] == sorted(report["rows"], key=lambda row: -row["share"])
    schema = json.loads((ROOT / "pywebgpu" / "records.schema.json").read_text())
    jsonschema.validate(found["records"], schema)
    assert {r["kernel"] for r in found["records"]["records"]} >= {row["kernel"] for row in won}

    # The second visit starts with the winners, without Python and without the default's code.
    again = open_page(page.context, isolation=isolation)
    more = images(5)
    body = """
      const session = await t.create(arg.provider);
      const answers = [];
      for (const image of arg.images) answers.push(await t.ask(session, image));
      const other = await t.InferenceSession.create("old", { executionProviders: [arg.provider] });
      const plain = await t.create(arg.provider, { tuned: false });
      const kept = (await session.records()).records.length;
      return [session.info.tuned, other.info.tuned, plain.info.tuned, answers, kept];
    """
    tuned, other, plain, answers, kept = run(
        again, body, {"provider": provider, "images": flat(more)}
    )
    assert tuned
    assert not other, "what another generator version made is left alone"
    assert not plain
    assert kept == len(found["records"]["records"])
    agree(answers, more)
    asked: list[str] = again.asked  # type: ignore[attr-defined]
    assert not [url for url in asked if "pyodide" in url]
    again.close()
    record_executor(f"chromium-{provider}")


def test_first_answer_before_python_is_loaded(open_page: OpenPage) -> None:
    """And all of it unrigged, with a Python of its own."""
    page = open_page()
    pixels = images(3)
    body = """
      const session = await t.create("wasm");
      const first = await t.ask(session, arg[0]);
      const before = performance.getEntriesByType("resource").map((entry) => entry.name);
      const stages = [];
      const onProgress = ({ stage }) => stages.at(-1) === stage || stages.push(stage);
      const tuning = await session.tune({ budget: 20, onProgress });
      const loading = tuning.state;
      const second = await t.ask(session, arg[1]);
      const early = tuning.state;
      const report = await tuning.finished;
      const third = await t.ask(session, arg[2]);
      const { records } = await session.records();
      const errors = records.flatMap((r) => r.candidates.map((c) => c.error)).filter(Boolean);
      return { answers: [first, second, third], before, stages, loading, early, report, errors };
    """
    found = run(page, body, flat(pixels))
    agree(found["answers"], pixels)
    assert not [url for url in found["before"] if "/tune/" in url or "pyodide" in url]
    assert (found["loading"], found["early"]) == ("loading", "loading")
    assert found["stages"][0] == "python"
    assert found["stages"][-1] == "done"
    rows = found["report"]["rows"]
    assert sum(row["share"] for row in rows) == pytest.approx(1, abs=0.01)
    assert any(row["searched"] and row["candidates"] > 1 for row in rows)
    assert found["report"]["bestMs"] <= found["report"]["defaultMs"]
    # No version of a kernel that was measured in earnest may be wrong.
    assert found["errors"] == []


def test_pause_resume_and_cancel(open_page: OpenPage) -> None:
    page = open_page()
    pixels = images(3)
    body = """
      const session = await t.create("wasm");
      const python = await t.python();
      let told = () => {};
      const begun = new Promise((resolve) => (told = resolve));
      const rigged = new t.Rigged(python, { after: told });
      const tuning = await session.tune({ budget: 60, python: rigged });
      const twice = await t.facts(session.tune());
      await begun;
      tuning.pause();
      await t.sleep(300);  // what was under way may end
      const paused = [tuning.state, JSON.stringify(tuning.rows)];
      await t.sleep(700);
      paused.push(JSON.stringify(tuning.rows));
      const answers = [await t.ask(session, arg[0])];
      tuning.resume();
      const resumed = tuning.state;
      tuning.cancel();
      const report = await tuning.finished;
      answers.push(await t.ask(session, arg[1]));
      const controller = new AbortController();
      const next = await session.tune({ python, signal: controller.signal });
      controller.abort();
      const aborted = (await next.finished).stopped;
      answers.push(await t.ask(session, arg[2]));
      const records = JSON.stringify(await session.records());
      session.release();
      const dead = await t.facts(session.tune());
      const { state } = tuning;
      return { records, twice, paused, resumed, state, report, answers, aborted, dead };
    """
    found = run(page, body, flat(pixels))
    agree(found["answers"], pixels)
    assert "tuned already" in found["twice"]["what"]
    state, before, after = found["paused"]
    assert state == "paused"
    assert before == after
    assert found["resumed"] == "running"
    assert found["state"] == "cancelled"
    assert found["report"]["stopped"] == "cancelled"
    schema = json.loads((ROOT / "pywebgpu" / "records.schema.json").read_text())
    jsonschema.validate(json.loads(found["records"]), schema)
    assert found["aborted"] == "cancelled"
    assert "released" in found["dead"]["what"]
    tuning_workers = [w for w in page.workers if "/tune/" in w.url]
    assert tuning_workers == []


def faulty(kind: str) -> bytes:
    module = Module()
    f = module.function("repeat", [I32] * 6)
    if kind == "hangs":
        with f.loop() as again:
            f.push(1)
            f.br_if(again)
    module.export("repeat", f)
    return module.encode()


def test_candidates_that_hang_and_kill(open_page: OpenPage) -> None:
    """Of the first kernel's candidates one hangs, one is no module, one writes nothing; of the
    second's, one ends its worker. The others are measured, and the session is well."""
    page = open_page()
    pixels = images(2)
    body = """
      const session = await t.create("wasm");
      await t.ask(session, arg.images[0]);
      let kernel = 0;
      const edit = async (request) => {
        if (request.kind === "profiled") kernel = 1;
        if (request.kind === "load") request.limit = 0.5;
        if (request.kind === "searched") kernel++;
        if (request.kind !== "make" || !kernel || kernel > 2) return;
        if (kernel === 2) {
          if (request.number === 2) await globalThis.killWorker();
          return;
        }
        const bad = arg.bad[request.number];
        if (bad) request.code = { ...request.code, wasm: new Uint8Array(bad) };
      };
      const python = new t.Rigged(await t.python(), { edit, wins: false });
      // Nothing wins here, so that little is to be expected of the second kernel.
      const tuning = await session.tune({ budget: 60, enough: 0, python });
      const report = await tuning.finished;
      const answer = await t.ask(session, arg.images[1]);
      return { report, answer, state: tuning.state, records: (await session.records()).records };
    """

    def kill() -> None:
        *_, worker = [w for w in page.workers if "/tune/" in w.url]
        worker.evaluate("self.close()")

    page.expose_function("killWorker", kill)
    bad = [None, [*faulty("hangs")], [1, 2], [*faulty("writes nothing")]]
    found = run(page, body, {"images": flat(pixels), "bad": bad})
    agree([found["answer"]], pixels[1:])
    assert found["state"] == "done"
    first = found["report"]["rows"][0]
    (record,) = [r for r in found["records"] if r["kernel"] == first["kernel"]]
    errors = [c["error"] for c in record["candidates"]]
    assert errors[0] is None
    assert "takes longer than" in errors[1]
    assert "WebAssembly" in errors[2]
    assert "wrong" in errors[3]
    assert [c for c in record["candidates"][4:] if c["ms"] is not None]
    second = found["report"]["rows"][1]
    (record,) = [r for r in found["records"] if r["kernel"] == second["kernel"]]
    assert "takes longer than" in record["candidates"][2]["error"]
    assert [c for c in record["candidates"][3:] if c["ms"] is not None]


def test_device_lost_during_tuning(open_page: OpenPage) -> None:
    """The session opens another device, with the winners that were in use."""
    page = open_page()
    pixels = images(3)
    body = """
      const session = await t.create("webgpu");
      const answers = [await t.ask(session, arg[0])];
      const after = (n) => { if (n === 1) session.device.destroy(); };
      const python = new t.Rigged(await t.python(), { after });
      const tuning = await session.tune({ budget: 25, python });
      while (!tuning.swaps.length) await t.sleep(20);
      const device = session.device;
      answers.push(await t.ask(session, arg[1]));
      const report = await tuning.finished;
      answers.push(await t.ask(session, arg[2]));
      return { answers, state: tuning.state, info: session.info, other: session.device !== device };
    """
    found = run(page, body, flat(pixels))
    agree(found["answers"], pixels)
    assert found["state"] == "done"
    assert found["other"]
    assert found["info"]["tuned"]
    record_executor("chromium-webgpu")


def test_a_worker_without_a_gpu(open_page: OpenPage) -> None:
    """Not every browser gives workers its GPU: the tuning says so, and the model runs as it is."""
    page = open_page()
    hidden = '\nObject.defineProperty(navigator, "gpu", { value: undefined });'

    def hide(route: Route) -> None:
        response = route.fetch()
        route.fulfill(response=response, body=response.text() + hidden)

    page.route("**/tune/worker.js", hide)
    pixels = images(1)
    body = """
      const session = await t.create("webgpu");
      const tuning = await session.tune({ python: await t.python() });
      const error = await t.facts(tuning.finished);
      const { records } = await session.records();
      return { error, state: tuning.state, records, answers: [await t.ask(session, arg[0])] };
    """
    found = run(page, body, flat(pixels))
    agree(found["answers"], pixels)
    assert found["state"] == "failed"
    assert found["error"]["type"] == "DeviceError"
    assert found["error"]["got"] == "the browser gives a worker no GPU"
    assert found["records"] == []
    record_executor("chromium-webgpu")


def test_records_from_elsewhere(open_page: OpenPage) -> None:
    """Their winners are measured first; those of another generator version are not heard."""
    page = open_page()
    body = """
      const session = await t.create("wasm");
      const python = await t.python();
      await t.ask(session, arg);
      const first = new t.Rigged(python);
      await (await session.tune({ budget: 60, python: first })).finished;
      const records = await session.records();
      const [one] = records.records;
      const last = one.candidates.at(-1).knobs;
      one.best = last;
      const order = async (session, options = {}) => {
        const rigged = { budget: 60, python: new t.Rigged(python) };
        await (await session.tune({ ...rigged, ...options })).finished;
        const found = (await session.records()).records;
        await t.clearTuning();
        return found.find((r) => r.kernel === one.kernel && r.generator_version !== "0").candidates;
      };
      await t.clearTuning();
      await t.importRecords(records);
      const here = await order(session);
      const given = await order(session, { records });
      const other = await t.create("wasm", { records });
      await t.ask(other, arg);
      const handed = await order(other);
      other.release();
      const wrong = { format_version: 7 };
      const refused = [t.importRecords(wrong), t.create("wasm", { records: wrong })];
      const facts = await Promise.all(refused.map(t.facts));
      for (const record of records.records) record.generator_version = "0";
      await t.importRecords(records);
      return { last, here, given, handed, there: await order(session), facts };
    """
    found = run(page, body, flat(images(1))[0])
    for how in ("here", "given", "handed"):
        assert found[how][1]["knobs"] == found["last"], how
    assert found["there"][1]["knobs"] != found["last"]
    for facts, where in zip(found["facts"], ("importRecords", "create, records"), strict=True):
        assert "format_version 7" in facts["got"]
        assert facts["where"] == where


def test_a_records_service(open_page: OpenPage, tmp_path: Path) -> None:
    """On another port, so of another origin. It is told nothing unless the page says so; what two
    networks have confirmed comes to pages that ask; and where it is not to be reached,
    tuning goes on without it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    unnamed = open_page()
    console: list[str] = []
    policy = STRICT_CSP.replace("connect-src 'self'", f"connect-src 'self' {url}")
    named, stranger = open_page(csp=policy), open_page(csp=policy)
    database = f"sqlite:///{tmp_path / 'records.db'}"
    named.on("console", lambda message: console.append(message.text))
    body = """
      const session = await t.create("wasm");
      await t.ask(session, arg.image);
      const { url, contribute } = arg;
      let told = () => {};
      const known = new Promise((resolve) => (told = resolve));
      const python = new t.Rigged(await t.python(), { known: told });
      const tuning = await session.tune({ budget: 60, python, records: url, contribute });
      const heard = JSON.parse(await known);
      if (!contribute) tuning.cancel();
      await tuning.finished;
      const { records } = await session.records();
      session.release();
      await t.clearTuning();
      return { heard: heard.records, records, state: tuning.state };
    """
    image = flat(images(1))[0]

    def tuned(page: Page, contribute: bool = False) -> dict[str, Any]:
        found = run(page, body, {"image": image, "url": url, "contribute": contribute})
        assert found["state"] == ("done" if contribute else "cancelled")
        return dict(found)

    def origin(page: Page) -> list[str]:
        return ["--port", str(port), "--origin", "/".join(page.url.split("/")[:3])]

    with running(database, *origin(named), "--confirmations", "2") as (client, _):

        def contributions() -> int:
            return int(client.get("health").json()["contributions"])

        assert tuned(unnamed, contribute=True)["heard"] == []
        assert contributions() == 0, "the page's policy does not name it"
        assert tuned(named)["heard"] == []
        assert contributions() == 0, "nobody has asked for it"
        mine = tuned(named, contribute=True)["records"]
        assert contributions() == len(mine) > 0, console
        for network in ("10.0.1.7", "10.0.2.7", "10.0.3.7"):
            answer = client.post(
                "v1/records",
                json={"format_version": 1, "records": mine},
                headers={"X-Forwarded-For": network},
            )
            assert answer.status_code == 201, answer.text
        heard = tuned(named)["heard"]
        assert {r["kernel"] for r in heard} == {r["kernel"] for r in mine}, console
    with running(database, "--port", str(port), "--origin", "https://example.org"):
        assert tuned(stranger)["heard"] == [], "of an origin that the service does not know"


def test_from_python_in_the_page(open_page: OpenPage) -> None:
    """The Python that tunes is the one that asks."""
    page = open_page()
    pixels = images(2)
    code = """
import pywebgpu
session = await pywebgpu.InferenceSession.create("digits", ["wasm"])
name = session.get_inputs()[0].name
async def ask(pixels):
    feeds = {name: pywebgpu.Tensor(pixels, (1, 1, 8, 8))}
    (answer,) = (await session.run_async(feeds)).values()
    return answer.tolist()[0]
first = await ask(images[0])
stages = []
tuning = await session.tune(budget=8, on_progress=lambda event: stages.append(event["stage"]))
tuning.pause()
tuning.resume()
report = await tuning.finished()
second = await ask(images[1])
records = await session.records()
[tuning.state, stages[-1], report["candidates"], len(records["records"]), [first, second]]
"""
    body = "return (await t.python()).run(arg.code, { images: arg.images })"
    state, stage, candidates, records, answers = run(
        page, body, {"code": code, "images": flat(pixels)}
    )
    assert (state, stage) == ("done", "done")
    assert candidates >= 1
    assert records >= 1
    agree(answers, pixels)


DIGESTS = """
import hashlib, json
from pywebgpu.codegen import wasm, wgsl
from pywebgpu.codegen.caps import WGSL_VARIANTS, WasmCaps
from pywebgpu.codegen.codec import spec_from_json
from pywebgpu.codegen.wasm.asm import Module, Target

def digests(text):
    found = []
    specs = json.loads(text)
    for spec in map(spec_from_json, specs["wasm"]):
        for relaxed in (True, False):
            for knobs in wasm.space(spec, WasmCaps(relaxed=relaxed)):
                module = Module(Target(relaxed=relaxed))
                kernel = wasm.emit(module, spec, knobs)
                module.export("kernel", module.functions[kernel.function])
                found.append(hashlib.sha256(module.encode()).hexdigest()[:16])
    for spec in map(spec_from_json, specs["webgpu"]):
        for variant in WGSL_VARIANTS:
            for knobs in wgsl.space(spec, variant.caps):
                texts = repr(wgsl.render(spec, knobs))
                found.append(hashlib.sha256(texts.encode()).hexdigest()[:16])
    return found
"""
ALIKE = ("bert-tiny", "gpt2-tiny", "mobilenet-v2-micro", "resnet-micro", "vit-micro")


def test_kernels_are_the_same_bytes_in_pyodide(open_page: OpenPage, tmp_path: Path) -> None:
    """Every candidate, of wasm with and without relaxed SIMD and of every variant of WGSL, of every
    kernel."""
    page = open_page()
    scope: dict[str, Any] = {}
    exec(DIGESTS, scope)
    body = """
      const python = await t.python();
      await python.run(arg.code);
      const found = {};
      for (const [name, specs] of Object.entries(arg.specs)) {
        found[name] = await python.run("digests(specs)", { specs });
      }
      return found;
    """
    specs = {}
    for name in ALIKE:
        export(zoo.path_of(name), tmp_path / name)
        specs[name] = (tmp_path / name / "specs.json").read_text()
    found = run(page, body, {"code": DIGESTS, "specs": specs})
    for name in ALIKE:
        wanted = scope["digests"](specs[name])
        assert len(wanted) > 50, name
        assert found[name] == wanted, name
