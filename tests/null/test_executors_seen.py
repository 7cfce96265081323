"""The guard that fails a run in which an executor was never exercised."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

SUITE = """
from tests.executors_seen import record_executor

def test_one():
    record_executor("wasmtime")

def test_two():
    record_executor("wgpu")
"""


@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize(
    ("required", "code"), [("wasmtime,wgpu", 0), ("wasmtime,chromium-wasm", 1), ("", 0)]
)
def test_guard(tmp_path: Path, workers: str, required: str, code: int) -> None:
    """A small suite that exercises two executors, run with the project's conftest."""
    (tmp_path / "test_suite.py").write_text(SUITE)
    command = [sys.executable, "-m", "pytest", "-q", "-n", workers, "-p", "tests.conftest"]
    result = subprocess.run(
        [*command, "--rootdir", str(tmp_path), "-c", os.devnull, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")},
            "PYWEBGPU_REQUIRE_EXECUTORS": required,
            "PYTHONPATH": str(ROOT),
        },
    )
    assert result.returncode == code, result.stdout + result.stderr
    assert ("had to be exercised and were not: chromium-wasm" in result.stdout) is (code == 1)


def test_misspelt_names_are_refused() -> None:
    from tests import executors_seen

    with pytest.raises(ValueError, match="not known"):
        executors_seen.record_executor("chrome")
    with pytest.raises(ValueError, match="unknown executors"):
        executors_seen.missing("wgpu,chrome")
