"""Which constant matrices become 4-bit codes in blocks; activations stay as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..codegen.spec import Blocks
from ..graph import Graph
from ..packing import quantise_blocks
from .int8 import Int8, KeptTensor, QuantisedTensor
from .int8_cost import Cost
from .values import Array

SIZE = 32
"""Steps of k that share a scale and a zero point: 6 bits per weight with both in f32."""
LEAST_ELEMENTS = 1 << 12


@dataclass(slots=True)
class Int4(Int8):
    """Weight-only: products with a constant matrix read it as `codegen.spec.Blocks`."""

    kind: ClassVar[str] = "int4"

    def takes(self, matrix: Array, node: str, name: str, cost: Cost) -> bool:
        """As for bytes; `cost` decides nothing, since codes are for size."""
        reason = self._against(matrix, node, name)
        if reason is not None:
            self.floats[name] = KeptTensor(name, tuple(matrix.shape), reason)
        return reason is None

    def _fits(self, depth: int, elements: int) -> bool:
        return depth >= SIZE and elements >= LEAST_ELEMENTS

    def tables(self, graph: Graph) -> set[str]:
        """None: tables that rows are looked up in stay floats."""
        return set()

    def quantise(self, name: str, matrix: Array) -> tuple[Blocks, Array, Array, Array]:
        """Codes (K, N), scales and zero points of a K x N constant; notes what it cost."""
        codes, scales, zeros = quantise_blocks(matrix, 4, SIZE)
        k = matrix.shape[0]

        def spread(x: Array) -> Array:
            return np.repeat(x, SIZE, axis=0)[:k]

        off = (codes - spread(zeros)) * spread(scales) - matrix
        size = float(np.sqrt((matrix.astype(np.float64) ** 2).mean())) or 1.0
        self.tensors.setdefault(name, QuantisedTensor(
            name,
            tuple(matrix.shape),
            4 * matrix.size,
            codes.size // 2 + scales.nbytes + zeros.nbytes,
            float(np.sqrt((off.astype(np.float64) ** 2).mean())) / size,
        ))  # fmt: skip
        return Blocks(4, SIZE, True), codes, scales, zeros
