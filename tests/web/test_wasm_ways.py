"""In which way short runs are played: found by comparing, and found again when things change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page

from tests.web.conftest import run

pytestmark = pytest.mark.browser

OpenPage = Callable[..., Page]

PLAY = """
const { Ways } = await import("./web/wasm-ways.js");
const ways = new Ways(arg.most, arg.cores);
const name = ({ threads, watch }) => `${threads}${watch ? " watched" : ""}`;
const chosen = [];
for (const [runs, ms] of arg.phases) {
  const used = {};
  for (let i = 0; i < runs; i++) {
    const way = name(ways.next());
    used[way] = (used[way] ?? 0) + 1;
    ways.took(ms[way] ?? ms.other);
  }
  chosen.push([name(ways.best), used]);
}
return chosen;
"""


def play(
    page: Page, most: int, cores: int, *phases: tuple[int, dict[str, float]]
) -> list[tuple[str, dict[str, int]]]:
    """After each phase of so many runs, that take so long in each way: the best and what ran."""
    arg: dict[str, Any] = {"most": most, "cores": cores, "phases": phases}
    return [(best, used) for best, used in run(page, PLAY, arg)]


def test_the_quickest_way_stays_until_another_one_is_quicker(open_page: OpenPage) -> None:
    quiet = {"1": 0.3, "1 watched": 0.25, "2": 0.2}
    busy = {"1": 0.3, "1 watched": 0.5, "2": 2.0}
    first, second, third, fourth = play(
        open_page(), 2, 2, (20, quiet), (200, busy), (600, quiet), (1000, quiet)
    )
    assert first[0] == "2"
    assert second[0] == "1"
    assert third[0] == "2"
    # What comparing costs: a few runs.
    assert fourth[1]["2"] > 980


def test_one_outlier_decides_nothing(open_page: OpenPage) -> None:
    ((best, _),) = play(open_page(), 2, 4, (60, {"1": 0.2, "other": 0.9}))
    assert best == "1"
    _, (best, used) = play(
        open_page(), 2, 4, (6, {"2": 9.0, "other": 0.9}), (60, {"2": 0.2, "other": 0.9})
    )
    assert best == "2"
    assert set(used) <= {"1", "1 watched", "2", "2 watched"}


def test_a_bad_beginning_is_soon_put_right(open_page: OpenPage) -> None:
    """While a page starts, threads share processors: what two of them took then says little."""
    crowded = {"1": 1.0, "1 watched": 1.1, "2": 3.0}
    first, second = play(
        open_page(), 2, 2, (30, crowded), (60, {"1": 3.0, "1 watched": 3.1, "2": 1.6})
    )
    assert first[0] == "1"
    assert second[0] == "2"


def test_what_slows_all_ways_alike_changes_nothing(open_page: OpenPage) -> None:
    quiet = {"1": 0.8, "1 watched": 0.75, "2": 0.5}
    phases = [(7, {way: ms * slower for way, ms in quiet.items()}) for slower in (1, 4, 1, 2, 6)]
    assert {best for best, _ in play(open_page(), 2, 2, *phases)} == {"2"}


def test_the_end_of_longer_runs_is_not_watched_for(open_page: OpenPage) -> None:
    ((_, used),) = play(open_page(), 2, 4, (300, {"2": 3.0, "other": 4.0}))
    assert set(used) == {"1", "2"}


def test_long_runs_use_all_threads_from_the_start(open_page: OpenPage) -> None:
    ((best, used),) = play(open_page(), 8, 8, (50, {"other": 40.0}))
    assert (best, used) == ("8", {"8": 50})


def test_one_processor_is_not_watched(open_page: OpenPage) -> None:
    ((best, used),) = play(open_page(), 1, 1, (50, {"other": 0.1}))
    assert (best, used) == ("1", {"1": 50})
