"""Every candidate of chosen kernels in Chromium, one thread: time and GFLOP/s.

    python -m tests.bench.kernels [--only TEXT] [--top N] [--seconds S] [--exhaustive] [--json]

All candidates of a kernel take turns in one page, and so does the register-only ceiling of
`codegen.wasm.profile`: on a busy machine the fraction of that ceiling says more than the rate. A
candidate's output is compared with the first candidate's before its time is believed.

`--exhaustive` asks how much a tuner's few candidates leave: five kernels with every legal knob (see
`tests.bench.exhaustive`), all of them timed briefly, the best seven again against the default. It
also says what emitting and compiling a candidate takes. About ten minutes.
"""

from __future__ import annotations

import argparse
import base64
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from pywebgpu.codegen import scalar as sc
from pywebgpu.codegen import wasm
from pywebgpu.codegen.caps import WasmCaps
from pywebgpu.codegen.dims import evaluate
from pywebgpu.codegen.scalar import Op, Scalar
from pywebgpu.codegen.spec import Attention, Conv, KernelSpec, Matmul, Storage, View
from pywebgpu.codegen.wasm.asm import Target
from pywebgpu.codegen.wasm.model import assemble_kernel
from pywebgpu.codegen.wasm.profile import FMA_FLOPS, PAGES
from pywebgpu.codegen.wasm.profile import module as profile_module
from pywebgpu.serve import SiteServer
from tests.bench import exhaustive
from tests.conftest import CHROMIUM, CHROMIUM_ARGS

F32 = Storage.F32


@dataclass(frozen=True)
class Case:
    """A spec without run-time sizes; elements of each operand and of the output."""

    spec: KernelSpec
    elements: tuple[int, ...]
    output: int
    flops: int


def matmul(m: int, n: int, k: int, final: Scalar | None = None) -> Case:
    final = sc.acc() + sc.load(2, sc.axis(1)) if final is None else final
    spec = Matmul((), m, n, k, View((k, 1)), None, View((n, 1)), final, (F32,) * 3, F32)
    return Case(spec, (m * k, -(-n // 8) * 8 * k, n), m * n, 2 * m * n * k)


def batched(b: int, m: int, n: int, k: int, transposed: bool) -> Case:
    view = View((n * k, 1, k) if transposed else (n * k, n, 1))
    spec = Matmul((b,), m, n, k, View((m * k, k, 1)), view, View((m * n, n, 1)), sc.acc(),
                  (F32,) * 2, F32)  # fmt: skip
    return Case(spec, (b * m * k, b * n * k), b * m * n, 2 * b * m * n * k)


def conv(
    size: int, cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1,
    nchw: bool = False, planes: bool = False,
) -> Case:  # fmt: skip
    """nchw: the input's layout; planes: the output's too."""
    nchw |= planes
    pad, out = kernel // 2, -(-size // stride)
    to = (0, out, 1, out * out) if planes else (0, out * cout, cout, 1)
    x = (cin * size * size, size, 1, size * size) if nchw else (0, size * cin, cin, 1)
    final = sc.binary(Op.MAX, sc.acc() + sc.load(2, sc.axis(3)), 0.0)
    spec = Conv(1, (size, size), (out, out), cin, cout, groups, (kernel, kernel), (stride, stride),
                (1, 1), (pad, pad), View(x), View(to), final,
                (F32,) * 3, F32)  # fmt: skip
    per_output = kernel * kernel * cin // groups
    weights = per_output * (cout if spec.depthwise else groups * (-(-cout // groups // 8) * 8))
    elements = (size * size * cin, weights, cout)
    return Case(spec, elements, out * out * cout, 2 * out * out * cout * per_output)


def attention(heads: int, length: int, size: int, queries: int = 0, causal: bool = False) -> Case:
    queries = queries or length
    view, row = View((0, size, heads * size, 1)), heads * size
    spec = Attention(1, heads, heads, queries, length, size, size, size**-0.5, causal, True,
                     view, view, view, view, None, (F32,) * 3, F32)  # fmt: skip
    return Case(spec, (queries * row, length * row, length * row), queries * row,
                4 * heads * queries * length * size)  # fmt: skip


_X = sc.acc() + sc.load(2, sc.axis(1))
_GELU = _X * (sc.unary(Op.ERF, _X * 0.70710678) + 1.0) * 0.5

CASES: dict[str, Callable[[], Case]] = {
    "matmul 512^3": lambda: matmul(512, 512, 512),
    "matmul 1024^3": lambda: matmul(1024, 1024, 1024),
    "matmul 128x384x384": lambda: matmul(128, 384, 384),
    "matmul 128x1536x384 gelu": lambda: matmul(128, 1536, 384, _GELU),
    "matmul 128x384x1536": lambda: matmul(128, 384, 1536),
    "matmul 128x3072x768": lambda: matmul(128, 3072, 768),
    "matmul 3136x256x64 (1x1 conv)": lambda: matmul(3136, 256, 64),
    "matmul 12544x24x96 (1x1 conv)": lambda: matmul(12544, 24, 96),
    "gemv 1x3072x768": lambda: matmul(1, 3072, 768),
    "gemv 1x768x3072": lambda: matmul(1, 768, 3072),
    "gemv 2x768x768": lambda: matmul(2, 768, 768),
    "batched 12x128x128x64 b^T": lambda: batched(12, 128, 128, 64, True),
    "batched 12x128x64x128": lambda: batched(12, 128, 64, 128, False),
    "batched 1x512x512x512": lambda: batched(1, 512, 512, 512, False),
    "conv 3x3 64-64 56": lambda: conv(56, 64, 64, 3),
    "conv 3x3 128-128 28": lambda: conv(28, 128, 128, 3),
    "conv 3x3 256-256 14": lambda: conv(14, 256, 256, 3),
    "conv 3x3 512-512 7": lambda: conv(7, 512, 512, 3),
    "conv 3x3 s2 128-128 56": lambda: conv(56, 128, 128, 3, 2),
    "conv 1x1 s2 256-512 56": lambda: conv(56, 256, 512, 1, 2),
    "conv 7x7 s2 3-64 224 nchw": lambda: conv(224, 3, 64, 7, 2, nchw=True),
    "conv 3x3 s2 3-32 224 nchw": lambda: conv(224, 3, 32, 3, 2, nchw=True),
    "depthwise 3x3 96 112": lambda: conv(112, 96, 96, 3, 1, 96),
    "depthwise 3x3 s2 96 112": lambda: conv(112, 96, 96, 3, 2, 96),
    "depthwise 5x5 s2 240 28": lambda: conv(28, 240, 240, 5, 2, 240),
    "conv 3x3 64-64 56 planes": lambda: conv(56, 64, 64, 3, planes=True),
    "conv 1x1 64-256 56 planes": lambda: conv(56, 64, 256, 1, planes=True),
    "depthwise 3x3 96 112 planes": lambda: conv(112, 96, 96, 3, 1, 96, planes=True),
    "depthwise 3x3 s2 96 112 planes": lambda: conv(112, 96, 96, 3, 2, 96, planes=True),
    "depthwise 5x5 96 56 planes": lambda: conv(56, 96, 96, 5, 1, 96, planes=True),
    "attention 12x128x32 (MiniLM)": lambda: attention(12, 128, 32),
    "attention 12x384x64 (BERT)": lambda: attention(12, 384, 64),
    "attention 12x64x64 causal": lambda: attention(12, 64, 64, causal=True),
    "attention 12x1x256x64 decode": lambda: attention(12, 256, 64, 1, True),
}

_SCRIPT = """async (given) => {
  const [codes, peakCode, peakPages, scratches, elements, output] = given;
  const [seconds, peakFlops, warmMs] = given.slice(6);
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const up = (n) => (n + 255) & ~255;
  let end = 4096;
  const at = elements.map((n) => { const a = end; end = up(end + 4 * n + 128); return a; });
  const out = end; end = up(end + 4 * output + 128);
  const scratch = end; end += Math.max(...scratches) + 4096;
  const memory = new WebAssembly.Memory({ initial: Math.ceil(end / 65536) + 1 });
  const floats = new Float32Array(memory.buffer);
  let seed = 1;
  for (let i = 1024; i < out / 4; i++) {
    seed = (Math.imul(seed, 1664525) + 1013904223) | 0;
    floats[i] = seed / 2 ** 31;
  }
  const load = async (code) => {
    const { instance } = await WebAssembly.instantiate(bytes(code), { env: { memory } });
    return instance.exports;
  };
  const rows = [];
  let first = null;
  for (const code of codes) {
    const started = performance.now();
    const { kernel } = await load(code);
    const compiled = performance.now() - started;
    floats.fill(NaN, out / 4, out / 4 + output);
    const begin = performance.now();
    kernel(0, 1, ...at, out, scratch);
    const cold = performance.now() - begin;
    const result = floats.slice(out / 4, out / 4 + output);
    first ??= result;
    let scale = 1e-6, error = 0;
    for (let i = 0; i < output; i++) scale = Math.max(scale, Math.abs(first[i]));
    for (let i = 0; i < output; i++) {
      const e = Math.abs(result[i] - first[i]) / scale;
      if (!(e <= error)) error = e;
    }
    rows.push({ kernel, compiled, cold, error, times: [], ramp: [] });
  }
  const ceilingModule = { env: { memory: new WebAssembly.Memory({ initial: peakPages }) } };
  const ceiling = (await WebAssembly.instantiate(bytes(peakCode), ceilingModule))
    .instance.exports.fma;
  const peaks = [];
  for (const row of rows) { // until optimised
    const until = performance.now() + warmMs;
    while (performance.now() < until || row.ramp.length < 10) {
      const t = performance.now();
      row.kernel(0, 1, ...at, out, scratch);
      row.ramp.push(performance.now() - t);
    }
    await new Promise((done) => setTimeout(done, 5));
  }
  for (let i = 0; i < 20; i++) ceiling(0, 1, 20000);
  await new Promise((done) => setTimeout(done, 30));
  const stop = performance.now() + 1000 * seconds;
  for (let turn = 0; performance.now() < stop || turn < 5; turn++) {
    let t = performance.now();
    ceiling(0, 1, 100000);
    peaks.push(peakFlops * 100000 / (performance.now() - t) / 1e6);
    for (const row of rows) {
      // A kernel shorter than a tick of the clock, 5 microseconds, seems to take no time.
      const quickest = Math.max(0.005, Math.min(...row.ramp.slice(-5)));
      const reps = Math.max(1, Math.ceil(2 / quickest));
      t = performance.now();
      for (let i = 0; i < reps; i++) row.kernel(0, 1, ...at, out, scratch);
      row.times.push((performance.now() - t) / reps);
    }
  }
  const median = (v) => v.slice().sort((a, b) => a - b)[v.length >> 1];
  return {
    peak: median(peaks), best_peak: Math.max(...peaks),
    rows: rows.map((r) => ({
      ms: median(r.times), best_ms: Math.min(...r.times), cold_ms: r.cold, compile_ms: r.compiled,
      error: r.error,
    })),
  };
}"""


@dataclass(frozen=True)
class Row:
    case: str
    knobs: str
    ms: float
    best_ms: float
    gflops: float
    peak_fraction: float
    cold_ms: float
    emit_ms: float
    compile_ms: float
    bytes: int


def measure(
    page: Any, name: str, case: Case, candidates: list[Any], seconds: float, warm_ms: float = 150
) -> list[Row]:
    """One row for each candidate whose result is right; AssertionError if the default's is not."""
    codes, scratches, emitted = [], [], []
    for knobs in candidates:
        start = time.perf_counter()
        code, scratch = assemble_kernel(case.spec, knobs, Target(relaxed=True))
        emitted.append((time.perf_counter() - start) * 1e3)
        codes.append(code)
        scratches.append(evaluate(scratch, {}))
    text = [base64.b64encode(code).decode() for code in codes]
    ceiling = base64.b64encode(profile_module(Target(relaxed=True))).decode()
    sizes = [scratches, case.elements, case.output]
    result = page.evaluate(_SCRIPT, [text, ceiling, PAGES, *sizes, seconds, FMA_FLOPS, warm_ms])
    rows = []
    for knobs, code, emit_ms, row in zip(candidates, codes, emitted, result["rows"], strict=True):
        # The order of summation may differ, nothing else.
        if not row["error"] <= 1e-4:
            raise AssertionError(f"{name}, {knobs}: differs from the default by {row['error']}")
        best = case.flops / row["best_ms"] / 1e6
        rows.append(
            Row(name, str(knobs), row["ms"], row["best_ms"], case.flops / row["ms"] / 1e6,
                best / result["best_peak"], row["cold_ms"], emit_ms, row["compile_ms"], len(code))
        )  # fmt: skip
    return rows


@dataclass(frozen=True)
class Exhaustive:
    """What the default leaves: `ratio` is its time over that of the best of all candidates."""

    case: str
    candidates: int
    default: str
    best: str
    default_ms: float
    best_ms: float
    ratio: float
    emit_ms: float
    compile_ms: float
    """Medians per candidate."""


BATCH = 24


def search(page: Any, name: str, case: Case, seconds: float) -> Exhaustive:
    """All knobs in batches beside the default, then the seven that came out best against it."""
    default, *others = exhaustive.everything(case.spec, WasmCaps(relaxed=True))
    tried: list[tuple[float, Any, Row]] = []
    for at in range(0, len(others), BATCH):
        batch = others[at : at + BATCH]
        base, *rows = measure(page, name, case, [default, *batch], 0.0, warm_ms=40)
        tried += [(r.best_ms / base.best_ms, k, r) for k, r in zip(batch, rows, strict=True)]
    tried.sort(key=lambda found: found[0])
    final = measure(page, name, case, [default, *(knobs for _, knobs, _ in tried[:7])], seconds)
    best = min(final, key=lambda row: row.best_ms)
    return Exhaustive(
        name, 1 + len(others), final[0].knobs, best.knobs, final[0].best_ms, best.best_ms,
        final[0].best_ms / best.best_ms,
        statistics.median(row.emit_ms for _, _, row in tried),
        statistics.median(row.compile_ms for _, _, row in tried),
    )  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--top", type=int, default=16, help="so many candidates, default first")
    parser.add_argument("--seconds", type=float, default=1.0, help="measuring time per case")
    parser.add_argument("--exhaustive", action="store_true", help="five kernels, all knobs")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    rows: list[Row | Exhaustive] = []
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        (Path(folder) / "index.html").write_text("<!doctype html><title>kernels</title>")
        server = SiteServer(Path(folder), isolation=True).start()
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGS)
        for name, make in CASES.items():
            if options.only not in name or options.exhaustive > (name in exhaustive.CASES):
                continue
            page = browser.new_page()
            page.set_default_timeout(600_000)
            page.goto(server.url)
            case = make()
            if options.exhaustive:
                result = search(page, name, case, options.seconds)
                rows.append(result)
                if not options.json:
                    _print_search(result)
            else:
                candidates = wasm.space(case.spec, WasmCaps(relaxed=True))[: options.top]
                found = measure(page, name, case, candidates, options.seconds)
                rows += found
                if not options.json:
                    _print(name, found)
            page.close()
        browser.close()
        server.close()
    if options.json:
        json.dump([asdict(row) for row in rows], sys.stdout, indent=1)
    return 0


def _print(name: str, rows: list[Row]) -> None:
    print(name)
    best = min(row.best_ms for row in rows)
    for row in rows:
        mark = "*" if row.best_ms == best else " "
        print(
            f" {mark}{row.ms:8.3f} ms (best {row.best_ms:.3f}) {row.gflops:6.1f} GFLOP/s "
            f"{row.peak_fraction:4.0%} of peak, first {row.cold_ms:.1f} ms, "
            f"emitted in {row.emit_ms:.1f} ms, {row.bytes} B  {row.knobs}"
        )
    sys.stdout.flush()


def _print_search(found: Exhaustive) -> None:
    print(
        f"{found.case}: the default takes {found.ratio:.3f} times the best of "
        f"{found.candidates} candidates ({found.default_ms:.3f} and {found.best_ms:.3f} ms); "
        f"a candidate is emitted in {found.emit_ms:.1f} ms and compiled in "
        f"{found.compile_ms:.1f} ms\n  default {found.default}\n  best    {found.best}"
    )
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
