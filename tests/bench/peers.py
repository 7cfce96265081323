"""The runtimes we compare with, at fixed versions, from the npm registry and PyPI."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

PACKAGES = {
    "onnxruntime-web": "1.30.0",
    "@tensorflow/tfjs": "4.22.0",
    "@tensorflow/tfjs-backend-wasm": "4.22.0",
    "@tensorflow/tfjs-backend-webgpu": "4.22.0",
    "@litertjs/core": "2.5.3",
    "@litertjs/wasm-utils": "2.5.3",
    "@jax-js/jax": "0.1.25",
}
ONNXRUNTIME_WEBGPU = "onnxruntime-webgpu==1.27.0"
# What of each package a page needs.
_FILES = {
    "onnxruntime-web": "dist/*.*",
    "@tensorflow/tfjs": "dist/tf.min.js",
    "@tensorflow/tfjs-backend-wasm": "dist/tf*.[jw]*",
    "@tensorflow/tfjs-backend-webgpu": "dist/tf-backend-webgpu.min.js",
    "@litertjs/core": "[dw]*/*.[jw]*",
    "@litertjs/wasm-utils": "dist/index.js",
    "@jax-js/jax": "dist/*.js",
}


def install(folder: Path, packages: dict[str, str] = PACKAGES) -> Path:
    """Install `packages` below `folder` (kept between runs); returns the node_modules folder."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = json.dumps({"private": True, "dependencies": packages}, indent=1)
    manifest, modules = folder / "package.json", folder / "node_modules"
    if modules.exists() and manifest.exists() and manifest.read_text() == wanted:
        return modules
    npm = shutil.which("npm")
    if npm is None:
        raise SystemExit("npm is needed to fetch the peers (apt-get install npm)")
    manifest.write_text(wanted)
    subprocess.run(
        [npm, "install", "--no-audit", "--no-fund", "--silent", "--ignore-scripts"],
        cwd=folder, check=True,
    )  # fmt: skip
    return modules


def link(modules: Path, out: Path) -> None:
    """The peers' browser files under `out`/<package without scope>/, hard-linked."""
    for package, pattern in _FILES.items():
        source = modules / package
        target = out / package.split("/")[-1]
        target.mkdir(parents=True, exist_ok=True)
        for file in source.glob(pattern):
            if file.suffix != ".map" and not (target / file.name).exists():
                os.link(file, target / file.name)


def use_onnxruntime_webgpu(folder: Path) -> None:
    """Let `import onnxruntime` find the build with the WebGPU provider, kept below `folder`.

    It has the plain build's name, so that it must not be installed beside it. Where PyPI has no
    wheel for this machine, the plain one stays.
    """
    target = (folder / "onnxruntime-webgpu").resolve()
    if not target.exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        subprocess.run([*command, "--target", str(target), ONNXRUNTIME_WEBGPU], check=False)
    if target.exists():
        sys.path.insert(0, str(target))
