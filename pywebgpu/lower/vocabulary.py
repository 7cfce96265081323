"""New values out of others: what the category files are written in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..codegen import scalar as sc
from ..codegen.dims import Dim, product
from ..codegen.scalar import Op, Scalar, Type
from ..codegen.spec import KernelSpec, Reduce, ReduceOp, Row, RowOp, Storage
from ..errors import UnsupportedError
from ..graph import DType, Node
from .cost import CHEAP_BROADCAST, MAX_NODES, MAX_OPERANDS, MAX_VIRTUAL_OPERANDS, cost, loads
from .index import Space
from .materialise import Materialiser
from .order import preferred_order
from .values import Array, Coordinates, Core, Pending, Read, Value, convert, literal, scalar_type


class Vocabulary(Materialiser):
    """Makes values. Elementwise and movement operators make virtual ones, or extend a core."""

    node: Node | None = None
    """What is being lowered."""

    def constant(self, array: Array, dtype: DType, name: str = "") -> Value:
        """Equal elements become a literal; others a weight buffer once they are read."""
        if dtype is DType.F64:
            _refuse_large(array, name)
        shape: tuple[Dim, ...] = tuple(int(s) for s in array.shape)
        value = Value(dtype, shape, lambda c: sc.const(0), name, constant=array)
        first = array.ravel()[0] if array.size else 0
        same = array.size <= 1 or bool((array == first).all())
        if array.size == 0 or same:
            element = literal(first, dtype)
            value.read = lambda c: element
            return value

        def read(c: Coordinates) -> Scalar:
            if value.buffer is None:
                value.buffer = self.weight(array, dtype.storage)
                value.order = tuple(range(array.ndim))
            return self.reader(value.buffer, dtype, shape)(c)

        value.read = read
        return value

    def sizes(
        self, elements: tuple[Dim, ...], dtype: DType = DType.I64, shape: Sequence[Dim] = ()
    ) -> Value:
        """An integer tensor whose elements are sizes."""
        if all(isinstance(e, int) for e in elements) and elements:
            dims = [int(s) for s in shape if isinstance(s, int)]
            value = self.constant(np.array(elements, np.int64).reshape(dims), dtype)
            value.elements = elements
            return value
        kind = scalar_type(dtype)

        def read(c: Coordinates) -> Scalar:
            number = sc.linear(c, shape)
            result = sc.dim(elements[-1]) if elements else sc.const(0)
            for i in range(len(elements) - 2, -1, -1):
                here = sc.binary(Op.EQ, number, sc.const(i))
                result = sc.select(here, sc.dim(elements[i]), result)
            return convert(result, kind)

        return Value(dtype, tuple(shape), read, elements=elements)

    def virtual(self, dtype: DType, shape: Sequence[Dim], read: Read) -> Value:
        return Value(dtype, tuple(shape), read)

    def alias(self, value: Value) -> Value:
        """The same elements under another name; a pending core stays open."""
        if value.open is None:
            return dataclasses.replace(value, name="", pending=None)
        return self.moved(value, value.shape, lambda c: c, lambda c: c)

    def moved(
        self,
        source: Value,
        shape: Sequence[Dim],
        backward: Callable[[Coordinates], Coordinates],
        forward: Callable[[Coordinates], Coordinates] | None = None,
    ) -> Value:
        """The same elements at other coordinates: result's to source's (`backward`).

        `forward`, for a bijection, says where each element goes, so that a pending core can store
        it there.
        """
        result = Value(source.dtype, tuple(shape), lambda c: self.read(source, backward(c)))
        pending = source.open
        if pending is not None and forward is not None:
            core = pending.core
            there = tuple(core.space.simplify(x) for x in forward(pending.coordinates))
            moved = Pending(core, there, pending.expr)
            if self._index(moved, result.shape, self._order(moved)) is not None:
                result.pending = moved
                core.derived.append(result)
        return result

    def broadcast(self, value: Value, coordinates: Coordinates, shape: Sequence[Dim]) -> Scalar:
        """The element of `value` that meets `coordinates` of a shape it broadcasts to."""
        skip = len(coordinates) - value.rank
        chosen: list[Scalar] = []
        for i, size in enumerate(value.shape):
            c = coordinates[skip + i]
            if size == 1:
                c = sc.const(0)
            elif size != shape[skip + i]:
                # 1 or the full size, known only at run time.
                c = sc.binary(Op.MIN, c, sc.dim(size - 1))
            chosen.append(c)
        return self.read(value, chosen)

    def pointwise(
        self,
        dtype: DType,
        shape: Sequence[Dim],
        compute: Callable[..., Scalar],
        *operands: Value,
    ) -> Value:
        """compute(elements of the operands, broadcast to `shape`); joins a pending core."""
        shape = tuple(shape)
        self._limit(shape, operands)
        result = Value(
            dtype, shape, lambda c: compute(*(self.broadcast(o, c, shape) for o in operands))
        )
        candidates = [
            o for o in operands if o.open is not None and o.shape == shape and o.open.core.final
        ]
        if not candidates:
            return result
        # The core made last may read what the others store, so it is the one to keep open.
        kept = candidates[-1].open
        assert kept is not None
        parts: list[Scalar] = []
        for o in operands:
            p = o.open
            joins = p is not None and p.core is kept.core and p.coordinates == kept.coordinates
            if p is not None and joins and o.shape == shape:
                parts.append(p.expr)
            else:
                parts.append(self.broadcast(o, kept.coordinates, shape))
        if kept.core.emitted:
            return result
        expr = kept.core.space.simplify(compute(*parts))
        total = {**dict.fromkeys(kept.core.fixed), **loads(expr)}
        if len(kept.core.fixed) + len(loads(expr)) > MAX_OPERANDS - len(kept.core.reads):
            return result
        if len(sc.walk([expr])) > MAX_NODES or len(total) > MAX_OPERANDS:
            return result
        result.pending = Pending(kept.core, kept.coordinates, expr)
        kept.core.derived.append(result)
        return result

    def limit(self, *operands: Value | None) -> None:
        """Materialise operands until one kernel can read them all."""
        present = [o for o in operands if o is not None]
        for o in present:
            if o.open is not None:
                self.materialise(o)
        self._limit((), present, broadcast=False)

    def _limit(
        self, shape: tuple[Dim, ...], operands: Sequence[Value], *, broadcast: bool = True
    ) -> None:
        """Materialise operands that would make the expression too large, or too often computed."""
        measured: list[tuple[int, Value]] = []
        everything: dict[int, None] = {}
        for o in operands:
            if o.buffer is not None or o.open is not None or o.constant is not None:
                if o.buffer is not None:
                    everything[o.buffer] = None
                continue
            space = Space(o.shape)
            expr = space.simplify(self.read(o, space.axes))
            wider = broadcast and product(o.shape) != product(shape)
            if wider and cost(expr) > CHEAP_BROADCAST and loads(expr):
                self.materialise(o)
                continue
            reads = loads(expr)
            everything.update(reads)
            measured.append((len(reads), o))
        measured.sort(key=lambda item: -item[0])
        for count, o in measured:
            if len(everything) <= MAX_VIRTUAL_OPERANDS or count < 2:
                break
            self.materialise(o)
            everything = {}
            for other in operands:
                if other.open is None and other.constant is None:
                    everything.update(loads(self.read(other, Space(other.shape).axes)))

    # -- cores -------------------------------------------------------------------------------------

    def core(
        self,
        dtype: DType,
        shape: Sequence[Dim],
        extents: Sequence[Dim],
        coordinates: Callable[[Coordinates], Coordinates],
        build: Callable[[Scalar, Any], KernelSpec],
        *,
        fixed: Sequence[int] = (),
        affine: bool = True,
        final: bool = True,
        priority: Sequence[int] | None = None,
        acc: Type = Type.F32,
        expr: Scalar | None = None,
        reads: Sequence[int] = (),
    ) -> Value:
        """A pending value: `coordinates` maps the core's axes to the value's coordinates."""
        space = Space(extents)
        label = "" if self.node is None else self.node.name or self.node.op
        ranks = tuple(priority if priority is not None else range(len(extents)))
        core = Core(space, build, tuple(fixed), affine, final, ranks, tuple(reads), label)
        there = tuple(space.simplify(c) for c in coordinates(space.axes))
        value = Value(dtype, tuple(shape), lambda c: sc.const(0))
        value.label = label
        value.pending = Pending(core, there, expr if expr is not None else sc.acc(acc))
        core.root = value
        core.derived.append(value)

        def read(c: Coordinates) -> Scalar:
            # Reached through a derived value whose own extension was given up.
            if not core.emitted:
                self._flush_to(value, None)
            return value.read(c)

        value.read = read
        return value

    def reduce(
        self,
        dtype: DType,
        shape: Sequence[Dim],
        over: Sequence[Dim],
        op: ReduceOp,
        element: Callable[[Coordinates, Coordinates], Scalar],
        finish: Callable[[Scalar, Coordinates], Scalar] | None = None,
    ) -> Value:
        """out[c] = finish(op over r of element(c, r))."""
        shape, over = tuple(shape), tuple(over)
        space = Space((*shape, *over))
        rank = len(shape)
        value = space.simplify(element(space.axes[:rank], space.axes[rank:]))
        order = preferred_order(space, value, rank)
        index_result = op.value.startswith("arg")
        acc = sc.acc(Type.I32 if index_result else value.type)
        expr = acc if finish is None else finish(acc, space.axes[:rank])
        if value.type is Type.BOOL:
            raise TypeError("a reduction takes numbers")

        def build(final: Scalar, store: Any) -> KernelSpec:
            storage = Storage.F32 if final.type is Type.F32 else Storage.I32
            return Reduce(shape, over, op, value, final, store, (), storage)

        return self._open_core(dtype, shape, shape, (), build, value, order, expr)

    def row(
        self,
        dtype: DType,
        shape: Sequence[Dim],
        lead: Sequence[Dim],
        row: Sequence[Dim],
        op: RowOp,
        element: Callable[[Coordinates], Scalar],
        place: Callable[[Coordinates], Coordinates],
        eps: float = 0.0,
        finish: Callable[[Scalar, Coordinates], Scalar] | None = None,
    ) -> Value:
        """Normalise over `row` for each coordinate of `lead`; `place` gives the value's coordinates
        for those of (lead, row)."""
        lead, row = tuple(lead), tuple(row)
        space = Space((*lead, *row))
        value = space.simplify(element(space.axes))
        order = preferred_order(space, value)
        acc = sc.acc()
        expr = acc if finish is None else finish(acc, space.axes)

        def build(final: Scalar, store: Any) -> KernelSpec:
            storage = Storage.F32 if final.type is Type.F32 else Storage.I32
            return Row(lead, row, op, eps, value, final, store, (), storage)

        return self._open_core(dtype, shape, lead, row, build, value, order, expr, place)

    def _open_core(
        self,
        dtype: DType,
        shape: Sequence[Dim],
        lead: tuple[Dim, ...],
        row: tuple[Dim, ...],
        build: Callable[[Scalar, Any], KernelSpec],
        value: Scalar,
        order: Sequence[int],
        expr: Scalar,
        place: Callable[[Coordinates], Coordinates] = lambda c: c,
    ) -> Value:
        extents = (*lead, *row)
        priority = [0] * len(extents)
        for position, axis in enumerate(order):
            priority[axis] = position
        result = self.core(
            dtype, shape, extents, place, build, affine=False,
            priority=priority, expr=Space(extents).simplify(expr), reads=tuple(loads(value)),
        )  # fmt: skip
        return result


def _refuse_large(array: Array, name: str) -> None:
    """Finite float64 numbers that would become infinite."""
    sizes = np.abs(array[np.isfinite(array)])
    most = float(sizes.max(initial=0))
    if most > float(np.finfo(np.float32).max):
        raise UnsupportedError(
            "an element does not fit float32",
            where=f"constant {name!r}" if name else "a constant of float64",
            got=f"{most:.4g}",
            expected="at most 3.403e+38",
            remedy="float64 is computed in float32: export the model in float32",
        )
