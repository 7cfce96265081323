"""Every WGSL candidate of chosen products on this machine's GPU, each checked, timed on the device.

    python -m tests.bench.candidates [--only CASE] [--lite] [--json FILE]

Times are of timestamp queries around repeated dispatches, operands and outputs staying where they
are: what a kernel takes with its operands in the card's cache, if they fit. The reference is
NumPy's product in f32, whose own error is far below the tolerance. Without `--lite` the whole
space is measured, not only the candidates that a tuner would try.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pywebgpu.codegen import wgsl
from pywebgpu.codegen.caps import WgslCaps
from pywebgpu.codegen.spec import Conv, KernelSpec, Matmul, Storage
from pywebgpu.errors import DeviceError
from pywebgpu.executors.wgpu_device import Gpu
from pywebgpu.packing import pack_panels
from tests.bench import kernels
from tests.kernels.harness import DTYPE

Array = np.ndarray[Any, Any]

CASES: dict[str, Callable[[], kernels.Case]] = {
    "512x512x512": lambda: kernels.matmul(512, 512, 512),
    "1024x1024x1024": lambda: kernels.matmul(1024, 1024, 1024),
    "2048x2048x2048": lambda: kernels.matmul(2048, 2048, 2048),
    "128x768x3072": lambda: kernels.matmul(128, 768, 3072),
    "128x3072x768": lambda: kernels.matmul(128, 3072, 768),
    "128x384x384": lambda: kernels.matmul(128, 384, 384),
    "128x1536x384": lambda: kernels.matmul(128, 1536, 384),
    "384x768x768": lambda: kernels.matmul(384, 768, 768),
    "1x4096x4096": lambda: kernels.matmul(1, 4096, 4096),
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
    us: float
    tflops: float
    compile_ms: float
    error: float
    problem: str = ""


def operands(case: kernels.Case, rng: np.random.Generator) -> list[Array]:
    return [
        rng.standard_normal(n, np.float32).astype(DTYPE[s])
        for n, s in zip(case.elements, case.spec.operands, strict=True)
    ]


def expected(spec: KernelSpec, data: list[Array]) -> Array | None:
    """acc + bias of a product with packed columns; None: nothing independent and quick."""
    if not isinstance(spec, Matmul) or spec.b is not None:
        return None
    m, n, k = int(spec.m), int(spec.n), int(spec.k)  # type: ignore[arg-type]
    columns = data[1].astype(np.float32).reshape(-1, k, 8).transpose(1, 0, 2).reshape(k, -1)[:, :n]
    assert np.array_equal(pack_panels(columns).ravel()[: 8 * k], data[1].ravel()[: 8 * k])
    a = data[0].astype(np.float32).reshape(m, k)
    return np.asarray(a @ columns + data[2].astype(np.float32)).ravel()


def measure(gpu: Gpu, name: str, case: kernels.Case, space: list[Any], seconds: float) -> list[Row]:
    rng = np.random.default_rng(1)
    data = operands(case, rng)
    want = expected(case.spec, data)
    rows = []
    for rank, knobs in enumerate(space):
        try:
            rows.append(_one(gpu, name, case, data, want, rank, knobs, seconds))
        except DeviceError as error:
            rows.append(Row(name, str(knobs), rank, 0, 0, 0, 0, str(error)[:300]))
            continue
        if want is None:
            want = _LAST["got"]
    return rows


_LAST: dict[str, Array] = {}


def _one(
    gpu: Gpu, name: str, case: kernels.Case, data: list[Array], want: Array | None, rank: int,
    knobs: Any, seconds: float,
) -> Row:  # fmt: skip
    kernel = wgsl.render(case.spec, knobs)
    start = time.perf_counter()
    gpu.pipelines([kernel])
    compiled = time.perf_counter() - start
    size = case.output * case.spec.output.bytes
    prepared = gpu.prepare(kernel, data, (), size, poison=True)
    try:
        (raw,) = gpu.run(prepared.dispatches, [(prepared.output, size)])
        got = np.frombuffer(raw, DTYPE[case.spec.output]).astype(np.float32)
        _LAST["got"] = got
        error = 0.0
        if want is not None:
            scale = float(np.abs(want).max())
            difference = np.abs(got - want) / scale
            error = float(difference.max()) if np.isfinite(difference).all() else float("inf")
        once = max(min(gpu.time(prepared.dispatches, 3) / 3 for _ in range(2)), 1e-7)
        repeats = max(3, min(400, int(seconds / 5 / once)))
        taken = min(gpu.time(prepared.dispatches, repeats) / repeats for _ in range(5))
    finally:
        prepared.destroy()
    limit = 4e-3 if Storage.F16 in case.spec.operands else 1e-5
    problem = "" if error <= limit else f"WRONG by {error:.2g}"
    return Row(name, str(knobs), rank, taken * 1e6, case.flops / taken / 1e12, compiled * 1e3,
               error, problem)  # fmt: skip


def whole_space(spec: KernelSpec, caps: WgslCaps) -> list[Any]:
    """The family's candidates without the cap of a tuner's."""
    if isinstance(spec, Matmul):
        return list(wgsl.matmul.space(spec, caps))
    if isinstance(spec, Conv):
        return list(wgsl.conv.space(spec, caps))
    return wgsl.space(spec, caps)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--lite", action="store_true", help="what a tuner would try")
    parser.add_argument("--seconds", type=float, default=0.02, help="device time per candidate")
    parser.add_argument("--top", type=int, default=12, help="rows printed per case, best first")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    gpu = Gpu()
    caps = gpu.caps()
    print(gpu.name, caps, flush=True)
    rows: list[Row] = []
    for name, make in CASES.items():
        if options.only not in name:
            continue
        case = make()
        space = wgsl.space(case.spec, caps) if options.lite else whole_space(case.spec, caps)
        found = measure(gpu, name, case, space, options.seconds)
        rows += found
        _print(name, found, options.top)
        sys.stdout.flush()
        if options.json:
            options.json.write_text(json.dumps([r.__dict__ for r in rows], indent=0))


def _print(name: str, rows: list[Row], top: int) -> None:
    good = sorted((r for r in rows if not r.problem), key=lambda r: r.us)
    default = next((r for r in rows if r.rank == 0), None)
    line = f"== {name}: {len(good)} good, {len(rows) - len(good)} not"
    if default and good and default.us:
        line += f"; default {default.us:.1f} us, {default.us / good[0].us:.2f}x the best"
    print(line)
    for r in [*good[:top], *(r for r in rows if r.problem)]:
        print(
            f"  {r.rank:3d} {r.us:9.1f} us {r.tflops:7.2f} TFLOP/s  compiled {r.compile_ms:6.1f} ms"
            f"  error {r.error:.1e}  {r.knobs} {r.problem}"
        )


if __name__ == "__main__":
    main()
