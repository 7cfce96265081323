"""Which activations f16 cannot hold: the f32 program is run once, on this machine's CPU, and every
tensor that it writes is looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from .codegen.spec import Storage
from .compare import complete_feeds
from .compile import Compiled
from .errors import PywebgpuError
from .feeds import Array, input_specs
from .graph import DType
from .half import LARGEST
from .memory import plan_memory
from .plan import Port, SlotBuffer
from .session import InferenceSession

MARGIN = 4.0
"""Other inputs may give larger numbers: what comes within this factor of f16's end stays f32."""

SMALLEST = float(np.finfo(np.float16).tiny)
"""Of the numbers that f16 holds with all its digits. A tensor of smaller ones only stays f32."""


@dataclass(frozen=True, slots=True)
class WideTensor:
    """`step` writes it. `largest`: of its finite elements' magnitudes."""

    buffer: int
    step: str
    largest: float


@dataclass(frozen=True, slots=True)
class RangeReport:
    """`kept`: what stays f32. `feeds`: "random" or "given". `problem`: why activations were not
    looked at, else ""."""

    feeds: str
    tensors: int = 0
    kept: tuple[WideTensor, ...] = ()
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        """For people."""
        if self.problem:
            return [f"  the range of activations was not checked: {self.problem}"]
        found = [f"  {self.tensors} activations with {self.feeds} inputs: "
                 f"{len(self.kept) or 'none'} beyond f16's range"]  # fmt: skip
        return [*found, *(f"    {t.step}: up to {t.largest:.3g}, stays f32" for t in self.kept)]


def out_of_range(
    compiled: Compiled,
    *,
    model: Any = None,
    feeds: Mapping[str, Array] | None = None,
    dims: Mapping[str, int] | None = None,
    seed: int = 0,
) -> RangeReport:
    """The buffers of an f32 program, by number, that f16 would not hold. `compiled` is of no other
    use afterwards.

    model: where it came from: an ONNX file's tables say what indexes may be random.
    feeds: arrays by input name; inputs that are not in it get random values.

    Raises:
        InputError: a feed does not fit the model.
    """
    lowering, plan = compiled.lowering, compiled.plan
    kind = "given" if feeds else "random"
    if plan.program:
        return RangeReport(kind, problem="the model has control flow")
    writers = {step.output: step.label for step in plan.steps}
    floats = [i for i in writers if lowering.buffers[i].storage is Storage.F32]
    for info in lowering.buffers:
        info.port = info.weight is None  # every tensor a slot of its own, which stays
    memory = plan_memory(lowering.buffers, lowering.steps)
    observed = replace(
        plan,
        gpu=None,
        slots=memory.slots,
        buffers=tuple(
            SlotBuffer(memory.slot_of[i], memory.bytes[i]) if isinstance(b, SlotBuffer) else b
            for i, b in enumerate(plan.buffers)
        ),
        outputs=tuple(
            Port(f"buffer {i}", DType.F32, (lowering.buffers[i].elements,), Storage.F32, i)
            for i in floats
        ),
    )
    try:
        with InferenceSession(replace(compiled, plan=observed, memory=memory), ["wasm"]) as session:
            specs = input_specs(session.get_inputs())
            _, complete = complete_feeds(model, specs, feeds, dims, seed)
            arrays = session.run(None, complete)
    except PywebgpuError as error:
        if feeds:
            raise
        # Random inputs suit not every model, and a machine may have no engine for it.
        return RangeReport(kind, problem=f"{error}; give it inputs with --feed")
    kept = []
    for number, array in zip(floats, arrays, strict=True):
        sizes = np.abs(array[np.isfinite(array)])
        # Masks are made of the lowest float, which f16's infinity stands for as well.
        sizes = sizes[sizes < np.finfo(np.float32).max / 4]
        largest = float(sizes.max(initial=0))
        if largest > LARGEST / MARGIN or 0 < largest < SMALLEST:
            kept.append(WideTensor(number, writers[number], largest))
    return RangeReport(kind, len(floats), tuple(kept))
