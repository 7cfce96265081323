"""The commands on a good model: what they print, what they write, and that the numbers hold."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from tests.executors_seen import record_executor

DIGITS = Path(__file__).resolve().parents[2] / "examples" / "digits" / "digits.onnx"


def pywebgpu(*arguments: str | Path) -> str:
    """What the command prints; it must succeed and keep stderr to itself under --json."""
    command = [sys.executable, "-m", "pywebgpu", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def told(*arguments: str | Path) -> dict[str, Any]:
    """The one JSON object that the command prints with --json."""
    answer = json.loads(pywebgpu(*arguments, "--json"))
    assert isinstance(answer, dict)
    return answer


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "digits"
    report = told("export", DIGITS, "-o", folder)
    assert report["kernels"] > 0
    assert report["bundle_bytes"] == sum(path.stat().st_size for path in folder.iterdir())
    return folder


@pytest.mark.parametrize(
    ("provider", "executor"),
    [("wasm", "wasmtime"), pytest.param("webgpu", "wgpu", marks=pytest.mark.wgpu)],
)
@pytest.mark.parametrize("batch", [1, 5])
def test_run_agrees_with_onnxruntime(provider: str, executor: str, batch: int) -> None:
    arguments = ["--provider", provider, "--compare", "onnxruntime", "--repeat", "2"]
    report = told("run", DIGITS, *arguments, "--dim", f"batch={batch}")
    assert report["provider"] == provider
    assert report["device"]
    assert report["outputs"][0]["shape"] == [batch, 10]
    assert report["max_abs"] <= report["max_rel_to_scale"] <= 1e-4
    assert 0 < report["ms_min"] <= report["ms_median"]
    record_executor(executor)


def test_run_takes_and_saves_arrays(bundle: Path, tmp_path: Path) -> None:
    image = np.random.default_rng(3).random((2, 1, 8, 8), np.float32)
    np.save(tmp_path / "image.npy", image)
    out = tmp_path / "outputs.npz"
    report = told("run", bundle, "--feed", f"image={tmp_path / 'image.npy'}", "--save", out)
    assert report["dims"] == {"batch": 2}
    reference = onnxruntime.InferenceSession(str(DIGITS)).run(None, {"image": image})[0]
    np.testing.assert_allclose(np.load(out)["probabilities"], reference, atol=1e-5)
    text = pywebgpu("run", bundle, "--threads", "1", "--repeat", "1")
    assert "probabilities: float32[1, 10]" in text


def test_export_is_deterministic_and_replaces_an_older_bundle(bundle: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    for _ in range(2):
        assert "steps" in pywebgpu("export", DIGITS, "-o", again)
        assert hashes(again) == hashes(bundle)
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def test_info_of_model_bundle_and_machine(bundle: Path) -> None:
    model, made = told("info", DIGITS), told("info", bundle)
    assert model["kind"] == "onnx"
    assert made["kind"] == "bundle"
    for facts in (model, made):
        assert facts["inputs"] == [
            {"name": "image", "dtype": "float32", "shape": ["batch", 1, 8, 8]}
        ]
    assert model["operators"]["Conv"] == 4
    assert "image: float32[batch, 1, 8, 8]" in pywebgpu("info", bundle)
    assert told("info")["providers"]["wasm"]["available"] is True


def test_check_says_what_runs_where() -> None:
    report = told("check", DIGITS)
    assert report["ok"] is True
    assert pywebgpu("check", DIGITS)


def test_site_of_a_model_and_of_a_bundle(bundle: Path, tmp_path: Path) -> None:
    report = told("site", DIGITS, "-o", tmp_path / "a", "--pyodide", "none")
    assert {"index.html", "digits.html", "pywebgpu.js", "models/digits/manifest.json"} <= set(
        report["files"]
    )
    assert report["bytes"] == sum(report["files"].values())
    assert "pywebgpu serve" in pywebgpu("site", bundle, "-o", tmp_path / "b", "--pyodide", "none")
    assert hashes(tmp_path / "a" / "models") == hashes(tmp_path / "b" / "models")
