"""Plays a plan with NumPy, kernel by kernel, on top of `tests.reference`: the check of lowering
and of memory planning that shares no code with the generators or the executors' kernels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pywebgpu.codegen.dims import evaluate as dim
from pywebgpu.codegen.program import Branch, Program, Range, Read
from pywebgpu.codegen.spec import Map, Matmul, Storage
from pywebgpu.compile import Compiled
from pywebgpu.executors.base import check_feeds, user_dtype
from pywebgpu.plan import Plan, SlotBuffer, Step, WeightBuffer
from tests import reference

Array = np.ndarray[Any, Any]
_NUMPY = {
    Storage.F32: np.float32,
    Storage.F16: np.float16,
    Storage.I32: np.int32,
    Storage.I8: np.int8,
}


def play(compiled: Compiled, feeds: Mapping[str, Any]) -> dict[str, Array]:
    """The outputs by name. Slots are real memory here, so a wrong reuse gives wrong numbers.

    What a GPU plays instead must give the same.
    """
    outputs = _play(compiled, compiled.plan, feeds)
    if compiled.plan.gpu is not None:
        for name, got in _play(compiled, compiled.plan.gpu, feeds).items():
            np.testing.assert_allclose(got, outputs[name], 1e-4, 1e-4, err_msg=f"GPU, {name}")
    return outputs


def _play(compiled: Compiled, plan: Plan, feeds: Mapping[str, Any]) -> dict[str, Array]:
    arrays, symbols = check_feeds(plan, feeds)
    weights = b"".join(compiled.weight_chunks())
    assert len(weights) == plan.weight_bytes
    # NaN in floats, far out of range as an index: reading what was never written shows.
    slots = [bytearray(b"\xad\xde\xc0\x7f" * (-(-dim(n, symbols) // 4))) for n in plan.slots]

    def memory(number: int, storage: Storage) -> Array:
        buffer = plan.buffers[number]
        if isinstance(buffer, WeightBuffer):
            data = memoryview(weights)[buffer.offset : buffer.offset + buffer.bytes]
            return np.frombuffer(data, _NUMPY[storage])
        size = dim(buffer.bytes, symbols)
        return np.frombuffer(memoryview(slots[buffer.slot])[:size], _NUMPY[storage])

    for port in plan.inputs:
        flat = arrays[port.name].ravel()
        memory(port.buffer, port.storage)[: flat.size] = flat

    def perform(step: Step) -> None:
        spec = plan.kernels[step.kernel]
        output = plan.buffers[step.output]
        assert isinstance(output, SlotBuffer)
        written_to = {output.slot}
        if step.kept is not None:
            kept = plan.buffers[step.kept]
            assert isinstance(kept, SlotBuffer)
            assert kept.slot not in written_to
            written_to.add(kept.slot)
        for number in step.operands:
            other = plan.buffers[number]
            assert not isinstance(other, SlotBuffer) or other.slot not in written_to, step.label
        operands = [memory(n, s) for n, s in zip(step.operands, spec.operands, strict=True)]
        args = [dim(a, symbols) for a in step.args]
        target = memory(step.output, spec.output)
        try:
            result = reference.evaluate(spec, operands, args, target.size)
            written = _written(spec, operands, args, result)
        except Exception as error:
            raise AssertionError(f"{step.label}: {error}\n{spec}") from error
        target[written] = result[written].astype(target.dtype)
        if step.kept is not None:
            assert isinstance(spec, (Map, Matmul))
            assert spec.keep is not None
            index, made = reference.second_output(spec, operands, args)
            memory(step.kept, spec.keep)[index] = made

    def element(number: int) -> int:
        return int(memory(number, Storage.I32)[0])

    def follow(program: Program) -> None:
        for item in program:
            if isinstance(item, Range):
                for step in plan.steps[item.first : item.end]:
                    perform(step)
            elif isinstance(item, Read):
                symbols[item.symbol] = element(item.buffer)
                assert 0 <= symbols[item.symbol] <= dim(item.most, symbols), item.where
            elif isinstance(item, Branch):
                follow(item.then if element(item.condition) else item.otherwise)
            else:
                trips = dim(item.trips, symbols)
                for turn in range(trips + 1):
                    if item.going is not None and not element(item.going):
                        break
                    if turn == trips:
                        assert not item.limited, item.where
                        break
                    follow(item.body)

    follow(plan.program or (Range(0, len(plan.steps)),))
    outputs = {}
    for port in plan.outputs:
        shape = [dim(d, symbols) for d in port.shape]
        count = int(np.prod(shape, dtype=np.int64))
        data = memory(port.buffer, port.storage)[:count].reshape(shape)
        outputs[port.name] = data.astype(user_dtype(port.dtype))
    return outputs


def _written(spec: Any, operands: list[Array], args: list[int], result: Array) -> Array:
    """Which elements the kernel stored. NaN is both the mark of "not stored" and a legal result."""
    if result.dtype.kind == "i":
        return np.asarray(result != np.iinfo(np.int64).min)
    written = ~np.isnan(result)
    if not written.all():
        index = reference.stored_elements(spec, operands, args)
        written[index] = True
    return written
