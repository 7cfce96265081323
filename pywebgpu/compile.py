"""From a model to a plan: load, passes, lowering, memory, one kernel per distinct spec."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .codegen.caps import WgslCaps
from .codegen.dims import Atom, Dim, symbols
from .codegen.program import renumbered
from .codegen.spec import KernelSpec
from .errors import InputError
from .graph import Graph, SizeCheck
from .half import halve
from .infer import symbolic
from .load import judged, load
from .lower import Int8, Lowering, lower
from .lower.fuse import fuse
from .lower.split import split, too_large
from .lower.values import Emitted
from .memory import Memory, plan_memory
from .passes.pipeline import optimise
from .passes.ranges import fit_integers
from .passes.siblings import merge_siblings
from .passes.twins import merge_twins
from .plan import Buffer, Plan, Port, SlotBuffer, Step, WeightBuffer

Progress = Callable[[str], None]

MAX_BINDING = WgslCaps().max_binding
"""Bytes of one storage buffer that every WebGPU device binds."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """A plan and the bytes of its weight space, which are produced piece by piece."""

    plan: Plan
    lowering: Lowering
    memory: Memory

    def weight_chunks(self) -> Iterator[bytes]:
        """The weight space in order; its length is `plan.weight_bytes`."""
        return self.lowering.weights.chunks()


def compile_model(
    model: str | os.PathLike[str] | bytes | Graph | Any,
    progress: Progress | None = None,
    *,
    values: Mapping[str, np.ndarray[Any, Any]] | None = None,
    half: bool = False,
    wide: Collection[int] = (),
    int8: Int8 | None = None,
    max_binding: int = MAX_BINDING,
    statistics: bool = True,
) -> Compiled:
    """Compile a model (path, bytes, parsed model or `Graph`) to a target-free plan.

    values: inputs to fix: they become constants, and the plan has them as inputs no more.
    half: store floats as f16 (see `half`); such a plan runs on WebGPU only.
    wide: numbers of buffers that stay f32 there (see `half_range`).
    int8: which constants become bytes (see `lower.int8`), and where to note it.
    max_binding: bytes of a weight beyond which a GPU has it in parts (see `lower.split`).
    statistics: whether a GPU's products may store statistics of their rows (see `lower.fuse`);
        False is for measuring what that is worth.

    Raises:
        ModelError, InputError: the model cannot be read, or a value does not fit its input.
        UnsupportedError: it uses something that cannot be compiled.
    """
    say = progress or (lambda _: None)
    say("loading")
    if isinstance(model, Graph) and values:
        raise InputError("inputs can be fixed only while a model is read", where="values")
    graph = model if isinstance(model, Graph) else load(model, fixed=values)
    with judged(model):
        fit_integers(graph)
        say("optimising")
        optimise(graph)
        # Each looks for what the one before has made.
        if merge_siblings(graph) | merge_twins(graph):
            graph.prune()
        say("lowering")
        lowering = lower(graph, int8)
    if half:
        halve(lowering, wide)
    played = on_gpu(lowering, max_binding, statistics)
    memory = plan_memory(lowering.buffers, lowering.steps, lowering.program, graph.counted, played)
    return Compiled(make_plan(graph, lowering, memory, played), lowering, memory)


def on_gpu(
    lowering: Lowering, max_binding: int = MAX_BINDING, statistics: bool = True
) -> list[list[Emitted]]:
    """What a GPU plays in place of each step."""
    if lowering.controlled:
        # A program's items name steps by number: those of a GPU must be the same.
        played = split(lowering.steps, lowering.buffers, max_binding)
        starts = [0, *itertools.accumulate(map(len, played))]
        lowering.program[:] = renumbered(lowering.program, starts)
        lowering.steps[:] = [step for steps in played for step in steps]
        return [[step] for step in lowering.steps]
    large = too_large(lowering.buffers, max_binding)
    fused = fuse(lowering.steps, lowering.buffers, large, statistics=statistics)
    return split(fused, lowering.buffers, max_binding)


def make_plan(
    graph: Graph, lowering: Lowering, memory: Memory, played: Sequence[Sequence[Emitted]]
) -> Plan:
    """Number kernels, buffers and slots; `played` is what a GPU plays in place of each step."""
    offsets, weight_bytes = lowering.weights.offsets()
    buffers: list[Buffer] = []
    for info, slot, size in zip(lowering.buffers, memory.slot_of, memory.bytes, strict=True):
        if info.weight is not None:
            array = lowering.weights.arrays[info.weight]
            first, count = info.first * array.itemsize, info.elements
            assert isinstance(count, int), "a weight has a known size"
            size = max(count * array.itemsize, 4)
            buffers.append(WeightBuffer(offsets[info.weight] + first, size))
        else:
            buffers.append(SlotBuffer(slot, size))
    kernels, steps = _numbered(lowering.steps)
    plan = Plan(
        name=graph.name,
        symbols=_symbols(graph),
        inputs=_ports(graph, graph.inputs, lowering, lowering.input_buffers),
        outputs=_ports(graph, graph.outputs, lowering, lowering.output_buffers),
        buffers=tuple(buffers),
        slots=memory.slots,
        kernels=kernels,
        steps=steps,
        weight_bytes=weight_bytes,
        checks=_checks(graph),
        program=tuple(lowering.program) if lowering.controlled else (),
    )
    kernels, steps = _numbered([step for steps in played for step in steps])
    if steps == plan.steps:
        return plan
    return replace(plan, gpu=replace(plan, kernels=kernels, steps=steps))


def _numbered(emitted: Sequence[Emitted]) -> tuple[tuple[KernelSpec, ...], tuple[Step, ...]]:
    """Each distinct spec once, and the steps that call them by number."""
    kernels: dict[KernelSpec, int] = {}
    steps = [
        Step(
            kernels.setdefault(s.spec, len(kernels)), s.operands, s.output, s.args, s.label, s.kept
        )
        for s in emitted
    ]
    return tuple(kernels), tuple(steps)


def _symbols(graph: Graph) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for name in graph.inputs:
        for dim in graph.types[name].shape:
            found.update(dict.fromkeys(symbols(dim)))
    return tuple(found)


def _checks(graph: Graph) -> tuple[SizeCheck, ...]:
    """The graph's checks in terms of the plan's symbols. Where inference wrote a known size for an
    input's symbol, the input's shape says so, and no symbol is left to check."""
    bound = set(_symbols(graph))
    known: dict[Atom, Dim] = {
        a: d for a, d in graph.equal.items() if isinstance(a, str) and a not in bound
    }
    found = (
        SizeCheck(symbolic.rewrite(c.left, known), symbolic.rewrite(c.right, known), c.where)
        for c in graph.checks
    )
    return tuple(c for c in found if c.left != c.right)


def _ports(
    graph: Graph, names: list[str], lowering: Lowering, buffers: list[int]
) -> tuple[Port, ...]:
    ports = []
    for name, buffer in zip(names, buffers, strict=True):
        type_ = graph.types[name]
        storage = lowering.buffers[buffer].storage
        limits = graph.limits.get(name) if names is graph.inputs else None
        ports.append(Port(name, type_.dtype, type_.shape, storage, buffer, limits))
    return tuple(ports)
