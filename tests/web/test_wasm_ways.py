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
const name = ({ threads, page }) => `${threads} ${page}`;
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
    quiet = {"1 plays": 0.25, "1 sleeps": 0.3, "1 looks": 0.27, "2 sleeps": 0.15}
    busy = {"1 plays": 0.5, "1 sleeps": 0.3, "1 looks": 0.5, "2 sleeps": 2.0}
    first, second, third, fourth = play(
        open_page(), 2, 2, (20, quiet), (200, busy), (600, quiet), (1000, quiet)
    )
    assert first[0] == "2 sleeps"
    assert second[0] == "1 sleeps"
    assert third[0] == "2 sleeps"
    # What comparing costs: a few runs.
    assert fourth[1]["2 sleeps"] > 980


def test_one_outlier_decides_nothing(open_page: OpenPage) -> None:
    ((best, _),) = play(open_page(), 2, 4, (60, {"1 sleeps": 0.2, "other": 0.9}))
    assert best == "1 sleeps"
    _, (best, used) = play(
        open_page(),
        2,
        4,
        (6, {"2 sleeps": 9.0, "other": 0.9}),
        (60, {"2 sleeps": 0.2, "other": 0.9}),
    )
    assert best == "2 sleeps"
    assert set(used) <= {"1 plays", "1 sleeps", "1 looks", "2 sleeps", "2 looks"}


def test_a_bad_beginning_is_soon_put_right(open_page: OpenPage) -> None:
    """While a page starts, threads share processors: what two of them took then says little."""
    crowded = {"1 sleeps": 1.0, "1 looks": 1.1, "2 sleeps": 3.0, "1 plays": 1.2}
    quiet = {"1 sleeps": 3.0, "1 looks": 3.1, "2 sleeps": 1.6, "1 plays": 2.9}
    first, second = play(open_page(), 2, 2, (30, crowded), (60, quiet))
    assert first[0] == "1 sleeps"
    assert second[0] == "2 sleeps"


def test_what_slows_all_ways_alike_changes_nothing(open_page: OpenPage) -> None:
    quiet = {"1 plays": 0.7, "1 sleeps": 0.8, "1 looks": 0.75, "2 sleeps": 0.5}
    phases = [(7, {way: ms * slower for way, ms in quiet.items()}) for slower in (1, 4, 1, 2, 6)]
    assert {best for best, _ in play(open_page(), 2, 2, *phases)} == {"2 sleeps"}


def test_the_end_of_longer_runs_is_not_watched_for(open_page: OpenPage) -> None:
    ((_, used),) = play(open_page(), 2, 4, (300, {"2 sleeps": 3.0, "other": 4.0}))
    assert set(used) == {"1 sleeps", "2 sleeps"}


def test_long_runs_use_all_threads_from_the_start(open_page: OpenPage) -> None:
    ((best, used),) = play(open_page(), 8, 8, (50, {"other": 40.0}))
    assert (best, used) == ("8 sleeps", {"8 sleeps": 50})


def test_the_page_does_not_look_where_it_has_the_only_processor(open_page: OpenPage) -> None:
    ((_, used),) = play(open_page(), 1, 1, (50, {"other": 0.1}))
    assert set(used) == {"1 sleeps", "1 plays"}


def test_of_about_equal_ways_the_page_plays_itself(open_page: OpenPage) -> None:
    """Whoever wakes nobody waits for nobody: what that saves shows only on a busy machine."""
    quick = {"1 plays": 0.105, "1 sleeps": 0.1, "1 looks": 0.095, "2 sleeps": 0.1}
    first, second = play(
        open_page(), 2, 2, (60, quick), (500, {**quick, "1 looks": 0.09, "2 sleeps": 0.09})
    )
    assert first[0] == second[0] == "1 plays"
    assert second[1]["1 plays"] > 480


def test_the_page_does_not_play_what_takes_long(open_page: OpenPage) -> None:
    ((_, used),) = play(open_page(), 2, 2, (100, {"other": 1.5}))
    assert set(used) == {"1 sleeps", "2 sleeps"}
