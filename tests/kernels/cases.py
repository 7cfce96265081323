"""Specs of every family with operands to run them on, built from a few numbers.

What the WGSL tests draw from: by hypothesis with odd sizes, and one of each kind for Chromium.
A `Case` is a spec, its flat operands, its arguments and the number of output elements.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pywebgpu.codegen import scalar as sc
from pywebgpu.codegen.dims import Dim, symbol
from pywebgpu.codegen.scalar import Op, Scalar, Type
from pywebgpu.codegen.spec import (
    PANEL,
    STATISTICS,
    Attention,
    Beside,
    Blocks,
    Conv,
    Epilogue,
    KernelSpec,
    Map,
    Matmul,
    Prologue,
    Reduce,
    ReduceOp,
    Row,
    RowOp,
    Storage,
    View,
)
from pywebgpu.packing import pack_codes, pack_int8_panels, pack_panels

F, H, I = Storage.F32, Storage.F16, Storage.I32  # noqa: E741
Array = np.ndarray[Any, Any]
_DTYPE = {F: np.float32, H: np.float16, I: np.int32, Storage.I8: np.int8}


@dataclass(frozen=True)
class Case:
    spec: KernelSpec
    operands: list[Array]
    args: tuple[int, ...]
    out_size: int


class Build:
    """Random operands from a seed; sizes become run-time arguments where `dynamic`."""

    def __init__(self, seed: int = 0, dynamic: bool = False, half: bool = False) -> None:
        self.rng = np.random.default_rng(seed)
        self.dynamic, self.float = dynamic, H if half else F
        self.operands: list[Array] = []
        self.storage: list[Storage] = []
        self.args: list[int] = []

    def size(self, value: int) -> Dim:
        if not self.dynamic:
            return value
        self.args.append(value)
        return symbol(f"a{len(self.args) - 1}")

    def operand(self, values: Array, storage: Storage | None = None) -> int:
        storage = storage or self.float
        self.operands.append(np.asarray(values).ravel().astype(_DTYPE[storage]))
        self.storage.append(storage)
        return len(self.operands) - 1

    def normal(self, *shape: int) -> int:
        return self.operand(self.rng.standard_normal(shape))

    def case(self, make: Any, elements: int, **fields: Any) -> Case:
        fields.setdefault("output", self.float)
        spec = make(operands=tuple(self.storage), n_args=len(self.args), **fields)
        return Case(spec, self.operands, tuple(self.args), elements)


def linear(shape: tuple[Dim, ...]) -> Scalar:
    return sc.linear([sc.axis(i) for i in range(len(shape))], shape)


def pack(matrix: Array) -> Array:
    """K x N into the layout of `spec.PANEL`."""
    k, n = matrix.shape
    panels = np.zeros((-(-n // PANEL), k, PANEL))
    for p in range(panels.shape[0]):
        columns = matrix[:, p * PANEL : (p + 1) * PANEL]
        panels[p, :, : columns.shape[1]] = columns
    return panels


def map_case(sizes: tuple[int, ...], beside: bool = False, **options: Any) -> Case:
    """tanh(x + bias over the last axis) * transposed y; `beside`: and x / 2 - y as it lies."""
    b = Build(**options)
    shape = tuple(b.size(s) for s in sizes)
    x, bias, y = b.normal(*sizes), b.normal(sizes[-1]), b.normal(*sizes[::-1])
    axes = [sc.axis(i) for i in range(len(shape))]
    back = sc.linear(axes[::-1], shape[::-1])
    value = sc.unary(Op.TANH, sc.load(x, linear(shape)) + sc.load(bias, axes[-1]))
    at = linear(shape)
    more = Beside(sc.load(x, at) * 0.5 - sc.load(y, at), b.float) if beside else None
    return b.case(
        Map, math.prod(sizes), shape=shape, value=value * sc.load(y, back), index=at, beside=more
    )  # fmt: skip


def reduce_case(
    sizes: tuple[int, ...],
    inner: tuple[int, ...],
    op: ReduceOp,
    first: bool = False,
    **options: Any,
) -> Case:
    """`first`: the reduced axes are the outer ones in memory."""
    b = Build(**options)
    shape, reduced = tuple(map(b.size, sizes)), tuple(map(b.size, inner))
    x = b.normal(*sizes, *inner)
    order = [sc.axis(i) for i in range(len(shape) + len(reduced))]
    whole = (*shape, *reduced)
    if first:
        order = [*order[len(shape) :], *order[: len(shape)]]
        whole = (*reduced, *shape)
    arg = op.value.startswith("arg")
    acc = sc.acc(Type.I32 if arg else Type.F32)
    return b.case(
        Reduce, math.prod(sizes), shape=shape, reduce=reduced, op=op,
        value=sc.load(x, sc.linear(order, whole)), final=acc, index=linear(shape),
        output=I if arg else b.float,
    )  # fmt: skip


def row_case(
    sizes: tuple[int, ...], inner: tuple[int, ...], op: RowOp, first: bool = False, **options: Any
) -> Case:
    b = Build(**options)
    shape, row = tuple(map(b.size, sizes)), tuple(map(b.size, inner))
    x, scale = b.normal(*sizes, *inner), b.normal(math.prod(inner))
    axes = [sc.axis(i) for i in range(len(shape) + len(row))]
    order, whole = axes, (*shape, *row)
    if first:
        order, whole = [*axes[len(shape) :], *axes[: len(shape)]], (*row, *shape)
    at = sc.linear(order, whole)
    along = sc.linear(axes[len(shape) :], row)
    return b.case(
        Row, math.prod(sizes) * math.prod(inner), shape=shape, row=row, op=op, eps=1e-5,
        value=sc.load(x, at), final=sc.acc() * sc.load(scale, along), index=at,
    )  # fmt: skip


def matmul_case(
    m: int, n: int, k: int, int8: bool = False, heavy: bool = False, **options: Any
) -> Case:
    """A times packed columns, plus a bias, then relu, or `heavy`, tanh."""
    b = Build(**options)
    dm = b.size(m)
    b.normal(m, k)
    matrix = b.rng.standard_normal((k, n))
    if int8:
        b.operand(pack_int8_panels(matrix), Storage.I8)
    else:
        b.operand(pack(matrix))
    bias = b.normal(n)
    final = sc.acc() + sc.load(bias, sc.axis(1))
    final = sc.unary(Op.TANH, final * 0.1) if heavy else sc.binary(Op.MAX, final, 0.0)
    return b.case(
        Matmul, m * n, batch=(), m=dm, n=n, k=k, a=View((k, 1)), b=None, out=View((n, 1)),
        final=final,
    )  # fmt: skip


def blocks_case(
    m: int, n: int, k: int, bits: int = 4, size: int = 32, zeros: bool = False, **options: Any
) -> Case:
    """A times block-quantised columns, plus a bias."""
    b = Build(**options)
    dm = b.size(m)
    b.normal(m, k)
    blocks = _in_blocks(b, k, n, Blocks(bits, size, zeros))
    bias = b.normal(n)
    return b.case(
        Matmul, m * n, batch=(), m=dm, n=n, k=k, a=View((k, 1)), b=None, out=View((n, 1)),
        final=sc.acc() + sc.load(bias, sc.axis(1)), blocks=blocks,
    )  # fmt: skip


def _columns(b: Build, k: int, n: int, blocks: Blocks | None) -> None:
    """The operands of packed columns, of floats or in blocks."""
    if blocks is None:
        b.operand(pack(b.rng.standard_normal((k, n)) / 3))
    else:
        _in_blocks(b, k, n, blocks)


def _in_blocks(b: Build, k: int, n: int, blocks: Blocks) -> Blocks:
    """The operands of block-quantised columns."""
    b.operand(pack_codes(b.rng.integers(0, 1 << blocks.bits, (k, n)), blocks.bits), Storage.I8)
    count = -(-k // blocks.size)
    b.operand(pack_panels(b.rng.uniform(0.01, 0.1, (count, n))))
    if blocks.zeros:
        b.operand(pack_panels(b.rng.integers(0, 1 << blocks.bits, (count, n)).astype(np.float64)))
    return blocks


def prologue_case(
    m: int, n: int, k: int, norm: RowOp | None, keep: bool = False, shared: bool = False,
    blocks: Blocks | None = None, given: bool = False, **options: Any,
) -> Case:  # fmt: skip
    """A product that makes its left operand: rows normalised, with scale, shift and a residual, or
    a gate times its values; `shared`: the epilogue reads what the prologue does; `given`: so are
    the rows' statistics."""
    b = Build(**options)
    m_, k_ = sc.axis(0), sc.axis(1)
    dm = b.size(m)
    x = b.operand(b.rng.standard_normal((m, 2 * k)) * 3 + 20)  # a mean far from zero
    _columns(b, k, n, blocks)
    bias = b.normal(n)
    at = m_ * (2 * k) + k_
    if norm is None:
        gate = sc.load(x, at)
        gate = gate * sc.unary(Op.TANH, gate * 0.02)
        made = Prologue(gate * sc.load(x, at + k) * 0.02, sc.acc())
    else:
        scale, shift = b.normal(k), b.normal(k)
        value = sc.load(x, at) + sc.load(x, at + k) * 0.5
        final = sc.acc() * sc.load(scale, k_) + sc.load(shift, k_)
        made = Prologue(value, final, norm, 1e-5, b.float if keep else None)
        if given:
            both = b.operands[x].astype(np.float64).reshape(m, 2, k)
            pieces = (both[:, 0] + both[:, 1] * 0.5).reshape(m, -1, STATISTICS)
            means = pieces.mean(-1) * (norm is RowOp.LAYER)
            squares = ((pieces - means[..., None]) ** 2).sum(-1)
            known = b.operand(np.stack([means, squares], -1), F)
            made = replace(made, statistics=sc.load(known, m_ * (k // STATISTICS * 2)))
    final = sc.acc() + sc.load(bias, sc.axis(1))
    if shared:
        final = final + sc.load(x, m_ * (2 * k))
    return b.case(
        Matmul, m * n, batch=(), m=dm, n=n, k=k, a=View((k, 1)), b=None, out=View((n, 1)),
        final=final, prologue=made, blocks=blocks,
    )  # fmt: skip


def statistics_case(
    m: int, n: int, k: int, norm: RowOp, blocks: Blocks | None = None, **options: Any
) -> Case:
    """A product and a residual far from zero, with statistics of its rows."""
    b = Build(**options)
    m_, n_ = sc.axis(0), sc.axis(1)
    dm = b.size(m)
    b.normal(m, k)
    _columns(b, k, n, blocks)
    x = b.operand(b.rng.standard_normal((m, n)) * 3 + 20)
    return b.case(
        Matmul, m * n, batch=(), m=dm, n=n, k=k, a=View((k, 1)), b=None, out=View((n, 1)),
        final=sc.acc() + sc.load(x, m_ * n + n_), statistics=norm, blocks=blocks,
    )  # fmt: skip


def epilogue_case(
    m: int, n: int, k: int, norm: RowOp, keep: bool = False, blocks: Blocks | None = None,
    **options: Any,
) -> Case:  # fmt: skip
    """A product and a residual, whose rows are normalised, scaled and shifted."""
    b = Build(**options)
    m_, n_ = sc.axis(0), sc.axis(1)
    dm = b.size(m)
    b.normal(m, k)
    _columns(b, k, n, blocks)
    bias, x = b.normal(n), b.operand(b.rng.standard_normal((m, n)) * 3 + 20)
    scale, shift = b.normal(n), b.normal(n)
    final = sc.acc() + sc.load(bias, n_) + sc.load(x, m_ * n + n_)
    normed = sc.acc() * sc.load(scale, n_) + sc.load(shift, n_)
    return b.case(
        Matmul, m * n, batch=(), m=dm, n=n, k=k, a=View((k, 1)), b=None, out=View((n, 1)),
        final=final, epilogue=Epilogue(norm, 1e-5, normed, b.float if keep else None),
        blocks=blocks,
    )  # fmt: skip


def batched_case(
    batch: tuple[int, ...], m: int, n: int, k: int, a_t: bool, b_t: bool, **options: Any
) -> Case:
    """Two activations; `a_t`, `b_t`: stored transposed."""
    b = Build(**options)
    db, (dm, dn, dk) = tuple(map(b.size, batch)), map(b.size, (m, n, k))
    b.normal(*batch, m, k)
    b.normal(*batch, k, n)

    def view(rows: Dim, columns: Dim, transposed: bool) -> View:
        strides: list[Dim] = [1, rows] if transposed else [columns, 1]
        step: Dim = rows * columns
        for size in reversed(db):
            strides.insert(0, step)
            step = step * size
        return View(tuple(strides))

    return b.case(
        Matmul, math.prod(batch) * m * n, batch=db, m=dm, n=dn, k=dk, a=view(dm, dk, a_t),
        b=view(dk, dn, b_t), out=view(dm, dn, False), final=sc.acc() * 0.5,
    )  # fmt: skip


def conv_case(
    batch: int, size: tuple[int, int], cin: int, cout: int, groups: int, kernel: tuple[int, int],
    stride: tuple[int, int] = (1, 1), dilation: tuple[int, int] = (1, 1),
    pad: tuple[int, int] = (0, 0), channels_first: bool = False, int8: bool = False,
    **options: Any,
) -> Case:  # fmt: skip
    """With a bias and relu."""
    b = Build(**options)
    out = [
        (size[i] + 2 * pad[i] - (kernel[i] - 1) * dilation[i] - 1) // stride[i] + 1 for i in (0, 1)
    ]
    db = b.size(batch)
    b.normal(batch, *size, cin)
    taps = kernel[0] * kernel[1]
    if groups == cin == cout:
        b.normal(taps, cout)
    else:
        matrices = [b.rng.standard_normal((taps * cin // groups, cout // groups))
                    for _ in range(groups)]  # fmt: skip
        if int8:
            b.operand(pack_int8_panels(np.stack(matrices)), Storage.I8)
        else:
            b.operand(np.stack([pack(m) for m in matrices]))
    bias = b.normal(cout)

    def view(height: int, width: int, channels: int) -> View:
        if channels_first:
            return View((height * width * channels, width, 1, height * width))
        return View((height * width * channels, width * channels, channels, 1))

    return b.case(
        Conv, batch * out[0] * out[1] * cout, batch=db, in_size=size, out_size=tuple(out),
        cin=cin, cout=cout, groups=groups, kernel=kernel, stride=stride, dilation=dilation,
        pad=pad, x=view(*size, cin), out=view(out[0], out[1], cout),
        final=sc.binary(Op.MAX, sc.acc() + sc.load(bias, sc.axis(3)), 0.0),
    )  # fmt: skip


def attention_case(
    batch: int, heads: int, kv_heads: int, q_len: int, kv_len: int, head_dim: int, v_dim: int,
    causal: bool = False, mask: str = "", zero: bool = False, turned: bool = False,
    **options: Any,
) -> Case:  # fmt: skip
    """`mask`: "", "some" (a third of the keys at -inf), "rows" (the first batch's all); `turned`:
    queries by their position, as in rotary embeddings."""
    b = Build(**options)
    db, dq, dk = map(b.size, (batch, q_len, kv_len))
    b.normal(batch, q_len, heads, head_dim)
    b.normal(batch, kv_len, kv_heads, head_dim)
    b.normal(batch, kv_len, kv_heads, v_dim)
    bias = None
    if mask:
        values = b.rng.standard_normal((batch, kv_len))
        values[b.rng.random((batch, kv_len)) < 0.3] = -np.inf
        values[:, 0] = 0.5
        if mask == "rows":
            values[0] = -np.inf
        bias = sc.load(b.operand(values, F), sc.axis(0) * sc.dim(dk) + sc.axis(3))

    query = None
    if turned:
        batch_, head, i, d = map(sc.axis, range(4))
        row = ((batch_ * sc.dim(dq) + i) * heads + head) * head_dim
        other = sc.binary(Op.UMOD, d + head_dim // 2, sc.const(head_dim))
        angle = sc.load(b.operand(b.rng.standard_normal((q_len, head_dim)), F), i * head_dim + d)
        query = sc.load(0, row + d) * sc.unary(Op.COS, angle)
        query = query + sc.load(0, row + other) * sc.unary(Op.SIN, angle)

    def view(length: Dim, count: int, features: int) -> View:
        return View((length * (count * features), features, count * features, 1))

    return b.case(
        Attention, batch * q_len * heads * v_dim, batch=db, heads=heads, kv_heads=kv_heads,
        q_len=dq, kv_len=dk, head_dim=head_dim, v_dim=v_dim, scale=head_dim**-0.5, causal=causal,
        zero_masked_rows=zero, q=view(dq, heads, head_dim), k=view(dk, kv_heads, head_dim),
        v=view(dk, kv_heads, v_dim), out=view(dq, heads, v_dim), bias=bias,
        query=query,
    )  # fmt: skip


def every_operator() -> Iterator[tuple[Op, Case]]:
    """One Map per operator, over values that include its awkward ones."""
    specials = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, -2.5, 3.0, 1e-3, 20.0, -20.0, 100.0]
    floats = np.array([*specials, np.inf, -np.inf, np.nan])
    whole = np.array([0, 1, -1, 2, -2, 3, -3, 7, -7, 100, 2**31 - 1, -(2**31), 31, 5])
    for op in Op:
        if op in (Op.CONST, Op.AXIS, Op.ARG, Op.LOAD, Op.ACC):
            continue
        for kind in (Type.F32, Type.I32, Type.BOOL):
            values = floats if kind is Type.F32 else whole
            if op in (Op.UDIV, Op.UMOD):
                values = np.array([1, 2, 3, 7, 100, 12345, 2**30])
            if op in (Op.SHL, Op.SHR, Op.SAR):
                values = np.array([0, 1, 5, 31, 17])
            case = _operator(op, kind, values)
            if case is not None:
                yield op, case


def _operator(op: Op, kind: Type, values: Array) -> Case | None:
    b = Build()
    storage = F if kind is Type.F32 else I
    count = len(values)
    a = b.operand(np.repeat(values, count), storage)
    c = b.operand(np.tile(values, count), storage)
    size = count * count
    axis = sc.axis(0)
    x, y = sc.load(a, axis, storage.type), sc.load(c, axis, storage.type)
    if kind is Type.BOOL:
        x, y = sc.unary(Op.TO_BOOL, x), sc.unary(Op.TO_BOOL, y)
    try:
        value = _apply(op, x, y)
    except TypeError:
        return None
    if value.type is Type.BOOL:
        value = sc.unary(Op.TO_I32, value)
    if value.type is Type.I32 and op is Op.TO_F32:
        return None
    output = F if value.type is Type.F32 else I
    return b.case(Map, size, shape=(size,), value=value, index=axis, output=output)


_ONE = {
    Op.NEG, Op.ABS, Op.SIGN, Op.EXP, Op.LOG, Op.SQRT, Op.RSQRT, Op.SIN, Op.COS, Op.TAN, Op.ASIN,
    Op.ACOS, Op.ATAN, Op.SINH, Op.COSH, Op.ASINH, Op.ACOSH, Op.ATANH, Op.TANH, Op.ERF, Op.FLOOR,
    Op.CEIL, Op.ROUND, Op.TRUNC, Op.ISNAN, Op.ISINF, Op.NOT, Op.TO_F32, Op.TO_I32, Op.TO_BOOL,
    Op.BITS_F32, Op.BITS_I32,
}  # fmt: skip
_BOOL_ONLY = {Op.AND, Op.OR, Op.XOR, Op.NOT}
_FLOAT_ONLY = {Op.POW, Op.ISNAN, Op.ISINF, Op.BITS_I32}
_NOT_BOOL = {
    Op.ADD, Op.SUB, Op.MUL, Op.DIV, Op.MOD, Op.REM, Op.NEG, Op.ABS, Op.MIN, Op.MAX, Op.SIGN,
    Op.EQ, Op.LT, Op.LE, Op.BITS_F32, Op.SELECT, Op.TO_BOOL,
}  # fmt: skip


def _apply(op: Op, x: Scalar, y: Scalar) -> Scalar:
    if op in _FLOAT_ONLY and x.type is not Type.F32:
        raise TypeError
    if op in _BOOL_ONLY and x.type is not Type.BOOL:
        raise TypeError
    if op in _NOT_BOOL and x.type is Type.BOOL:
        raise TypeError
    if op is Op.BITS_F32 and x.type is not Type.I32:
        raise TypeError
    if op is Op.BITS_F32:  # NaNs with a payload do not survive every GPU: finite numbers only
        return sc.unary(op, sc.binary(Op.BAND, x, 0x7EFFFFFF))
    if op in _ONE:
        return sc.unary(op, x)
    if op is Op.SELECT:
        return sc.select(sc.binary(Op.LT, x, y), x, y)
    return sc.binary(op, x, y)


def one_of_each() -> Iterator[tuple[str, Case]]:
    """A case for every path through the generators; sizes are beside the point."""
    yield "map", map_case((6, 8, 12))
    yield "map-odd", map_case((5, 3, 7))
    yield "map-dynamic", map_case((5, 8), dynamic=True)
    for reduce_op in ReduceOp:
        yield f"reduce-{reduce_op.value}", reduce_case((3,), (300,), reduce_op)
    yield "reduce-short", reduce_case((40,), (2, 3), ReduceOp.MAX)
    yield "reduce-first", reduce_case((40,), (33,), ReduceOp.SUM, first=True, dynamic=True)
    for row_op in RowOp:
        yield f"row-{row_op.value}", row_case((3,), (300,), row_op)
    yield "row-short", row_case((40,), (7,), RowOp.SOFTMAX)
    yield "row-first", row_case((24,), (5, 6), RowOp.LAYER, first=True)
    yield "row-dynamic", row_case((4,), (50,), RowOp.SOFTMAX, dynamic=True)
    yield "matmul", matmul_case(64, 64, 64)
    yield "matmul-odd", matmul_case(33, 21, 19)
    yield "matmul-long", matmul_case(32, 32, 1024)
    yield "matmul-one", matmul_case(1, 40, 100)
    yield "matmul-dynamic", matmul_case(17, 40, 36, dynamic=True)
    yield "int8", matmul_case(20, 40, 96, int8=True)
    yield "int8-one", matmul_case(1, 21, 70, int8=True, dynamic=True)
    yield "int8-conv", conv_case(1, (9, 8), 8, 16, 1, (3, 3), pad=(1, 1), int8=True)
    yield "blocks", blocks_case(20, 40, 96)
    yield "blocks-one", blocks_case(1, 40, 96, zeros=True)
    yield "blocks-bytes", blocks_case(3, 21, 70, 8, 16, zeros=True, dynamic=True)
    yield "batched", batched_case((2, 3), 16, 20, 24, False, False)
    yield "batched-at", batched_case((2,), 9, 20, 7, True, False, dynamic=True)
    yield "batched-bt", batched_case((2,), 9, 20, 8, False, True)
    yield "conv", conv_case(2, (9, 11), 8, 16, 1, (3, 3), pad=(1, 1))
    yield "conv-rgb", conv_case(1, (12, 12), 3, 10, 1, (5, 5), stride=(2, 2), pad=(2, 2))
    yield "conv-first", conv_case(1, (8, 8), 4, 8, 1, (3, 3), channels_first=True)
    yield "conv-grouped", conv_case(1, (8, 8), 16, 24, 4, (3, 3), pad=(1, 1), dynamic=True)
    yield "depthwise", conv_case(1, (8, 9), 8, 8, 8, (3, 3), pad=(1, 1))
    yield "depthwise-odd", conv_case(1, (8, 9), 7, 7, 7, (3, 3), pad=(1, 1), stride=(2, 2))
    yield "attention", attention_case(1, 2, 2, 33, 40, 32, 32)
    yield "attention-causal", attention_case(2, 4, 2, 9, 20, 16, 20, causal=True, dynamic=True)
    yield "attention-mask", attention_case(2, 2, 1, 9, 20, 10, 7, mask="some")
    yield "attention-decode", attention_case(1, 4, 2, 1, 70, 64, 64, causal=True)
    yield "attention-long", attention_case(1, 2, 1, 40, 300, 64, 64, dynamic=True)
    yield (
        "attention-long-causal",
        attention_case(1, 2, 1, 20, 520, 12, 16, causal=True, mask="some"),
    )
    yield (
        "attention-decode-long",
        attention_case(2, 4, 2, 1, 600, 16, 12, causal=True, dynamic=True),
    )
    yield "attention-wide", attention_case(1, 1, 1, 9, 12, 512, 512)


def for_gpus() -> Iterator[tuple[str, Case]]:
    """What only GPUs play: second outputs, products that make their left operand, queries that are
    turned."""
    yield "heavy epilogue", matmul_case(150, 140, 512, heavy=True)
    yield "two outputs", map_case((6, 8, 12), beside=True)
    yield "two odd outputs", map_case((5, 3, 7), beside=True, dynamic=True)
    for norm in (None, RowOp.LAYER, RowOp.RMS):
        for m, n, k in ((1, 24, 256), (40, 24, 256), (300, 256, 258)):
            name = f"{norm.value if norm else 'pointwise'} prologue {m}x{k}x{n}"
            yield name, prologue_case(m, n, k, norm, norm is not None)
        blocks = Blocks(4, 32, zeros=norm is None)
        name = f"{norm.value if norm else 'pointwise'} prologue before blocks"
        yield name, prologue_case(2, 24, 256, norm, norm is not None, blocks=blocks)
    for norm in (RowOp.LAYER, RowOp.RMS):
        for m, n, k in ((1, 24, 256), (40, 260, 256)):
            case = epilogue_case(m, n, k, norm, norm is RowOp.RMS, dynamic=m > 1)
            yield f"{norm.value} epilogue {m}x{k}x{n}", case
        for dynamic in (False, True):
            yield f"{norm.value} statistics", statistics_case(70, 96, 256, norm, dynamic=dynamic)
            given = prologue_case(70, 40, 256, norm, True, given=True, dynamic=dynamic)
            yield f"given {norm.value} statistics", given
    yield "turned attention", attention_case(1, 4, 2, 9, 40, 16, 16, turned=True)
