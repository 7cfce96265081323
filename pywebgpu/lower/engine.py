"""The lowering engine: walks the graph once and decides what becomes a kernel.

Operators are lowered by the functions in this package's category files, in topological order.
They return `Value`s, made with the `vocabulary`; `materialise` writes them into buffers, in kernels
that join the `program`. Each of the three is a layer that knows nothing of the next, and `Lowering`
the last of them. The number of kernels is the number of times a buffer was unavoidable:

* several consumers that do not meet again pointwise, unless recomputing costs next to nothing;
* an operand of a product, convolution or attention that is not a strided view of a buffer;
* expressions that grew too large, or read more buffers than a WebGPU device binds;
* the graph's outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ..codegen import scalar as sc
from ..codegen.dims import Dim
from ..codegen.program import Read as ReadSize
from ..codegen.spec import Storage
from ..errors import UnsupportedError
from ..graph import DType, Graph, Node, outer_names
from ..packing import pack_panels
from .cost import CHEAP, MAX_NODES, MAX_RAW_NODES, MAX_VIRTUAL_OPERANDS, cost, loads
from .index import Space
from .int8 import Int8, table_reader
from .regions import POINTWISE, interior_values
from .tied import read_from_panels, tied_tables
from .values import Array, Value
from .vocabulary import Vocabulary

Lower = Callable[["Lowering", Node], Value | list[Value]]

LOWERINGS: dict[tuple[str, str], Lower] = {}
"""Which function lowers which operator, by domain ("" is ONNX's) and name."""


def lowers(*ops: str, domain: str = "") -> Callable[[Lower], Lower]:
    """Marks the function that lowers `ops`. It reads the opset from the engine where it matters."""

    def add(function: Lower) -> Lower:
        for op in ops:
            LOWERINGS[domain, op] = function
        return function

    return add


class Lowering(Vocabulary):
    """State of one graph's lowering."""

    def __init__(
        self, graph: Graph, int8: Int8 | None = None, outer: Lowering | None = None
    ) -> None:
        """`outer`: what lowers the graph around this one, which is the body of a node there."""
        super().__init__(outer)
        self.graph = graph
        self.int8: Int8 | None = outer.int8 if outer else int8
        self.values: dict[str, Value] = {}
        self.input_buffers: list[int] = []
        self.output_buffers: list[int] = []
        self._outputs: dict[str, int] = {}
        for node in graph.nodes:
            for name in {*outer_names(node)}:
                self._remaining[name] = self._remaining.get(name, 0) + 1
        for name in graph.outputs:
            self._remaining[name] = self._remaining.get(name, 0) + 1
        self._interior = interior_values(graph)
        self._users = graph.consumers()
        self._tied = tied_tables(graph) if int8 is None else {}
        self._byte_tables = int8.tables(graph) if int8 is not None else set()

    def run(self) -> None:
        """Lower every node. Afterwards `steps`, `buffers` and the port buffers are complete."""
        graph = self.graph
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
        element = self.read(value, space.axes)
        if len(sc.walk([element])) > MAX_RAW_NODES:
            self.materialise(value)
            return
        expr = space.simplify(element)
        reads = loads(expr)
        costly = cost(expr) > CHEAP or len(reads) > 1
        if (
            (several and costly)
            or len(sc.walk([expr])) > MAX_NODES
            or (len(reads) > MAX_VIRTUAL_OPERANDS)
        ):
            self.materialise(value)

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

    # -- a node's inputs and outputs ---------------------------------------------------------------

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

    def feeds_pointwise(self, name: str) -> bool:
        """A value's only reader computes elementwise, so it can take the value as an expression."""
        users = self._users.get(name, [])
        return len(users) == 1 and users[0].op in POINTWISE and name not in self.graph.outputs

    def becomes_output(self, name: str) -> bool:
        """A value that is an output of the model, or turns into one elementwise."""
        while name not in self.graph.outputs:
            if not self.feeds_pointwise(name):
                return False
            name = self._users[name][0].outputs[0]
        return True

    # -- control flow ------------------------------------------------------------------------------

    def count(self, symbol: str, buffer: int, most: Dim) -> None:
        """From here on, a size is what the (only) element of `buffer` says; most: over symbols."""
        where = "" if self.node is None else self.node.where()
        self.program.append(ReadSize(symbol, buffer, most, where))

    def flag(self, value: Value) -> int:
        """A buffer of its own for one number that the host will look at."""
        buffer = self.new_buffer(Storage.I32, (), port=True)
        self.copy_to(value, buffer)
        return buffer
