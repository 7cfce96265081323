"""Joins kernels into one module: `run(thread, threads)` plays a whole model.

Every kernel is in the module once. `run` calls them in the plan's order with pointers and sizes
from the parameter block (see docs/design.md, "Wasm conventions"), and with a barrier before each
step that depends on one in flight, so that an inference is one call from the host per thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..dims import Atom, Dim, Expr, align, bound, dim_max, substitute, symbol, symbols
from ..program import Branch, Item, Loop, Range, Read, reads, walk
from ..spec import KernelSpec
from . import Knobs, abi, emit
from .asm import I32, Function, IntLike, Label, Local, Module, Target
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
    kernels: Sequence[tuple[KernelSpec, Knobs]],
    calls: Sequence[Call],
    target: Target,
    program: Sequence[Item] = (),
    places: Mapping[int, Operand] | None = None,
) -> ModelModule:
    """The module that plays `calls`. Equal arguments give equal bytes.

    program: in which order, if not in theirs; `places` are the buffers that it looks at.
    """
    module = Module(target)
    run = module.function("run", [I32, I32])
    made = [emit(module, spec, knobs) for spec, knobs in kernels]
    most = {read.symbol: read.most for read in reads(program)}
    params = _params(calls, program, places or {}, most)
    base = abi.weights_base(len(params))
    team = Team(run, abi.counts_base(len(params))) if target.threads else None
    player = _Player(run, made, calls, params, base, team, program, places or {})
    player.play(program or (Range(0, len(calls)),))
    if team:
        team.leave()
    module.export("run", run)

    scratch = [bound(_scratch(made[c.kernel], c.args), most) for c in calls]
    largest = dim_max(0, *scratch)
    return ModelModule(module.encode(), target, params, base, align(largest, abi.SLOT_ALIGN))


class _Player:
    """Writes `run`: the program over the calls. All threads take the same way through it, since
    each looks at the deciding number after a barrier, and it is not changed before the next."""

    def __init__(
        self,
        run: Function,
        made: Sequence[WasmKernel],
        calls: Sequence[Call],
        params: Sequence[Param],
        base: int,
        team: Team | None,
        program: Sequence[Item],
        places: Mapping[int, Operand],
    ) -> None:
        self.run, self.made, self.calls, self.base = run, made, calls, base
        self.number = {param: i for i, param in enumerate(params)}
        self.team, self.places = team, places
        self.faults = {id(item): i for i, item in enumerate(walk(program), 1)}
        self.sizes: dict[str, Local] = {}
        self.hazards = _Hazards()

    def play(self, program: Sequence[Item]) -> None:
        for item in program:
            if isinstance(item, Range):
                for call in self.calls[item.first : item.end]:
                    self._call(call)
            elif isinstance(item, Read):
                self._read(item)
            elif isinstance(item, Loop):
                self._loop(item)
            else:
                self._branch(item)

    def _wait(self) -> None:
        """All threads have done what lies before."""
        self.hazards.forget()
        if self.team:
            self.team.wait()

    def _call(self, call: Call) -> None:
        run, kernel = self.run, self.made[call.kernel]
        if self.hazards.step(call, kernel) and self.team:
            self.team.wait()
        if self.team:
            self.team.count(self.hazards.steps - 1)
        with run.scope():
            sizes = [self._size(dim) for dim in call.args]
            run.push(*run.params)
            for operand in (*call.operands, call.output):
                _push_operand(run, operand, self.base, self.number)
            _push_param(run, self.number[Scratch()])
            run.push(*sizes)
        run.call(run.module.functions[kernel.function])

    def _look(self, buffer: int) -> Local:
        """The element of a buffer, after a barrier."""
        self._wait()
        place = self.places[buffer]
        self.hazards.read.add(place)
        found = self.run.local(I32)
        _push_operand(self.run, place, self.base, self.number)
        self.run.i32_load()
        self.run.set(found)
        return found

    def _read(self, item: Read) -> None:
        run = self.run
        found = self._look(item.buffer)
        # As unsigned numbers, so that negative ones are too large.
        run.push(found, self._size(item.most))
        run.i32_gt_u()
        with run.if_():
            self._fail(item)
        self.sizes[item.symbol] = found

    def _fail(self, item: Item) -> None:
        self.run.push(0, self.faults[id(item)])
        self.run.i32_store(abi.FAULT)
        self.run.return_()

    def _loop(self, item: Loop) -> None:
        run = self.run
        turn, trips = run.local(I32), run.local(I32)
        run.assign(turn, 0)
        run.assign(trips, self._size(item.trips))
        with run.block() as done, run.loop() as again:
            if item.going is None:
                self._wait()
            else:
                run.push(self._look(item.going))
                run.i32_eqz()
                run.br_if(done)
            run.push(turn, trips)
            run.i32_ge_s()
            if item.limited:
                with run.if_():
                    self._fail(item)
            else:
                run.br_if(done)
            self.play(item.body)
            run.assign(turn, turn + 1)
            run.br(again)
        self._wait()

    def _branch(self, item: Branch) -> None:
        run = self.run
        run.push(self._look(item.condition))
        with run.if_():
            self.play(item.then)
            run.else_()
            # Begins where the other one began.
            self.hazards.forget()
            self.hazards.read.add(self.places[item.condition])
            self.play(item.otherwise)
        self._wait()

    def _size(self, dim: Dim) -> IntLike:
        """A size: a constant, a parameter, or computed from what has been read."""
        if isinstance(dim, int):
            return dim
        if any(name in self.sizes for name in symbols(dim)):
            return self._computed(dim)
        result = self.run.local(I32)
        _push_param(self.run, self.number[Size(dim)])
        self.run.set(result)
        return result

    def _computed(self, dim: Dim) -> Local:
        run = self.run
        total = run.local(I32)
        if not isinstance(dim, Expr):
            run.assign(total, dim)
            return total
        run.assign(total, 0)
        for monomial, coefficient in dim.terms:
            atoms = [self._atom(atom) for atom in monomial]
            run.push(total, coefficient)
            for atom in atoms:
                run.push(atom)
                run.i32_mul()
            run.i32_add()
            run.set(total)
        return total

    def _atom(self, atom: Atom) -> Local:
        run = self.run
        if isinstance(atom, str):
            return self.sizes[atom] if atom in self.sizes else self._parameter(atom)
        result, *others = [self._computed(arg) for arg in atom.args]
        for other in others:
            if atom.op in ("min", "max"):
                run.push(result, other, result, other)
                (run.i32_lt_s if atom.op == "min" else run.i32_gt_s)()
                run.select()
            else:
                # Sizes are not negative; x // 0 and x % 0 are 0.
                safe = run.local(I32)
                run.push(other, 1, other)
                run.select()
                run.set(safe)
                run.push(result, safe)
                (run.i32_div_s if atom.op == "//" else run.i32_rem_s)()
                run.push(0, other)
                run.select()
            run.set(result)
        return result

    def _parameter(self, name: str) -> Local:
        result = self.run.local(I32)
        _push_param(self.run, self.number[Size(symbol(name))])
        self.run.set(result)
        return result


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
        self.forget()

    def forget(self) -> None:
        """There has been a barrier."""
        self.steps = 0
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
            or self.steps == abi.MOST_COUNTED
        )
        if waits:
            self.forget()
        self.steps += 1
        self.read.update(call.operands)
        self.written.add(call.output)
        self.scratch |= scratch
        return waits


def _params(
    calls: Sequence[Call],
    program: Sequence[Item],
    places: Mapping[int, Operand],
    counted: Mapping[str, Dim],
) -> tuple[Param, ...]:
    """Every pointer and size that is not a constant, once, in order of first use. Of sizes that
    only a run finds out, the symbols that they are computed from."""
    found: dict[Param, None] = {Scratch(): None}

    def size(dim: Dim) -> None:
        names = symbols(dim)
        if any(name in counted for name in names):
            found.update((Size(symbol(n)), None) for n in names if n not in counted)
        elif not isinstance(dim, int):
            found[Size(dim)] = None

    for call in calls:
        for operand in (*call.operands, call.output):
            if isinstance(operand, Slot):
                found[operand] = None
        for dim in call.args:
            size(dim)
    for place in places.values():
        if isinstance(place, Slot):
            found[place] = None
    for item in walk(program):
        if isinstance(item, Read):
            size(item.most)
        elif isinstance(item, Loop):
            size(item.trips)
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


class Team:
    """What the threads of a run have in common, in the module's function `run(thread, threads)`:
    the barrier, and of each step how much of each thread's share is taken (see `partition`).

    counters: their address, see `abi.counts_base`.
    """

    def __init__(self, run: Function, counters: int) -> None:
        self.run, self.counters = run, counters
        self.threads = run.params[1]
        self.waits = add_barrier(run.module, counters, waits=True)
        self.leaves = add_barrier(run.module, counters, waits=False)
        self.counted = run.local(I32)
        run.push(self.threads - 2, abi.MOST_COUNTED - 1)
        run.i32_lt_u()
        run.set(self.counted)

    def count(self, step: int) -> None:
        """The next kernel is the one with this number since the last barrier."""
        self.run.push(self.counters + 4 * step, 0, self.counted)
        self.run.select()
        self.run.global_set(abi.COUNTS)

    def wait(self) -> None:
        """Until all threads are here."""
        self.run.push(self.threads)
        self.run.call(self.waits)

    def leave(self) -> None:
        """The end of a run: whoever is last leaves everything as it was before."""
        self.run.push(self.threads)
        self.run.call(self.leaves)


def add_barrier(module: Module, counters: int | None = None, waits: bool = True) -> Function:
    """barrier(threads): returns when all threads have called it; without `waits` at once.

    The last to arrive resets the count, and the threads' counters if there are any, and bumps the
    generation, on which the others first spin and then sleep. The generation is read before
    arriving: afterwards it may already have moved. Atomic accesses are sequentially consistent, so
    what was stored before is seen after.
    """
    f = module.function("barrier" if waits else "leave", [I32])
    (threads,) = f.params
    generation, spins = f.locals(I32, 2)
    with f.block() as done:
        f.push(threads, 1)
        f.i32_le_u()
        f.br_if(done)
        if waits:
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
            if counters is not None:
                _clear(f, counters, threads)
            if waits:
                f.push(0, 1)
                f.i32_atomic_rmw_add(abi.BARRIER_GENERATION)
                f.drop()
                f.push(0, -1)
                f.memory_atomic_notify(abi.BARRIER_GENERATION)
                f.drop()
            f.br(done)
        if waits:
            _await(f, generation, spins, done)
    return f


def _clear(f: Function, counters: int, threads: Local) -> None:
    """No pieces are taken."""
    f.push(threads, abi.MOST_COUNTED)
    f.i32_le_u()
    with f.if_(), f.scope():
        line, end = f.value(counters), f.value(threads * abi.LINE + counters)
        with f.loop_range(line, None, end, abi.LINE):
            for i in range(0, abi.LINE, 16):
                f.push(line)
                f.v128_const(bytes(16))
                f.v128_store(i)


def _await(f: Function, generation: Local, spins: Local, done: Label) -> None:
    """Until the barrier's generation has moved on: awake for a while, then asleep."""
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
