"""The tuner: measures a plan's kernels, candidate by candidate, and keeps what was found.

It generates code and decides; it runs nothing. `tune` is a generator: it yields requests (`Load`,
`Compile`, `Make`, `Measure`), a host carries them out on a device and sends the answers back; and
it tells what it has found so far (`Profiled`, `Searched`). So the same tuner is driven by a loop
here (`drive`) and by one that awaits in a page, which can also pause between any two requests, or
stop.

A candidate is believed only when its output agrees with the default's, and it wins only by a
margin, measured in turns with what it has to beat; the winner meets the default once more at the
end. So what is tuned is never slower than the default on the device where it was measured.

Standard library and `codegen` only.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from .codegen import GENERATOR_VERSION, wasm, wgsl
from .codegen import scalar as sc
from .codegen.caps import WGSL_VARIANTS, WasmCaps, WgslCaps
from .codegen.dims import Dim
from .codegen.spec import KernelSpec, Matmul, Storage, View, family
from .codegen.wasm.asm import I32, Module
from .codegen.wasm.asm import Target as WasmFeatures
from .codegen.wgsl.kernel import WgslKernel
from .records import (
    MARGIN,
    KnobsJson,
    Record,
    Timing,
    Winners,
    kernel_key,
    knobs_json,
    rounded,
)

TOLERANCE = {Storage.F32: 1e-4, Storage.F16: 1e-2, Storage.I32: 0.0, Storage.I8: 0.0}
"""How far an output may be from the default's, relative to its largest element: sums of thousands
of terms in another order. A candidate that is wrong is further off by magnitudes."""

TIME_LIMIT_S = 2.0
"""A host stops, or refuses, a candidate whose first run takes longer than this and twenty times
the default's."""

PAIRS = 5  # turns of a candidate and the best so far
FINAL_PAIRS = 9  # turns of the winner and the default
HOPELESS = (1.5, 1.2)  # ratios that all turns so far exceed, and the rest are spared
ENOUGH = 0.02  # an expected gain below which tuning stops
_PRIOR_GAIN, _PRIOR_SHARE = 0.1, 0.2  # what kernels are expected to gain before any was measured


class CandidateError(Exception):
    """A candidate does not compile, stops, takes too long or computes something else."""


@dataclass(frozen=True, slots=True)
class Job:
    """One kernel as a plan calls it: what to compute and with how much data.

    operands, output: bytes of each buffer. calls: how often a run of the model calls it.
    """

    spec: KernelSpec
    args: tuple[int, ...]
    operands: tuple[int, ...]
    output: int
    calls: int
    label: str

    @property
    def key(self) -> str:
        return kernel_key(self.spec, self.args)


# -- targets ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WasmBinary:
    """A module that exports `repeat(count, thread, threads, operands..., output, scratch, args...)`

    It does one thread's share of the kernel, that often, since calls from a host can cost more than
    a small kernel. Shares are also how a page keeps its slices of a large kernel short.
    """

    binary: bytes
    scratch: Dim


Code = WasmBinary | WgslKernel


class Target(Protocol):
    """What candidates are generated for."""

    @property
    def name(self) -> str:
        """As records have it."""
        ...

    def space(self, spec: KernelSpec) -> list[Any]:
        """The candidates, the default first."""
        ...

    def generate(self, spec: KernelSpec, knobs: Any) -> Code: ...

    @property
    def together(self) -> int:
        """How many candidates a host does well to compile side by side."""
        ...


@dataclass(frozen=True, slots=True)
class WasmTarget:
    caps: WasmCaps = field(default_factory=lambda: WasmCaps(relaxed=True))

    @property
    def together(self) -> int:
        return 1  # an engine compiles one in less than it takes to time it

    @property
    def name(self) -> str:
        return wasm_target_name(self.caps.relaxed)

    def space(self, spec: KernelSpec) -> list[Any]:
        floor = wasm.space(spec, WasmCaps(relaxed=self.caps.relaxed))[:1]
        return _with_default(floor, wasm.space(spec, self.caps))

    def generate(self, spec: KernelSpec, knobs: Any) -> WasmBinary:
        module = Module(WasmFeatures(relaxed=self.caps.relaxed))
        kernel = wasm.emit(module, spec, knobs)
        passed = len(spec.operands) + 2 + spec.n_args
        repeat = module.function("repeat", [I32] * (3 + passed))
        count, *passed_on = repeat.params
        left = repeat.local(I32)
        repeat.assign(left, count)
        with repeat.loop() as again:
            repeat.push(*passed_on)
            repeat.call(module.functions[kernel.function])
            repeat.push(left + -1)
            repeat.tee(left)
            repeat.br_if(again)
        module.export("repeat", repeat)
        return WasmBinary(module.encode(), kernel.scratch)


def _with_default(default: list[Any], candidates: list[Any]) -> list[Any]:
    """The default is what a bundle has without records, whatever this device would have first."""
    return [*default, *(knobs for knobs in candidates if knobs not in default)]


def wasm_target_name(relaxed: bool) -> str:
    """Threads share a record: a kernel's share of the work is the same code."""
    return "wasm-relaxed" if relaxed else "wasm-simd"


def wgsl_target_name(emulated: bool) -> str:
    """What runs shaders on the CPU says nothing about GPUs."""
    return "webgpu-emulated" if emulated else "webgpu"


def _variant(caps: WgslCaps) -> WgslCaps:
    """What the bundle's shaders for this device were made for."""
    kind = (caps.emulated, caps.matrix)
    return next((v.caps for v in WGSL_VARIANTS if (v.caps.emulated, v.caps.matrix) == kind), caps)


@dataclass(frozen=True, slots=True)
class WgslTarget:
    caps: WgslCaps = field(default_factory=WgslCaps)

    @property
    def together(self) -> int:
        # A driver takes 0.1 to 1 s for one, on one core. Where shaders run on the CPU it takes one
        # that the page's own runs need, and two at once come to no more in a second.
        return 1 if self.caps.emulated else 8

    @property
    def name(self) -> str:
        return wgsl_target_name(self.caps.emulated)

    def space(self, spec: KernelSpec) -> list[Any]:
        floor = wgsl.space(spec, _variant(self.caps))[:1]
        return _with_default(floor, wgsl.space(spec, self.caps))

    def generate(self, spec: KernelSpec, knobs: Any) -> WgslKernel:
        return wgsl.render(spec, knobs)


@dataclass(frozen=True, slots=True)
class Row:
    """One kernel in the report. `share`: of the run's time, before tuning."""

    kernel: str
    label: str
    calls: int
    share: float
    default_ms: float
    best_ms: float
    candidates: int
    failed: int
    knobs: dict[str, Any]

    @property
    def gain(self) -> float:
        """default / best - 1."""
        return self.default_ms / self.best_ms - 1 if self.best_ms else 0.0


# -- requests --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Load:
    """Buffers for this kernel, the same random values each time: normal floats, integers 0 or 1
    (which are right as an index too). What was made before may go. Answer: None."""

    job: Job


@dataclass(frozen=True, slots=True)
class Compile:
    """Candidates that `Make` asks for next: a host may compile them now, side by side, and be done
    before it answers, since compiling disturbs what is timed. Answer: None; what is wrong with one
    of them is told when it is made."""

    codes: tuple[tuple[int, Code], ...]


@dataclass(frozen=True, slots=True)
class Make:
    """Compile candidate `number`, run it once, and compare its output with number 0's by
    `TOLERANCE`; number 0 comes first. Answer: None, or CandidateError is thrown."""

    number: int
    code: Code


@dataclass(frozen=True, slots=True)
class Measure:
    """Run candidates that were made, one after the other, each often enough for the clock.
    Answer: milliseconds per run for each, or CandidateError is thrown."""

    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Profiled:
    """What each kernel takes by default, the one that takes the most first. Answer: None."""

    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Searched:
    """What was found out about one kernel: a host may take the winner into use. Answer: None."""

    row: Row
    record: Record


Request = Load | Compile | Make | Measure | Profiled | Searched
Asking = Generator[Request, Any, Any]


class Host(Protocol):
    """Carries requests out. Both raise CandidateError."""

    def load(self, job: Job) -> None: ...
    def make(self, number: int, code: Code) -> None: ...
    def measure(self, numbers: Sequence[int]) -> list[float]: ...


def drive(asking: Asking, host: Host) -> Any:
    """Play the tuner's requests on a host that answers at once; returns what the tuner does."""
    answer: Any = None
    problem: CandidateError | None = None
    while True:
        try:
            request = asking.throw(problem) if problem is not None else asking.send(answer)
        except StopIteration as stop:
            return stop.value
        answer, problem = None, None
        try:
            if isinstance(request, Load):
                host.load(request.job)
            elif isinstance(request, Make):
                host.make(request.number, request.code)
            elif isinstance(request, Measure):
                answer = host.measure(request.numbers)
        except CandidateError as error:
            problem = error


# -- tuning ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Result:
    """What tuning found. `stopped`: why it ended. Times are of all kernel calls of one run."""

    records: tuple[Record, ...]
    rows: tuple[Row, ...]
    device: str
    seconds: float
    measured: int
    stopped: str
    default_ms: float
    best_ms: float


@dataclass(slots=True)
class _Profile:
    job: Job
    space: list[Any]
    ms: float
    share: float = 0.0


@dataclass(slots=True)
class _Gain:
    """What a family's kernels gained so far: of what share of the run, how much of the run."""

    gained: float = _PRIOR_GAIN * _PRIOR_SHARE
    seen: float = _PRIOR_SHARE

    @property
    def mean(self) -> float:
        return self.gained / self.seen


Progress = Callable[[str, int, int], None]


def tune(
    jobs: Sequence[Job],
    target: Target,
    features: str,
    budget_s: float,
    *,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.monotonic,
    known: Sequence[Record] = (),
    enough: float = ENOUGH,
) -> Generator[Request, Any, Result]:
    """Measure candidates for `budget_s` seconds, kernels that take the most time first.

    features: what the host says of its device, without names; the magnitude of its speed is added.
    known: what was found out before, here or elsewhere: those winners are measured first.
    enough: of a run's time; it ends when less is to be expected from what is left.
    """
    start = clock()
    end = start + budget_s
    say = progress or (lambda label, done, total: None)
    speed = yield from _speed(target)
    device = f"{features}; speed 2^{speed}"
    before = Winners(tuple(known))
    failed: list[Record] = []
    found: list[_Profile] = []
    for number, job in enumerate(jobs):
        if clock() >= end:
            break
        say("profiling", number, len(jobs))
        won = before.known(job.spec, target.name, device)
        space = _ordered(target.space(job.spec), won)
        if not space or job.output == 0:
            continue
        try:
            found.append(_Profile(job, space, (yield from _profile(job, target, space[0]))))
        except CandidateError as error:
            default = knobs_json(space[0])
            failed.append(
                _record(job, target, device, [Timing(default, None, _say(error))], default)
            )
    whole = sum(p.ms * p.job.calls for p in found)
    for p in found:
        p.share = p.ms * p.job.calls / whole if whole else 0.0
    found.sort(key=lambda p: (-p.share, p.job.key))
    yield Profiled(tuple(_untuned(p) for p in found))

    total, measured = sum(len(p.space) for p in found), 0
    records, rows = failed, list[Row]()
    stopped = "every candidate was measured"
    gains: dict[str, _Gain] = {family(p.job.spec): _Gain() for p in found}
    for number, p in enumerate(found):
        left = sum(q.share for q in found[number:])
        now = clock()
        if now >= end:
            stopped = "the budget was spent"
            break
        if sum(q.share * gains[family(q.job.spec)].mean for q in found[number:]) < enough:
            stopped = f"less than {enough:.0%} more was to be expected"
            break
        until = now + (end - now) * max(p.share / left, 0.05)
        done = measured

        def tell(number: int, p: _Profile = p, done: int = done) -> None:
            say(p.job.label, done + number, total)

        record = yield from _search(p, target, device, until, clock, tell)
        measured += len(p.space)
        records.append(record)
        row = _row(p, record)
        rows.append(row)
        yield Searched(row, record)
        # A kernel whose time ran out says as much about the others as it was tried.
        weight = p.share * row.candidates / len(p.space)
        gain = gains[family(p.job.spec)]
        gain.gained += (1 - row.best_ms / row.default_ms) * weight if row.default_ms else 0.0
        gain.seen += weight
    say("done", total, total)
    # What was not searched takes what the profile says.
    rest = sum(p.ms * p.job.calls for p in found[len(rows) :])
    return Result(
        records=tuple(records),
        rows=tuple(rows),
        device=device,
        seconds=round(clock() - start, 3),
        measured=sum(len(r.candidates) for r in records),
        stopped=stopped,
        default_ms=rounded(rest + sum(row.default_ms * row.calls for row in rows)),
        best_ms=rounded(rest + sum(row.best_ms * row.calls for row in rows)),
    )


def _ordered(space: list[Any], won: list[KnobsJson]) -> list[Any]:
    """The default, then what won elsewhere, then the others in their order."""
    if not won:
        return space
    places = [(won.index(data) if (data := knobs_json(k)) in won else len(won)) for k in space[1:]]
    return [*space[:1], *(space[1 + n] for n in sorted(range(len(places)), key=places.__getitem__))]


_SPEED_N = 192


def speed_job() -> Job:
    """The product whose time tells a device's magnitude."""
    n = _SPEED_N
    view = View((n, 1))
    spec = Matmul((), n, n, n, view, view, view, sc.acc(), (Storage.F32,) * 2, Storage.F32)
    return Job(spec, (), (4 * n * n,) * 2, 4 * n * n, 1, "speed")


def _speed(target: Target) -> Generator[Request, Any, int]:
    """The device's magnitude: log2 of the GFLOP/s of a product, -1 for less than 1."""
    job = speed_job()
    ms = yield from _profile(job, target, target.space(job.spec)[0])
    return int(2 * _SPEED_N**3 / (max(ms, 1e-6) * 1e6)).bit_length() - 1


def _profile(job: Job, target: Target, knobs: Any) -> Generator[Request, Any, float]:
    """Milliseconds of the default."""
    yield Load(job)
    yield Make(0, _generate(target, job, knobs))
    times: list[float] = []
    for _ in range(5):
        times += yield Measure((0,))
    return min(times)


def _generate(target: Target, job: Job, knobs: Any) -> Code:
    try:
        return target.generate(job.spec, knobs)
    except Exception as error:  # whatever is wrong with a candidate, the others go on
        raise CandidateError(f"not generated: {type(error).__name__}: {error}") from error


def _search(
    p: _Profile,
    target: Target,
    device: str,
    until: float,
    clock: Callable[[], float],
    tell: Callable[[int], None],
) -> Generator[Request, Any, Record]:
    """Measure candidates until all are or the time is up. The default has been measured before."""
    job, space = p.job, p.space
    errors: dict[int, str] = {}
    ratios: dict[int, float] = {0: 1.0}  # to the default
    best, default_ms = 0, p.ms
    try:
        yield Load(job)
        yield Make(0, _generate(target, job, space[0]))
        for number, code in _codes(p, target, errors):
            if clock() >= until:
                break
            if isinstance(code, Compile):
                yield code
                continue
            tell(number)
            try:
                yield Make(number, code)
                ratio = yield from compare(best, number, PAIRS)
            except CandidateError as error:
                errors[number] = _say(error)
                continue
            ratios[number] = ratio[0] * ratios[best]
            if ratio[0] <= MARGIN:
                best = number
        if best:
            ratio = yield from compare(0, best, FINAL_PAIRS)
            default_ms, ratios[best] = ratio[1], ratio[0]
            if ratio[0] > MARGIN:
                best = 0
    except CandidateError as error:  # the default, which had run before
        errors[best], best = _say(error), 0
    timings = [
        Timing(
            knobs_json(space[n]),
            rounded(ratios[n] * default_ms) if n not in errors else None,
            errors.get(n),
        )
        for n in sorted({*ratios, *errors})
    ]
    return _record(job, target, device, timings, knobs_json(space[best]))


def _codes(
    p: _Profile, target: Target, errors: dict[int, str]
) -> Iterator[tuple[int, Code | Compile]]:
    """The candidates after the default; before those that are compiled together, that request."""
    for first in range(1, len(p.space), target.together):
        codes: list[tuple[int, Code]] = []
        for number in range(first, min(first + target.together, len(p.space))):
            try:
                codes.append((number, _generate(target, p.job, p.space[number])))
            except CandidateError as error:
                errors[number] = _say(error)
        if len(codes) > 1:
            yield first, Compile(tuple(codes))
        yield from codes


def compare(old: int, new: int, pairs: int) -> Generator[Request, Any, tuple[float, float]]:
    """(how much of old's time new takes, old's milliseconds), medians over turns. The ratio is
    taken turn by turn: what else the machine does slows both. The rest of the turns is spared when
    no median of them all could win any more."""
    ratios, times = [], []
    lost = 0
    for turn in range(pairs):
        order = (old, new) if turn % 2 == 0 else (new, old)
        ms = dict(zip(order, (yield Measure(order)), strict=True))
        times.append(ms[old])
        ratios.append(ms[new] / max(ms[old], 1e-9))
        lost += ratios[-1] > MARGIN
        if lost > pairs // 2 or (turn < len(HOPELESS) and min(ratios) > HOPELESS[turn]):
            break
    return statistics.median(ratios), statistics.median(times)


def _say(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _record(
    job: Job, target: Target, device: str, timings: Sequence[Timing], best: dict[str, Any]
) -> Record:
    return Record(job.key, target.name, device, GENERATOR_VERSION, tuple(timings), best)


def _untuned(p: _Profile) -> Row:
    knobs = knobs_json(p.space[0])
    share = round(p.share, 4)
    return Row(
        p.job.key, p.job.label, p.job.calls, share, rounded(p.ms), rounded(p.ms), 1, 0, knobs
    )


def _row(p: _Profile, record: Record) -> Row:
    default = record.candidates[0].ms
    ratio = record.ratio(record.best)
    best = default * ratio if default is not None and ratio is not None else p.ms
    return Row(
        kernel=p.job.key,
        label=p.job.label,
        calls=p.job.calls,
        share=round(p.share, 4),
        default_ms=default if default is not None else p.ms,
        best_ms=rounded(best),
        candidates=len(record.candidates),
        failed=sum(t.error is not None for t in record.candidates),
        knobs=record.best,
    )


def unique(jobs: Sequence[Job]) -> list[Job]:
    """Jobs of the same kernel at sizes of the same magnitude as one, with all their calls."""
    found: dict[str, Job] = {}
    for job in jobs:
        old = found.get(job.key)
        found[job.key] = job if old is None else replace(old, calls=old.calls + job.calls)
    return list(found.values())
