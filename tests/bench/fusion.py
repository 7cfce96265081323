"""What fewer dispatches are worth on this machine's GPU: an encoder in several ways, in turn.

    python -m tests.bench.fusion [--rounds 9] [--layers 6] [--steps]

Ways: as built; norms in second passes rather than in the products that read the rows; a Gelu whose
product is divided along k, with a second pass for it; both. Times are the device's, of a whole
run, by timestamps where it has them; ways take turns, and what counts is the median of the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from pywebgpu.codegen import wgsl
from pywebgpu.codegen.caps import WgslCaps
from pywebgpu.codegen.spec import KernelSpec, Matmul
from pywebgpu.codegen.wgsl.kernel import WgslKernel
from pywebgpu.codegen.wgsl.matmul import product_of
from pywebgpu.compile import compile_model
from pywebgpu.executors.wgpu_device import Gpu
from pywebgpu.executors.wgpu_executor import WgpuExecutor
from tests.bench.layers import encoder

MODELS = {"MiniLM, 128": (384, 12, 128), "BERT base, 384": (768, 12, 384)}
WAYS = {
    "as built": (True, False),
    "norms in second passes": (False, False),
    "Gelu in a second pass": (True, True),
    "both": (False, True),
}


def _kernel(spec: KernelSpec, divided: bool) -> WgslKernel:
    """The default, but with `divided` the first form that divides k of a product before a Gelu."""
    found = wgsl.space(spec, WgslCaps())
    if divided and isinstance(spec, Matmul) and product_of(spec).heavy:
        found = [knobs for knobs in found if getattr(knobs, "splits", 1) > 1] or found
    return wgsl.render(spec, found[0])


def _executors(path: Path, gpu: Gpu) -> dict[str, WgpuExecutor]:
    made = {}
    for name, (given, divided) in WAYS.items():
        compiled = compile_model(path, statistics=given)
        kernels = [_kernel(spec, divided) for spec in compiled.plan.on_gpu.kernels]
        made[name] = WgpuExecutor(
            compiled.plan, kernels, b"".join(compiled.weight_chunks()), gpu=gpu
        )
    return made


def _fixed(path: Path, rows: int) -> None:
    model = onnx.load(path)
    for port in (*model.graph.input, *model.graph.output):
        for dim, size in zip(port.type.tensor_type.shape.dim, (1, rows), strict=False):
            dim.dim_value = size
    onnx.save(model, path)


def measure(name: str, layers: int, rounds: int, steps: bool, gpu: Gpu) -> None:
    hidden, heads, rows = MODELS[name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "encoder.onnx"
        encoder(path, layers=layers, hidden=hidden, heads=heads)
        _fixed(path, rows)
        made = _executors(path, gpu)
    x = np.random.default_rng().standard_normal((1, rows, hidden)).astype(np.float32)
    feeds: dict[str, Any] = {"x": x}
    first = made["as built"].run(feeds)["y"]
    times: dict[str, list[float]] = {way: [] for way in made}
    for way, executor in made.items():
        np.testing.assert_allclose(executor.run(feeds)["y"], first, 1e-3, 1e-3, err_msg=way)
    for _ in range(rounds):
        for way, executor in made.items():
            times[way].append(executor.profile(feeds, 10).device)
    base = statistics.median(times["as built"])
    print(f"{name}, {layers} layers")
    for way, executor in made.items():
        profile = executor.profile(feeds, 5)
        took = statistics.median(times[way])
        print(
            f"  {way:24} {profile.dispatches:4} dispatches {1e3 * took:8.3f} ms {took / base:6.3f}"
        )
        if steps:
            for label, seconds in profile.steps[:5]:
                print(f"    {1e6 * seconds:8.1f} us  {label}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--steps", action="store_true", help="also the first layer's kernels")
    options = parser.parse_args()
    gpu = Gpu()
    for name in MODELS:
        measure(name, options.layers, options.rounds, options.steps, gpu)


if __name__ == "__main__":
    main()
