"""LayerNormalization and RMSNormalization that were taken apart, put together again.

    m = ReduceMean(x); d = x - m; v = ReduceMean(d * d); y = d / sqrt(v + eps)  [* scale] [+ shift]
    y = x / sqrt(ReduceMean(x * x) + eps)  [* scale]

with the variants that exporters write: Pow(d, 2), Mul(d, Reciprocal(Sqrt(.))), Div(1, Sqrt(.)),
Pow(., -0.5), and the subtraction written twice.
"""

from __future__ import annotations

import numpy as np

from ..graph import Graph, Node
from .edit import Editor


def fuse_norms(graph: Graph) -> bool:
    edit = Editor(graph)
    for node in edit.sweep():
        if node.domain:
            continue
        if node.op in ("Div", "Mul"):
            _normalised(edit, node)
            if node.op == "Mul":
                _scaled(edit, node)
        elif node.op == "Add":
            _shifted(edit, node)
    return edit.finish()


def _normalised(edit: Editor, node: Node) -> bool:
    """The division by the root of the variance (or mean square) plus epsilon."""
    for top, root in _quotients(edit, node):
        inside = edit.producer(root, "Add")
        found = edit.split_scalar(inside) if inside is not None else None
        if found is None or found[1] < 0 or found[1] > 1.0:
            continue
        mean = edit.producer(found[0], "ReduceMean")
        square = edit.producer(mean.inputs[0], "Mul", "Pow") if mean is not None else None
        if mean is None or square is None:
            continue
        x = _squared(edit, square)
        axis = _trailing_axes(edit, mean)
        if x is None or axis is None:
            continue
        centre = edit.producer(x, "Sub")
        layer = _centred(edit, centre, axis) if centre is not None else None
        if layer is not None and (top == x or _same_difference(edit, top, x)):
            source, op = layer, "LayerNormalization"
        elif top == x:
            source, op = x, "RMSNormalization"
        else:
            continue
        shape = edit.shape(source)[axis:]
        if not all(isinstance(d, int) for d in shape):
            continue
        ones = np.ones([int(str(d)) for d in shape], dtype=edit.type(source).dtype.numpy)
        scale = edit.graph.add_constant("ones", ones)
        edit.become(node, op, [source, scale], axis=axis, epsilon=found[1])
        return True
    return False


def _quotients(edit: Editor, node: Node) -> list[tuple[str, str]]:
    """(x, r) for a node that is x / sqrt(r)."""
    a, b = node.inputs
    if node.op == "Div":
        root = edit.producer(b, "Sqrt")
        return [(a, root.inputs[0])] if root is not None else []
    found = []
    for x, factor in ((a, b), (b, a)):
        inverse = edit.producer(factor, "Reciprocal", "Div", "Pow")
        if inverse is None:
            continue
        if inverse.op == "Pow":
            if edit.is_scalar(inverse.inputs[1], -0.5):
                found.append((x, inverse.inputs[0]))
            continue
        below = inverse.inputs[-1]
        if inverse.op == "Div" and not edit.is_scalar(inverse.inputs[0], 1.0):
            continue
        root = edit.producer(below, "Sqrt")
        if root is not None:
            found.append((x, root.inputs[0]))
    return found


def _squared(edit: Editor, node: Node) -> str | None:
    if node.op == "Mul":
        return node.inputs[0] if node.inputs[0] == node.inputs[1] else None
    return node.inputs[0] if edit.is_scalar(node.inputs[1], 2.0) else None


def _trailing_axes(edit: Editor, mean: Node) -> int | None:
    """The first of the axes averaged over, if they are the last ones and kept."""
    axes = edit.graph.known(mean.inputs[1]) if len(mean.inputs) > 1 else None
    rank = len(edit.shape(mean.inputs[0]))
    if not axes or not mean.attrs.get("keepdims", 1):
        return None
    found = sorted(int(str(a)) % rank for a in axes)
    return found[0] if found == list(range(rank - len(found), rank)) else None


def _centred(edit: Editor, node: Node, axis: int) -> str | None:
    """x, for x - ReduceMean(x)."""
    mean = edit.producer(node.inputs[1], "ReduceMean")
    if mean is None or mean.inputs[0] != node.inputs[0] or _trailing_axes(edit, mean) != axis:
        return None
    return node.inputs[0]


def _same_difference(edit: Editor, a: str, b: str) -> bool:
    first, second = edit.producer(a, "Sub"), edit.producer(b, "Sub")
    return first is not None and second is not None and first.inputs == second.inputs


def _scaled(edit: Editor, node: Node) -> bool:
    """A factor behind a normalisation becomes its scale."""
    if node.op != "Mul":
        return False
    for x, other in (node.inputs, node.inputs[::-1]):
        norm = edit.producer(x, "LayerNormalization", "RMSNormalization")
        scale = edit.constant(other)
        if norm is None or scale is None or edit.uses(x) != 1 or len(norm.inputs) > 2:
            continue
        ones = edit.constant(norm.inputs[1])
        if ones is None or not bool(np.all(ones == 1)):
            continue
        values = _as_parameter(scale, ones.shape)
        if values is None:
            continue
        name = edit.graph.add_constant(other, values.astype(ones.dtype))
        edit.become(node, norm.op, [norm.inputs[0], name], **norm.attrs)
        return True
    return False


def _shifted(edit: Editor, node: Node) -> bool:
    """A constant behind a LayerNormalization becomes its bias."""
    for x, other in (node.inputs, node.inputs[::-1]):
        norm = edit.producer(x, "LayerNormalization")
        shift = edit.constant(other)
        if norm is None or shift is None or edit.uses(x) != 1 or len(norm.inputs) > 2:
            continue
        scale = edit.constant(norm.inputs[1])
        values = _as_parameter(shift, scale.shape) if scale is not None else None
        if values is None or len(norm.outputs) > 1:
            continue
        name = edit.graph.add_constant(other, values.astype(shift.dtype))
        edit.become(node, norm.op, [*norm.inputs[:2], name], **norm.attrs)
        return True
    return False


def _as_parameter(
    array: np.ndarray,
    shape: tuple[int, ...],
) -> np.ndarray | None:
    """A constant as a parameter of the normalised axes, if it varies along no other."""
    lead = array.ndim - len(shape)
    if lead > 0 and any(d != 1 for d in array.shape[:lead]):
        return None
    trimmed = array.reshape(array.shape[max(lead, 0) :])
    try:
        return np.broadcast_to(trimmed, shape).copy()
    except ValueError:
        return None
