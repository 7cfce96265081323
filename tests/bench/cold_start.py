"""From navigation to the first answer, ours and ONNX Runtime Web's, in Chromium.

    python -m tests.bench.cold_start [--json] [--model digits] [--provider wasm] [--rounds 7]

Each visit is a new browser context: no HTTP cache, no Cache Storage. A round is one visit to each
runtime, who goes first changes; a first round is not counted, since the browser itself starts cold.
A row counts only if both gave the same answer. Files come from loopback, so what a download would
cost is not in these figures (see tests.bench.size).

`first_ratio` is the median over the rounds of ours / peer, navigation to first answer: what else
the machine does slows both visits of a round alike. `..._ms` are medians, `..._min_ms` the best
round's. Three more ratios are taken within each visit, and of those the medians over the rounds:

- `first_over_steady`: the first `run` after `create` over one of many, one right after the other.
- `rested_over_steady`: a run half a second after the last one over such a run. All code has been
  optimised by then, but page and workers sleep, and others have used the caches.
- `first_over_rested`: what starting up alone adds to the first run.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import Browser, sync_playwright

from pywebgpu.link import write_runtime
from pywebgpu.serve import SiteServer
from tests.bench import peers
from tests.bench.models import MODELS, ROOT, bundle, onnx_file, zero_feeds
from tests.conftest import CHROMIUM, CHROMIUM_ARGS

ORT = {"onnxruntime-web": "1.30.0"}
# Its builds: the browser has JSPI, so the smallest WebGPU build works there.
PEER_BUILDS = {"wasm": "wasm", "webgpu": "jspi"}
TOLERANCE = 1e-3  # relative to the answer's scale
VISIT_MS = 300_000
# A new window loads the browser's own interface, up to half a second of processor time: not the
# page's doing, and it would be counted if the visit began at once.
WINDOW_MS = 2000


def make_site(site: Path, models: Sequence[str]) -> None:
    """Everything that both runtimes load, below one origin."""
    shutil.copytree(ROOT / "tests" / "bench" / "page" / "cold", site, dirs_exist_ok=True)
    write_runtime(ROOT / "web", site / "web")
    modules = peers.install(ROOT / "build" / "bench" / "npm-ort", ORT)
    shutil.copytree(
        modules / "onnxruntime-web" / "dist",
        site / "peers" / "onnxruntime-web",
        ignore=shutil.ignore_patterns("*.map", "ort.all*", "ort.webgl*", "ort.node*"),
    )
    (site / "models").mkdir()
    for name in models:
        shutil.copytree(bundle(name), site / "bundles" / name)
        shutil.copyfile(onnx_file(name), site / "models" / f"{name}.onnx")
        feeds = zero_feeds(bundle(name) / "manifest.json", MODELS[name].sizes)
        (site / f"feeds-{name}.json").write_text(json.dumps(feeds))


def visit(browser: Browser, url: str, runtime: str, provider: str, model: str) -> dict[str, Any]:
    """What `window.result` of tests/bench/page/cold/cold.js says."""
    context = browser.new_context()
    try:
        page = context.new_page()
        page.set_default_timeout(VISIT_MS)
        page.wait_for_timeout(WINDOW_MS)
        build = PEER_BUILDS[provider]
        query = f"runtime={runtime}&provider={provider}&model={model}&build={build}"
        page.goto(f"{url}cold.html?{query}")
        page.wait_for_function("window.result !== undefined")
        result: dict[str, Any] = page.evaluate("window.result")
        return result
    finally:
        context.close()


def compare(browser: Browser, url: str, model: str, provider: str, rounds: int) -> dict[str, Any]:
    """One row of the report."""
    row: dict[str, Any] = {"model": model, "provider": provider}
    seen: dict[str, list[dict[str, Any]]] = {"ours": [], "peer": []}
    for number in range(rounds + 1):
        for runtime in ("ours", "peer") if number % 2 == 0 else ("peer", "ours"):
            result = visit(browser, url, runtime, provider, model)
            if "error" in result:
                return row | {"error": f"{runtime}: {result['error']}"}
            say = f"first {result['first']:.0f} ms (created {result['created']:.0f}), "
            say += f"first run {result['first_run']:.2f}, rested {result['rested']:.2f}, "
            say += f"steady {result['steady']:.2f}"
            counted = "" if number else " (not counted)"
            print(f"{model} {provider} {runtime}: {say}{counted}", file=sys.stderr)
            if number:
                seen[runtime].append(result)
    answers = {runtime: np.array(visits[0]["answer"]) for runtime, visits in seen.items()}
    error = np.abs(answers["ours"] - answers["peer"]).max() / np.abs(answers["peer"]).max()
    if not error <= TOLERANCE:
        return row | {"error": f"answers differ by {error:.1e}"}

    def every(runtime: str, key: str) -> list[float]:
        return [visit[key] for visit in seen[runtime]]

    def median(values: Iterable[float]) -> float:
        return round(statistics.median(values), 3)

    def over(top: list[float], bottom: list[float]) -> float:
        return median(a / b for a, b in zip(top, bottom, strict=True))

    row["first_ratio"] = over(every("ours", "first"), every("peer", "first"))
    for runtime, label in (("ours", ""), ("peer", "peer_")):
        first, run, rested, steady = (
            every(runtime, key) for key in ("first", "first_run", "rested", "steady")
        )
        row[f"{runtime}_first_ms"] = median(first)
        row[f"{runtime}_first_min_ms"] = round(min(first), 3)
        row[f"{runtime}_first_run_ms"] = median(run)
        row[f"{runtime}_rested_ms"] = median(rested)
        row[f"{runtime}_steady_ms"] = median(steady)
        row[f"{label}first_over_steady"] = over(run, steady)
        row[f"{label}rested_over_steady"] = over(rested, steady)
        row[f"{label}first_over_rested"] = over(run, rested)
    return row | {
        "rounds": rounds,
        "ours": seen["ours"][0]["note"],
        "peer": f"onnxruntime-web {ORT['onnxruntime-web']} {seen['peer'][0]['note']}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--model", action="append", choices=sorted(MODELS))
    parser.add_argument("--provider", action="append", choices=["wasm", "webgpu"])
    parser.add_argument("--rounds", type=int, default=7, help="visits that count, per runtime")
    options = parser.parse_args()
    models, providers = options.model or [*MODELS], options.provider or ["wasm", "webgpu"]
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        site = Path(temporary)
        make_site(site, models)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGS)
        with SiteServer(site) as server:
            rows = [
                compare(browser, server.url, model, provider, options.rounds)
                for model in models
                for provider in providers
            ]
        browser.close()
    if options.json:
        print(json.dumps({"rows": rows}))
        return
    for row in rows:
        print(json.dumps(row, indent=2))


if __name__ == "__main__":
    main()
