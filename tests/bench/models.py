"""The real models that the page benchmarks use, as bundles below build/, made when missing."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from pywebgpu.export import export

ROOT = Path(__file__).parents[2]
BUNDLES = ROOT / "build" / "bench" / "real"


@dataclass(frozen=True)
class BenchModel:
    """`sizes` gives the run-time sizes of the first answer; `top` bounds integer inputs."""

    onnx: Path
    sizes: dict[str, int]
    top: int = 1


MODELS = {
    "digits": BenchModel(ROOT / "examples" / "digits" / "digits.onnx", {"batch": 1}),
    "minilm": BenchModel(
        ROOT / "build" / "semantic_search" / "minilm.onnx", {"batch": 1, "sequence": 64}
    ),
}


def onnx_file(name: str) -> Path:
    """The ONNX file; MiniLM's is exported by its example's script (which needs torch)."""
    path = MODELS[name].onnx
    if not path.exists():
        script = ROOT / "examples" / "semantic_search" / "export.py"
        subprocess.run([sys.executable, script], cwd=ROOT, check=True)
    return path


def bundle(name: str) -> Path:
    """The bundle, exported again when the model or the compiler has changed since."""
    target, model = BUNDLES / name, onnx_file(name)
    stamp = target / "made-from.txt"
    now = _fingerprint(model)
    if not stamp.exists() or stamp.read_text() != now:
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        export(model, target)
        stamp.write_text(now)
    return target


def _fingerprint(model: Path) -> str:
    """Of the model's content and of every source that decides what the bundle holds."""
    digest = hashlib.sha256(model.read_bytes())
    for folder in ("pywebgpu", "codegen", "shaders"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".j2"):
                digest.update(path.read_bytes())
    return digest.hexdigest()


def zero_feeds(manifest_file: Path, sizes: dict[str, int]) -> dict[str, dict[str, object]]:
    """Input name -> {"type", "dims"} for these sizes; symbols without one count 1."""
    manifest = json.loads(manifest_file.read_text())

    def size(dim: object) -> int:
        if isinstance(dim, int):
            return dim
        if isinstance(dim, str):
            return sizes.get(dim, 1)
        raise SystemExit(f"no rule for the size {dim!r} of {manifest_file}")

    return {
        port["name"]: {"type": port["dtype"], "dims": [size(d) for d in port["shape"]]}
        for port in manifest["inputs"]
    }
