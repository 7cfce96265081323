"""Runs on some of the workers: each is called by a word of its own, and the others sleep on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page

from tests.web.conftest import run
from tests.web.mini import expected

pytestmark = pytest.mark.browser

OpenPage = Callable[..., Page]

# Runs on as many threads as `counts` says, in turn, 0 for the page itself; before every third the
# workers fall asleep.
PLAY = """
const { Ways } = await import("./web/wasm-ways.js");
const session = await t.create("wasm", { threads: 3 });
let count = 0;
Ways.prototype.next = () => {
  const threads = arg.counts[count++ % arg.counts.length];
  return threads ? { threads, page: "sleeps" } : { threads: 1, page: "plays" };
};
Ways.prototype.took = () => {};
let woken = 0;
const { notify } = Atomics;
Atomics.notify = (...given) => {
  const found = notify(...given);
  woken += found;
  return found;
};
const answers = [];
for (const [i, x] of arg.inputs.entries()) {
  if (i % 3 === 0) await new Promise((resolve) => setTimeout(resolve, 20));
  answers.push(await t.ask(session, x, i));
}
session.release();
return { threads: session.info.threads, woken, answers };
"""


@pytest.mark.parametrize("counts", [[0], [1], [3], [1, 0, 3, 2, 1, 1, 0, 0, 3, 2, 2]])
def test_runs_on_some_of_the_workers(open_page: OpenPage, counts: list[int]) -> None:
    inputs = [[float(i + j) for j in range(1 + 17 * (i % 5))] for i in range(40)]
    played = run(open_page(), PLAY, {"counts": counts, "inputs": inputs})
    assert played["threads"] == 3
    for i, (x, answer) in enumerate(zip(inputs, played["answers"], strict=True)):
        assert answer == {"y": expected(x), "k": i, "dims": [len(x)]}
    assert (played["woken"] > 0) == any(counts)
    assert played["woken"] <= sum(counts[i % len(counts)] for i in range(len(inputs)))
