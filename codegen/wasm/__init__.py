"""The WebAssembly target.

`asm` is the assembler, `scalar` spells expressions, one file per kernel family holds `Knobs`,
`space` and `emit`, and `model` joins kernels into a model's module.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ..caps import WasmCaps
from ..spec import KernelSpec, Storage, family
from .asm import Module
from .kernel import WasmKernel

Knobs = Any
"""A family's own frozen dataclass of choices."""


def space(spec: KernelSpec, caps: WasmCaps) -> list[Knobs]:
    """The legal candidates for `spec`, a good default first; none for f16 storage."""
    if Storage.F16 in (*spec.operands, spec.output):
        return []  # there are no instructions for it
    candidates: list[Knobs] = _family(spec).space(spec, caps)
    return candidates


def emit(module: Module, spec: KernelSpec, knobs: Knobs) -> WasmKernel:
    """Add the functions that compute `spec` under `knobs` to a module under construction."""
    kernel: WasmKernel = _family(spec).emit(module, spec, knobs)
    return kernel


def _family(spec: KernelSpec) -> Any:
    # Imported when needed: a page that re-tunes one kernel loads one family.
    return import_module(f".{family(spec)}", __name__)
