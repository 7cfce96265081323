"""What a new set of input shapes costs on the host: sizes evaluated, memory laid out, bind groups.

    python -m tests.bench.shapes [MODEL...] [--shapes 200] [--json]

Milliseconds, median and 95th percentile over random shapes that were not seen before, on one
session of each desktop executor and, with Node.js, of the browser runtime's own code (all of its
planning except what needs a device: bind groups). The first ten shapes only warm up. No kernel is
compiled again; what a run itself takes is not counted.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pywebgpu.compile import compile_model
from pywebgpu.errors import DeviceError
from pywebgpu.executors import base
from pywebgpu.export import export
from pywebgpu.plan import Plan
from pywebgpu.session import InferenceSession
from tests.models import zoo

WARMUP = 10
WEB = Path(__file__).parents[2] / "web"

Sizes = dict[str, int]


def random_sizes(symbols: tuple[str, ...], count: int) -> list[Sizes]:
    """Different from each other; the second symbol is a sequence's length or an image's side."""
    rng = random.Random(0)
    found: dict[tuple[int, ...], None] = {}
    while len(found) < count:
        limits = (4, 120, *[64] * len(symbols))
        found[tuple(rng.randint(1, limits[i]) for i in range(len(symbols)))] = None
    return [dict(zip(symbols, sizes, strict=True)) for sizes in found]


def bound(plan: Plan, sizes: Sizes) -> Sizes:
    """The sizes as a run binds them: shapes checked, equalities verified."""
    shapes = {p.name: tuple(base.evaluate(d, sizes) for d in p.shape) for p in plan.inputs}
    return base.bind_symbols(plan, shapes)


def spread(times: list[float]) -> dict[str, float]:
    """Milliseconds of seconds."""
    ms = [1000 * t for t in times[WARMUP:]]
    return {"median": statistics.median(ms), "p95": statistics.quantiles(ms, n=20)[-1]}


def python_times(plan: Plan, prepare: Callable[[Sizes], Any], shapes: list[Sizes]) -> list[float]:
    times = []
    for sizes in shapes:
        start = time.perf_counter()
        prepare(bound(plan, sizes))
        times.append(time.perf_counter() - start)
    return times


def desktop(model: Path, shapes: list[Sizes]) -> dict[str, dict[str, float] | str]:
    compiled = compile_model(model)
    report: dict[str, dict[str, float] | str] = {}
    for name, provider in (("wasmtime", "wasm"), ("wgpu", "webgpu")):
        try:
            session = InferenceSession(compiled, [provider])
        except DeviceError as error:
            report[name] = str(error)
            continue
        with session:
            executor: Any = session._executor
            prepare = executor._lay_out if provider == "wasm" else executor._frame
            report[name] = spread(python_times(compiled.plan, prepare, shapes))
    return report


_NODE = """
import { readFileSync } from "node:fs";
const [manifest, web, shapes] = JSON.parse(readFileSync(0));
const { frame } = await import(`${web}/shapes.js`);
const { layout } = await import(`${web}/wasm.js`);
const { evaluate } = await import(`${web}/dims.js`);
const { kernels } = manifest.webgpu.variants.at(-1);
const times = { wasm: [], webgpu: [] };
for (const sizes of shapes) {
  const start = performance.now();
  const run = frame(manifest, new Map(Object.entries(sizes)));
  const framed = performance.now();
  layout(manifest, run, 4);
  const laidOut = performance.now();
  for (const step of manifest.steps) {
    const values = step.args.map((dim) => evaluate(dim, run.sizes));
    const names = new Map(values.map((value, i) => [`a${i}`, value]));
    const kernel = kernels[step.kernel];
    kernel.scratch.map((dim) => evaluate(dim, names));
    kernel.passes.map((pass) => pass.grid.map((dim) => evaluate(dim, names)));
  }
  const end = performance.now();
  times.wasm.push((laidOut - start) / 1000);
  times.webgpu.push((end - laidOut + framed - start) / 1000);
}
console.log(JSON.stringify(times));
"""


def browser_code(model: Path, shapes: list[Sizes]) -> dict[str, dict[str, float] | str]:
    node = shutil.which("node")
    if node is None:
        return {"browser": "needs Node.js"}
    with tempfile.TemporaryDirectory() as folder:
        export(model, Path(folder) / "bundle")
        manifest = json.loads((Path(folder) / "bundle/manifest.json").read_text())
    given = json.dumps([manifest, WEB.as_uri(), shapes])
    command = [node, "--input-type=module", "-e", _NODE]
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=True)
    return {f"browser {name}": spread(t) for name, t in json.loads(done.stdout).items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.shapes", description=__doc__)
    parser.add_argument("models", nargs="*", default=["minilm", "gpt2-2", "bert-base-12"])
    parser.add_argument("--shapes", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    report = {}
    for name in args.models:
        path = zoo.path_of(name)
        shapes = random_sizes(compile_model(path).plan.symbols, args.shapes)
        report[name] = {**desktop(path, shapes), **browser_code(path, shapes)}
        if not args.json:
            for executor, found in report[name].items():
                text = (
                    found
                    if isinstance(found, str)
                    else "  ".join(f"{key} {value:.3f} ms" for key, value in found.items())
                )
                print(f"{name:14} {executor:16} {text}", flush=True)
    if args.json:
        print(json.dumps(report))


if __name__ == "__main__":
    main()
