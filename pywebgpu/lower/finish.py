"""Last touches to a spec: axes in memory order, merged where they can be, arguments renamed.

Two layers of a model that do the same must end as equal specs, since equal specs are one kernel.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..codegen import scalar as sc
from ..codegen.dims import Dim, Expr, substitute, symbol, symbols
from ..codegen.scalar import Op, Scalar
from ..codegen.spec import (
    Beside,
    Epilogue,
    KernelSpec,
    Map,
    Prologue,
    Reduce,
    ReduceOp,
    Row,
    Storage,
    View,
)
from .index import Space, shift_axes
from .order import by_stride

_ARG_REDUCTIONS = {ReduceOp.ARGMIN, ReduceOp.ARGMAX, ReduceOp.ARGMIN_LAST, ReduceOp.ARGMAX_LAST}


def tidy_axes(spec: KernelSpec) -> KernelSpec:
    """Sort and merge the axes of a spec whose axes are its own to choose."""
    if isinstance(spec, Map):
        (shape,), (value, index) = _tidy([spec.shape], (spec.value, spec.index), 1, None)
        return dataclasses.replace(spec, shape=shape, value=value, index=index)
    if isinstance(spec, Reduce):
        keep = spec.op in _ARG_REDUCTIONS
        (shape, inner), (value, final, index) = _tidy(
            [spec.shape, spec.reduce],
            (spec.value, spec.final, spec.index),
            2,
            None if keep else _main_load(spec.value),
        )
        return dataclasses.replace(
            spec, shape=shape, reduce=inner, value=value, final=final, index=index
        )
    if isinstance(spec, Row):
        (shape, inner), (value, final, index) = _tidy(
            [spec.shape, spec.row], (spec.value, spec.final, spec.index), 2, spec.index
        )
        return dataclasses.replace(
            spec, shape=shape, row=inner, value=value, final=final, index=index
        )
    return spec


def _main_load(value: Scalar) -> Scalar | None:
    """The index of the load that depends on the most axes."""
    loads = [n.args[0] for n in sc.walk([value]) if n.op is Op.LOAD]
    return max(loads, key=lambda i: sum(n.op is Op.AXIS for n in sc.walk([i])), default=None)


def _tidy(
    groups: list[tuple[Dim, ...]],
    roots: tuple[Scalar, ...],
    _count: int,
    inner_order: Scalar | None,
) -> tuple[list[tuple[Dim, ...]], tuple[Scalar, ...]]:
    """Sort each group's axes (the first by the store, the others by `inner_order`), then merge."""
    extents = [e for g in groups for e in g]
    space = Space(extents)
    roots = tuple(space.simplify(r) for r in roots)
    store = space.linear(roots[-1])
    numbers = iter(range(len(extents)))
    members = [[next(numbers) for _ in g] for g in groups]
    # An axis of one step has been simplified away.
    members = [[i for i in axes if extents[i] != 1] for axes in members]
    members[0] = by_stride(store, members[0])
    if inner_order is not None:
        form = space.linear(space.simplify(inner_order))
        for g in range(1, len(members)):
            members[g] = by_stride(form, members[g])
    forms = space.forms(roots)
    merged: dict[int, Scalar] = {}
    shapes: list[tuple[Dim, ...]] = []
    count = 0
    zero = sc.const(0)
    for axes in members:
        shape: list[Dim] = []
        for position, axis in enumerate(axes):
            before = axes[position - 1] if position else None
            if before is not None and all(
                f.coefficient(before) == f.coefficient(axis) * extents[axis] for f in forms
            ):
                # `before` counts whole runs of this axis: one longer axis does for both.
                merged[before] = zero
                merged[axis] = sc.axis(count - 1)
                shape[-1] = shape[-1] * extents[axis]
            else:
                merged[axis] = sc.axis(count)
                shape.append(extents[axis])
                count += 1
        if not shape:
            shape.append(1)
            count += 1
        shapes.append(tuple(shape))
    final = Space([e for g in shapes for e in g])
    replaced = tuple(final.simplify(shift_axes(r, lambda i: merged.get(i, zero))) for r in roots)
    return shapes, replaced


def _parts(value: Any) -> Iterator[Any]:
    """Scalars and dims of a field, in order."""
    if isinstance(value, (Scalar, Expr)):
        yield value
    elif isinstance(value, View):
        yield from _parts(value.offset)
        yield from _parts(value.strides)
    elif isinstance(value, (Beside, Prologue, Epilogue)):
        for f in dataclasses.fields(value):
            yield from _parts(getattr(value, f.name))
    elif isinstance(value, tuple):
        for item in value:
            yield from _parts(item)


def rewritten(
    spec: KernelSpec, scalar: Callable[[Scalar], Scalar], dim: Callable[[Dim], Dim]
) -> dict[str, Any]:
    """The spec's fields with every expression and every size replaced."""
    return {f.name: _rewrite(getattr(spec, f.name), scalar, dim) for f in dataclasses.fields(spec)}


def _rewrite(value: Any, scalar: Callable[[Scalar], Scalar], dim: Callable[[Dim], Dim]) -> Any:
    if isinstance(value, Scalar):
        return scalar(value)
    if isinstance(value, Expr):
        return dim(value)
    if isinstance(value, View):
        return View(tuple(dim(s) for s in value.strides), dim(value.offset))
    if isinstance(value, (Beside, Prologue, Epilogue)):
        fields = dataclasses.fields(value)
        return type(value)(
            **{f.name: _rewrite(getattr(value, f.name), scalar, dim) for f in fields}
        )
    if isinstance(value, tuple):
        return tuple(_rewrite(item, scalar, dim) for item in value)
    return value


def close(
    spec: KernelSpec,
    fixed: Sequence[int],
    storage: Callable[[int], Storage],
    loads_first: bool = False,
) -> tuple[KernelSpec, list[int], list[int]]:
    """Number operands and arguments by first appearance.

    Loads in `spec` name program buffers, sizes name program arguments. Returns the spec that
    names its own, with the program's numbers of its operands and arguments. `loads_first`: loads of
    the first fixed buffer are operand 0, instead of one of their own.
    """
    operands = list(fixed)
    number: dict[int, int] = {fixed[0]: 0} if loads_first else {}
    arguments: dict[int, int] = {}
    for f in dataclasses.fields(spec):
        for part in _parts(getattr(spec, f.name)):
            if isinstance(part, Expr):
                for name in symbols(part):
                    arguments.setdefault(int(name[1:]), len(arguments))
                continue
            for node in sc.walk([part]):
                if node.op is Op.LOAD:
                    buffer = int(node.value or 0)
                    if buffer not in number:
                        number[buffer] = len(operands)
                        operands.append(buffer)
                elif node.op is Op.ARG:
                    arguments.setdefault(int(node.value or 0), len(arguments))
    names: dict[str, Dim] = {f"a{old}": symbol(f"a{new}") for old, new in arguments.items()}

    def scalar(root: Scalar) -> Scalar:
        done: dict[Scalar, Scalar] = {}
        for node in sc.walk([root]):
            if node.op is Op.LOAD:
                buffer = number[int(node.value or 0)]
                done[node] = sc.load(buffer, done[node.args[0]], node.type)
            elif node.op is Op.ARG:
                done[node] = sc.arg(arguments[int(node.value or 0)])
            else:
                done[node] = sc.rebuild(node, [done[a] for a in node.args])
        return done[root]

    fields = rewritten(spec, scalar, lambda d: substitute(d, names))
    fields["operands"] = tuple(storage(b) for b in operands)
    fields["n_args"] = len(arguments)
    return type(spec)(**fields), operands, list(arguments)
