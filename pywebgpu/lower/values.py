"""Values while lowering: functions from coordinates to scalars, evaluated only where they are used.

A value is one of:

* a constant, or a small integer tensor whose elements are sizes;
* held in a buffer: `read` gives a LOAD;
* virtual: `read` gives an expression over other values' elements. Elementwise and movement
  operators make these, so that they end up inside whichever kernel consumes them;
* pending: the result of a kernel's core (a product, a reduction, ...) that has not been emitted
  yet, because what follows may still become its epilogue.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..codegen import scalar as sc
from ..codegen.dims import Dim
from ..codegen.scalar import Op, Scalar, Type
from ..codegen.spec import KernelSpec, Storage, View
from ..graph import DType
from .index import Space

Array = np.ndarray[Any, Any]
Coordinates = Sequence[Scalar]
Read = Callable[[Coordinates], Scalar]


def scalar_type(dtype: DType) -> Type:
    """What an element of this type is in an expression."""
    if dtype is DType.BOOL:
        return Type.BOOL
    return Type.F32 if dtype.is_float else Type.I32


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


def literal(value: Any, dtype: DType) -> Scalar:
    """A constant element. Integers beyond 32 bits are left only where the nearest number of 32 bits
    does as well (`passes.ranges`)."""
    kind = scalar_type(dtype)
    if kind is Type.BOOL:
        return sc.const(bool(value))
    if kind is Type.F32:
        return sc.const(float(value), Type.F32)
    high = DType.U32.limits[1] if dtype is DType.U32 else 2**31 - 1
    return sc.const(min(max(int(value), -(2**31)), high), Type.I32)


@dataclass(eq=False, slots=True)
class Core:
    """A kernel with an open end: `build(final, store)` closes it.

    `space`: the axes that `final` and the store range over. `priority`: for each of them its rank
    in the preferred order in memory, slowest first. `affine`: the store must be a `View`
    (`build` gets one), not any Scalar. `final`: whether the family has an epilogue at all.
    `fixed`: buffers that are operands 0, 1, ... by position. `reads`: what it
    binds beside those and its epilogue's: buffers of its inner expression, or scratch that counts
    like one.
    """

    space: Space
    build: Callable[[Scalar, Scalar | View], KernelSpec]
    fixed: tuple[int, ...]
    affine: bool
    final: bool
    priority: tuple[int, ...]
    reads: tuple[int, ...]
    label: str
    root: Value | None = None
    derived: list[Value] = field(default_factory=list)
    emitted: bool = False


@dataclass(eq=False, slots=True)
class Pending:
    """`expr`: the value's element in terms of the core's ACC; `coordinates`: where it lies in the
    value, over the core's axes."""

    core: Core
    coordinates: tuple[Scalar, ...]
    expr: Scalar


@dataclass(eq=False, slots=True)
class Value:
    """A tensor; see the module's head. `shape` is over the arguments "a0", ..."""

    dtype: DType
    shape: tuple[Dim, ...]
    read: Read
    name: str = ""
    constant: Array | None = None
    elements: tuple[Dim, ...] | None = None  # flat, row-major, for shapes being computed
    buffer: int | None = None
    order: tuple[int, ...] = ()  # axes of the buffer, slowest first
    pending: Pending | None = None
    label: str = ""

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def open(self) -> Pending | None:
        """The pending core, if it can still be extended."""
        return self.pending if self.pending and not self.pending.core.emitted else None


@dataclass(frozen=True, slots=True)
class Emitted:
    """A kernel call: buffer numbers are the program's. `args` are over the model's symbols."""

    spec: KernelSpec
    operands: tuple[int, ...]
    output: int
    args: tuple[Dim, ...]
    label: str
    kept: int | None = None
    """A second output (see `spec.Beside`, `spec.Prologue` and `spec.Epilogue`)."""


@dataclass(eq=False, slots=True)
class BufferInfo:
    """`elements` is over the model's symbols. `weight`: index of the constant that it holds, or of
    which it holds a part, from element `first` on."""

    storage: Storage
    elements: Dim
    weight: int | None = None
    port: bool = False
    first: int = 0
