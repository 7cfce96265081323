"""One record out of many contributors', such that no single one of them decides anything.

Times of different machines are not comparable, so what is aggregated is each candidate's time as a
part of the default's on the same machine. The figure that counts is the middle one, of an even
number the upper: as long as honest contributors are the majority it lies between what two of them
have measured, whatever the others claim. (Rousseeuw and Leroy, Robust Regression and Outlier
Detection, 1987, on the median's breakdown point of one half.)
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Sequence

from ..records import MARGIN, KnobsJson, Record, Timing, rounded


def aggregate(records: Sequence[Record], confirmations: int) -> Record | None:
    """The common record of one key, or None while too few contributors agree on anything.

    records: one per contributor, all with the same key. confirmations: how many contributors must
    have measured a candidate before it counts; at least 2.

    The default is what most of them say it is; records with another default are of another build
    of the space and do not count. A candidate that failed for half of those who tried it is left
    out. Times are in units of the median default's.
    """
    spelled = [(_spell(r.candidates[0].knobs), r) for r in records if _usable(r)]
    if not spelled:
        return None
    default, votes = Counter(text for text, _ in spelled).most_common(1)[0]
    if votes < confirmations:
        return None
    agreed = [record for text, record in spelled if text == default]
    default_ms = statistics.median_high(r.candidates[0].ms or 0.0 for r in agreed)

    ratios: dict[str, list[float]] = {}
    failures: Counter[str] = Counter()
    for record in agreed:
        own = record.candidates[0].ms or 0.0
        for text, timing in {_spell(t.knobs): t for t in record.candidates}.items():
            if timing.ms is None:
                failures[text] += 1
            elif timing.ms > 0:
                ratios.setdefault(text, []).append(timing.ms / own)
    known = {
        text: statistics.median_high(found)
        for text, found in ratios.items()
        if len(found) >= confirmations and failures[text] < len(found)
    }
    known[default] = 1.0
    fastest = min(known, key=lambda text: (known[text], text))
    best = fastest if known[fastest] <= MARGIN else default
    order = sorted(known, key=lambda text: (text != default, text))
    first = agreed[0]
    return Record(
        first.kernel,
        first.target,
        first.device,
        first.generator_version,
        tuple(Timing(_read(text), rounded(known[text] * default_ms)) for text in order),
        _read(best),
    )


def _usable(record: Record) -> bool:
    """The default was measured: without it nothing in a record can be compared."""
    return bool(record.candidates) and bool(record.candidates[0].ms)


def _spell(knobs: KnobsJson) -> str:
    return json.dumps(knobs, sort_keys=True)


def _read(text: str) -> KnobsJson:
    knobs: KnobsJson = json.loads(text)
    return knobs
