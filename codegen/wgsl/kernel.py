"""The product of the WGSL target: shader text plus what a host needs to dispatch it."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from ..dims import Dim, dim_json


class Role(enum.Enum):
    """What a binding of group 0 is."""

    OPERAND = "operand"  # input buffer number `index` of the step
    OUTPUT = "output"
    KEPT = "kept"  # the second output of a product or a map
    SCRATCH = "scratch"  # scratch buffer number `index` of the kernel
    ARGS = "args"  # uniform block of the step's arguments: u32s, four to a vec4


@dataclass(frozen=True, slots=True)
class Binding:
    """Binding numbers are positions in `Pass.bindings`."""

    role: Role
    index: int = 0


@dataclass(frozen=True, slots=True)
class Pass:
    """One dispatch: entry point `main`, `grid` workgroups over the spec's arguments."""

    code: str
    bindings: tuple[Binding, ...]
    grid: tuple[Dim, Dim, Dim]


@dataclass(frozen=True, slots=True)
class WgslKernel:
    """One spec under one choice of knobs. `scratch`: bytes of each scratch buffer.

    `features`: WebGPU features the code needs ("subgroups", "shader-f16").
    """

    name: str
    passes: tuple[Pass, ...]
    scratch: tuple[Dim, ...] = ()
    features: tuple[str, ...] = ()

    def to_json(self, codes: dict[str, int]) -> dict[str, Any]:
        """As in a manifest; `codes` numbers the shader texts, and gets those that are new."""
        return {
            "passes": [
                {
                    "code": codes.setdefault(p.code, len(codes)),
                    "bindings": [[b.role.value, b.index] for b in p.bindings],
                    "grid": [dim_json(d) for d in p.grid],
                }
                for p in self.passes
            ],
            "scratch": [dim_json(d) for d in self.scratch],
            "features": list(self.features),
        }
