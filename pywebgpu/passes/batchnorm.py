"""BatchNormalization, and Mul or Add by a constant per channel, folded into the layer before.

y = (conv(x) + bias - mean) * scale / sqrt(variance + eps) + shift is a convolution with other
weights. Where there is no such layer the normalisation becomes one Mul and one Add.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..graph import Graph, Node
from .edit import Editor

Array = np.ndarray[Any, Any]
_LAYERS = ("Conv", "ConvTranspose", "Gemm")


def fold_batch_norm(graph: Graph) -> bool:
    edit = Editor(graph)
    for node in edit.sweep():
        if node.domain:
            continue
        affine = None
        if node.op == "BatchNormalization":
            affine = _of_batch_norm(edit, node)
        elif node.op in ("Mul", "Add"):
            affine = _of_arithmetic(edit, node)
        if affine is None:
            continue
        x, scale, shift = affine
        layer = edit.producer(x, *_LAYERS)
        if layer is not None and edit.uses(x) == 1 and _fold(edit, layer, node, scale, shift):
            continue
        if node.op == "BatchNormalization":
            _as_arithmetic(edit, node, x, scale, shift)
    return edit.finish()


def _of_batch_norm(edit: Editor, node: Node) -> tuple[str, Array, Array] | None:
    if node.attrs.get("training_mode", 0) or len(node.outputs) > 1:
        return None
    given = [edit.constant(name) for name in node.inputs[1:5]]
    arrays = [a.astype(np.float64) for a in given if a is not None]
    if len(arrays) != 4:
        return None
    scale, shift, mean, variance = arrays
    factor = scale / np.sqrt(variance + node.attrs.get("epsilon", 1e-5))
    return node.inputs[0], factor, shift - mean * factor


def _of_arithmetic(edit: Editor, node: Node) -> tuple[str, Array, Array] | None:
    """x * c or x + c, with c constant along everything but the channels."""
    for x, other in (node.inputs, node.inputs[::-1]):
        array, layer = edit.constant(other), edit.producer(x, *_LAYERS)
        if array is None or layer is None or edit.uses(x) != 1:
            continue
        out = edit.shape(node.outputs[0])
        if edit.shape(x) != out or len(out) < 2 or not isinstance(out[1], int):
            continue
        full = (1,) * (len(out) - array.ndim) + array.shape
        if any(d != 1 for i, d in enumerate(full) if i != 1):
            continue
        values = np.broadcast_to(array.reshape(-1), (out[1],)).astype(np.float64)
        if node.op == "Mul":
            return x, values, np.zeros_like(values)
        return x, np.ones_like(values), values
    return None


def _fold(edit: Editor, layer: Node, node: Node, scale: Array, shift: Array) -> bool:
    """Put the affine step into the layer's weights. The layer has no other reader."""
    weight = edit.constant(layer.inputs[1])
    bias_name = layer.inputs[2] if len(layer.inputs) > 2 else ""
    bias = edit.constant(bias_name) if bias_name else None
    if weight is None or (bias_name and bias is None) or weight.dtype.kind != "f":
        return False
    factor = scale
    shape: tuple[int, ...]
    if layer.op == "Gemm":
        if node.op != "BatchNormalization":
            return False
        factor = scale * layer.attrs.get("alpha", 1.0)
        old = 0.0 if bias is None else bias.astype(np.float64) * layer.attrs.get("beta", 1.0)
        if np.ndim(old) > 1 and np.shape(old)[0] != 1:
            return False
        old = np.reshape(old, -1)
        shape = (-1, 1) if layer.attrs.get("transB", 0) else (1, -1)
        layer.attrs.update(alpha=1.0, beta=1.0)
    elif layer.op == "Conv":
        old = np.zeros(len(scale)) if bias is None else bias.astype(np.float64)
        shape = (-1, *[1] * (weight.ndim - 1))
    else:
        old = np.zeros(len(scale)) if bias is None else bias.astype(np.float64)
        groups = layer.attrs.get("group", 1)
        # (channels in, channels out in the group, ...): the group is in the first axis.
        per_group = scale.reshape(groups, -1)
        rows = np.repeat(per_group, weight.shape[0] // groups, axis=0)
        factor, shape = rows, (*rows.shape, *[1] * (weight.ndim - 2))
    new_weight = (weight * factor.reshape(shape)).astype(weight.dtype)
    new_bias = (old * scale + shift).astype(weight.dtype)
    if np.all(scale == 1.0) and layer.op != "Gemm":
        new_weight = weight
    name = layer.inputs[1]
    if new_weight is not weight:
        name = edit.graph.add_constant(layer.inputs[1], new_weight)
    bias_out = edit.graph.add_constant(bias_name or f"{layer.outputs[0]}_bias", new_bias)
    layer.inputs = [layer.inputs[0], name, bias_out]
    edit.redirect(node, layer.outputs[0])
    return True


def _as_arithmetic(edit: Editor, node: Node, x: str, scale: Array, shift: Array) -> None:
    rank = len(edit.shape(x))
    dtype = edit.type(x).dtype.numpy
    shape = (-1, *[1] * (rank - 2)) if rank > 1 else (-1,)
    stem = node.outputs[0]
    a = edit.graph.add_constant(f"{stem}_scale", scale.astype(dtype).reshape(shape))
    b = edit.graph.add_constant(f"{stem}_shift", shift.astype(dtype).reshape(shape))
    edit.become(node, "Add", [edit.insert("Mul", [x, a], stem=stem), b])
