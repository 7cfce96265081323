"""Pointwise operators: one row each. `x`, `y` are elements; the engine does the broadcasting."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..codegen import scalar as sc
from ..codegen.scalar import Op, Scalar, Type
from ..errors import UnsupportedError
from ..graph import DType, Node
from .engine import LOWERINGS, Lowering, lowers
from .grids import GRIDS, on_grid
from .regions import POINTWISE
from .values import Coordinates, Value, convert, scalar_type

Unary = Callable[[Scalar], Scalar]
Binary = Callable[[Scalar, Scalar], Scalar]


def u(op: Op) -> Unary:
    return lambda x: sc.unary(op, x)


def b(op: Op) -> Binary:
    return lambda x, y: sc.binary(op, x, y)


def minimum(x: Scalar, y: Scalar | float) -> Scalar:
    return sc.binary(Op.MIN, x, y)


def maximum(x: Scalar, y: Scalar | float) -> Scalar:
    return sc.binary(Op.MAX, x, y)


def less(x: Scalar, y: Scalar | float) -> Scalar:
    return sc.binary(Op.LT, x, y)


def exp(x: Scalar) -> Scalar:
    return sc.unary(Op.EXP, x)


def both(x: Scalar, y: Scalar) -> Scalar:
    return sc.binary(Op.AND, x, y)


def either(x: Scalar, y: Scalar) -> Scalar:
    return sc.binary(Op.OR, x, y)


def negate(x: Scalar) -> Scalar:
    return sc.unary(Op.NOT, x)


def equal(x: Scalar, y: Scalar) -> Scalar:
    if x.type is Type.BOOL:
        return negate(sc.binary(Op.XOR, x, y))
    return sc.binary(Op.EQ, x, y)


def choose(condition: Scalar, x: Scalar, y: Scalar) -> Scalar:
    """SELECT, also of truth values."""
    if x.type is Type.BOOL:
        return either(both(condition, x), both(negate(condition), y))
    return sc.select(condition, x, y)


def sigmoid(x: Scalar) -> Scalar:
    return 1.0 / (exp(-x) + 1.0)


def softplus(x: Scalar) -> Scalar:
    # log(1 + e^x) without overflow for large x.
    return maximum(x, 0.0) + sc.unary(Op.LOG, exp(-sc.unary(Op.ABS, x)) + 1.0)


def gelu(x: Scalar) -> Scalar:
    return x * 0.5 * (sc.unary(Op.ERF, x * math.sqrt(0.5)) + 1.0)


def gelu_tanh(x: Scalar) -> Scalar:
    inner = (x + x * x * x * 0.044715) * math.sqrt(2 / math.pi)
    return x * 0.5 * (sc.unary(Op.TANH, inner) + 1.0)


def narrow(x: Scalar, dtype: DType) -> Scalar:
    """Wraps to the width of an integer type of fewer than 32 bits."""
    if dtype.is_float or dtype is DType.BOOL or dtype.bits >= 32:
        return x
    if dtype.limits[0] == 0:
        return sc.binary(Op.BAND, x, dtype.limits[1])
    shift = 32 - dtype.bits
    return sc.binary(Op.SAR, sc.binary(Op.SHL, x, shift), shift)


def cast(x: Scalar, source: DType, to: DType, saturate: bool = True) -> Scalar:
    """ONNX Cast: truncates, wraps; anything but 0 is true. `saturate` matters to 8-bit floats."""
    if source is DType.U32 and to.is_float:
        signed = sc.unary(Op.TO_F32, x)
        x = sc.select(less(x, 0), signed + 4294967296.0, signed)
    if to in GRIDS and to is not source:
        return on_grid(convert(x, Type.F32), to, saturate)
    return narrow(convert(x, scalar_type(to)), to)


UNARY: dict[str, Unary] = {
    "Abs": u(Op.ABS),
    "Acos": u(Op.ACOS),
    "Acosh": u(Op.ACOSH),
    "Asin": u(Op.ASIN),
    "Asinh": u(Op.ASINH),
    "Atan": u(Op.ATAN),
    "Atanh": u(Op.ATANH),
    "BitwiseNot": lambda x: sc.binary(Op.BXOR, x, -1),
    "Ceil": u(Op.CEIL),
    "Cos": u(Op.COS),
    "Cosh": u(Op.COSH),
    "Erf": u(Op.ERF),
    "Exp": u(Op.EXP),
    "Floor": u(Op.FLOOR),
    "HardSwish": lambda x: x * maximum(minimum(x * (1 / 6) + 0.5, 1.0), 0.0),
    "IsNaN": u(Op.ISNAN),
    "Log": u(Op.LOG),
    "Mish": lambda x: x * sc.unary(Op.TANH, softplus(x)),
    "Neg": u(Op.NEG),
    "Not": u(Op.NOT),
    "Reciprocal": lambda x: 1.0 / x,
    "Relu": lambda x: maximum(x, 0),
    "Round": u(Op.ROUND),
    "Sigmoid": sigmoid,
    "Sign": u(Op.SIGN),
    "Sin": u(Op.SIN),
    "Sinh": u(Op.SINH),
    "Softplus": softplus,
    "Softsign": lambda x: x / (sc.unary(Op.ABS, x) + 1.0),
    "Sqrt": u(Op.SQRT),
    "Tan": u(Op.TAN),
    "Tanh": u(Op.TANH),
}

# Activations with settings: defaults, then the expression of x and the settings.
SETTINGS: dict[str, tuple[dict[str, float], Callable[..., Scalar]]] = {
    "Celu": ({"alpha": 1.0}, lambda x, alpha: (
        maximum(x, 0.0) + minimum((exp(x * (1 / alpha)) - 1.0) * alpha, 0.0))),
    "Elu": ({"alpha": 1.0}, lambda x, alpha: sc.select(
        less(x, 0.0), (exp(x) - 1.0) * alpha, x)),
    "HardSigmoid": ({"alpha": 0.2, "beta": 0.5}, lambda x, alpha, beta: (
        maximum(minimum(x * alpha + beta, 1.0), 0.0))),
    "LeakyRelu": ({"alpha": 0.01}, lambda x, alpha: sc.select(less(x, 0.0), x * alpha, x)),
    "Selu": (
        {"alpha": 1.67326319217681884765625, "gamma": 1.05070102214813232421875},
        lambda x, alpha, gamma: sc.select(
            less(0.0 * x, x), x * gamma, (exp(x) - 1.0) * (alpha * gamma))),
    "Shrink": ({"lambd": 0.5, "bias": 0.0}, lambda x, lambd, bias: sc.select(
        less(x, -lambd), x + bias, sc.select(less(sc.const(lambd), x), x - bias, 0.0))),
    "Swish": ({"alpha": 1.0}, lambda x, alpha: x * sigmoid(x * alpha)),
    "ThresholdedRelu": ({"alpha": 1.0}, lambda x, alpha: sc.select(
        less(sc.const(alpha), x), x, 0.0)),
}  # fmt: skip

BINARY: dict[str, Binary] = {
    "Add": b(Op.ADD),
    "And": both,
    "BitwiseAnd": b(Op.BAND),
    "BitwiseOr": b(Op.BOR),
    "BitwiseXor": b(Op.BXOR),
    "Div": b(Op.DIV),
    "Equal": equal,
    "Greater": lambda x, y: less(y, x),
    "GreaterOrEqual": lambda x, y: sc.binary(Op.LE, y, x),
    "Less": less,
    "LessOrEqual": b(Op.LE),
    "Mul": b(Op.MUL),
    "Or": either,
    "PRelu": lambda x, y: choose(less(x, 0), x * y, x),
    "Sub": b(Op.SUB),
    "Xor": b(Op.XOR),
}

VARIADIC: dict[str, Binary] = {
    "Max": b(Op.MAX),
    "Mean": b(Op.ADD),
    "Min": b(Op.MIN),
    "Sum": b(Op.ADD),
}

_ORDERED = {"Greater", "GreaterOrEqual", "Less", "LessOrEqual"}


def _unary(lw: Lowering, node: Node) -> Value:
    compute = UNARY[node.op]
    dtype, shape = lw.out(node)
    x = lw.input(node, 0)
    if node.op in ("Ceil", "Floor", "Round") and not x.dtype.is_float:
        return lw.alias(x)
    return lw.pointwise(dtype, shape, lambda e: narrow(compute(e), dtype), x)


def _with_settings(lw: Lowering, node: Node) -> Value:
    defaults, compute = SETTINGS[node.op]
    settings = {name: float(node.attrs.get(name, default)) for name, default in defaults.items()}
    dtype, shape = lw.out(node)
    return lw.pointwise(dtype, shape, lambda e: compute(e, **settings), lw.input(node, 0))


def _binary(lw: Lowering, node: Node) -> Value:
    compute = BINARY[node.op]
    dtype, shape = lw.out(node)
    x, y = lw.input(node, 0), lw.input(node, 1)
    if node.op in _ORDERED and x.dtype is DType.U32:
        signed = compute
        compute = lambda p, q: signed(_flip(p), _flip(q))  # noqa: E731
    return lw.pointwise(dtype, shape, lambda p, q: narrow(compute(p, q), dtype), x, y)


def _flip(x: Scalar) -> Scalar:
    """Signed comparison orders unsigned numbers once the top bit is flipped."""
    return sc.binary(Op.BXOR, x, -(2**31))


def _extreme(compute: Binary, dtype: DType) -> Binary:
    """The smaller or the larger of two."""
    if dtype is not DType.U32:
        return compute
    return lambda x, y: _flip(compute(_flip(x), _flip(y)))


_AT_ONCE = 64
"""Inputs of a Sum or Max that one expression combines."""


def _variadic(lw: Lowering, node: Node) -> Value:
    dtype, shape = lw.out(node)
    compute = VARIADIC[node.op]
    if node.op in ("Max", "Min"):
        compute = _extreme(compute, dtype)
    total = lw.input(node, 0)
    for position in range(1, len(node.inputs)):
        total = lw.pointwise(
            dtype, _joint(lw, node, position), compute, total, lw.input(node, position)
        )
        if position % _AT_ONCE == 0:
            lw.materialise(total)
    if node.op == "Mean" and len(node.inputs) > 1:
        count = float(len(node.inputs))
        total = lw.pointwise(dtype, shape, lambda x: x * (1 / count), total)
    return lw.pointwise(dtype, shape, lambda x: x, total) if total.shape != shape else total


def _joint(lw: Lowering, node: Node, last: int) -> tuple[Any, ...]:
    """Shape of the first inputs broadcast together."""
    shapes = [lw.input(node, i).shape for i in range(last + 1)]
    rank = max(map(len, shapes))
    _, full = lw.out(node)
    joint = []
    for axis in range(rank):
        sizes = [s[axis - rank] for s in shapes if rank - axis <= len(s)]
        other = [s for s in sizes if s != 1]
        joint.append(other[0] if len(set(other)) == 1 else 1 if not other else full[axis - rank])
    return tuple(joint)


for _name in UNARY:
    LOWERINGS["", _name] = _unary
for _name in SETTINGS:
    LOWERINGS["", _name] = _with_settings
for _name in BINARY:
    LOWERINGS["", _name] = _binary
for _name in VARIADIC:
    LOWERINGS["", _name] = _variadic

POINTWISE |= {
    *UNARY, *SETTINGS, *BINARY, *VARIADIC, "BitShift", "Cast", "CastLike", "Clip", "Gelu",
    "IsInf", "Mod", "Pow", "Where", "Identity", "Dropout", "FastGelu", "QuickGelu",
    "BatchNormalization",
}  # fmt: skip


@lowers("Gelu")
def lower_gelu(lw: Lowering, node: Node) -> Value:
    tanh = node.attrs.get("approximate", "none") in ("tanh", b"tanh")
    dtype, shape = lw.out(node)
    return lw.pointwise(dtype, shape, gelu_tanh if tanh else gelu, lw.input(node, 0))


@lowers("FastGelu", "BiasGelu", domain="com.microsoft")
def lower_fast_gelu(lw: Lowering, node: Node) -> Value:
    dtype, shape = lw.out(node)
    compute = gelu_tanh if node.op == "FastGelu" else gelu
    bias = lw.optional(node, 1)
    if bias is None:
        return lw.pointwise(dtype, shape, compute, lw.input(node, 0))
    return lw.pointwise(dtype, shape, lambda x, y: compute(x + y), lw.input(node, 0), bias)


@lowers("BiasSplitGelu", domain="com.microsoft")
def lower_bias_split_gelu(lw: Lowering, node: Node) -> Value:
    x, bias = lw.input(node, 0), lw.input(node, 1)
    lw.limit(x, bias)
    dtype, shape = lw.out(node)

    def biased(c: Coordinates) -> Scalar:
        return lw.read(x, c) + lw.read(bias, c[-1:])

    def read(c: Coordinates) -> Scalar:
        return biased(c) * gelu(biased([*c[:-1], c[-1] + sc.dim(shape[-1])]))

    return lw.virtual(dtype, shape, read)


@lowers("Gelu", domain="com.microsoft")
def lower_gelu_contrib(lw: Lowering, node: Node) -> Value:
    dtype, shape = lw.out(node)
    return lw.pointwise(dtype, shape, gelu, lw.input(node, 0))


@lowers("QuickGelu", domain="com.microsoft")
def lower_quick_gelu(lw: Lowering, node: Node) -> Value:
    alpha = float(node.attrs.get("alpha", 1.702))
    dtype, shape = lw.out(node)
    return lw.pointwise(dtype, shape, lambda x: x * sigmoid(x * alpha), lw.input(node, 0))


@lowers("Identity", "Dropout")
def lower_identity(lw: Lowering, node: Node) -> list[Value]:
    training = lw.optional(node, 2) if node.op == "Dropout" else None
    ratio = lw.optional(node, 1) if training is not None else None
    off = [v.constant is not None and not v.constant.any() for v in (training, ratio) if v]
    if off and not any(off):
        raise UnsupportedError(
            "training mode drops elements at random",
            where=node.where(),
            remedy="Export the model for inference (model.eval())",
        )
    values = [lw.alias(lw.input(node, 0))]
    if len(node.outputs) > 1 and node.outputs[1]:  # Dropout's mask: nothing is dropped
        dtype, shape = lw.out(node, 1)
        one = sc.const(True) if dtype is DType.BOOL else convert(sc.const(1), scalar_type(dtype))
        values.append(lw.virtual(dtype, shape, lambda c: one))
    return values


@lowers("Cast", "CastLike")
def lower_cast(lw: Lowering, node: Node) -> Value:
    x = lw.input(node, 0)
    dtype, shape = lw.out(node)
    saturate = bool(node.attrs.get("saturate", 1))
    return lw.pointwise(dtype, shape, lambda e: cast(e, x.dtype, dtype, saturate), x)


@lowers("Clip")
def lower_clip(lw: Lowering, node: Node) -> Value:
    dtype, shape = lw.out(node)
    x = lw.input(node, 0)
    if lw.opset(node) < 11:
        low, high = node.attrs.get("min"), node.attrs.get("max")

        def clip(e: Scalar) -> Scalar:
            e = e if low is None else maximum(e, float(low))
            return e if high is None else minimum(e, float(high))

        return lw.pointwise(dtype, shape, clip, x)
    for position, bound in ((1, maximum), (2, minimum)):
        limit = lw.optional(node, position)
        if limit is not None:
            x = lw.pointwise(dtype, shape, _extreme(bound, dtype), x, limit)
    return x if x is not lw.input(node, 0) else lw.alias(x)


@lowers("IsInf")
def lower_isinf(lw: Lowering, node: Node) -> Value:
    dtype, shape = lw.out(node)
    negative = bool(node.attrs.get("detect_negative", 1))
    positive = bool(node.attrs.get("detect_positive", 1))

    def compute(x: Scalar) -> Scalar:
        infinite = sc.unary(Op.ISINF, x)
        if negative and positive:
            return infinite
        if not negative and not positive:
            return sc.const(False)
        return both(infinite, less(x, 0.0) if negative else less(sc.const(0.0), x))

    return lw.pointwise(dtype, shape, compute, lw.input(node, 0))


@lowers("Mod")
def lower_mod(lw: Lowering, node: Node) -> Value:
    dtype, shape = lw.out(node)
    op = Op.REM if node.attrs.get("fmod", 0) else Op.MOD
    x, y = lw.input(node, 0), lw.input(node, 1)
    return lw.pointwise(dtype, shape, lambda p, q: narrow(sc.binary(op, p, q), dtype), x, y)


@lowers("Pow")
def lower_pow(lw: Lowering, node: Node) -> Value:
    dtype, shape = lw.out(node)

    def compute(x: Scalar, y: Scalar) -> Scalar:
        integer = x.type is Type.I32
        fx, fy = convert(x, Type.F32), convert(y, Type.F32)
        exponent = fy.value if fy.op is Op.CONST else None
        if exponent == 2.0:
            return x * x
        if exponent == 3.0:
            return x * x * x
        if exponent == 1.0:
            return x
        if exponent == 0.5 and not integer:
            return sc.unary(Op.SQRT, x)
        if exponent == -0.5 and not integer:
            return sc.unary(Op.RSQRT, x)
        if exponent == -1.0 and not integer:
            return 1.0 / x
        result = sc.binary(Op.POW, fx, fy)
        if integer:
            return sc.unary(Op.TO_I32, sc.unary(Op.ROUND, result))
        return result

    return lw.pointwise(dtype, shape, compute, lw.input(node, 0), lw.input(node, 1))


@lowers("BitShift")
def lower_bit_shift(lw: Lowering, node: Node) -> Value:
    dtype, shape = lw.out(node)
    left = node.attrs.get("direction") in ("LEFT", b"LEFT")
    signed = dtype in (DType.I8, DType.I16, DType.I32, DType.I64)
    bits = min(dtype.bits, 32)

    def shift(x: Scalar, y: Scalar) -> Scalar:
        """Shifting by the width or more (a negative amount counts as that) moves all bits out."""
        fits = both(sc.binary(Op.LE, sc.const(0), y), less(y, bits))
        if left:
            return sc.select(fits, narrow(sc.binary(Op.SHL, x, y), dtype), 0)
        if signed:
            return sc.binary(Op.SAR, x, sc.select(fits, y, bits - 1))
        return sc.select(fits, sc.binary(Op.SHR, x, y), 0)

    return lw.pointwise(dtype, shape, shift, lw.input(node, 0), lw.input(node, 1))


@lowers("Where")
def lower_where(lw: Lowering, node: Node) -> Value:
    dtype, shape = lw.out(node)
    return lw.pointwise(dtype, shape, choose, *(lw.input(node, i) for i in range(3)))
