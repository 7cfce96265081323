"""LSTM, GRU and RNN in two parts: what needs no state, and what does.

The product with the inputs is one ordinary product over all steps, with both biases; what is left
is the internal operator `Recurrent`, whose kernel plays all steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..graph import INTERNAL, Graph
from .edit import Editor

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def split_recurrent(graph: Graph) -> bool:
    """Inputs of the new node: x's product (as X with gates last), R, B of a GRU's reset gate,
    sequence_lens, initial_h, initial_c, P."""
    edit = Editor(graph)
    for node in edit.sweep():
        if node.domain or node.op not in GATES:
            continue
        directions, rows, hidden = edit.shape(node.inputs[2])
        size = edit.shape(node.inputs[0])[2]
        if not all(isinstance(n, int) for n in (directions, rows, hidden, size)):
            continue
        x, w, r, b, lengths, h, c, p = (*node.inputs, *[""] * 8)[:8]
        reset = node.op == "GRU" and bool(node.attrs.get("linear_before_reset", 0))
        turned = edit.insert("Transpose", [w], perm=[2, 0, 1])
        matrix = edit.reshape(turned, (size, directions * rows))
        product = edit.insert("MatMul", [x, matrix], stem=f"{node.name or node.op}/input")
        held = ""
        if b:
            summed, held = _biases(edit, b, int(str(rows)), int(str(hidden)), reset)
            product = edit.insert("Add", [product, edit.reshape(summed, (directions * rows,))])
        attrs = {**node.attrs, "cell": node.op, "reset": reset}
        inputs = [product, r, held, lengths, h, c, p]
        edit.become(node, "Recurrent", inputs, domain=INTERNAL, **attrs)
    return edit.finish()


def _biases(edit: Editor, b: str, rows: int, hidden: int, reset: bool) -> tuple[str, str]:
    """(what is added to x's product, what is added to h's before the reset gate)."""

    def part(start: int, end: int) -> str:
        starts, ends, axes = (_ints(edit, [v]) for v in (start, end, 1))
        return edit.insert("Slice", [b, starts, ends, axes])

    if not reset:
        return edit.insert("Add", [part(0, rows), part(rows, 2 * rows)]), ""
    gates = edit.insert("Add", [part(0, 2 * hidden), part(rows, rows + 2 * hidden)])
    summed = edit.insert("Concat", [gates, part(2 * hidden, rows)], axis=1)
    return summed, part(rows + 2 * hidden, 2 * rows)


def _ints(edit: Editor, values: Sequence[int]) -> str:
    return edit.graph.add_constant("at", np.array(values, np.int64))
