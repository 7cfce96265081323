"""The command line without a model: help, JSON, exit codes, messages instead of tracebacks."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import typer

from pywebgpu import console
from pywebgpu.cli import app
from pywebgpu.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
_GROUP = typer.main.get_command(app)
COMMANDS = sorted(_GROUP.commands)  # type: ignore[attr-defined]
COMMANDS += [f"records {name}" for name in sorted(_GROUP.commands["records"].commands)]  # type: ignore[attr-defined]


def pywebgpu(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user would."""
    return subprocess.run(
        [sys.executable, "-m", "pywebgpu", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "100", **environment},
        timeout=300,
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples_and_json(command: str) -> None:
    result = pywebgpu(*command.split(), "--help")
    assert result.returncode == 0, result.stderr
    assert "Examples:" in result.stdout
    assert f"pywebgpu {command}" in result.stdout
    assert "--json" in result.stdout


def test_help_lists_all_commands() -> None:
    result = pywebgpu("--help")
    assert result.returncode == 0
    assert {"check", "export", "info", "run", "serve", "site"} <= set(COMMANDS)
    for command in COMMANDS:
        assert command.split()[0] in result.stdout


def test_the_readme_names_only_commands_that_exist() -> None:
    text = (ROOT / "README.md").read_text()
    named = set(re.findall(r"pywebgpu ([a-z]+)", "\n".join(re.findall(r"```sh.*?```", text, re.S))))
    assert {"check", "export", "info", "run", "serve", "site"} <= named <= set(COMMANDS)
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`make (\w+)`|^make (\w+)", text, re.M)):
        assert re.search(rf"^{''.join(target)}:", makefile, re.M)


def test_version() -> None:
    result = pywebgpu("--version")
    assert result.returncode == 0
    assert result.stdout.startswith("pywebgpu ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["frobnicate"],
        ["run"],
        ["run", "missing.onnx"],
        ["run", "README.md", "--provider", "cuda"],
        ["run", "README.md", "--dim", "batch"],
        ["run", "README.md", "--dim", "batch=-1"],
        ["run", "README.md", "--feed", "x"],
        ["run", "README.md", "--feed", "x=missing.npy"],
        ["run", "README.md", "--feed", "x=README.md"],
        ["run", "README.md", "--value", "x=five"],
        ["run", "README.md", "--repeat", "0"],
        ["check", "README.md", "--value", "x"],
        ["export", "missing.onnx", "-o", "nowhere"],
        ["check", "missing.onnx"],
        ["site", "missing.onnx", "-o", "nowhere"],
        ["info", "missing.onnx"],
        ["serve", "missing"],
        ["serve", "tests"],
    ],
    ids=" ".join,
)
def test_user_errors_exit_with_2_and_one_message(arguments: list[str]) -> None:
    result = pywebgpu(*arguments)
    assert result.returncode == 2, result.stdout + result.stderr
    assert result.stderr.strip()
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert not Path("nowhere").exists()


def test_json_errors_are_json_too() -> None:
    result = pywebgpu("run", "missing.onnx", "--json")
    assert result.returncode == 2
    error = json.loads(result.stdout)["error"]
    assert error["type"] == "InputError"
    assert error["where"] == "missing.onnx"
    assert "missing.onnx" in result.stderr


def test_unexpected_errors_are_short_and_exit_with_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise KeyError("lost")

    monkeypatch.delenv("PYWEBGPU_DEBUG", raising=False)
    assert console.run_guarded(broken) == 1
    text = capsys.readouterr().err
    assert "KeyError" in text
    assert "PYWEBGPU_DEBUG=1" in text
    assert "Traceback" not in text
    monkeypatch.setenv("PYWEBGPU_DEBUG", "1")
    assert console.run_guarded(broken) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (InputError("wrong", where="x"), 2, "error: x: wrong"),
        (PermissionError(13, "Permission denied", "/out"), 2, "/out: Permission denied"),
        (OSError(28, "No space left on device"), 2, "No space left on device"),
        (MemoryError(), 2, "not enough memory"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_exit_codes(
    error: BaseException, code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    assert console.run_guarded(fail) == code
    assert text in capsys.readouterr().err


def test_serve_prints_the_address_and_serves(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<p>hello</p>")
    (tmp_path / "site.json").write_text('{"records": "https://records.example.org:8443/kernels/"}')
    command = [sys.executable, "-m", "pywebgpu", "serve", str(tmp_path), "--port", "0", "--json"]
    with subprocess.Popen([*command, "--csp"], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            told = json.loads(process.stdout.readline())
            assert told["isolated"] is True
            with urllib.request.urlopen(told["url"], timeout=10) as response:
                assert response.read() == b"<p>hello</p>"
                assert response.headers["Content-Security-Policy"] == told["csp"]
            assert "connect-src 'self' https://records.example.org:8443;" in told["csp"]
        finally:
            process.terminate()


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_999, "1.0 MB"), (24 << 20, "25.2 MB")],
)
def test_human_bytes(count: int, text: str) -> None:
    assert console.human_bytes(count) == text


@pytest.mark.parametrize(
    ("time", "text"), [(0.4123, "0.412 ms"), (38.12, "38.1 ms"), (1240.0, "1.24 s")]
)
def test_human_ms(time: float, text: str) -> None:
    assert console.human_ms(time) == text
