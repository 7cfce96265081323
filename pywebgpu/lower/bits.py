"""Elements read as other types of the same width."""

from __future__ import annotations

from ..codegen import scalar as sc
from ..codegen.scalar import Op, Scalar
from ..errors import UnsupportedError
from ..graph import DType, Node
from .elementwise import narrow
from .engine import Lowering, lowers
from .values import Value, convert, scalar_type

_WHOLE = {DType.I8, DType.U8, DType.I16, DType.U16, DType.I32, DType.U32, DType.BOOL}


@lowers("BitCast")
def lower_bit_cast(lw: Lowering, node: Node) -> Value:
    """32 bits as they are; narrower integers live in 32 bits, so only their sign moves."""
    x = lw.input(node, 0)
    dtype, shape = lw.out(node)
    if x.dtype is dtype:
        return lw.alias(x)
    if x.dtype in _WHOLE and dtype in _WHOLE:

        def signed(e: Scalar) -> Scalar:
            return convert(narrow(convert(e, sc.Type.I32), dtype), scalar_type(dtype))

        return lw.pointwise(dtype, shape, signed, x)
    wide = (DType.I32, DType.U32)
    if x.dtype is DType.F32 and dtype in wide:
        return lw.pointwise(dtype, shape, lambda e: sc.unary(Op.BITS_I32, e), x)
    if dtype is DType.F32 and x.dtype in wide:
        return lw.pointwise(dtype, shape, lambda e: sc.unary(Op.BITS_F32, e), x)
    raise UnsupportedError(
        "elements of these types do not lie in memory as their bits say",
        where=node.where(),
        got=f"{x.dtype.value} as {dtype.value}",
        expected="float32 and integers of up to 32 bits",
    )
