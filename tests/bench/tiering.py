"""How a fresh kernel gets from the engine's quick compiler to its good one, in Chromium.

    python -m tests.bench.tiering [--only TEXT] [--modules N]

Every module is new to the engine (a custom section makes its bytes unique), so that no cached code
helps. A kernel counts as optimised from the first call on after which most take no longer than
1.25 times what the quickest quarter takes; medians over the modules.
"""

from __future__ import annotations

import argparse
import base64
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from pywebgpu.codegen import wasm
from pywebgpu.codegen.caps import WasmCaps
from pywebgpu.codegen.dims import evaluate
from pywebgpu.codegen.wasm.asm import Module, Target
from pywebgpu.serve import SiteServer
from tests.bench.kernels import CASES, Case
from tests.conftest import CHROMIUM, CHROMIUM_ARGS

DEFAULT = ("matmul 128x384x384", "gemv 1x768x3072", "conv 3x3 64-64 56", "attention 12x128x32")
CALLS, LONGEST_MS = 400, 300

_SCRIPT = """async ([code, elements, output, scratch, calls, longest]) => {
  const bytes = Uint8Array.from(atob(code), (c) => c.charCodeAt(0));
  const up = (n) => (n + 255) & ~255;
  let end = 4096;
  const at = elements.map((n) => { const a = end; end = up(end + 4 * n + 128); return a; });
  const out = end; end = up(end + 4 * output + 128);
  const memory = new WebAssembly.Memory({ initial: Math.ceil((end + scratch) / 65536) + 1 });
  new Float32Array(memory.buffer).fill(0.5);
  const start = performance.now();
  const { instance } = await WebAssembly.instantiate(bytes, { env: { memory } });
  const compiled = performance.now() - start;
  const times = [];
  const begin = performance.now();
  while (times.length < calls && performance.now() < begin + longest) {
    const t = performance.now();
    instance.exports.kernel(0, 1, ...at, out, end);
    times.push(performance.now() - t);
  }
  return [compiled, times];
}"""


def fresh(case: Case) -> tuple[str, int]:
    """The default's module, unlike any before, and its scratch bytes."""
    module = Module(Target(relaxed=True))
    kernel = wasm.emit(module, case.spec, wasm.space(case.spec, WasmCaps(relaxed=True))[0])
    module.export("kernel", module.functions[kernel.function])
    module.custom("unique", os.urandom(16))
    return base64.b64encode(module.encode()).decode(), evaluate(kernel.scratch, {})


def settled(times: list[float]) -> int:
    """Calls before those of which most are about as quick as a quarter of all are."""
    limit = 1.25 * sorted(times)[len(times) // 4]
    quick = (i for i in range(len(times)) if statistics.median(times[i : i + 7]) <= limit)
    return next(quick, len(times) // 2)


def measure(page: Any, case: Case) -> tuple[float, float, float, int, float]:
    code, scratch = fresh(case)
    compiled, times = page.evaluate(
        _SCRIPT, [code, case.elements, case.output, scratch, CALLS, LONGEST_MS]
    )
    before = settled(times)
    return compiled, times[0], statistics.median(times[before:]), before, sum(times[:before])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="kernels whose name begins so")
    parser.add_argument("--modules", type=int, default=15, help="fresh modules per kernel")
    options = parser.parse_args()
    wanted = (options.only,) if options.only else DEFAULT
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        (Path(folder) / "index.html").write_text("<!doctype html><title>tiering</title>")
        server = SiteServer(Path(folder), isolation=True).start()
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGS)
        print("| kernel | compiled, ms | first call | calls, ms until optimised | then |")
        print("|---|--:|--:|--:|--:|")
        for name in (n for n in CASES if any(n.startswith(w) for w in wanted)):
            page = browser.new_page()
            page.goto(server.url)
            rows = [measure(page, CASES[name]()) for _ in range(options.modules)]
            page.close()
            columns = zip(*rows, strict=True)
            compiled, first, steady, calls, spent = map(statistics.median, columns)
            cells = [name, f"{compiled:.2f}", f"{first:.2f}", f"{calls:.0f}, {spent:.1f}"]
            print(f"| {' | '.join(cells)} | {steady:.3f} |")
        browser.close()
        server.close()


if __name__ == "__main__":
    main()
