"""All knobs that a kernel could have, beyond the few that its `space` offers a tuner."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

from pywebgpu.codegen import wasm
from pywebgpu.codegen.caps import WasmCaps
from pywebgpu.codegen.spec import Attention, Conv, KernelSpec, Matmul
from pywebgpu.codegen.wasm import attention, conv, matmul, winograd
from pywebgpu.codegen.wasm.product import Tile

CASES = (
    "matmul 512^3",
    "matmul 128x1536x384 gelu",
    "gemv 1x3072x768",
    "conv 3x3 64-64 56",
    "attention 12x128x32 (MiniLM)",
)
"""Of `tests.bench.kernels.CASES`."""

_UNROLLS = (1, 2, 4, 8)


def everything(spec: KernelSpec, caps: WasmCaps) -> list[Any]:
    """Every register tile that fits the registers, with blocks from half to twice the default's.

    The default comes first.
    """
    default = wasm.space(spec, caps)[0]
    if isinstance(spec, Matmul):
        found = _matmul(spec, caps, default)
    elif isinstance(spec, Attention):
        found = _attention(caps)
    else:
        assert isinstance(spec, Conv)
        found = _winograd(caps) + _conv(spec, caps)
    return list(dict.fromkeys([default, *found]))


def _tiles(caps: WasmCaps, most_rows: int = 10, most_panels: int = 7) -> list[Tile]:
    shapes = itertools.product(range(1, most_rows + 1), range(1, most_panels + 1), _UNROLLS)
    tiles = [Tile(*shape) for shape in shapes]
    return [t for t in tiles if t.registers <= caps.simd_registers]


def _matmul(spec: Matmul, caps: WasmCaps, default: matmul.Knobs) -> list[matmul.Knobs]:
    rows = spec.m if isinstance(spec.m, int) else 10
    ways = [(0, False), (0, True), (256, False), (256, True)] if rows > 1 else [(0, False)]
    blocks = [default.block // 2, default.block, default.block * 2] if rows > 1 else [default.block]
    return [
        replace(default, rows=t.rows, panels=t.panels, unroll=t.unroll, block=block, depth=depth,
                pack=pack)
        for t in _tiles(caps, rows) for block in blocks for depth, pack in ways
    ]  # fmt: skip


def _winograd(caps: WasmCaps) -> list[winograd.Knobs]:
    return [
        winograd.Knobs(m, rows, unroll, rows * times, group, keep)
        for rows in range(2, 7)
        if Tile(rows, 1, 1).registers <= caps.simd_registers
        for m, unroll in itertools.product((2, 4), (2, 4))
        for times, group, keep in itertools.product((2, 4, 8), (2, 4, 8), (False, True))
    ]


def _conv(spec: Conv, caps: WasmCaps) -> list[conv.Knobs]:
    height, width = spec.out_size
    assert isinstance(height, int)
    assert isinstance(width, int)
    blocks = [(h, width) for h in (1, 2, 4, 7, 14, 28, 56) if h <= height]
    return [conv.Knobs(t.rows, t.panels, t.unroll, b) for t in _tiles(caps) for b in blocks]


def _attention(caps: WasmCaps) -> list[attention.Knobs]:
    return [
        attention.Knobs(t.rows, t.rows * round(q / t.rows), kv, t.unroll)
        for t in _tiles(caps, most_panels=1)
        for q, kv in itertools.product((16, 32, 64, 128), (32, 64, 128, 256))
    ]
