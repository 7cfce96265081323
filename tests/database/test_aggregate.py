"""What many contributors' records come to, and that one of them decides nothing."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pywebgpu.codegen import GENERATOR_VERSION
from pywebgpu.database.aggregate import aggregate
from pywebgpu.records import KnobsJson, Record, Timing

DEFAULT, FAST, SLOW = {"tile": 4}, {"tile": 8}, {"tile": 16}


def record(*timings: tuple[KnobsJson, float | None], best: KnobsJson | None = None) -> Record:
    candidates = tuple(Timing(k, ms, None if ms is not None else "wrong") for k, ms in timings)
    best = timings[0][0] if best is None else best
    return Record("a" * 24, "webgpu", "d", GENERATOR_VERSION, candidates, best)


def honest(scale: float = 1.0, fast: float = 0.5) -> Record:
    """A machine `scale` times as slow as another; the winner takes `fast` of the default's time."""
    return record((DEFAULT, scale), (FAST, fast * scale), (SLOW, 2 * scale), best=FAST)


def test_too_few_say_nothing() -> None:
    assert aggregate([honest()], 2) is None
    assert aggregate([honest(), honest(3)], 3) is None
    assert aggregate([], 2) is None


def test_ratios_count_and_not_times() -> None:
    common = aggregate([honest(1, 0.5), honest(100, 0.6), honest(7, 0.4)], 3)
    assert common is not None
    assert common.best == FAST
    assert common.ratio(FAST) == pytest.approx(0.5, rel=1e-3)
    assert common.candidates[0].knobs == DEFAULT


def test_a_small_gain_is_none() -> None:
    common = aggregate([honest(fast=0.98)] * 3, 3)
    assert common is not None
    assert common.best == DEFAULT


def test_a_candidate_needs_its_own_confirmations() -> None:
    lonely = record((DEFAULT, 1), ({"tile": 99}, 1e-6), best={"tile": 99})
    common = aggregate([honest(), honest(2), honest(3), lonely], 3)
    assert common is not None
    assert common.best == FAST
    assert {"tile": 99} not in [t.knobs for t in common.candidates]


def test_a_candidate_that_fails_for_half_is_left_out() -> None:
    failing = record((DEFAULT, 1), (FAST, None))
    common = aggregate([honest()] * 3 + [failing] * 3, 3)
    assert common is not None
    assert common.best == DEFAULT


def test_records_of_another_default_do_not_count() -> None:
    other = record((FAST, 1), (DEFAULT, 0.01))
    common = aggregate([honest(), honest(), honest(), other, other], 3)
    assert common is not None
    assert common.best == FAST
    assert common.ratio(FAST) == 0.5


knobs = st.sampled_from([DEFAULT, FAST, SLOW, {"tile": 99}])
claims = st.lists(
    st.tuples(knobs, st.one_of(st.none(), st.floats(0, 1e300), st.floats(0, 1e-300))), min_size=1
)


@given(
    claim=claims,
    machines=st.lists(st.tuples(st.floats(0.01, 100), st.floats(0.45, 0.55)), min_size=3),
)
def test_one_hostile_contributor_changes_no_winner(
    claim: list[Any], machines: list[tuple[float, float]]
) -> None:
    truth = [honest(scale, fast) for scale, fast in machines]
    for order in ([*truth, record(*claim)], [record(*claim), *truth]):
        common = aggregate(order, 3)
        assert common is not None
        assert common.best == FAST
        ratio = common.ratio(FAST)
        assert ratio is not None
        assert 0.449 <= ratio <= 0.551
