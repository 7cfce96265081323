"""Arithmetic on small tensors whose elements are sizes, as exporters emit it around shapes.

Tensors are object arrays of `Dim`. A function returns None where an element can not be known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..codegen.dims import Dim, Expr, floordiv, mod
from ..graph import DType
from . import symbolic
from .registry import Site

Objects = np.ndarray[Any, Any]

LIMIT = 256  # elements of a tensor that is followed symbolically


def objects(values: Sequence[Dim], shape: Sequence[Dim]) -> Objects | None:
    """Dims as an array; None when the shape is not static."""
    static = [d for d in shape if isinstance(d, int)]
    if len(static) != len(shape):
        return None
    array = np.empty(len(values), dtype=object)
    array[:] = list(values)
    return array.reshape(static)


def elements(site: Site, index: int) -> Objects | None:
    """The elements of an input, if all are constants or sizes and there are few."""
    if not site.has(index):
        return None
    value = site.value(index)
    if value is None:
        array = site.array(index)
        if array is None or array.size > LIMIT or array.dtype.kind != "f":
            return None
        if not np.all(np.isfinite(array)) or np.any(array != np.trunc(array)):
            return None
        value = tuple(int(x) for x in array.ravel())
    return objects(value, site.shape(index)) if len(value) <= LIMIT else None


def any_symbolic(site: Site) -> bool:
    """Whether an input holds sizes: otherwise constant folding has dealt with the node."""
    return any(name in site.graph.values for name in site.node.inputs)


def know(site: Site, array: Objects | None, output: int = 0) -> None:
    """Record an output's elements, unless one is not known."""
    if array is None or array.size > LIMIT:
        return
    flat = list(array.ravel())
    if all(isinstance(x, (int, Expr)) for x in flat):
        site.know([int(x) if isinstance(x, (bool, int)) else x for x in flat], output)


def pointwise(site: Site, function: Callable[..., Dim | None]) -> None:
    """Apply `function` to the elements of all inputs, broadcast."""
    if not any_symbolic(site):
        return
    arrays = [elements(site, i) for i in range(len(site.node.inputs))]
    known = [a for a in arrays if a is not None]
    if len(known) != len(arrays):
        return
    try:
        broadcast = np.broadcast_arrays(*known)
    except ValueError:
        return
    if broadcast[0].size > LIMIT:
        return
    out = np.empty(broadcast[0].shape, dtype=object)
    flat = [b.ravel() for b in broadcast]
    out_flat = out.ravel()
    for i, args in enumerate(zip(*flat, strict=True)):
        out_flat[i] = function(*args)
    know(site, out_flat.reshape(out.shape))


def divide(site: Site) -> Callable[[Dim, Dim], Dim | None]:
    """Integer division truncates, which is floor division when nothing is negative; a float
    quotient is known only when it is whole."""
    whole = not site.input(0).dtype.is_float

    def divide_one(a: Dim, b: Dim) -> Dim | None:
        if b == 0:
            return None
        if not whole:
            return floordiv(a, b) if mod(a, b) == 0 else None
        if symbolic.at_least(a, 0) and symbolic.at_least(b, 0):
            return floordiv(a, b)
        return None

    return divide_one


def modulo(a: Dim, b: Dim) -> Dim | None:
    if b == 0:
        return None
    return mod(a, b) if symbolic.at_least(a, 0) and symbolic.at_least(b, 0) else None


def power(a: Dim, b: Dim) -> Dim | None:
    if not isinstance(b, int) or not 0 <= b <= 4:
        return None
    out: Dim = 1
    for _ in range(b):
        out = out * a
    return out


def flag(decided: bool | None) -> Dim | None:
    return None if decided is None else int(decided)


def negate(decided: bool | None) -> bool | None:
    return None if decided is None else not decided


def both(a: Dim, b: Dim) -> Dim | None:
    return int(bool(a) and bool(b)) if isinstance(a, int) and isinstance(b, int) else None


def either(a: Dim, b: Dim) -> Dim | None:
    return int(bool(a) or bool(b)) if isinstance(a, int) and isinstance(b, int) else None


def choose(condition: Dim, yes: Dim, no: Dim) -> Dim | None:
    if yes == no:
        return yes
    return (yes if condition else no) if isinstance(condition, int) else None


def absolute(a: Dim) -> Dim | None:
    if symbolic.at_least(a, 0):
        return a
    return -a if symbolic.at_least(-a, 0) else None


def cast(site: Site, to: DType) -> None:
    """Casts keep whole numbers; to bool only what is decided."""

    def cast_one(a: Dim) -> Dim | None:
        if to is not DType.BOOL:
            return a
        return flag(negate(symbolic.equal(a, 0)))

    if to.ml_dtype is None and to is not DType.F16:  # these round, or wrap soon
        pointwise(site, cast_one)
