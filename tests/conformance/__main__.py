"""Run ONNX's backend tests on our executors and say, case by case, what came of it.

    python -m tests.conformance --json [--executor NAME] [--match GLOB]
    python -m tests.conformance --write docs/conformance.md

A case passes when every output of every data set has the expected shape and dtype and is within
the suite's own tolerances (at least 1e-3 relative to the output's scale for float16 data).
"unsupported" means that the compiler refused it with a clear error, or that a feed holds numbers
beyond what kernels store (float64 beyond float32); anything else is "failed".
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import multiprocessing
import os
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from tests.conformance.cases import Case, collect, out_of_scope
from tests.conformance.report import merge, page

PROVIDERS = {"wasmtime": "wasm", "wgpu": "webgpu"}
SECONDS_PER_CASE = 60

Verdict = tuple[str, str]


def judge(case: Case, executor: str) -> Verdict:
    """("passed" | "failed" | "unsupported" | "out_of_scope", reason)."""
    from pywebgpu.errors import InputError, PywebgpuError, UnsupportedError
    from pywebgpu.session import InferenceSession

    model = case.load()
    reason = out_of_scope(model)
    if reason:
        return "out_of_scope", reason
    try:
        session = InferenceSession(model.SerializeToString(), providers=[PROVIDERS[executor]])
    except UnsupportedError as error:
        return "unsupported", _line(error)
    except PywebgpuError as error:
        return "failed", _line(error)
    try:
        names = [port.name for port in session.get_inputs()]
        for inputs, expected in case.data():
            got = session.run(None, dict(zip(names, inputs, strict=True)))
            for i, (value, want) in enumerate(zip(got, expected, strict=True)):
                problem = difference(np.asarray(value), np.asarray(want), case)
                if problem:
                    return "failed", f"output {i}: {problem}"
    except UnsupportedError as error:  # of a model that is compiled for the values it is fed
        return "unsupported", _line(error)
    except InputError as error:
        if "does not fit" not in error.what:  # what the suite feeds must be taken
            raise
        return "unsupported", _line(error)
    finally:
        close = getattr(session, "close", None)
        if close:
            close()
    return "passed", ""


def difference(got: np.ndarray[Any, Any], want: np.ndarray[Any, Any], case: Case) -> str:
    """What is wrong with `got`; "" when nothing is."""
    if got.shape != want.shape:
        return f"shape {got.shape}, expected {want.shape}"
    if got.dtype != want.dtype:
        return f"dtype {got.dtype}, expected {want.dtype}"
    if want.dtype.kind in "biu":
        wrong = int((got != want).sum())
        return f"{wrong} of {want.size} elements differ" if wrong else ""
    rtol, atol = case.rtol, case.atol
    if want.dtype.itemsize == 2:
        # One unit in the last place: 2**-10 of float16, 2**-7 of bfloat16.
        unit = 2.0**-7 if want.dtype.name == "bfloat16" else 1e-3
        rtol, atol = max(rtol, unit), max(atol, 1e-3)
    got64, want64 = got.astype(np.float64), want.astype(np.float64)
    if np.allclose(got64, want64, rtol=rtol, atol=atol, equal_nan=True):
        return ""
    with np.errstate(invalid="ignore"):
        worst = np.nanmax(np.abs(got64 - want64)) if want.size else 0
    return f"differs by up to {worst:.3g}"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _late(*_: object) -> None:
    raise TimeoutError(f"took more than {SECONDS_PER_CASE} s")


def work(name: str, executor: str) -> Verdict:
    """`judge` that always answers, for a pool's process."""
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, _late)
    signal.alarm(SECONDS_PER_CASE)
    try:
        return judge(collect()[name], executor)
    except Exception as error:
        return "failed", f"{type(error).__name__}: {_line(error)}"
    finally:
        signal.alarm(0)


def run(names: list[str], executor: str) -> Iterator[tuple[str, Verdict]]:
    """Verdicts as they come. A case that takes its process down fails; the others go on."""
    context = multiprocessing.get_context("fork")
    waiting = list(names)
    while waiting:
        with ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
            jobs = [(name, pool.submit(work, name, executor)) for name in waiting]
            waiting = []
            crashed = False
            for name, job in jobs:
                try:
                    if crashed and not job.done():
                        job.cancel()
                        waiting.append(name)
                        continue
                    yield name, job.result()
                except BrokenProcessPool:
                    crashed = True
                    waiting.append(name)
        if waiting and crashed:
            first = waiting.pop(0)  # one of those in flight when the pool broke: try it alone
            with ProcessPoolExecutor(1, mp_context=context) as alone:
                try:
                    yield first, alone.submit(work, first, executor).result()
                except BrokenProcessPool:
                    yield first, ("failed", "the process died")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--executor", choices=list(PROVIDERS), action="append")
    parser.add_argument("--match", metavar="GLOB", default="*", help="case names, e.g. test_conv*")
    parser.add_argument("--write", metavar="FILE", type=Path, help="write the report as a page")
    parser.add_argument(
        "--with",
        dest="earlier",
        metavar="FILE",
        type=Path,
        action="append",
        default=[],
        help="an earlier run's --json, for what is not run now",
    )
    parser.add_argument("--only-earlier", action="store_true", help="run nothing")
    args = parser.parse_args()
    if args.only_earlier:
        args.match = ""
    names = [n for n in collect() if fnmatch.fnmatch(n, args.match)]
    report: dict[str, Any] = {"executors": {}, "cases": {n: {} for n in names}}
    with Progress(console=Console(stderr=True), disable=args.json) as progress:
        for executor in args.executor or PROVIDERS:
            task = progress.add_task(executor, total=len(names))
            counts: Counter[str] = Counter(passed=0, failed=0, unsupported=0, out_of_scope=0)
            for name, (verdict, reason) in run(names, executor):
                counts[verdict] += 1
                report["cases"][name][executor] = {"verdict": verdict, "reason": reason}
                progress.advance(task)
            report["executors"][executor] = dict(counts)
    earlier = [json.loads(path.read_text()) for path in args.earlier]
    if earlier:
        report = merge([*earlier, report])
    if args.write:
        args.write.write_text(page(report))
    if args.json:
        json.dump(report, sys.stdout, indent=1)
        return
    for name, verdicts in report["cases"].items():
        for executor, v in verdicts.items():
            if v["verdict"] == "failed":
                print(f"{executor} {name}: {v['reason']}")
    for executor, counts in report["executors"].items():
        print(executor, dict(counts))


if __name__ == "__main__":
    main()
