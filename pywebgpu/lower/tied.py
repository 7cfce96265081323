"""Tables that are also the matrix of a product, as a language model's embedding and its logits.

The packed matrix is kept once; rows are gathered from the panels. That halves what such a model
downloads.
"""

from __future__ import annotations

import numpy as np

from ..codegen import scalar as sc
from ..codegen.scalar import Op, Scalar
from ..codegen.spec import PANEL
from ..graph import Graph
from .values import Array, Coordinates, Read

LEAST = 1 << 18
"""Elements from which on sharing pays."""


def tied_tables(graph: Graph) -> dict[str, Array]:
    """Constants that `Gather` looks rows up in, with the equal K x N matrix of some product."""
    tables = {
        node.inputs[0]
        for node in graph.nodes
        if node.op == "Gather" and node.attrs.get("axis", 0) == 0
        and _large(graph, node.inputs[0])
    }  # fmt: skip
    found: dict[str, Array] = {}
    for node in graph.nodes:
        if node.op not in ("MatMul", "Gemm") or node.domain or not _large(graph, node.inputs[1]):
            continue
        matrix = graph.constants[node.inputs[1]]
        matrix = matrix.T if node.attrs.get("transB", 0) else matrix
        for name in tables:
            table = graph.constants[name]
            if table.shape == matrix.shape[::-1] and np.array_equal(table, matrix.T):
                found[name] = matrix
    return found


def _large(graph: Graph, name: str) -> bool:
    array = graph.constants.get(name)
    return (
        array is not None
        and array.ndim == 2
        and array.size >= LEAST
        and graph.types[name].dtype.is_float
    )


def read_from_panels(buffer: int, depth: int) -> Read:
    """Element (n, k) of the table from the packed K x N matrix, K = `depth`."""

    def read(c: Coordinates) -> Scalar:
        n, k = c
        panel = sc.binary(Op.UDIV, n, PANEL) * (depth * PANEL)
        return sc.load(buffer, panel + k * PANEL + sc.binary(Op.UMOD, n, PANEL))

    return read
