"""Nodes that do nothing go; chains of movement become one node; other spellings become common ones.

1. Identity, Dropout, casts to the same type, reshapes and expansions to the same shape, whole
   slices, padding by nothing: their input is used instead.
2. Squeeze, Unsqueeze and Flatten are Reshapes. A Reshape of a Reshape and a Transpose of a
   Transpose are one.
3. A Transpose between two Reshapes that only merge and split its leading axes is a Transpose.
4. An Expand that an elementwise operator's own broadcasting does is dropped; others move behind
   the operator, so that it works on fewer elements.
5. x + 0, x * 1, x and true, Where with a decided condition, and the like.
"""

from __future__ import annotations

import numpy as np

from ..codegen.dims import Dim, product
from ..graph import INTERNAL, DType, Graph, Node, Shape
from .edit import Editor, rename
from .uniform import uniform

_RESHAPES = ("Squeeze", "Unsqueeze", "Flatten")
_WHOLE = ("Slice", "Expand", "Tile", "Pad", "Resize", "Reshape")


def simplify(graph: Graph) -> bool:
    edit = Editor(graph)
    for node in edit.sweep():
        if (node.domain and node.domain != INTERNAL) or not node.outputs[0]:
            continue
        for rule in (_movement, _arithmetic, _decided, _broadcast):
            if rule(edit, node):
                break
    changed = edit.finish()
    return _name_outputs(graph) or changed


def _name_outputs(graph: Graph) -> bool:
    """A graph's output that copies an inner value: the node that makes the value makes the output.

    Outputs that are inputs, constants or another output keep their Identity.
    """
    producers = graph.producers()
    names: dict[str, str] = {}
    copies: set[int] = set()
    for node in graph.nodes:
        if node.op != "Identity" or node.domain or node.outputs[0] not in graph.outputs:
            continue
        inner = node.inputs[0]
        if inner in producers and inner not in graph.outputs and inner not in names:
            names[inner] = node.outputs[0]
            copies.add(id(node))
    if not names:
        return False
    graph.nodes = [node for node in graph.nodes if id(node) not in copies]
    for node in graph.nodes:
        node.outputs = [names.get(out, out) for out in node.outputs]
        rename(node, names)
    for inner, out in names.items():
        if inner in graph.values:
            graph.values[out] = graph.values[inner]
    return True


def _movement(edit: Editor, node: Node) -> bool:
    op = node.op
    if node.domain:
        return False
    if op in ("Identity", "Dropout"):
        out = node.outputs[0]
        if op == "Dropout" and len(node.outputs) > 1 and edit.uses(node.outputs[1]):
            return False
        fixed = node.inputs[0] not in edit.producers or node.inputs[0] in edit.outputs
        if op == "Identity" and out in edit.outputs and fixed:
            return False  # an output needs a node of its own
        if out in edit.outputs:
            return _rename_output(edit, node)
        edit.redirect(node, node.inputs[0])
        return True
    if op in _RESHAPES:
        shape = edit.shape(node.outputs[0])
        edit.become(node, "Reshape", [node.inputs[0], edit.sizes(shape)], allowzero=1)
    if node.inputs and node.inputs[0] and op in (*_WHOLE, *_RESHAPES) and _is_whole(edit, node):
        return _forward(edit, node)
    if node.op == "Reshape":
        return _reshape(edit, node)
    if op == "Transpose":
        return _transpose(edit, node)
    if op == "Cast":
        return _cast(edit, node)
    if op == "Concat" and len(node.inputs) == 1:
        return _forward(edit, node)
    if op in ("Sum", "Max", "Min", "Mean") and len(node.inputs) == 1:
        return _forward(edit, node)
    if op == "Sum" and len(node.inputs) == 2:
        edit.become(node, "Add", node.inputs)
        return True
    return False


def _rename_output(edit: Editor, node: Node) -> bool:
    """An output that is a copy of an inner value: the inner value's node makes it directly."""
    if node.op != "Identity":
        edit.become(node, "Identity", node.inputs[:1])
        node.outputs = node.outputs[:1]
        return True
    return False


def _forward(edit: Editor, node: Node) -> bool:
    if node.outputs[0] in edit.outputs and node.op == "Identity":
        return False
    edit.redirect(node, node.inputs[0])
    return True


def _is_whole(edit: Editor, node: Node) -> bool:
    """Whether the output is the input, element by element."""
    if edit.shape(node.inputs[0]) != edit.shape(node.outputs[0]):
        return False
    if node.op == "Slice":
        steps = edit.graph.known(node.inputs[4]) if len(node.inputs) > 4 else (1,)
        return steps is not None and all(s == 1 for s in steps)
    if node.op == "Pad":
        pads = edit.graph.known(node.inputs[1])
        return pads is not None and all(p == 0 for p in pads)
    if node.op == "Resize":
        return node.attrs.get("coordinate_transformation_mode") != "tf_crop_and_resize"
    return True


def _reshape(edit: Editor, node: Node) -> bool:
    before = edit.producer(node.inputs[0], "Reshape")
    shape = edit.shape(node.outputs[0])
    if before is not None:
        source = before.inputs[0]
        if edit.shape(source) == shape:
            edit.redirect(node, source)
        else:
            edit.become(node, "Reshape", [source, edit.sizes(shape)], allowzero=1)
        return True
    middle = edit.producer(node.inputs[0], "Transpose")
    first = edit.producer(middle.inputs[0], "Reshape") if middle is not None else None
    if middle is None or first is None:
        return False
    source = first.inputs[0]
    old, merged = edit.shape(source), edit.shape(first.outputs[0])
    perm = middle.attrs.get("perm") or list(range(len(merged)))[::-1]
    tail = len(merged) - 1
    lead, new_lead = len(old) - tail, len(shape) - tail
    if not perm or perm[0] != 0 or lead < 1 or new_lead < 1:
        return False
    if merged[0] != product(old[:lead]) or merged[1:] != old[lead:]:
        return False
    if product(shape[:new_lead]) != merged[0]:
        return False
    if shape[new_lead:] != tuple(merged[p] for p in perm[1:]):
        return False
    source = edit.reshape(source, (*shape[:new_lead], *merged[1:]))
    whole = [*range(new_lead), *(p + new_lead - 1 for p in perm[1:])]
    edit.become(node, "Transpose", [source], perm=whole)
    return True


def _transpose(edit: Editor, node: Node) -> bool:
    rank = len(edit.shape(node.inputs[0]))
    perm = list(node.attrs.get("perm") or range(rank)[::-1])
    if perm == list(range(rank)):
        edit.redirect(node, node.inputs[0])
        return True
    before = edit.producer(node.inputs[0], "Transpose")
    if before is not None:
        inner = list(before.attrs.get("perm") or range(rank)[::-1])
        both = [inner[p] for p in perm]
        if both == list(range(rank)):
            edit.redirect(node, before.inputs[0])
        else:
            edit.become(node, "Transpose", [before.inputs[0]], perm=both)
        return True
    shape = edit.shape(node.inputs[0])
    moved = [p for p in perm if shape[p] != 1]
    if moved == sorted(moved):
        # Only axes of size 1 move: nothing does.
        out = edit.shape(node.outputs[0])
        edit.become(node, "Reshape", [node.inputs[0], edit.sizes(out)], allowzero=1)
        return True
    return False


def _cast(edit: Editor, node: Node) -> bool:
    to = edit.type(node.outputs[0]).dtype
    source = edit.type(node.inputs[0]).dtype
    if source is to:
        edit.redirect(node, node.inputs[0])
        return True
    before = edit.producer(node.inputs[0], "Cast")
    if before is None:
        return False
    first = edit.type(before.inputs[0]).dtype
    # A boolean survives any number type on the way; so does an int32 in an int64.
    if first is DType.BOOL or (first is DType.I32 and source is DType.I64):
        if first is to:
            edit.redirect(node, before.inputs[0])
        else:
            edit.become(node, "Cast", before.inputs[:1], to=to)
        return True
    return False


_NEUTRAL = {"Add": 0.0, "Sub": 0.0, "Mul": 1.0, "Div": 1.0, "Pow": 1.0}


def _arithmetic(edit: Editor, node: Node) -> bool:
    """Neutral elements, where the result has the other operand's shape and type."""
    out = edit.type(node.outputs[0])
    if node.op in _NEUTRAL and not node.domain:
        sides = ((0, 1), (1, 0)) if node.op in ("Add", "Mul") else ((0, 1),)
        for keep, other in sides:
            value = uniform(edit, node.inputs[other])
            # -0.0 + 0.0 is 0.0: a difference that no later operator of a model depends on.
            if value == _NEUTRAL[node.op] and edit.type(node.inputs[keep]) == out:
                edit.redirect(node, node.inputs[keep])
                return True
    if node.op in ("And", "Or"):
        for keep, other in ((0, 1), (1, 0)):
            value = uniform(edit, node.inputs[other])
            if value is not None:
                if bool(value) is (node.op == "And"):
                    return _expand_to_output(edit, node, node.inputs[keep])
                return _fill(edit, node, value)
    return False


def _expand_to_output(edit: Editor, node: Node, source: str) -> bool:
    """The output is `source`, broadcast."""
    shape = edit.shape(node.outputs[0])
    if edit.type(source).dtype is not edit.type(node.outputs[0]).dtype:
        return False
    if edit.shape(source) == shape:
        edit.redirect(node, source)
    else:
        edit.become(node, "Expand", [source, edit.sizes(shape)])
    return True


def _fill(edit: Editor, node: Node, value: float) -> bool:
    """The output is one number everywhere."""
    out = edit.type(node.outputs[0])
    constant = edit.graph.add_constant(node.outputs[0], np.array(value, dtype=out.dtype.numpy))
    edit.graph.types[constant] = type(out)(out.dtype, ())
    return _expand_to_output(edit, node, constant)


def _decided(edit: Editor, node: Node) -> bool:
    """Choices that are made already."""
    if node.op == "Where":
        condition = uniform(edit, node.inputs[0])
        if condition is not None:
            return _expand_to_output(edit, node, node.inputs[1 if condition else 2])
        if node.inputs[1] == node.inputs[2]:
            return _expand_to_output(edit, node, node.inputs[1])
    if node.op == "Not":
        before = edit.producer(node.inputs[0], "Not")
        if before is not None:
            edit.redirect(node, before.inputs[0])
            return True
    if node.op in ("Not", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"):
        value = uniform(edit, node.outputs[0])
        if value is not None:
            return _fill(edit, node, value)
    return False


_POINTWISE = {
    "Add", "Sub", "Mul", "Div", "Pow", "Mod", "And", "Or", "Xor", "Not", "Equal", "Less",
    "LessOrEqual", "Greater", "GreaterOrEqual", "Where", "Cast", "Neg", "Abs", "Sqrt", "Exp",
    "Log", "Erf", "Tanh", "Sigmoid", "Relu", "Gelu", "Clip", "Min", "Max", "IsNaN", "Reciprocal",
    "Sin", "Cos",
}  # fmt: skip


def _broadcast(edit: Editor, node: Node) -> bool:
    """See rule 4."""
    if node.domain == INTERNAL:
        return _attention_bias(edit, node)
    if node.op not in _POINTWISE:
        return False
    expands = [edit.producer(name, "Expand") if name else None for name in node.inputs]
    if not any(expands):
        return False
    inputs = [
        name if expand is None else expand.inputs[0]
        for name, expand in zip(node.inputs, expands, strict=True)
    ]
    out = edit.shape(node.outputs[0])
    small = _broadcast_shape([edit.shape(name) for name in inputs if name])
    if small is None or len(small) > len(out):
        return False
    if small == out:
        edit.become(node, node.op, inputs, **node.attrs)
        return True
    if all(
        expand is None or edit.uses(name) == 1
        for name, expand in zip(node.inputs, expands, strict=True)
    ):
        inner = edit.insert(node.op, inputs, stem=node.outputs[0], **node.attrs)
        edit.become(node, "Expand", [inner, edit.sizes(out)])
        return True
    return False


def _attention_bias(edit: Editor, node: Node) -> bool:
    """An attention's bias broadcasts."""
    if node.op != "Attention" or len(node.inputs) < 4 or not node.inputs[3]:
        return False
    expand = edit.producer(node.inputs[3], "Expand")
    if expand is None:
        return False
    edit.become(
        node, "Attention", [*node.inputs[:3], expand.inputs[0]], domain=INTERNAL, **node.attrs
    )
    return True


def _broadcast_shape(shapes: list[Shape]) -> Shape | None:
    """The shape that these give together; None where sizes are not plainly equal."""
    rank = max(len(s) for s in shapes)
    result: list[Dim] = [1] * rank
    for shape in shapes:
        for i, size in enumerate(shape, rank - len(shape)):
            if size == 1 or size == result[i]:
                continue
            if result[i] != 1:
                return None
            result[i] = size
    return tuple(result)
