"""What quantising a model cost: one set of inputs through both programs, and the constants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .compare import complete_feeds
from .compile import Compiled
from .feeds import Array, input_specs
from .lower.int8 import Int8, KeptTensor, QuantisedTensor
from .session import InferenceSession

WORST = 8
"""So many constants with the largest errors are listed."""


@dataclass(frozen=True, slots=True)
class OutputAccuracy:
    """One output against the f32 program's. Differences are absolute; `scale` is the largest
    element. Where an output is not finite, or not of numbers, only `agreement` is given."""

    name: str
    scale: float | None
    max_error: float | None
    mean_error: float | None
    cosine: float | None
    agreement: float
    """The share of rows (along the last axis) whose largest element is at the same place."""


@dataclass(frozen=True, slots=True)
class AccuracyReport:
    """`tensors`: the constants with the largest errors. `floats`: those of products that stay f32.
    `feeds`: "random" or "given"."""

    quantize: str
    feeds: str
    outputs: tuple[OutputAccuracy, ...]
    weight_bytes_before: int
    weight_bytes_after: int
    quantised: int
    kept: tuple[str, ...]
    tensors: tuple[QuantisedTensor, ...]
    floats: tuple[KeptTensor, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        """For people."""
        found = [
            f"  {self.quantised} constants as {self.quantize}; with {self.feeds} inputs, and f32:"
        ]
        for o in self.outputs:
            numbers = f"{100 * o.agreement:.1f} % of rows peak at the same place"
            if o.cosine is not None:
                numbers = (
                    f"cosine {o.cosine:.5f}, largest difference {o.max_error:.3g}, "
                    f"mean {o.mean_error:.3g}, where the largest element is {o.scale:.3g}; "
                    + numbers
                )
            found.append(f"    {o.name}: {numbers}")
        if self.tensors:
            found.append("  constants that lost most (relative error; --keep NAME leaves one f32):")
            found += [f"    {t.name} {list(t.shape)}: {100 * t.error:.2f} %" for t in self.tensors]
        if self.floats:
            found.append("  constants of products that stay f32:")
            found += [f"    {t.name} {list(t.shape)}: {_why(t)}" for t in self.floats]
        return found


def accuracy(
    before: Compiled,
    after: Compiled,
    int8: Int8,
    *,
    model: Any = None,
    feeds: Mapping[str, Array] | None = None,
    dims: Mapping[str, int] | None = None,
    seed: int = 0,
) -> AccuracyReport:
    """Run both programs on this machine's CPU.

    model: where both came from: an ONNX file's tables say what indexes may be random.
    feeds: arrays by input name; inputs that are not in it get random values.

    Raises:
        InputError: a feed does not fit the model.
    """
    with InferenceSession(before, ["wasm"]) as session:
        specs = input_specs(session.get_inputs())
        _, complete = complete_feeds(model, specs, feeds, dims, seed)
        names = [port.name for port in session.get_outputs()]
        want = session.run(names, complete)
    with InferenceSession(after, ["wasm"]) as session:
        got = session.run(names, complete)
    worst = sorted(int8.tensors.values(), key=lambda t: (-t.error, t.name))
    return AccuracyReport(
        quantize=int8.kind,
        feeds="given" if feeds else "random",
        outputs=tuple(_compare(*row) for row in zip(names, got, want, strict=True)),
        weight_bytes_before=before.plan.weight_bytes,
        weight_bytes_after=after.plan.weight_bytes,
        quantised=len(worst),
        kept=tuple(sorted(int8.used)),
        tensors=tuple(worst[:WORST]),
        floats=tuple(int8.floats[name] for name in sorted(int8.floats)),
    )


def _why(kept: KeptTensor) -> str:
    if kept.gain is None:
        return kept.reason
    return f"{kept.reason} (on the CPU bytes should take {1 / kept.gain:.1f} times as long)"


def _compare(name: str, got: Array, want: Array) -> OutputAccuracy:
    a, b = got.astype(np.float64), want.astype(np.float64)
    agreement = _agreement(a, b)
    if not (np.isfinite(a).all() and np.isfinite(b).all()) or want.dtype.kind != "f":
        return OutputAccuracy(name, None, None, None, None, agreement)
    off = np.abs(a - b)
    sizes = float(np.sqrt((a * a).sum() * (b * b).sum()))
    cosine = float((a * b).sum()) / sizes if sizes > 0 else 1.0
    mean = float(off.mean()) if off.size else 0.0
    scale = float(np.abs(b).max(initial=0))
    return OutputAccuracy(name, scale, float(off.max(initial=0)), mean, cosine, agreement)


def _agreement(a: Array, b: Array) -> float:
    if a.size == 0:
        return 1.0
    rows = a.reshape(-1, a.shape[-1] if a.ndim else 1), b.reshape(-1, b.shape[-1] if b.ndim else 1)
    return float((rows[0].argmax(1) == rows[1].argmax(1)).mean())
