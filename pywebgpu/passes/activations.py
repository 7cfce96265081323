"""Activations that were taken apart: Gelu in both forms, SiLU and HardSwish.

Elementwise chains become one kernel in any case; these operators have better spellings than
their formulas (an accurate tanh for large arguments, one exp instead of two).
"""

from __future__ import annotations

import math

from ..graph import Graph, Node
from .edit import Editor


def fuse_activations(graph: Graph) -> bool:
    edit = Editor(graph)
    for node in edit.sweep():
        if node.op == "Mul" and not node.domain:
            _gelu(edit, node) or _silu(edit, node)
    return edit.finish()


def _factors(edit: Editor, name: str, depth: int = 3) -> tuple[list[str], float]:
    """A product's tensors, and the number they are multiplied by."""
    node = edit.producer(name, "Mul", "Div")
    if node is None or depth == 0:
        return [name], 1.0
    if node.op == "Div":
        number = edit.scalar(node.inputs[1])
        if not number:
            return [name], 1.0
        names, factor = _factors(edit, node.inputs[0], depth - 1)
        return names, factor / number
    found: list[str] = []
    total = 1.0
    for part in node.inputs:
        number = edit.scalar(part)
        if number is not None:
            total *= number
            continue
        names, factor = _factors(edit, part, depth - 1)
        found += names
        total *= factor
    return found, total


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= 2e-4 * max(1.0, abs(b))


def _gelu(edit: Editor, node: Node) -> bool:
    """x * 0.5 * (1 + erf(x / sqrt 2)), and the tanh form."""
    names, factor = _factors(edit, node.outputs[0])
    if len(names) != 2 or not _close(factor, 0.5):
        return False
    for x, other in (names, names[::-1]):
        plus = edit.producer(other, "Add")
        found = edit.split_scalar(plus) if plus is not None else None
        if found is None or found[1] != 1.0:
            continue
        inner = edit.producer(found[0], "Erf", "Tanh")
        if inner is None:
            continue
        if inner.op == "Erf":
            base, scale = _factors(edit, inner.inputs[0])
            if base == [x] and _close(scale, math.sqrt(0.5)):
                edit.become(node, "Gelu", [x], approximate="none")
                return True
        elif _is_tanh_argument(edit, inner.inputs[0], x):
            edit.become(node, "Gelu", [x], approximate="tanh")
            return True
    return False


def _is_tanh_argument(edit: Editor, name: str, x: str) -> bool:
    """sqrt(2 / pi) * (x + 0.044715 * x^3)"""
    terms, scale = _factors(edit, name)
    if len(terms) != 1 or not _close(scale, math.sqrt(2 / math.pi)):
        return False
    add = edit.producer(terms[0], "Add")
    if add is None or x not in add.inputs:
        return False
    cubic = add.inputs[1] if add.inputs[0] == x else add.inputs[0]
    names, factor = _factors(edit, cubic)
    if not _close(factor, 0.044715):
        return False
    if names == [x] * 3:
        return True
    power = edit.producer(names[0], "Pow") if len(names) == 1 else None
    return power is not None and power.inputs[0] == x and edit.is_scalar(power.inputs[1], 3.0)


def _silu(edit: Editor, node: Node) -> bool:
    """x * sigmoid(x), and x * hard_sigmoid(x) with HardSwish's constants."""
    for x, other in (node.inputs, node.inputs[::-1]):
        gate = edit.producer(other, "Sigmoid", "HardSigmoid")
        if gate is None or gate.inputs[0] != x:
            continue
        if gate.op == "Sigmoid":
            edit.become(node, "Swish", [x], alpha=1.0)
            return True
        alpha, beta = gate.attrs.get("alpha", 0.2), gate.attrs.get("beta", 0.5)
        if _close(alpha, 1 / 6) and _close(beta, 0.5):
            edit.become(node, "HardSwish", [x])
            return True
    return False
