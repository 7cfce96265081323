"""Our wasm against the other browser runtimes, side by side in one Chromium page.

    python -m tests.bench.cpu --json [--only CASE] [--quick]

Each case runs with one and with two threads. In a page, ours and every peer take turns; each turn
gives a median over its budget, each round a ratio, and the row reports the medians over rounds.
Int8 cases hold our int8 bundle against our f32 one ("ours" among the peers), ONNX Runtime's f32 and
its own dynamically quantised model.
Peers run in their best configuration: SIMD and threads on. A peer whose output deviates, or that
cannot run a case, has no figure in that row, and the row says why.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from tests.bench import harness
from tests.bench.cases import OPERATORS, Case, int8_models, models
from tests.bench.report import MAX_DEVIATION, geomean

MAX_INT8_DEVIATION = 0.35
"""Rounding shows, more in networks of random weights; work left out would show as 1."""


def runtimes(case: Case) -> list[str]:
    """Ours first."""
    if case.int8:
        return ["ours_int8", "ours", "ort_int8", "ort"]
    return ["ours", "ort", "tfjs"] if case.op else ["ours", "ort"]


def measure(stage: harness.Stage, case: Case, threads: int, quick: bool) -> dict[str, Any]:
    """One row of the table."""
    options = {
        "provider": "wasm",
        "threads": threads,
        "rounds": 3 if quick else 9,
        "budgetMs": 60 if quick else 150,
        "runtimes": runtimes(case),
    }
    mine = options["runtimes"][0]
    got = stage.run(case, options)
    for name, deviation in list(got["deviation"].items()):
        if not deviation <= (MAX_INT8_DEVIATION if "int8" in name else MAX_DEVIATION):
            got["errors"][name] = f"output deviates by {deviation:.2g}"
            got["rounds"].pop(name, None)
    if mine not in got["rounds"]:
        raise SystemExit(f"{case.name}: ours has no result: {got['errors'].get(mine)}")
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
        "device": got["device"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--only", metavar="CASE", help="cases whose name contains this")
    parser.add_argument("--quick", action="store_true", help="shorter rounds")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    args = parser.parse_args()
    every = [*OPERATORS, *models(), *int8_models()]
    cases = [c for c in every if not args.only or args.only in c.name]
    rows = []
    with harness.Stage(Path("build/bench")) as stage:
        jobs = [(c, t) for c in cases for t in args.threads]
        for case, threads in track(jobs, console=Console(stderr=True), disable=args.json):
            rows.append(measure(stage, case, threads, args.quick))
        peak = stage.peak_gflops()
    for row in rows:
        row["peak_fraction"] = row["gflops"] / (peak * row["threads"]) if row["gflops"] else None
    plain = [r for r in rows if r["dtype"] == "float32"]
    report = {
        "peak_gflops": peak,
        "rows": rows,
        "geomean": {
            "ort": geomean([r["ratio_ort"] for r in plain]),
            "best": geomean([r["ratio_best"] for r in plain]),
            "int8_over_f32": geomean([r["ratio_f32"] for r in rows if r["dtype"] == "int8"]),
        },
    }
    if args.json:
        json.dump(report, sys.stdout, indent=1)
        return
    ratios = ("ratio_ort", "ratio_best", "ratio_f32", "peak_fraction")
    table = Table(
        "case", "threads", "ours ms", "ort", "tfjs", "x ort", "x best", "x our f32", "of peak"
    )
    for r in rows:
        table.add_row(
            r["case"], str(r["threads"]), f"{r['ours_ms']:.3f}",
            *(f"{r['peers'][p]:.3f}" if p in r["peers"] else "-" for p in ("ort", "tfjs")),
            *(f"{r[k]:.2f}" if r[k] else "-" for k in ratios),
        )  # fmt: skip
    Console().print(table)
    Console().print(f"peak {peak:.1f} GFLOP/s per thread; geometric means {report['geomean']}")


if __name__ == "__main__":
    main()
