"""What a page loads before its first answer, in bytes.

    python -m tests.bench.size [--json] [--model digits] [--provider wasm]

A page that holds nothing but the runtime creates a session and runs it once in Chromium; every
response counts, as it is and compressed with gzip -9. Weights are listed apart.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Response, sync_playwright

from pywebgpu.link import write_runtime
from pywebgpu.serve import SiteServer
from tests.bench.models import MODELS, ROOT, bundle, zero_feeds
from tests.conftest import CHROMIUM, CHROMIUM_ARGS

PAGE = "<!doctype html><link rel='icon' href='data:,'>"
RUN = """async ([url, provider, feeds]) => {
  const { InferenceSession, Tensor } = await import("/web/pywebgpu.js");
  const session = await InferenceSession.create(url, { executionProviders: [provider] });
  const tensors = Object.entries(feeds).map(([name, { type, dims }]) =>
    [name, new Tensor(type, Array(dims.reduce((a, b) => a * b, 1)).fill(0), dims)]);
  await session.run(Object.fromEntries(tensors));
}"""


def kind(name: str) -> str:
    """What a file is: js (with the runtime's own data), wasm, wgsl, manifest or weights."""
    if name.startswith("web/"):
        return "js"
    if name.endswith(".bin"):
        return "weights"
    return "wasm" if name.endswith(".wasm") else "wgsl" if "wgsl" in name else "manifest"


def loaded(browser: Browser, url: str, model: str, provider: str) -> list[dict[str, Any]]:
    """One row per file that the page asked for."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(url)
    bodies: dict[str, bytes] = {}
    responses: list[Response] = []
    # On the context: what workers load counts too.
    context.on("response", lambda response: responses.append(response))
    feeds = zero_feeds(bundle(model) / "manifest.json", MODELS[model].sizes)
    page.evaluate(RUN, [f"/{model}/", provider, feeds])
    for response in responses:
        if response.url.startswith(url):
            bodies[response.url.removeprefix(url)] = b""
    context.close()
    return [
        {"model": model, "provider": provider, "file": name.removeprefix(f"{model}/")}
        | {"path": name, "kind": kind(name)}
        for name in bodies
    ]


def measure(models: Sequence[str], providers: Sequence[str]) -> dict[str, Any]:
    """The report; see the module's head."""
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        site = Path(temporary)
        write_runtime(ROOT / "web", site / "web")
        (site / "index.html").write_text(PAGE)
        for model in models:
            shutil.copytree(bundle(model), site / model)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGS)
        with SiteServer(site) as server:
            files = [
                row
                for model in models
                for provider in providers
                for row in loaded(browser, server.url, model, provider)
            ]
        browser.close()
        for row in files:
            data = (site / row.pop("path")).read_bytes()
            row["bytes"], row["gzip"] = len(data), len(gzip.compress(data, 9))
    js = {row["file"]: row for row in files if row["kind"] == "js"}

    def total(kind: str, column: str = "gzip") -> dict[str, int]:
        rows = {(r["model"], r["file"]): r[column] for r in files if r["kind"] == kind}
        return {m: sum(n for (model, _), n in rows.items() if model == m) for m in models}

    return {
        "js_gzip": sum(row["gzip"] for row in js.values()),
        "js_bytes": sum(row["bytes"] for row in js.values()),
        "wasm_gzip": total("wasm"),
        "wgsl_gzip": total("wgsl"),
        "manifest_gzip": total("manifest"),
        "weights_bytes": total("weights", "bytes"),
        "files": files,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--model", action="append", choices=sorted(MODELS))
    parser.add_argument("--provider", action="append", choices=["wasm", "webgpu"])
    options = parser.parse_args()
    report = measure(options.model or [*MODELS], options.provider or ["wasm", "webgpu"])
    if options.json:
        print(json.dumps(report))
        return
    for row in report["files"]:
        print(f"{row['model']:8} {row['provider']:7} {row['kind']:9}"
              f"{row['bytes']:>10} {row['gzip']:>10}  {row['file']}")  # fmt: skip
    for name, value in report.items():
        if name != "files":
            print(f"{name}: {value}")


if __name__ == "__main__":
    main()
