"""Operators that passes introduce: domain `INTERNAL`, with their meaning and their inference.

`Attention(q, k, v, bias?) -> out`
    softmax(scale * q k^T + bias) v for every batch and head, as `codegen.spec.Attention` has it.

    The four tensors have rank 4. For each, an attribute says what its axes are, as a word over
    b (batch), h (head), s (position) and d (feature): `q_axes`, `k_axes`, `v_axes`, `out_axes`.
    "bshd" is a projection's result whose last axis was split into heads; so the transposes
    around attention are gone from the graph.

    * `scale`: float.
    * `causal`: bool; position j of k is hidden from position i of q when j > i + kv_len - q_len.
    * `zero_masked_rows`: bool; a row whose scores are all -inf gives 0, otherwise NaN.
    * `bias` ("" or absent: none) is a float tensor that broadcasts to (b, h, q, kv). It is usually
      computed from a mask, elementwise: read it where it is used rather than materialise it.
    * The number of heads of q is a multiple of that of k and v; head h of q reads h // ratio.
    * Numbers of heads and features are static.
"""

from __future__ import annotations

from ..codegen.dims import Dim
from ..graph import INTERNAL, TensorType
from ..infer.registry import Site, infers, like


def axes_sizes(type_: TensorType, axes: str) -> dict[str, Dim]:
    """Size of each of an attention tensor's axes, by letter."""
    return dict(zip(axes, type_.shape, strict=True))


@infers("Attention", domain=INTERNAL)
def infer_internal_attention(site: Site) -> TensorType:
    q = axes_sizes(site.input(0), site.attr("q_axes"))
    k = axes_sizes(site.input(1), site.attr("k_axes"))
    v = axes_sizes(site.input(2), site.attr("v_axes"))
    batch = site.same(site.same(q["b"], k["b"]), v["b"])
    site.same(k["s"], v["s"])
    site.same(q["d"], k["d"])
    if site.has(3):
        site.broadcast(site.shape(3), (batch, q["h"], q["s"], k["s"]))
    sizes = {"b": batch, "h": q["h"], "s": q["s"], "d": v["d"]}
    return like(site.input(0), [sizes[a] for a in site.attr("out_axes")])
