"""Attention, as the fusion passes leave it."""

from __future__ import annotations

from typing import Any

from ..codegen import scalar as sc
from ..codegen.dims import Dim
from ..codegen.scalar import Scalar
from ..codegen.spec import Attention, KernelSpec, Storage
from ..errors import UnsupportedError
from ..graph import INTERNAL, DType, Node
from .cost import CHEAP_BROADCAST, cost
from .engine import Lowering, lowers
from .index import Space
from .matmul import contiguous_unit
from .values import Coordinates, Value

ORDER = "bhsd"


def _static(node: Node, size: Dim, what: str) -> int:
    if isinstance(size, int):
        return size
    raise UnsupportedError(f"the number of {what} must be static", where=node.where(), got=size)


def attend(
    lw: Lowering,
    node: Node,
    dtype: DType,
    shape: tuple[Dim, ...],
    operands: tuple[Value, Value, Value],
    axes: tuple[str, str, str, str],
    *,
    bias: Value | None,
    scale: float,
    causal: bool,
    zero_masked_rows: bool,
) -> Value:
    """softmax(q k^T * scale + bias) v. `axes`: for q, k, v and the result, what the axes are, as
    words over b (batch), h (head), s (position) and d (feature)."""
    sizes = [dict(zip(a, x.shape, strict=True)) for a, x in zip(axes[:3], operands, strict=True)]
    q, k, v = sizes
    heads, kv_heads = _static(node, q["h"], "heads"), _static(node, k["h"], "heads")
    head_dim, v_dim = _static(node, q["d"], "features"), _static(node, v["d"], "features")

    def view(i: int) -> Any:
        def there(c: Coordinates) -> Coordinates:
            named = dict(zip(ORDER, c, strict=True))
            batch = named["b"] if sizes[i]["b"] != 1 else sc.const(0)
            return [named[a] if a != "b" else batch for a in axes[i]]

        extents = (q["b"], sizes[i]["h"], sizes[i]["s"], sizes[i]["d"])
        # Features are read as vectors where they can be.
        source, found = lw.view(
            operands[i], extents, there, accept=lambda w: w.strides[3] == 1 or extents[3] == 1
        )
        return source, contiguous_unit(found, 3, extents[3])

    (source_q, view_q), (source_k, view_k), (source_v, view_v) = (view(i) for i in range(3))
    space = Space((q["b"], heads, q["s"], k["s"]))
    scores = space.extents
    term: Scalar | None = None
    if bias is not None:
        if bias.buffer is None and bias.constant is None:
            own = Space(bias.shape)
            if cost(own.simplify(lw.read(bias, own.axes))) > CHEAP_BROADCAST:
                lw.materialise(bias)
        term = space.simplify(lw.broadcast(bias, space.axes, scores))

    def build(final: Scalar, store: Any) -> KernelSpec:
        return Attention(
            batch=q["b"], heads=heads, kv_heads=kv_heads, q_len=q["s"], kv_len=k["s"],
            head_dim=head_dim, v_dim=v_dim, scale=scale, causal=causal,
            zero_masked_rows=zero_masked_rows, q=view_q, k=view_k, v=view_v,
            out=contiguous_unit(store, 3, v_dim), bias=term, operands=(), output=Storage.F32,
        )  # fmt: skip

    return lw.core(
        dtype, shape, (q["b"], heads, q["s"], v_dim),
        lambda c: [dict(zip(ORDER, c, strict=True))[a] for a in axes[3]], build,
        fixed=(source_q, source_k, source_v), final=False,
        # Rows of all heads side by side: what a projection behind it reads.
        priority=(0, 2, 1, 3),
    )  # fmt: skip


@lowers("Attention", domain=INTERNAL)
def lower_internal_attention(lw: Lowering, node: Node) -> Value:
    dtype, shape = lw.out(node)
    a = node.attrs
    return attend(
        lw, node, dtype, shape, (lw.input(node, 0), lw.input(node, 1), lw.input(node, 2)),
        (a["q_axes"], a["k_axes"], a["v_axes"], a["out_axes"]),
        bias=lw.optional(node, 3), scale=float(a["scale"]), causal=bool(a.get("causal", False)),
        zero_masked_rows=bool(a.get("zero_masked_rows", False)),
    )  # fmt: skip
