"""Nodes that compute the same thing are computed once."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..graph import DType, Graph, subgraphs
from .edit import Editor

_RANDOM = {
    "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial",
    "Bernoulli",
}  # fmt: skip
_SMALL = 64
"""Elements of a constant that is compared by content."""
_POSITIONS = 1 << 16
"""The same for integers of 32 and 64 bits, which are positions and indices, never weights."""


def _stamp(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return (str(value.dtype), value.shape, value.tobytes())
    if isinstance(value, list):
        return tuple(map(_stamp, value))
    return (type(value).__name__, value.name if isinstance(value, DType) else value)


def _limit(array: np.ndarray[Any, Any]) -> int:
    wide = array.dtype.kind in "iu" and array.itemsize >= 4
    return _POSITIONS if wide else _SMALL


def share(graph: Graph) -> bool:
    """Common subexpressions, equal small constants included."""
    edit = Editor(graph)
    seen: dict[Any, list[str]] = {}
    stamps: dict[str, Any] = {}

    def operand(name: str) -> Any:
        if name not in stamps:
            array = graph.constants.get(name)
            if name in graph.values and name not in edit.producers:
                stamps[name] = ("values", graph.types[name].dtype, graph.values[name])
            elif array is not None and array.size <= _limit(array):
                stamps[name] = ("constant", graph.types[name].dtype, _stamp(array))
            else:
                stamps[name] = name
        return stamps[name]

    for node in edit.sweep():
        if node.op in _RANDOM or subgraphs(node) or not node.inputs:
            continue
        if any(out in edit.outputs for out in node.outputs):
            continue
        key = (
            node.domain,
            node.op,
            tuple(map(operand, node.inputs)),
            tuple(sorted((k, _stamp(v)) for k, v in node.attrs.items())),
            tuple(bool(out) for out in node.outputs),
        )
        first = seen.setdefault(key, node.outputs)
        if first is not node.outputs:
            edit.redirect_all(node, first)
    return edit.finish()
