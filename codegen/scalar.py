"""The expression computed for one element: a small typed graph shared by both targets.

Everything pointwise in a model, from a bias to a Gelu to a transposed read, becomes one `Scalar`
inside some kernel. Lowering builds it with the functions below; `wgsl/` spells it as WGSL text,
`wasm/` as vector instructions; the tests evaluate it with NumPy.

Nodes are interned: structurally equal expressions are the same object, so identity, hashing and
common-subexpression elimination cost nothing and a shared subgraph stays shared.

Numbers are computed as F32, I32 (two's complement, wraps) or BOOL. Storage may be narrower
(see `spec.Storage`); a LOAD widens. Index arithmetic is I32 and never negative unless the
expression clamps it.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from .dims import Call, Dim, _terms


class Type(enum.Enum):
    """What a scalar is while it is computed."""

    F32 = "f32"
    I32 = "i32"
    BOOL = "bool"


class Op(enum.Enum):
    """Operators. F: F32 only, I: I32 only, N: F32 or I32 (both operands alike), B: BOOL."""

    # Leaves: `value` holds the payload.
    CONST = "const"  # value: int | float | bool
    AXIS = "axis"  # value: number of the iteration axis; I32
    ARG = "arg"  # value: number of the run-time argument (a size); I32
    LOAD = "load"  # value: operand number, args: (element index I32,)
    ACC = "acc"  # value: 0; what the kernel's core has accumulated for this element
    # Arithmetic (N)
    ADD = "add"
    SUB = "sub"
    MUL = "mul"
    DIV = "div"  # F: IEEE; I: truncates toward zero, x/0 = 0
    MOD = "mod"  # N: sign of the divisor (ONNX Mod, fmod=0)
    REM = "rem"  # N: sign of the dividend (C fmod / %)
    NEG = "neg"
    ABS = "abs"
    MIN = "min"  # F: NaN if either is NaN
    MAX = "max"
    SIGN = "sign"
    POW = "pow"  # F
    # Index arithmetic (I): both operands >= 0, divisor > 0
    UDIV = "udiv"
    UMOD = "umod"
    # F -> F
    EXP = "exp"
    LOG = "log"
    SQRT = "sqrt"
    RSQRT = "rsqrt"
    SIN = "sin"
    COS = "cos"
    TAN = "tan"
    ASIN = "asin"
    ACOS = "acos"
    ATAN = "atan"
    SINH = "sinh"
    COSH = "cosh"
    ASINH = "asinh"
    ACOSH = "acosh"
    ATANH = "atanh"
    TANH = "tanh"
    ERF = "erf"
    FLOOR = "floor"
    CEIL = "ceil"
    ROUND = "round"  # half to even
    TRUNC = "trunc"
    # Comparison: N x N -> B (NaN compares false)
    EQ = "eq"
    LT = "lt"
    LE = "le"
    ISNAN = "isnan"
    ISINF = "isinf"
    # B
    AND = "and"
    OR = "or"
    XOR = "xor"
    NOT = "not"
    # Bits (I)
    BAND = "band"
    BOR = "bor"
    BXOR = "bxor"
    SHL = "shl"
    SHR = "shr"  # logical
    SAR = "sar"  # arithmetic
    # Choice and conversion
    SELECT = "select"  # (B, x, y): x where true; both sides may be evaluated, loads included
    TO_F32 = "to_f32"  # from I32 or BOOL
    TO_I32 = "to_i32"  # from F32 (truncates, saturates, NaN -> 0) or BOOL
    TO_BOOL = "to_bool"  # x != 0
    BITS_F32 = "bits_f32"  # reinterpret I32 as F32
    BITS_I32 = "bits_i32"  # reinterpret F32 as I32


_COMPARE = {Op.EQ, Op.LT, Op.LE, Op.ISNAN, Op.ISINF}
_BOOL = {Op.AND, Op.OR, Op.XOR, Op.NOT}
_INT = {Op.UDIV, Op.UMOD, Op.BAND, Op.BOR, Op.BXOR, Op.SHL, Op.SHR, Op.SAR}
_BOTH = {Op.ADD, Op.SUB, Op.MUL, Op.DIV, Op.MOD, Op.REM, Op.NEG, Op.ABS, Op.MIN, Op.MAX, Op.SIGN}
_RESULT = {
    Op.TO_F32: Type.F32,
    Op.TO_I32: Type.I32,
    Op.TO_BOOL: Type.BOOL,
    Op.BITS_F32: Type.F32,
    Op.BITS_I32: Type.I32,
}


class Scalar:
    """One interned node: build it with the functions of this module, never directly."""

    __slots__ = ("__weakref__", "args", "op", "type", "value")
    op: Op
    type: Type
    args: tuple[Scalar, ...]
    value: int | float | bool | None

    def __repr__(self) -> str:
        inner = ", ".join(
            [*([repr(self.value)] if self.value is not None else []), *map(repr, self.args)]
        )
        return f"{self.op.value}.{self.type.value}({inner})"

    def __add__(self, other: Scalar | float) -> Scalar:
        return binary(Op.ADD, self, other)

    def __radd__(self, other: float) -> Scalar:
        return binary(Op.ADD, other, self)

    def __sub__(self, other: Scalar | float) -> Scalar:
        return binary(Op.SUB, self, other)

    def __rsub__(self, other: float) -> Scalar:
        return binary(Op.SUB, other, self)

    def __mul__(self, other: Scalar | float) -> Scalar:
        return binary(Op.MUL, self, other)

    def __rmul__(self, other: float) -> Scalar:
        return binary(Op.MUL, other, self)

    def __truediv__(self, other: Scalar | float) -> Scalar:
        return binary(Op.DIV, self, other)

    def __rtruediv__(self, other: float) -> Scalar:
        return binary(Op.DIV, other, self)

    def __neg__(self) -> Scalar:
        return unary(Op.NEG, self)


# Equality of nodes is identity, so the table must hand out one object per structure. It holds
# nodes for the life of the process: a compilation makes some ten thousand of them.
_interned: dict[tuple[Any, ...], Scalar] = {}


def _make(
    op: Op, type_: Type, args: tuple[Scalar, ...] = (), value: int | float | bool | None = None
) -> Scalar:
    # -0.0 == 0.0 and NaN != NaN, so floats are keyed by their bits.
    stamp = struct.pack("<d", value) if isinstance(value, float) else value
    key = (op, type_, tuple(map(id, args)), type(value), stamp)
    node = _interned.get(key)
    if node is None:
        node = Scalar.__new__(Scalar)
        node.op, node.type, node.args, node.value = op, type_, args, value
        _interned[key] = node
    return node


def const(value: int | float | bool, type_: Type | None = None) -> Scalar:
    """A literal; the type follows Python's unless given. F32 literals are rounded to f32."""
    if type_ is None:
        type_ = (
            Type.BOOL
            if isinstance(value, bool)
            else Type.I32
            if isinstance(value, int)
            else Type.F32
        )
    if type_ is Type.F32:
        value = _round_f32(float(value))
    elif type_ is Type.I32:
        value = (int(value) + 2**31) % 2**32 - 2**31
    else:
        value = bool(value)
    return _make(Op.CONST, type_, (), value)


def _round_f32(value: float) -> float:
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def axis(number: int) -> Scalar:
    return _make(Op.AXIS, Type.I32, (), number)


def arg(number: int) -> Scalar:
    return _make(Op.ARG, Type.I32, (), number)


def acc(type_: Type = Type.F32) -> Scalar:
    return _make(Op.ACC, type_, (), 0)


def load(operand: int, index: Scalar, type_: Type = Type.F32) -> Scalar:
    """Element `index` of operand number `operand`; `type_` is what its storage widens to."""
    return _make(Op.LOAD, type_, (index,), operand)


def _lift(value: Scalar | int | float | bool, like: Type) -> Scalar:
    return value if isinstance(value, Scalar) else const(value, like)


def unary(op: Op, x: Scalar) -> Scalar:
    """One-operand operator; the result's type follows from the operator."""
    if op in _COMPARE or op in _BOOL:
        result = Type.BOOL
    elif op in _RESULT:
        result = _RESULT[op]
        if x.type is result and op in (Op.TO_F32, Op.TO_I32, Op.TO_BOOL):
            return x
    elif op in _BOTH:
        result = x.type
    else:
        _expect(op, x, Type.F32)
        result = Type.F32
    if op is Op.NEG and x.op is Op.CONST:
        return const(-x.value, x.type)  # type: ignore[operator]
    if op is Op.TO_F32 and x.op is Op.CONST:
        return const(float(x.value), Type.F32)  # type: ignore[arg-type]
    return _make(op, result, (x,))


def _expect(op: Op, x: Scalar, want: Type) -> None:
    if x.type is not want:
        raise TypeError(f"{op.value} takes {want.value}, got {x!r}")


def binary(op: Op, a: Scalar | float, b: Scalar | float) -> Scalar:
    """Two-operand operator with the simplifications index arithmetic needs (x+0, x*1, ...)."""
    like = a.type if isinstance(a, Scalar) else b.type if isinstance(b, Scalar) else Type.F32
    x, y = _lift(a, like), _lift(b, like)
    if x.type is not y.type:
        raise TypeError(f"{op.value} takes operands of one type, got {x!r} and {y!r}")
    if op in _BOOL:
        _expect(op, x, Type.BOOL)
    if op in _INT:
        _expect(op, x, Type.I32)
    if x.type is Type.I32:
        folded = _fold_int(op, x, y)
        if folded is not None:
            return folded
    return _make(op, Type.BOOL if op in _COMPARE else x.type, (x, y))


def _fold_int(op: Op, x: Scalar, y: Scalar) -> Scalar | None:
    """Integer identities: exact, so always safe. Constants gather on the right of + and *."""
    a = x.value if x.op is Op.CONST else None
    b = y.value if y.op is Op.CONST else None
    if a is not None and b is not None:
        evaluate: dict[Op, Callable[[int, int], int]] = {
            Op.ADD: lambda p, q: p + q,
            Op.SUB: lambda p, q: p - q,
            Op.MUL: lambda p, q: p * q,
            Op.MIN: min,
            Op.MAX: max,
        }
        if op in evaluate:
            return const(evaluate[op](int(a), int(b)), Type.I32)
        if op in (Op.UDIV, Op.UMOD) and b:
            return const(int(a) // int(b) if op is Op.UDIV else int(a) % int(b), Type.I32)
        if op in (Op.EQ, Op.LT, Op.LE):
            return const({Op.EQ: a == b, Op.LT: a < b, Op.LE: a <= b}[op])
        return None
    if op in (Op.ADD, Op.MUL) and a is not None:
        return binary(op, y, x)
    if op in (Op.ADD, Op.SUB) and b == 0:
        return x
    if (op is Op.MUL and b == 1) or (op is Op.UDIV and b == 1):
        return x
    if (op is Op.MUL and b == 0) or (op is Op.UMOD and b == 1):
        return const(0, Type.I32)
    if op is Op.ADD and b is not None and x.op is Op.ADD and x.args[1].op is Op.CONST:
        return binary(Op.ADD, x.args[0], const(int(x.args[1].value or 0) + int(b), Type.I32))
    return None


def select(condition: Scalar, yes: Scalar | float, no: Scalar | float) -> Scalar:
    _expect(Op.SELECT, condition, Type.BOOL)
    like = yes.type if isinstance(yes, Scalar) else no.type if isinstance(no, Scalar) else Type.F32
    x, y = _lift(yes, like), _lift(no, like)
    if x.type is not y.type:
        raise TypeError(f"select takes two values of one type, got {x!r} and {y!r}")
    if condition.op is Op.CONST:
        return x if condition.value else y
    return _make(Op.SELECT, x.type, (condition, x, y))


def dim(value: Dim) -> Scalar:
    """The I32 that a size stands for; its symbols must be a spec's arguments "a0", "a1", ..."""
    if isinstance(value, int):
        return const(value)
    total: Scalar = const(0)
    for monomial, coefficient in _terms(value):
        term: Scalar = const(coefficient)
        for atom in monomial:
            term = term * _atom(atom)
        total = total + term
    return total


def _atom(atom: str | Call) -> Scalar:
    if isinstance(atom, str):
        return arg(int(atom[1:]))
    operands = [dim(a) for a in atom.args]
    op = {"//": Op.UDIV, "%": Op.UMOD, "min": Op.MIN, "max": Op.MAX}[atom.op]
    result = operands[0]
    for operand in operands[1:]:
        result = binary(op, result, operand)
    return result


def linear(index: Sequence[Scalar], shape: Sequence[Dim]) -> Scalar:
    """Row-major element number of `index` in `shape`."""
    total: Scalar = const(0)
    for i, size in zip(index, shape, strict=True):
        total = total * dim(size) + i
    return total


def rebuild(node: Scalar, args: Sequence[Scalar]) -> Scalar:
    """The same operator over other arguments, simplified again."""
    if not node.args:
        return node
    if node.op is Op.LOAD:
        return load(int(node.value or 0), args[0], node.type)
    if node.op is Op.SELECT:
        return select(*args)
    return unary(node.op, args[0]) if len(args) == 1 else binary(node.op, args[0], args[1])


def transform(root: Scalar, leaf: Callable[[Scalar], Scalar | None]) -> Scalar:
    """A copy in which `leaf(node)`, where it is not None, replaces a node and all below it.

    Every distinct node is visited once, so shared subgraphs stay cheap.
    """
    done: dict[Scalar, Scalar] = {}

    def visit(node: Scalar) -> Scalar:
        if node not in done:
            new = leaf(node)
            done[node] = new if new is not None else rebuild(node, [visit(a) for a in node.args])
        return done[node]

    return visit(root)


def walk(roots: Iterable[Scalar]) -> list[Scalar]:
    """Every distinct node below `roots`, arguments before users."""
    order: dict[Scalar, None] = {}

    def visit(node: Scalar) -> None:
        if node not in order:
            for a in node.args:
                visit(a)
            order[node] = None

    for root in roots:
        visit(root)
    return list(order)


def coefficient(index: Scalar, axis_number: int) -> Scalar | None:
    """d index / d axis when `index` is affine in that axis with a factor free of all axes.

    0 means "the same element for every step" (broadcast), 1 "the next element" (contiguous),
    None "no such factor" (gather).
    """
    if index.op is Op.AXIS:
        return const(1 if index.value == axis_number else 0)
    if not any(n.op is Op.AXIS and n.value == axis_number for n in walk([index])):
        return const(0)
    if index.op in (Op.ADD, Op.SUB):
        a, b = (coefficient(x, axis_number) for x in index.args)
        return None if a is None or b is None else binary(index.op, a, b)
    if index.op is Op.MUL:
        for varying, factor in (index.args, index.args[::-1]):
            if not any(n.op in (Op.AXIS, Op.LOAD) for n in walk([factor])):
                inner = coefficient(varying, axis_number)
                return None if inner is None else inner * factor
    return None
