"""Fewer, longer axes: a target-free simplification of `Map`, `Reduce` and `Row` specs.

Axes of size 1 go, and neighbours p, q of one group become one axis where every load and the store
advance by p as by a whole run of q. An elementwise kernel over a contiguous tensor of any rank
thus becomes one loop, and a bias over channels two.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from . import scalar as sc
from .dims import Call, Dim, Expr, floordiv, mod, symbol
from .scalar import Op, Scalar
from .spec import Map, Reduce, Row

Spec = TypeVar("Spec", Map, Reduce, Row)


def coalesce(spec: Spec) -> Spec:
    """An equal spec with as few axes as possible. The store order is kept."""
    groups: list[list[Dim]]
    if isinstance(spec, Map):
        groups, roots = [list(spec.shape)], [spec.value]
        if spec.beside is not None:
            roots.append(spec.beside.value)
    elif isinstance(spec, Reduce):
        groups, roots = [list(spec.shape), list(spec.reduce)], [spec.value, spec.final]
    else:
        groups, roots = [list(spec.shape), list(spec.row)], [spec.value, spec.final]
    sizes = [size for group in groups for size in group]
    starts_group = {0, len(groups[0])}
    uses = _Uses(roots, spec.index)

    # axis number -> the axis that it becomes part of; None: always 0
    target: list[int | None] = [None if size == 1 else i for i, size in enumerate(sizes)]
    q: int | None = None
    for p in range(len(sizes) - 1, -1, -1):
        if target[p] is not None:
            if q is not None and uses.run_together(p, q, sizes[q]):
                # p counts whole runs of q: q's axis takes all of it, and p reads as 0.
                sizes[q] = sizes[p] * sizes[q]
                target[p] = None
            else:
                q = p
        if p in starts_group:
            q = None

    kept = [i for i, t in enumerate(target) if t is not None]
    number = {old: new for new, old in enumerate(kept)}

    def leaf(node: Scalar) -> Scalar | None:
        if node.op is not Op.AXIS:
            return None
        new = number.get(int(node.value or 0))
        return sc.const(0) if new is None else sc.axis(new)

    first = tuple(sizes[i] for i in kept if i < len(groups[0]))
    second = tuple(sizes[i] for i in kept if i >= len(groups[0]))
    index, value = sc.transform(spec.index, leaf), sc.transform(spec.value, leaf)
    if isinstance(spec, Map):
        beside = spec.beside
        if beside is not None:
            beside = replace(beside, value=sc.transform(beside.value, leaf))
        return replace(spec, shape=first, value=value, index=index, beside=beside)
    final = sc.transform(spec.final, leaf)
    if isinstance(spec, Reduce):
        return replace(spec, shape=first, reduce=second, value=value, final=final, index=index)
    return replace(spec, shape=first, row=second, value=value, final=final, index=index)


class _Uses:
    """How the axes occur: as sums of strides in element indexes, or in some other way."""

    def __init__(self, roots: list[Scalar], store: Scalar) -> None:
        self.indexes: list[dict[int, Dim]] = []
        self.elsewhere: set[int] = set()
        self._seen: set[Scalar] = set()
        for root in roots:
            self._visit(root)
        self._index(store)

    def run_together(self, p: int, q: int, size: Dim) -> bool:
        """Is a step along p the same as `size` steps along q, everywhere?"""
        if p in self.elsewhere or q in self.elsewhere:
            return False
        return all(strides.get(p, 0) == strides.get(q, 0) * size for strides in self.indexes)

    def _visit(self, node: Scalar) -> None:
        if node in self._seen:
            return
        self._seen.add(node)
        if node.op is Op.AXIS:
            self.elsewhere.add(int(node.value or 0))
        elif node.op is Op.LOAD:
            self._index(node.args[0])
        else:
            for a in node.args:
                self._visit(a)

    def _index(self, index: Scalar) -> None:
        strides: dict[int, Dim] = {}
        self._addends(index, 1, strides)
        self.indexes.append(strides)

    def _addends(self, node: Scalar, factor: Dim, strides: dict[int, Dim]) -> None:
        if node.op is Op.AXIS:
            axis = int(node.value or 0)
            strides[axis] = strides.get(axis, 0) + factor
        elif node.op in (Op.ADD, Op.SUB):
            self._addends(node.args[0], factor, strides)
            sign = 1 if node.op is Op.ADD else -1
            self._addends(node.args[1], factor * sign, strides)
        elif node.op is Op.MUL:
            for varying, constant in (node.args, node.args[::-1]):
                scale = as_dim(constant)
                if scale is not None:
                    self._addends(varying, factor * scale, strides)
                    return
            self._visit(node)
        else:
            self._visit(node)


def as_dim(node: Scalar) -> Dim | None:
    """The inverse of `scalar.dim`: None when axes, loads or other operators are in `node`."""
    if node.op is Op.CONST:
        return int(node.value or 0)
    if node.op is Op.ARG:
        return symbol(f"a{node.value}")
    if node.op not in (Op.ADD, Op.SUB, Op.MUL, Op.UDIV, Op.UMOD, Op.MIN, Op.MAX):
        return None
    a, b = (as_dim(x) for x in node.args)
    if a is None or b is None:
        return None
    if node.op is Op.ADD:
        return a + b
    if node.op is Op.SUB:
        return a - b
    if node.op is Op.MUL:
        return a * b
    if node.op is Op.UDIV:
        return floordiv(a, b)
    if node.op is Op.UMOD:
        return mod(a, b)
    name = "min" if node.op is Op.MIN else "max"
    return Expr((((Call(name, (a, b)),), 1),))
