"""The pytest plugin for users, used as they use it: from another project's test file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from pywebgpu.errors import InputError
from pywebgpu.serve import STRICT_CSP
from pywebgpu.testing import BrowserSessions
from tests.executors_seen import record_executor

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "examples" / "digits" / "digits.onnx"


@pytest.mark.parametrize("provider", ["wasm", "webgpu"])
def test_a_model_in_five_lines(browser_session: BrowserSessions, provider: str) -> None:
    session = browser_session(DIGITS, provider=provider)
    report = session.compare(dims={"batch": 3}, seed=int(np.random.default_rng().integers(1000)))
    assert report.max_rel_to_scale is not None
    assert report.max_rel_to_scale < 1e-4
    assert report.outputs[0].shape == (3, 10)
    assert report.provider == session.provider == provider
    record_executor(f"chromium-{provider}")


def test_own_feeds_and_a_strict_page(browser_session: BrowserSessions) -> None:
    session = browser_session(DIGITS, threads=1, csp=STRICT_CSP)
    assert [port.name for port in session.get_inputs()] == ["image"]
    assert session.info["threads"] == 1
    image = np.random.default_rng(5).random((2, 1, 8, 8), np.float32)
    [expected] = onnxruntime.InferenceSession(DIGITS).run(None, {"image": image})
    [got] = session.run(["probabilities"], {"image": image})
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert session.last_ms > 0
    wrong = session.compare({"probabilities": expected + 1}, feeds={"image": image})
    assert wrong.max_abs == pytest.approx(1, abs=1e-3)


def test_errors_of_the_page_are_ours(browser_session: BrowserSessions, tmp_path: Path) -> None:
    session = browser_session(DIGITS)
    with pytest.raises(InputError, match="image"):
        session.run(None, {"imago": np.zeros((1, 1, 8, 8), np.float32)})
    with pytest.raises(InputError, match="float64"):
        session.run(None, {"image": np.zeros((1, 1, 8, 8))})
    with pytest.raises(InputError, match="no such output"):
        session.run(["nothing"], {"image": np.zeros((1, 1, 8, 8), np.float32)})
    with pytest.raises(InputError, match="no such file"):
        browser_session(tmp_path / "none.onnx")


def pytest_of(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run pytest in another folder, as somebody who has installed the package."""
    paths = [str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    env.pop("PYWEBGPU_REQUIRE_EXECUTORS", None)
    command = [sys.executable, "-m", "pytest", "-p", "pywebgpu.testing", "-p", "no:cacheprovider"]
    return subprocess.run(
        [*command, *arguments], cwd=project, env=env, capture_output=True, text=True
    )


USERS_TEST = f"""
def test_my_model(browser_session):
    session = browser_session({str(DIGITS)!r}, provider="wasm")
    report = session.compare(dims={{"batch": 2}})
    assert report.max_rel_to_scale < TOLERANCE
"""


def test_in_a_project_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "test_good.py").write_text(USERS_TEST.replace("TOLERANCE", "1e-4"))
    (tmp_path / "test_bad.py").write_text(USERS_TEST.replace("TOLERANCE", "0"))
    result = pytest_of(tmp_path, "-q")
    assert "1 failed, 1 passed" in result.stdout, result.stdout + result.stderr


def test_no_browser_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "test_good.py").write_text(USERS_TEST.replace("TOLERANCE", "1e-4"))
    result = pytest_of(tmp_path, "-q", "--pywebgpu-chromium", str(tmp_path / "none"))
    assert result.returncode == 1
    assert "apt-get install chromium" in result.stdout
    assert "passed" not in result.stdout
