"""A desktop session that tunes itself while it is used: the names are those of a page's.

A thread measures in the time that the session leaves it: a run waits for one request of the tuner
at most. Winners come into use at the end, between two runs.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .errors import DeviceError, InputError, PywebgpuError
from .plan import Plan
from .records import Record, Winners
from .tune import (
    CandidateError,
    Job,
    Load,
    Make,
    Measure,
    Result,
    Searched,
    Target,
    WasmTarget,
    WgslTarget,
    tune,
)
from .tune_desktop import WasmtimeHost, WgpuHost, jobs

Progress = Callable[[str, int, int], None]


class _Cancelled(Exception):
    pass


class Tuning:
    """A tuning under way. `state`: "running", "paused", "done", "cancelled" or "failed"."""

    def __init__(
        self,
        work: Sequence[Job],
        host: WasmtimeHost | WgpuHost,
        target: Target,
        budget_s: float,
        turn: threading.Lock,
        adopt: Callable[[Winners], None],
        progress: Progress | None,
    ) -> None:
        """turn: held by whoever computes. adopt: takes winners into use."""
        self.state = "running"
        self.records: list[Record] = []
        self._host, self._turn, self._adopt = host, turn, adopt
        self._asking = tune(work, target, host.features, budget_s, progress=progress)
        self._go = threading.Event()
        self._go.set()
        self._stop = False
        self._result: Result | None = None
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._play, name="pywebgpu tuning", daemon=True)
        self._thread.start()

    def pause(self) -> None:
        """Stop measuring until `resume`; the budget goes on."""
        if self.state == "running":
            self.state = "paused"
            self._go.clear()

    def resume(self) -> None:
        if self.state == "paused":
            self.state = "running"
            self._go.set()

    def cancel(self) -> None:
        """End it at the next request; what has been found comes into use."""
        self._stop = True
        self._go.set()

    def wait(self) -> Result | None:
        """Until the end; the tuner's result, None of a tuning that was cancelled.

        Raises:
            PywebgpuError: it could not go on.
        """
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._result

    async def finished(self) -> Result | None:
        """`wait`, for code that awaits."""
        return await asyncio.to_thread(self.wait)

    def _play(self) -> None:
        state = "done"
        try:
            try:
                self._result = self._drive()
            except _Cancelled:
                state = "cancelled"
            finally:
                if isinstance(self._host, WgpuHost):
                    self._host.close()
            if any(r.best != r.candidates[0].knobs for r in self.records):
                self._adopt(Winners(tuple(self.records)))
        except CandidateError as error:  # not even the first product ran
            state, self._error = "failed", DeviceError(f"cannot be measured: {error}", where="tune")
        except PywebgpuError as error:
            state, self._error = "failed", error
        self.state = state

    def _drive(self) -> Result:
        answer: Any = None
        problem: CandidateError | None = None
        while True:
            self._go.wait()
            if self._stop:
                raise _Cancelled
            try:
                asked = self._asking.throw(problem) if problem else self._asking.send(answer)
            except StopIteration as stop:
                result: Result = stop.value
                return result
            answer, problem = None, None
            try:
                with self._turn:
                    answer = self._carry_out(asked)
            except CandidateError as error:
                problem = error

    def _carry_out(self, asked: Any) -> Any:
        if isinstance(asked, Load):
            self._host.load(asked.job)
        elif isinstance(asked, Make):
            self._host.make(asked.number, asked.code)
        elif isinstance(asked, Measure):
            return self._host.measure(asked.numbers)
        elif isinstance(asked, Searched):
            self.records.append(asked.record)
        return None


def start(
    plan: Plan,
    provider: str,
    dims: Mapping[str, int] | None,
    budget_s: float,
    turn: threading.Lock,
    adopt: Callable[[Winners], None],
    progress: Progress | None,
) -> Tuning:
    """A tuning of the plan's kernels for a session on that provider."""
    if not budget_s > 0:
        raise InputError("not a number of seconds", where="budget", got=budget_s, expected="> 0")
    work = jobs(plan if provider == "wasm" else plan.on_gpu, dims)
    if provider == "wasm":
        return Tuning(work, WasmtimeHost(), WasmTarget(), budget_s, turn, adopt, progress)
    host = WgpuHost()
    return Tuning(work, host, WgslTarget(host.caps), budget_s, turn, adopt, progress)
