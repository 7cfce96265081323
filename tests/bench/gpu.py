"""Our WebGPU kernels against the other runtimes', in one Chromium page, or on the desktop.

    python -m tests.bench.gpu --json [--part browser|desktop] [--small] [--only CASE]

Browser part: ours and the peers take turns, 20 runs in flight each turn, waiting for the last
one's output. Inputs lie on the GPU and outputs stay there, for all. ONNX Runtime runs with graph
capture off and on, and the better one counts.
Desktop part: wgpu-py against `onnxruntime-webgpu` where that is installed; arrays in and out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench import unattended
from tests.bench.cases import (
    OPERATORS,
    Case,
    attention_case,
    decoder_case,
    encoder_case,
    feeds,
    matmul,
    models,
)
from tests.bench.folder import BenchFolder
from tests.bench.report import MAX_DEVIATION, geomean

LARGE = [matmul(2048, 2048, 2048), matmul(4096, 4096, 4096), matmul(1, 4096, 4096)]
# Spelled out in ONNX nodes: they need no exporter, and no runtime finds integers on its GPU.
LAYERS = [
    encoder_case("MiniLM's encoder", 128, layers=6, hidden=384, heads=12),
    encoder_case("BERT base's encoder", 384, layers=12, hidden=768, heads=12),
    attention_case(heads=12, length=1024, size=64),
    decoder_case(512, layers=2, hidden=2048, heads=32, kv_heads=8, wide=5632),
]
MODELS = [c for c in models() if c.zoo not in ("minilm", "bert-base-2")]
# What a software adapter can do in seconds: for correctness, not for figures.
SMALL = [
    matmul(64, 64, 64),
    matmul(1, 256, 256),
    encoder_case("an encoder", 16, layers=2, hidden=64, heads=4),
    attention_case(heads=2, length=32, size=16),
    decoder_case(8, layers=2, hidden=64, heads=8, kv_heads=2, wide=160),
    *[c for c in models() if c.name.startswith("dig")],
]
IN_FLIGHT = 20
FLAGS = [
    "--no-sandbox", "--no-first-run", "--disable-quic", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--enable-unsafe-webgpu",
]  # fmt: skip


def browser(cases: list[Case], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of the browser part."""
    folder = BenchFolder(Path("build/bench"))
    folder.fill(args.peers)
    jobs, owners = [], []
    for case in cases:
        for capture in (False, True):
            runtimes = ["ours", "ort", *(["tfjs"] if case.op and not capture else [])]
            options = {
                "provider": "webgpu", "threads": 1, "rounds": args.rounds, "budgetMs": 100,
                "inFlight": IN_FLIGHT, "graphCapture": capture, "runtimes": runtimes,
            }  # fmt: skip
            jobs.append({"info": folder.prepare(case), "options": options})
            owners.append(case)
    results = unattended.run(folder.folder, jobs, args.browser, FLAGS + args.flag, args.timeout)
    rows = []
    for case, plain, captured in zip(cases, results[::2], results[1::2], strict=True):
        rows.append(_row(case, plain, captured))
    return rows


def _row(case: Case, plain: dict[str, Any], captured: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"case": case.name, "part": "browser", "dtype": "float32", "peers": {}}
    ratios = {}
    for label, result in {"": plain, "+capture": captured}.items():
        errors = dict(result.get("errors", {}))
        if "failed" in result:
            errors["page"] = result["failed"]
        rounds = {}
        for name, times in result.get("rounds", {}).items():
            deviation = result["deviation"][name]
            if deviation is None or not deviation <= MAX_DEVIATION:
                errors[name] = f"output deviates by {deviation}"
            else:
                rounds[name] = times
        if "ours" in rounds and (not label or "ours_ms" not in row):
            row["ours_ms"] = statistics.median(rounds["ours"])
            row["device"] = result["device"]
            row["created_ms"] = result["created"]
            row["dispatches"] = result["dispatches"]
            row.update(result.get("profile") or {})
        for name, times in rounds.items():
            if name != "ours" and "ours" in rounds:
                row["peers"][name + label] = statistics.median(times)
                ratios[name + label] = statistics.median(
                    p / o for p, o in zip(times, rounds["ours"], strict=True)
                )
        if errors:
            row.setdefault("errors", {}).update({k + label: v for k, v in errors.items()})
    ort = [v for k, v in ratios.items() if k.startswith("ort")]
    row["ratio_ort"], row["ratio_best"] = min(ort, default=None), min(ratios.values(), default=None)
    if case.flops and "ours_ms" in row:
        row["gflops"] = case.flops / row["ours_ms"] / 1e6
    return row


def desktop(cases: list[Case], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of the desktop part: one process, turn by turn, NumPy arrays in and out."""
    from pywebgpu.session import InferenceSession

    folder = BenchFolder(Path("build/bench"))
    rows = []
    for case in cases:
        folder.fill(args.peers)
        info = folder.prepare(case)
        model = folder.folder / "page" / info["model"]
        fed = feeds(case, model)
        start = time.perf_counter()
        ours = InferenceSession(str(model), providers=["webgpu"])
        created = (time.perf_counter() - start) * 1e3
        profile = ours.profile(fed, repeats=5)
        row: dict[str, Any] = {
            "case": case.name, "part": "desktop", "dtype": "float32", "peers": {},
            "device": ours.device, "dispatches": {"ours": profile.dispatches},
            "deviceMs": profile.device * 1e3, "hostMs": profile.host * 1e3,
            "created_ms": {"ours": created},
        }  # fmt: skip
        runtimes = {"ours": lambda s=ours, f=fed: s.run(None, f)}
        try:
            import onnxruntime

            if "WebGpuExecutionProvider" in onnxruntime.get_available_providers():
                start = time.perf_counter()
                peer = onnxruntime.InferenceSession(model, providers=["WebGpuExecutionProvider"])
                row["created_ms"]["ort"] = (time.perf_counter() - start) * 1e3
                runtimes["ort"] = lambda s=peer, f=fed: s.run(None, f)
        except ImportError:
            pass
        times: dict[str, list[float]] = {name: [] for name in runtimes}
        for _ in range(args.rounds + 2):
            for name, run in runtimes.items():
                start = time.perf_counter()
                run()
                times[name].append((time.perf_counter() - start) * 1e3)
        row["ours_ms"] = statistics.median(times["ours"][2:])
        row["peers"] = {n: statistics.median(t[2:]) for n, t in times.items() if n != "ours"}
        ratio = statistics.median(
            p / o for p, o in zip(times.get("ort", []), times["ours"], strict=False)
        ) if "ort" in times else None  # fmt: skip
        row["ratio_ort"] = row["ratio_best"] = ratio
        if case.flops:
            row["gflops"] = case.flops / row["ours_ms"] / 1e6
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gpu", description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--part", choices=["browser", "desktop"])
    parser.add_argument("--small", action="store_true", help="sizes for a software adapter")
    parser.add_argument("--only", metavar="CASE", help="cases whose name contains this")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--browser", default="/usr/bin/chromium", help="its command line")
    parser.add_argument("--flag", action="append", default=[], help="one more browser flag")
    parser.add_argument("--peers", type=Path, help="a folder with the peers, instead of npm")
    parser.add_argument("--timeout", type=float, default=60, help="seconds for a case's page")
    args = parser.parse_args()
    cases = SMALL if args.small else [*OPERATORS, *LARGE, *LAYERS, *MODELS]
    cases = [c for c in cases if not args.only or args.only in c.name]
    rows = []
    for part, measure in {"browser": browser, "desktop": desktop}.items():
        if args.part in (None, part):
            rows += measure(cases, args)
    report = {
        "rows": rows,
        "geomean": {k: geomean([r[f"ratio_{k}"] for r in rows]) for k in ("ort", "best")},
    }
    if args.json:
        json.dump(report, sys.stdout, indent=1)
        return
    table = Table(
        "part", "case", "ours ms", "peers ms", "x ort", "x best", "GFLOP/s", "dispatches", "remarks"
    )
    for r in rows:
        table.add_row(
            r["part"], r["case"], f"{r.get('ours_ms', float('nan')):.3f}",
            " ".join(f"{n} {t:.3f}" for n, t in r["peers"].items()),
            *(f"{r[k]:.2f}" if r.get(k) else "-" for k in ("ratio_ort", "ratio_best")),
            f"{r['gflops']:.0f}" if "gflops" in r else "-",
            " ".join(f"{n} {count}" for n, count in r.get("dispatches", {}).items()),
            "; ".join(f"{k}: {v[:60]}" for k, v in r.get("errors", {}).items()),
        )  # fmt: skip
    Console(width=160).print(table, report["geomean"])


if __name__ == "__main__":
    main()
