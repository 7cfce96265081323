"""From a plan to generated code: the variants of the wasm module and of the WGSL kernels.

Knobs are the default's, or the winner's where a tuning record speaks of the kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .codegen import wasm, wgsl
from .codegen.caps import WGSL_VARIANTS, WasmCaps, WgslCaps
from .codegen.dims import Dim, dim_max
from .codegen.program import looked_at
from .codegen.spec import KernelSpec, family
from .codegen.wasm.abi import weights_base
from .codegen.wasm.asm import Target
from .codegen.wasm.model import Call, ModelModule, Operand, Param, Slot, Weight, assemble
from .codegen.wgsl.kernel import WgslKernel
from .codegen.wgsl.module import FEATURES
from .errors import UnsupportedError
from .plan import Plan, WeightBuffer
from .records import Winners
from .self_test import SelfTest, self_tests
from .tune import wasm_target_name, wgsl_target_name

WASM_VARIANTS: tuple[tuple[str, WasmCaps], ...] = (
    ("relaxed-threads", WasmCaps(relaxed=True, threads=True)),
    ("simd-threads", WasmCaps(threads=True)),
    ("relaxed", WasmCaps(relaxed=True)),
    ("simd", WasmCaps()),
)
"""In the order of preference, as a bundle lists them."""


NO_WINNERS = Winners()


@dataclass(frozen=True, slots=True)
class WasmCode:
    """The variants of a model's module, which share the layout of the parameter block."""

    modules: dict[str, bytes]
    params: tuple[Param, ...]
    weights_base: int
    scratch_per_thread: Dim

    def module(self, variant: str) -> ModelModule:
        """What a host needs to run that variant."""
        caps = dict(WASM_VARIANTS)[variant]
        return ModelModule(
            self.modules[variant],
            Target(relaxed=caps.relaxed, threads=caps.threads),
            self.params,
            self.weights_base,
            self.scratch_per_thread,
        )


def _choose(
    candidates: Sequence[Any], spec: KernelSpec, target: str, name: str, winners: Winners
) -> Any:
    """`target` as records name it; `name` as people do."""
    if not candidates:
        raise UnsupportedError(
            f"no legal kernel of the {family(spec)} family for {name}", got=str(spec)[:200]
        )
    picked = winners.pick(spec, target, candidates)
    return candidates[0] if picked is None else picked


def kernels_of(plan: Plan, target: str) -> tuple[KernelSpec, ...]:
    """What a plan plays on a target of the records."""
    return plan.kernels if target.startswith("wasm") else plan.on_gpu.kernels


def tuned_kernels(plan: Plan, winners: Winners) -> dict[str, int]:
    """How many of the plan's kernels a record speaks of, for each target with any."""
    targets = dict.fromkeys(record.target for record in winners.records)
    found = {t: sum(bool(winners.matching(s, t)) for s in kernels_of(plan, t)) for t in targets}
    return {target: count for target, count in sorted(found.items()) if count}


def _chosen(plan: Plan, winners: Winners, variant: str) -> list[tuple[KernelSpec, Any]]:
    """The knobs of each kernel of the GPU's plan."""
    caps = _caps(variant)
    target = wgsl_target_name(caps.emulated)
    return [
        (spec, _choose(wgsl.space(spec, caps), spec, target, "WebGPU", winners))
        for spec in plan.on_gpu.kernels
    ]


def _caps(variant: str) -> WgslCaps:
    (caps,) = (v.caps for v in WGSL_VARIANTS if v.name == variant)
    return caps


def wgsl_kernels(
    plan: Plan, winners: Winners = NO_WINNERS, variant: str = "default"
) -> list[WgslKernel]:
    """One kernel per spec of the GPU's plan, in one of `WGSL_VARIANTS`."""
    return [wgsl.render(spec, knobs) for spec, knobs in _chosen(plan, winners, variant)]


def wgsl_tests(
    plan: Plan, winners: Winners = NO_WINNERS, variant: str = "default"
) -> list[SelfTest]:
    """What tells whether a device computes these kernels rightly."""
    return self_tests(_chosen(plan, winners, variant), _caps(variant))


def wgsl_variants(plan: Plan, winners: Winners = NO_WINNERS) -> dict[str, list[WgslKernel]]:
    """The kernels of the last variant, and of those that differ from it where it matters: a
    variant for devices with some feature has a kernel that uses the feature."""
    made = {v.name: wgsl_kernels(plan, winners, v.name) for v in WGSL_VARIANTS}
    last = made.pop(WGSL_VARIANTS[-1].name)
    found = {}
    for variant in WGSL_VARIANTS[:-1]:
        kernels = made[variant.name]
        special = set(variant.needs) & FEATURES - _features(last)
        if kernels != last and (not special or special & _features(kernels)):
            found[variant.name] = kernels
    return {**found, WGSL_VARIANTS[-1].name: last}


def _features(kernels: Sequence[WgslKernel]) -> set[str]:
    return {name for kernel in kernels for name in kernel.features}


def fitting_variants(
    variants: Iterable[tuple[str, Sequence[str]]], offers: Collection[str]
) -> list[str]:
    """Those of (name, needs) whose needs a device meets that offers these; the first is for it."""
    return [name for name, needs in variants if set(needs) <= set(offers)]


def wasm_code(
    plan: Plan,
    variants: Sequence[str] | None = None,
    progress: Callable[[str], None] | None = None,
    winners: Winners = NO_WINNERS,
) -> WasmCode:
    """The model's module in each of `variants` (all by default)."""

    def place(number: int) -> Operand:
        buffer = plan.buffers[number]
        return Weight(buffer.offset) if isinstance(buffer, WeightBuffer) else Slot(buffer.slot)

    calls = [
        Call(s.kernel, tuple(place(b) for b in s.operands), place(s.output), s.args)
        for s in plan.steps
    ]
    places = {number: place(number) for number in looked_at(plan.program)}
    modules: dict[str, bytes] = {}
    scratch: list[Dim] = []
    params: tuple[Param, ...] = ()
    base = 0
    for name, caps in WASM_VARIANTS:
        if variants is not None and name not in variants:
            continue
        if progress is not None:
            progress(name)
        target = wasm_target_name(caps.relaxed)
        chosen = [
            (spec, _choose(wasm.space(spec, caps), spec, target, "WebAssembly", winners))
            for spec in plan.kernels
        ]
        wanted = Target(relaxed=caps.relaxed, threads=caps.threads)
        made = assemble(chosen, calls, wanted, plan.program, places)
        modules[name] = made.binary
        params, base = made.params, made.weights_base
        scratch.append(made.scratch_per_thread)
    return WasmCode(modules, params, base or weights_base(0), dim_max(0, *scratch))
