"""The suite on the executors of this machine: wasmtime and wgpu, a case at a time in a pool."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from tests.conformance.cases import Case, collect, out_of_scope
from tests.conformance.processes import context
from tests.conformance.verdict import Verdict, compare, one_line

PROVIDERS = {"wasmtime": "wasm", "wgpu": "webgpu"}


def judge(case: Case, executor: str) -> Verdict:
    """What `executor` makes of the case."""
    from pywebgpu.errors import DeviceError, InputError, PywebgpuError, UnsupportedError
    from pywebgpu.session import InferenceSession

    model = case.load()
    reason = out_of_scope(model)
    if reason:
        return "out_of_scope", reason
    try:
        session = InferenceSession(model.SerializeToString(), providers=[PROVIDERS[executor]])
    except UnsupportedError as error:
        return "unsupported", one_line(error)
    except DeviceError as error:
        if "larger than this GPU can bind" in error.what:
            return "unsupported", f"{error.what} here ({error.expected})"
        return "failed", one_line(error)
    except PywebgpuError as error:
        return "failed", one_line(error)
    try:
        names = [port.name for port in session.get_inputs()]
        for inputs, expected in case.data():
            got = session.run(None, dict(zip(names, inputs, strict=True)))
            verdict = compare(got, expected, case)
            if verdict[0] != "passed":
                return verdict
    except UnsupportedError as error:  # of a model that is compiled for the values it is fed
        return "unsupported", one_line(error)
    except InputError as error:
        if "does not fit" not in error.what:  # what the suite feeds must be taken
            raise
        return "unsupported", one_line(error)
    finally:
        close = getattr(session, "close", None)
        if close:
            close()
    return "passed", ""


def _late(*_: object) -> None:
    raise TimeoutError("took too long")


def work(name: str, executor: str) -> Verdict:
    """`judge` that always answers, for a pool's process."""
    warnings.simplefilter("ignore")
    case = collect()[name]
    signal.signal(signal.SIGALRM, _late)
    signal.alarm(case.seconds)
    try:
        return judge(case, executor)
    except TimeoutError:
        return "failed", f"took more than {case.seconds} s"
    except Exception as error:
        return "failed", f"{type(error).__name__}: {one_line(error)}"
    finally:
        signal.alarm(0)


def run(names: list[str], executor: str) -> Iterator[tuple[str, Verdict]]:
    """Verdicts as they come. A case that takes its process down fails; the others go on."""
    waiting = list(names)
    while waiting:
        with ProcessPoolExecutor(os.cpu_count(), mp_context=context()) as pool:
            jobs = [(name, pool.submit(work, name, executor)) for name in waiting]
            waiting = []
            crashed = False
            for name, job in jobs:
                try:
                    if crashed and not job.done():
                        job.cancel()
                        waiting.append(name)
                        continue
                    yield name, job.result()
                except BrokenProcessPool:
                    crashed = True
                    waiting.append(name)
        if waiting and crashed:
            first = waiting.pop(0)  # one of those in flight when the pool broke: try it alone
            with ProcessPoolExecutor(1, mp_context=context()) as alone:
                try:
                    yield first, alone.submit(work, first, executor).result()
                except BrokenProcessPool:
                    yield first, ("failed", "the process died")
