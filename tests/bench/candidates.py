"""Every WGSL candidate of chosen products on this machine's GPU, each checked, timed on the device.

    python -m tests.bench.candidates [--part browser|desktop] [--only CASE] [--dtype f16]

Everything is compiled first. Then candidates take turns, each time at least 3 ms of dispatches
before the timed ones: a GPU lowers its clock while it waits for a compiler. Operands and outputs
stay where they are, in the card's cache if they fit. What counts is the median over the rounds.
The reference is NumPy's product in f32, whose own error is far below the tolerance.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pywebgpu.codegen import scalar as sc
from pywebgpu.codegen import wgsl
from pywebgpu.codegen.caps import WGSL_VARIANTS, WgslCaps
from pywebgpu.codegen.dims import evaluate
from pywebgpu.codegen.spec import Blocks, Conv, KernelSpec, Matmul, Storage, View
from pywebgpu.codegen.wgsl.product_space import everything
from pywebgpu.errors import DeviceError
from tests.bench import kernels, unattended

Array = np.ndarray[Any, Any]
_DTYPE = {Storage.F32: np.float32, Storage.F16: np.float16}
FLAGS = [
    "--no-sandbox", "--no-first-run", "--disable-quic", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--enable-unsafe-webgpu",
    "--enable-webgpu-developer-features",
]  # fmt: skip
BUSY = 3e-3  # seconds of dispatches before and under a timing

CASES: dict[str, Callable[[], kernels.Case]] = {
    "2048x2048x2048": lambda: kernels.matmul(2048, 2048, 2048),
    "1024x1024x1024": lambda: kernels.matmul(1024, 1024, 1024),
    "512x512x512": lambda: kernels.matmul(512, 512, 512),
    "128x768x3072": lambda: kernels.matmul(128, 768, 3072),
    "128x3072x768": lambda: kernels.matmul(128, 3072, 768),
    "128x384x384": lambda: kernels.matmul(128, 384, 384),
    "128x1536x384": lambda: kernels.matmul(128, 1536, 384),
    "384x768x768": lambda: kernels.matmul(384, 768, 768),
    "1x4096x4096": lambda: kernels.matmul(1, 4096, 4096),
    "1x4096x4096 int4": lambda: in_blocks(1, 4096, 4096),
    "4x768x3072": lambda: kernels.matmul(4, 768, 3072),
    "conv 3x3 64-64 56": lambda: kernels.conv(56, 64, 64, 3),
    "conv 3x3 256-256 14": lambda: kernels.conv(14, 256, 256, 3),
    "conv 1x1 64-256 56": lambda: kernels.matmul(3136, 256, 64),
    "depthwise 3x3 96 112": lambda: kernels.conv(112, 96, 96, 3, 1, 96),
}


@dataclass(frozen=True)
class Row:
    case: str
    knobs: str
    rank: int  # in the space: 0 is the default
    us: float = 0.0
    spread: float = 0.0  # the slowest round over the quickest
    tflops: float = 0.0
    compile_ms: float = 0.0
    error: float = 0.0
    problem: str = ""


def in_blocks(m: int, n: int, k: int) -> kernels.Case:
    """Weights in 4 bits, with a scale and a zero point for every 32 steps of k."""
    f32, panels = Storage.F32, -(-n // 8)
    settings = panels * -(-k // 32) * 8
    spec = Matmul(
        (), m, n, k, View((k, 1)), None, View((n, 1)), sc.acc() + sc.load(4, sc.axis(1)),
        (f32, Storage.I8, f32, f32, f32), f32, blocks=Blocks(4, 32, True),
    )  # fmt: skip
    elements = (m * k, panels * (-(-k // 4) * 4) * 4, settings, settings, n)
    return kernels.Case(spec, elements, m * n, 2 * m * n * k)


def in_half(case: kernels.Case) -> kernels.Case:
    """The same with everything stored as f16."""
    half = (Storage.F16,) * len(case.elements)
    return dataclasses.replace(
        case, spec=dataclasses.replace(case.spec, operands=half, output=Storage.F16)
    )


def operands(case: kernels.Case) -> list[Array]:
    rng = np.random.default_rng(1)
    return [
        rng.integers(-128, 128, n, np.int8)
        if s is Storage.I8
        else rng.standard_normal(n, np.float32).astype(_DTYPE[s])
        for n, s in zip(case.elements, case.spec.operands, strict=True)
    ]


def expected(spec: KernelSpec, data: list[Array]) -> Array | None:
    """acc + bias of a product with packed columns; None: nothing independent and quick."""
    if not isinstance(spec, Matmul) or spec.b is not None or spec.blocks is not None:
        return None
    m, n, k = (evaluate(d, {}) for d in (spec.m, spec.n, spec.k))
    columns = data[1].astype(np.float32).reshape(-1, k, 8).transpose(1, 0, 2).reshape(k, -1)[:, :n]
    a = data[0].astype(np.float32).reshape(m, k)
    return np.asarray(a @ columns + data[2].astype(np.float32)).ravel()


def deviation(got: Array, want: Array) -> float:
    difference = np.abs(got.astype(np.float32) - want) / np.abs(want).max()
    return float(difference.max()) if np.isfinite(difference).all() else float("inf")


def tolerance(case: kernels.Case) -> float:
    return 4e-3 if Storage.F16 in case.spec.operands else 1e-5


def whole_space(spec: KernelSpec, caps: WgslCaps) -> list[Any]:
    """All legal forms of a product, the tuner's candidates first."""
    found = wgsl.space(spec, caps)
    if isinstance(spec, Matmul):
        product = wgsl.matmul.product_of(spec)
    elif isinstance(spec, Conv) and not spec.depthwise:
        product = wgsl.conv.product_of(spec)
    else:
        return found
    return list(dict.fromkeys([*found, *everything(product, caps)]))


# -- desktop ---------------------------------------------------------------------------------------


def desktop(cases: dict[str, kernels.Case], spaces: list[list[Any]], rounds: int) -> list[Row]:
    from pywebgpu.executors.wgpu_device import Gpu
    from pywebgpu.executors.wgpu_profile import measure

    gpu = Gpu()
    print(gpu.name, gpu.caps(), measure(gpu), flush=True)
    rows = []
    for (name, case), space in zip(cases.items(), spaces, strict=True):
        found = _desktop_case(gpu, name, case, space, rounds)
        rows += found
        show(name, found)
    return rows


def _desktop_case(
    gpu: Any, name: str, case: kernels.Case, space: list[Any], rounds: int
) -> list[Row]:
    data = operands(case)
    want = expected(case.spec, data)
    size = case.output * case.spec.output.bytes
    rows: dict[int, Row] = {}
    work: dict[int, list[Any]] = {}
    buffers = [gpu.buffer(a.nbytes) for a in data]
    for buffer, array in zip(buffers, data, strict=True):
        gpu.write(buffer, array.tobytes())
    output = gpu.buffer(size)
    for rank, knobs in enumerate(space):
        try:
            kernel = wgsl.render(case.spec, knobs)
            start = time.perf_counter()
            gpu.pipelines([kernel])
            compiled = (time.perf_counter() - start) * 1e3
            scratch = [gpu.buffer(evaluate(n, {}), poison=True) for n in kernel.scratch]
            gpu.poison(output)
            work[rank] = gpu.dispatches(kernel, buffers, output, scratch, (), None)
            (raw,) = gpu.run(work[rank], [(output, size)])
        except DeviceError as error:
            rows[rank] = Row(name, str(knobs), rank, problem=str(error)[:300])
            work.pop(rank, None)
            continue
        got = np.frombuffer(raw, _DTYPE[case.spec.output])
        want = got.astype(np.float32) if want is None else want
        error_ = deviation(got, want)
        problem = "" if error_ <= tolerance(case) else f"WRONG by {error_:.2g}"
        rows[rank] = Row(name, str(knobs), rank, compile_ms=compiled, error=error_, problem=problem)
    once = {rank: max(gpu.time(d, 2) / 2, 1e-6) for rank, d in work.items()}
    times: dict[int, list[float]] = {rank: [] for rank in work}
    for _ in range(rounds):
        for rank, dispatches in work.items():
            repeats = max(1, min(1000, int(BUSY / once[rank])))
            gpu.submit(dispatches * repeats)
            times[rank].append(gpu.time(dispatches, repeats) / repeats)
            once[rank] = times[rank][-1]
    for buffer in (*buffers, output):
        buffer.destroy()
    return [_timed(case, row, times.get(rank, [])) for rank, row in rows.items()]


def _timed(case: kernels.Case, row: Row, seconds: list[float]) -> Row:
    if not seconds:
        return row
    taken = statistics.median(seconds)
    return dataclasses.replace(
        row, us=taken * 1e6, spread=max(seconds) / min(seconds), tflops=case.flops / taken / 1e12
    )


# -- browser ---------------------------------------------------------------------------------------


def browser(
    cases: dict[str, kernels.Case], spaces: list[list[Any]], rounds: int, command: str,
    flags: list[str],
) -> list[Row]:  # fmt: skip
    folder = Path("build/candidates").resolve()
    page = folder / "page"
    page.mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(__file__).parent / "page" / "candidates.js", page)
    (page / "auto.html").write_text('<script type="module" src="candidates.js"></script>')
    jobs = []
    for number, (case, space) in enumerate(zip(cases.values(), spaces, strict=True)):
        data = operands(case)
        want = expected(case.spec, data)
        files = []
        for i, array in enumerate([*data, *([want] if want is not None else [])]):
            files.append(f"../{number}-{i}.bin")
            (folder / f"{number}-{i}.bin").write_bytes(array.tobytes())
        jobs.append({
            "operands": files[: len(data)],
            "expected": files[len(data)] if want is not None else None,
            "elements": case.output,
            "half": case.spec.output is Storage.F16,
            "rounds": rounds,
            "busy": BUSY,
            "kernels": [_kernel_json(wgsl.render(case.spec, knobs)) for knobs in space],
        })  # fmt: skip
    results = list(unattended.run(folder, jobs, command, flags, 100))
    rows: list[Row] = []
    for (name, case), space, result in zip(cases.items(), spaces, results, strict=True):
        if "failed" in result:
            print(f"== {name}: {result['failed']}")
            continue
        if not rows:
            print(result["device"], flush=True)
        found = []
        for rank, (knobs, r) in enumerate(zip(space, result["kernels"], strict=True)):
            error = float("inf") if r["error"] is None else r["error"]
            problem = r.get("problem") or ("" if error <= tolerance(case) else f"WRONG by {error}")
            row = Row(name, str(knobs), rank, compile_ms=r.get("compiled", 0), error=error,
                      problem=problem)  # fmt: skip
            found.append(_timed(case, row, r["seconds"]))
        rows += found
        show(name, found)
    return rows


def _kernel_json(kernel: Any) -> dict[str, Any]:
    return {
        "passes": [
            {
                "code": p.code,
                "bindings": [[b.role.value, b.index] for b in p.bindings],
                "grid": [evaluate(d, {}) for d in p.grid],
            }
            for p in kernel.passes
        ],
        "scratch": [evaluate(n, {}) for n in kernel.scratch],
    }


def show(name: str, rows: list[Row], top: int = 12) -> None:
    good = sorted((r for r in rows if not r.problem), key=lambda r: r.us)
    default = next((r for r in rows if r.rank == 0), None)
    line = f"== {name}: {len(good)} good, {len(rows) - len(good)} not"
    if default and good and default.us:
        line += f"; default {default.us:.1f} us, {default.us / good[0].us:.2f}x the best"
    print(line)
    for r in [*good[:top], *(r for r in rows if r.problem)]:
        print(
            f"  {r.rank:3d} {r.us:8.1f} us x{r.spread:.2f} {r.tflops:7.2f} TFLOP/s  compiled "
            f"{r.compile_ms:6.1f} ms  error {r.error:.1e}  {r.knobs} {r.problem}"
        )
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--part", choices=["browser", "desktop"], default="desktop")
    parser.add_argument("--only", action="append", default=[], help="cases of this name")
    parser.add_argument("--dtype", choices=["f32", "f16"], default="f32")
    parser.add_argument("--matrix", action="store_true", help="with subgroup matrices")
    parser.add_argument("--all", action="store_true", help="all forms, not only a tuner's")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--most", type=int, help="candidates per case")
    parser.add_argument("--browser", default="/usr/bin/chromium", help="its command line")
    parser.add_argument("--flag", action="append", default=[], help="one more browser flag")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    cases = {n: make() for n, make in CASES.items() if not options.only or n in options.only}
    if options.dtype == "f16":
        cases = {name: in_half(case) for name, case in cases.items()}
    # What a GPU of today offers at least; a candidate that this one cannot hold says so.
    variant = next(
        v for v in WGSL_VARIANTS if v.name == ("matrix" if options.matrix else "default")
    )
    caps = dataclasses.replace(variant.caps, max_workgroup_storage=32768, f16=True)
    space = whole_space if options.all else wgsl.space
    spaces = [space(case.spec, caps)[: options.most] for case in cases.values()]
    if options.part == "desktop":
        rows = desktop(cases, spaces, options.rounds)
    else:
        rows = browser(cases, spaces, options.rounds, options.browser, [*FLAGS, *options.flag])
    if options.json:
        options.json.write_text(json.dumps([dataclasses.asdict(r) for r in rows], indent=0))


if __name__ == "__main__":
    main()
