"""The page about families says what was run, what was not, and what failed."""

from __future__ import annotations

import json
from pathlib import Path

import onnx

from tests.executors_seen import record_executor
from tests.models import report
from tests.models.families import FAMILIES, path_of


def test_a_run_is_kept_and_not_repeated(tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    found = report.run(["wasmtime"], ["super-resolution"], False, kept)
    record_executor("wasmtime")
    assert json.loads(kept.read_text()) == found
    entry = found["super-resolution"]
    assert entry["exporter"] == "dynamo"
    assert 0 <= entry["results"]["wasmtime"]["error"] <= report.TOLERANCE
    entry["results"]["wasmtime"]["date"] = "1999-01-01"
    kept.write_text(json.dumps(found))
    assert report.run(["wasmtime"], ["super-resolution"], False, kept) == found
    newer = report.run(["wasmtime"], ["super-resolution"], True, kept)
    assert newer["super-resolution"]["results"]["wasmtime"]["date"] != "1999-01-01"


def test_exporters_are_told_apart() -> None:
    model = onnx.load(path_of("autoencoder"))
    assert report.exporter_of(model) == "torchscript"


def test_the_page_has_every_family_and_every_failure() -> None:
    def wrong(name: str, compiled: object) -> float:
        raise AssertionError("output: 2.00e-01 of the output's scale")

    entry = {"package": "torch", "exporter": "dynamo", "opset": 20, "nodes": 9, "results": {}}
    entry["results"] = {"wasmtime": report.tried(wrong, "super-resolution", entry)}
    text = report.page({"super-resolution": entry})
    assert all(f"| {name} |" in text for name in FAMILIES)
    assert "| wasmtime | 0 | 1 |" in text
    assert "- super-resolution on wasmtime: AssertionError: output: 2.00e-01" in text
    assert f"| wgpu | 0 | 0 | {len(FAMILIES)} |" in text
