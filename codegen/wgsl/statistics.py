"""Statistics of rows that a product stores beside its result (`spec.Matmul.statistics`).

Whoever normalises the rows later joins those of a row's pieces and reads nothing twice. A piece's
are exact to rounding, whatever the mean: its values are read back, the mean is taken, then the
squares of what they differ by.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..spec import STATISTICS, Matmul, RowOp, Storage
from .module import Module, dim_text, fill


@dataclass(frozen=True, slots=True)
class Fields:
    """What the template sees."""

    columns: int
    m: str
    n: int
    layer: bool


def define_store(module: Module, spec: Matmul) -> None:
    """store_statistics(first m, rows, first n, width, thread, threads), for a workgroup that has
    stored that part of the result; all of its threads call it."""
    assert isinstance(spec.n, int)
    assert spec.n % STATISTICS == 0
    assert module.output_vector
    module.keep(Storage.F32, 2)
    fields = Fields(STATISTICS, dim_text(spec.m), spec.n, spec.statistics is RowOp.LAYER)
    module.functions.append(fill("store_statistics", fields).rstrip())
