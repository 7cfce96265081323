"""The folder that a benchmark page is served from: runtimes, models, bundles and inputs."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from pywebgpu.export import export
from tests.bench import peers
from tests.bench.cases import Case, constants, feeds

ROOT = Path(__file__).parents[2]


class BenchFolder:
    """Keeps models and peers between runs; our runtime and bundles are made anew."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()

    def fill(self, peers_folder: Path | None = None) -> None:
        """Put the runtimes in place; `peers_folder` holds the peers where npm is not at hand."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if peers_folder is None:
            peers.link(peers.install(self.folder / "npm"), self.folder / "peers")
        else:
            shutil.copytree(peers_folder, self.folder / "peers", dirs_exist_ok=True)
        for name, source in {"web": ROOT / "web", "page": ROOT / "tests/bench/page"}.items():
            shutil.rmtree(self.folder / name, ignore_errors=True)
            shutil.copytree(source, self.folder / name)
        shutil.rmtree(self.folder / "bundles", ignore_errors=True)

    def prepare(self, case: Case, lite: bool = True) -> dict[str, Any]:
        """Model, bundle, inputs and constants as files below the folder, and their URLs; `lite`:
        an operator's model in LiteRT's form too."""
        import onnxruntime  # which one is decided when a benchmark starts

        key = _key(case.name)
        model = self.folder / "models" / f"{_key(case.model)}.onnx"
        model.parent.mkdir(exist_ok=True)
        if not model.exists():
            case.make(model)
        bundle = self.folder / "bundles" / key
        if not bundle.exists():
            bundle.parent.mkdir(exist_ok=True)
            export(model, bundle, dtype="f16" if case.dtype == "f16" else "f32")
        quantised = self._quantised(model, key) if case.int8 else {}
        data = self.folder / "data" / key
        data.mkdir(parents=True, exist_ok=True)

        def write(kind: str, name: str, array: np.ndarray[Any, Any]) -> str:
            path = data / f"{kind}-{name}.bin"
            path.write_bytes(np.ascontiguousarray(array).tobytes())
            return f"../data/{key}/{path.name}"

        fed = feeds(case, model)
        native = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        first = np.asarray(native.run(None, fed)[0], np.float32)
        theirs, their_feeds = model, fed
        if case.dtype == "f16":
            theirs, their_feeds = self._half(model), {n: _half(a) for n, a in fed.items()}
        tflite = self.folder / "models" / f"{key}.tflite"
        if lite and case.op and not tflite.exists():
            from tests.bench import tflite_model  # only here is its package needed

            tflite_model.write(tflite, case.op, constants(model))

        def ports(kind: str, arrays: dict[str, np.ndarray[Any, Any]]) -> dict[str, Any]:
            return {
                n: {"type": str(a.dtype), "shape": list(a.shape), "url": write(kind, n, a)}
                for n, a in arrays.items()
            }

        return {
            "name": case.name,
            "dims": case.dims,
            "op": case.op,
            "lite": f"../models/{key}.tflite",
            "expected": write("expected", "output", first),
            "dtype": case.dtype,
            "model": f"../models/{theirs.name}",
            "bundle": f"../bundles/{key}/",
            **quantised,
            "constants": {
                n: {"url": write("constant", n, a), "shape": list(a.shape)}
                for n, a in (constants(model) if case.op else {}).items()
            },
            "feeds": ports("feed", fed),
            "modelFeeds": ports("model-feed", their_feeds),
        }

    def _half(self, model: Path) -> Path:
        """The model as ONNX Runtime's own tool puts it into f16, inputs and outputs too."""
        path = model.with_suffix(".f16.onnx")
        if not path.exists():
            from onnxruntime.transformers.float16 import convert_float_to_float16

            onnx.save(convert_float_to_float16(onnx.load(model)), path)
        return path

    def _quantised(self, model: Path, key: str) -> dict[str, str]:
        """Our int8 bundle, and what ONNX Runtime's tool makes of the model."""
        from onnxruntime.quantization import QuantType, quantize_dynamic

        theirs = model.with_suffix(".int8.onnx")
        if not theirs.exists():
            quantize_dynamic(model, theirs, weight_type=QuantType.QInt8, per_channel=True)
        ours = self.folder / "bundles" / f"{key}-int8"
        if not ours.exists():
            export(model, ours, quantize="int8")
        return {"bundleInt8": f"../bundles/{ours.name}/", "modelInt8": f"../models/{theirs.name}"}


def _key(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:12]


def _half(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return array.astype(np.float16) if array.dtype == np.float32 else array
