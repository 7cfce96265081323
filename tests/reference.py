"""What a kernel spec means, in NumPy and float64: the judge of every generated kernel.

Written for clarity, not speed: the whole iteration space is evaluated at once. It shares nothing
with the generators, and it is strict: a load outside its operand is an error here, because the
spec promises that both sides of a SELECT may be evaluated.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pywebgpu.codegen.dims import Dim
from pywebgpu.codegen.dims import evaluate as evaluate_dim
from pywebgpu.codegen.scalar import Op, Scalar, Type, walk
from pywebgpu.codegen.spec import (
    PANEL,
    STATISTICS,
    Attention,
    Cell,
    Conv,
    KernelSpec,
    Map,
    Matmul,
    Prologue,
    Recurrent,
    Reduce,
    ReduceOp,
    Row,
    RowOp,
    Storage,
    View,
)

Array = np.ndarray[Any, Any]


def evaluate(
    spec: KernelSpec, operands: Sequence[Array], args: Sequence[int] = (), out_size: int = 0
) -> Array:
    """The output buffer as `out_size` elements: float64 (NaN where nothing was written) for float
    storage, int64 (minimum where nothing was written) for I32.

    operands: flat arrays in the order and with the element types of `spec.operands`.
    """
    env = {f"a{i}": int(a) for i, a in enumerate(args)}
    wide = [o.astype(np.int64 if s.type is Type.I32 else np.float64).ravel()
            for o, s in zip(operands, spec.operands, strict=True)]  # fmt: skip
    if spec.output is Storage.I32:
        out = np.full(out_size, np.iinfo(np.int64).min)
    else:
        out = np.full(out_size, np.nan)
    with np.errstate(all="ignore"):
        index, value = _FAMILIES[type(spec)](spec, wide, env)
    index, value = np.broadcast_arrays(index, value)
    if index.size:
        flat = index.ravel()
        if flat.min() < 0 or flat.max() >= out_size:
            raise IndexError(f"stores to {flat.min()}..{flat.max()} of {out_size} elements")
        if len(np.unique(flat)) != flat.size:
            raise ValueError("two coordinates store to one element")
        out[flat] = value.ravel()
    return out


def stored_elements(spec: KernelSpec, operands: Sequence[Array], args: Sequence[int] = ()) -> Array:
    """The elements of the output buffer that the kernel writes."""
    env = {f"a{i}": int(a) for i, a in enumerate(args)}
    with np.errstate(all="ignore"):
        index, _ = _FAMILIES[type(spec)](spec, [o.ravel() for o in operands], env)
    return np.unique(index)


def _dims(dims: Sequence[Dim], env: dict[str, int]) -> list[int]:
    return [evaluate_dim(d, env) for d in dims]


def _grid(shape: Sequence[int]) -> list[Array]:
    """One array per axis that broadcasts over the space."""
    rank = len(shape)
    return [np.arange(n).reshape([-1 if j == i else 1 for j in range(rank)])
            for i, n in enumerate(shape)]  # fmt: skip


def scalar(
    node: Scalar,
    axes: Sequence[Array],
    operands: Sequence[Array],
    env: dict[str, int],
    acc: Array | None = None,
) -> Array:
    """`node` over the coordinates that `axes` broadcast to."""
    done: dict[Scalar, Array] = {}
    for n in walk([node]):
        x = [done[a] for a in n.args]
        if n.op is Op.CONST:
            done[n] = np.asarray(n.value)
        elif n.op is Op.AXIS:
            done[n] = axes[int(n.value or 0)].astype(np.int64)
        elif n.op is Op.ARG:
            done[n] = np.asarray(env[f"a{n.value}"])
        elif n.op is Op.ACC:
            assert acc is not None, "ACC outside an epilogue"
            done[n] = acc
        elif n.op is Op.LOAD:
            done[n] = _load(operands[int(n.value or 0)], x[0], axes)
        elif n.op is Op.SELECT:
            done[n] = np.where(x[0], x[1], x[2])
        else:
            done[n] = _OPS[n.op](*x)
        if n.type is Type.I32:
            done[n] = _wrap(done[n])
    return done[node]


def _load(operand: Array, index: Array, axes: Sequence[Array]) -> Array:
    space = np.broadcast_shapes(*(a.shape for a in axes)) if axes else ()
    if 0 in space:  # nothing is read in an empty space
        return np.zeros(space)
    if index.size and (index.min() < 0 or index.max() >= operand.size):
        raise IndexError(
            f"loads {index.min()}..{index.max()} of an operand with {operand.size} elements"
        )
    return operand[index]


def _wrap(x: Array) -> Array:
    return (x.astype(np.int64) + 2**31) % 2**32 - 2**31


def _int_div(a: Array, b: Array) -> Array:
    safe = np.where(b == 0, 1, b)
    quotient = np.abs(a) // np.abs(safe)
    return np.where(b == 0, 0, quotient * np.sign(a) * np.sign(safe))


def _both(floats: Callable[..., Array], ints: Callable[..., Array]) -> Callable[..., Array]:
    return lambda *x: floats(*x) if x[0].dtype.kind == "f" else ints(*x)


def _to_i32(x: Array) -> Array:
    if x.dtype.kind != "f":
        return x.astype(np.int64)
    clipped = np.clip(np.trunc(np.nan_to_num(x, nan=0.0, posinf=2e9 * 2, neginf=-2e9 * 2)),
                      -(2.0**31), 2.0**31 - 1)  # fmt: skip
    return clipped.astype(np.int64)


def _unsigned(x: Array) -> Array:
    return x.astype(np.int64) & 0xFFFFFFFF


_erf = np.vectorize(math.erf, otypes=[np.float64])

_OPS: dict[Op, Callable[..., Array]] = {
    Op.ADD: np.add,
    Op.SUB: np.subtract,
    Op.MUL: np.multiply,
    Op.DIV: _both(np.divide, _int_div),
    Op.MOD: _both(np.mod, lambda a, b: np.where(b == 0, 0, a % np.where(b == 0, 1, b))),
    Op.REM: _both(np.fmod, lambda a, b: np.where(b == 0, 0, np.fmod(a, np.where(b == 0, 1, b)))),
    Op.NEG: np.negative,
    Op.ABS: np.abs,
    Op.MIN: np.minimum,
    Op.MAX: np.maximum,
    Op.SIGN: np.sign,
    Op.POW: np.power,
    Op.UDIV: lambda a, b: a // np.where(b == 0, 1, b),
    Op.UMOD: lambda a, b: a % np.where(b == 0, 1, b),
    Op.EXP: np.exp,
    Op.LOG: np.log,
    Op.SQRT: np.sqrt,
    Op.RSQRT: lambda x: 1 / np.sqrt(x),
    Op.SIN: np.sin,
    Op.COS: np.cos,
    Op.TAN: np.tan,
    Op.ASIN: np.arcsin,
    Op.ACOS: np.arccos,
    Op.ATAN: np.arctan,
    Op.SINH: np.sinh,
    Op.COSH: np.cosh,
    Op.ASINH: np.arcsinh,
    Op.ACOSH: np.arccosh,
    Op.ATANH: np.arctanh,
    Op.TANH: np.tanh,
    Op.ERF: _erf,
    Op.FLOOR: np.floor,
    Op.CEIL: np.ceil,
    Op.ROUND: np.round,
    Op.TRUNC: np.trunc,
    Op.EQ: np.equal,
    Op.LT: np.less,
    Op.LE: np.less_equal,
    Op.ISNAN: np.isnan,
    Op.ISINF: np.isinf,
    Op.AND: np.logical_and,
    Op.OR: np.logical_or,
    Op.XOR: np.logical_xor,
    Op.NOT: np.logical_not,
    Op.BAND: np.bitwise_and,
    Op.BOR: np.bitwise_or,
    Op.BXOR: np.bitwise_xor,
    Op.SHL: lambda a, b: a << (b & 31),
    Op.SHR: lambda a, b: _unsigned(a) >> (b & 31),
    Op.SAR: lambda a, b: a >> (b & 31),
    Op.TO_F32: lambda x: x.astype(np.float64),
    Op.TO_I32: _to_i32,
    Op.TO_BOOL: lambda x: x != 0,
    Op.BITS_F32: lambda x: x.astype(np.int32).view(np.float32).astype(np.float64),
    Op.BITS_I32: lambda x: x.astype(np.float32).view(np.int32).astype(np.int64),
}


def _map(spec: Map, operands: list[Array], env: dict[str, int]) -> tuple[Array, Array]:
    shape = _dims(spec.shape, env)
    axes = _grid(shape)
    return (
        np.broadcast_to(scalar(spec.index, axes, operands, env), shape),
        np.broadcast_to(scalar(spec.value, axes, operands, env), shape),
    )


def _reduce(spec: Reduce, operands: list[Array], env: dict[str, int]) -> tuple[Array, Array]:
    shape, inner = _dims(spec.shape, env), _dims(spec.reduce, env)
    value = np.broadcast_to(
        scalar(spec.value, _grid(shape + inner), operands, env), shape + inner
    ).reshape(*shape, math.prod(inner))
    acc = _REDUCE[spec.op](value)
    axes = _grid(shape)
    return (
        np.broadcast_to(scalar(spec.index, axes, operands, env), shape),
        np.broadcast_to(scalar(spec.final, axes, operands, env, acc), shape),
    )


def _last(pick: Callable[..., Array]) -> Callable[[Array], Array]:
    return lambda v: v.shape[-1] - 1 - pick(v[..., ::-1], axis=-1)


def _extreme(pick: Any, sign: int) -> Callable[[Array], Array]:
    def reduce(v: Array) -> Array:
        identity = sign * np.inf if v.dtype.kind == "f" else (2**31 - 1 if sign > 0 else -(2**31))
        return np.asarray(pick(v, axis=-1, initial=identity))

    return reduce


_REDUCE: dict[ReduceOp, Callable[[Array], Array]] = {
    ReduceOp.SUM: lambda v: v.sum(-1),
    ReduceOp.PROD: lambda v: v.prod(-1),
    ReduceOp.MIN: _extreme(np.min, 1),
    ReduceOp.MAX: _extreme(np.max, -1),
    ReduceOp.ARGMIN: lambda v: v.argmin(-1),
    ReduceOp.ARGMAX: lambda v: v.argmax(-1),
    ReduceOp.ARGMIN_LAST: _last(np.argmin),
    ReduceOp.ARGMAX_LAST: _last(np.argmax),
}


def _row(spec: Row, operands: list[Array], env: dict[str, int]) -> tuple[Array, Array]:
    shape, inner = _dims(spec.shape, env), _dims(spec.row, env)
    space = shape + inner
    axes = _grid(space)
    value = np.broadcast_to(scalar(spec.value, axes, operands, env), space)
    rows = value.reshape(*shape, math.prod(inner))
    acc = _ROW[spec.op](rows, spec.eps).reshape(space) if value.size else value
    return (
        np.broadcast_to(scalar(spec.index, axes, operands, env), space),
        np.broadcast_to(scalar(spec.final, axes, operands, env, acc), space),
    )


def _softmax(v: Array, _eps: float) -> Array:
    e = np.exp(v - v.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def _log_softmax(v: Array, _eps: float) -> Array:
    shifted = v - v.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


_ROW: dict[RowOp, Callable[[Array, float], Array]] = {
    RowOp.SOFTMAX: _softmax,
    RowOp.LOG_SOFTMAX: _log_softmax,
    RowOp.LAYER: lambda v, eps: (
        (v - v.mean(-1, keepdims=True)) / np.sqrt(v.var(-1, keepdims=True) + eps)
    ),
    RowOp.RMS: lambda v, eps: v / np.sqrt((v * v).mean(-1, keepdims=True) + eps),
}


def _view(view: View, axes: Sequence[Array], env: dict[str, int]) -> Array:
    total = np.asarray(evaluate_dim(view.offset, env))
    for a, stride in zip(axes, view.strides, strict=True):
        total = total + a * evaluate_dim(stride, env)
    return total


def unpack(panels: Array, k: int, n: int) -> Array:
    """K x N from the packed layout of `spec.PANEL`."""
    blocks = panels.reshape(-(-n // PANEL), k, PANEL)
    return np.asarray(blocks.transpose(1, 0, 2).reshape(k, len(blocks) * PANEL)[:, :n])


def int8_product(a: Array, panels: Array, k: int, n: int) -> Array:
    """Rows of A, rounded as `spec.Matmul` says, times int8 panels; NaN for rows that hold one.
    Integer rows are taken as they are."""
    k4, blocks = -(-k // 4) * 4, -(-n // PANEL)
    raw = panels.astype(np.int8).reshape(blocks, -1)
    weights = raw[:, : k4 * PANEL].reshape(blocks, k4 // 4, PANEL, 4).astype(np.int64)
    weights = weights.transpose(1, 3, 0, 2).reshape(k4, blocks * PANEL)[:k, :n]
    if a.dtype.kind == "i":
        return np.asarray(a.astype(np.int64) @ weights)
    scale = np.ascontiguousarray(raw[:, k4 * PANEL :][:, : 4 * PANEL]).view(np.float32)
    rows = a.astype(np.float32).reshape(-1, k)
    low, high = rows.min(-1, initial=0), rows.max(-1, initial=0)
    span = high - low
    inverse = np.where(span > 1e-30, np.float32(127) / np.where(span > 0, span, 1), 0)
    inverse = inverse.astype(np.float32)[:, None]
    zero = np.rint(-low[:, None] * inverse)
    q = np.minimum(np.rint(rows * inverse) + zero, 127)
    finite = np.isfinite(rows).all(-1, keepdims=True)
    whole = np.where(finite, q - zero, 0).astype(np.int64) @ weights
    result = whole * (span[:, None].astype(np.float64) / 127) * scale.reshape(-1)[:n]
    return np.where(finite, result, np.nan).reshape(*a.shape[:-1], n)


def dequantise(spec: Matmul, operands: list[Array], k: int, n: int) -> Array:
    """K x N from the operands of block-quantised weights."""
    blocks = spec.blocks
    assert blocks is not None
    panels, k4, count = -(-n // 8), -(-k // 4) * 4, -(-k // blocks.size)
    data = operands[1].astype(np.int8).view(np.uint8).reshape(panels, k4, blocks.bits)
    codes = np.unpackbits(data, axis=-1, bitorder="little").reshape(panels, k4, 8, blocks.bits)
    whole = (codes * (1 << np.arange(blocks.bits))).sum(-1)

    def spread(x: Array) -> Array:
        return np.repeat(x.reshape(panels, count, 8), blocks.size, axis=1)[:, :k]

    zeros = spread(operands[3]) if blocks.zeros else 1 << blocks.bits - 1
    found = (whole[:, :k] - zeros) * spread(operands[2])
    return np.asarray(found.transpose(1, 0, 2).reshape(k, -1)[:, :n])


def left_operand(spec: Matmul, operands: Sequence[Array], env: dict[str, int]) -> Array:
    """The m x k matrix that a product with a prologue makes for itself."""
    prologue = spec.prologue
    assert prologue is not None
    m, k = _dims((spec.m, spec.k), env)
    axes = _grid([m, k])
    value = np.broadcast_to(scalar(prologue.value, axes, operands, env), [m, k])
    if prologue.statistics is not None:
        value = _normalised_by(prologue, operands, env, value)
    elif prologue.norm is not None:
        value = _normalised(value, prologue.norm, prologue.eps)
    made = scalar(prologue.final, axes, operands, env, value)
    return np.broadcast_to(made, [m, k])


def second_output(
    spec: Map | Matmul, operands: Sequence[Array], args: Sequence[int]
) -> tuple[Array, Array]:
    """What a kernel with `keep` stores besides its result: where, and what, both flat."""
    env = {f"a{i}": a for i, a in enumerate(args)}
    if isinstance(spec, Map):
        assert spec.beside is not None
        beside = dataclasses.replace(spec, value=spec.beside.value, beside=None)
        index, made = _map(beside, list(operands), env)
        return index.ravel(), made.ravel()
    if spec.statistics is not None:
        made = _matmul(spec, list(operands), env)[1]
        made = made.reshape(len(made), -1, STATISTICS)
        mean = made.mean(-1, keepdims=True) * (spec.statistics is RowOp.LAYER)
        made = np.concatenate([mean, ((made - mean) ** 2).sum(-1, keepdims=True)], -1)
    elif spec.epilogue is None:
        made = left_operand(spec, operands, env)
    else:
        made = _matmul(dataclasses.replace(spec, epilogue=None), list(operands), env)[1]
    return np.arange(made.size), made.ravel()


def _matmul(spec: Matmul, operands: list[Array], env: dict[str, int]) -> tuple[Array, Array]:
    batch = _dims(spec.batch, env)
    m, n, k = _dims((spec.m, spec.n, spec.k), env)
    space = [*batch, m, n]
    axes = _grid(space)
    if 0 in space:
        return np.zeros(space, np.int64), np.zeros(space)
    if spec.prologue is not None:
        a = left_operand(spec, operands, env)
    else:
        a = _load(operands[0], _view(spec.a, _grid([*batch, m, k]), env), [])
        a = np.broadcast_to(a, [*batch, m, k])
    if spec.blocks is not None:
        b = dequantise(spec, operands, k, n)
    elif spec.operands[1] is Storage.I8:
        axes = _grid(space)
        final = scalar(spec.final, axes, operands, env, int8_product(a, operands[1], k, n))
        return np.broadcast_to(_view(spec.out, axes, env), space), np.broadcast_to(final, space)
    elif spec.b is None:
        b = unpack(operands[1], k, n)
    else:
        b = _load(operands[1], _view(spec.b, _grid([*batch, k, n]), env), [])
        b = np.broadcast_to(b, [*batch, k, n])
    final = np.broadcast_to(scalar(spec.final, axes, operands, env, np.matmul(a, b)), space)
    if spec.epilogue is not None:
        value = _normalised(final, spec.epilogue.norm, spec.epilogue.eps)
        final = scalar(spec.epilogue.final, axes, operands, env, value)
    return np.broadcast_to(_view(spec.out, axes, env), space), np.broadcast_to(final, space)


def _normalised_by(
    prologue: Prologue, operands: Sequence[Array], env: dict[str, int], value: Array
) -> Array:
    """With the statistics that it is given: the pieces' means and sums of squares about them."""
    assert prologue.statistics is not None
    m, k = value.shape
    operand = operands[int(prologue.statistics.value or 0)]
    rows = _grid([m])
    first = np.broadcast_to(scalar(prologue.statistics.args[0], rows, operands, env), [m])
    given = operand[first[:, None] + np.arange(k // STATISTICS * 2)].reshape(m, -1, 2)
    means, squares = given[..., 0], given[..., 1]
    mean = means.mean(1, keepdims=True)
    variance = (squares + STATISTICS * (means - mean) ** 2).sum(1, keepdims=True) / k
    return np.asarray((value - mean) / np.sqrt(variance + prologue.eps))


def _normalised(value: Array, norm: RowOp, eps: float) -> Array:
    apart = value - (value.mean(1, keepdims=True) if norm is RowOp.LAYER else 0.0)
    return np.asarray(apart / np.sqrt((apart**2).mean(1, keepdims=True) + eps))


def conv_weights(spec: Conv, packed: Array) -> Array:
    """[groups, kh*kw, cin/groups, cout/groups] from the packed operand."""
    taps = spec.kernel[0] * spec.kernel[1]
    if spec.depthwise:
        return np.asarray(packed.reshape(taps, spec.cout).T.reshape(spec.groups, taps, 1, 1))
    cin, cout = spec.cin // spec.groups, spec.cout // spec.groups
    per_group = packed.reshape(spec.groups, -1)
    return np.stack([unpack(g, taps * cin, cout).reshape(taps, cin, cout) for g in per_group])


def _int8_windows(spec: Conv, padded: Array, panels: Array, size: tuple[int, int, int]) -> Array:
    """Every window as a row, group by group."""
    batch, oh, ow = size
    cin, cout = spec.cin // spec.groups, spec.cout // spec.groups
    (kh, kw), (sy, sx), (dy, dx) = spec.kernel, spec.stride, spec.dilation
    columns = [
        padded[:, y * dy :, x * dx :][:, : (oh - 1) * sy + 1 : sy, : (ow - 1) * sx + 1 : sx]
        for y in range(kh)
        for x in range(kw)
    ]
    windows = np.stack([c[:, :oh, :ow] for c in columns], axis=3)
    per_group = panels.reshape(spec.groups, -1)
    found = []
    for g in range(spec.groups):
        rows = windows[..., g * cin : (g + 1) * cin].reshape(batch * oh * ow, kh * kw * cin)
        found.append(int8_product(rows, per_group[g], kh * kw * cin, cout))
    return np.concatenate(found, axis=-1).reshape(batch, oh, ow, spec.cout)


def _conv(spec: Conv, operands: list[Array], env: dict[str, int]) -> tuple[Array, Array]:
    (batch,) = _dims((spec.batch,), env)
    (h, w), (oh, ow) = _dims(spec.in_size, env), _dims(spec.out_size, env)
    top, left = _dims(spec.pad, env)
    x = operands[0][_view(spec.x, _grid([batch, h, w, spec.cin]), env)]
    reach_y = (oh - 1) * spec.stride[0] + (spec.kernel[0] - 1) * spec.dilation[0] + 1
    reach_x = (ow - 1) * spec.stride[1] + (spec.kernel[1] - 1) * spec.dilation[1] + 1
    room = (batch, max(reach_y, top + h, 1), max(reach_x, left + w, 1), spec.cin)
    padded = np.zeros(room, x.dtype)
    padded[:, top : top + h, left : left + w] = x
    if spec.operands[1] is Storage.I8:
        acc = _int8_windows(spec, padded, operands[1], (batch, oh, ow))
        space = [batch, oh, ow, spec.cout]
        axes = _grid(space)
        final = scalar(spec.final, axes, operands, env, acc)
        return np.broadcast_to(_view(spec.out, axes, env), space), np.broadcast_to(final, space)
    weights = conv_weights(spec, operands[1])
    cin, cout = spec.cin // spec.groups, spec.cout // spec.groups
    acc = np.zeros((batch, oh, ow, spec.groups, cout))
    for tap in range(spec.kernel[0] * spec.kernel[1]):
        y, xx = divmod(tap, spec.kernel[1])
        y, xx = y * spec.dilation[0], xx * spec.dilation[1]
        patch = padded[:, y : y + oh * spec.stride[0] : spec.stride[0],
                       xx : xx + ow * spec.stride[1] : spec.stride[1]][:, :oh, :ow]  # fmt: skip
        patch = patch.reshape(batch, oh, ow, spec.groups, cin)
        acc += np.einsum("bhwgi,gio->bhwgo", patch, weights[:, tap])
    space = [batch, oh, ow, spec.cout]
    axes = _grid(space)
    final = scalar(spec.final, axes, operands, env, acc.reshape(space))
    return np.broadcast_to(_view(spec.out, axes, env), space), np.broadcast_to(final, space)


def _attention(spec: Attention, operands: list[Array], env: dict[str, int]) -> tuple[Array, Array]:
    batch, q_len, kv_len = _dims((spec.batch, spec.q_len, spec.kv_len), env)
    repeat = spec.heads // spec.kv_heads
    out_space = [batch, spec.heads, q_len, spec.v_dim]
    if 0 in out_space:
        return np.zeros(out_space, np.int64), np.zeros(out_space)

    def gather(operand: Array, view: View, shape: list[int]) -> Array:
        return np.broadcast_to(operand[_view(view, _grid(shape), env)], shape)

    q_space = [batch, spec.heads, q_len, spec.head_dim]
    if spec.query is not None:
        q = np.broadcast_to(scalar(spec.query, _grid(q_space), operands, env), q_space)
    else:
        q = gather(operands[0], spec.q, q_space)
    k = gather(operands[1], spec.k, [batch, spec.kv_heads, kv_len, spec.head_dim])
    v = gather(operands[2], spec.v, [batch, spec.kv_heads, kv_len, spec.v_dim])
    k, v = np.repeat(k, repeat, 1), np.repeat(v, repeat, 1)
    score = np.matmul(q, k.swapaxes(-1, -2)) * spec.scale
    axes = _grid([batch, spec.heads, q_len, kv_len])
    if spec.bias is not None:
        score = score + scalar(spec.bias, axes, operands, env)
    if spec.causal:
        score = np.where(axes[3] > axes[2] + (kv_len - q_len), -np.inf, score)
    top = score.max(-1, keepdims=True, initial=-np.inf)
    e = np.exp(score - top)
    p = e / e.sum(-1, keepdims=True)
    if spec.zero_masked_rows:
        p = np.where(np.isneginf(top), 0.0, p)
    axes = _grid(out_space)
    return np.broadcast_to(_view(spec.out, axes, env), out_space), np.matmul(p, v)


def recurrent_weights(spec: Recurrent, packed: Array) -> Array:
    """[directions, k, gates, units] from the packed operand."""
    d, h, g = spec.directions, spec.hidden, spec.cell.gates
    tiles = packed.reshape(d, -(-h // 8), h, g, 8).transpose(0, 2, 3, 1, 4)
    return np.asarray(tiles.reshape(d, h, g, -1)[..., :h])


def _recurrent(spec: Recurrent, operands: list[Array], env: dict[str, int]) -> tuple[Array, Array]:
    steps, batch = _dims((spec.steps, spec.batch), env)
    d, n, gates = spec.directions, spec.hidden, spec.cell.gates
    x = operands[0][_view(spec.x, _grid([steps, batch, d, gates * n]), env)]
    x = x.reshape(steps, batch, d, gates, n)
    r = recurrent_weights(spec, operands[1][: d * -(-n // 8) * n * gates * 8])
    states = [operands[2 + i][_view(v, _grid([d, batch, n]), env)]
              for i, v in enumerate(spec.initial)]  # fmt: skip
    states += [np.zeros((d, batch, n))] * (2 - len(states))

    def given(name: str, *shape: int) -> Array | None:
        number = spec.operand(name)
        return None if number is None else operands[number][: math.prod(shape)].reshape(shape)

    bias, holes = given("bias", d, n), given("peephole", d, 3, n)
    lengths = given("lengths", batch)
    out = np.zeros((steps + spec.parts, d, batch, n))
    for k in range(d):
        for b in range(batch):
            h, c = states[0][k, b], states[1][k, b]
            end = steps if lengths is None else min(int(lengths[b]), steps)
            for s in range(end):
                t = end - 1 - s if spec.reverse[k] else s
                h, c = _cell(spec, k, x[t, b, k], r[k], h, c,
                             None if bias is None else bias[k],
                             np.zeros((3, n)) if holes is None else holes[k])  # fmt: skip
                out[t, k, b] = h
            out[steps, k, b] = h
            if spec.parts == 2:
                out[steps + 1, k, b] = c
    return np.arange(out.size).reshape(out.shape), out


def _cell(
    spec: Recurrent, direction: int, x: Array, r: Array, h: Array, c: Array,
    bias: Array | None, holes: Array,
) -> tuple[Array, Array]:  # fmt: skip
    """One step: the formulas of the ONNX operators."""
    f, g, *rest = [
        (lambda v, e=e: scalar(e, [], [], {}, v)) for e in spec.activations[direction]
    ] + [None]  # fmt: skip
    y = np.einsum("k,kgu->gu", h, r)
    if spec.cell is Cell.RNN:
        return f(x[0] + y[0]), c
    if spec.cell is Cell.LSTM:
        i = f(x[0] + y[0] + holes[0] * c)
        forget = 1 - i if spec.coupled else f(x[2] + y[2] + holes[2] * c)
        c = forget * c + i * g(x[3] + y[3])
        o = f(x[1] + y[1] + holes[1] * c)
        return o * rest[0](c), c
    z, reset = f(x[0] + y[0]), f(x[1] + y[1])
    if bias is None:
        fresh = g(x[2] + (reset * h) @ r[:, 2])
    else:
        fresh = g(x[2] + reset * (y[2] + bias))
    return (1 - z) * fresh + z * h, c


_FAMILIES: dict[type, Callable[[Any, list[Array], dict[str, int]], tuple[Array, Array]]] = {
    Map: _map,
    Reduce: _reduce,
    Row: _row,
    Matmul: _matmul,
    Conv: _conv,
    Attention: _attention,
    Recurrent: _recurrent,
}
