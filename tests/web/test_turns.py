"""When the tuning works while a page runs its model: between the runs, and done before the next."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page

from tests.web.conftest import run

pytestmark = pytest.mark.browser

OpenPage = Callable[..., Page]

# The page runs for 1 ms and pauses as `pauses` says, again and again, for so many runs; pieces of
# work of `needs` ms follow each other as they get their turn. Time is the test's.
PLAY = """
const { Turns } = await import("./web/tune/turns.js");
const turns = new Turns();
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const works = [], runs = [];
const page = async () => {
  for (let i = 0; i < arg.runs; i++) {
    turns.enter();
    const start = performance.now();
    await sleep(1);
    turns.leave();
    runs.push([start, performance.now()]);
    await sleep(arg.pauses[i % arg.pauses.length]);
  }
};
const tuning = async () => {
  for (let i = 0; ; i++) {
    const ms = arg.needs[i % arg.needs.length];
    await turns.take(`of ${ms}`, async () => {
      const start = performance.now();
      await sleep(ms);
      works.push([start, performance.now()]);
    });
  }
};
page();
tuning().catch(() => {});
window.told = () => (turns.cancel(), { works, runs });
"""


def play(page: Page, ms: int, **arg: object) -> tuple[list[list[float]], list[list[float]]]:
    """(the pieces of work, the runs), each with its start and end in ms, after so much time."""
    page.clock.install(time=0)
    run(page, PLAY, arg)
    page.clock.run_for(ms)
    found = page.evaluate("window.told()")
    return found["works"], found["runs"]


def overlaps(works: list[list[float]], runs: list[list[float]]) -> int:
    return sum(any(w[0] < r[1] and w[1] > r[0] for w in works) for r in runs)


def test_work_fits_between_regular_runs(open_page: OpenPage) -> None:
    works, runs = play(open_page(), 4000, runs=100, pauses=[30, 31, 34, 30], needs=[2, 9])
    assert len(runs) == 100
    # The first runs tell nothing of the next ones yet.
    assert overlaps(works, runs[:10]) > 0
    assert overlaps(works, runs[10:]) == 0
    during = [w for w in works if w[1] < runs[-1][1]]
    assert len(during) > 2 * len(runs)


def test_what_is_longer_than_a_pause_begins_with_it(open_page: OpenPage) -> None:
    works, runs = play(open_page(), 4000, runs=100, pauses=[30], needs=[2, 50])
    long = [w for w in works if w[1] - w[0] >= 50 and runs[10][0] < w[0] < runs[-1][1]]
    assert len(long) > 10
    ends = [r[1] for r in runs]
    for start, _ in long:
        assert start - max(end for end in ends if end <= start) <= 6


def test_work_goes_on_after_the_last_run(open_page: OpenPage) -> None:
    works, runs = play(open_page(), 1500, runs=20, pauses=[30], needs=[5])
    after = [w for w in works if w[0] > runs[-1][1] + 100]
    assert sum(end - start for start, end in after) > 700


def test_runs_without_a_rhythm_are_not_waited_for(open_page: OpenPage) -> None:
    works, runs = play(open_page(), 4000, runs=100, pauses=[5, 200, 20, 90], needs=[3])
    inside = [w for w in works if w[0] > runs[10][0]]
    assert sum(end - start for start, end in inside) > 1500
