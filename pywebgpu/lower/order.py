"""In which order axes lie in memory, or should."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cmp_to_key

from ..codegen import scalar as sc
from ..codegen.dims import Dim
from ..codegen.scalar import Op, Scalar
from .index import Linear, Space, is_nonnegative


def larger(a: Dim, b: Dim) -> int:
    """Comparison for sorting: -1 when `a` is provably the larger, 0 when it cannot be told."""
    if a == b:
        return 0
    if is_nonnegative(a - b):
        return -1
    return 1 if is_nonnegative(b - a) else 0


def by_stride(form: Linear, axes: Sequence[int]) -> list[int]:
    """`axes` with the slowest first, as far as that can be told."""

    def compare(i: int, j: int) -> int:
        return larger(form.coefficient(i), form.coefficient(j))

    return sorted(axes, key=cmp_to_key(compare))


def period(space: Space, atom: Scalar) -> Dim:
    """How many steps of the axis one step of this atom spans."""
    if atom.op is Op.UDIV:
        divisor = space.linear(atom.args[1])
        for part in space.linear(atom.args[0]).terms:
            return period(space, part) * divisor.constant
    if atom.op is Op.UMOD:
        for part in space.linear(atom.args[0]).terms:
            return period(space, part)
    return 1


def preferred_order(space: Space, expr: Scalar, rank: int | None = None) -> tuple[int, ...]:
    """The space's first `rank` axes in the order in which the widest load walks memory."""
    axes = list(range(len(space.extents) if rank is None else rank))
    best: list[tuple[int, Dim]] = []
    for node in sc.walk([expr]):
        if node.op is not Op.LOAD:
            continue
        form = space.linear(node.args[0])
        found = [(i, s) for i in axes if (s := _stride(form, i)) != 0]
        if len(found) > len(best):
            best = found
    # Broadcast axes keep their places.
    places = [i for i, _ in best]
    strides = dict(best)

    def compare(i: int, j: int) -> int:
        return larger(strides[i], strides[j])

    moved = sorted(places, key=cmp_to_key(compare))
    result = list(axes)
    for place, axis in zip(places, moved, strict=True):
        result[place] = axis
    return tuple(result)


def _stride(form: Linear, axis: int) -> Dim:
    """The largest factor of any atom that the axis is in."""
    best: Dim = 0
    for atom, c in form.terms.items():
        inside = any(n.op is Op.AXIS and n.value == axis for n in sc.walk([atom]))
        if inside and (best == 0 or larger(c, best) < 0):
            best = c
    return best
