"""Runs the small kernels of `self_test` on a desktop's GPU, and remembers which were right there.

What passed is kept per adapter, driver and shader text in a file of the user's cache folder, so
that a machine does it once: a missing or unwritable file means that it is done again.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import Lock

import numpy as np

from ..self_test import SelfTest
from .wgpu_device import Gpu, ShaderError

_MOST = 2000  # entries of the file; the oldest go first
_writing = Lock()  # sessions may be made in several threads


def check(gpu: Gpu, tests: Sequence[SelfTest]) -> None:
    """Run those that have not passed on this adapter before.

    Raises:
        ShaderError: a kernel does not compile or computes wrongly; names its family.
    """
    passed = _passed()
    new = {_key(gpu, test): test for test in tests}
    new = {key: test for key, test in new.items() if key not in passed}
    if not new:
        return
    gpu.pipelines([test.kernel for test in new.values()])
    for test in new.values():
        problem = _run(gpu, test)
        if problem is not None:
            raise ShaderError(
                f"this GPU's driver computes {test.family} kernels wrongly",
                where=f"self-test on {gpu.name}, {gpu.info.driver}, kernel {test.kernel.name}",
                got=problem,
                remedy="Update the driver, choose another GPU, or use the wasm provider",
            )
    with _writing:
        passed.update(dict.fromkeys(new))
        _keep(passed)


def _run(gpu: Gpu, test: SelfTest) -> str | None:
    operands = [np.frombuffer(data, np.uint8) for data in test.operands]
    size = len(test.expected) * test.output.bytes
    made = gpu.prepare(test.kernel, operands, (), size, poison=True)
    (raw,) = gpu.run(made.dispatches, [(made.output, size)])
    problem = test.wrong(raw)
    made.destroy()
    return problem


def _key(gpu: Gpu, test: SelfTest) -> str:
    codes = "\0".join(one.code for one in test.kernel.passes)
    return hashlib.sha256(f"{gpu.name}\0{gpu.info.driver}\0{codes}".encode()).hexdigest()[:24]


def _file() -> Path:
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA", str(Path.home()))
    else:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "pywebgpu" / "self-tests.json"


@cache
def _passed() -> dict[str, None]:
    """Keys, the oldest first."""
    try:
        return dict.fromkeys(map(str, json.loads(_file().read_text())))
    except (OSError, ValueError, TypeError):
        return {}


def _keep(passed: dict[str, None]) -> None:
    path = _file()
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump([*passed][-_MOST:], file)
        Path(file.name).replace(path)
