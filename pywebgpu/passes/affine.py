"""Integer tensors that are an affine function of their coordinates: positions, and what is made
of them.

Exporters build masks and
indices out of ranges; seen this way they turn into slices, causal flags or constants.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..codegen.dims import Dim
from ..graph import DType, Node
from ..infer import symbolic
from ..infer.movement import slice_bound
from ..infer.registry import Site
from .edit import Affine, Editor

_LARGEST = 1 << 22  # elements of a constant that is looked at


def affine(edit: Editor, name: str) -> Affine | None:
    """How `name` follows from its coordinates, if that can be seen. Booleans are 0 and 1."""
    memo = edit.affine
    if name in memo:
        return memo[name]
    memo[name] = None  # while it is being looked at; graphs have no cycles
    type_ = edit.graph.types.get(name)
    if type_ is None or type_.dtype.is_float:
        return None
    found: Affine | None = None
    array = edit.constant(name)
    value = edit.graph.values.get(name)
    node = edit.producers.get(name)
    if array is not None:
        found = _of_array(array)
    elif value is not None and len(value) == 1:
        found = Affine(value[0], (0,) * len(type_.shape))
    elif node is not None and not node.domain and node.op in _RULES:
        found = _RULES[node.op](edit, node)
    if found is not None:
        steps = tuple(0 if d == 1 else s for d, s in zip(type_.shape, found.steps, strict=True))
        found = Affine(found.base, steps)
    memo[name] = found
    return found


def _of_array(array: np.ndarray) -> Affine | None:
    if array.size == 0 or array.size > _LARGEST:
        return None
    base = int(array.flat[0])
    steps = []
    expected = np.full((1,) * array.ndim, base, dtype=np.int64)
    for axis, size in enumerate(array.shape):
        at = [0] * array.ndim
        at[axis] = min(1, size - 1)
        step = int(array[tuple(at)]) - base
        steps.append(step)
        shape = [-1 if i == axis else 1 for i in range(array.ndim)]
        expected = expected + step * np.arange(size).reshape(shape)
    return Affine(base, tuple(steps)) if np.array_equal(expected, array) else None


def _range(edit: Editor, node: Node) -> Affine | None:
    start, step = (edit.graph.known(node.inputs[i]) for i in (0, 2))
    return None if start is None or step is None else Affine(start[0], (step[0],))


def _reshape(edit: Editor, node: Node) -> Affine | None:
    x = affine(edit, node.inputs[0])
    old, new = edit.shape(node.inputs[0]), edit.shape(node.outputs[0])
    if x is None:
        return None
    if x.uniform:
        return Affine(x.base, (0,) * len(new))
    if [d for d in old if d != 1] != [d for d in new if d != 1]:
        return None
    steps = iter(s for d, s in zip(old, x.steps, strict=True) if d != 1)
    return Affine(x.base, tuple(0 if d == 1 else next(steps) for d in new))


def _expand(edit: Editor, node: Node) -> Affine | None:
    x = affine(edit, node.inputs[0])
    rank = len(edit.shape(node.outputs[0]))
    return None if x is None else Affine(x.base, _aligned(x.steps, rank))


def _aligned(steps: Sequence[Dim], rank: int) -> tuple[Dim, ...]:
    return (*(0,) * (rank - len(steps)), *steps)


def _transpose(edit: Editor, node: Node) -> Affine | None:
    x = affine(edit, node.inputs[0])
    if x is None:
        return None
    perm = node.attrs.get("perm") or list(range(len(x.steps)))[::-1]
    return Affine(x.base, tuple(x.steps[p] for p in perm))


def _slice(edit: Editor, node: Node) -> Affine | None:
    x = affine(edit, node.inputs[0])
    if x is None:
        return None
    site, rank = Site(edit.graph, node), len(x.steps)
    starts = site.value(1)
    steps = site.value(4) if site.has(4) else None
    axes = site.value(3) if site.has(3) else None
    if starts is None or (site.has(3) and axes is None) or (site.has(4) and steps is None):
        return None
    base, out = x.base, list(x.steps)
    for i, start in enumerate(starts):
        axis = int(str(axes[i])) % rank if axes is not None else i
        step = steps[i] if steps is not None else 1
        if not isinstance(step, int) or step < 1:
            return None
        first = slice_bound(site, edit.shape(node.inputs[0])[axis], start)
        base, out[axis] = base + x.steps[axis] * first, x.steps[axis] * step
    return Affine(base, tuple(out))


def _cast(edit: Editor, node: Node) -> Affine | None:
    x = affine(edit, node.inputs[0])
    if x is None:
        return None
    if edit.type(node.outputs[0]).dtype is DType.BOOL:
        truth = symbolic.equal(x.base, 0) if x.uniform else None
        return None if truth is None else Affine(int(not truth), x.steps)
    return x


def _sum(sign: int) -> Callable[[Editor, Node], Affine | None]:
    def rule(edit: Editor, node: Node) -> Affine | None:
        return _combined(edit, node, sign)

    return rule


def _combined(edit: Editor, node: Node, sign: int) -> Affine | None:
    """a + sign * b, broadcast."""
    a, b = (affine(edit, name) for name in node.inputs)
    if a is None or b is None:
        return None
    rank = len(edit.shape(node.outputs[0]))
    steps = zip(_aligned(a.steps, rank), _aligned(b.steps, rank), strict=True)
    return Affine(a.base + b.base * sign, tuple(x + y * sign for x, y in steps))


def _product(edit: Editor, node: Node) -> Affine | None:
    a, b = (affine(edit, name) for name in node.inputs)
    if a is None or b is None or not (a.uniform or b.uniform):
        return None
    rank = len(edit.shape(node.outputs[0]))
    factor, other = (a, b) if a.uniform else (b, a)
    steps = tuple(s * factor.base for s in _aligned(other.steps, rank))
    return Affine(other.base * factor.base, steps)


def _concat(edit: Editor, node: Node) -> Affine | None:
    """Pieces that continue one another."""
    rank = len(edit.shape(node.outputs[0]))
    axis = node.attrs["axis"] % rank
    pieces = [(affine(edit, name), edit.shape(name)[axis]) for name in node.inputs]
    long = [p for p, size in pieces if size != 1]
    if any(p is None for p, _ in pieces):
        return None
    known = [(p, size) for p, size in pieces if p is not None]
    if long and long[0] is not None:
        step = long[0].steps[axis]
    elif len(known) > 1:
        step = known[1][0].base - known[0][0].base
    else:
        step = 0
    first = known[0][0]
    at: Dim = 0
    for piece, size in known:
        pairs = enumerate(zip(piece.steps, first.steps, strict=True))
        if any(s != t for i, (s, t) in pairs if i != axis):
            return None
        if piece.base != first.base + step * at:
            return None
        if size != 1 and piece.steps[axis] != step:
            return None
        at = at + size
    return Affine(first.base, tuple(step if i == axis else s for i, s in enumerate(first.steps)))


def _cumsum(edit: Editor, node: Node) -> Affine | None:
    x = affine(edit, node.inputs[0])
    if x is None or not x.uniform:
        return None
    if x.base == 0:
        return x
    axis = edit.graph.known(node.inputs[1])
    if axis is None or node.attrs.get("reverse", 0):
        return None
    first = 0 if node.attrs.get("exclusive", 0) else x.base
    at = int(str(axis[0])) % len(x.steps)
    return Affine(first, tuple(x.base if i == at else 0 for i in range(len(x.steps))))


def _picked(edit: Editor, node: Node) -> Affine | None:
    """Gathering from one value everywhere, or positions from a range."""
    x = affine(edit, node.inputs[0])
    if x is None:
        return None
    rank = len(edit.shape(node.outputs[0]))
    if x.uniform:
        return Affine(x.base, (0,) * rank)
    index = affine(edit, node.inputs[1])
    if node.op != "Gather" or len(x.steps) != 1 or index is None:
        return None
    if not all(symbolic.at_least(d, 0) for d in (index.base, *index.steps)):
        return None
    return Affine(x.base + x.steps[0] * index.base, tuple(x.steps[0] * s for s in index.steps))


def _compared(edit: Editor, node: Node) -> Affine | None:
    """A comparison that comes out alike everywhere."""
    gap = _combined(edit, node, -1)
    if gap is None or not gap.uniform:
        return None
    d = gap.base
    truth = {
        "Equal": symbolic.equal(d, 0),
        "Less": symbolic.less(d, 0),
        "Greater": symbolic.less(0, d),
        "LessOrEqual": _not(symbolic.less(0, d)),
        "GreaterOrEqual": _not(symbolic.less(d, 0)),
    }[node.op]
    return None if truth is None else Affine(int(truth), gap.steps)


def _not(truth: bool | None) -> bool | None:
    return None if truth is None else not truth


def _logic(edit: Editor, node: Node) -> Affine | None:
    rank = len(edit.shape(node.outputs[0]))
    values = []
    for name in node.inputs:
        x = affine(edit, name)
        values.append(x.base if x is not None and x.uniform else None)
    flat: Dim | None = None
    if node.op == "Not":
        flat = None if not isinstance(values[0], int) else int(not values[0])
    elif node.op == "And":
        flat = 0 if 0 in values else 1 if values == [1, 1] else None
    elif node.op == "Or":
        flat = 1 if 1 in values else 0 if values == [0, 0] else None
    return None if flat is None else Affine(flat, (0,) * rank)


def _same(edit: Editor, node: Node) -> Affine | None:
    return affine(edit, node.inputs[0])


def _filled(edit: Editor, node: Node) -> Affine | None:
    fill = node.attrs.get("value")
    value = 0 if fill is None else int(fill.ravel()[0])
    return Affine(value, (0,) * len(edit.shape(node.outputs[0])))


_RULES: dict[str, Callable[[Editor, Node], Affine | None]] = {
    "Range": _range,
    "Reshape": _reshape,
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
    "Flatten": _reshape,
    "Expand": _expand,
    "Transpose": _transpose,
    "Slice": _slice,
    "Cast": _cast,
    "Add": _sum(1),
    "Sub": _sum(-1),
    "Mul": _product,
    "Concat": _concat,
    "CumSum": _cumsum,
    "Gather": _picked,
    "GatherND": _picked,
    "GatherElements": _picked,
    "ConstantOfShape": _filled,
    "Identity": _same,
    "Not": _logic,
    "And": _logic,
    "Or": _logic,
    **dict.fromkeys(("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"), _compared),
}
