"""What `pywebgpu info` tells: about this machine, an ONNX file or a bundle. It builds nothing."""

from __future__ import annotations

import os
import platform
import shutil
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from math import prod
from pathlib import Path
from typing import Any

from . import __version__
from .errors import DeviceError, InputError, ModelError

_PACKAGES = ("onnx", "numpy", "jinja2", "wasmtime", "wgpu", "onnxruntime", "torch")
_BROWSERS = ("chromium", "google-chrome", "firefox")


def describe_machine() -> dict[str, Any]:
    """Versions, and what each provider would run on here."""
    return {
        "pywebgpu": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": {name: _package_version(name) for name in _PACKAGES},
        "providers": {"wasm": _wasm(), "webgpu": _webgpu()},
        "browsers": {name: path for name in _BROWSERS if (path := shutil.which(name))},
    }


def describe_device() -> dict[str, Any]:
    """What WebAssembly can do on this machine, measured now (see `codegen.wasm.profile`)."""
    if not _wasm()["available"]:
        raise DeviceError("there is no WebAssembly engine", remedy="pip install wasmtime")
    from .device_profile import profile_wasmtime

    return {"engine": _wasm()["engine"], **profile_wasmtime().to_json()}


def describe_devices() -> dict[str, Any]:
    """The GPUs that `--device` and a session's `adapter` choose from."""
    from .executors.wgpu_adapter import REMEDY, choose, describe, list_adapters

    adapters = list_adapters()
    if not adapters:
        raise DeviceError("no WebGPU adapter", where="webgpu", remedy=REMEDY)
    default = describe(choose("high-performance")).name
    return {"default": default, "adapters": [adapter.to_json() for adapter in adapters]}


def _package_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _wasm() -> dict[str, Any]:
    try:
        import wasmtime
    except (ImportError, OSError) as error:  # no such package, or its library does not load
        return {"available": False, "why": str(error), "remedy": "pip install wasmtime"}
    del wasmtime
    return {"available": True, "engine": f"wasmtime {_package_version('wasmtime')}"}


def _webgpu() -> dict[str, Any]:
    from .executors.wgpu_adapter import REMEDY, list_adapters

    try:
        adapters = list_adapters()
    except DeviceError as error:
        return {"available": False, "why": error.what, "remedy": error.remedy, "adapters": []}
    if not adapters:
        return {"available": False, "why": "no adapter", "remedy": REMEDY, "adapters": []}
    return {"available": True, "adapters": [adapter.name for adapter in adapters]}


def describe(path: Path) -> dict[str, Any]:
    """An ONNX file or a bundle."""
    if path.is_dir() or path.suffix == ".zip":
        return _describe_bundle(path)
    if path.is_file():
        return _describe_onnx(path)
    raise InputError("no such model or bundle", where=str(path), remedy="Check the path.")


def _describe_onnx(path: Path) -> dict[str, Any]:
    """From the file as it stands: external data need not be there, nothing is inferred."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(str(path), load_external_data=False)
    except DecodeError as error:
        raise ModelError("not an ONNX model", where=str(path), got=error) from error
    if not model.opset_import:
        raise ModelError("not an ONNX model: it has no opset", where=str(path))
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    return {
        "kind": "onnx",
        "path": str(path),
        "bytes": path.stat().st_size,
        "producer": " ".join(filter(None, (model.producer_name, model.producer_version))),
        "opsets": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "inputs": [_onnx_port(value) for value in graph.input if value.name not in constants],
        "outputs": [_onnx_port(value) for value in graph.output],
        "parameters": sum(prod(tensor.dims) for tensor in graph.initializer),
        "nodes": len(graph.node),
        "operators": dict(Counter(sorted(node.op_type for node in graph.node)).most_common()),
    }


def _onnx_port(value: Any) -> dict[str, Any]:
    from onnx import TensorProto

    if not value.type.HasField("tensor_type"):
        return {"name": value.name, "dtype": value.type.WhichOneof("value"), "shape": None}
    tensor = value.type.tensor_type
    shape = [
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?"
        for dim in tensor.shape.dim
    ]
    name = TensorProto.DataType.Name(tensor.elem_type).lower()
    return {"name": value.name, "dtype": {"float": "float32"}.get(name, name), "shape": shape}


def _describe_bundle(path: Path) -> dict[str, Any]:
    """From the manifest; `pywebgpu run` checks the files against their hashes."""
    from .bundle import Bundle

    manifest = Bundle.load(path).manifest
    return {
        "kind": "bundle",
        "path": str(path),
        "name": manifest["name"],
        "format_version": manifest["format_version"],
        "generator_version": manifest["generator_version"],
        "symbols": manifest["symbols"],
        "inputs": [_bundle_port(port) for port in manifest["inputs"]],
        "outputs": [_bundle_port(port) for port in manifest["outputs"]],
        "steps": len(manifest["steps"]),
        "kernels": len({step["kernel"] for step in manifest["steps"]}),
        "dispatches": _dispatches(manifest["webgpu"]),
        "weight_bytes": manifest["weights"]["bytes"],
        "files": {name: entry["bytes"] for name, entry in sorted(manifest["files"].items())},
    }


def _dispatches(webgpu: dict[str, Any]) -> int:
    """Kernel launches of a run on WebGPU, with the kernels that every device can run."""
    kernels = webgpu["variants"][-1]["kernels"]
    return sum(len(kernels[step["kernel"]]["passes"]) for step in webgpu["steps"])


def _bundle_port(port: dict[str, Any]) -> dict[str, Any]:
    from .codegen.dims import dim_from_json, dim_str

    shape = [dim_from_json(dim) for dim in port["shape"]]
    return {
        "name": port["name"],
        "dtype": port["dtype"],
        "shape": [dim if isinstance(dim, int) else dim_str(dim) for dim in shape],
    }
