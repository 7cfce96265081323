"""Run ONNX's backend tests on our executors and, to compare, on ONNX Runtime Web in the same
browser, and say, case by case, what came of it.

    python -m tests.conformance --json [--executor NAME] [--match GLOB]
    python -m tests.conformance --write docs/conformance.md

A case passes when every output of every data set has the expected shape and dtype and is within
the suite's own tolerances (at least 1e-3 relative to the output's scale for float16 data).
"unsupported" means that the compiler (of ONNX Runtime: creating the session) refused it with a
clear error, or that a feed holds numbers beyond what kernels store (float64 beyond float32);
anything else is "failed".
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from tests.conformance import browser, desktop
from tests.conformance.cases import collect, out_of_scope
from tests.conformance.report import merge, page
from tests.conformance.verdict import Verdict

EXECUTORS: dict[str, Callable[[list[str]], Iterator[tuple[str, Verdict]]]] = {
    **{name: partial(desktop.run, executor=name) for name in desktop.PROVIDERS},
    **{name: partial(browser.run, executor=name) for name in browser.TARGETS},
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--executor", choices=list(EXECUTORS), action="append")
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
    parser.add_argument("--note", default="", help="a paragraph for the page: what was left out")
    parser.add_argument("--only-earlier", action="store_true", help="run nothing")
    parser.add_argument(
        "--retry",
        action="store_true",
        help="run only what did not pass in the earlier runs, or was not in them",
    )
    args = parser.parse_args()
    if args.only_earlier:
        args.match = ""
    names = [n for n in collect() if fnmatch.fnmatch(n, args.match)]
    earlier = [json.loads(path.read_text()) for path in args.earlier]
    done = merge(earlier)["cases"] if args.retry else {}
    report: dict[str, Any] = {"executors": {}, "cases": {n: {} for n in names}}
    with Progress(console=Console(stderr=True), disable=args.json) as progress:
        for executor in args.executor or EXECUTORS:
            todo = [n for n in names if not _settled(n, done.get(n, {}).get(executor, {}))]
            task = progress.add_task(executor, total=len(todo))
            counts: Counter[str] = Counter(passed=0, failed=0, unsupported=0, out_of_scope=0)
            for name, (verdict, reason) in EXECUTORS[executor](todo):
                counts[verdict] += 1
                report["cases"][name][executor] = {"verdict": verdict, "reason": reason}
                progress.advance(task)
            report["executors"][executor] = dict(counts)
    if earlier:
        report = merge([*earlier, report])
    if args.write:
        args.write.write_text(page(report, args.note))
    if args.json:
        json.dump(report, sys.stdout, indent=1)
        return
    for name, verdicts in report["cases"].items():
        for executor, v in verdicts.items():
            if v["verdict"] == "failed":
                print(f"{executor} {name}: {v['reason']}")
    for executor, counts in report["executors"].items():
        print(executor, dict(counts))


def _settled(name: str, earlier: dict[str, str]) -> bool:
    """Whether what an earlier run says of a case needs no other run."""
    verdict = earlier.get("verdict")
    if verdict == "out_of_scope":  # scope grows
        return out_of_scope(collect()[name].load()) is not None
    return verdict == "passed"


if __name__ == "__main__":
    main()
