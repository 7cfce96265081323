"""WGSL: spec -> candidates -> shader text. One module per kernel family, one template each.

`module` builds what depends on a spec's expressions; a family's module decides tiles and loops;
`shaders/<family>.wgsl.j2` spells them.
"""

from __future__ import annotations

import dataclasses
from types import ModuleType
from typing import Any

from ..caps import WgslCaps
from ..spec import KernelSpec, family
from . import attention, conv, map, matmul, recurrent, reduce, row
from .kernel import WgslKernel
from .module import compile_templates as compile_templates

_FAMILIES: dict[str, ModuleType] = {
    "map": map,
    "reduce": reduce,
    "row": row,
    "matmul": matmul,
    "conv": conv,
    "attention": attention,
    "recurrent": recurrent,
}

MOST_CANDIDATES = 24


def space(spec: KernelSpec, caps: WgslCaps) -> list[Any]:
    """The family's legal `Knobs` for this spec on this device, a good default first."""
    return list(_FAMILIES[family(spec)].space(spec, caps))[:MOST_CANDIDATES]


def render(spec: KernelSpec, knobs: Any) -> WgslKernel:
    """The shader text of one candidate; `knobs` is one of `space(spec, ...)`."""
    kernel: WgslKernel = _FAMILIES[family(spec)].render(spec, knobs)
    return kernel


def knobs_json(knobs: Any) -> dict[str, Any]:
    """Knobs as a JSON object: what a tuning record keeps."""
    return dataclasses.asdict(knobs)


def knobs_from_json(spec: KernelSpec, data: dict[str, Any]) -> Any:
    """The inverse of `knobs_json`; TypeError where the fields are not the family's."""
    return _FAMILIES[family(spec)].Knobs(**data)
