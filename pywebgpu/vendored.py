"""Browser libraries that built sites carry: found in a node_modules folder, or installed by npm.

They are copied into the site, so that the site asks no other origin. The library itself and the
runtime need none of them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .errors import InputError

_INSTALL_SECONDS = 300


@dataclass(frozen=True)
class NpmPackage:
    """One package at one version. `files` maps its files to their names in the site's vendor/."""

    name: str
    version: str
    files: dict[str, str]


#: Turns text into the token ids of a `tokenizer.json`; 11 kB compressed, no dependency, no eval.
TOKENIZERS = NpmPackage(
    "@huggingface/tokenizers",
    "0.2.0",
    {
        "dist/tokenizers.min.mjs": "tokenizers.min.mjs",
        "LICENSE": "tokenizers.LICENSE.txt",
    },
)

#: Plots time series; 21 kB compressed, no dependency, no eval.
UPLOT = NpmPackage(
    "uplot",
    "1.6.32",
    {
        "dist/uPlot.esm.js": "uPlot.esm.js",
        "dist/uPlot.min.css": "uPlot.min.css",
        "LICENSE": "uPlot.LICENSE.txt",
    },
)

#: What the pages compare with, where that is wanted: its builds for WebAssembly and for WebGPU,
#: the latter with and without stack switching.
ONNX_RUNTIME_WEB = NpmPackage(
    "onnxruntime-web",
    "1.30.0",
    {
        f"dist/{name}": f"onnxruntime-web/{name}"
        for name in (
            "ort.wasm.min.mjs",
            "ort.webgpu.min.mjs",
            "ort.jspi.min.mjs",
            "ort-wasm-simd-threaded.mjs",
            "ort-wasm-simd-threaded.wasm",
            "ort-wasm-simd-threaded.asyncify.mjs",
            "ort-wasm-simd-threaded.asyncify.wasm",
            "ort-wasm-simd-threaded.jspi.mjs",
            "ort-wasm-simd-threaded.jspi.wasm",
        )
    },
)

#: Python for the browser; the site's Python page copies the files that it needs.
PYODIDE = NpmPackage("pyodide", "314.0.7", {})


def package_folder(package: NpmPackage) -> Path:
    """The folder of `package`, at its very version.

    Looked for in the folder named by PYWEBGPU_NODE_MODULES, in ``node_modules`` of the working
    folder and of those above it, and in a cache; installed into the cache when none has it.
    Raises InputError when it is nowhere and npm cannot install it.
    """
    cache = cache_folder() / "npm"
    folders = [Path(chosen)] if (chosen := os.environ.get("PYWEBGPU_NODE_MODULES")) else []
    here = Path.cwd()
    folders += [folder / "node_modules" for folder in (here, *here.parents)]
    folders.append(cache / "node_modules")
    for folder in folders:
        if _version(folder / package.name) == package.version:
            return folder / package.name
    _install(package, cache)
    return cache / "node_modules" / package.name


def copy_files(package: NpmPackage, target: Path) -> None:
    """Copy what a site needs of `package` into the folder `target`."""
    source = package_folder(package)
    for name, new_name in package.files.items():
        (target / new_name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / new_name)


def cache_folder() -> Path:
    """Where things are kept that can be made or fetched again."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "pywebgpu"


def _version(folder: Path) -> str | None:
    try:
        version = json.loads((folder / "package.json").read_text(encoding="utf-8"))["version"]
    except (OSError, ValueError, KeyError):
        return None
    return str(version)


def _install(package: NpmPackage, cache: Path) -> None:
    wanted = f"{package.name}@{package.version}"
    remedy = (
        f"Install Node.js with npm and try again, or run `npm install {wanted}` elsewhere and name "
        "its node_modules folder in PYWEBGPU_NODE_MODULES."
    )
    npm = shutil.which("npm")
    if npm is None:
        raise InputError(
            "the site needs a browser library, and npm, which would install it, is missing",
            where=wanted,
            remedy=remedy,
        )
    cache.mkdir(parents=True, exist_ok=True)
    command = [npm, "install", "--prefix", str(cache), "--ignore-scripts", "--no-audit"]
    command += ["--no-fund", "--loglevel=error", wanted]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_INSTALL_SECONDS, check=False
        )
        problem = done.stderr.strip() if done.returncode else ""
        failed = done.returncode != 0
    except subprocess.TimeoutExpired:
        problem, failed = f"no answer in {_INSTALL_SECONDS} s", True
    if failed:
        raise InputError(
            "npm could not install a browser library that the site needs",
            where=wanted,
            got=problem.splitlines()[-1] if problem else "no message",
            remedy=remedy,
        )
