"""A session that is closed gives back what it held: made and closed many times, a process does
not grow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pywebgpu.export import export

DIGITS = Path(__file__).resolve().parents[2] / "examples" / "digits" / "digits.onnx"

# In a process of its own: other tests' memory, which comes and goes, is not in the figures.
_SESSIONS = """
import gc, os, sys
import numpy as np
from pywebgpu import InferenceSession

def resident():
    gc.collect()
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def play(count):
    for _ in range(count):
        options = {} if sys.argv[1] == "webgpu" else {"threads": int(sys.argv[3])}
        session = InferenceSession(sys.argv[2], providers=[sys.argv[1]], **options)
        session.run(None, {"image": np.zeros((1, 1, 8, 8), np.float32)})
        if sys.argv[4] == "close":
            session.close()

play(20)
before, threads = resident(), len(os.listdir("/proc/self/task"))
play(int(sys.argv[5]))
grown = resident() - before
print(grown / 1e6, len(os.listdir("/proc/self/task")) - threads)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("how", ["close", "forget"])
@pytest.mark.parametrize(("provider", "threads"), [("wasm", 1), ("wasm", 2), ("webgpu", 1)])
def test_sessions_made_and_closed(tmp_path: Path, provider: str, threads: int, how: str) -> None:
    """A session kept would be a megabyte in wasm, ten on a GPU, where allocators waver."""
    export(DIGITS, tmp_path / "digits")
    count = 100 if provider == "wasm" else 50
    command = [provider, str(tmp_path / "digits"), str(threads), how, str(count)]
    done = subprocess.run(
        [sys.executable, "-c", _SESSIONS, *command], capture_output=True, text=True, check=True
    )
    megabytes, more_threads = map(float, done.stdout.split())
    assert megabytes < count * (0.25 if provider == "wasm" else 2.5)
    assert more_threads <= 4
