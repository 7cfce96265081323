"""The lowering engine: walks the graph once and decides what becomes a kernel.

Operators are lowered by the functions in this package's category files, in topological order.
They return `Value`s; nothing is computed until something needs a buffer. Then `materialise`
closes a pending core with everything that was fused into it, or writes a virtual value with a
`Map`. So the number of kernels is the number of times a buffer was unavoidable:

* several consumers that do not meet again pointwise, unless recomputing costs next to nothing;
* an operand of a product, convolution or attention that is not a strided view of a buffer;
* expressions that grew too large, or read more buffers than a WebGPU device binds;
* the graph's outputs.

Layouts need no pass of their own: a buffer's axes lie in the order that its kernel prefers
(channels last behind a convolution) and consumers read through strides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cmp_to_key
from typing import Any

import numpy as np

from ..codegen import scalar as sc
from ..codegen.dims import Atom, Dim, atom_dim, product, replace_atoms, substitute, symbol
from ..codegen.program import Item, Range
from ..codegen.program import Read as ReadSize
from ..codegen.scalar import Op, Scalar, Type
from ..codegen.spec import KernelSpec, Map, Reduce, ReduceOp, Row, RowOp, Storage, View
from ..errors import UnsupportedError
from ..graph import DType, Graph, Node, outer_names, subgraphs
from ..packing import pack_panels
from .cost import (
    CHEAP,
    CHEAP_BROADCAST,
    MAX_NODES,
    MAX_OPERANDS,
    MAX_VIRTUAL_OPERANDS,
    cost,
    loads,
)
from .finish import close, tidy_axes
from .index import Space
from .int8 import Int8, table_reader
from .order import larger, period, preferred_order
from .registry import LOWERINGS
from .tied import read_from_panels, tied_tables
from .values import (
    Array,
    BufferInfo,
    Coordinates,
    Core,
    Emitted,
    Pending,
    Read,
    Value,
    scalar_type,
)
from .weights import Weights


class Lowering:
    """State of one graph's lowering, and the vocabulary that the category files are written in."""

    def __init__(
        self, graph: Graph, int8: Int8 | None = None, outer: Lowering | None = None
    ) -> None:
        """`outer`: what lowers the graph around this one, which is the body of a node there."""
        self.graph = graph
        self.int8: Int8 | None = outer.int8 if outer else int8
        self.values: dict[str, Value] = {}
        self.buffers: list[BufferInfo] = outer.buffers if outer else []
        self.steps: list[Emitted] = outer.steps if outer else []
        self.weights: Weights = outer.weights if outer else Weights()
        self.program: list[Item] = []
        self.input_buffers: list[int] = []
        self.output_buffers: list[int] = []
        self._weight_buffers: dict[int, int] = outer._weight_buffers if outer else {}
        self._arguments: list[Atom] = outer._arguments if outer else []
        self._outputs: dict[str, int] = {}
        self._remaining: dict[str, int] = {}
        for node in graph.nodes:
            for name in {*outer_names(node)}:
                self._remaining[name] = self._remaining.get(name, 0) + 1
        for name in graph.outputs:
            self._remaining[name] = self._remaining.get(name, 0) + 1
        from . import regions

        self._interior = regions.interior_values(graph)
        self._users = graph.consumers()
        self._tied = tied_tables(graph) if int8 is None else {}
        self._byte_tables = int8.tables(graph) if int8 is not None else set()
        self.node: Node | None = None
        """What is being lowered."""

    # -- the walk ------------------------------------------------------------------------------

    def run(self) -> None:
        """Lower every node. Afterwards `steps`, `buffers` and the port buffers are complete."""
        graph = self.graph
        refuse_unsupported(graph)
        for name in graph.inputs:
            type_ = graph.types[name]
            shape = self.local(type_.shape)
            buffer = self.new_buffer(type_.dtype.storage, shape, port=True)
            self.input_buffers.append(buffer)
            value = Value(type_.dtype, shape, self.reader(buffer, type_.dtype, shape), name)
            value.buffer, value.order = buffer, tuple(range(len(shape)))
            self.values[name] = value
        for name in dict.fromkeys(graph.outputs):
            produced = any(name in node.outputs for node in graph.nodes)
            if produced and name not in graph.constants:
                type_ = graph.types[name]
                shape = self.local(type_.shape)
                self._outputs[name] = self.new_buffer(type_.dtype.storage, shape, port=True)
        for node in graph.nodes:
            self._lower(node)
        self._finish_outputs()

    def run_body(self, given: Mapping[str, Value], targets: Sequence[int | None]) -> list[Value]:
        """Lower a body: its inputs and what it reads from around it are `given`; its outputs are
        written to `targets` where there is one. Returns the outputs."""
        graph = self.graph
        self.values.update(given)
        produced = {out for node in graph.nodes for out in node.outputs}
        for name, buffer in zip(graph.outputs, targets, strict=True):
            fresh = name in produced and name not in graph.constants
            if buffer is not None and fresh and graph.outputs.count(name) == 1:
                self._outputs[name] = buffer
        for node in graph.nodes:
            self._lower(node)
        results = []
        for name, target in zip(graph.outputs, targets, strict=True):
            value = self.value(name)
            if target is not None and value.buffer != target:
                self.copy_to(value, target)
            results.append(value)
        return results

    def copy_to(self, value: Value, buffer: int) -> None:
        """Write a value's elements in order."""
        if value.open is not None:
            self.materialise(value)
        self._map(value, tuple(range(value.rank)), buffer)

    @property
    def controlled(self) -> bool:
        """Whether there is more to the program than the steps in their order."""
        return any(not isinstance(item, Range) for item in self.program)

    def count(self, symbol: str, buffer: int, most: Dim) -> None:
        """From here on, a size is what the (only) element of `buffer` says; most: over symbols."""
        where = "" if self.node is None else self.node.where()
        self.program.append(ReadSize(symbol, buffer, most, where))

    def flag(self, value: Value) -> int:
        """A buffer of its own for one number that the host will look at."""
        buffer = self.new_buffer(Storage.I32, (), port=True)
        self.copy_to(value, buffer)
        return buffer

    def _lower(self, node: Node) -> None:
        self.node = node
        known = [n for n in node.outputs if n and n in self.graph.values]
        if known and len(known) == len([n for n in node.outputs if n]):
            results = [self._known(n) for n in node.outputs if n]
        else:
            made = LOWERINGS[node.domain, node.op](self, node)
            results = made if isinstance(made, list) else [made]
        for name in {*outer_names(node)}:
            self._remaining[name] -= 1
        for name, value in zip([n for n in node.outputs if n], results, strict=False):
            self._bind(name, value, node)

    def _bind(self, name: str, value: Value, node: Node) -> None:
        if value.name:  # an alias of another value (Identity): reads go through
            value = self.alias(value)
        value.name = name
        value.label = node.name or node.op
        self.values[name] = value
        if name in self._outputs:
            self._write_output(value, self._outputs[name])
            return
        if value.constant is not None or value.elements is not None or value.buffer is not None:
            return
        several = self._remaining.get(name, 0) > 1 and name not in self._interior
        if value.open is not None:
            if several:
                self.materialise(value)
            return
        space = Space(value.shape)
        expr = space.simplify(self.read(value, space.axes))
        reads = loads(expr)
        costly = cost(expr) > CHEAP or len(reads) > 1
        if (
            (several and costly)
            or len(sc.walk([expr])) > MAX_NODES
            or (len(reads) > MAX_VIRTUAL_OPERANDS)
        ):
            self.materialise(value)

    def feeds_pointwise(self, name: str) -> bool:
        """A value's only reader computes elementwise, so it can take the value as an expression."""
        from .elementwise import POINTWISE

        users = self._users.get(name, [])
        return len(users) == 1 and users[0].op in POINTWISE and name not in self.graph.outputs

    def becomes_output(self, name: str) -> bool:
        """A value that is an output of the model, or turns into one elementwise."""
        while name not in self.graph.outputs:
            if not self.feeds_pointwise(name):
                return False
            name = self._users[name][0].outputs[0]
        return True

    def _known(self, name: str) -> Value:
        """A shape computation that inference has already done."""
        type_ = self.graph.types[name]
        elements = self.local(self.graph.values[name])
        return self.sizes(elements, type_.dtype, self.local(type_.shape))

    def _write_output(self, value: Value, buffer: int) -> None:
        plain = tuple(range(value.rank))
        if value.open is not None and not self._store(value, plain, buffer):
            self.materialise(value)
        if value.buffer != buffer:
            self._map(value, plain, buffer)
            if value.buffer is None and value.constant is None:
                self._settle(value, buffer, plain)

    def _finish_outputs(self) -> None:
        """Outputs that are inputs, constants or named twice are copies."""
        taken: set[str] = set()
        for name in self.graph.outputs:
            if name in self._outputs and name not in taken:
                self.output_buffers.append(self._outputs[name])
                taken.add(name)
                continue
            value = self.value(name)
            buffer = self.new_buffer(value.dtype.storage, value.shape, port=True)
            self._map(value, tuple(range(value.rank)), buffer)
            self.output_buffers.append(buffer)

    # -- sizes ---------------------------------------------------------------------------------

    def local(self, dims: Sequence[Dim]) -> tuple[Dim, ...]:
        """Model sizes as sizes over the program's arguments "a0", ...: one per distinct atom."""

        def number(atom: Atom) -> Dim:
            if atom not in self._arguments:
                self._arguments.append(atom)
            return symbol(f"a{self._arguments.index(atom)}")

        return tuple(replace_atoms(d, number) for d in dims)

    def outer(self, dim: Dim) -> Dim:
        """The inverse of `local`."""
        return substitute(dim, {f"a{i}": atom_dim(a) for i, a in enumerate(self._arguments)})

    # -- values --------------------------------------------------------------------------------

    def value(self, name: str) -> Value:
        if name not in self.values and name not in self.graph.constants:
            # Sizes that inference knows, whose nodes a pass may have dropped.
            self.values[name] = self._known(name)
        if name not in self.values:
            array = self.graph.constants[name]
            value = self.constant(array, self.graph.types[name].dtype, name)
            if name in self._tied:
                packed = pack_panels(self._tied[name].astype(np.float32))
                value.read = read_from_panels(self.weight(packed, Storage.F32), array.shape[1])
            if self.int8 is not None and name in self._byte_tables:
                value.read = table_reader(self.weight, array)
                self.int8.note(name, array.T)
            self.values[name] = value
        return self.values[name]

    def input(self, node: Node, position: int) -> Value:
        """Input that must be there."""
        return self.value(node.inputs[position])

    def optional(self, node: Node, position: int) -> Value | None:
        if position >= len(node.inputs) or not node.inputs[position]:
            return None
        return self.value(node.inputs[position])

    def out(self, node: Node, position: int = 0) -> tuple[DType, tuple[Dim, ...]]:
        """Type and shape that inference found for an output."""
        type_ = self.graph.types[node.outputs[position]]
        return type_.dtype, self.local(type_.shape)

    def opset(self, node: Node) -> int:
        return self.graph.opsets.get(node.domain, 1)

    def array(self, node: Node, position: int) -> Array | None:
        """A constant input's elements; None where it is omitted or computed at run time."""
        value = self.optional(node, position)
        if value is None:
            return None
        if value.constant is not None:
            return value.constant
        if value.elements is not None and all(isinstance(e, int) for e in value.elements):
            shape = [int(s) for s in value.shape if isinstance(s, int)]
            return np.array(value.elements, np.int64).reshape(shape)
        return None

    def ints(self, node: Node, position: int) -> tuple[Dim, ...] | None:
        """A small integer input as sizes; None where it is omitted."""
        value = self.optional(node, position)
        if value is None:
            return None
        if value.elements is not None:
            return value.elements
        if value.constant is not None:
            return tuple(int(e) for e in value.constant.ravel())
        raise UnsupportedError(
            f"input {position} must be known before the model runs",
            where=node.where(),
            got="a value computed from the model's data",
            expected="a constant, or an expression over the input shapes",
            remedy="Export the model with this input fixed",
        )

    def constant(self, array: Array, dtype: DType, name: str = "") -> Value:
        """Equal elements become a literal; others a weight buffer once they are read."""
        if dtype is DType.F64:
            refuse_large(array, name)
        shape: tuple[Dim, ...] = tuple(int(s) for s in array.shape)
        value = Value(dtype, shape, lambda c: sc.const(0), name, constant=array)
        first = array.ravel()[0] if array.size else 0
        same = array.size <= 1 or bool((array == first).all())
        if array.size == 0 or same:
            literal = _literal(first, dtype)
            value.read = lambda c: literal
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

    def read(self, value: Value, coordinates: Coordinates) -> Scalar:
        """The element at `coordinates`; a pending core is emitted first."""
        if value.open is not None:
            self.materialise(value)
        return value.read(coordinates)

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
        if len(kept.core.fixed) + len(loads(expr)) > MAX_OPERANDS - self._inner(kept.core):
            return result
        if len(sc.walk([expr])) > MAX_NODES or len(total) > MAX_OPERANDS:
            return result
        result.pending = Pending(kept.core, kept.coordinates, expr)
        kept.core.derived.append(result)
        return result

    def _inner(self, core: Core) -> int:
        return len(getattr(core.build, "reads", ()))

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

    # -- buffers -------------------------------------------------------------------------------

    def new_buffer(self, storage: Storage, shape: Sequence[Dim], *, port: bool = False) -> int:
        self.buffers.append(BufferInfo(storage, self.outer(product(shape)), port=port))
        return len(self.buffers) - 1

    def weight(self, array: Array, storage: Storage) -> int:
        """The buffer of a constant in the weight space."""
        number = self.weights.add(array, storage)
        if number not in self._weight_buffers:
            self.buffers.append(BufferInfo(storage, int(array.size), weight=number))
            self._weight_buffers[number] = len(self.buffers) - 1
        return self._weight_buffers[number]

    def reader(
        self,
        buffer: int,
        dtype: DType,
        shape: Sequence[Dim],
        order: Sequence[int] | None = None,
    ) -> Read:
        """Loads from a buffer whose axes lie in `order`, slowest first."""
        axes = tuple(order if order is not None else range(len(shape)))
        extents = [shape[i] for i in axes]
        kind = self.buffers[buffer].storage.type

        def read(c: Coordinates) -> Scalar:
            element = sc.load(buffer, sc.linear([c[i] for i in axes], extents), kind)
            return convert(element, scalar_type(dtype))

        return read

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

    def _settle(self, value: Value, buffer: int, order: Sequence[int]) -> None:
        value.buffer, value.order = buffer, tuple(order)
        value.read = self.reader(buffer, value.dtype, value.shape, order)

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

    def _settle_elsewhere(
        self, value: Value, buffer: int, place: Callable[[Coordinates], Scalar]
    ) -> None:
        kind = self.buffers[buffer].storage.type
        value.read = lambda c: convert(sc.load(buffer, place(c), kind), scalar_type(value.dtype))

    # -- closing cores -------------------------------------------------------------------------

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

    def emit(self, spec: KernelSpec, fixed: Sequence[int], buffer: int, label: str) -> None:
        """Append a kernel call whose loads name program buffers."""
        spec, operands, arguments = close(tidy_axes(spec), fixed, lambda b: self.buffers[b].storage)
        if len(operands) > MAX_OPERANDS:
            raise UnsupportedError(
                f"a kernel would read {len(operands)} buffers", where=label, expected=MAX_OPERANDS
            )
        args = tuple(self.outer(symbol(f"a{k}")) for k in arguments)
        number = len(self.steps)
        self.steps.append(Emitted(spec, tuple(operands), buffer, args, label))
        last = self.program[-1] if self.program else None
        if isinstance(last, Range) and last.end == number:
            self.program[-1] = Range(last.first, number + 1)
        else:
            self.program.append(Range(number, number + 1))

    # -- cores ---------------------------------------------------------------------------------

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
    ) -> Value:
        """A pending value: `coordinates` maps the core's axes to the value's coordinates."""
        space = Space(extents)
        label = "" if self.node is None else self.node.name or self.node.op
        ranks = tuple(priority if priority is not None else range(len(extents)))
        core = Core(space, build, tuple(fixed), affine, final, ranks, label)
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
            dtype, shape, extents, place, Build(build, tuple(loads(value))), affine=False,
            priority=priority, expr=Space(extents).simplify(expr),
        )  # fmt: skip
        return result

    # -- views ---------------------------------------------------------------------------------

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


class Build:
    """A core's `build` that also tells which buffers its kernel binds beside `fixed` and those of
    its epilogue: what its inner expression reads, or scratch that counts like a buffer."""

    def __init__(self, build: Callable[[Scalar, Any], KernelSpec], reads: tuple[int, ...]) -> None:
        self._build = build
        self.reads = reads

    def __call__(self, final: Scalar, store: Any) -> KernelSpec:
        return self._build(final, store)


def convert(value: Scalar, to: Type) -> Scalar:
    """The same number in another scalar type."""
    if value.type is to:
        return value
    if to is Type.BOOL:
        if value.op is Op.CONST:
            return sc.const(bool(value.value))
        return sc.unary(Op.TO_BOOL, value)
    return sc.unary(Op.TO_F32 if to is Type.F32 else Op.TO_I32, value)


def stored(value: Scalar, storage: Storage) -> Scalar:
    return convert(value, storage.type)


def _literal(value: Any, dtype: DType) -> Scalar:
    """A constant element. Integers beyond 32 bits are left only where the nearest number of 32 bits
    does as well (`passes.ranges`)."""
    kind = scalar_type(dtype)
    if kind is Type.BOOL:
        return sc.const(bool(value))
    if kind is Type.F32:
        return sc.const(float(value), Type.F32)
    high = DType.U32.limits[1] if dtype is DType.U32 else 2**31 - 1
    return sc.const(min(max(int(value), -(2**31)), high), Type.I32)


def refuse_large(array: Array, name: str) -> None:
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


def refuse_unsupported(graph: Graph) -> None:
    """One error for all nodes that cannot be lowered."""
    found: dict[str, list[str]] = {}

    def look(graph: Graph) -> None:
        for node in graph.nodes:
            computed = all(name in graph.values for name in node.outputs if name)
            reason = None if computed else supported(node)
            if reason is not None:
                found.setdefault(reason, []).append(node.where())
            for body in subgraphs(node):
                look(body)

    look(graph)
    if found:
        lines = [f"{reason} ({', '.join(where[:3])}{', ...' if len(where) > 3 else ''})"
                 for reason, where in found.items()]  # fmt: skip
        raise UnsupportedError(
            "; ".join(lines),
            where=f"model {graph.name!r}",
            remedy="`pywebgpu check` lists what is supported",
        )


def supported(node: Node) -> str | None:
    """Why this operator cannot be lowered; None if it can."""
    if (node.domain, node.op) in LOWERINGS:
        return None
    domain = f" of domain {node.domain!r}" if node.domain else ""
    return f"operator {node.op}{domain} is not supported"
