"""The program under construction: kernel calls over numbered buffers.

Lowering works with sizes over the arguments that kernels get ("a0", ...): `local` makes them of the
model's, `outer` turns them back.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..codegen import scalar as sc
from ..codegen.dims import Atom, Dim, atom_dim, product, replace_atoms, substitute, symbol
from ..codegen.program import Item, Range
from ..codegen.scalar import Scalar
from ..codegen.spec import KernelSpec, Storage
from ..errors import UnsupportedError
from ..graph import DType
from .cost import MAX_OPERANDS
from .finish import close, tidy_axes
from .values import Array, BufferInfo, Coordinates, Emitted, Read, convert, scalar_type
from .weights import Weights


class ProgramBuilder:
    """Buffers, weights and steps; bodies of nodes add to those of the graph around them, in a
    program of their own."""

    def __init__(self, outer: ProgramBuilder | None) -> None:
        self.buffers: list[BufferInfo] = outer.buffers if outer else []
        self.steps: list[Emitted] = outer.steps if outer else []
        self.weights: Weights = outer.weights if outer else Weights()
        self.program: list[Item] = []
        self._weight_buffers: dict[int, int] = outer._weight_buffers if outer else {}
        self._arguments: list[Atom] = outer._arguments if outer else []

    @property
    def controlled(self) -> bool:
        """Whether there is more to the program than the steps in their order."""
        return any(not isinstance(item, Range) for item in self.program)

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
