"""Attention as exporters spell it, recognised and made one internal operator.

    MatMul(q * a, k^T * b) [* c] [+ bias] [Where(mask, ., -inf)] -> Softmax -> [Where(IsNaN, 0)]
    -> MatMul(., v) [-> Transpose]

q, k and v are followed back through transposes, factors and the repetition of key heads
(Unsqueeze, Expand, Reshape), so that they are read as they lie; a Transpose behind is absorbed.
See `internal_ops` for what comes out.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..graph import INTERNAL, DType, Graph, Node, Shape
from . import internal_ops
from .edit import Editor
from .masks import split_causal
from .uniform import uniform

_VERY_LOW = -1e9
"""Masking constants at or below are as good as -inf next to any score."""


def fuse_attention(graph: Graph) -> bool:
    edit = Editor(graph)
    for node in edit.sweep():
        if node.domain:
            continue
        if node.op == "MatMul":
            _from_products(edit, node)
        elif node.op == "Attention":
            _from_operator(edit, node)
    _absorb_transposes(edit)
    return edit.finish()


@dataclass(slots=True)
class _Side:
    """q, k or v as it lies: the value, its axes as a word, and the factor taken out."""

    name: str
    axes: str
    scale: float = 1.0


@dataclass(slots=True)
class _Scores:
    """What the softmax is taken of."""

    product: Node
    scale: float
    terms: list[tuple[str, float]] = field(default_factory=list)
    """Values added to the scores, each with a factor."""
    masks: list[tuple[str, bool, float]] = field(default_factory=list)
    """Conditions: keep where they are the given truth value, else the number."""


def _from_products(edit: Editor, node: Node) -> bool:
    """The last MatMul of an attention."""
    weights, value = node.inputs
    zero_rows = False
    where = edit.producer(weights, "Where")
    if where is not None:
        test = edit.producer(where.inputs[0], "IsNaN")
        if test is None or test.inputs[0] != where.inputs[2]:
            return False
        if not edit.is_scalar(where.inputs[1], 0.0):
            return False
        zero_rows, weights = True, where.inputs[2]
    softmax = edit.producer(weights, "Softmax")
    if softmax is None:
        return False
    rank = len(edit.shape(weights))
    if rank not in (3, 4) or softmax.attrs.get("axis", -1) not in (-1, rank - 1):
        return False
    if edit.uses(weights) != (2 if zero_rows else 1) or weights in edit.outputs:
        return False
    scores = _scores(edit, softmax.inputs[0], rank)
    if scores is None:
        return False
    product = scores.product
    letters = "bhsd" if rank == 4 else "bsd"
    q = _peel(edit, product.inputs[0], letters)
    k = _peel(edit, product.inputs[1], "bhds" if rank == 4 else "bds")
    v = _peel(edit, value, letters)
    if v.scale != 1.0:
        v = _Side(value, letters)
    if not _fits(edit, q, k, v):
        return False
    bias = _bias(edit, scores, rank)
    scale = scores.scale * q.scale * k.scale
    out_axes = letters
    causal, bias = split_causal(edit, bias, *edit.shape(product.outputs[0])[-2:])
    if bias and (bias not in edit.producers) and uniform(edit, bias) == 0.0:
        bias = ""
    if rank == 3:
        _become_single_head(edit, node, q, k, v, bias, scale, causal, zero_rows)
        return True
    _become(edit, node, (q, k, v), bias, out_axes, scale, causal, zero_rows)
    return True


def _become(
    edit: Editor,
    node: Node,
    sides: tuple[_Side, _Side, _Side],
    bias: str,
    out_axes: str,
    scale: float,
    causal: bool,
    zero_rows: bool,
) -> None:
    q, k, v = sides
    edit.become(
        node,
        "Attention",
        [q.name, k.name, v.name, *([bias] if bias else [])],
        domain=INTERNAL,
        q_axes=q.axes,
        k_axes=k.axes,
        v_axes=v.axes,
        out_axes=out_axes,
        scale=float(scale),
        causal=causal,
        zero_masked_rows=zero_rows,
    )


def _become_single_head(
    edit: Editor,
    node: Node,
    q: _Side,
    k: _Side,
    v: _Side,
    bias: str,
    scale: float,
    causal: bool,
    zero_rows: bool,
) -> None:
    """Rank 3: batch (perhaps times heads) of single heads, between reshapes."""
    sides = []
    for side in (q, k, v):
        at = side.axes.index("b") + 1
        shape = edit.shape(side.name)
        name = edit.reshape(side.name, (*shape[:at], 1, *shape[at:]))
        sides.append(_Side(name, f"{side.axes[:at]}h{side.axes[at:]}"))
    if bias:
        shape = edit.shape(bias)
        if len(shape) == 3:
            bias = edit.reshape(bias, (shape[0], 1, *shape[1:]))
    out = edit.shape(node.outputs[0])
    inner = edit.insert(
        "Attention",
        [*(s.name for s in sides), *([bias] if bias else [])],
        domain=INTERNAL,
        stem=node.outputs[0],
        q_axes=sides[0].axes,
        k_axes=sides[1].axes,
        v_axes=sides[2].axes,
        out_axes="bhsd",
        scale=float(scale),
        causal=causal,
        zero_masked_rows=zero_rows,
    )
    edit.become(node, "Reshape", [inner, edit.sizes(out)], allowzero=1)


def _scores(edit: Editor, name: str, rank: int) -> _Scores | None:
    """Follow the scores back to the product of q and k."""
    scale = 1.0
    terms: list[tuple[str, float]] = []
    masks: list[tuple[str, bool, float]] = []
    for _ in range(8):
        if edit.uses(name) != 1 or len(edit.shape(name)) != rank:
            return None
        node = edit.producer(name)
        if node is None:
            return None
        if node.op == "MatMul":
            if len(edit.shape(node.inputs[0])) != rank or len(edit.shape(node.inputs[1])) != rank:
                return None
            return _Scores(node, scale, terms, masks)
        if node.op in ("Mul", "Div"):
            found = edit.split_scalar(node) if node.op == "Mul" else _divided(edit, node)
            if found is None:
                return None
            name, scale = found[0], scale * found[1]
        elif node.op == "Add":
            inner = next((i for i in node.inputs if _leads_to_product(edit, i)), None)
            if inner is None:
                return None
            other = node.inputs[1] if node.inputs[0] == inner else node.inputs[0]
            terms.append((other, scale))
            name = inner
        elif node.op == "Where":
            step = _masked(edit, node)
            if step is None or terms or scale != 1.0:
                # A mask under a bias or a factor is not a term of its own.
                return None
            name, keep, low = step
            masks.append((node.inputs[0], keep, low))
        else:
            return None
    return None


def _divided(edit: Editor, node: Node) -> tuple[str, float] | None:
    number = edit.scalar(node.inputs[1])
    return None if not number else (node.inputs[0], 1.0 / number)


def _masked(edit: Editor, node: Node) -> tuple[str, bool, float] | None:
    """Where(condition, scores, low) or Where(condition, low, scores)."""
    for scores, other, keep in (
        (node.inputs[1], node.inputs[2], True),
        (node.inputs[2], node.inputs[1], False),
    ):
        low = uniform(edit, other)
        if low is not None and low <= _VERY_LOW:
            return scores, keep, low
    return None


def _leads_to_product(edit: Editor, name: str) -> bool:
    for _ in range(8):
        node = edit.producer(name, "MatMul", "Mul", "Div", "Add", "Where")
        if node is None or edit.uses(name) != 1:
            return False
        if node.op == "MatMul":
            # A product of data, not a projection that happens to be added.
            return node.inputs[1] not in edit.graph.constants
        if node.op == "Mul":
            found = edit.split_scalar(node)
            if found is None:
                return False
            name = found[0]
        elif node.op == "Div":
            name = node.inputs[0]
        elif node.op == "Add":
            return any(_leads_to_product(edit, i) for i in node.inputs)
        else:
            step = _masked(edit, node)
            if step is None:
                return False
            name = step[0]
    return False


def _peel(edit: Editor, name: str, letters: str) -> _Side:
    """Follow a value back through transposes and factors. `letters`: what its axes are."""
    axes, scale = letters, 1.0
    for _ in range(8):
        node = edit.producer(name)
        if node is None:
            break
        if node.op in ("Mul", "Div"):
            found = edit.split_scalar(node) if node.op == "Mul" else _divided(edit, node)
            if found is None or edit.shape(found[0]) != edit.shape(name):
                break
            name, scale = found[0], scale * found[1]
        elif node.op == "Transpose":
            perm = node.attrs.get("perm") or list(range(len(axes)))[::-1]
            before = [""] * len(axes)
            for letter, p in zip(axes, perm, strict=True):
                before[p] = letter
            name, axes = node.inputs[0], "".join(before)
        elif node.op == "Reshape" and axes.startswith("bh"):
            repeated = _repeated_heads(edit, node)
            if repeated is None:
                break
            name = repeated
        else:
            break
    return _Side(name, axes, scale)


def _repeated_heads(edit: Editor, node: Node) -> str | None:
    """The value whose heads (axis 1) Reshape(Expand(Reshape(x))) repeats, each in a row."""
    expand = edit.producer(node.inputs[0], "Expand")
    first = edit.producer(expand.inputs[0], "Reshape") if expand is not None else None
    if expand is None or first is None:
        return None
    x = edit.shape(first.inputs[0])
    apart = edit.shape(first.outputs[0])
    wide = edit.shape(expand.outputs[0])
    out = edit.shape(node.outputs[0])
    if not len(x) == len(out) == 4 or len(apart) != 5 or len(wide) != 5:
        return None
    if apart != (*x[:2], 1, *x[2:]) or (*wide[:2], 1, *wide[3:]) != apart:
        return None
    return first.inputs[0] if out == (x[0], wide[1] * wide[2], *x[2:]) else None


def _fits(edit: Editor, q: _Side, k: _Side, v: _Side) -> bool:
    """Whether the sizes are those of one attention."""
    sizes = [internal_ops.axes_sizes(edit.type(side.name), side.axes) for side in (q, k, v)]
    a, b, c = sizes
    heads = [s.get("h", 1) for s in sizes]
    if not all(isinstance(h, int) and h > 0 for h in heads):
        return False
    if heads[1] != heads[2] or int(str(heads[0])) % int(str(heads[1])):
        return False
    if not isinstance(a["d"], int) or not isinstance(c["d"], int):
        return False
    if any(not edit.type(s.name).dtype.is_float for s in (q, k, v)):
        return False
    return a["b"] == b["b"] == c["b"] and a["d"] == b["d"] and b["s"] == c["s"]


def _bias(edit: Editor, scores: _Scores, rank: int) -> str:
    """All that is added to the scores, as one value; "" for none."""
    total = ""
    product = scores.product.outputs[0]
    dtype = edit.type(product).dtype
    for name, factor in reversed(scores.terms):
        if uniform(edit, name) == 0.0:
            continue
        if factor != 1.0:
            number = edit.graph.add_constant("factor", np.array(factor, dtype=dtype.numpy))
            name = edit.insert("Mul", [name, number], stem=name)
        total = edit.insert("Add", [total, name], stem="bias") if total else name
    for condition, keep, low in reversed(scores.masks):
        zero = edit.graph.add_constant("zero", np.array(0.0, dtype=dtype.numpy))
        minus = edit.graph.add_constant("masked", np.array(low, dtype=dtype.numpy))
        pair = [zero, minus] if keep else [minus, zero]
        if uniform(edit, condition) == float(keep):
            continue
        mask = edit.insert("Where", [condition, *pair], stem="mask")
        total = edit.insert("Add", [total, mask], stem="bias") if total else mask
    return total


def _from_operator(edit: Editor, node: Node) -> bool:
    """ONNX's own Attention, where it has no past, no present and nothing odd."""
    if len(node.outputs) > 1 or node.attrs.get("softcap", 0.0):
        return False
    if any(node.attrs.get(f"{side}_window_size", -1) != -1 for side in ("left", "right")):
        return False
    if any(node.inputs[4:]) or node.attrs.get("qk_matmul_output_mode", 0):
        return False
    q, k, v = (_operator_side(edit, node, i) for i in range(3))
    if not _fits(edit, q, k, v):
        return False
    sizes = internal_ops.axes_sizes(edit.type(q.name), q.axes)
    scale = node.attrs.get("scale", 0.0) or float(np.sqrt(1.0 / float(str(sizes["d"]))))
    causal = bool(node.attrs.get("is_causal", 0))
    kv = internal_ops.axes_sizes(edit.type(k.name), k.axes)
    if causal and kv["s"] != sizes["s"]:
        return False  # ONNX counts from the first position, the internal operator from the last
    bias = node.inputs[3] if len(node.inputs) > 3 else ""
    if bias:
        bias = _operator_mask(edit, bias, edit.type(q.name).dtype)
    out = edit.shape(node.outputs[0])
    if len(out) == 4:
        _become(edit, node, (q, k, v), bias, "bhsd", scale, causal, True)
        return True
    inner = edit.insert(
        "Attention",
        [q.name, k.name, v.name, *([bias] if bias else [])],
        domain=INTERNAL,
        stem=node.outputs[0],
        q_axes=q.axes,
        k_axes=k.axes,
        v_axes=v.axes,
        out_axes="bshd",
        scale=float(scale),
        causal=causal,
        # ONNX's operator gives 0 where every key is masked.
        zero_masked_rows=True,
    )
    edit.become(node, "Reshape", [inner, edit.sizes(out)], allowzero=1)
    return True


def _operator_side(edit: Editor, node: Node, index: int) -> _Side:
    name = node.inputs[index]
    shape = edit.shape(name)
    if len(shape) == 4:
        return _peel_plain(edit, name)
    heads = node.attrs["q_num_heads" if index == 0 else "kv_num_heads"]
    split: Shape = (*shape[:2], heads, shape[2] // heads)
    return _Side(edit.reshape(name, split), "bshd")


def _peel_plain(edit: Editor, name: str) -> _Side:
    """Through transposes only: the operator scales by itself."""
    node = edit.producer(name, "Transpose")
    if node is None:
        return _Side(name, "bhsd")
    perm = node.attrs.get("perm") or [3, 2, 1, 0]
    axes = "".join("bhsd"[perm.index(i)] for i in range(4))
    return _Side(node.inputs[0], axes)


def _operator_mask(edit: Editor, name: str, dtype: DType) -> str:
    """A boolean mask says what to keep; any other is added."""
    type_ = edit.type(name)
    if type_.dtype.is_float:
        return name
    zero = edit.graph.add_constant("zero", np.array(0.0, dtype=dtype.numpy))
    minus = edit.graph.add_constant("masked", np.array(-np.inf, dtype=dtype.numpy))
    return edit.insert("Where", [name, zero, minus], stem="mask")


def _absorb_transposes(edit: Editor) -> None:
    """A Transpose that alone reads an attention's result is the attention's own output order."""
    graph = edit.graph
    graph.nodes = edit._done
    readers = graph.consumers()
    removed: set[int] = set()
    for node in graph.nodes:
        if node.op != "Attention" or node.domain != INTERNAL:
            continue
        out = node.outputs[0]
        users = readers.get(out, [])
        if len(users) != 1 or out in edit.outputs or users[0].op != "Transpose":
            continue
        perm = users[0].attrs.get("perm") or [3, 2, 1, 0]
        node.attrs["out_axes"] = "".join(node.attrs["out_axes"][p] for p in perm)
        node.outputs = users[0].outputs
        removed.add(id(users[0]))
        edit.changed = True
    edit._done = [n for n in graph.nodes if id(n) not in removed]
