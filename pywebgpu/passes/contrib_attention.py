"""com.microsoft's attention operators, with their caches, in terms of the internal attention.

A cache holds keys and values as (batch, head, position, feature). In MultiHeadAttention the new
ones follow the past. In GroupQueryAttention every row of a batch has its own length, known only
while running (`seqlens_k`, its last position): row b has `past[b] = max(seqlens_k[b] + 1 - s, 0)`
positions already, its s new keys and values go to `past[b]` and behind, and query i sees the
positions up to `past[b] + i`. What lies behind them in the cache is nobody's to read; it stays
what it was, or is 0 where the present is longer than the past.
"""

from __future__ import annotations

import numpy as np

from ..codegen.dims import Dim, dim_max, floordiv
from ..graph import INTERNAL, DType, Node, Shape
from .edit import Editor


def _given(node: Node, index: int) -> str:
    return node.inputs[index] if index < len(node.inputs) else ""


def _output(node: Node, index: int) -> str:
    return node.outputs[index] if index < len(node.outputs) else ""


def _attend(
    edit: Editor,
    node: Node,
    sides: list[tuple[str, str]],
    bias: str,
    scale: float,
    causal: bool,
) -> None:
    """`node` becomes the attention. `sides`: q, k, v and what their axes are."""
    inner = edit.insert(
        "Attention",
        [*(name for name, _ in sides), *([bias] if bias else [])],
        domain=INTERNAL,
        stem=node.outputs[0],
        q_axes=sides[0][1],
        k_axes=sides[1][1],
        v_axes=sides[2][1],
        out_axes="bshd",
        scale=scale,
        causal=causal,
        zero_masked_rows=False,
    )
    whole = edit.sizes(edit.shape(node.outputs[0]))
    edit.become(node, "Reshape", [inner, whole], allowzero=1)


# MultiHeadAttention


def multi_head(edit: Editor, node: Node) -> bool:
    heads = node.attrs["num_heads"]
    names = _unpacked(edit, node)
    sides = _biased(edit, node, names, heads) if names else None
    if sides is None:
        return False
    batch, length, _ = edit.shape(node.outputs[0])
    bias = _given(node, 5)
    presents = [_output(node, 1), _output(node, 2)]
    node.outputs = node.outputs[:1]
    for i, present in enumerate(presents, 1):
        past = _given(node, 5 + i)
        if past or present:
            name, axes = sides[i]
            last = "" if past else present
            if axes == "bshd":
                name = edit.insert("Transpose", [name], stem=name, into=last, perm=[0, 2, 1, 3])
            elif last:
                name = edit.insert("Identity", [name], into=last)
            if past:
                name = edit.insert("Concat", [past, name], stem=past, into=present, axis=2)
            sides[i] = (name, "bhsd")
    size = edit.shape(sides[0][0])[3]
    total = edit.shape(sides[1][0])[sides[1][1].index("s")]
    if _given(node, 4):
        mask = _padding(edit, node, batch, length, total)
        bias = edit.insert("Add", [mask, bias], stem="bias") if bias else mask
    scale = float(node.attrs.get("scale", 0.0) or int(str(size)) ** -0.5)
    causal = bool(node.attrs.get("unidirectional", 0))
    _attend(edit, node, sides, bias, scale, causal)
    return True


def _unpacked(edit: Editor, node: Node) -> list[str] | None:
    """q, k and v: separate inputs, or packed as (batch, position, head, 3 or 2, feature)."""
    q, k, v = (_given(node, i) for i in range(3))
    if q and k and v:
        return [q, k, v]
    packed, count = (k, 2) if k else (q, 3)
    shape = edit.shape(packed)
    if len(shape) != 5 or shape[3] != count:
        return None
    parts = []
    for i in range(count):
        place = edit.graph.add_constant("part", np.array(i, np.int64))
        part = edit.insert("Gather", [packed, place], stem=packed, axis=3)
        parts.append(edit.reshape(part, (*shape[:2], shape[2] * shape[4])))
    return [q, *parts] if k else parts


def _biased(edit: Editor, node: Node, names: list[str], heads: int) -> list[tuple[str, str]] | None:
    """The sides with the projections' biases (input 3, one after another) and their axes."""
    sides, first, biases = [], 0, _given(node, 3)
    for name in names:
        shape = edit.shape(name)
        if len(shape) == 4:  # from a cache: its bias has been added already
            sides.append((name, "bhsd"))
            width = shape[1] * shape[3]
        elif len(shape) == 3:
            width = shape[2]
            if biases and isinstance(width, int):
                ends = [edit.sizes([x]) for x in (first, first + width, 0)]
                bias = edit.insert("Slice", [biases, *ends], stem=biases)
                name = edit.insert("Add", [name, bias], stem=name)
            if isinstance(width, int):
                split = (*shape[:2], heads, width // heads)
                sides.append((edit.reshape(name, split), "bshd"))
        else:
            return None
        if not isinstance(width, int):
            return None
        first += width
    return sides


def _padding(edit: Editor, node: Node, batch: Dim, length: Dim, total: Dim) -> str:
    """What `key_padding_mask` (input 4) adds to the scores.

    I32: 1 where a key counts, (batch, total) or (batch, length, total); or how many of each
    row's keys count, (batch,), which may be followed by the rows' bounds, (3 batch + 2,).
    """
    mask = _given(node, 4)
    shape = edit.shape(mask)
    if len(shape) == 1:
        if shape[0] != batch:
            ends = [edit.sizes([x]) for x in (0, batch)]
            mask = edit.insert("Slice", [mask, *ends], stem=mask)
        keys = _places(edit, total, (1, 1, 1, total))
        keep = edit.insert("Less", [keys, edit.reshape(mask, (batch, 1, 1, 1))])
    else:
        rows = length if len(shape) == 3 else 1
        whole = edit.reshape(mask, (batch, 1, rows, total))
        keep = edit.insert("Cast", [whole], stem=mask, to=DType.BOOL)
    dtype = edit.type(node.outputs[0]).dtype.numpy
    low = node.attrs.get("mask_filter_value", -10000.0)
    zero, masked = (edit.graph.add_constant("masked", np.array(x, dtype)) for x in (0.0, low))
    return edit.insert("Where", [keep, zero, masked], stem="mask")


# GroupQueryAttention


def group_query(edit: Editor, node: Node) -> bool:
    attrs = node.attrs
    heads, kv_heads = attrs["num_heads"], attrs["kv_num_heads"]
    past = [_given(node, 3), _given(node, 4)]
    split = _split(edit, node, heads, kv_heads)
    if split is None:
        return False
    batch, length, _ = edit.shape(node.inputs[0])
    size = int(str(edit.shape(split[0])[3]))
    before = _past_lengths(edit, _given(node, 5), batch, length) if past[0] else ""
    if attrs.get("do_rotary", 0):
        cos, sin = node.inputs[7:9]
        half = edit.shape(cos)[1]
        if not isinstance(half, int):
            return False
        where = _given(node, 9) or _positions(edit, before, batch, length)
        for i, count in enumerate((heads, kv_heads)):
            turned = edit.insert(
                "RotaryEmbedding",
                [edit.reshape(split[i], (batch, length, count * size)), cos, sin, where],
                stem=node.outputs[0],
                num_heads=count,
                interleaved=attrs.get("rotary_interleaved", 0),
                rotary_embedding_dim=0 if 2 * half == size else 2 * half,
            )
            split[i] = edit.reshape(turned, (batch, length, count, size))
    presents = [_output(node, 1), _output(node, 2)]
    room: Dim = length
    if past[0]:
        known = edit.graph.known(_given(node, 6))
        if known is None:
            return False
        room = dim_max(edit.shape(past[0])[2], known[0])
    node.outputs = node.outputs[:1]
    sides = [(split[0], "bshd")]
    for new, old, present in zip(split[1:], past, presents, strict=True):
        new = edit.insert(
            "Transpose",
            [new],
            stem=node.outputs[0],
            into="" if old else present,
            perm=[0, 2, 1, 3],
        )
        sides.append((_cache(edit, new, old, present, room, before) if old else new, "bhsd"))
    window = attrs.get("local_window_size", -1)
    scale = float(attrs.get("scale", 0.0) or size**-0.5)
    cap, sinks = float(attrs.get("softcap", 0.0)), _given(node, 11)
    if not sinks and attrs.get("smooth_softmax", 0) == 1:
        dtype = edit.type(node.inputs[0]).dtype.numpy
        sinks = edit.graph.add_constant("sinks", np.zeros(heads, dtype))
    plain = not cap and not sinks
    causal = plain and not before and window < 0
    bias = _given(node, 10)
    if bias:
        bias = _widened(edit, bias, room)
    if not causal:
        hidden = _hidden(edit, node, before, length, room, window)
        bias = edit.insert("Add", [hidden, bias], stem="bias") if bias else hidden
    if plain:
        _attend(edit, node, sides, bias, scale, causal)
    else:
        _write_out(edit, node, [name for name, _ in sides], bias, scale, cap, sinks)
    return True


def _split(edit: Editor, node: Node, heads: int, kv_heads: int) -> list[str] | None:
    """q, k and v as (batch, position, head, feature)."""
    q = node.inputs[0]
    batch, length, width = edit.shape(q)
    if not isinstance(width, int):
        return None
    names = [q, _given(node, 1), _given(node, 2)]
    counts = [heads, kv_heads, kv_heads]
    size = width // (heads if names[1] else heads + 2 * kv_heads)
    if not names[1]:
        first = 0
        for i, count in enumerate(counts):
            ends = [edit.sizes([x]) for x in (first * size, (first + count) * size, 2)]
            names[i] = edit.insert("Slice", [q, *ends], stem=node.outputs[0])
            first += count
    return [
        edit.reshape(name, (batch, length, count, size))
        for name, count in zip(names, counts, strict=True)
    ]


def _number(edit: Editor, dim: Dim) -> str:
    """A size as I32 (1,)."""
    return _int32(edit, edit.sizes([dim], "size"))


def _int32(edit: Editor, name: str) -> str:
    return edit.insert("Cast", [name], stem=name, to=DType.I32)


def _past_lengths(edit: Editor, lasts: str, batch: Dim, length: Dim) -> str:
    """I32 (batch, 1, 1, 1): how many positions every row has already.

    `lasts`: I32 (batch,), the last position of every row. A prompt may be shorter than the
    longest in its batch; its length then counts from below 0.
    """
    last = edit.reshape(lasts, (batch, 1, 1, 1))
    before = edit.insert("Sub", [last, _number(edit, length - 1)], stem="past_length")
    return edit.insert("Max", [before, _number(edit, 0)], stem="past_length")


def _places(edit: Editor, length: Dim, shape: Shape) -> str:
    """0, 1, 2, ... as I32, along the axis of `shape` that is not 1."""
    return edit.reshape(_int32(edit, edit.arange(length)), shape)


def _positions(edit: Editor, before: str, batch: Dim, length: Dim) -> str:
    """I64 (batch, length): the position of every new token."""
    places = edit.reshape(edit.arange(length), (1, length))
    if not before:
        return edit.insert("Expand", [places, edit.sizes([batch, length])])
    start = edit.insert("Cast", [edit.reshape(before, (batch, 1))], stem=before, to=DType.I64)
    return edit.insert("Add", [start, places], stem="positions")


def _cache(edit: Editor, new: str, old: str, present: str, total: Dim, before: str) -> str:
    """The past with new rows written into it, (batch, head, position, feature)."""
    batch, heads, length, size = edit.shape(new)
    past = edit.shape(old)[2]
    offset = edit.insert("Sub", [_places(edit, total, (1, 1, total, 1)), before], stem="offset")
    zero, most = _number(edit, 0), _number(edit, length - 1)
    inside = edit.insert(
        "And",
        [
            edit.insert("GreaterOrEqual", [offset, zero]),
            edit.insert("LessOrEqual", [offset, most]),
        ],
    )
    index = edit.insert("Max", [edit.insert("Min", [offset, most]), zero])
    index = edit.insert("Expand", [index, edit.sizes([batch, heads, total, size])])
    fresh = edit.insert("GatherElements", [new, index], stem=new, axis=2)
    return edit.insert(
        "Where", [inside, fresh, _padded(edit, old, total - past, 2)], stem=old, into=present
    )


def _padded(edit: Editor, name: str, more: Dim, axis: int) -> str:
    """With `more` zeros behind, along an axis."""
    if more == 0:
        return name
    rank = len(edit.shape(name))
    pads: list[Dim] = [0] * (2 * rank)
    pads[rank + axis] = more
    return edit.insert("Pad", [name, edit.sizes(pads)], stem=name)


def _widened(edit: Editor, bias: str, total: Dim) -> str:
    """A bias for the valid positions, for all that the cache has room for."""
    last = edit.shape(bias)[3]
    return bias if last == 1 else _padded(edit, bias, total - last, 3)


def _hidden(edit: Editor, node: Node, before: str, length: Dim, total: Dim, window: int) -> str:
    """What to add to the scores: -inf at later positions and those before the window, else 0."""
    dtype = edit.type(node.outputs[0]).dtype.numpy
    query = _places(edit, length, (1, 1, length, 1))
    if before:
        query = edit.insert("Add", [query, before], stem="position")
    key = _places(edit, total, (1, 1, 1, total))
    seen = edit.insert("LessOrEqual", [key, query])
    if window >= 0:
        first = edit.insert("Sub", [query, _number(edit, window)])
        seen = edit.insert("And", [seen, edit.insert("Greater", [key, first])])
    zero = edit.graph.add_constant("zero", np.array(0.0, dtype))
    low = edit.graph.add_constant("masked", np.array(-np.inf, dtype))
    return edit.insert("Where", [seen, zero, low], stem="mask")


def _write_out(
    edit: Editor,
    node: Node,
    sides: list[str],
    bias: str,
    scale: float,
    cap: float,
    sinks: str,
) -> None:
    """What the internal attention has no place for: cap * tanh(scores / cap), and a score per
    head that takes part in the softmax but has no value (`sinks`: (heads,) or "")."""
    q, k, v = sides
    batch, length, heads, size = edit.shape(q)
    _, groups, total, _ = edit.shape(k)
    rows = floordiv(heads * length, groups)
    dtype, stem = edit.type(q).dtype.numpy, node.outputs[0]

    def by(op: str, name: str, number: float) -> str:
        other = edit.graph.add_constant("factor", np.array(number, dtype))
        return edit.insert(op, [name, other], stem=stem)

    def turned(name: str, perm: list[int]) -> str:
        return edit.insert("Transpose", [name], stem=stem, perm=perm)

    # The heads that share keys are rows of one product.
    q = edit.reshape(turned(by("Mul", q, scale), [0, 2, 1, 3]), (batch, groups, rows, size))
    scores = edit.insert("MatMul", [q, turned(k, [0, 1, 3, 2])], stem=stem)
    if cap:
        scores = by("Mul", edit.insert("Tanh", [by("Div", scores, cap)], stem=stem), cap)
    whole = (batch, heads, length, total)
    scores = edit.insert("Add", [edit.reshape(scores, whole), bias], stem=stem)
    if sinks:
        column = edit.sizes([batch, heads, length, 1])
        extra = edit.insert("Expand", [edit.reshape(sinks, (1, heads, 1, 1)), column])
        scores = edit.insert("Concat", [scores, extra], stem=stem, axis=-1)
    weights = edit.insert("Softmax", [scores], stem=stem, axis=-1)
    if sinks:
        ends = [edit.sizes([x]) for x in (0, total, 3)]
        weights = edit.insert("Slice", [weights, *ends], stem=stem)
    weights = edit.reshape(weights, (batch, groups, rows, total))
    made = edit.insert("MatMul", [weights, v], stem=stem)
    made = turned(edit.reshape(made, (batch, heads, length, size)), [0, 2, 1, 3])
    out = edit.sizes([batch, length, heads * size])
    edit.become(node, "Reshape", [made, out], allowzero=1)
