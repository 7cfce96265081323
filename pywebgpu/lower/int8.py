"""Which constants of a float model become bytes, and how they are read.

Matrices of products and convolutions are quantised per output column (see `codegen.spec.Matmul` for
what happens to the other operand), tables that rows are gathered from per row. Small ones stay f32:
they would save nothing, and the first and last layers of small models need their precision.
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
from .values import Array, Coordinates, Read

LEAST_DEPTH = 16
"""A shorter K has its time taken by rounding the other operand."""
LEAST_ELEMENTS = 512
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


@dataclass(slots=True)
class Int8:
    """The choice, and a record of what it led to. keep: nodes or constants that stay f32."""

    keep: Collection[str] = ()
    tensors: dict[str, QuantisedTensor] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    """Names of `keep` that were met."""
    kind: ClassVar[str] = "int8"

    def takes(self, matrix: Array, *names: str) -> bool:
        """Does a product with this K x N constant become one of bytes? names: node, constant."""
        if self._kept(names) or not np.isfinite(matrix).all():
            return False
        k = matrix.shape[-2]
        return LEAST_DEPTH <= k < 1 << 16 and matrix.size >= LEAST_ELEMENTS

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
