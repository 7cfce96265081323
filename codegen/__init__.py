"""Kernels: what to compute -> a few candidates -> WGSL text or wasm bytes.

This package imports the standard library and Jinja2 only, so that it runs unchanged in Pyodide
within a second of loading. It knows no ONNX, holds no device handle and no weights.

Read in this order: `dims` (symbolic sizes), `scalar` (the expression computed per element),
`spec` (the kernel families), `caps` (what a device can do), then `wasm/` and `wgsl/`.
"""

GENERATOR_VERSION = "6"
"""Changes whenever generated code may change: part of the key of every tuning record."""
