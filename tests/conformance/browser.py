"""The suite in Chromium: our runtime and ONNX Runtime Web on the same cases in the same browser.

A pool of processes compiles cases ahead while one page works through them. Expected outputs stay
here: the page sends what it got, and Python compares, as it does for the desktop.

ONNX Runtime Web gets the model as the suite has it. With its WebGPU provider it is first asked to
create the session without its CPU fallback (`session.disable_cpu_ep_fallback`); where it refuses
because operators would run on the CPU, it is asked again with the fallback, as a page has it by
default, and a case that passes so counts as passed "partly on the CPU".
"""

from __future__ import annotations

import base64
import itertools
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from pywebgpu.graph import DType
from tests.bench import peers
from tests.conformance.cases import Case, collect, out_of_scope
from tests.conformance.chromium import Answer, BrowserGone, Chromium, Job
from tests.conformance.processes import context
from tests.conformance.verdict import Verdict, compare, one_line

ROOT = Path(__file__).parents[2]
WORK = ROOT / "build" / "conformance"
AHEAD = 24
"""Cases that are compiled before the page asks for them."""
ON_CPU = "partly on the CPU"
"""The reason of cases that passed with ONNX Runtime Web's CPU fallback only."""


@dataclass(frozen=True)
class Target:
    """What the page is told: whose runtime, on which provider."""

    runtime: str
    provider: str


TARGETS = {
    "chromium-wasm": Target("ours", "wasm"),
    "chromium-webgpu": Target("ours", "webgpu"),
    "ort-web-wasm": Target("ortWeb", "wasm"),
    "ort-web-webgpu": Target("ortWeb", "webgpu"),
}

_ONNX_NAMES = {dtype.ml_dtype: dtype.value for dtype in DType if dtype.ml_dtype}

PEER = {"chromium-wasm": "ort-web-wasm", "chromium-webgpu": "ort-web-webgpu"}
"""With whom each of our executors is compared."""


def run(names: Sequence[str], executor: str) -> Iterator[tuple[str, Verdict]]:
    """Verdicts in the order of `names`."""
    target = TARGETS[executor]
    collect()  # before the pool's processes are forked: they inherit it
    WORK.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=WORK) as made:
        folder = Path(made)
        furnish(folder, target)
        with Chromium(folder, "page/index.html") as browser:
            for name, prepared in _prepared_ahead(names, folder, target):
                if isinstance(prepared, tuple):
                    yield name, prepared
                else:
                    yield name, _judge(browser, name, prepared, target)
                shutil.rmtree(folder / "cases" / name, ignore_errors=True)


def furnish(folder: Path, target: Target) -> None:
    """The page and the runtime that it is to use."""
    shutil.copytree(Path(__file__).parent / "page", folder / "page")
    if target.runtime == "ours":
        left_out = shutil.ignore_patterns("app", "vendor", "py")
        shutil.copytree(ROOT / "web", folder / "web", ignore=left_out)
    else:
        package = {"onnxruntime-web": peers.PACKAGES["onnxruntime-web"]}
        peers.link(peers.install(WORK / "npm", package), folder / "peers")


def _prepared_ahead(
    names: Sequence[str], folder: Path, target: Target
) -> Iterator[tuple[str, Job | Verdict]]:
    """Every case with its job, or with a verdict where there is nothing to run."""
    rest = iter(names)
    waiting: list[tuple[str, Future[Job | Verdict]]] = []
    pool = ProcessPoolExecutor(os.cpu_count(), mp_context=context())
    try:
        while True:
            for name in itertools.islice(rest, AHEAD - len(waiting)):
                waiting.append((name, pool.submit(prepare, name, folder, target)))
            if not waiting:
                return
            name, job = waiting.pop(0)
            try:
                yield name, job.result()
            except BrokenProcessPool:
                # Somebody's process died, perhaps not this case's: each again, by itself.
                pool.shutdown(wait=False, cancel_futures=True)
                broken, waiting = [name, *(n for n, _ in waiting)], []
                for again in broken:
                    yield again, _prepare_alone(again, folder, target)
                pool = ProcessPoolExecutor(os.cpu_count(), mp_context=context())
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _prepare_alone(name: str, folder: Path, target: Target) -> Job | Verdict:
    with ProcessPoolExecutor(1, mp_context=context()) as alone:
        try:
            return alone.submit(prepare, name, folder, target).result()
        except BrokenProcessPool:
            return "failed", "the compiling process died"


def prepare(name: str, folder: Path, target: Target) -> Job | Verdict:
    """Write what the page needs of the case below `folder`; the job, or why there is none."""
    from pywebgpu.errors import UnsupportedError

    warnings.simplefilter("ignore")
    case = collect()[name]
    try:
        model = case.load()
        reason = out_of_scope(model)
        if reason:
            return "out_of_scope", reason
        out = folder / "cases" / name
        out.mkdir(parents=True)
        runs = _write_ours if target.runtime == "ours" else _write_model
        return {
            "runtime": target.runtime,
            "provider": target.provider,
            "runs": runs(case, model, out, target),
        }
    except UnsupportedError as error:
        return "unsupported", one_line(error)
    except Exception as error:
        return "failed", f"{type(error).__name__}: {one_line(error)}"


def _write_ours(case: Case, model: Any, out: Path, target: Target) -> list[dict[str, Any]]:
    """A bundle for all data sets, or, where values decide shapes, one for each."""
    from pywebgpu.specialise import Specialising, compile_or_wait

    source = compile_or_wait(model.SerializeToString())
    if not isinstance(source, Specialising):
        write_variants(source, out / "bundle", target.provider)
    ports = (source.interface if isinstance(source, Specialising) else source.plan).inputs
    runs = []
    for i, (inputs, _) in enumerate(case.data()):
        feeds = dict(zip((port.name for port in ports), inputs, strict=True))
        url = f"../cases/{out.name}/bundle/"
        if isinstance(source, Specialising):
            write_variants(source.compile(feeds), out / f"bundle-{i}", target.provider)
            url = f"../cases/{out.name}/bundle-{i}/"
            feeds = {n: a for n, a in feeds.items() if n not in source.names}
        runs.append({"model": url, "feeds": [packed(n, a) for n, a in feeds.items()]})
    return runs


def write_variants(compiled: Any, bundle: Path, provider: str) -> None:
    """The bundle with what a browser of today takes: not every variant of the module."""
    from pywebgpu.build import wasm_code, wgsl_variants
    from pywebgpu.bundle import write_bundle

    wasm = wasm_code(compiled.plan, ["relaxed-threads"] if provider == "wasm" else [])
    wgsl = wgsl_variants(compiled.plan)
    write_bundle(bundle, compiled.plan, compiled.weight_chunks(), wasm, wgsl)


def _write_model(case: Case, model: Any, out: Path, target: Target) -> list[dict[str, Any]]:
    (out / "model.onnx").write_bytes(model.SerializeToString())
    constants = {t.name for t in model.graph.initializer}
    names = [i.name for i in model.graph.input if i.name not in constants]
    return [
        {
            "model": f"../cases/{out.name}/model.onnx",
            "feeds": [packed(n, a) for n, a in zip(names, inputs, strict=True)],
        }
        for inputs, _ in case.data()
    ]


def packed(name: str, value: Any) -> tuple[str, str, list[int], str]:
    array = np.asarray(value)
    kind = _ONNX_NAMES.get(array.dtype.name, array.dtype.name)
    array = array.astype(DType(kind).numpy)  # as the page's runtime takes what NumPy lacks
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return name, kind, list(array.shape), data


def unpacked(tensor: Sequence[Any]) -> np.ndarray[Any, Any]:
    _, kind, dims, data = tensor
    dtype = DType(kind)
    array = np.frombuffer(base64.b64decode(data), dtype.numpy).reshape(dims)
    return array if dtype.ml_dtype is None else array.astype(getattr(ml_dtypes, dtype.ml_dtype))


def _judge(browser: Chromium, name: str, job: Job, target: Target) -> Verdict:
    case = collect()[name]
    for attempt in range(2):  # what went before may have brought the browser down
        try:
            return _verdict(case, browser.ask(job, case.seconds), target)
        except BrowserGone as error:
            if attempt:
                return "failed", one_line(error)
    raise AssertionError


def _verdict(case: Case, answer: Answer, target: Target) -> Verdict:
    error = answer.get("error")
    if error:
        # Ours says so of numbers that kernels do not hold; ONNX Runtime when it creates a session.
        ours = error["name"] == "InputError" and "does not fit" in error["what"]
        verdict = "unsupported" if ours or error["refused"] else "failed"
        return verdict, one_line(error["message"])
    for results, (_, expected) in zip(answer["results"], case.data(), strict=True):
        verdict = compare([unpacked(r) for r in results], expected, case)
        if verdict[0] != "passed":
            return verdict
    return "passed", ON_CPU if answer.get("onCpu") else ""
