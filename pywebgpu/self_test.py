"""Small kernels of each family with known answers: they tell a driver that computes wrongly.

A plan's own kernels have no known answer on a visitor's device. So for each family and form among
them (a convolution in tiles, a softmax over rows, ...) the same generator makes a kernel for a
problem of a few hundred numbers, and NumPy its answer. Runtimes run them once per device and
generator; where one is off, its family is named and another variant or provider takes over.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .codegen import scalar as sc
from .codegen import wgsl
from .codegen.caps import WgslCaps
from .codegen.spec import (
    Attention,
    Blocks,
    Conv,
    KernelSpec,
    Map,
    Matmul,
    Recurrent,
    Reduce,
    ReduceOp,
    Row,
    RowOp,
    Storage,
    View,
    family,
)
from .codegen.wgsl.kernel import WgslKernel
from .packing import pack_codes, pack_conv, pack_depthwise, pack_int8_quantised, pack_panels

Array = np.ndarray[Any, Any]
_DTYPES = {Storage.F32: np.float32, Storage.F16: np.float16, Storage.I32: np.int32,
           Storage.I8: np.int8}  # fmt: skip
_M, _N, _K = 10, 12, 32  # of a product: no multiple of any tile, more rows than "few"


@dataclass(frozen=True, slots=True)
class SelfTest:
    """One kernel without arguments, its operands' bytes and what it has to compute.

    `tolerance` is of the largest expected element: wide, since what drivers do wrongly is not
    rounding.
    """

    family: str
    kernel: WgslKernel
    operands: tuple[bytes, ...]
    output: Storage
    expected: tuple[float, ...]
    tolerance: float

    def to_json(self, codes: dict[str, int]) -> dict[str, Any]:
        """As in a bundle's file of them; `codes` numbers shader texts as in `WgslKernel`."""
        return {
            "family": self.family,
            "kernel": {"name": self.kernel.name, **self.kernel.to_json(codes)},
            "operands": [base64.b64encode(data).decode() for data in self.operands],
            "output": self.output.value,
            "expected": list(self.expected),
            "tolerance": self.tolerance,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any], kernel: WgslKernel) -> SelfTest:
        return cls(
            data["family"],
            kernel,
            tuple(base64.b64decode(text) for text in data["operands"]),
            Storage(data["output"]),
            tuple(data["expected"]),
            data["tolerance"],
        )

    def wrong(self, data: bytes | memoryview) -> str | None:
        """What is wrong with an output's bytes; None if nothing is."""
        found = np.frombuffer(data, _DTYPES[self.output])[: len(self.expected)].astype(np.float64)
        expected = np.array(self.expected)
        off = np.abs(found - expected)
        allowed = self.tolerance * np.abs(expected).max()
        bad = np.flatnonzero(~(off <= allowed))
        if not len(bad):
            return None
        first = bad[0]
        return (
            f"{len(bad)} of {len(found)} elements are wrong, the first of them number {first}: "
            f"{found[first]:g} in place of {expected[first]:g}"
        )


def self_tests(chosen: Iterable[tuple[KernelSpec, Any]], caps: WgslCaps) -> list[SelfTest]:
    """One for each form among a plan's kernels and their knobs on devices of these caps."""
    found: dict[tuple[Any, ...], SelfTest] = {}
    for spec, knobs in chosen:
        form = (_form(spec), type(knobs).__name__)
        if form not in found:
            made = _MAKERS[type(spec)](spec)
            if made is not None:
                found[form] = _test(*made, type(knobs), caps)
    return list(found.values())


def _test(
    spec: KernelSpec, operands: Sequence[Array], expected: Array, kind: type, caps: WgslCaps
) -> SelfTest:
    space = wgsl.space(spec, caps)
    knobs = next((k for k in space if type(k) is kind), space[0])
    return SelfTest(
        family(spec),
        wgsl.render(spec, knobs),
        tuple(
            np.ascontiguousarray(array).reshape(-1).astype(_DTYPES[storage]).tobytes()
            for array, storage in zip(operands, spec.operands, strict=True)
        ),
        spec.output,
        tuple(float(f"{value:.7g}") for value in np.asarray(expected, np.float64).ravel()),
        1e-2 if Storage.F16 in (*spec.operands, spec.output) else 1e-4,
    )


def _float(spec: KernelSpec) -> Storage:
    return Storage.F16 if Storage.F16 in (*spec.operands, spec.output) else Storage.F32


def _form(spec: KernelSpec) -> tuple[Any, ...]:
    """What the generator tells apart."""
    kind = (family(spec), _float(spec))
    if isinstance(spec, Matmul):
        bits = spec.blocks.bits if spec.blocks else 0
        return (*kind, spec.b is None, bits, Storage.I8 in spec.operands[:2])
    if isinstance(spec, Conv):
        return (*kind, spec.depthwise, Storage.I8 in spec.operands[:2])
    return (*kind, spec.op) if isinstance(spec, (Reduce, Row)) else kind


Made = tuple[KernelSpec, Sequence[Array], Array]


def _whole(*shape: int, seed: int = 1, least: int = -3, most: int = 3) -> Array:
    """Small whole numbers: their products and sums are exact in every storage."""
    return np.random.default_rng(seed).integers(least, most + 1, shape).astype(np.float64)


def _linear(shape: tuple[int, ...]) -> sc.Scalar:
    return sc.linear([sc.axis(i) for i in range(len(shape))], shape)


def _map(spec: Map) -> Made:
    """2 x^T + bias."""
    kind, shape = _float(spec), (6, 21)
    x, bias = _whole(21, 6), _whole(21, seed=2)
    value = sc.load(0, sc.axis(1) * 6 + sc.axis(0)) * 2.0 + sc.load(1, sc.axis(1))
    return Map(shape, value, _linear(shape), (kind, kind), kind), [x, bias], 2 * x.T + bias


_REDUCE: dict[ReduceOp, Callable[[Array], Array]] = {
    ReduceOp.SUM: lambda x: x.sum(-1),
    ReduceOp.PROD: lambda x: np.sign(x + 0.5).prod(-1),
    ReduceOp.MIN: lambda x: x.min(-1),
    ReduceOp.MAX: lambda x: x.max(-1),
    ReduceOp.ARGMIN: lambda x: x.argmin(-1),
    ReduceOp.ARGMAX: lambda x: x.argmax(-1),
    ReduceOp.ARGMIN_LAST: lambda x: x.shape[-1] - 1 - x[..., ::-1].argmin(-1),
    ReduceOp.ARGMAX_LAST: lambda x: x.shape[-1] - 1 - x[..., ::-1].argmax(-1),
}


def _reduce(spec: Reduce) -> Made:
    kind, shape = _float(spec), (5, 43)
    x = _whole(*shape)
    fed = np.sign(x + 0.5) if spec.op is ReduceOp.PROD else x
    arg = spec.op.value.startswith("arg")
    acc = sc.acc(sc.Type.I32 if arg else sc.Type.F32)
    small = Reduce(shape[:1], shape[1:], spec.op, sc.load(0, _linear(shape)), acc, sc.axis(0),
                   (kind,), Storage.I32 if arg else kind)  # fmt: skip
    return small, [fed], _REDUCE[spec.op](x)


def _row(spec: Row) -> Made:
    kind, shape = _float(spec), (5, 43)
    x = _whole(*shape)
    centred = x - x.mean(-1, keepdims=True)
    power = np.exp(x - x.max(-1, keepdims=True))
    expected = {
        RowOp.SOFTMAX: power / power.sum(-1, keepdims=True),
        RowOp.LOG_SOFTMAX: np.log(power / power.sum(-1, keepdims=True)),
        RowOp.LAYER: centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5),
        RowOp.RMS: x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5),
    }[spec.op]
    at = _linear(shape)
    small = Row(shape[:1], shape[1:], spec.op, 1e-5, sc.load(0, at), sc.acc(), at, (kind,), kind)
    return small, [x], expected


def _matmul(spec: Matmul) -> Made | None:
    kind = _float(spec)
    x, w = _whole(_M, _K), _whole(_K, _N, seed=2)
    plain = Matmul((), _M, _N, _K, View((_K, 1)), None, View((_N, 1)), sc.acc(), (kind, kind), kind)
    if spec.blocks is not None:
        half = 1 << (spec.blocks.bits - 1)
        scales = _whole(2, _N, seed=3, least=1)
        small = replace(plain, blocks=Blocks(spec.blocks.bits, _K // 2),
                        operands=(kind, Storage.I8, kind))  # fmt: skip
        codes = pack_codes((w + half).astype(np.uint8), spec.blocks.bits)
        return small, [x, codes, pack_panels(scales)], x @ (w * scales.repeat(_K // 2, 0))
    if spec.operands[1] is Storage.I8:
        if spec.operands[0] is not Storage.F32:
            return None  # exact products differ in their sums' type only
        x = np.abs(x)
        x[:, 0] = 127  # so that rounding to seven bits changes nothing
        panels = pack_int8_quantised(w.astype(np.int8), np.ones(_N, np.float32))
        return replace(plain, operands=(kind, Storage.I8)), [x, panels], x @ w
    if spec.b is None:
        return plain, [x, pack_panels(w)], x @ w
    x, w = _whole(2, _M, _K), _whole(2, _K, _N, seed=2)
    views = [View((rows * columns, columns, 1)) for rows, columns in ((_M, _K), (_K, _N), (_M, _N))]
    small = replace(plain, batch=(2,), a=views[0], b=views[1], out=views[2])
    return small, [x, w], x @ w


def _conv(spec: Conv) -> Made | None:
    if Storage.I8 in spec.operands[:2]:
        return None  # their integers are the products' above
    kind, height, width, channels = _float(spec), 5, 7, 8
    groups = channels if spec.depthwise else 1
    x = _whole(height, width, channels)
    w = _whole(channels, channels // groups, 3, 3, seed=2)
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    expected = np.zeros((height, width, channels))
    for dy, dx in np.ndindex(3, 3):
        window = padded[dy : dy + height, dx : dx + width]
        tap = w[:, :, dy, dx]
        expected += window * tap[:, 0] if groups > 1 else window @ tap.T
    strides = View((height * width * channels, width * channels, channels, 1))
    sizes = (height, width)
    small = Conv(1, sizes, sizes, channels, channels, groups, (3, 3), (1, 1), (1, 1), (1, 1),
                 strides, strides, sc.acc(), (kind, kind), kind)  # fmt: skip
    packed = pack_depthwise(w) if groups > 1 else pack_conv(w, 1)
    return small, [x, packed], expected


def _attention(spec: Attention) -> Made:
    kind, heads, queries, keys, size = _float(spec), 2, 5, 11, 16
    q = _whole(heads, queries, size)
    k, v = _whole(heads, keys, size, seed=2), _whole(heads, keys, size, seed=3)
    scores = 0.25 * q @ k.transpose(0, 2, 1)
    power = np.exp(scores - scores.max(-1, keepdims=True))
    views = [View((heads * n * size, n * size, size, 1)) for n in (queries, keys)]
    small = Attention(1, heads, heads, queries, keys, size, size, 0.25, False, True, views[0],
                      views[1], views[1], views[0], None, (kind,) * 3, kind)  # fmt: skip
    return small, [q, k, v], power / power.sum(-1, keepdims=True) @ v


def _recurrent(spec: Recurrent) -> None:
    """None yet: a whole layer has too many forms for one small problem to speak for."""


_MAKERS: dict[type, Callable[[Any], Made | None]] = {
    Map: _map,
    Reduce: _reduce,
    Row: _row,
    Matmul: _matmul,
    Conv: _conv,
    Attention: _attention,
    Recurrent: _recurrent,
}
