"""What tuning in the page takes and gives, in Chromium, while the page goes on running its model.

    python -m tests.bench.tuning [--json] [--model digits] [--provider wasm] [--visits 3]

The page runs the model, waits about as long as a run took (at least 30 ms), and runs it again:
first undisturbed, then while it is tuned. Each visit is a fresh browser context; a row has the
medians of its visits, and what each saw of `p95_ratio` in `p95_ratios`: in a tuning of some seconds
it hangs on the five slowest runs.

- `total_s`: from `session.tune()` to its end, the loading of Python included (`python_s`).
- `t90_s`: until 90 % of what was gained in all was found; `tuning_s` is without loading Python.
- `candidates`: measured or refused. `gain`: all kernels of a run by default over tuned, less 1.
- `p95_ratio`: 95th percentile of the page's own runs during tuning over that before it;
  `p95_ratio_measuring` without the time in which Python loads; `p95_ratio_again`: after tuning over
  before it, which is what chance and the machine's other work make of the same idle page.
- `run_ratio`: median run after over before. An idle page is watched for 10 s, 200 runs at most and
  20 at least.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, sync_playwright

from pywebgpu import pyodide_archive
from pywebgpu.export import export
from pywebgpu.link import write_runtime
from pywebgpu.serve import SiteServer
from pywebgpu.vendored import PYODIDE, package_folder
from tests.bench.models import ROOT, zero_feeds
from tests.conftest import CHROMIUM, CHROMIUM_ARGS
from tests.models import zoo

SIZES = {
    "minilm": {"batch": 1, "sequence": 128},
    "digits": {"batch": 1},
    "mobilenet-v2": {"batch": 1},
}
PAGE_MS = 580_000


def make_site(site: Path, models: list[str]) -> None:
    write_runtime(ROOT / "web", site / "web")
    pyodide_archive.build(site / "web", package_folder(PYODIDE))
    shutil.copytree(ROOT / "tests" / "bench" / "page" / "tuning", site / "page")
    for name in models:
        export(zoo.path_of(name), site / name)


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def visit_row(found: dict[str, Any], model: str, provider: str) -> dict[str, Any]:
    """What page/tuning/tuning.js saw in one visit."""
    report, before = found["report"], found["before"]
    during = [ms for _, ms in found["during"]]
    measuring = [ms for at, ms in found["during"] if at > (found["python"] or 0)] or during
    most = found["seen"][-1][1]
    t90 = next(at for at, saved in found["seen"] if saved >= 0.9 * most) if most > 0 else None
    idle = percentile(before, 0.95)
    return {
        "model": model,
        "provider": provider,
        "total_s": round(found["total"] / 1e3, 2),
        "t90_s": None if t90 is None else round(t90 / 1e3, 2),
        "python_s": round((found["python"] or 0) / 1e3, 2),
        "tuning_s": report["seconds"],
        "candidates": report["candidates"],
        "gain": round(report["defaultMs"] / report["bestMs"] - 1, 4),
        "p95_ratio": round(percentile(during, 0.95) / idle, 2),
        "p95_ratio_measuring": round(percentile(measuring, 0.95) / idle, 2),
        "p95_ratio_again": round(percentile(found["after"], 0.95) / idle, 2),
        "idle_ms": round(statistics.median(before), 3),
        "run_ratio": round(statistics.median(found["after"]) / statistics.median(before), 3),
        "swaps": len(report["swaps"]),
        "stopped": report["stopped"],
        "variant": found["info"]["variant"],
    }


def row(visits: list[dict[str, Any]]) -> dict[str, Any]:
    """One line of the report: medians; of what is no number, the last visit's."""

    def middle(name: str) -> Any:
        values = [visit[name] for visit in visits if visit[name] is not None]
        if not values or isinstance(values[0], str):
            return values[-1] if values else None
        return round(statistics.median(values), 4)

    ratios = [visit["p95_ratio"] for visit in visits]
    return {name: middle(name) for name in visits[0]} | {"p95_ratios": ratios}


def visit(
    browser: Browser, url: str, site: Path, model: str, provider: str, budget: float
) -> dict[str, Any]:
    context = browser.new_context()
    try:
        page = context.new_page()
        page.set_default_timeout(PAGE_MS)
        page.goto(f"{url}page/tuning.html")
        page.wait_for_function("'tuneModel' in window")
        ports = zero_feeds(site / model / "manifest.json", SIZES[model])
        arg = {"url": f"../{model}/", "provider": provider, "ports": ports, "budget": budget}
        return visit_row(page.evaluate("(arg) => window.tuneModel(arg)", arg), model, provider)
    finally:
        context.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--model", action="append", choices=sorted(SIZES))
    parser.add_argument("--provider", action="append", choices=["wasm", "webgpu"])
    parser.add_argument("--visits", type=int, default=3, help="of each row (default 3)")
    parser.add_argument("--budget", type=float, default=30.0, help="seconds")
    options = parser.parse_args()
    models, providers = options.model or [*SIZES], options.provider or ["wasm", "webgpu"]
    rows = []
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        site = Path(temporary)
        make_site(site, models)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGS)
        with SiteServer(site) as server:
            for model in models:
                for provider in providers:
                    visits = [
                        visit(browser, server.url, site, model, provider, options.budget)
                        for _ in range(options.visits)
                    ]
                    rows.append(row(visits))
                    print(json.dumps(rows[-1]), file=sys.stderr)
        browser.close()
    if options.json:
        print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
