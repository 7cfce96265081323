"""The demo behind `make demo`: a real model from ONNX to answers and to a web page.

    python examples/demo.py [--out build/demo]

Exports the digits network, runs it through the embedded WebAssembly engine, checks the answers
against those that the training script wrote down, and builds the static site. It needs no GPU, no
browser and no network.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

from pywebgpu import InferenceSession
from pywebgpu.console import human_bytes, progress_bar
from pywebgpu.export import export
from pywebgpu.site import build_site

DIGITS = Path(__file__).resolve().parent / "digits"
SHAPES = DIGITS.parent / "shapes" / "shapes.onnx"
SHADES = " .:-=+*#%@"
TOLERANCE = 1e-4


def picture(pixels: list[int]) -> str:
    """An 8x8 digit with ink from 0 to 16, drawn with characters."""
    shades = [SHADES[min(ink * len(SHADES) // 17, len(SHADES) - 1)] * 2 for ink in pixels]
    return "\n".join("    " + "".join(shades[row * 8 : row * 8 + 8]) for row in range(8))


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> int:
    """Run the demo; 0 when every answer is right."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("build/demo"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()

    model, bundle, site = DIGITS / "digits.onnx", out / "digits", out / "site"
    with progress_bar(quiet=False) as progress:
        export(model, bundle, progress=progress)
    print(f"1. Exported {model.name} to {bundle} ({human_bytes(folder_bytes(bundle))}).")

    expected = json.loads((DIGITS / "samples.json").read_text())
    samples = expected["samples"]
    images = np.array([sample["pixels"] for sample in samples], np.float32) / 16
    images = images.reshape(len(samples), *expected["shape"])
    session = InferenceSession(bundle, providers=["wasm"])
    (answers,) = session.run([expected["output"]], {expected["input"]: images})
    wanted = np.array([sample["probabilities"] for sample in samples], np.float32)
    worst = float(np.abs(answers - wanted).max())
    first = samples[0]
    print(f"2. Ran {len(samples)} drawings on {session.device}. The first one:\n")
    print(picture(first["pixels"]))
    print(f"\n   is a {answers[0].argmax()} with probability {answers[0].max():.2f}.")
    if not worst <= TOLERANCE:
        print(f"   WRONG: differs from the expected answers by {worst:.2g}.", file=sys.stderr)
        return 1
    print(f"   All answers are as expected (largest difference {worst:.1g}).")

    with progress_bar(quiet=False) as progress:
        build_site([model, SHAPES], site, pyodide="none", progress=progress)
    print(f"3. Built the site in {site} ({human_bytes(folder_bytes(site))}).")
    print(f"\nDone in {time.perf_counter() - started:.1f} s. To see it:\n")
    print(f"    {Path(sys.executable).parent / 'pywebgpu'} serve {site}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
