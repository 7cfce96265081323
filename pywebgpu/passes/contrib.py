"""Operators of domain com.microsoft in terms of ONNX's and internal ones.

1. MatMulNBits with constant weights: a sum with its bias; where no kernel has its form (2 bits,
   not f32), the weights are unpacked and it is a MatMul.
2. RotaryEmbedding: ONNX's operator of that name, its inputs in another order.
3. MultiHeadAttention, GroupQueryAttention: see `contrib_attention`.
4. EmbedLayerNormalization: its three lookups, sums and LayerNormalization.
5. FusedConv and FusedGemm: the product, what is added, the activation.
6. TransposeMatMul: the older name of FusedMatMul.
7. SkipLayerNormalization and its simplified form: the sum, which a product may store, and the
   normalisation.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..graph import Graph, Node
from ..infer.contrib import MICROSOFT, refused_setting
from ..packing import bit_fields
from .contrib_attention import group_query, multi_head
from .edit import Editor

Array = np.ndarray[Any, Any]


def rewrite_contrib(graph: Graph) -> bool:
    edit = Editor(graph)
    for node in edit.sweep():
        if node.domain != MICROSOFT or refused_setting(node) is not None:
            continue
        if node.op == "MatMulNBits":
            _matmul_n_bits(edit, node)
        elif node.op == "RotaryEmbedding":
            _rotary(edit, node)
        elif node.op == "MultiHeadAttention":
            multi_head(edit, node)
        elif node.op == "EmbedLayerNormalization":
            _embeddings(edit, node)
        elif node.op == "GroupQueryAttention":
            group_query(edit, node)
        elif node.op in ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"):
            _skip_normalization(edit, node)
        elif node.op in ("FusedConv", "FusedGemm"):
            _with_activation(edit, node)
        elif node.op == "TransposeMatMul":
            edit.become(node, "FusedMatMul", node.inputs, domain=MICROSOFT, **node.attrs)
    return edit.finish()


def _given(node: Node, index: int) -> str:
    return node.inputs[index] if index < len(node.inputs) else ""


def unpack_bits(
    packed: Array, scales: Array, zeros: Array | None, n: int, k: int, bits: int
) -> Array:
    """Weights (k, n) from blocks along k: `packed` (n, blocks, bytes), low bits first."""
    flat = packed.reshape(n, -1, packed.shape[-1])
    blocks, size = flat.shape[1], flat.shape[2] * 8 // bits
    numbers = bit_fields(flat, bits).reshape(n, blocks, size).astype(np.float32)
    scale = scales.astype(np.float32).reshape(n, blocks, 1)
    offset: Array = np.full((n, blocks, 1), float(1 << (bits - 1)), np.float32)
    if zeros is not None and zeros.dtype == np.uint8:
        rows = bit_fields(zeros.reshape(n, -1), bits).reshape(n, -1)[:, :blocks]
        offset = rows.astype(np.float32).reshape(n, blocks, 1)
    elif zeros is not None:
        offset = zeros.astype(np.float32).reshape(n, blocks, 1)
    return np.ascontiguousarray(((numbers - offset) * scale).reshape(n, -1)[:, :k].T)


def _matmul_n_bits(edit: Editor, node: Node) -> bool:
    packed, scales = edit.constant(node.inputs[1]), edit.constant(node.inputs[2])
    zeros = edit.constant(_given(node, 3)) if _given(node, 3) else None
    bits = node.attrs.get("bits", 4)
    if packed is None or scales is None or _given(node, 4) or bits not in (2, 4, 8):
        return False
    if _given(node, 3) and zeros is None:
        return False
    bias = _given(node, 5)
    dtype = edit.type(node.inputs[0]).dtype.numpy
    size = node.attrs["block_size"]
    if bits in (4, 8) and dtype == np.float32 and size % 4 == 0:
        if bias:
            inputs = list(node.inputs[:4])
            product = edit.insert(
                "MatMulNBits", inputs, domain=MICROSOFT, stem=node.outputs[0], **node.attrs
            )
            edit.become(node, "Add", [product, bias])
        return bool(bias)
    weights = unpack_bits(packed, scales, zeros, node.attrs["N"], node.attrs["K"], bits)
    name = edit.graph.add_constant(node.inputs[1], weights.astype(dtype))
    if not bias:
        edit.become(node, "MatMul", [node.inputs[0], name])
    else:
        product = edit.insert("MatMul", [node.inputs[0], name], stem=node.outputs[0])
        edit.become(node, "Add", [product, bias])
    return True


def _rotary(edit: Editor, node: Node) -> bool:
    x, positions, cos, sin = node.inputs[:4]
    if node.attrs.get("scale", 1.0) != 1.0 or node.attrs.get("is_packed_batching", 0):
        return False
    shape = edit.shape(x)
    rows = (shape[0], shape[-2] if len(shape) == 4 else shape[1])
    if len(edit.shape(positions)) == 1:  # the first position, of all rows
        places = edit.insert("Add", [positions, edit.arange(rows[1])], stem=positions)
        positions = edit.insert("Expand", [places, edit.sizes(rows)], stem=positions)
    elif edit.shape(positions) != rows:
        return False
    attrs = {
        "interleaved": node.attrs.get("interleaved", 0),
        "rotary_embedding_dim": node.attrs.get("rotary_embedding_dim", 0),
    }
    if len(shape) == 3:
        heads = node.attrs.get("num_heads", 0)
        half = edit.shape(cos)[1]
        if not heads and isinstance(shape[2], int) and isinstance(half, int):
            heads = shape[2] // (2 * half)
        attrs["num_heads"] = heads
    edit.become(node, "RotaryEmbedding", [x, cos, sin, positions], **attrs)
    return True


def _embeddings(edit: Editor, node: Node) -> bool:
    ids, segments, words, positions, kinds, gamma, beta = node.inputs[:7]
    counts, sums = (node.outputs[i] if i < len(node.outputs) else "" for i in (1, 2))
    node.outputs = node.outputs[:1]
    if counts:
        _mask_index(edit, node, ids, counts)
    total = edit.insert("Gather", [words, ids], stem=node.outputs[0], axis=0)
    where = _given(node, 8)
    if where:
        places = edit.insert("Gather", [positions, where], axis=0)
    else:
        zero = edit.graph.add_constant("zero", np.array([0], np.int64))
        places = edit.insert("Slice", [positions, zero, edit.sizes([edit.shape(ids)[1]]), zero])
    total = edit.insert("Add", [total, places], stem=node.outputs[0])
    if segments and kinds:
        kind = edit.insert("Gather", [kinds, segments], axis=0)
        total = edit.insert("Add", [total, kind], stem=node.outputs[0])
    if sums:
        total = edit.insert("Identity", [total], into=sums)
    epsilon = node.attrs.get("epsilon", 1e-12)
    edit.become(node, "LayerNormalization", [total, gamma, beta], axis=-1, epsilon=epsilon)
    return True


def _mask_index(edit: Editor, node: Node, ids: str, into: str) -> None:
    """How many tokens of each row count, I32 (batch,); 0 without a mask (input 7)."""
    mask = _given(node, 7)
    if mask:
        axis = edit.graph.add_constant("axis", np.array([1], np.int64))
        edit.insert("ReduceSum", [mask, axis], into=into, keepdims=0)
    else:
        zero = edit.graph.add_constant("zero", np.array(0, np.int32))
        edit.insert("Expand", [zero, edit.sizes(edit.shape(ids)[:1])], into=into)


def _skip_normalization(edit: Editor, node: Node) -> None:
    x, skip, gamma = node.inputs[:3]
    simple = node.op == "SkipSimplifiedLayerNormalization"
    shift, bias = ("", _given(node, 3)) if simple else (_given(node, 3), _given(node, 4))
    y, mean, deviation, total = (*node.outputs, "", "", "")[:4]
    stem = total or y
    added = edit.insert("Add", [x, skip], stem=stem, into="" if bias else total)
    if bias:
        added = edit.insert("Add", [added, bias], stem=stem, into=total)
    attrs = {"axis": -1, "epsilon": node.attrs.get("epsilon", 1e-12)}
    if not simple:
        node.outputs = [y, mean, deviation]
        inputs = [added, gamma, shift] if shift else [added, gamma]
        edit.become(node, "LayerNormalization", inputs, **attrs)
        return
    if mean:
        zero = edit.graph.add_constant("zero", np.array(0, edit.type(y).dtype.numpy))
        edit.insert("Expand", [zero, edit.sizes(edit.shape(mean))], into=mean)
    node.outputs = [y, deviation]
    edit.become(node, "SimplifiedLayerNormalization", [added, gamma], **attrs)


_ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "Relu": (),
    "Tanh": (),
    "Sigmoid": (),
    "LeakyRelu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"),
}
"""With the settings that follow in `activation_params`."""


def _with_activation(edit: Editor, node: Node) -> bool:
    attrs = dict(node.attrs)
    activation = attrs.pop("activation", "")
    settings = list(attrs.pop("activation_params", []) or [])
    for name in ("activation_alpha", "activation_beta", "activation_gamma"):
        if name in attrs:
            settings.append(attrs.pop(name))
    if activation not in _ACTIVATIONS and activation not in ("", "Clip"):
        return False
    fused = _given(node, 3) if node.op == "FusedConv" else ""
    inputs = list(node.inputs[:3])
    made = edit.insert(node.op.removeprefix("Fused"), inputs, stem=node.outputs[0], **attrs)
    if fused:
        made = edit.insert("Add", [made, fused], stem=node.outputs[0])
    if not activation:
        edit.redirect(node, made)
    elif activation == "Clip":
        limits = [edit.graph.add_constant("limit", np.array(x, np.float32)) for x in settings[:2]]
        edit.become(node, "Clip", [made, *limits])
    else:
        given = dict(zip(_ACTIVATIONS[activation], settings, strict=False))
        edit.become(node, activation, [made], **given)
    return True
