"""The tuner: what it believes, what it skips, and that what it chose computes the same."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from pywebgpu import records as records_module
from pywebgpu import tune_desktop
from pywebgpu.build import tuned_kernels, wasm_code, wgsl_kernels
from pywebgpu.bundle import Bundle
from pywebgpu.cli import app
from pywebgpu.codegen import GENERATOR_VERSION
from pywebgpu.codegen import scalar as sc
from pywebgpu.codegen.caps import WgslCaps
from pywebgpu.codegen.spec import KernelSpec, Map, Storage
from pywebgpu.codegen.wasm.asm import I32, Module
from pywebgpu.compile import compile_model
from pywebgpu.errors import DeviceError, InputError
from pywebgpu.export import export
from pywebgpu.records import (
    MARGIN,
    Record,
    Timing,
    Winners,
    knobs_json,
    load_records,
    records_json,
    save_records,
)
from pywebgpu.session import InferenceSession
from pywebgpu.tune import (
    FINAL_PAIRS,
    PAIRS,
    CandidateError,
    Code,
    Compile,
    Job,
    Measure,
    Result,
    WasmBinary,
    WasmTarget,
    WgslTarget,
    compare,
    drive,
    tune,
    unique,
)
from pywebgpu.tune_desktop import WasmtimeHost, WgpuHost, jobs, tune_model
from tests.executors_seen import record_executor

SIZE = 40
AT = sc.axis(0)
SPEC = Map((SIZE,), sc.load(0, AT) * 2.0 + 1.0, AT, (Storage.F32,), Storage.F32)
WRONG = replace(SPEC, value=sc.load(0, AT) * 2.0 + 1.01)
JOB = Job(SPEC, (), (4 * SIZE,), 4 * SIZE, 1, "double")


@dataclass(frozen=True)
class Hand:
    """Knobs of a candidate made by hand."""

    kind: str


class HandMade:
    """A target whose candidates for `SPEC` are the default and some that must not be believed."""

    def __init__(self, inner: Any, kinds: Sequence[str]) -> None:
        self.inner, self.kinds = inner, kinds
        self.name = inner.name
        self.together = inner.together

    def space(self, spec: KernelSpec) -> list[Any]:
        own = self.inner.space(spec)
        return [own[0], *map(Hand, self.kinds)] if spec == SPEC else own

    def generate(self, spec: KernelSpec, knobs: Any) -> Code:
        if not isinstance(knobs, Hand):
            return self.inner.generate(spec, knobs)  # type: ignore[no-any-return]
        if knobs.kind == "raises":
            raise ValueError("no such tile")
        if knobs.kind == "does not compile":
            return broken(self.inner.generate(spec, self.inner.space(spec)[0]))
        if knobs.kind in ("traps", "hangs"):
            return WasmBinary(faulty(knobs.kind), 0)
        spec = WRONG if knobs.kind == "wrong" else spec
        return self.inner.generate(spec, self.inner.space(spec)[0])  # type: ignore[no-any-return]


def broken(code: Code) -> Code:
    if isinstance(code, WasmBinary):
        return replace(code, binary=code.binary[:-3])
    (one,) = code.passes
    return replace(code, passes=(replace(one, code=one.code.replace("fn main", "fn 1ain")),))


def faulty(kind: str) -> bytes:
    made = Module()
    f = made.function("repeat", [I32] * 6)
    if kind == "traps":
        f.push(1, 0)
        f.i32_div_u()
        f.drop()
    else:
        with f.loop() as again:
            f.push(1)
            f.br_if(again)
    made.export("repeat", f)
    return made.encode()


def search(target: Any, host: Any, **options: Any) -> Result:
    result = drive(tune([JOB], target, host.features, 20.0, **options), host)
    assert isinstance(result, Result)
    return result


def errors(record: Record) -> dict[str, str]:
    return {str(t.knobs.get("kind")): t.error for t in record.candidates if t.error is not None}


def test_what_is_wrong_is_skipped_on_wasm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune_desktop, "TIME_LIMIT_S", 0.3)
    kinds = ("wrong", "raises", "does not compile", "traps", "hangs", "right")
    result = search(HandMade(WasmTarget(), kinds), WasmtimeHost())
    (record,) = result.records
    found = errors(record)
    assert set(found) == {*kinds} - {"right"}
    assert "differs by" in found["wrong"]
    assert "ValueError: no such tile" in found["raises"]
    assert "divide by zero" in found["traps"]
    assert "longer than 0.3 s" in found["hangs"]
    assert [t.ms is not None for t in record.candidates] == [True, *[False] * 5, True]
    assert record.best in (record.candidates[0].knobs, record.candidates[-1].knobs)
    assert result.rows[0].failed == 5
    record_executor("wasmtime")


@pytest.fixture(scope="module")
def gpu_host() -> WgpuHost:
    try:
        return WgpuHost()
    except DeviceError as error:
        pytest.skip(str(error))


@pytest.mark.wgpu
def test_what_is_wrong_is_skipped_on_wgpu(gpu_host: WgpuHost) -> None:
    kinds = ("wrong", "raises", "does not compile", "right")
    result = search(HandMade(WgslTarget(gpu_host.gpu.caps()), kinds), gpu_host)
    (record,) = result.records
    found = errors(record)
    assert set(found) == {*kinds} - {"right"}
    assert "differs by" in found["wrong"]
    assert "does not compile" in found["does not compile"]
    assert gpu_host.gpu.name not in record.device
    record_executor("wgpu")


@pytest.mark.wgpu
def test_a_kernel_too_large_for_the_gpu_is_recorded(gpu_host: WgpuHost) -> None:
    huge = replace(JOB, operands=(1 << 40,))
    result = drive(tune([huge], WgslTarget(), gpu_host.features, 20.0), gpu_host)
    (timing,) = result.records[0].candidates
    assert timing.ms is None
    assert "larger than this GPU can bind" in str(timing.error)


class Scripted:
    """A host on which candidate n takes what `times[n]` says on its k-th measurement."""

    features = "scripted"

    def __init__(self, times: dict[int, Callable[[int], float]]) -> None:
        self.times, self.count = times, dict.fromkeys(times, 0)

    def load(self, job: Job) -> None: ...

    def make(self, number: int, code: Code) -> None: ...

    def measure(self, numbers: Sequence[int]) -> list[float]:
        found = []
        for number in numbers:
            found.append(self.times[number](self.count[number]))
            self.count[number] += 1
        return found


@pytest.mark.parametrize(("ms", "wins"), [(0.98, False), (0.9, True), (1.5, False)])
def test_a_winner_needs_a_margin(ms: float, wins: bool) -> None:
    result = search(
        HandMade(WasmTarget(), ["other"]), Scripted({0: lambda _: 1.0, 1: lambda _: ms})
    )
    (record,) = result.records
    assert (record.best == knobs_json(Hand("other"))) is wins
    assert [t.ms for t in record.candidates] == [1.0, ms]
    assert result.best_ms == (ms if wins else 1.0)


def test_a_winner_that_the_default_beats_in_the_end_is_none() -> None:
    """Lucky while it was searched, slower when they meet again."""
    host = Scripted({0: lambda _: 1.0, 1: lambda k: 0.8 if k < 5 else 1.1})
    (record,) = search(HandMade(WasmTarget(), ["lucky"]), host).records
    assert record.best == record.candidates[0].knobs
    assert [t.ms for t in record.candidates] == [1.0, 1.1]


def test_turns_are_compared_not_times() -> None:
    """The machine becomes slower all the while; one of the two is quicker in every turn."""
    slow = iter(range(1, 1000))
    host = Scripted({0: lambda _: 1.0, 1: lambda _: 0.8})
    measure = host.measure

    def slowing(numbers: Sequence[int]) -> list[float]:
        now = next(slow)
        return [now * ms for ms in measure(numbers)]

    host.measure = slowing  # type: ignore[method-assign]
    (record,) = search(HandMade(WasmTarget(), ["quicker"]), host).records
    assert record.best == knobs_json(Hand("quicker"))
    assert record.ratio(record.best) == pytest.approx(0.8, rel=1e-3)


@pytest.mark.parametrize("pairs", [PAIRS, FINAL_PAIRS])
def test_spared_turns_decide_nothing(pairs: int) -> None:
    """Whoever could not win any more meets the best so far no more often, and would have lost."""
    rng = np.random.default_rng()
    turns = 0
    for _ in range(300):
        ratios = rng.uniform(MARGIN - 0.06, MARGIN + 0.05, pairs)
        host = Scripted({0: lambda _: 1.0, 1: ratios.__getitem__})
        ratio, _ = drive(compare(0, 1, pairs), host)
        assert (ratio <= MARGIN) == (np.median(ratios) <= MARGIN)
        turns += host.count[1]
    assert turns < 300 * pairs


def test_candidates_of_a_gpu_are_compiled_together() -> None:
    """Each is announced once before it is made; those of wasm are not."""
    host = Scripted(dict.fromkeys(range(12), lambda _: 1.0))
    kinds = [*(str(i) for i in range(10)), "raises"]
    said: list[list[int]] = []

    def play(target: Any) -> Result:
        said.clear()
        asking = tune([JOB], target, "scripted", 20.0)
        request = next(asking)
        while True:
            if isinstance(request, Compile):
                said.append([number for number, _ in request.codes])
            answer = host.measure(request.numbers) if isinstance(request, Measure) else None
            try:
                request = asking.send(answer)
            except StopIteration as stop:
                return stop.value  # type: ignore[no-any-return]

    result = play(HandMade(WgslTarget(), kinds))
    assert said == [[1, 2, 3, 4, 5, 6, 7, 8], [9, 10]]
    assert "no such tile" in str(result.records[0].candidates[11].error)
    assert len(play(HandMade(WasmTarget(), kinds)).records[0].candidates) == 12
    assert said == []


def test_what_won_on_the_nearest_device_is_measured_first() -> None:
    host = Scripted(dict.fromkeys(range(5), lambda _: 1.0))
    space = [knobs_json(Hand(kind)) for kind in "abcd"]

    def known(kind: str, device: str) -> Record:
        timings = (Timing(space[0], 2.0), Timing(knobs_json(Hand(kind)), 1.0))
        name = WgslTarget().name
        return Record(JOB.key, name, device, GENERATOR_VERSION, timings, knobs_json(Hand(kind)))

    near, far = "scripted; speed 2^4", "other; speed 2^9"
    result = search(HandMade(WgslTarget(), "abcd"), host, known=(known("d", far), known("c", near)))
    order = [t.knobs.get("kind") for t in result.records[0].candidates]
    assert order[1:] == ["c", "d", "a", "b"]


def test_the_budget_ends_it() -> None:
    now = iter(range(1000))
    host = Scripted(dict.fromkeys(range(9), lambda _: 1.0))
    target = HandMade(WasmTarget(), [str(i) for i in range(8)])
    asking = tune([JOB], target, "scripted", 6.0, clock=lambda: float(next(now)))
    result = drive(asking, host)
    assert 1 <= len(result.records[0].candidates) < 9


def test_equal_scripts_give_equal_records() -> None:
    def once() -> str:
        host = Scripted({0: lambda k: 1.0 + k % 2, 1: lambda k: 0.7 + k % 2})
        return records_json(search(HandMade(WasmTarget(), ["other"]), host).records)

    assert once() == once()


def test_a_default_that_fails_is_recorded() -> None:
    class Failing(Scripted):
        def make(self, number: int, code: Code) -> None:
            self.makes = getattr(self, "makes", 0) + 1
            if self.makes > 1:  # the first is the product that tells the device's speed
                raise CandidateError("lost its way")

    result = search(HandMade(WasmTarget(), ["other"]), Failing({0: lambda _: 1.0}))
    assert [t.error for t in result.records[0].candidates] == ["lost its way"]
    assert result.rows == ()
    assert Winners(result.records).pick(SPEC, "wasm-relaxed", WasmTarget().space(SPEC)) is not None


def test_what_a_page_tunes_with_is_imported_ahead() -> None:
    """Before Python's memory is kept for pages: each import takes them 0.1 s and more."""
    script = """
import pkgutil, sys
from pywebgpu import codegen, tune_page
tune_page.prepare()
every = pkgutil.walk_packages(codegen.__path__, f"{codegen.__name__}.")
sys.exit("not imported: " + missing if (missing := ", ".join(
    m.name for m in every if m.name not in sys.modules)) else 0)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_jobs_of_one_magnitude_are_one() -> None:
    assert unique([JOB, JOB]) == [replace(JOB, calls=2)]
    plan = compile_model(model()).plan
    assert [j.args for j in jobs(plan, {"batch": 70})] == [(70,)] * len(plan.kernels)
    with pytest.raises(InputError, match=r"no input has this dimension.*batch"):
        jobs(plan, {"width": 3})


# -- with a model ----------------------------------------------------------------------------------


def model() -> bytes:
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((24, 40)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["p"]),
            helper.make_node("Softmax", ["p"], ["y"], axis=-1),
        ],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 24])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 40])],
        [numpy_helper.from_array(weight, "w")],
    )
    made: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    data: bytes = made.SerializeToString()
    return data


def with_winners(record: Record, space: list[Any]) -> Record:
    """As if the last candidate that is legal everywhere had won."""
    legal = [knobs_json(k) for k in space]
    winner = [t.knobs for t in record.candidates if t.ms is not None and t.knobs in legal][-1]
    candidates = tuple(
        replace(t, ms=0.5 if t.knobs == winner else 1.0 if t.ms is not None else None)
        for t in record.candidates
    )
    return replace(record, candidates=candidates, best=winner)


@pytest.mark.parametrize("provider", ["wasm", pytest.param("webgpu", marks=pytest.mark.wgpu)])
def test_tuned_models_compute_the_same(tmp_path: Path, provider: str) -> None:
    if provider == "webgpu":
        try:
            report = tune_model(model(), provider, dims={"batch": 30}, budget_s=8.0)
        except DeviceError as error:
            pytest.skip(str(error))
        emulated = report.records[0].target == "webgpu-emulated"
        target: Any = WgslTarget(WgslCaps(emulated=emulated))
    else:
        report = tune_model(model(), provider, dims={"batch": 30}, budget_s=10.0)
        target = WasmTarget()
    schema = Path(records_module.__file__).with_name("records.schema.json")
    jsonschema.validate(json.loads(records_json(report.records)), json.loads(schema.read_text()))
    json.dumps(report.to_json())

    plan = compile_model(model()).plan
    spec_of = {j.key: j.spec for j in jobs(plan, {"batch": 30})}
    changed = [with_winners(r, target.space(spec_of[r.kernel])) for r in report.records]
    assert any(r.best != r.candidates[0].knobs for r in changed)
    save_records(tmp_path / "records.json", changed)
    winners = Winners(tuple(changed))
    assert tuned_kernels(plan, winners) == {target.name: len(changed)}

    made = export(model(), tmp_path / "tuned", records=tmp_path / "records.json")
    assert made.tuned == {target.name: len(changed)}
    assert f"{len(changed)} kernels by record for {target.name}" in str(made)
    if provider == "wasm":
        assert wasm_code(plan, ["relaxed"], winners=winners) != wasm_code(plan, ["relaxed"])
        assert wasm_code(plan, ["simd"], winners=winners) == wasm_code(plan, ["simd"])
    else:
        # What was measured on one kind of device changes nothing for the other.
        own, other = ("emulated", "default") if emulated else ("default", "emulated")
        assert wgsl_kernels(plan, winners, own) != wgsl_kernels(plan, variant=own)
        assert wgsl_kernels(plan, winners, other) == wgsl_kernels(plan, variant=other)

    x = np.random.default_rng(4).standard_normal((30, 24)).astype(np.float32)

    def answer(source: Any, **options: Any) -> Any:
        with InferenceSession(source, [provider], threads=1, **options) as session:
            return session.run(None, {"x": x})[0]

    wanted = answer(model())
    for found in (
        answer(tmp_path / "tuned"),
        answer(model(), records=tmp_path / "records.json"),
        answer(Bundle.load(tmp_path / "tuned"), records=tmp_path / "records.json"),
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-7)
    record_executor("wgpu" if provider == "webgpu" else "wasmtime")


def test_export_without_records_is_what_it_was(tmp_path: Path) -> None:
    """A file without records for this model changes nothing, byte for byte."""
    save_records(tmp_path / "records.json", [])
    one = export(model(), tmp_path / "one", records=tmp_path / "records.json")
    export(model(), tmp_path / "two")
    assert one.tuned == {}
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(model())
    out = tmp_path / "records.json"
    command = ["tune", str(tmp_path / "model.onnx"), "-o", str(out), "--budget", "10"]
    for options in ([], ["--json", "--dim", "batch=9"]):
        result = CliRunner().invoke(app, [*command, *options])
        assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["records"] == str(out)
    assert {"seconds", "candidates", "stopped", "gain", "kernels", "device"} <= set(report)
    # Records of both sizes are there.
    assert len({r.kernel.partition("@")[2] for r in load_records(out)}) == 2


def test_options_that_are_wrong() -> None:
    with pytest.raises(InputError, match="budget"):
        tune_model(model(), budget_s=0)
    with pytest.raises(InputError, match="provider"):
        tune_model(model(), "cuda")
