"""A plan as a WebAssembly module: the steps spelled as calls, with the default candidates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .codegen import wasm
from .codegen.caps import WasmCaps
from .codegen.wasm.asm import Target
from .codegen.wasm.model import Call, ModelModule, Operand, Slot, Weight, assemble
from .plan import Plan, WeightBuffer


def wasm_calls(plan: Plan) -> list[Call]:
    """The plan's steps for `assemble`."""

    def operand(number: int) -> Operand:
        buffer = plan.buffers[number]
        return Weight(buffer.offset) if isinstance(buffer, WeightBuffer) else Slot(buffer.slot)

    return [
        Call(step.kernel, tuple(map(operand, step.operands)), operand(step.output), step.args)
        for step in plan.steps
    ]


def build_wasm(
    plan: Plan, target: Target, knobs: Sequence[Any] | None = None, caps: WasmCaps | None = None
) -> ModelModule:
    """The plan's module for one target.

    knobs: one choice per kernel; the first candidate of each by default.
    """
    if knobs is None:
        caps = caps or WasmCaps(relaxed=target.relaxed, threads=target.threads)
        knobs = [wasm.space(spec, caps)[0] for spec in plan.kernels]
    return assemble(list(zip(plan.kernels, knobs, strict=True)), wasm_calls(plan), target)
