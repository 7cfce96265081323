"""Tuning records: their file, their keys, how they are joined and what is chosen by them."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from typer.testing import CliRunner

from pywebgpu import records as module
from pywebgpu.cli import app
from pywebgpu.codegen import GENERATOR_VERSION
from pywebgpu.codegen import scalar as sc
from pywebgpu.codegen.dims import symbol
from pywebgpu.codegen.spec import Map, Storage
from pywebgpu.errors import InputError
from pywebgpu.records import (
    Record,
    Timing,
    Winners,
    distance,
    kernel_key,
    knobs_json,
    load_records,
    merge,
    records_from_json,
    records_json,
    save_records,
)
from tests.null.test_house_rules import NOT_IN_PYODIDE, run_without

F32 = Storage.F32
SPEC = Map((8,), sc.load(0, sc.axis(0)) * 2.0, sc.axis(0), (F32,), F32)
DYNAMIC = Map((symbol("a0"),), sc.load(0, sc.axis(0)) * 2.0, sc.axis(0), (F32,), F32, 1)
SCHEMA = json.loads(Path(module.__file__).with_name("records.schema.json").read_text())


@dataclass(frozen=True)
class Knobs:
    size: int
    block: tuple[int, ...] = (1, 2)


DEFAULT, FAST, OTHER = Knobs(1), Knobs(2), Knobs(3)
SPACE = [DEFAULT, FAST, OTHER]


def record(*times: float | None, best: Knobs = FAST, **fields: Any) -> Record:
    candidates = tuple(
        Timing(knobs_json(k), ms, None if ms is not None else "it stopped")
        for k, ms in zip(SPACE, times, strict=False)
    )
    made = Record(kernel_key(SPEC), "webgpu", "d", GENERATOR_VERSION, candidates, knobs_json(best))
    return replace(made, **fields)


def test_a_file_comes_back(tmp_path: Path) -> None:
    wanted = merge([record(2.0, 1.0, None), record(2.0, 1.5, device="e")])
    save_records(tmp_path / "deep" / "records.json", wanted)
    assert load_records(tmp_path / "deep" / "records.json") == wanted
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["records.json"]


def test_the_file_fits_its_schema_and_is_deterministic() -> None:
    one, two = record(2.0, 1.0, None), record(3.0, device="e", best=DEFAULT)
    text = records_json([one, two])
    jsonschema.validate(json.loads(text), SCHEMA)
    assert records_json([two, one]) == text == records_json(records_from_json(text))


def test_other_versions() -> None:
    old = record(2.0, 1.0, generator_version="0")
    assert records_from_json(records_json([old, record(2.0, 1.0, device="e")])) == (
        record(2.0, 1.0, device="e"),
    )
    assert Winners((old,)).pick(SPEC, "webgpu", SPACE) is None
    text = records_json([record(2.0)]).replace('"format_version": 1', '"format_version": 2')
    with pytest.raises(InputError, match=r"version.*got format_version 2, expected 1.*tune"):
        records_from_json(text)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("records"),
        lambda d: d["records"][0].pop("best"),
        lambda d: d["records"][0].update(best="fast"),
        lambda d: d["records"][0]["candidates"][0].update(ms="soon"),
        lambda d: d["records"][0]["candidates"][0].update(ms=-1),
        lambda d: d["records"][0]["candidates"][0].update(ms=float("inf")),
        lambda d: d.update(records=[1]),
    ],
)
def test_damaged_files(change: Any) -> None:
    data = json.loads(records_json([record(2.0, 1.0)]))
    change(data)
    with pytest.raises(InputError, match="damaged"):
        records_from_json(json.dumps(data))


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_records(tmp_path / "none.json")
    with pytest.raises(InputError, match="not JSON"):
        records_from_json("{")


def test_keys() -> None:
    again = Map((8,), sc.load(0, sc.axis(0)) * 2.0, sc.axis(0), (F32,), F32)
    assert kernel_key(again) == kernel_key(SPEC)
    assert kernel_key(replace(SPEC, shape=(9,))) != kernel_key(SPEC)
    # Sizes of one magnitude share a record.
    assert kernel_key(DYNAMIC, (64,)) == kernel_key(DYNAMIC, (127,)) != kernel_key(DYNAMIC, (128,))


def test_joining_keeps_what_only_the_earlier_measured() -> None:
    joined = merge([record(2.0, 1.0, 1.8)], [record(4.0, 3.0)])
    # Scaled: the default takes twice as long now.
    assert [t.ms for t in joined[0].candidates] == [4.0, 3.0, 3.6]
    assert joined[0].best == knobs_json(FAST)
    joined = merge([record(2.0, None, 1.0, best=OTHER)], [record(4.0, 3.0)])
    assert joined[0].best == knobs_json(OTHER)
    # A device that failed does not take back what it had measured.
    assert merge([record(2.0, 1.0)], [record(None, best=DEFAULT)]) == (record(2.0, 1.0),)


def test_the_winner_is_picked() -> None:
    assert Winners((record(2.0, 1.0),)).pick(SPEC, "webgpu", SPACE) == FAST
    assert Winners((record(2.0, 1.0),)).pick(SPEC, "wasm-relaxed", SPACE) is None
    assert Winners((record(2.0, 1.0),)).pick(DYNAMIC, "webgpu", SPACE) is None
    assert Winners().pick(SPEC, "webgpu", SPACE) is None
    # What is not legal here is not taken, nor what was not better, nor what was not measured.
    assert Winners((record(2.0, 1.0),)).pick(SPEC, "webgpu", [DEFAULT, OTHER]) == DEFAULT
    assert Winners((record(2.0, 1.99),)).pick(SPEC, "webgpu", SPACE) == DEFAULT
    assert Winners((record(2.0, None),)).pick(SPEC, "webgpu", SPACE) == DEFAULT
    assert Winners((record(None, 1.0),)).pick(SPEC, "webgpu", SPACE) == DEFAULT


def test_devices_that_disagree() -> None:
    here = record(2.0, 1.0, 1.5)
    there = record(2.0, 2.2, 1.6, best=OTHER, device="e")
    assert Winners((here, there)).pick(SPEC, "webgpu", SPACE) == OTHER
    alone = record(2.0, 2.2, device="e", best=DEFAULT)
    assert Winners((here, alone)).pick(SPEC, "webgpu", SPACE) == DEFAULT


def test_the_core_works_with_nothing_but_jinja2() -> None:
    """As in a page, where the same tuner is to run."""
    blocked = tuple(name for name in NOT_IN_PYODIDE if name != "markupsafe")
    result = run_without(blocked, "import pywebgpu.tune, pywebgpu.records")
    assert result.returncode == 0, result.stderr


def command(*words: object) -> Any:
    result = CliRunner().invoke(app, ["records", *map(str, words), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_commands(tmp_path: Path) -> None:
    """Old records stay in what is merged and shown, until they are pruned."""
    old = record(2.0, 1.0, generator_version="0")
    save_records(tmp_path / "a.json", [record(2.0, 1.0), old])
    save_records(tmp_path / "b.json", [record(4.0, 3.0, device="other"), record(2.0, 1.6)])
    both = tmp_path / "both.json"
    assert command("merge", tmp_path / "a.json", tmp_path / "b.json", "-o", both)["records"] == 3
    rows = command("show", both)["records"]
    assert sorted(row["gain"] for row in rows) == [0.25, 0.3333, 1.0]
    assert sum(row["current"] for row in rows) == 2
    assert command("show", both, "--target", "wasm-relaxed")["records"] == []
    assert command("prune", both, "--device", "other", "-o", tmp_path / "c.json") == {
        "kept": 1,
        "dropped": 2,
    }
    assert command("prune", both) == {"kept": 2, "dropped": 1}
    assert load_records(both, every=True) == load_records(both)
    shown = CliRunner().invoke(app, ["records", "show", str(both)])
    assert "2 records" in shown.stdout
    missing = CliRunner().invoke(app, ["records", "show", str(tmp_path / "none.json")])
    assert isinstance(missing.exception, InputError)


SMALL = "browser wasm relaxed-simd, registers=16, l1=32768, l2=524288; speed 2^5"


@pytest.mark.parametrize(
    ("near", "far"),
    [
        (SMALL.replace("2^5", "2^6"), SMALL.replace("2^5", "2^8")),
        (SMALL.replace("l1=32768", "l1=65536"), SMALL.replace("l1=32768", "l1=131072")),
        (SMALL.replace("2^5", "2^6"), SMALL.replace(" relaxed-simd", "")),
        (SMALL.replace("2^5", "2^6"), SMALL.replace("browser", "wasmtime")),
        (SMALL.replace("2^5", "2^6"), "browser subgroup_size=(32,32), f16=True; speed 2^9"),
    ],
)
def test_devices_are_near_by_what_they_can_do(near: str, far: str) -> None:
    assert distance(SMALL, SMALL) == 0
    assert 0 < distance(SMALL, near) < distance(SMALL, far)
    assert distance(SMALL, far) == distance(far, SMALL)


def test_settings_are_compared_whole() -> None:
    one, other = "gpu subgroup_size=(32,32), f16=True", "gpu subgroup_size=(8,32), f16=True"
    assert distance(one, other) == distance(one, "gpu subgroup_size=(4,4), f16=True") == 2


def test_winners_for_a_device_are_the_nearest_ones() -> None:
    slow = SMALL.replace("2^5", "2^2")
    records = (record(2.0, 1.0, 3.0, device=SMALL), record(2.0, 3.0, 1.0, best=OTHER, device=slow))
    assert Winners(records).pick(SPEC, "webgpu", SPACE) == DEFAULT, "each loses on the other"
    assert Winners(records, SMALL.replace("2^5", "2^6")).pick(SPEC, "webgpu", SPACE) == FAST
    assert Winners(records, SMALL.replace("2^5", "2^1")).pick(SPEC, "webgpu", SPACE) == OTHER
