"""The wheel and the sdist hold what they must, and the wheel works where there is no checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / "examples" / "digits" / "digits.onnx"
# Folder in the checkout -> folder in the wheel.
PACKAGED = {
    "pywebgpu": "pywebgpu",
    "codegen": "pywebgpu/codegen",
    "shaders": "pywebgpu/shaders",
    "web": "pywebgpu/web",
}
IGNORED = shutil.ignore_patterns(
    ".git", ".venv", "node_modules", "build", "dist", "*.egg-info", "__pycache__", ".*_cache"
)


def expected_files() -> set[str]:
    """Every file of the four folders, by its name in the wheel; found without setuptools."""
    found = set()
    for folder, target in PACKAGED.items():
        for path in (ROOT / folder).rglob("*"):
            relative = path.relative_to(ROOT / folder)
            linked = any((ROOT / folder / parent).is_symlink() for parent in relative.parents[:-1])
            if path.is_file() and "__pycache__" not in relative.parts and not linked:
                found.add(f"{target}/{relative.as_posix()}")
    return found


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """{"wheel": path, "sdist": path}: the sdist from a copy of the checkout, the wheel from it."""
    folder = tmp_path_factory.mktemp("build")
    source, out = folder / "source", folder / "out"
    # A copy, so that build folders of earlier runs cannot leak into the result.
    shutil.copytree(ROOT, source, symlinks=True, ignore=IGNORED)
    # Without isolation nothing is downloaded: setuptools comes with the `dev` extra.
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)],
        check=True,
        capture_output=True,
        cwd=folder,
    )
    (wheel,) = out.glob("*.whl")
    (sdist,) = out.glob("*.tar.gz")
    return {"wheel": wheel, "sdist": sdist}


def test_wheel_holds_every_file_and_nothing_else(distributions: dict[str, Path]) -> None:
    with zipfile.ZipFile(distributions["wheel"]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    expected = expected_files()
    assert names == expected, (
        f"missing: {sorted(expected - names)}; surplus: {sorted(names - expected)}"
    )
    # Guard the guard: the search above must have found the parts of all four folders.
    assert {"pywebgpu/py.typed", "pywebgpu/codegen/spec.py", "pywebgpu/web/pywebgpu.js"} <= names
    assert any(name.startswith("pywebgpu/shaders/") and name.endswith(".j2") for name in names)


def test_sdist_holds_the_sources_and_the_licence(distributions: dict[str, Path]) -> None:
    with tarfile.open(distributions["sdist"]) as sdist:
        members = [member for member in sdist.getmembers() if not member.isdir()]
    names = {member.name.partition("/")[2] for member in members}
    for folder, target in PACKAGED.items():
        for name in expected_files():
            inside_another = folder == "pywebgpu" and name.split("/")[1] in (
                "codegen",
                "shaders",
                "web",
            )
            if name.startswith(f"{target}/") and not inside_another:
                assert folder + name.removeprefix(target) in names
    assert {"pyproject.toml", "README.md", "LICENSE"} <= names
    assert not any(name.startswith((".venv/", "node_modules/", "build/")) for name in names)


def test_package_list_is_complete() -> None:
    """`packages` in pyproject.toml is written by hand; a new folder of modules must be in it."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        listed = set(tomllib.load(file)["tool"]["setuptools"]["packages"])
    holding_modules = {
        name.rpartition("/")[0].replace("/", ".")
        for name in expected_files()
        if name.endswith(".py")
    }
    assert holding_modules <= listed
    for package in listed:
        assert (ROOT / package.replace(".", "/")).is_dir(), f"{package} is listed but not there"


@pytest.mark.slow
@pytest.mark.network
def test_wheel_works_in_a_fresh_environment(distributions: dict[str, Path], tmp_path: Path) -> None:
    """Install the wheel with its dependencies; export and run a model away from the checkout."""
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=True)
    scripts = environment / "bin"
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PYWEBGPU"))}

    def call(*command: str | Path) -> str:
        result = subprocess.run(
            list(map(str, command)), cwd=tmp_path, env=clean, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    call(scripts / "python", "-m", "pip", "install", "-q", distributions["wheel"])
    where = call(scripts / "python", "-c", "import pywebgpu; print(pywebgpu.__file__)")
    assert Path(where.strip()).is_relative_to(environment)

    model = tmp_path / "model.onnx"
    shutil.copyfile(DIGITS, model)
    call(scripts / "pywebgpu", "export", model, "-o", tmp_path / "bundle", "--json")
    told = call(scripts / "pywebgpu", "run", tmp_path / "bundle", "--provider", "wasm", "--json")
    report = json.loads(told)
    assert report["provider"] == "wasm"
    assert report["ms_median"] > 0
    assert [output["shape"] for output in report["outputs"]] == [[1, 10]]
