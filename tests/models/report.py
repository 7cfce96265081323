"""Run the families of models on our executors, and write down what came of it.

    python -m tests.models.report [--executor NAME]... [--match GLOB] [--again] [--json]
    python -m tests.models.report --write docs/families.md

What a run found is kept in the models' cache at once, so that an interrupted one goes on where it
stopped: a family that has passed on an executor is not run there again, unless `--again` is given.
`--write` runs what is missing; with `--only-kept` it runs nothing.
"""

from __future__ import annotations

import argparse
import datetime
import fnmatch
import json
import sys
import tempfile
import textwrap
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import onnx

from pywebgpu.compile import compile_model
from tests.conformance import browser as in_browser
from tests.conformance.chromium import Chromium
from tests.models.families import FAMILIES, path_of
from tests.models.judge import TOLERANCE, in_a_page, on_desktop
from tests.models.zoo import cache_folder

DESKTOP = {"wasmtime": "wasm", "wgpu": "webgpu"}
BROWSER = {"chromium-wasm": "wasm", "chromium-webgpu": "webgpu"}
EXECUTORS = (*DESKTOP, *BROWSER)
KEPT = "families.json"

Found = dict[str, Any]
"""Of a family: package, exporter, opset, nodes, steps, and results: {executor: {error or failed,
date}}."""

_HEAD = """# Families of models

Written by `python -m tests.models.report --write docs/families.md` on {date}. Every model is a
small configuration with random weights, exported by PyTorch {torch} and compared with PyTorch's own
output for the inputs of the export and with ONNX Runtime's for other batches, lengths and image
sizes, where these are free. A number is the largest difference from either, relative to the largest
element of the output; a model passes up to {tolerance}. "dynamo" is today's exporter,
"torchscript" the older one; kernels are those that a run dispatches on WebGPU, where kernels of
several passes count once.

wasmtime and wgpu run on the desktop, the others in headless Chromium; WebGPU is a software adapter
in both (llvmpipe, SwiftShader). An empty cell has not been run; others are of their last run.
"""


def exporter_of(model: onnx.ModelProto) -> str:
    """Today's exporter keeps the source of every node beside it, the older one does not."""
    return "dynamo" if any(n.metadata_props for n in model.graph.node) else "torchscript"


def described(name: str) -> Found:
    model = onnx.load(path_of(name), load_external_data=False)
    packages = [p for p in FAMILIES[name].needs if p in ("transformers", "timm")]
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    return {
        "package": packages[0] if packages else "torch",
        "exporter": exporter_of(model),
        "opset": opset,
        "nodes": len(model.graph.node),
    }


@contextmanager
def runner(executor: str) -> Iterator[Callable[[str, Any], float]]:
    """Runs a compiled family there; gives its error."""
    if executor in DESKTOP:
        yield lambda name, compiled: on_desktop(name, compiled, DESKTOP[executor])
        return
    with tempfile.TemporaryDirectory() as folder:
        in_browser.furnish(Path(folder), in_browser.TARGETS[executor])
        with Chromium(Path(folder), "page/index.html") as page:
            yield lambda name, compiled: in_a_page(name, compiled, BROWSER[executor], page)


def tried(run: Callable[[str, Any], float], name: str, found: Found) -> Found:
    """What came of one family on one executor."""
    try:
        compiled = compile_model(str(path_of(name)))
        steps = (compiled.plan.gpu or compiled.plan).steps
        found["steps"] = len(steps)
        result: Found = {"error": run(name, compiled)}
    except Exception as error:
        # Whatever it is, it is what became of this family; the others go on.
        result = {"failed": " ".join(f"{type(error).__name__}: {error}".split())[:200]}
    return result | {"date": datetime.datetime.now(tz=datetime.UTC).date().isoformat()}


def run(executors: list[str], names: list[str], again: bool, kept: Path) -> dict[str, Found]:
    report: dict[str, Found] = json.loads(kept.read_text()) if kept.exists() else {}
    for executor in executors:
        todo = [
            n
            for n in names
            if again or "error" not in report.get(n, {}).get("results", {}).get(executor, {})
        ]
        if not todo:
            continue
        with runner(executor) as there:
            for name in todo:
                try:
                    path_of(name)
                except ModuleNotFoundError as error:
                    print(f"{executor} {name}: {error}", file=sys.stderr)
                    continue
                found = report.setdefault(name, {"results": {}})
                found.update(described(name))
                found["results"][executor] = tried(there, name, found)
                print(f"{executor} {name}: {cell(found, executor)}", file=sys.stderr, flush=True)
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.write_text(json.dumps(report, indent=1))
    return report


def cell(found: Found, executor: str) -> str:
    result = found["results"].get(executor)
    if result is None:
        return ""
    return f"{result['error']:.0e}" if "error" in result else "failed"


def page(report: dict[str, Found]) -> str:
    """The report in Markdown."""
    try:
        torch = version("torch").split("+")[0]
    except PackageNotFoundError:
        torch = "(not installed here)"
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    lines = [_HEAD.format(date=today, torch=torch, tolerance=TOLERANCE)]
    lines += ["| executor | passed | failed | not run |", "|---|--:|--:|--:|"]
    for executor in EXECUTORS:
        results = [f["results"][executor] for f in report.values() if executor in f["results"]]
        passed = sum("error" in r for r in results)
        rest = len(FAMILIES) - len(results)
        lines.append(f"| {executor} | {passed} | {len(results) - passed} | {rest} |")
    lines += ["", f"| family | from | exporter | nodes | kernels | {' | '.join(EXECUTORS)} |"]
    lines.append("|---|---|---|--:|--:|" + "--:|" * len(EXECUTORS))
    for name in FAMILIES:
        found = report.get(name)
        if found is None:
            lines.append(f"| {name} |" + " |" * (4 + len(EXECUTORS)))
            continue
        facts = (found[k] for k in ("package", "exporter", "nodes"))
        cells = [name, *facts, found.get("steps", ""), *(cell(found, e) for e in EXECUTORS)]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    failures = [
        f"- {name} on {executor}: {result['failed']}"
        for name, found in report.items()
        for executor, result in found["results"].items()
        if "failed" in result
    ]
    if failures:
        lines += ["", "## What failed", "", *(textwrap.fill(f, 100) for f in failures)]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.models.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--executor", choices=EXECUTORS, action="append")
    parser.add_argument("--match", metavar="GLOB", default="*", help="families, e.g. timm-*")
    parser.add_argument("--again", action="store_true", help="run what has passed, too")
    parser.add_argument("--only-kept", action="store_true", help="run nothing")
    parser.add_argument("--json", action="store_true", help="print all that is kept")
    parser.add_argument("--write", metavar="FILE", type=Path, help="write it as a page")
    args = parser.parse_args()
    names = [n for n in FAMILIES if fnmatch.fnmatch(n, args.match) and not args.only_kept]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters'
        report = run(args.executor or list(EXECUTORS), names, args.again, cache_folder() / KEPT)
    if args.write:
        args.write.write_text(page(report))
    if args.json:
        json.dump(report, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
