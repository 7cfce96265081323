"""Joins kernels into one module: `run(thread, threads)` plays a whole model.

Every kernel is in the module once. `run` calls them in the plan's order with pointers and sizes
from the parameter block (see docs/design.md, "Wasm conventions"), and with a barrier before each
step that depends on one in flight, so that an inference is one call from the host per thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..dims import Dim, align, dim_max, substitute
from ..spec import KernelSpec
from . import Knobs, abi, emit
from .asm import I32, Function, Module, Target
from .kernel import WasmKernel


@dataclass(frozen=True, slots=True)
class Weight:
    """An operand at a constant offset of the weight space."""

    offset: int


@dataclass(frozen=True, slots=True)
class Slot:
    """A buffer in a slot; as a parameter, the slot's address."""

    number: int


@dataclass(frozen=True, slots=True)
class Scratch:
    """Parameter: the address of the scratch area."""


@dataclass(frozen=True, slots=True)
class Size:
    """Parameter: a size over the model's symbols."""

    dim: Dim


Operand = Weight | Slot
Param = Slot | Scratch | Size


@dataclass(frozen=True, slots=True)
class Call:
    """A step: a kernel's number, where its buffers are, its arguments over the symbols."""

    kernel: int
    operands: tuple[Operand, ...]
    output: Operand
    args: tuple[Dim, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelModule:
    """A model's binary and what its host has to provide.

    params: the entries of the parameter block, in order, from `abi.PARAMS_BASE`.
    scratch_per_thread: bytes, over the model's symbols, a multiple of `abi.SLOT_ALIGN`.
    """

    binary: bytes
    target: Target
    params: tuple[Param, ...]
    weights_base: int
    scratch_per_thread: Dim


SPINS = 200_000
"""How often a thread looks at the barrier before it goes to sleep. Steps are short: with a few
thousand the wake-ups cost more than the waiting."""


def assemble(
    kernels: Sequence[tuple[KernelSpec, Knobs]], calls: Sequence[Call], target: Target
) -> ModelModule:
    """The module that plays `calls`. Equal arguments give equal bytes."""
    module = Module(target)
    run = module.function("run", [I32, I32])
    made = [emit(module, spec, knobs) for spec, knobs in kernels]
    params = _params(calls)
    number = {param: i for i, param in enumerate(params)}
    base = abi.weights_base(len(params))
    barrier = add_barrier(module) if target.threads else None

    thread, threads = run.params
    hazards = _Hazards()
    for call in calls:
        waits = hazards.step(call, made[call.kernel])
        if waits and barrier is not None:
            run.push(threads)
            run.call(barrier)
        run.push(thread, threads)
        for operand in (*call.operands, call.output):
            _push_operand(run, operand, base, number)
        _push_param(run, number[Scratch()])
        for dim in call.args:
            if isinstance(dim, int):
                run.push(dim)
            else:
                _push_param(run, number[Size(dim)])
        run.call(module.functions[made[call.kernel].function])
    module.export("run", run)

    scratch = [_scratch(made[c.kernel], c.args) for c in calls]
    most = dim_max(0, *scratch)
    return ModelModule(module.encode(), target, params, base, align(most, abi.SLOT_ALIGN))


def assemble_kernel(spec: KernelSpec, knobs: Knobs, target: Target) -> tuple[bytes, Dim]:
    """A module that exports one kernel as `kernel`, for the tuner and for tests.

    Returns its binary and the scratch bytes per thread over the spec's arguments.
    """
    module = Module(target)
    kernel = emit(module, spec, knobs)
    module.export("kernel", module.functions[kernel.function])
    return module.encode(), kernel.scratch


class _Hazards:
    """Which steps must wait for the steps before them: those that read what is being written, or
    write what is being read or written. The rest overlap with their predecessors."""

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self.read: set[Operand] = set()
        self.written: set[Operand] = set()
        self.scratch: set[Dim] = set()

    def step(self, call: Call, kernel: WasmKernel) -> bool:
        """Must there be a barrier before this step?"""
        # Threads have their parts of the scratch area to themselves only while all kernels in
        # flight divide it alike.
        scratch = {_scratch(kernel, call.args)} - {0}
        waits = (
            call.output in self.read
            or call.output in self.written
            or not self.written.isdisjoint(call.operands)
            or bool(scratch and self.scratch and scratch != self.scratch)
        )
        if waits:
            self._forget()
        self.read.update(call.operands)
        self.written.add(call.output)
        self.scratch |= scratch
        return waits


def _params(calls: Sequence[Call]) -> tuple[Param, ...]:
    """Every pointer and size that is not a constant, once, in order of first use."""
    found: dict[Param, None] = {Scratch(): None}
    for call in calls:
        for operand in (*call.operands, call.output):
            if isinstance(operand, Slot):
                found[operand] = None
        for dim in call.args:
            if not isinstance(dim, int):
                found[Size(dim)] = None
    return tuple(found)


def _push_operand(run: Function, operand: Operand, base: int, number: dict[Param, int]) -> None:
    if isinstance(operand, Weight):
        run.push(base + operand.offset)
    else:
        _push_param(run, number[operand])


def _push_param(run: Function, entry: int) -> None:
    run.push(0)
    run.i32_load(abi.PARAMS_BASE + 4 * entry)


def _scratch(kernel: WasmKernel, args: Sequence[Dim]) -> Dim:
    return substitute(kernel.scratch, {f"a{i}": dim for i, dim in enumerate(args)})


def add_barrier(module: Module) -> Function:
    """barrier(threads): returns when all threads have called it.

    The last to arrive resets the count and bumps the generation, on which the others first spin
    and then sleep. The generation is read before arriving: afterwards it may already have moved.
    Atomic accesses are sequentially consistent, so what was stored before is seen after.
    """
    f = module.function("barrier", [I32])
    (threads,) = f.params
    generation, spins = f.local(I32), f.local(I32)
    with f.block() as done:
        f.push(threads, 1)
        f.i32_le_u()
        f.br_if(done)
        f.push(0)
        f.i32_atomic_load(abi.BARRIER_GENERATION)
        f.set(generation)
        f.push(0, 1)
        f.i32_atomic_rmw_add(abi.BARRIER_COUNT)
        f.push(threads - 1)
        f.i32_eq()
        with f.if_():
            f.push(0, 0)
            f.i32_atomic_store(abi.BARRIER_COUNT)
            f.push(0, 1)
            f.i32_atomic_rmw_add(abi.BARRIER_GENERATION)
            f.drop()
            f.push(0, -1)
            f.memory_atomic_notify(abi.BARRIER_GENERATION)
            f.drop()
            f.br(done)
        f.assign(spins, SPINS)
        with f.loop() as again:
            f.push(0)
            f.i32_atomic_load(abi.BARRIER_GENERATION)
            f.push(generation)
            f.i32_ne()
            f.br_if(done)
            f.push(spins - 1)
            f.tee(spins)
            f.br_if(again)
        with f.loop() as asleep:
            f.push(0, generation)
            f.i64_const(-1)
            f.memory_atomic_wait32(abi.BARRIER_GENERATION)
            f.drop()
            f.push(0)
            f.i32_atomic_load(abi.BARRIER_GENERATION)
            f.push(generation)
            f.i32_eq()
            f.br_if(asleep)
    return f
