"""What the benchmarks' tables have in common."""

from __future__ import annotations

import math
import statistics

MAX_DEVIATION = 1e-3
"""A runtime whose output is further from the reference, relative to its largest element, is not
timed."""


def geomean(values: list[float | None]) -> float | None:
    """Of those that are known."""
    known = [v for v in values if v]
    return math.exp(statistics.fmean(map(math.log, known))) if known else None
