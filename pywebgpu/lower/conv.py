"""Convolutions: channels-last through `Conv`, 1x1 through `Matmul`, the rest through `Reduce`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..codegen import scalar as sc
from ..codegen.dims import Dim, ceildiv, dim_max, product
from ..codegen.scalar import Op, Scalar, Type
from ..codegen.spec import Conv, KernelSpec, Matmul, ReduceOp, Storage, View
from ..graph import DType, Node
from ..packing import pack_conv, pack_depthwise, pack_exact_conv, pack_int8_conv
from .engine import Lowering, lowers
from .index import Space, unravel
from .int4 import Int4
from .int8_cost import conv_cost
from .matmul import contiguous_unit, matrix_weights
from .movement import clamp, reshaped
from .values import Coordinates, Value, scalar_type


@dataclass(frozen=True, slots=True)
class Window:
    """How a kernel slides over the spatial axes. `before`, `after`: padding."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[Dim, ...]
    after: tuple[Dim, ...]


def window_of(node: Node, kernel: Sequence[int], sizes: Sequence[Dim]) -> Window:
    """The window that a node's attributes describe over an input of spatial `sizes`."""
    rank = len(kernel)
    stride = tuple(int(s) for s in node.attrs.get("strides") or [1] * rank)
    dilation = tuple(int(d) for d in node.attrs.get("dilations") or [1] * rank)
    mode = node.attrs.get("auto_pad", "NOTSET")
    mode = mode.decode() if isinstance(mode, bytes) else mode
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        before: list[Dim] = []
        after: list[Dim] = []
        for size, k, s, d in zip(sizes, kernel, stride, dilation, strict=True):
            total = dim_max((ceildiv(size, s) - 1) * s + (k - 1) * d + 1 - size, 0)
            small, large = total // 2, total - total // 2
            before.append(small if mode == "SAME_UPPER" else large)
            after.append(large if mode == "SAME_UPPER" else small)
        return Window(tuple(kernel), stride, dilation, tuple(before), tuple(after))
    pads = [0] * (2 * rank)
    if mode != "VALID":
        pads = [int(p) for p in node.attrs.get("pads") or pads]
    return Window(tuple(kernel), stride, dilation, tuple(pads[:rank]), tuple(pads[rank:]))


def tap(
    c: Scalar, r: Scalar, size: Dim, stride: int, dilation: int, before: Dim
) -> tuple[Scalar, Scalar]:
    """Source coordinate (forced inside) and whether it lies inside."""
    at = c * sc.const(stride) + r * sc.const(dilation) - sc.dim(before)
    inside = sc.binary(
        Op.AND,
        sc.binary(Op.LE, sc.const(0), at),
        sc.binary(Op.LT, at, sc.dim(size)),
    )
    return clamp(at, size), inside


def _with_bias(
    lw: Lowering, node: Node, dtype: DType, shape: tuple[Dim, ...], result: Value, spatial: int
) -> Value:
    """`result` plus the node's third input, one number per channel, where it has one."""
    bias = lw.optional(node, 2)
    if bias is None:
        return result
    added = bias_value(lw, bias, spatial)
    return lw.pointwise(dtype, shape, lambda p, q: p + q, result, added)


def bias_value(lw: Lowering, bias: Value, spatial: int) -> Value:
    """Per-channel values shaped so that they broadcast along channels."""
    shape: tuple[Dim, ...] = (bias.shape[0], *[1] * spatial)
    if bias.constant is not None:
        return lw.constant(bias.constant.reshape(-1, *[1] * spatial), bias.dtype)
    return reshaped(lw, bias, shape)


@lowers("Conv")
def lower_conv(lw: Lowering, node: Node) -> Value:
    dtype, shape = lw.out(node)
    x, w = lw.input(node, 0), lw.input(node, 1)
    spatial = x.rank - 2
    groups = int(node.attrs.get("group", 1))
    kernel = [int(k) for k in w.shape[2:] if isinstance(k, int)]
    window = window_of(node, kernel, x.shape[2:])
    static = all(isinstance(s, int) for s in (x.shape[1], *w.shape))
    if w.constant is None or spatial not in (1, 2) or not static:
        result = irregular(lw, dtype, shape, x, w, window, groups)
    else:
        # A product's rows cannot be stored channels first, as an output wants them.
        rows = shape[0] == 1 or not lw.becomes_output(node.outputs[0])
        name = w.name or "constant"
        result = convolve(lw, dtype, shape, x, w.constant, window, groups, rows, name)
    return _with_bias(lw, node, dtype, shape, result, spatial)


def convolve(
    lw: Lowering,
    dtype: DType,
    shape: tuple[Dim, ...],
    x: Value,
    weight: np.ndarray[Any, Any],
    window: Window,
    groups: int,
    rows: bool = True,
    name: str = "",
) -> Value:
    """1-D or 2-D convolution with constant weights; `rows`: 1x1 may become a product.

    name: the weight's, where it may become bytes. dtype I32: see `matmul.packed`.
    """
    if dtype.is_float:
        weight = weight.astype(np.float32)
    plain = (
        rows
        and groups == 1
        and set(window.kernel) | set(window.stride) == {1}
        and set(window.before) | set(window.after) == {0}
    )
    if plain:
        found = _as_product(lw, dtype, shape, x, weight, name)
        if found is not None:
            return found
    return _as_conv(lw, dtype, shape, x, weight, window, groups, name)


def channels_last(rank: int) -> tuple[int, ...]:
    return (0, *range(2, rank), 1)


def _spatial(c: Sequence[Scalar], rank: int) -> tuple[Scalar, ...]:
    """(n, y, x, channel) as ONNX's (n, channel, [y,] x)."""
    n, y, x, channel = c
    return (n, channel, y, x) if rank == 4 else (n, channel, x)


def _as_product(
    lw: Lowering, dtype: DType, shape: tuple[Dim, ...], x: Value, weight: np.ndarray[Any, Any],
    name: str,
) -> Value | None:  # fmt: skip
    """A 1x1 convolution: pixels are rows. None where the image is not rows of channels."""
    cout, cin = weight.shape[:2]
    pixels = (shape[0], *shape[2:])
    m = product(pixels)

    def there(c: Coordinates) -> Coordinates:
        n, *rest = unravel(c[0], pixels)
        return (n, c[1], *rest)

    def channels_adjacent(view: View) -> bool:
        return cin == 1 or view.strides[1] == 1

    if x.buffer is None:
        lw.materialise(x, channels_last(x.rank))
    found = lw.find_view(x, Space((m, cin)), there)
    if found is None or not channels_adjacent(found[1]):
        return None
    source, view = found
    weights, scratch = matrix_weights(lw, weight.reshape(cout, cin).T, m, name, dtype)

    def build(final: Scalar, store: Any) -> KernelSpec:
        return Matmul(
            (), m, cout, cin, contiguous_unit(view, 1, cin), None,
            contiguous_unit(store, 1, cout), final, (), _storage(final),
        )  # fmt: skip

    return lw.core(
        dtype, shape, (m, cout), there, build, fixed=(source, weights),
        acc=scalar_type(dtype), reads=scratch,
    )  # fmt: skip


def _storage(final: Scalar) -> Storage:
    return Storage.F32 if final.type is Type.F32 else Storage.I32


def _as_conv(
    lw: Lowering,
    dtype: DType,
    shape: tuple[Dim, ...],
    x: Value,
    weight: np.ndarray[Any, Any],
    window: Window,
    groups: int,
    name: str,
) -> Value:
    rank = x.rank
    cout, cin = weight.shape[0], weight.shape[1] * groups
    batch = shape[0]
    one: tuple[Any, ...] = () if rank == 4 else (1,)
    in_size = (*one, *x.shape[2:])
    out_size = (*one, *shape[2:])
    ports = set(lw.input_buffers)

    def accept(view: View) -> bool:
        return cin == 1 or view.strides[3] == 1

    direct = x.buffer in ports  # the model's own NCHW input is read as it lies
    source, view = lw.view(
        x,
        (batch, *in_size, cin),
        lambda c: _spatial(c, rank),
        channels_last(rank),
        (lambda view: True) if direct else accept,
    )
    view = contiguous_unit(view, 3, cin)
    none: tuple[Any, ...] = () if rank == 4 else (0,)

    def build(final: Scalar, store: Any) -> Conv:
        return Conv(
            batch=batch,
            in_size=(in_size[0], in_size[1]),
            out_size=(out_size[0], out_size[1]),
            cin=cin,
            cout=cout,
            groups=groups,
            kernel=_pair((*one, *window.kernel)),
            stride=_pair((*one, *window.stride)),
            dilation=_pair((*one, *window.dilation)),
            pad=((*none, *window.before)[0], (*none, *window.before)[1]),
            x=view,
            out=contiguous_unit(store, 3, cout),
            final=final,
            operands=(),
            output=_storage(final),
        )

    plain = replace(build(sc.acc(), view), operands=(Storage.F32, Storage.F32))
    weights, scratch = _weights(lw, weight, plain, name, dtype)
    return lw.core(
        dtype, shape, (batch, *out_size, cout), lambda c: _spatial(c, rank),
        build, fixed=(source, weights), acc=scalar_type(dtype), reads=scratch,
    )  # fmt: skip


def _weights(
    lw: Lowering, weight: np.ndarray[Any, Any], plain: Conv, name: str, dtype: DType
) -> tuple[int, tuple[int, ...]]:
    """The buffer of a packed weight, and what else its kernel binds (see `Core.reads`). plain: the
    kernel if everything were f32."""
    groups = plain.groups
    if not dtype.is_float:
        return lw.weight(pack_exact_conv(weight, groups), Storage.I8), ()
    if plain.depthwise:
        return lw.weight(pack_depthwise(weight), Storage.F32), ()
    if name and lw.int8 is not None and not isinstance(lw.int8, Int4):
        # One column of K = window x channels per output channel.
        matrix = weight.reshape(plain.cout, -1).T
        node = "" if lw.node is None else lw.node.name
        if lw.int8.takes(matrix, node, name, conv_cost(plain)):
            lw.int8.note(name, matrix)
            weights = lw.weight(pack_int8_conv(weight, groups), Storage.I8)
            return weights, (weights,)
    return lw.weight(pack_conv(weight, groups), Storage.F32), ()


def _pair(values: Sequence[int]) -> tuple[int, int]:
    first, second = values
    return int(first), int(second)


def irregular(
    lw: Lowering,
    dtype: DType,
    shape: tuple[Dim, ...],
    x: Value,
    w: Value,
    window: Window,
    groups: int,
) -> Value:
    """Any rank, weights computed at run time: a plain sum over taps and channels."""
    lw.limit(x, w)
    per_group = w.shape[1]
    outputs = w.shape[0] // groups

    def element(c: Coordinates, r: Coordinates) -> Scalar:
        channel = r[0]
        if groups > 1:
            channel = sc.binary(Op.UDIV, c[1], sc.dim(outputs)) * sc.dim(per_group) + r[0]
        there, inside = [c[0], channel], sc.const(True)
        for axis, step in enumerate(r[1:]):
            at, ok = tap(
                c[2 + axis], step, x.shape[2 + axis], window.stride[axis], window.dilation[axis],
                window.before[axis],
            )  # fmt: skip
            there.append(at)
            inside = sc.binary(Op.AND, inside, ok)
        value = lw.read(x, there) * lw.read(w, (c[1], r[0], *r[1:]))
        return sc.select(inside, value, sc.const(0.0) if value.type is Type.F32 else sc.const(0))

    return lw.reduce(dtype, shape, (per_group, *window.kernel), ReduceOp.SUM, element)


@lowers("ConvTranspose")
def lower_conv_transpose(lw: Lowering, node: Node) -> Value:
    """Each output gathers the inputs whose window covers it."""
    dtype, shape = lw.out(node)
    x, w = lw.input(node, 0), lw.input(node, 1)
    lw.limit(x, w)
    groups = int(node.attrs.get("group", 1))
    spatial = x.rank - 2
    kernel = w.shape[2:]
    stride = [int(s) for s in node.attrs.get("strides") or [1] * spatial]
    dilation = [int(d) for d in node.attrs.get("dilations") or [1] * spatial]
    before = _transpose_pads(node, x, shape, kernel, stride, dilation)
    inputs, outputs = x.shape[1] // groups, w.shape[1]

    def element(c: Coordinates, r: Coordinates) -> Scalar:
        group = sc.binary(Op.UDIV, c[1], sc.dim(outputs))
        channel = group * sc.dim(inputs) + r[0]
        there, inside = [c[0], channel], sc.const(True)
        for axis, step in enumerate(r[1:]):
            # output = input * stride + tap * dilation - before
            at = c[2 + axis] + sc.dim(before[axis]) - step * sc.const(dilation[axis])
            forward = sc.binary(Op.MAX, at, 0)
            source = sc.binary(Op.UDIV, forward, stride[axis])
            exact = sc.binary(Op.EQ, sc.binary(Op.UMOD, forward, stride[axis]), 0)
            size = sc.dim(x.shape[2 + axis])
            ok = sc.binary(Op.AND, sc.binary(Op.LE, sc.const(0), at), exact)
            ok = sc.binary(Op.AND, ok, sc.binary(Op.LT, source, size))
            there.append(sc.binary(Op.MIN, source, size - 1))
            inside = sc.binary(Op.AND, inside, ok)
        weight = lw.read(w, (channel, sc.binary(Op.UMOD, c[1], sc.dim(outputs)), *r[1:]))
        return sc.select(inside, lw.read(x, there) * weight, 0.0)

    result = lw.reduce(dtype, shape, (inputs, *kernel), ReduceOp.SUM, element)
    return _with_bias(lw, node, dtype, shape, result, spatial)


def _transpose_pads(
    node: Node,
    x: Value,
    shape: tuple[Dim, ...],
    kernel: Sequence[Dim],
    stride: Sequence[int],
    dilation: Sequence[int],
) -> list[Dim]:
    """Padding at the near edges, from the attributes or from the output's size."""
    spatial = len(kernel)
    mode = node.attrs.get("auto_pad", "NOTSET")
    mode = mode.decode() if isinstance(mode, bytes) else mode
    if mode == "NOTSET" and not node.attrs.get("output_shape"):
        pads = node.attrs.get("pads") or [0] * (2 * spatial)
        return [int(p) for p in pads[:spatial]]
    if mode == "VALID":
        return [0] * spatial
    extra = node.attrs.get("output_padding") or [0] * spatial
    before: list[Dim] = []
    for axis in range(spatial):
        reach = stride[axis] * (x.shape[2 + axis] - 1) + (kernel[axis] - 1) * dilation[axis] + 1
        total = dim_max(reach + int(extra[axis]) - shape[2 + axis], 0)
        half = total // 2
        before.append(half if mode == "SAME_UPPER" else total - half)
    return before
