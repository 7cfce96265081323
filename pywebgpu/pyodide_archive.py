"""The Python side of a site: one zip with everything that Pyodide imports, and Pyodide itself.

`build` fills `py/` of a site. The archive holds what works in a browser without any package from
elsewhere: the browser's `InferenceSession`, the kernel generators with their templates, Jinja2 and
MarkupSafe (which falls back to pure Python). It is deterministic: the same sources, the same bytes.

Beside a Pyodide of the site's own lies its memory after it has started and imported the archive
(`web/py/snapshot.mjs` makes it, in Node): a page that loads it is spared nine tenths of the
processor time that Python's start takes, which its inference would notice. Pages can do without.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator
from importlib.resources import as_file, files
from pathlib import Path

from .errors import InputError
from .vendored import cache_folder

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
    "page_console.py",
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
_SNAPSHOT = "pywebgpu-py.snapshot.gz"
_SNAPSHOT_SECONDS = 300
_SNAPSHOTS_KEPT = 8
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
    index = snapshot = None
    if isinstance(source, Path):
        _copy_pyodide(source, target / "pyodide")
        index = "pyodide/"
        if made := _snapshot(source, target / ARCHIVE):
            shutil.copyfile(made, target / _SNAPSHOT)
            snapshot = _SNAPSHOT
    elif source is not None:
        index = source
    where = {"indexURL": index, "archive": ARCHIVE, "snapshot": snapshot}
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


def _snapshot(pyodide: Path, archive: Path) -> Path | None:
    """Python's memory after its start, from a cache where it has been made before; None without
    Node."""
    node = shutil.which("node")
    if node is None:
        return None
    with as_file(files("pywebgpu.web") / "py" / "snapshot.mjs") as script:
        digest = hashlib.sha256()
        for part in (script, archive, *(pyodide / name for name in PYODIDE_FILES)):
            digest.update(hashlib.sha256(part.read_bytes()).digest())
        made = cache_folder() / "python" / f"{digest.hexdigest()[:32]}.gz"
        if made.exists():
            return made
        made.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=made.parent) as scratch:
            out = Path(scratch) / made.name
            command = [node, str(script), str(pyodide), str(archive), str(out)]
            try:
                subprocess.run(command, capture_output=True, timeout=_SNAPSHOT_SECONDS, check=True)
            except subprocess.SubprocessError:
                return None  # a Node that is too old, say
            out.replace(made)
    newest = sorted(made.parent.glob("*.gz"), key=lambda file: file.stat().st_mtime, reverse=True)
    for old in newest[_SNAPSHOTS_KEPT:]:
        old.unlink(missing_ok=True)
    return made
