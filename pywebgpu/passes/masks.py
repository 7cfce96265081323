"""What masks say: a bias that only hides later positions is a causal flag."""

from __future__ import annotations

import numpy as np

from ..codegen.dims import Dim
from ..graph import Node
from .affine import affine
from .edit import Editor
from .uniform import uniform

_VERY_LOW = -1e9


def split_causal(edit: Editor, bias: str, q_len: Dim, kv_len: Dim) -> tuple[bool, str]:
    """Whether `bias` hides exactly the later positions, and what remains of it ("" for nothing).

    A bias with anything else in it stays whole: in rows where that hides every earlier position,
    low numbers that are not -inf make the later ones count, and results must not change.
    """
    node = edit.producer(bias) if bias else None
    if node is None:
        return False, bias
    if node.op in ("Expand", "Reshape"):
        found, _ = split_causal(edit, node.inputs[0], q_len, kv_len)
        return (True, "") if found else (False, bias)
    gap: Dim | None = None
    if node.op == "Where":
        yes, no = uniform(edit, node.inputs[1]), uniform(edit, node.inputs[2])
        if yes == 0.0 and no is not None and no <= _VERY_LOW:
            gap = _lag(edit, node.inputs[0], keep=True)
        elif no == 0.0 and yes is not None and yes <= _VERY_LOW:
            gap = _lag(edit, node.inputs[0], keep=False)
    elif node.op == "Trilu":
        low = uniform(edit, node.inputs[0])
        k = edit.graph.known(node.inputs[1]) if len(node.inputs) > 1 else (0,)
        if low is not None and low <= _VERY_LOW and node.attrs.get("upper", 1) and k:
            gap = k[0] - 1
    if gap is not None and gap == kv_len - q_len:
        return True, ""
    return False, bias


def _lag(edit: Editor, condition: str, keep: bool) -> Dim | None:
    """g, if the condition (or its negation) is "key position <= query position + g".

    Positions are the last two axes: query, key.
    """
    node = edit.producer(condition)
    array = edit.constant(condition)
    if array is not None:
        return _lag_of_array(array if keep else ~array)
    if node is None:
        return None
    if node.op in ("Expand", "Identity") or (node.op == "Reshape" and _keeps_last(edit, node)):
        return _lag(edit, node.inputs[0], keep)
    if node.op == "Not":
        return _lag(edit, node.inputs[0], not keep)
    if node.op == "Slice" and keep:
        return _lag_of_slice(edit, node)
    if node.op not in ("LessOrEqual", "GreaterOrEqual", "Less", "Greater"):
        return None
    a, b = (affine(edit, name) for name in node.inputs)
    if a is None or b is None:
        return None
    # Bring it to "left <= right + slack".
    op, left, right = node.op, a, b
    if not keep:
        op = {"LessOrEqual": "Greater", "GreaterOrEqual": "Less",
              "Less": "GreaterOrEqual", "Greater": "LessOrEqual"}[op]  # fmt: skip
    if op in ("GreaterOrEqual", "Greater"):
        left, right = right, left
    slack = -1 if op in ("Less", "Greater") else 0
    rank = len(edit.shape(node.outputs[0]))
    lefts = (*(0,) * (rank - len(left.steps)), *left.steps)
    rights = (*(0,) * (rank - len(right.steps)), *right.steps)
    steps = [r - x for x, r in zip(lefts, rights, strict=True)]
    if rank < 2 or any(s != 0 for s in steps[:-2]) or steps[-2:] != [1, -1]:
        return None
    return right.base - left.base + slack


def _keeps_last(edit: Editor, node: Node) -> bool:
    old, new = edit.shape(node.inputs[0]), edit.shape(node.outputs[0])
    return len(old) >= 2 and len(new) >= 2 and old[-2:] == new[-2:]


def _lag_of_array(array: np.ndarray) -> Dim | None:
    if array.dtype != np.bool_ or array.ndim < 2 or array.size > 1 << 24:
        return None
    plane = array.reshape(-1, *array.shape[-2:])[0]
    lag = int(plane[0].sum()) - 1
    rows, columns = plane.shape
    triangle = np.arange(columns)[None, :] <= np.arange(rows)[:, None] + lag
    return lag if bool(np.all(array == triangle)) else None


def _lag_of_slice(edit: Editor, node: Node) -> Dim | None:
    """A window into a stored triangle, as older GPT-2 exports have it."""
    inner = _lag(edit, node.inputs[0], True)
    graph = edit.graph
    starts = graph.known(node.inputs[1])
    rank = len(edit.shape(node.inputs[0]))
    axes = graph.known(node.inputs[3]) if len(node.inputs) > 3 else tuple(range(rank))
    steps = graph.known(node.inputs[4]) if len(node.inputs) > 4 else (1,)
    if inner is None or starts is None or axes is None or steps is None:
        return None
    if any(s != 1 for s in steps):
        return None
    for start, axis in zip(starts, axes, strict=False):
        place = int(str(axis)) % rank
        if place == rank - 2:
            inner = inner + start
        elif place == rank - 1:
            inner = inner - start
    return inner
