"""Values that are one number everywhere, whatever their size."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..graph import Node
from .edit import Editor

_MOVES = {
    "Reshape", "Expand", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Tile",
    "Gather", "GatherND", "GatherElements", "Identity", "Split",
}  # fmt: skip
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "Equal": lambda a, b: a == b,
    "Less": lambda a, b: a < b,
    "LessOrEqual": lambda a, b: a <= b,
    "Greater": lambda a, b: a > b,
    "GreaterOrEqual": lambda a, b: a >= b,
    "And": lambda a, b: bool(a) and bool(b),
    "Or": lambda a, b: bool(a) or bool(b),
}
_DEPTH = 12


def uniform(edit: Editor, name: str, depth: int = _DEPTH) -> float | None:
    """The number that every element of `name` is, if that can be seen."""
    array = edit.constant(name)
    if array is not None:
        if array.size == 0 or array.size > 1 << 20:
            return None
        first = array.ravel()[0]
        return float(first) if bool(np.all(array == first)) else None
    node = edit.producers.get(name)
    if node is None or node.domain or depth == 0:
        return None
    return _of_node(edit, node, depth - 1)


def _of_node(edit: Editor, node: Node, depth: int) -> float | None:
    if node.op in _MOVES:
        return uniform(edit, node.inputs[0], depth)
    if node.op == "ConstantOfShape":
        fill = node.attrs.get("value")
        return 0.0 if fill is None else float(fill.ravel()[0])
    if node.op in _COMPARE:
        a, b = (uniform(edit, name, depth) for name in node.inputs)
        if a is not None and b is not None:
            return float(_COMPARE[node.op](a, b))
        return _bounded(edit, node, b) if b is not None else None
    if node.op == "Not":
        a = uniform(edit, node.inputs[0], depth)
        return None if a is None else float(not a)
    if node.op == "Cast":
        a = uniform(edit, node.inputs[0], depth)
        to = edit.type(node.outputs[0]).dtype.numpy
        return None if a is None else float(np.array(a).astype(to))
    if node.op == "Where":
        condition = uniform(edit, node.inputs[0], depth)
        if condition is None:
            return None
        return uniform(edit, node.inputs[1 if condition else 2], depth)
    return None


def _bounded(edit: Editor, node: Node, limit: float) -> float | None:
    """Positions compared with 0, as in "key position >= 0"."""
    if not _never_negative(edit, node.inputs[0], _DEPTH):
        return None
    if (node.op == "GreaterOrEqual" and limit <= 0) or (node.op == "Greater" and limit < 0):
        return 1.0
    if (node.op == "Less" and limit <= 0) or (node.op == "LessOrEqual" and limit < 0):
        return 0.0
    return None


def _never_negative(edit: Editor, name: str, depth: int) -> bool:
    array = edit.constant(name)
    if array is not None:
        return array.size > 0 and array.size < 1 << 20 and bool(np.all(array >= 0))
    node = edit.producers.get(name)
    if node is None or node.domain or depth == 0:
        return False
    if node.op == "Range":
        start, step = edit.scalar(node.inputs[0]), edit.scalar(node.inputs[2])
        return start is not None and start >= 0 and step is not None and step > 0
    if node.op in _MOVES:
        return _never_negative(edit, node.inputs[0], depth - 1)
    if node.op in ("Add", "Mul", "Max"):
        return all(_never_negative(edit, i, depth - 1) for i in node.inputs)
    return False
