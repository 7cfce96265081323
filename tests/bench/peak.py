"""The ceiling: fused multiply-adds on registers alone, one thread, in the same browser."""

from __future__ import annotations

import base64
from typing import Any

from pywebgpu.codegen.wasm.asm import I32, V128, Module, Target

CHAINS = 10  # independent accumulators: enough to hide the latency, few enough for 16 registers
UNROLL = 4
FLOPS_PER_ITERATION = CHAINS * UNROLL * 4 * 2


def module(relaxed: bool) -> bytes:
    """Exports `work(iterations)`; the sums end in memory so that no engine may drop the loop."""
    m = Module(Target(relaxed=relaxed, threads=False))
    f = m.function("work", [I32])
    (count,) = f.params
    i = f.local(I32)
    x, y = f.local(V128), f.local(V128)
    f.f32x4_const(*[0.999] * 4)
    f.set(x)
    f.f32x4_const(*[0.001] * 4)
    f.set(y)
    chains = f.locals(V128, CHAINS)
    for chain in chains:
        f.zero(chain)
    with f.loop_range(i, 0, count):
        for _ in range(UNROLL):
            for chain in chains:
                f.get(chain, x)  # chain = chain * x + y: a chain cannot be simplified away
                f.fma(y)
                f.set(chain)
    for number, chain in enumerate(chains):
        f.store(1024 + 16 * number, chain)
    m.export("work", f)
    return m.encode()


_SCRIPT = """async ([code, flops]) => {
  const bytes = Uint8Array.from(atob(code), (c) => c.charCodeAt(0));
  const memory = new WebAssembly.Memory({ initial: 1 });
  const { instance } = await WebAssembly.instantiate(bytes, { env: { memory } });
  const work = instance.exports.work;
  let best = Infinity;
  for (let round = 0; round < 60; round++) { // the first rounds run before optimisation
    const start = performance.now();
    work(100000);
    best = Math.min(best, performance.now() - start);
    if (round % 10 == 9) await new Promise((done) => setTimeout(done, 5));
  }
  return flops * 100000 / best / 1e6;
}"""


def measure(page: Any, relaxed: bool = True) -> float:
    """GFLOP/s of one thread; `page` is any Playwright page (cross-origin isolated, fine timer)."""
    code = base64.b64encode(module(relaxed)).decode()
    return float(page.evaluate(_SCRIPT, [code, FLOPS_PER_ITERATION]))
