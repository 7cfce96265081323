"""Our wasm against the other browser runtimes, side by side in one Chromium page.

    python -m tests.bench.cpu [--json] [--only CASE] [--quick] [--write docs/performance.md]

Each case runs with one and with two threads. In a page, ours and every peer take turns; each turn
gives a median over its budget, each round a ratio, and the row reports the medians over rounds.
Int8 cases hold our int8 bundle against our f32 one ("ours" among the peers), ONNX Runtime's f32 and
its own dynamically quantised model.
Whether the machine has its processors to give is probed before and after every turn, with
multiply-adds on as many threads; a turn in which it had not is taken again, while patience lasts.
Peers run in their best configuration: SIMD and threads on (jax-js takes as many as there are
processors, so it is in the rows of that many, for products only). A peer whose output deviates, or
that cannot run a case, has no figure in that row, and the row says why. All of it takes about 16
minutes, `--quick` 7, and more where patience is needed. A case that fails is reported and the
others go on; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import base64
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from pywebgpu.codegen.wasm.asm import Target
from pywebgpu.codegen.wasm.profile import PAGES, module
from tests.bench import cpu_report, harness
from tests.bench.cases import OPERATORS, Case, int8_models, models
from tests.bench.report import MAX_DEVIATION, geomean

MAX_INT8_DEVIATION = 0.35
"""Rounding shows, more in networks of random weights; work left out would show as 1."""


PATIENCE_MS = 20_000
"""Of a row, for processors that somebody else has."""


def runtimes(case: Case) -> list[str]:
    """Ours first."""
    if case.int8:
        return ["ours_int8", "ours", "ort_int8", "ort"]
    if not case.op:
        return ["ours", "ort"]
    jax = ["jax"] if case.op["op"] == "matmul" else []
    return ["ours", "ort", "tfjs", "litert", *jax]


# Rounds, milliseconds of a turn, runs it has at least, and when a row has taken long enough.
FULL = {"rounds": 7, "budgetMs": 150, "least": 3, "capMs": 12_000}
QUICK = {"rounds": 3, "budgetMs": 50, "least": 1, "capMs": 0}


def measure(stage: harness.Stage, case: Case, threads: int, quick: bool) -> dict[str, Any]:
    """One row of the table."""
    options = {
        "provider": "wasm",
        "threads": threads,
        "runtimes": runtimes(case),
        "machine": {
            "code": base64.b64encode(module(Target(relaxed=True, threads=True))).decode(),
            "pages": PAGES,
            "patienceMs": PATIENCE_MS,
        },
        **(QUICK if quick else FULL),
    }
    mine = options["runtimes"][0]
    got = stage.run(case, options)
    for name, deviation in list(got["deviation"].items()):
        if not deviation <= (MAX_INT8_DEVIATION if "int8" in name else MAX_DEVIATION):
            got["errors"][name] = f"output deviates by {deviation:.2g}"
            got["rounds"].pop(name, None)
    if mine not in got["rounds"]:
        raise RuntimeError(f"ours has no result: {got['errors'].get(mine)}")
    ours = got["rounds"][mine]
    ratios = {
        name: statistics.median(p / o for p, o in zip(times, ours, strict=True))
        for name, times in got["rounds"].items()
        if name != mine
    }
    others = {name: ratio for name, ratio in ratios.items() if name != "ours"}
    ours_ms = statistics.median(ours)
    return {
        "case": case.name,
        "threads": threads,
        "dtype": "int8" if case.int8 else "float32",
        "ours_ms": ours_ms,
        "peers": {n: statistics.median(t) for n, t in got["rounds"].items() if n != mine},
        "ratio_ort": ratios.get("ort"),
        "ratio_best": min(others.values(), default=None),
        "ratio_f32": ratios.get("ours"),
        "gflops": case.flops / ours_ms / 1e6 if case.flops else None,
        "errors": got["errors"],
        "disturbed": got["disturbed"],
        "device": got["device"],
    }


def run(cases: list[Case], threads: list[int], quick: bool, console: Console) -> dict[str, Any]:
    """The report: {"peak_gflops", "rows", "failed", "geomean", "where"}."""
    rows: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    with harness.Stage(Path("build/bench")) as stage:
        where = cpu_report.machine(stage.browser.version)
        peak = stage.peak_gflops()
        jobs = [(c, t) for c in cases for t in threads]
        for case, count in track(jobs, console=console):
            try:
                row = measure(stage, case, count, quick)
                rows.append(row)
                best = row["ratio_best"] or 0
                console.print(f"{case.name}, {count}: {row['ours_ms']:.3g} ms, x best {best:.2f}")
            except Exception as error:  # one case of many: the others are worth having
                failed[f"{case.name}, {count} threads"] = str(error)
                console.print(f"{case.name}, {count} threads: {error}", style="red")
        peak = max(peak, stage.peak_gflops())
    for row in rows:
        row["peak_fraction"] = row["gflops"] / (peak * row["threads"]) if row["gflops"] else None
    plain = [r for r in rows if r["dtype"] == "float32"]
    return {
        "peak_gflops": peak,
        "rows": rows,
        "failed": failed,
        "geomean": {
            "ort": geomean([r["ratio_ort"] for r in plain]),
            "best": geomean([r["ratio_best"] for r in plain]),
            "int8_over_f32": geomean([r["ratio_f32"] for r in rows if r["dtype"] == "int8"]),
        },
        "where": where,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--only", metavar="CASE", help="cases whose name contains this")
    parser.add_argument("--quick", action="store_true", help="shorter rounds")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--write", metavar="PAGE", type=Path, help="put table and plot into this Markdown page"
    )
    args = parser.parse_args()
    every = [*OPERATORS, *models(), *int8_models()]
    cases = [c for c in every if not args.only or args.only in c.name]
    if not cases:
        parser.error(f"no case has {args.only!r} in its name")
    report = run(cases, args.threads, args.quick, Console(stderr=True))
    if args.write:
        cpu_report.write(report, args.write)
    if args.json:
        json.dump(report, sys.stdout, indent=1)
    else:
        print(cpu_report.table(report))
    return 1 if report["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
