"""What an expression costs, and how much of it is too much for one kernel."""

from __future__ import annotations

from ..codegen import scalar as sc
from ..codegen.scalar import Op, Scalar, Type

MAX_OPERANDS = 7
"""Buffers a kernel reads: WebGPU guarantees 8 storage buffers, and one is the output."""
MAX_VIRTUAL_OPERANDS = 5
MAX_NODES = 160
MAX_RAW_NODES = 1 << 13
"""As `MAX_NODES`, before index arithmetic is simplified: that takes time, too."""
CHEAP = 4.0
"""Cost up to which a value with one load is recomputed by each consumer."""
CHEAP_BROADCAST = 12.0
"""Cost up to which a smaller value is recomputed for every element it is broadcast to."""

_PRICES: dict[Op, float] = {
    Op.LOAD: 2.0, Op.DIV: 2.0, Op.POW: 12.0, Op.EXP: 6.0, Op.LOG: 6.0, Op.ERF: 12.0, Op.TANH: 10.0,
    Op.SQRT: 2.0, Op.RSQRT: 2.0, Op.SIN: 8.0, Op.COS: 8.0, Op.TAN: 10.0, Op.ASIN: 8.0,
    Op.ACOS: 8.0, Op.ATAN: 8.0, Op.SINH: 10.0, Op.COSH: 10.0, Op.ASINH: 10.0, Op.ACOSH: 10.0,
    Op.ATANH: 10.0, Op.UDIV: 2.0, Op.UMOD: 2.0, Op.CONST: 0.0, Op.AXIS: 0.0, Op.ARG: 0.0,
    Op.ACC: 0.0,
}  # fmt: skip


def cost(expr: Scalar) -> float:
    """Rough price of one element, in additions."""
    total = 0.0
    for node in sc.walk([expr]):
        cheap = 0.25 if node.type is Type.I32 else 1.0
        total += _PRICES.get(node.op, cheap)
    return total


def loads(*exprs: Scalar) -> dict[int, None]:
    """Buffers read, in order of appearance."""
    return {int(n.value or 0): None for n in sc.walk(exprs) if n.op is Op.LOAD}
