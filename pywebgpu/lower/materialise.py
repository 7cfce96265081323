"""When and where values get into buffers.

Nothing is computed until something needs a buffer. Then `materialise` closes a pending core with
everything that was fused into it, or writes a virtual value with a `Map`. Layouts need no pass of
their own: a buffer's axes lie in the order that its kernel prefers (channels last behind a
convolution) and consumers read through strides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cmp_to_key

from ..codegen import scalar as sc
from ..codegen.dims import Dim
from ..codegen.scalar import Op, Scalar
from ..codegen.spec import Map, View
from .index import Space
from .order import larger, period, preferred_order
from .program import ProgramBuilder
from .values import Coordinates, Pending, Value, convert, scalar_type, stored


class Materialiser(ProgramBuilder):
    """Writes values."""

    def __init__(self, outer: Materialiser | None) -> None:
        super().__init__(outer)
        self._remaining: dict[str, int] = {}
        """By name: how many are still to read it."""
        self._elements: dict[tuple[Value, Coordinates], Scalar] = {}
        """What `read` gave since a value was last put into a buffer: a value that is read twice by
        one that is read twice is not read four times."""

    def read(self, value: Value, coordinates: Coordinates) -> Scalar:
        """The element at `coordinates`; a pending core is emitted first."""
        if value.open is not None:
            self.materialise(value)
        key = value, tuple(coordinates)
        element = self._elements.get(key)
        if element is None:
            element = self._elements[key] = value.read(coordinates)
        return element

    def materialise(self, value: Value, order: Sequence[int] | None = None) -> int:
        """The buffer that holds `value`; written now if there is none yet.

        `order` is a wish for a value that is not in a buffer yet.
        """
        if value.open is not None:
            self._flush(value, order)
        if value.buffer is not None:
            return value.buffer
        if value.constant is not None:
            value.buffer = self.weight(value.constant, value.dtype.storage)
            value.order = tuple(range(value.rank))
            self._elements.clear()
            value.read = self.reader(value.buffer, value.dtype, value.shape)
            return value.buffer
        if order is None:
            order = self._natural_order(value)
        buffer = self.new_buffer(value.dtype.storage, value.shape)
        self._map(value, order, buffer)
        self._settle(value, buffer, order)
        return buffer

    def copy(self, value: Value, order: Sequence[int] | None = None) -> Value:
        """`value` in a buffer of its own, row-major unless `order` says otherwise."""
        order = tuple(order if order is not None else range(value.rank))
        buffer = self.new_buffer(value.dtype.storage, value.shape)
        self._map(value, order, buffer)
        result = Value(value.dtype, value.shape, value.read)
        self._settle(result, buffer, order)
        return result

    def copy_to(self, value: Value, buffer: int) -> None:
        """Write a value's elements in order."""
        if value.open is not None:
            self.materialise(value)
        self._map(value, tuple(range(value.rank)), buffer)

    def fill(
        self,
        value: Value,
        buffer: int,
        place: Callable[[Coordinates], Scalar],
    ) -> None:
        """Write `value` to `place(coordinates)` of a buffer that others fill too."""
        if value.open is not None:
            pending = value.open
            index = pending.core.space.simplify(place(pending.coordinates))
            if self._sole(value) and self._close(pending, index, buffer, value.label):
                self._settle_elsewhere(value, buffer, place)
                return
            self.materialise(value)
        space = Space(value.shape)
        expr = space.simplify(self.read(value, space.axes))
        self._emit_map(space, expr, place(space.axes), buffer, value)

    def _settle(self, value: Value, buffer: int, order: Sequence[int]) -> None:
        self._elements.clear()
        value.buffer, value.order = buffer, tuple(order)
        value.read = self.reader(buffer, value.dtype, value.shape, order)

    def _settle_elsewhere(
        self, value: Value, buffer: int, place: Callable[[Coordinates], Scalar]
    ) -> None:
        self._elements.clear()
        kind = self.buffers[buffer].storage.type
        value.read = lambda c: convert(sc.load(buffer, place(c), kind), scalar_type(value.dtype))

    def _natural_order(self, value: Value) -> tuple[int, ...]:
        """The order in which the operand that matters most lies in memory."""
        space = Space(value.shape)
        return preferred_order(space, space.simplify(self.read(value, space.axes)))

    def _map(self, value: Value, order: Sequence[int], buffer: int) -> None:
        space = Space(value.shape)
        expr = space.simplify(self.read(value, space.axes))
        axes = [space.axes[i] for i in order]
        index = sc.linear(axes, [value.shape[i] for i in order])
        self._emit_map(space, expr, index, buffer, value)

    def _emit_map(
        self, space: Space, expr: Scalar, index: Scalar, buffer: int, value: Value
    ) -> None:
        storage = self.buffers[buffer].storage
        spec = Map(space.extents, stored(expr, storage), space.simplify(index), (), storage)
        self.emit(spec, (), buffer, value.label)

    # -- closing cores -----------------------------------------------------------------------------

    def _sole(self, value: Value) -> bool:
        """Nothing else still needs what this value's core has computed."""
        pending = value.open
        assert pending is not None
        return not any(
            other is not value and self._remaining.get(other.name, 0) > 0
            for other in pending.core.derived
        )

    def _flush(self, value: Value, order: Sequence[int] | None) -> None:
        pending = value.open
        assert pending is not None
        if not self._sole(value):
            # Others extend the same core: store the core's own result, which all can read.
            root = pending.core.root
            assert root is not None, "a core knows the value it was made for"
            if root is not value:
                self._flush_to(root, None)
                return
        self._flush_to(value, order)

    def _flush_to(self, value: Value, order: Sequence[int] | None) -> None:
        assert value.pending is not None
        chosen = tuple(order) if order is not None else self._order(value.pending)
        if self._index(value.pending, value.shape, chosen) is None:
            chosen = self._order(value.pending)
        buffer = self.new_buffer(value.dtype.storage, value.shape)
        stored_ = self._store(value, chosen, buffer)
        assert stored_, "a pending value can always be stored in its own order"

    def _store(self, value: Value, order: Sequence[int], buffer: int) -> bool:
        assert value.pending is not None
        if not self._sole(value) and value is not value.pending.core.root:
            return False
        index = self._index(value.pending, value.shape, order)
        if index is None or not self._close(value.pending, index, buffer, value.label):
            return False
        self._settle(value, buffer, order)
        return True

    def _close(self, pending: Pending, index: Scalar, buffer: int, label: str) -> bool:
        core = pending.core
        store: Scalar | View | None = core.space.view(index) if core.affine else index
        if store is None:
            return False
        storage = self.buffers[buffer].storage
        spec = core.build(stored(pending.expr, storage), store)
        core.emitted = True
        names = dict.fromkeys([core.label, label] if label else [core.label])
        self.emit(spec, core.fixed, buffer, " + ".join(names))
        return True

    def _index(self, pending: Pending, shape: Sequence[Dim], order: Sequence[int]) -> Scalar | None:
        """Where each core coordinate is stored; None if the family cannot store there."""
        core = pending.core
        flat = sc.linear([pending.coordinates[i] for i in order], [shape[i] for i in order])
        index = core.space.simplify(flat)
        return None if core.affine and core.space.view(index) is None else index

    def _order(self, pending: Pending) -> tuple[int, ...]:
        """The value's axes as the core's own order would lay them out."""
        core = pending.core

        def significance(coordinate: Scalar) -> tuple[int, Dim]:
            form = core.space.linear(coordinate)
            rank, weight = -1, 0
            best: Dim = weight
            for atom in form.terms:
                for node in sc.walk([atom]):
                    if node.op is Op.AXIS:
                        at = core.priority[int(node.value or 0)]
                        if at > rank:
                            rank, best = at, period(core.space, atom)
            return rank, best

        keys = [significance(c) for c in pending.coordinates]

        def compare(i: int, j: int) -> int:
            if keys[i][0] != keys[j][0]:
                return keys[i][0] - keys[j][0]
            return larger(keys[i][1], keys[j][1])

        return tuple(sorted(range(len(keys)), key=cmp_to_key(compare)))

    def pending_order(self, value: Value) -> tuple[int, ...]:
        """How a pending value's axes would lie in memory if its kernel chose."""
        assert value.open is not None
        return self._order(value.open)

    # -- views -------------------------------------------------------------------------------------

    def view(
        self,
        value: Value,
        extents: Sequence[Dim],
        coordinates: Callable[[Coordinates], Coordinates],
        order: Sequence[int] | None = None,
        accept: Callable[[View], bool] = lambda view: True,
    ) -> tuple[int, View]:
        """A buffer and the strides at which `value` is read over axes of `extents`.

        A copy is made where there is no such view, or none that the kernel accepts.
        """
        space = Space(extents)
        found = self.find_view(value, space, coordinates)
        if found is None or not accept(found[1]):
            if value.buffer is None and value.constant is None:
                self.materialise(value, order)
                found = self.find_view(value, space, coordinates)
            if found is None or not accept(found[1]):
                found = self.find_view(self.copy(value, order), space, coordinates)
        if found is None:
            found = self.find_view(self.copy(value), space, coordinates)
        assert found is not None, "a row-major copy is always a view"
        return found

    def find_view(
        self, value: Value, space: Space, coordinates: Callable[[Coordinates], Coordinates]
    ) -> tuple[int, View] | None:
        if value.constant is not None:
            self.materialise(value)
        element = space.simplify(self.read(value, coordinates(space.axes)))
        if element.op is not Op.LOAD:
            return None
        view = space.view(element.args[0])
        return None if view is None else (int(element.value or 0), view)
