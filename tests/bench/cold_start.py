"""From navigation to the first answer, ours and ONNX Runtime Web's, in Chromium.

    python -m tests.bench.cold_start [--json] [--model digits] [--provider wasm] [--rounds 5]

Each visit is a new browser context: no HTTP cache, no Cache Storage. The runtimes take turns, the
figures are medians over the rounds, and a visit counts only if both gave the same answer. Files
come from loopback, so what a download would cost is not in these figures (see tests.bench.size).

`first_over_steady` is the first `run` after `create` over the median of later ones.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
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
    seen: dict[str, list[dict[str, Any]]] = {"ours": [], "peer": []}
    for number in range(rounds):
        for runtime in ("ours", "peer") if number % 2 == 0 else ("peer", "ours"):
            result = visit(browser, url, runtime, provider, model)
            if "error" in result:
                return {"model": model, "provider": provider, "error": f"{runtime}: {result}"}
            seen[runtime].append(result)
            say = f"first {result['first']:.0f} ms (created {result['created']:.0f}), "
            say += f"first run {result['first_run']:.2f}, steady {result['steady']:.2f}"
            print(f"{model} {provider} {runtime}: {say}", file=sys.stderr)
    answers = {runtime: np.array(visits[0]["answer"]) for runtime, visits in seen.items()}
    error = np.abs(answers["ours"] - answers["peer"]).max() / np.abs(answers["peer"]).max()
    if not error <= TOLERANCE:
        return {"model": model, "provider": provider, "error": f"answers differ by {error:.1e}"}

    def median(runtime: str, key: str) -> float:
        return round(statistics.median(v[key] for v in seen[runtime]), 3)

    def ratio(runtime: str) -> float:
        return round(statistics.median(v["first_run"] / v["steady"] for v in seen[runtime]), 2)

    return {
        "model": model,
        "provider": provider,
        "ours_first_ms": median("ours", "first"),
        "peer_first_ms": median("peer", "first"),
        "first_over_steady": ratio("ours"),
        "peer_first_over_steady": ratio("peer"),
        "ours_steady_ms": median("ours", "steady"),
        "peer_steady_ms": median("peer", "steady"),
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
    parser.add_argument("--rounds", type=int, default=5)
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
