"""Map: one output element per coordinate."""

from __future__ import annotations

from dataclasses import dataclass

from ..caps import WgslCaps
from ..coalesce import coalesce
from ..dims import Dim, ceildiv, product
from ..scalar import Op, Scalar, walk
from ..spec import Map
from .kernel import WgslKernel
from .module import Module, dim_multiple, fold_grid, runs_along, size_of, unravel

_LONG = 24
"""Operators of a value beyond which a compiler for CPUs is not given four copies of it."""


@dataclass(frozen=True, slots=True)
class Knobs:
    workgroup: int  # threads
    repeat: int  # pieces of work per thread, one workgroup's width apart
    vector: bool  # a piece is four neighbours along the last axis, else one element


@dataclass(frozen=True, slots=True)
class Fields:
    """What the template sees."""

    head: str
    workgroup: int
    repeat: int
    count: str
    coordinates: list[str]
    calls: list[str]


def space(spec: Map, caps: WgslCaps) -> list[Knobs]:
    """Vectors where addresses allow; several pieces per thread amortise index arithmetic. A vector
    is four times the code, which a compiler for CPUs may take minutes over where it is long."""
    spec = coalesce(spec)
    vector = bool(spec.shape) and _vectorable(spec)
    kinds: tuple[bool, ...] = (True, False) if vector else (False,)
    if caps.emulated and _length(spec) > _LONG:
        kinds = tuple(reversed(kinds))
    found = [
        Knobs(workgroup, repeat, v) for v in kinds for repeat in (1, 4) for workgroup in (256, 64)
    ]
    limit = min(caps.max_invocations, caps.max_workgroup_size[0])
    return [k for k in found if k.workgroup <= limit]


def _length(spec: Map) -> int:
    """Operators of the value; a power is spelt with some twenty."""
    nodes = walk(_values(spec))
    return len(nodes) + 20 * sum(node.op is Op.POW for node in nodes)


def _vectorable(spec: Map) -> bool:
    last = len(spec.shape) - 1
    return dim_multiple(spec.shape[last], 4) and runs_along(spec.index, last)


def _values(spec: Map) -> list[Scalar]:
    """Of the outputs."""
    return [spec.value] if spec.beside is None else [spec.value, spec.beside.value]


def render(spec: Map, knobs: Knobs) -> WgslKernel:
    spec = coalesce(spec)
    module = Module(spec.operands, spec.output, spec.n_args)
    rank = len(spec.shape)
    axes = [f"i{n}" for n in range(rank)]
    lane = rank - 1 if knobs.vector else None
    size: Dim = spec.shape[-1] if rank else 1
    # Both read an operand in the same way.
    guarded = frozenset[int]()
    if lane is not None:
        guarded = guarded.union(
            *(module.scalar_operands(v, spec.index, lane) for v in _values(spec))
        )
    module.puts(
        spec.value, spec.index, axes, lane=lane, lane_size=size, vector=knobs.vector,
        guarded=guarded,
    )  # fmt: skip
    if spec.beside is not None:
        module.puts(
            spec.beside.value, spec.index, axes, lane=lane, lane_size=size,
            vector=knobs.vector, guarded=guarded, kept=spec.beside.output,
        )  # fmt: skip
    shape = list(spec.shape)
    if knobs.vector:
        shape[-1] = shape[-1] // 4
    coordinates = unravel("number", shape, axes)
    passed = list(axes)
    if knobs.vector:
        passed[-1] = f"{axes[-1]} * 4"
    count = product(shape)
    names = ["put"] if spec.beside is None else ["put", "keep"]
    fields = Fields(
        head=module.head(),
        workgroup=knobs.workgroup,
        repeat=knobs.repeat,
        count=size_of(shape),
        coordinates=coordinates,
        calls=[f"{name}{'4' if knobs.vector else ''}({', '.join(passed)})" for name in names],
    )
    grid = fold_grid(ceildiv(count, knobs.workgroup * knobs.repeat))
    name = f"map_{knobs.workgroup}x{knobs.repeat}{'v' if knobs.vector else ''}"
    return WgslKernel(name, (module.dispatch("map", fields, grid),), (), module.features())
