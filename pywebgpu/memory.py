"""Activation memory: which buffers share a slot, as variables share registers.

A linear scan over the steps: at a buffer's first write it takes the free slot that fits best, and
gives it back after its last read. Sizes are expressions, so "fits best" is judged at nominal sizes;
a slot is as large as the largest of its buffers at run time, whichever that turns out to be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from .codegen.dims import Dim, align, bound, dim_max, evaluate, symbols
from .codegen.program import Item, Loop, bodies, span
from .lower.values import BufferInfo, Emitted

NOMINAL = 64
"""What a symbol is taken for when sizes are compared."""

GRAIN = 16
"""Buffers are whole vectors, so that a kernel may store one past an odd size."""


@dataclass(frozen=True, slots=True)
class Memory:
    """`slot_of` is -1 for weights. `slots` are sizes in bytes."""

    slot_of: tuple[int, ...]
    slots: tuple[Dim, ...]
    bytes: tuple[Dim, ...]

    def total(self, values: dict[str, int]) -> int:
        """Bytes of all slots at these sizes."""
        return sum(evaluate(size, values) for size in self.slots)


def buffer_bytes(buffer: BufferInfo, most: Mapping[str, Dim] | None = None) -> Dim:
    """At least one vector: a device cannot bind nothing, even where a tensor is empty.

    most: bounds of the sizes that only a run finds out.
    """
    size = bound(buffer.elements, most or {}) * buffer.storage.bytes
    return dim_max(align(size, GRAIN), GRAIN)


def _nominal(size: Dim) -> int:
    return evaluate(size, dict.fromkeys(symbols(size), NOMINAL))


def _stay_in_loops(items: Sequence[Item], first: dict[int, int], last: dict[int, int]) -> None:
    """What comes into a loop is needed until its end, and what leaves it is there from its
    beginning: a turn must not find it overwritten by the turn before."""
    for item in items:
        for body in bodies(item):
            _stay_in_loops(body, first, last)
        covered = span([item]) if isinstance(item, Loop) else None
        if covered is None:
            continue
        start, end = covered
        for buffer in first:
            if first[buffer] < start <= last[buffer] < end:
                last[buffer] = end - 1
            elif start <= first[buffer] < end <= last[buffer]:
                first[buffer] = start


def plan_memory(
    buffers: Sequence[BufferInfo],
    steps: Sequence[Emitted],
    program: Sequence[Item] = (),
    most: Mapping[str, Dim] | None = None,
    replaced: Sequence[Sequence[Emitted]] = (),
) -> Memory:
    """Slots for everything that is not a weight; ports keep theirs for themselves.

    replaced: the steps that are played in place of each elsewhere; the slots serve both.
    """
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for time, (own, others) in enumerate(zip_longest(steps, replaced, fillvalue=())):
        assert isinstance(own, Emitted)
        for step in (own, *others):
            for buffer in (step.output, *step.operands, step.kept):
                if buffer is not None:
                    first.setdefault(buffer, time)
                    last[buffer] = time
    _stay_in_loops(program, first, last)
    beginning: dict[int, list[int]] = {}
    for buffer, time in first.items():
        beginning.setdefault(time, []).append(buffer)
    sizes = tuple(buffer_bytes(b, most) for b in buffers)
    slot_of = [-1] * len(buffers)
    contents: list[list[Dim]] = []

    def new_slot(buffer: int) -> int:
        contents.append([sizes[buffer]])
        slot_of[buffer] = len(contents) - 1
        return slot_of[buffer]

    for number, info in enumerate(buffers):
        if info.port:
            new_slot(number)
    free: list[int] = []
    ending: dict[int, list[int]] = {}
    for number, time in last.items():
        if not buffers[number].port and buffers[number].weight is None:
            ending.setdefault(time, []).append(number)
    for time in range(len(steps)):
        for number in beginning.get(time, []):
            if slot_of[number] >= 0 or buffers[number].weight is not None:
                continue
            slot = _best_fit(free, contents, sizes[number])
            if slot is None:
                new_slot(number)
            else:
                free.remove(slot)
                contents[slot].append(sizes[number])
                slot_of[number] = slot
        # Freed only now: an output never shares with the same step's operands.
        for ended in ending.get(time, []):
            free.append(slot_of[ended])
    return Memory(tuple(slot_of), tuple(dim_max(*c) for c in contents), sizes)


def _best_fit(free: Sequence[int], contents: Sequence[Sequence[Dim]], size: Dim) -> int | None:
    """The free slot that wastes or grows least; None if all are far too small."""
    want = _nominal(size)
    best: tuple[int, int] | None = None
    for slot in free:
        have = max(_nominal(s) for s in contents[slot])
        waste = have - want if have >= want else 2 * (want - have)
        if have * 8 < want and len(contents) < 4:
            continue
        if best is None or waste < best[0]:
            best = (waste, slot)
    return None if best is None else best[1]
