"""pywebgpu: compile an ONNX model into its own small runtime for the browser.

Importing this package loads nothing but the standard library: the names below are resolved when
they are first used. That keeps the command line quick, and lets the same package be imported in
Pyodide, where NumPy, onnx, wgpu and wasmtime do not exist.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> module that defines it. `pywebgpu.export` and `pywebgpu.check` are modules.
_LAZY = {
    "InferenceSession": "pywebgpu.session",
    "build_site": "pywebgpu.site",
    "PywebgpuError": "pywebgpu.errors",
    "ModelError": "pywebgpu.errors",
    "UnsupportedError": "pywebgpu.errors",
    "InputError": "pywebgpu.errors",
    "BundleError": "pywebgpu.errors",
    "DeviceError": "pywebgpu.errors",
}

# A page's Python cannot wait for a device, so there the session is the browser's.
if sys.platform == "emscripten":
    _LAZY |= dict.fromkeys(("InferenceSession", "Tensor"), "pywebgpu.executors.browser")

if TYPE_CHECKING:
    from pywebgpu.errors import (
        BundleError,
        DeviceError,
        InputError,
        ModelError,
        PywebgpuError,
        UnsupportedError,
    )

__all__ = [
    "BundleError",
    "DeviceError",
    "InferenceSession",
    "InputError",
    "ModelError",
    "PywebgpuError",
    "UnsupportedError",
    "__version__",
    "build_site",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use and remember it."""
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module 'pywebgpu' has no attribute {name!r}")
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_LAZY))
