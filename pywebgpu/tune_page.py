"""The tuner in a page: plain data in, plain data out, for web/tune/tuning.js to carry out.

`start` begins a tuning and `step` takes it on to its next request, so that the page decides between
any two when the next one may be carried out. Requests are dicts that a message can carry:

    {"kind": "clocks", "wasm": bytes, "pages": n}    the micro-benchmarks' module
    {"kind": "clock", "function": f, "args": [...], "calls": n}  milliseconds of each
    {"kind": "load", "operands": [[storage, bytes], ...], "output": [storage, bytes], "args": [...]}
    {"kind": "known", "target": ..., "kernels": [...]}  what does the records service know of these
    {"kind": "compile", "codes": [[n, code], ...]}
    {"kind": "make", "number": n, "code": ...}
    {"kind": "measure", "numbers": [...]}
    {"kind": "profiled", "rows": [...]}          what kernels take by default
    {"kind": "searched", "row": ..., "records": text}
    {"kind": "swap", "code": ..., "kernels": k}  take the winners so far into use
    {"kind": "done", "report": ...}

Each says in "progress" how far things are. Standard library and `codegen` only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Iterator, Mapping
from dataclasses import asdict, replace
from importlib import import_module
from typing import Any

from .codegen import GENERATOR_VERSION
from .codegen import wgsl as wgsl_target
from .codegen.caps import MATRIX, WasmCaps, WgslCaps
from .codegen.codec import spec_from_json, spec_to_json
from .codegen.dims import Dim, dim_from_json, dim_json, evaluate
from .codegen.program import Program, looked_at, program_from_json
from .codegen.spec import FAMILIES, Attention, Conv, KernelSpec, Matmul
from .codegen.wasm import profile
from .codegen.wasm.asm import Target as WasmFeatures
from .codegen.wasm.model import Call, Operand, Slot, Weight, assemble
from .codegen.wgsl.kernel import WgslKernel
from .errors import PywebgpuError
from .records import Record, Winners, merge, records_from_json, records_json
from .tune import (
    ENOUGH,
    TIME_LIMIT_S,
    TOLERANCE,
    CandidateError,
    Code,
    Compile,
    Job,
    Load,
    Make,
    Measure,
    Profiled,
    Result,
    Row,
    Searched,
    Target,
    WasmBinary,
    WasmTarget,
    WgslTarget,
    speed_job,
    tune,
    unique,
)

Plain = dict[str, Any]

_SETTLE_S = 0.005  # browsers optimise loops after about so long
_CLOCKS, _CLOCKS_S = 8, 0.008  # calls of a micro-benchmark at once, and seconds of them

NO_RECORDS = records_json(())

SWAP_GAIN = 0.02
"""Winners are taken into use once they save this much of a run together, and at the end: a swap
costs a page some compiling."""


class _Model:
    """What the page's manifest and specs.json say, as far as tuning needs it."""

    def __init__(self, manifest: Plain, specs: Plain, target: str) -> None:
        """target: "wasm" or "webgpu", whose steps and specs these are."""
        self.manifest = manifest
        self.steps = (manifest if target == "wasm" else manifest["webgpu"])["steps"]
        self.specs = [spec_from_json(data) for data in specs[target]]

    def jobs(self, sizes: Mapping[str, int]) -> list[Job]:
        """The distinct kernels at these sizes of the model's symbols."""
        buffers = self.manifest["buffers"]
        known: dict[str, int] = {}  # few dims, in hundreds of places

        def value(dim: Any) -> int:
            key = json.dumps(dim)
            if key not in known:
                known[key] = evaluate(dim_from_json(dim), sizes)
            return known[key]

        def size(number: int) -> int:
            return value(buffers[number]["bytes"])

        return unique(
            [
                Job(
                    self.specs[step["kernel"]],
                    tuple(map(value, step["args"])),
                    tuple(map(size, step["operands"])),
                    size(step["output"]),
                    1,
                    step["label"],
                )
                for step in self.steps
            ]
        )

    def place(self, number: int) -> Operand:
        """Where a buffer lies in the wasm module's memory."""
        buffer = self.manifest["buffers"][number]
        return Weight(buffer["weight"]) if "weight" in buffer else Slot(buffer["slot"])

    def program(self) -> tuple[Program, dict[int, Operand]]:
        """In which order, and the places of the buffers that decide it."""
        program = program_from_json(self.manifest["program"])
        return program, {number: self.place(number) for number in looked_at(program)}

    def calls(self) -> list[Call]:
        """The steps as the wasm module plays them."""
        return [
            Call(
                step["kernel"],
                tuple(map(self.place, step["operands"])),
                self.place(step["output"]),
                tuple(dim_from_json(arg) for arg in step["args"]),
            )
            for step in self.steps
        ]


class _Wasm:
    """Candidates and whole modules for one variant of a bundle."""

    def __init__(self, facts: Plain) -> None:
        self.caps = WasmCaps(relaxed=facts["relaxed"], threads=facts["threads"])

    @property
    def target(self) -> Target:
        return WasmTarget(replace(self.caps, threads=False))

    @property
    def features(self) -> str:
        caps = self.caps
        relaxed = " relaxed-simd" if caps.relaxed else ""
        sizes = f"registers={caps.simd_registers}, l1={caps.l1_bytes}, l2={caps.l2_bytes}"
        return f"browser wasm{relaxed}, {sizes}"

    def measured(self) -> Generator[Plain, Plain, Plain]:
        """Learn what the engine can do; the candidates follow."""
        features = WasmFeatures(relaxed=self.caps.relaxed)
        yield {"kind": "clocks", "wasm": profile.module(features), "pages": profile.PAGES}
        asking = profile.profile(1, self.caps.relaxed, settle_s=_SETTLE_S)
        last: profile.Time | None = None
        answer: Any = None
        ahead: list[float] = []  # what more calls like the last one took
        while True:
            try:
                request = asking.send(answer)
            except StopIteration as stop:
                found: profile.WasmProfile = stop.value
                break
            if request != last:
                ahead, calls = [], 1
            elif not ahead:  # asked again: whoever measures goes on until times settle
                calls = max(1, min(_CLOCKS, int(_CLOCKS_S / max(answer or 0.0, 1e-5))))
            if not ahead:
                told = {"function": request.function, "args": list(request.args), "calls": calls}
                answered = yield {"kind": "clock", **told}
                if "error" in answered:
                    raise CandidateError(answered["error"])
                ahead = [ms / 1e3 for ms in answered["ms"]]
            last, answer = request, ahead.pop(0)
        self.caps = replace(found.caps, threads=self.caps.threads)
        return {"gflops": round(found.gflops, 2), **asdict(self.caps)}

    def candidate(self, code: Code, job: Job) -> Plain:
        assert isinstance(code, WasmBinary)
        return {"wasm": code.binary, "scratch": evaluate(code.scratch, _arguments(job))}

    def tuned(self, model: _Model, winners: Winners) -> tuple[Plain, int]:
        """(the whole model's module, how many of its kernels are not the default's)"""
        kernels: list[tuple[KernelSpec, Any]] = []
        count = 0
        for spec in model.specs:
            space = self.target.space(spec)
            picked = winners.pick(spec, self.target.name, space)
            count += picked is not None and picked != space[0]
            kernels.append((spec, space[0] if picked is None else picked))
        features = WasmFeatures(relaxed=self.caps.relaxed, threads=self.caps.threads)
        made = assemble(kernels, model.calls(), features, *model.program())
        scratch = dim_json(made.scratch_per_thread)
        return {"wasm": made.binary, "scratchPerThread": scratch}, count


class _Wgsl:
    """Candidates and replaced kernels for a GPU device."""

    def __init__(self, facts: Plain) -> None:
        limits, offers = facts["limits"], frozenset(facts["offers"])
        least, most = facts["subgroupSizes"]
        self.caps = WgslCaps(
            max_workgroup_storage=limits["maxComputeWorkgroupStorageSize"],
            max_invocations=limits["maxComputeInvocationsPerWorkgroup"],
            max_workgroup_size=(
                limits["maxComputeWorkgroupSizeX"],
                limits["maxComputeWorkgroupSizeY"],
                limits["maxComputeWorkgroupSizeZ"],
            ),
            max_workgroups=limits["maxComputeWorkgroupsPerDimension"],
            max_storage_buffers=limits["maxStorageBuffersPerShaderStage"],
            max_binding=limits["maxStorageBufferBindingSize"],
            subgroup_size=(least, most) if "subgroups" in offers and least else None,
            f16="shader-f16" in offers,
            emulated="emulated" in offers,
            matrix=offers.issuperset(MATRIX),
        )
        self.target: Target = WgslTarget(self.caps)
        known = asdict(self.caps)
        self.features = "browser " + ", ".join(
            f"{name}={value}".replace(" ", "") for name, value in known.items()
        )

    def measured(self) -> Generator[Plain, Plain, Plain]:
        """What the device says of itself."""
        yield from ()
        return asdict(self.caps)

    def candidate(self, code: Code, job: Job) -> Plain:
        """With its grids and scratch sizes for this job: numbers."""
        assert isinstance(code, WgslKernel)
        sizes = _arguments(job)
        return {
            "passes": [
                {
                    "code": p.code,
                    "bindings": [[b.role.value, b.index] for b in p.bindings],
                    "grid": [evaluate(d, sizes) for d in p.grid],
                }
                for p in code.passes
            ],
            "scratch": [evaluate(d, sizes) for d in code.scratch],
        }

    def tuned(self, model: _Model, winners: Winners) -> tuple[Plain, int]:
        """(texts, and the kernels by number that are to be replaced, as in a manifest; how many)"""
        codes: dict[str, int] = {}
        replaced: dict[str, Plain] = {}
        for number, spec in enumerate(model.specs):
            space = self.target.space(spec)
            picked = winners.pick(spec, self.target.name, space)
            if picked is None or picked == space[0]:
                continue
            replaced[str(number)] = wgsl_target.render(spec, picked).to_json(codes)
        return {"codes": list(codes), "kernels": replaced}, len(replaced)


def _arguments(job: Job) -> dict[str, int]:
    return {f"a{i}": value for i, value in enumerate(job.args)}


class Tuning:
    """One tuning of one model. See the head of the file for the requests."""

    def __init__(self, setup: Plain) -> None:
        """
        setup: {"manifest": text, "specs": text, "sizes": {symbol: n}, "budget": seconds,
        "enough": part of a run's time if not the usual, "records": text or None, "service":
        whether there is one to ask, "wasm": {"relaxed", "threads"} or "webgpu": {"offers",
        "limits", "subgroupSizes"}}
        """
        target = "wasm" if "wasm" in setup else "webgpu"
        manifest = json.loads(setup["manifest"])
        self.model = _Model(manifest, json.loads(setup["specs"]), target)
        self.side = _Wasm(setup["wasm"]) if "wasm" in setup else _Wgsl(setup["webgpu"])
        self.known = merge(records_from_json(setup.get("records") or NO_RECORDS))
        self.asks = bool(setup.get("service"))
        found = manifest["generator_version"]
        if found != GENERATOR_VERSION:
            raise PywebgpuError(
                "the bundle was exported by another version than this Python's",
                where="tuner",
                got=f"generator_version {found}",
                expected=GENERATOR_VERSION,
                remedy="Export the model again, or build the site again",
            )
        self.now = 0.0
        self.progress: Plain = {"label": "", "done": 0, "total": 0}
        self.job: Job | None = None
        self.jobs: dict[str, Job] = {}
        self.records: list[Record] = []
        self.unused = 0.0  # of a run: what winners save that are not in use yet
        self.used = 0
        self._requests = self._play(setup["sizes"], setup["budget"], setup.get("enough"))

    def step(self, answer: Plain) -> Plain:
        """The next request. answer: {"now": seconds of tuning, without pauses} and "ms" (of a
        measurement), "records" (what the service knows, a file's text) or "error" (why a candidate
        cannot be used)."""
        self.now = answer["now"]
        self._answer = answer
        return {**next(self._requests), "progress": self.progress}

    def _play(
        self, sizes: Mapping[str, int], budget: float, enough: float | None
    ) -> Iterator[Plain]:
        def say(label: str, done: int, total: int) -> None:
            self.progress = {"label": label, "done": done, "total": total}

        self.progress = {"label": "the device", "done": 0, "total": 1}
        measuring = self.side.measured()
        answer: Any = None
        while True:
            try:
                yield measuring.send(answer)
            except StopIteration as stop:
                self.device: Plain = stop.value
                break
            answer = self._answer
        yield {"kind": "device", "caps": self.device}
        try:
            jobs = self.model.jobs(sizes)
        except KeyError as missing:
            raise PywebgpuError(
                f"the size {missing} is not known before the model has run",
                where="tuner",
                remedy="Run the session once, and then tune it",
            ) from missing
        self.jobs = {job.key: job for job in jobs}
        if self.asks:
            yield {"kind": "known", "target": self.side.target.name, "kernels": list(self.jobs)}
            others = records_from_json(self._answer.get("records") or NO_RECORDS)
            self.known = merge(others, self.known)
        asking = tune(
            jobs,
            self.side.target,
            self.side.features,
            budget,
            progress=say,
            clock=lambda: self.now,
            known=self.known,
            enough=ENOUGH if enough is None else enough,
        )
        answer = None
        error: str | None = None
        while True:
            try:
                request = asking.throw(CandidateError(error)) if error else asking.send(answer)
            except StopIteration as stop:
                result: Result = stop.value
                break
            if isinstance(request, Searched) and self._noted(request):
                yield self._swap()
            yield self._plain(request)
            answer, error = self._answer.get("ms"), self._answer.get("error")
        if self.unused > 0:
            yield self._swap()
        yield {"kind": "done", "report": self._report(result)}

    def _plain(self, request: Any) -> Plain:
        if isinstance(request, Load):
            self.job, spec = request.job, request.job.spec
            sizes = zip(spec.operands, request.job.operands, strict=True)
            return {
                "kind": "load",
                "operands": [[storage.value, size] for storage, size in sizes],
                "output": [spec.output.value, request.job.output],
                "args": list(request.job.args),
                "tolerance": TOLERANCE[spec.output],
                "limit": TIME_LIMIT_S,
            }
        if isinstance(request, Compile):
            codes = [[number, self._candidate(code)] for number, code in request.codes]
            return {"kind": "compile", "codes": codes}
        if isinstance(request, Make):
            code = self._candidate(request.code)
            return {"kind": "make", "number": request.number, "code": code}
        if isinstance(request, Measure):
            return {"kind": "measure", "numbers": list(request.numbers)}
        if isinstance(request, Profiled):
            return {"kind": "profiled", "rows": [self._row(row) for row in request.rows]}
        assert isinstance(request, Searched)
        # As text: None would cross to JavaScript as undefined, which JSON leaves out.
        records = records_json([request.record])
        return {"kind": "searched", "row": self._row(request.row), "records": records}

    def _candidate(self, code: Code) -> Plain:
        assert self.job is not None
        return self.side.candidate(code, self.job)

    def _row(self, row: Row) -> Plain:
        job = self.jobs[row.kernel]
        work = {"flops": flops(job), "bytes": sum(job.operands) + job.output}
        return {**asdict(row), "gain": round(row.gain, 4), **work}

    def _noted(self, found: Searched) -> bool:
        """Keep what was found; True when it is time to take the winners into use."""
        self.records.append(found.record)
        row = found.row
        self.unused += row.share * (1 - row.best_ms / row.default_ms) if row.default_ms else 0.0
        return self.unused >= SWAP_GAIN

    def _swap(self) -> Plain:
        self.unused = 0.0
        code, self.used = self.side.tuned(self.model, Winners(tuple(self.records)))
        return {"kind": "swap", "code": code, "kernels": self.used}

    def _report(self, result: Result) -> Plain:
        return {
            "device": result.device,
            "caps": self.device,
            "generatorVersion": GENERATOR_VERSION,
            "seconds": result.seconds,
            "candidates": result.measured,
            "stopped": result.stopped,
            "defaultMs": result.default_ms,
            "bestMs": result.best_ms,
            "rows": [self._row(row) for row in result.rows],
            "records": records_json(result.records),
        }


def flops(job: Job) -> int | None:
    """Multiplications and additions of a product; None for kernels that are not one."""
    spec, sizes = job.spec, _arguments(job)

    def size(*dims: Dim) -> int:
        return math.prod(evaluate(dim, sizes) for dim in dims)

    if isinstance(spec, Matmul):
        return 2 * size(*spec.batch, spec.m, spec.n, spec.k)
    if isinstance(spec, Conv):
        window = math.prod(spec.kernel) * spec.cin // spec.groups
        return 2 * size(spec.batch, *spec.out_size) * spec.cout * window
    if isinstance(spec, Attention):
        pairs = size(spec.batch, spec.q_len, spec.kv_len) * spec.heads
        return 2 * pairs * (spec.head_dim + spec.v_dim)
    return None


# -- what web/py/ calls ----------------------------------------------------------------------------


def prepare() -> None:
    """What the first candidates would wait for, done ahead: templates, and lazy imports, of which
    each takes a page 0.1 s and more."""
    for name in FAMILIES:
        import_module(f".codegen.wasm.{name}", __package__)
    wgsl_target.compile_templates()
    spec = speed_job().spec
    spec_from_json(spec_to_json(spec))
    for target in (WasmTarget(), WgslTarget()):
        target.generate(spec, target.space(spec)[0])


_tunings: dict[int, Tuning] = {}


def start(setup: Plain) -> int:
    """Begin; returns the tuning's number, for `step` and `stop`."""
    number = max(_tunings, default=0) + 1
    _tunings[number] = Tuning(setup)
    return number


def step(number: int, answer: Plain) -> Plain:
    try:
        return _tunings[number].step(answer)
    except CandidateError as error:  # not even the first product ran
        raise PywebgpuError(f"this device cannot be measured: {error}", where="tuner") from error


def stop(number: int) -> None:
    _tunings.pop(number, None)
