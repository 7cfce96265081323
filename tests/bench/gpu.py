"""Our WebGPU kernels against the other runtimes', in one Chromium page, or on the desktop.

    python -m tests.bench.gpu [--part browser|desktop] [--dtype f32|f16|int4] [--only CASE]
        [--small] [--json] [--json-lines FILE]

Browser part: ours and the peers take turns in one page, up to 1000 runs in flight each turn, until
one element of the last output is read back. Inputs lie on the GPU and outputs stay there, for all.
ONNX Runtime runs with graph capture in a page of its own beside ours (it does not bear both in
one), and the better one counts.
Desktop part: wgpu-py against `onnxruntime-webgpu` where that is installed; arrays in and out.

Each row also has how long a session took to create, with files from this machine, how long its
first run took, and a later one alone; in milliseconds. FILE gets each row once it is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from pywebgpu.errors import DeviceError
from pywebgpu.executors.wgpu_adapter import list_adapters
from tests.bench import peers, unattended
from tests.bench.cases import (
    OPERATORS,
    Case,
    attention_case,
    decoder_case,
    encoder_case,
    feeds,
    in_half,
    int4_decoder,
    int4_product,
    matmul,
    models,
)
from tests.bench.folder import BenchFolder
from tests.bench.report import MAX_DEVIATION, geomean

Row = dict[str, Any]

FOLDER = Path("build/bench")
LLAMA = {"layers": 2, "hidden": 2048, "heads": 32, "kv_heads": 8, "wide": 5632}
SMALL_LLAMA = {"layers": 2, "hidden": 64, "heads": 4, "kv_heads": 2, "wide": 160}
LARGE = [matmul(2048, 2048, 2048), matmul(4096, 4096, 4096), matmul(1, 4096, 4096)]
# Spelled out in ONNX nodes: they need no exporter, and no runtime finds integers on its GPU.
LAYERS = [
    encoder_case("MiniLM's encoder", 128, layers=6, hidden=384, heads=12),
    encoder_case("BERT base's encoder", 384, layers=12, hidden=768, heads=12),
    attention_case(heads=12, length=1024, size=64),
    decoder_case(512, **LLAMA),
]
INT4 = [int4_decoder(512, **LLAMA), int4_product(1, 4096, 4096), int4_product(128, 4096, 4096)]
MODELS = [c for c in models() if c.zoo not in ("minilm", "bert-base-2")]
# Those that matter most first: a run may be cut short.
FULL = [*LAYERS, *INT4, *LARGE, *map(in_half, [*LAYERS, *LARGE]), *OPERATORS, *MODELS]
FULL += map(in_half, [*OPERATORS[:5], *(c for c in MODELS if c.zoo in ("resnet-50", "vit-tiny"))])
# What a software adapter can do in seconds: for correctness, not for figures.
_SMALL_LAYERS = [
    encoder_case("an encoder", 16, layers=2, hidden=64, heads=4),
    attention_case(heads=2, length=32, size=16),
    decoder_case(8, **SMALL_LLAMA),
]
_SMALL_PRODUCTS = [matmul(64, 64, 64), matmul(1, 256, 256)]
SMALL = [
    *_SMALL_LAYERS,
    int4_decoder(8, **SMALL_LLAMA),
    int4_product(1, 256, 256),
    *_SMALL_PRODUCTS,
]
SMALL += map(in_half, [*_SMALL_LAYERS, *_SMALL_PRODUCTS])
SMALL += [c for c in models() if c.name.startswith("dig")]

TOLERANCE = {"f32": MAX_DEVIATION, "f16": 2e-2, "int4": MAX_DEVIATION}
"""Of the largest element of the f32 model's output; int4 weights are the same for everybody."""

IN_FLIGHT = 1000  # at most: the wait for the last one, some 3 ms, is to be a small part
BUDGET_MS = 120  # of one runtime's turn
CASE_MS = 4000  # no round begins later, but for the third
FLAGS = [
    "--no-sandbox", "--no-first-run", "--disable-quic", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--enable-unsafe-webgpu",
]  # fmt: skip


def _prepare(case: str, folder: Path) -> Row:
    """`BenchFolder.prepare` in a process of its own: cases travel by name."""
    found = next(c for c in [*FULL, *SMALL] if c.name == case)
    try:
        return BenchFolder(folder).prepare(found, lite=False)
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"}


def prepare(cases: list[Case], args: argparse.Namespace) -> list[Row]:
    """What `bench.js` needs for each case, or {"failed": why}. Before anything is timed."""
    BenchFolder(FOLDER).fill(args.peers)
    workers = min(8, (os.cpu_count() or 1) // 2)
    names = [case.name for case in cases]
    if workers < 2:
        return [_prepare(name, FOLDER) for name in names]
    made: dict[str, Row] = {}
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        # Cases in f16 share their models with others, which write them first.
        for half in (False, True):
            some = [case.name for case in cases if (case.dtype == "f16") is half]
            made |= zip(some, pool.map(_prepare, some, [FOLDER] * len(some)), strict=True)
    return [made[name] for name in names]


def browser(cases: list[Case], args: argparse.Namespace) -> Iterator[Row]:
    """Rows of the browser part, as they come."""
    infos = prepare(cases, args)
    jobs, owners = [], []
    for case, info in zip(cases, infos, strict=True):
        if "failed" in info:
            yield _empty(case, "browser", prepare=info["failed"])
            continue
        tfjs = ["tfjs"] if case.op and case.dtype == "f32" else []
        for peers_there in (["ort", *tfjs], ["ort+capture"]):
            options = {
                "provider": "webgpu", "threads": 1, "rounds": args.rounds, "budgetMs": BUDGET_MS,
                "capMs": CASE_MS, "inFlight": IN_FLIGHT, "least": 1,
                "runtimes": ["ours", *peers_there],
            }  # fmt: skip
            jobs.append({"info": info, "options": options})
        owners.append(case)
    end = time.monotonic() + args.limit
    flags = FLAGS + args.flag
    results = unattended.run(FOLDER.resolve(), jobs, args.browser, flags, args.timeout)
    with contextlib.closing(results):
        for case in owners:
            if time.monotonic() > end:
                yield _empty(case, "browser", page=f"not measured: {args.limit:.0f} s are over")
            else:
                yield _row(case, next(results), next(results))


def _empty(case: Case, part: str, **errors: str) -> Row:
    return {
        "case": case.name, "part": part, "dtype": case.dtype, "peers": {}, "ratio_ort": None,
        "ratio_best": None, **({"errors": errors} if errors else {}),
    }  # fmt: skip


def _row(case: Case, *pages: dict[str, Any]) -> Row:
    """What ours took is the first page's, but for its rounds beside the second page's peer."""
    row, errors = _empty(case, "browser"), {}
    tables = {"dispatches": "dispatches", "created_ms": "created", "first_ms": "first"}
    tables |= {"single_ms": "single", "deviation": "deviation"}
    row |= {name: {} for name in tables}
    times: list[dict[str, list[float]]] = []
    for page in pages:
        if "failed" in page:
            errors[f"page {1 + pages.index(page)}"] = page["failed"]
            continue
        if "device" in page:  # not where ours failed
            row.setdefault("device", page["device"])
        for name, source in tables.items():
            row[name] = page[source] | row[name]
        row = (page.get("profile") or {}) | row
        errors |= page["errors"]
        times.append({})
        for name, rounds in page["rounds"].items():
            deviation = page["deviation"][name]
            if deviation is None or not deviation <= TOLERANCE[case.dtype]:
                errors[name] = f"output deviates by {deviation}"
            else:
                times[-1][name] = rounds
    return _compare(case, row, times, errors)


def _compare(
    case: Case, row: Row, pages: list[dict[str, list[float]]], errors: dict[str, str]
) -> Row:
    """Medians, and medians of the rounds' ratios; each page's peers against ours in that page."""
    if errors:
        row["errors"] = errors
    ratios = {}
    for rounds in pages:
        ours = rounds.get("ours")
        if ours:
            row.setdefault("ours_ms", statistics.median(ours))
        for name, times in rounds.items():
            if name == "ours":
                continue
            row["peers"][name] = statistics.median(times)
            if ours:
                ratios[name] = statistics.median(p / o for p, o in zip(times, ours, strict=True))
    row["ratio_ort"] = min((v for n, v in ratios.items() if n.startswith("ort")), default=None)
    row["ratio_best"] = min(ratios.values(), default=None)
    if case.flops and "ours_ms" in row:
        row["gflops"] = case.flops / row["ours_ms"] / 1e6
    return row


def desktop(cases: list[Case], args: argparse.Namespace) -> Iterator[Row]:
    """Rows of the desktop part: one process, turn by turn, NumPy arrays in and out."""
    list_adapters()  # nobody's session pays for loading drivers
    for case, info in zip(cases, prepare(cases, args), strict=True):
        if "failed" in info:
            yield _empty(case, "desktop", prepare=info["failed"])
        else:
            yield _on_desktop(case, info, args.rounds)


def _on_desktop(case: Case, info: dict[str, Any], most: int) -> Row:
    import onnxruntime

    from pywebgpu.session import InferenceSession

    page = FOLDER / "page"
    fed = feeds(case, FOLDER / "models" / Path(info["model"]).name.replace(".f16", ""))
    theirs = {
        name: np.fromfile(page / feed["url"], feed["type"]).reshape(feed["shape"])
        for name, feed in info["modelFeeds"].items()
    }
    expected = np.fromfile(page / info["expected"], np.float32)
    row = _empty(case, "desktop")
    row |= {"created_ms": {}, "first_ms": {}, "single_ms": {}, "deviation": {}}

    def ours() -> Callable[[], Any]:
        session = InferenceSession(str((page / info["bundle"]).resolve()), providers=["webgpu"])
        profiled.append(session)
        return lambda: session.run(None, fed)

    def ort() -> Callable[[], Any]:
        providers = ["WebGpuExecutionProvider"]
        session = onnxruntime.InferenceSession(page / info["model"], providers=providers)
        if session.get_providers()[0] != providers[0]:
            raise DeviceError("ONNX Runtime finds no adapter that it can use")
        return lambda: session.run(None, theirs)

    profiled: list[InferenceSession] = []
    makers = {"ours": ours}
    if "WebGpuExecutionProvider" in onnxruntime.get_available_providers():
        makers["ort"] = ort
    runs: dict[str, Callable[[], Any]] = {}
    errors: dict[str, str] = {}
    for name, make in makers.items():
        try:
            start = time.perf_counter()
            run = make()
            row["created_ms"][name] = (time.perf_counter() - start) * 1e3
            start = time.perf_counter()
            output = np.asarray(run()[0], np.float32).reshape(-1)
            row["first_ms"][name] = (time.perf_counter() - start) * 1e3
        except Exception as error:
            errors[name] = f"{type(error).__name__}: {error}"
            continue
        scale = max(float(np.abs(expected).max()), 1e-30)
        row["deviation"][name] = found = float(np.abs(output - expected).max()) / scale
        if not found <= TOLERANCE[case.dtype]:
            errors[name] = f"output deviates by {found}"
        else:
            runs[name] = run
    for session in profiled:
        profile = session.profile(fed, repeats=5)
        row["device"], row["dispatches"] = session.device, {"ours": profile.dispatches}
        row["deviceMs"], row["hostMs"] = profile.device * 1e3, profile.host * 1e3
    rounds: dict[str, list[float]] = {name: [] for name in runs}
    stop = time.perf_counter() + CASE_MS / 1e3
    for done in range(most + 2):
        if done >= 5 and time.perf_counter() > stop:
            break
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            rounds[name].append((time.perf_counter() - start) * 1e3)
    rounds = {name: times[2:] for name, times in rounds.items()}
    row["single_ms"] = {name: statistics.median(times) for name, times in rounds.items()}
    for session in profiled:
        session.close()
    return _compare(case, row, [rounds], errors)


def _start_summary(rows: list[Row]) -> dict[str, float | None]:
    """Geometric means: the quickest peer's session creation over ours; our first run over a later
    one; the same of the peers."""
    created, first, theirs = [], [], []
    for row in rows:
        made, single = row.get("created_ms", {}), row.get("single_ms", {})
        for name, ms in row.get("first_ms", {}).items():
            if single.get(name):
                (first if name == "ours" else theirs).append(ms / single[name])
        others = [ms for name, ms in made.items() if name != "ours"]
        if others and "ours" in made:
            created.append(min(others) / made["ours"])
    return {
        "created": geomean([*created]),
        "first": geomean([*first]),
        "first_peers": geomean([*theirs]),
    }


def _print(rows: list[Row], report: dict[str, Any]) -> None:
    table = Table(
        "part", "case", "ours ms", "peers ms", "x ort", "x best", "GFLOP/s", "dispatches",
        "created", "first", "remarks",
    )  # fmt: skip
    for r in rows:
        times = [r.get(k, {}) for k in ("created_ms", "first_ms")]
        table.add_row(
            r["part"], r["case"], f"{r.get('ours_ms', float('nan')):.3f}",
            " ".join(f"{n} {t:.3f}" for n, t in r["peers"].items()),
            *(f"{r[k]:.2f}" if r.get(k) else "-" for k in ("ratio_ort", "ratio_best")),
            f"{r['gflops']:.0f}" if "gflops" in r else "-",
            " ".join(f"{n} {count}" for n, count in r.get("dispatches", {}).items()),
            *(" ".join(f"{n} {ms:.0f}" for n, ms in t.items()) for t in times),
            "; ".join(f"{k}: {v[:60]}" for k, v in r.get("errors", {}).items()),
        )  # fmt: skip
    Console(width=200).print(table, report["geomean"], report["start"])


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.gpu", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--json-lines", type=Path, metavar="FILE", help="each row as it comes")
    parser.add_argument("--part", choices=["browser", "desktop"])
    parser.add_argument("--dtype", choices=[*TOLERANCE], help="cases of one kind; else of all")
    parser.add_argument("--small", action="store_true", help="sizes for a software adapter")
    parser.add_argument(
        "--only", action="append", metavar="CASE",
        help="cases whose name contains this; repeatable",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--limit", type=float, default=200, metavar="SECONDS",
        help="for the pages; cases beyond it are listed as not measured",
    )  # fmt: skip
    parser.add_argument("--browser", default="/usr/bin/chromium", help="its command line")
    parser.add_argument("--flag", action="append", default=[], help="one more browser flag")
    parser.add_argument("--peers", type=Path, help="a folder with the peers, instead of npm")
    parser.add_argument("--timeout", type=float, default=60, help="seconds for a case's page")
    args = parser.parse_args()
    if args.part != "browser":
        peers.use_onnxruntime_webgpu(args.peers or FOLDER)
    cases = [c for c in (SMALL if args.small else FULL) if args.dtype in (None, c.dtype)]
    if args.only:
        cases = [c for c in cases if any(part in c.name for part in args.only)]
    rows: list[Row] = []
    if args.json_lines:
        args.json_lines.write_text("")
    for part, measure in {"browser": browser, "desktop": desktop}.items():
        if args.part not in (None, part):
            continue
        for row in measure(cases, args):
            rows.append(row)
            if args.json_lines:
                with args.json_lines.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    report = {
        "rows": rows,
        "geomean": {k: geomean([r[f"ratio_{k}"] for r in rows]) for k in ("ort", "best")},
        "start": _start_summary(rows),
    }
    if args.json:
        json.dump(report, sys.stdout, indent=1)
    else:
        _print(rows, report)


if __name__ == "__main__":
    main()
