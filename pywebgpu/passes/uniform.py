"""Values that are one number everywhere, whatever their size."""

from __future__ import annotations

import numpy as np

from ..graph import Node
from .affine import affine
from .edit import Editor

_MOVES = {
    "Reshape", "Expand", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Tile",
    "Gather", "GatherND", "GatherElements", "Identity", "Split",
}  # fmt: skip
_DEPTH = 12


def uniform(edit: Editor, name: str, depth: int = _DEPTH) -> float | None:
    """The number that every element of `name` is, if that can be seen."""
    array = edit.constant(name)
    if array is not None:
        if array.size == 0 or array.size > 1 << 20:
            return None
        first = array.ravel()[0]
        return float(first) if bool(np.all(array == first)) else None
    found = affine(edit, name)
    if found is not None and found.uniform and isinstance(found.base, int):
        return float(found.base)
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
    if node.op == "Cast":
        a = uniform(edit, node.inputs[0], depth)
        to = edit.type(node.outputs[0]).dtype.numpy
        return None if a is None else float(np.array(a).astype(to))
    if node.op == "Where":
        condition = uniform(edit, node.inputs[0], depth)
        if condition is None:
            return None
        return uniform(edit, node.inputs[1 if condition else 2], depth)
    if node.op == "GreaterOrEqual":
        limit = uniform(edit, node.inputs[1], depth)
        if limit is not None and limit <= 0 and _never_negative(edit, node.inputs[0]):
            return 1.0
    return None


def _never_negative(edit: Editor, name: str) -> bool:
    """Positions, as in "key position >= 0"."""
    from ..infer import symbolic

    found = affine(edit, name)
    return found is not None and all(symbolic.at_least(d, 0) for d in (found.base, *found.steps))
