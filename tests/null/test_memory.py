"""The memory plan: no two buffers that are alive together share a slot, and reuse happens."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from pywebgpu.codegen import scalar as sc
from pywebgpu.codegen.dims import Dim, evaluate, symbol
from pywebgpu.codegen.spec import Map, Storage
from pywebgpu.lower.values import BufferInfo, Emitted
from pywebgpu.memory import plan_memory

N = symbol("n")
_SPEC = Map((1,), sc.const(0.0), sc.const(0), (), Storage.F32)


def _step(output: int, *operands: int) -> Emitted:
    return Emitted(_SPEC, operands, output, (), "")


def _buffer(elements: Dim, *, port: bool = False, weight: int | None = None) -> BufferInfo:
    return BufferInfo(Storage.F32, elements, weight, port)


def test_a_chain_needs_two_slots_besides_its_ports() -> None:
    buffers = [_buffer(N * 8, port=True), *(_buffer(N * 8) for _ in range(6))]
    buffers.append(_buffer(N * 8, port=True))
    memory = plan_memory(buffers, [_step(i + 1, i) for i in range(7)])
    assert len(memory.slots) == 4
    assert len({memory.slot_of[0], memory.slot_of[7]}) == 2


def test_a_slot_is_as_large_as_its_largest_buffer_at_any_size() -> None:
    sizes: list[Dim] = [8, N * 4, 1000, N * N]
    buffers = [_buffer(8, port=True), *map(_buffer, sizes), _buffer(8, port=True)]
    memory = plan_memory(buffers, [_step(i + 1, i) for i in range(5)])
    for n in (1, 7, 500):
        for number, size in enumerate(memory.bytes):
            assert evaluate(size, {"n": n}) <= evaluate(
                memory.slots[memory.slot_of[number]], {"n": n}
            )


def test_an_output_never_shares_with_its_operands() -> None:
    buffers = [_buffer(4), _buffer(4), _buffer(4), _buffer(4, weight=0)]
    memory = plan_memory(buffers, [_step(0, 3), _step(1, 0), _step(2, 1, 3)])
    assert memory.slot_of[0] != memory.slot_of[1]
    assert memory.slot_of[1] != memory.slot_of[2]
    assert memory.slot_of[3] == -1


def test_empty_tensors_have_memory() -> None:
    memory = plan_memory([_buffer(0), _buffer(N)], [_step(0), _step(1, 0)])
    assert all(evaluate(size, {"n": 0}) > 0 for size in memory.slots)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_overlap_in_random_programs(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 20))
    buffers = [_buffer(8, port=True)]
    steps = []
    for number in range(1, count):
        chosen = data.draw(st.lists(st.integers(0, number - 1), min_size=1, max_size=3))
        buffers.append(_buffer(data.draw(st.sampled_from([4, 64, N, N * 16]))))
        steps.append(_step(number, *chosen))
    memory = plan_memory(buffers, steps)
    last = {b: t for t, step in enumerate(steps) for b in (step.output, *step.operands)}
    for first, step in enumerate(steps):
        for other in range(step.output):
            alive = other == 0 or (other - 1 <= first <= last.get(other, -1))
            if alive and other != step.output:
                assert memory.slot_of[other] != memory.slot_of[step.output]
