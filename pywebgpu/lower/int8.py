"""Which constants of a float model become bytes, and how they are read.

Matrices of products and convolutions are quantised per output column (see `codegen.spec.Matmul` for
what happens to the other operand), tables that rows are gathered from per row. Small ones stay f32:
they would save nothing, and the first and last layers of small models need their precision. So do
those whose product is as quick in f32 on the CPU (see `int8_cost`): Winograd has most
3x3 convolutions do less than half the multiplications, which bytes cannot have, and where there are
few columns, rounding the other operand takes longer than what is saved.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from ..codegen import scalar as sc
from ..codegen.scalar import Op, Type
from ..codegen.spec import Storage
from ..graph import Graph
from ..packing import quantise_columns, quantise_rows
from .int8_cost import Cost
from .values import Array, Coordinates, Read

LEAST_DEPTH = 16
"""A shorter K has its time taken by rounding the other operand."""
LEAST_ELEMENTS = 512
LEAST_GAIN = 1.1
"""Rounding costs accuracy: for less it is not worth while."""
LEAST_TABLE = 1 << 14


@dataclass(frozen=True, slots=True)
class QuantisedTensor:
    """One constant as bytes. `error`: root mean square of what rounding changed, relative to the
    constant's own."""

    name: str
    shape: tuple[int, ...]
    bytes_before: int
    bytes_after: int
    error: float


@dataclass(frozen=True, slots=True)
class KeptTensor:
    """A constant of a product that stays f32. `gain`: how many times as quick bytes should be on
    the CPU, where that is the reason."""

    name: str
    shape: tuple[int, ...]
    reason: str
    gain: float | None = None


@dataclass(slots=True)
class Int8:
    """The choice, and a record of what it led to. keep: nodes or constants that stay f32."""

    keep: Collection[str] = ()
    tensors: dict[str, QuantisedTensor] = field(default_factory=dict)
    floats: dict[str, KeptTensor] = field(default_factory=dict)
    """Constants of products that stay f32, by name."""
    used: set[str] = field(default_factory=set)
    """Names of `keep` that were met."""
    kind: ClassVar[str] = "int8"

    def takes(self, matrix: Array, node: str, name: str, cost: Cost) -> bool:
        """Does a product with this K x N constant become one of bytes?"""
        reason, gain = self._against(matrix, node, name), None
        if reason is None and cost.gain < LEAST_GAIN:
            gain = cost.gain
            how = "Winograd in f32" if cost.method == "Winograd" else "f32"
            reason = f"{how} is {'as quick' if gain > 1 else 'quicker'}"
        if reason is not None:
            self.floats[name] = KeptTensor(name, tuple(matrix.shape), reason, gain)
        return reason is None

    def _against(self, matrix: Array, node: str, name: str) -> str | None:
        """What speaks against this constant as codes, whatever it takes."""
        if self._kept((node, name)):
            return "as asked"
        if not np.isfinite(matrix).all():
            return "not finite"
        return None if self._fits(matrix.shape[-2], matrix.size) else "too small, or too deep"

    def _fits(self, depth: int, elements: int) -> bool:
        return LEAST_DEPTH <= depth < 1 << 16 and elements >= LEAST_ELEMENTS

    def _kept(self, names: tuple[str, ...]) -> bool:
        met = {name for name in names if name} & set(self.keep)
        self.used |= met
        return bool(met)

    def tables(self, graph: Graph) -> set[str]:
        """Constants that rows are looked up in."""
        found = set()
        for node in graph.nodes:
            if node.op != "Gather" or node.attrs.get("axis", 0) != 0:
                continue
            name = node.inputs[0]
            array = graph.constants.get(name)
            if array is None or array.ndim != 2 or not graph.types[name].dtype.is_float:
                continue
            large = array.size >= LEAST_TABLE and np.isfinite(array).all()
            if large and not self._kept((name, node.name)):
                found.add(name)
        return found

    def note(self, name: str, matrix: Array) -> None:
        """Record a K x N constant (or a table's transpose) for the report."""
        if name in self.tensors:
            return
        weights, scale = quantise_columns(matrix)
        exact = matrix.astype(np.float64)
        off = exact - weights * scale[..., None, :].astype(np.float64)
        size = float(np.sqrt((exact**2).mean())) or 1.0
        self.tensors[name] = QuantisedTensor(
            name,
            tuple(matrix.shape),
            4 * matrix.size,
            weights.nbytes + scale.nbytes,
            float(np.sqrt((off**2).mean())) / size,
        )


def table_reader(weight: object, table: Array) -> Read:
    """Elements of a table from bytes; `weight(array, storage)` gives a constant's buffer."""
    rows, scale = quantise_rows(table)
    depth = table.shape[1]
    buffers: list[int] = []

    def read(c: Coordinates) -> sc.Scalar:
        if not buffers:
            assert callable(weight)
            buffers.extend((weight(rows, Storage.I8), weight(scale, Storage.F32)))
        number = sc.load(buffers[0], c[0] * depth + c[1], Type.I32)
        return sc.unary(Op.TO_F32, number) * sc.load(buffers[1], c[0])

    return read
