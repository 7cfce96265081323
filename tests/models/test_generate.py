"""Generation with kept keys and values, as examples/generate.py does it: PyTorch's tokens."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.executors_seen import record_executor

EXAMPLE = Path(__file__).parents[2] / "examples" / "generate.py"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize(
    ("provider", "executor"),
    [("wasm", "wasmtime"), pytest.param("webgpu", "wgpu", marks=pytest.mark.wgpu)],
)
def test_the_same_tokens(kind: str, provider: str, executor: str) -> None:
    pytest.importorskip("transformers", reason="pip install 'pywebgpu[examples]'")
    command = [sys.executable, str(EXAMPLE), "--model", kind, "--provider", provider]
    done = subprocess.run([*command, "--tokens", "12"], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "12 tokens for 3 texts" in done.stdout
    assert "0 differ from PyTorch's" in done.stdout
    record_executor(executor)
