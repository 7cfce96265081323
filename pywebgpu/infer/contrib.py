"""Types of the operators of domain com.microsoft that exporters and optimisers emit."""

from __future__ import annotations

from ..codegen.dims import Dim, dim_max, floordiv
from ..graph import Node, TensorType
from .neural import infer_conv, infer_gemm, matmul_shape
from .registry import Site, infers, like

MICROSOFT = "com.microsoft"

infers("FusedConv", domain=MICROSOFT)(infer_conv)
infers("FusedGemm", domain=MICROSOFT)(infer_gemm)


@infers("Gelu", "FastGelu", "BiasGelu", "QuickGelu", "BiasAdd", "RotaryEmbedding", domain=MICROSOFT)
def infer_like_input(site: Site) -> TensorType:
    return site.input(0)


@infers("BiasSplitGelu", domain=MICROSOFT)
def infer_bias_split_gelu(site: Site) -> TensorType:
    """x (..., 2 n) and bias (2 n): (..., n)."""
    x = site.input(0)
    site.same(x.shape[-1], site.shape(1)[0])
    return like(x, (*x.shape[:-1], floordiv(x.shape[-1], 2)))


@infers("SimplifiedLayerNormalization")
def infer_simplified_layer_norm(site: Site) -> list[TensorType]:
    """Written into ONNX's own domain by ONNX Runtime's optimiser: RMSNormalization."""
    x = site.input(0)
    axis = site.axis(site.attr("axis", -1), len(x.shape))
    rest = like(x, [d if i < axis else 1 for i, d in enumerate(x.shape)])
    return [x, rest][: max(1, len(site.node.outputs))]


@infers("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def infer_skip_layer_norm(site: Site) -> list[TensorType]:
    """Outputs: normalised, mean, inverse deviation, input + skip + bias."""
    x = site.input(0)
    rest = like(x, (*x.shape[:-1], 1))
    return [x, rest, rest, x][: len(site.node.outputs)]


@infers("EmbedLayerNormalization", domain=MICROSOFT)
def infer_embed_layer_norm(site: Site) -> list[TensorType | None]:
    ids, table = site.input(0), site.input(2)
    out = like(table, (*ids.shape, table.shape[-1]))
    found: list[TensorType | None] = [out, like(ids, (ids.shape[0],)), out]
    return found[: len(site.node.outputs)]


@infers("FusedMatMul", "TransposeMatMul", domain=MICROSOFT)
def infer_fused_matmul(site: Site) -> TensorType:
    a, b = site.input(0), site.input(1)
    left, right = list(a.shape), list(b.shape)
    if site.attr("transA", 0):
        left[-2:] = left[-2:][::-1]
    if site.attr("transB", 0):
        right[-2:] = right[-2:][::-1]
    return like(a, matmul_shape(site, tuple(left), tuple(right)))


@infers("MatMulNBits", domain=MICROSOFT)
def infer_matmul_n_bits(site: Site) -> TensorType:
    x = site.input(0)
    site.same(x.shape[-1], site.attr("K"))
    return like(x, (*x.shape[:-1], site.attr("N")))


_PRODUCT = {"alpha", "transA", "transB"}
_ATTRIBUTES: dict[str, set[str]] = {
    "BiasAdd": set(),
    "BiasGelu": set(),
    "BiasSplitGelu": set(),
    "EmbedLayerNormalization": {"epsilon", "mask_index_type"},
    "FastGelu": set(),
    "FusedConv": {"activation", "activation_params", "auto_pad", "dilations", "group",
                  "kernel_shape", "pads", "strides"},
    "FusedGemm": {"activation", "activation_alpha", "activation_beta", "activation_gamma", "beta",
                  *_PRODUCT},
    "FusedMatMul": _PRODUCT,
    "Gelu": set(),
    "GroupQueryAttention": {"do_rotary", "k_quant_type", "kv_cache_bit_width", "kv_num_heads",
                            "local_window_size", "num_heads", "qk_output", "rotary_interleaved",
                            "scale", "smooth_softmax", "softcap", "v_quant_type"},
    "MatMulNBits": {"K", "N", "accuracy_level", "bits", "block_size"},
    "MultiHeadAttention": {"mask_filter_value", "num_heads", "scale", "unidirectional"},
    "QuickGelu": {"alpha"},
    "RotaryEmbedding": {"interleaved", "is_packed_batching", "num_heads", "rotary_embedding_dim",
                        "scale"},
    "SkipLayerNormalization": {"epsilon"},
    "SkipSimplifiedLayerNormalization": {"epsilon"},
    "TransposeMatMul": _PRODUCT,
}  # fmt: skip
"""Those that are known, of each operator."""

_OFF = {"transBatchA", "transBatchB", "weight_prepacked"}
"""Attributes that are known to do nothing as long as they are 0."""

_ATTENTION = {
    "GroupQueryAttention": ((3, 4), (12, ("k_scale", "v_scale"))),
    "MultiHeadAttention": ((6, 7), (8, ("past_sequence_length", "cache_indirection"))),
}
"""The inputs that are the past; the first input that is refused, and the names of those from there
on."""


def refused_setting(node: Node) -> str | None:
    """What an operator of com.microsoft asks for that is not done: attributes nobody has heard of,
    which must not be left out in silence, and of attentions what `_refused_attention` says. None if
    nothing is."""
    if node.domain != MICROSOFT:
        return None
    attrs = node.attrs
    for name in sorted(attrs.keys() - _ATTRIBUTES.get(node.op, attrs.keys())):
        if name not in _OFF or attrs[name] != 0:
            return f"attribute {name} = {attrs[name]!r}"
    return _refused_attention(node) if node.op in _ATTENTION else None


def _refused_attention(node: Node) -> str | None:
    """Quantised caches, scores as an output, and inputs of ONNX Runtime's own decoding loops."""
    past, (first, names) = _ATTENTION[node.op]
    attrs = node.attrs
    given = [i < len(node.inputs) and bool(node.inputs[i]) for i in range(first)]
    bad = [f"{s}_quant_type" for s in "kv" if attrs.get(f"{s}_quant_type", "NONE") != "NONE"]
    bad += ["softcap"] if attrs.get("softcap", 0) < 0 else []
    window = attrs.get("local_window_size", -1)
    bad += ["local_window_size"] if window == 0 or window < -1 else []
    for name in bad:
        return f"attribute {name} = {attrs[name]!r}"
    for i, name in enumerate(node.inputs[first:]):
        if name:
            return f"input {names[i] if i < len(names) else first + i}"
    if any(node.outputs[3:]):
        return "its scores as an output"
    if given[past[0]] != given[past[1]]:
        return "only one of past_key and past_value"
    if attrs.get("do_rotary", 0) and not (given[7] and given[8]):
        return "attribute do_rotary = 1 and no cos_cache and sin_cache"
    return None


@infers("MultiHeadAttention", domain=MICROSOFT)
def infer_multi_head_attention(site: Site) -> list[TensorType]:
    """q (b, s, h*d); k and v alike, or (b, h, s, d); or all three packed in q: (b, s, h, 3, d)."""
    q, heads = site.input(0), site.attr("num_heads")
    width: Dim
    length: Dim
    if len(q.shape) == 5:
        width, length = q.shape[2] * q.shape[4], q.shape[1]
    elif site.has(2):
        v = site.input(2)
        width = v.shape[2] if len(v.shape) == 3 else v.shape[1] * v.shape[3]
        length = v.shape[1] if len(v.shape) == 3 else v.shape[2]
    else:
        width, length = q.shape[2], site.shape(1)[1]
    past: Dim = site.shape(6)[2] if site.has(6) else 0
    out = like(q, (q.shape[0], q.shape[1], width))
    size = q.shape[4] if len(q.shape) == 5 else floordiv(q.shape[2], heads)
    keys, values = (
        like(q, (q.shape[0], heads, past + length, d)) for d in (size, floordiv(width, heads))
    )
    scores = like(q, (q.shape[0], heads, q.shape[1], past + length))
    return [out, keys, values, scores][: len(site.node.outputs)]


@infers("GroupQueryAttention", domain=MICROSOFT)
def infer_group_query_attention(site: Site) -> list[TensorType]:
    """q (b, s, heads * d), or q, k and v side by side in it. With a past (b, kv_heads, p, d) the
    present has room for what is longer: the past, or `total_sequence_length` (input 6)."""
    q, heads, kv_heads = site.input(0), site.attr("num_heads"), site.attr("kv_num_heads")
    b, s, width = q.shape
    packed = not site.has(1)
    size = floordiv(width, heads + 2 * kv_heads if packed else heads)
    length: Dim = s
    if site.has(3):
        past = site.shape(3)
        site.same(past[0], b)
        site.same(past[1], kv_heads)
        site.same(past[3], size)
        length = dim_max(past[2], site.sizes(6, "total_sequence_length")[0])
    cache = like(q, (b, kv_heads, length, size))
    scores = like(q, (b, heads, s, length))
    return [like(q, (b, s, size * heads)), cache, cache, scores][: len(site.node.outputs)]
