"""The Python side of a site: one zip with everything that Pyodide imports, and Pyodide itself.

`build` fills `py/` of a site. The archive holds what works in a browser without any package from
elsewhere: the browser's `InferenceSession`, the kernel generators with their templates, Jinja2 and
MarkupSafe (which falls back to pure Python). It is deterministic: the same sources, the same bytes.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterator
from importlib.resources import as_file, files
from pathlib import Path

from .errors import InputError

ARCHIVE = "pywebgpu-py.zip"

PYODIDE_FILES = (
    "pyodide.mjs",
    "pyodide.asm.mjs",
    "pyodide.asm.wasm",
    "python_stdlib.zip",
    "pyodide-lock.json",
)
"""What Pyodide loads before it runs any code; packages of its distribution are not among them."""

# The modules of pywebgpu that a page can use: standard library and Jinja2 only.
_MODULES = (
    "__init__.py",
    "errors.py",
    "executors/__init__.py",
    "executors/browser.py",
    "records.py",
    "tune.py",
    "tune_page.py",
)
_TREES = (
    ("pywebgpu.codegen", "pywebgpu/codegen", (".py",)),
    ("pywebgpu.shaders", "pywebgpu/shaders", (".py", ".j2")),
    ("jinja2", "jinja2", (".py",)),
    ("markupsafe", "markupsafe", (".py",)),
)
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip can hold


def build(site: Path, source: Path | str | None = None) -> Path:
    """Write `py/` below the folder `site`; returns it.

    source: the folder of the npm package `pyodide`, whose files are copied beside the archive; or
    the URL of a copy elsewhere; or None to leave Pyodide out (pages must then name one).

    Raises:
        InputError: the folder lacks a file of Pyodide's.
    """
    target = site / "py"
    target.mkdir(parents=True, exist_ok=True)
    with as_file(files("pywebgpu.web") / "py") as scripts:
        for script in sorted(scripts.glob("*.js")):
            shutil.copyfile(script, target / script.name)
    write_archive(target / ARCHIVE)
    index = None
    if isinstance(source, Path):
        _copy_pyodide(source, target / "pyodide")
        index = "pyodide/"
    elif source is not None:
        index = source
    where = {"indexURL": index, "archive": ARCHIVE}
    (target / "runtime.json").write_text(json.dumps(where, indent=2) + "\n", encoding="utf-8")
    return target


def write_archive(path: Path) -> None:
    """Write the archive alone."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, data in sorted(_content()):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data)


def _content() -> Iterator[tuple[str, bytes]]:
    """(name in the archive, bytes)"""
    package = files("pywebgpu")
    for module in _MODULES:
        yield f"pywebgpu/{module}", (package / module).read_bytes()
    for name, prefix, suffixes in _TREES:
        with as_file(files(name)) as root:
            for path in root.rglob("*"):
                if path.suffix in suffixes:
                    yield f"{prefix}/{path.relative_to(root).as_posix()}", path.read_bytes()


def _copy_pyodide(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in PYODIDE_FILES:
        if not (source / name).is_file():
            raise InputError(
                "a file of Pyodide is missing",
                where=str(source / name),
                expected="the folder of the npm package `pyodide`",
                remedy="Run `npm install pyodide` and name node_modules/pyodide.",
            )
        shutil.copyfile(source / name, target / name)
