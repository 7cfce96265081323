"""Products: MatMul, Gemm and what reduces to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..codegen import scalar as sc
from ..codegen.dims import Dim, product
from ..codegen.scalar import Scalar, Type
from ..codegen.spec import Blocks, KernelSpec, Matmul, ReduceOp, Storage, View
from ..graph import DType, Node
from ..packing import (
    bit_fields,
    pack_codes,
    pack_int8_panels,
    pack_int8_quantised,
    pack_panels,
)
from .engine import Lowering, lowers
from .index import unravel
from .int4 import Int4
from .int8_cost import product_cost
from .movement import reshaped, transposed
from .values import Array, Coordinates, Value, convert, scalar_type


def contiguous_unit(view: View, axis: int, size: Dim) -> View:
    """The view with stride 1 on an axis of one element, where the stride does not matter."""
    if size != 1:
        return view
    strides = list(view.strides)
    strides[axis] = 1
    return View(tuple(strides), view.offset)


def matmul(lw: Lowering, dtype: DType, shape: Sequence[Dim], a: Value, b: Value) -> Value:
    """numpy.matmul(a, b), of that shape; epilogues may join it."""
    shape = tuple(shape)
    if a.rank == 1:
        a = reshaped(lw, a, (1, *a.shape))
    if b.rank == 1:
        b = reshaped_constant(lw, b, (*b.shape, 1))
    k, n = b.shape[-2:]
    m = a.shape[-2]
    lead = _lead(lw, a, b, shape)
    full = (*lead, m, n)
    if not dtype.is_float:
        result = _integer(lw, dtype, full, k, a, b)
    elif b.constant is not None and product(b.shape[:-2]) == 1:
        matrix = b.constant.reshape(b.constant.shape[-2:])
        result = packed(lw, dtype, full, a, matrix, b.name or "constant")
    else:
        result = _batched(lw, dtype, full, a, b)
    return result if full == shape else reshaped(lw, result, shape)


def _lead(lw: Lowering, a: Value, b: Value, shape: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """Batch sizes of the product (those of `shape`, whose last axes may have been dropped)."""
    rank = max(a.rank, b.rank) - 2
    return shape[:rank]


def reshaped_constant(lw: Lowering, x: Value, shape: tuple[Dim, ...]) -> Value:
    """Reshape that keeps a constant a constant."""
    if x.constant is None:
        return reshaped(lw, x, shape)
    sizes = [int(s) for s in shape if isinstance(s, int)]
    return lw.constant(x.constant.reshape(sizes), x.dtype, x.name)


def packed(
    lw: Lowering, dtype: DType, shape: tuple[Dim, ...], a: Value, matrix: Array, name: str = ""
) -> Value:
    """Product with a constant K x N matrix: all rows of `a` are one long batch-free operand.

    name: the constant's, where it may become bytes. dtype I32: an exact product of 16-bit numbers
    and a matrix of bytes whose sums stay below 2^24.
    """
    k, n = matrix.shape
    node = "" if lw.node is None else lw.node.name
    rows = shape[:-1]
    m = product(rows)
    if (
        name
        and isinstance(lw.int8, Int4)
        and lw.int8.takes(matrix, node, name, product_cost(m, n, k))
    ):
        return in_blocks(lw, dtype, shape, a, k, n, *lw.int8.quantise(name, matrix))
    source, view = lw.view(a, (m, k), lambda c: _broadcast_rows(a, rows, c))
    weights, scratch = matrix_weights(lw, matrix, m, name, dtype)

    def build(final: Scalar, store: Any) -> KernelSpec:
        return Matmul(
            (), m, n, k, contiguous_unit(view, 1, k), None, contiguous_unit(store, 1, n), final,
            (), Storage.F32 if final.type is Type.F32 else Storage.I32,
        )  # fmt: skip

    return lw.core(
        dtype, shape, (m, n), lambda c: (*unravel(c[0], rows), c[1]), build,
        fixed=(source, weights), acc=scalar_type(dtype), reads=scratch,
    )  # fmt: skip


def in_blocks(
    lw: Lowering,
    dtype: DType,
    shape: tuple[Dim, ...],
    a: Value,
    k: int,
    n: int,
    blocks: Blocks,
    codes: Array,
    scales: Array,
    zeros: Array | None,
) -> Value:
    """Product with a block-quantised constant: codes (K, N), scales and zeros (blocks, N)."""
    rows = shape[:-1]
    m = product(rows)
    source, view = lw.view(a, (m, k), lambda c: _broadcast_rows(a, rows, c))
    fixed = [source, lw.weight(pack_codes(codes, blocks.bits), Storage.I8)]
    for setting in (scales, zeros):
        if setting is not None:
            fixed.append(lw.weight(pack_panels(setting.astype(np.float32)), Storage.F32))

    def build(final: Scalar, store: Any) -> KernelSpec:
        return Matmul(
            (), m, n, k, contiguous_unit(view, 1, k), None, contiguous_unit(store, 1, n), final,
            (), Storage.F32, blocks=blocks,
        )  # fmt: skip

    return lw.core(dtype, shape, (m, n), lambda c: (*unravel(c[0], rows), c[1]), build, fixed=fixed)


@lowers("MatMulNBits", domain="com.microsoft")
def lower_matmul_n_bits(lw: Lowering, node: Node) -> Value:
    """Blocks along K of weights (N, blocks, bytes); the pass before has left those that fit."""
    dtype, shape = lw.out(node)
    n, k, bits = (int(node.attrs[name]) for name in ("N", "K", "bits"))
    packed_weights, scales = (_constant(lw, node, i) for i in (1, 2))
    count = packed_weights.reshape(n, -1, packed_weights.shape[-1]).shape[1]
    codes = bit_fields(packed_weights.reshape(n, -1), bits)[:, :k].T
    zeros = None
    if len(node.inputs) > 3 and node.inputs[3]:
        zeros = _constant(lw, node, 3)
        if zeros.dtype == np.uint8:
            zeros = bit_fields(zeros.reshape(n, -1), bits)[:, :count]
        zeros = zeros.reshape(n, count).T
    blocks = Blocks(bits, int(node.attrs["block_size"]), zeros is not None)
    return in_blocks(lw, dtype, shape, lw.input(node, 0), k, n, blocks, codes,
                     scales.reshape(n, count).T, zeros)  # fmt: skip


def _constant(lw: Lowering, node: Node, index: int) -> Array:
    constant = lw.input(node, index).constant
    assert constant is not None, "a pass replaced MatMulNBits with weights that are computed"
    return constant


def matrix_weights(
    lw: Lowering, matrix: Array, rows: Dim, name: str, dtype: DType = DType.F32
) -> tuple[int, tuple[int, ...]]:
    """The buffer of a packed K x N constant that `rows` rows meet, and what else its kernel binds
    (see `Core.reads`)."""
    if not dtype.is_float:
        ones = np.ones(matrix.shape[1], np.float32)
        return lw.weight(pack_int8_quantised(matrix.astype(np.int8), ones), Storage.I8), ()
    node = "" if lw.node is None else lw.node.name
    int8 = None if isinstance(lw.int8, Int4) else lw.int8
    cost = product_cost(rows, matrix.shape[1], matrix.shape[0])
    if name and int8 is not None and int8.takes(matrix, node, name, cost):
        int8.note(name, matrix)
        weights = lw.weight(pack_int8_panels(matrix), Storage.I8)
        return weights, (weights,)
    return lw.weight(pack_panels(matrix.astype(np.float32)), Storage.F32), ()


def _broadcast_rows(a: Value, rows: tuple[Dim, ...], c: Coordinates) -> Coordinates:
    there = unravel(c[0], rows)[len(rows) - (a.rank - 1) :]
    own = [sc.const(0) if size == 1 else i for i, size in zip(there, a.shape, strict=False)]
    return (*own, c[1])


def _batched(lw: Lowering, dtype: DType, shape: tuple[Dim, ...], a: Value, b: Value) -> Value:
    """Both operands through views."""
    *lead, m, n = shape
    k = a.shape[-1]
    kept = [i for i, size in enumerate(lead) if size != 1]
    batch = tuple(lead[i] for i in kept)

    def spread(c: Coordinates) -> list[Scalar]:
        """Coordinates of the batch axes, those of size 1 included."""
        full = [sc.const(0)] * len(lead)
        for position, i in enumerate(kept):
            full[i] = c[position]
        return full

    def own(x: Value, rows: Dim, columns: Dim) -> tuple[int, View]:
        def there(c: Coordinates) -> Coordinates:
            batched = spread(c)[len(lead) - (x.rank - 2) :]
            at = [sc.const(0) if s == 1 else i for i, s in zip(batched, x.shape, strict=False)]
            return (*at, *c[-2:])

        source, view = lw.view(x, (*batch, rows, columns), there)
        return source, contiguous_unit(view, len(batch) + 1, columns)

    source_a, view_a = own(a, m, k)
    source_b, view_b = own(b, k, n)

    def build(final: Scalar, store: Any) -> KernelSpec:
        return Matmul(
            batch, m, n, k, view_a, view_b, contiguous_unit(store, len(batch) + 1, n), final, (),
            Storage.F32 if final.type is Type.F32 else Storage.I32,
        )  # fmt: skip

    return lw.core(
        dtype, shape, (*batch, m, n), lambda c: (*spread(c), *c[-2:]), build,
        fixed=(source_a, source_b),
    )  # fmt: skip


def _integer(
    lw: Lowering, dtype: DType, shape: tuple[Dim, ...], k: Dim, a: Value, b: Value
) -> Value:
    lw.limit(a, b)

    def element(c: Coordinates, r: Coordinates) -> Scalar:
        lead = c[:-2]
        x = lw.broadcast(a, (*lead, c[-2], r[0]), (*shape[:-1], k))
        y = lw.broadcast(b, (*lead, r[0], c[-1]), (*shape[:-2], k, shape[-1]))
        return x * y

    return lw.reduce(dtype, shape, (k,), ReduceOp.SUM, element)


@lowers("MatMul")
def lower_matmul(lw: Lowering, node: Node) -> Value:
    dtype, shape = lw.out(node)
    return matmul(lw, dtype, shape, lw.input(node, 0), lw.input(node, 1))


@lowers("Gemm")
def lower_gemm(lw: Lowering, node: Node) -> Value:
    dtype, shape = lw.out(node)
    alpha, beta = float(node.attrs.get("alpha", 1.0)), float(node.attrs.get("beta", 1.0))
    a, b = lw.input(node, 0), lw.input(node, 1)
    if node.attrs.get("transA", 0):
        a = transposed(lw, a, (1, 0))
    if node.attrs.get("transB", 0):
        b = transposed_constant(lw, b)
    result = matmul(lw, dtype, shape, a, b)
    if alpha != 1.0:
        result = lw.pointwise(dtype, shape, lambda x: x * _number(x, alpha), result)
    c = lw.optional(node, 2)
    if c is not None and beta != 0.0:
        result = lw.pointwise(
            dtype, shape, lambda x, y: x + (y if beta == 1.0 else y * _number(y, beta)), result, c
        )
    return result


def _number(like: Scalar, value: float) -> Scalar:
    return convert(sc.const(value), like.type)


def transposed_constant(lw: Lowering, x: Value) -> Value:
    """Transpose of a matrix that keeps a constant a constant."""
    if x.constant is None:
        return transposed(lw, x, (1, 0))
    return lw.constant(np.ascontiguousarray(x.constant.T), x.dtype, x.name)


@lowers("FusedMatMul", domain="com.microsoft")
def lower_fused_matmul(lw: Lowering, node: Node) -> Value:
    dtype, shape = lw.out(node)
    operands = []
    for position, flag in enumerate(("transA", "transB")):
        x = lw.input(node, position)
        if node.attrs.get(flag, 0) and x.rank > 1:
            swapped = (*range(x.rank - 2), x.rank - 1, x.rank - 2)
            x = transposed_constant(lw, x) if x.rank == 2 else transposed(lw, x, swapped)
        operands.append(x)
    result = matmul(lw, dtype, shape, *operands)
    alpha = float(node.attrs.get("alpha", 1.0))
    return result if alpha == 1.0 else lw.pointwise(dtype, shape, lambda x: x * alpha, result)


@lowers("Einsum")
def lower_einsum(lw: Lowering, node: Node) -> Value:
    """A batched product where there are two operands that contract, a reduction otherwise."""
    dtype, shape = lw.out(node)
    equation = node.attrs["equation"]
    equation = equation.decode() if isinstance(equation, bytes) else str(equation)
    operands = [lw.value(name) for name in node.inputs]
    terms, result = _labels(equation.replace(" ", ""), [o.rank for o in operands])
    sizes: dict[str, Dim] = {}
    for labels, operand in zip(terms, operands, strict=True):
        for label, size in zip(labels, operand.shape, strict=True):
            if sizes.get(label, 1) == 1:
                sizes[label] = size
    summed = [label for label in sizes if label not in result]
    found = _as_matmul(lw, dtype, terms, result, summed, sizes, operands)
    if found is not None:
        return reshaped(lw, found, shape) if found.shape != shape else found

    lw.limit(*operands)

    def at(labels: list[str], place: dict[str, Scalar], x: Value) -> Scalar:
        c = [sc.const(0) if s == 1 else place[la] for la, s in zip(labels, x.shape, strict=True)]
        return lw.read(x, c)

    def element(c: Coordinates, r: Coordinates) -> Scalar:
        place = dict(zip([*result, *summed], [*c, *r], strict=True))
        total = at(terms[0], place, operands[0])
        for labels, x in zip(terms[1:], operands[1:], strict=True):
            total = total * at(labels, place, x)
        return total

    if not summed:
        return lw.virtual(dtype, shape, lambda c: element(c, ()))
    out = [sizes[label] for label in result]
    return lw.reduce(dtype, out, [sizes[label] for label in summed], ReduceOp.SUM, element)


def _labels(equation: str, ranks: list[int]) -> tuple[list[list[str]], list[str]]:
    """Labels of each operand and of the result; an ellipsis becomes labels "0", "1", ..."""
    left, arrow, right = equation.partition("->")
    terms: list[list[str]] = []
    dots = 0
    for text, rank in zip(left.split(","), ranks, strict=True):
        if "..." in text:
            before, _, after = text.partition("...")
            count = rank - len(before) - len(after)
            dots = max(dots, count)
            terms.append([*before, *(f"{i}" for i in range(-count, 0)), *after])
        else:
            terms.append(list(text))
    ellipsis = [f"{i}" for i in range(-dots, 0)]
    if arrow:
        before, _, after = right.partition("...")
        return terms, [*before, *(ellipsis if "..." in right else []), *after]
    letters = [x for t in terms for x in t if x not in ellipsis]
    return terms, [*ellipsis, *sorted(x for x in set(letters) if letters.count(x) == 1)]


def _as_matmul(
    lw: Lowering,
    dtype: DType,
    terms: list[list[str]],
    result: list[str],
    summed: list[str],
    sizes: dict[str, Dim],
    operands: list[Value],
) -> Value | None:
    if len(operands) != 2 or not summed or not dtype.is_float:
        return None
    ta, tb = terms
    if len(set(ta)) != len(ta) or len(set(tb)) != len(tb):
        return None
    if any(label not in ta or label not in tb for label in summed):
        return None
    if any(x.shape[i] != sizes[la] for t, x in zip(terms, operands, strict=True)
           for i, la in enumerate(t)):  # fmt: skip
        return None
    batch = [x for x in result if x in ta and x in tb]
    rows = [x for x in result if x in ta and x not in tb]
    columns = [x for x in result if x in tb and x not in ta]

    def arranged(x: Value, labels: list[str], order: list[list[str]]) -> Value:
        moved = transposed(lw, x, [labels.index(la) for group in order for la in group])
        lead = [sizes[la] for la in order[0]]
        shape = (*lead, *(product(sizes[la] for la in group) for group in order[1:]))
        return reshaped(lw, moved, shape)

    a = arranged(operands[0], ta, [batch, rows, summed])
    b = arranged(operands[1], tb, [batch, summed, columns])
    lead = [sizes[la] for la in batch]
    full = (*lead, a.shape[-2], b.shape[-1])
    value = matmul(lw, dtype, full, a, b)
    split = [*lead, *(sizes[la] for la in rows), *(sizes[la] for la in columns)]
    order = [*batch, *rows, *columns]
    return transposed(lw, reshaped(lw, value, split), [order.index(la) for la in result])
