"""Intervals that integers lie in: their arithmetic, in Python's own integers, which do not
overflow."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..graph import DType

LOW, HIGH = -(1 << 31), (1 << 31) - 1
"""The ends of 32 bits."""
INF = math.inf


@dataclass(frozen=True, slots=True)
class Interval:
    """`low` and `high` are ints, or floats that may be infinite. `sources`: what could be narrowed
    to narrow it (names of inputs, and of the results of Casts; `size ` and a symbol)."""

    low: float
    high: float
    sources: frozenset[str] = frozenset()

    def of(self, *values: float) -> Interval:
        """Around these numbers, from the same sources."""
        found = [0 if math.isnan(v) else v for v in values]
        return Interval(min(found), max(found), self.sources)

    def hull(self, *others: Interval) -> Interval:
        every = (self, *others)
        return Interval(
            min(o.low for o in every),
            max(o.high for o in every),
            self.sources.union(*(o.sources for o in others)),
        )

    def from_zero(self) -> Interval:
        """From 0 to here, at least to 1."""
        return self.of(0, max(self.high, 1))

    @property
    def size(self) -> float:
        return max(abs(self.low), abs(self.high))

    def fits(self, low: float = LOW, high: float = HIGH) -> bool:
        return low <= self.low and self.high <= high


ANY = Interval(-INF, INF)


def all_of(dtype: DType, sources: frozenset[str] = frozenset()) -> Interval:
    """Every number of an integer type, as far as kernels hold them."""
    if dtype is DType.BOOL:
        return Interval(0, 1, sources)
    low, high = dtype.limits
    most = high if dtype is DType.U32 else min(high, HIGH)
    return Interval(max(low, LOW), most, sources)


def of_elements(array: np.ndarray[Any, Any]) -> Interval:
    """Around the elements of a constant, of which there is at least one."""
    low, high = array.min(), array.max()
    if array.dtype.kind != "f":
        return Interval(int(low), int(high))
    return ANY if np.isnan(low) or np.isnan(high) else Interval(float(low), float(high))


def plus(a: Interval, b: Interval) -> Interval:
    return replace(a.hull(b), low=a.low + b.low, high=a.high + b.high)


def times(a: Interval, b: Interval) -> Interval:
    def by(x: float, y: float) -> float:
        return x * y if x and y else 0

    corners = [by(x, y) for x in (a.low, a.high) for y in (b.low, b.high)]
    return a.hull(b).of(*corners)
