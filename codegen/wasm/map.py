"""Elementwise work and data movement: out[index] = value.

The axes are coalesced first. Four lanes go along one axis, normally the one along which the store
is contiguous. The inner function loops over that axis, or over it and its neighbour when it is
short. A permutation that reads along one axis and writes along another can be done in blocks of
4 x 4 that are transposed in registers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .. import scalar as sc
from ..caps import WasmCaps
from ..coalesce import coalesce
from ..dims import ceildiv
from ..scalar import Op, Scalar, coefficient
from ..spec import Map, Storage
from .asm import I32, V128, Function, IntLike, Local, Module, affine, imin
from .kernel import WasmKernel
from .loops import Frame, entry, inner, pieces, remainder, walk
from .scalar import Lanes


@dataclass(frozen=True, slots=True)
class Knobs:
    """Lanes along `vector` (an axis of the coalesced spec; -1: one element at a time)."""

    vector: int = -1
    nested: int = 1
    """Axes that the inner function loops over: 1 or 2."""
    unroll: int = 1
    block: int = -1
    """The axis along which some loads are contiguous, to be transposed in 4 x 4 blocks."""


def space(spec: Map, caps: WasmCaps) -> list[Knobs]:
    """Lanes along the store first, then blocks and other axes."""
    spec = _normal(spec)
    rank = len(spec.shape)
    nodes = sc.walk([spec.value])
    loads = [n for n in nodes if n.op is Op.LOAD]
    long = [a for a in reversed(range(rank)) if not _short(spec, a)]
    store = [a for a in long if _is_one(coefficient(spec.index, a))]

    def turned(axis: int) -> bool:
        """Are loads contiguous along this axis, and scattered along the store's?"""
        return any(
            _is_one(coefficient(n.args[0], axis))
            and all(_constant(coefficient(n.args[0], a)) not in (0, 1) for a in store)
            for n in loads
        )

    found: dict[Knobs, None] = {}
    for vector in store:
        size = spec.shape[vector]
        for other in long:
            if other != vector and turned(other):
                found[Knobs(vector, 2, 1, other)] = None
        nested = 1 if rank == 1 or (isinstance(size, int) and size >= 512) else 2
        # Short work gains from fewer turns of the loop.
        wide = len(nodes) < 24 and not (isinstance(size, int) and size % 8 and size < 64)
        for n in dict.fromkeys((nested, 1, min(2, rank))):
            for unroll in (2, 1) if wide else (1, 2):
                found[Knobs(vector, n, unroll)] = None
    # Lanes along another axis store element by element: worth it where that spares gathering.
    spread = [a for a in long if a not in store and (not store or turned(a))]
    for vector in spread[:2]:
        found[Knobs(vector, 1)] = None
        if rank > 1:
            found[Knobs(vector, 2)] = None
    if not found:
        found[Knobs(-1, min(2, rank))] = None
    return list(found)[:12]


def emit(module: Module, spec: Map, knobs: Knobs) -> WasmKernel:
    """See `Knobs`."""
    if Storage.F16 in (*spec.operands, spec.output):
        raise ValueError("f16 storage is not available in WebAssembly")
    spec = _normal(spec)
    rank = len(spec.shape)
    vector = knobs.vector if knobs.vector >= 0 else rank - 1
    if knobs.block >= 0:
        nest = [knobs.block, vector]
    else:
        others = [a for a in range(rank) if a != vector]
        nest = [*others[len(others) - (knobs.nested - 1) :], vector]
    outer = [a for a in range(rank) if a not in nest]
    size = spec.shape[nest[0]]
    step = pieces(size, spec.shape[vector] if len(nest) > 1 else 1, 16)

    row = inner(module, spec, len(outer) + 2)
    coordinates: dict[int, IntLike] = dict(zip(outer, row.own, strict=False))
    _inner(row, spec, knobs, nest, vector, coordinates, row.own[-2], row.own[-1])

    main = entry(module, spec)
    f = main.f
    held = f.hold(main.size(size))

    def piece(at: Sequence[IntLike]) -> None:
        start = f.hold(affine(at[-1]) * step)
        main.call(row, *at[:-1], start, imin(f.hold(affine(start) + step), held))

    with f.scope():
        walk(
            main,
            [*(main.size(spec.shape[a]) for a in outer), main.size(ceildiv(size, step))],
            piece,
            main.size(spec.shape[vector]),
        )
    return WasmKernel(main.f.index)


def _normal(spec: Map) -> Map:
    spec = coalesce(spec)
    return spec if spec.shape else Map(
        (1,), spec.value, spec.index, spec.operands, spec.output, spec.n_args
    )  # fmt: skip


def _constant(c: Scalar | None) -> int | None:
    return int(c.value or 0) if c is not None and c.op is Op.CONST else None


def _is_one(c: Scalar | None) -> bool:
    return _constant(c) == 1


def _short(spec: Map, axis: int) -> bool:
    size = spec.shape[axis]
    return isinstance(size, int) and size < 4


def _inner(
    row: Frame,
    spec: Map,
    knobs: Knobs,
    nest: list[int],
    vector: int,
    coordinates: dict[int, IntLike],
    start: Local,
    end: Local,
) -> None:
    f = row.f
    rank = len(spec.shape)
    stores = [(row.output, spec.index)]
    single = knobs.vector < 0
    lanes = row.lanes(
        spec, rank=rank, vector=None if single else vector, values=[spec.value], stores=stores
    )
    tail = row.lanes(spec, rank=rank, vector=None, values=[spec.value], stores=stores)
    with lanes.level(coordinates):
        if knobs.block >= 0:
            _blocks(row, spec, lanes, tail, nest, coordinates, start, end)
        elif len(nest) == 1:
            _line(f, spec, knobs, lanes, tail, vector, coordinates, start, end)
        else:
            u = f.local(I32)
            with f.loop_range(u, start, end), lanes.level({nest[0]: u}):
                at = {**coordinates, nest[0]: u}
                stop = f.hold(row.size(spec.shape[vector]))
                _line(f, spec, knobs, lanes, tail, vector, at, 0, stop)


def _line(
    f: Function,
    spec: Map,
    knobs: Knobs,
    lanes: Lanes,
    tail: Lanes,
    vector: int,
    coordinates: dict[int, IntLike],
    start: IntLike,
    end: IntLike,
) -> None:
    """All elements start..end along the vector axis."""
    v = f.local(I32)
    size = spec.shape[vector]
    if knobs.vector < 0:
        with f.loop_range(v, start, end), lanes.level({vector: v}):
            lanes.store(0, spec.value)
        return
    f.assign(v, start)
    wide = 4 * knobs.unroll
    if not isinstance(size, int) or size >= wide:
        with f.loop_range(v, start, affine(end) - (wide - 1), wide):
            for k in range(knobs.unroll):
                with lanes.level({vector: v + 4 * k}):
                    lanes.store(0, spec.value)
    if knobs.unroll > 1 and remainder(size, wide) >= 4:
        with f.loop_range(v, None, affine(end) - 3, 4), lanes.level({vector: v}):
            lanes.store(0, spec.value)
    if remainder(size, 4):
        with f.loop_range(v, None, end), tail.level({**coordinates, vector: v}):
            tail.store(0, spec.value)


def _blocks(
    row: Frame,
    spec: Map,
    lanes: Lanes,
    tail: Lanes,
    nest: list[int],
    coordinates: dict[int, IntLike],
    start: Local,
    end: Local,
) -> None:
    """4 x 4 elements at a time: loads along nest[0], stores along nest[1]."""
    f, (w_axis, v_axis) = row.f, nest
    stop = f.hold(row.size(spec.shape[v_axis]))
    across = [
        n
        for n in sc.walk([lanes.root(spec.value)])
        if n.op is Op.LOAD and _is_one(coefficient(n.args[0], w_axis))
    ]
    # The same loads with their lanes along w.
    readers = row.lanes(spec, rank=len(spec.shape), vector=w_axis, values=across)
    w, v = f.local(I32), f.local(I32)
    f.assign(w, start)
    with readers.level(coordinates), f.loop_range(w, None, end - 3, 4):
        with f.loop_range(v, 0, affine(stop) - 3, 4):
            made: list[dict[Scalar, Local]] = [{} for _ in range(4)]
            for node in across:
                vectors = f.locals(V128, 4)
                for k, local in enumerate(vectors):
                    with readers.level({w_axis: w, v_axis: v + k}):
                        readers.push(node)
                        f.set(local)
                for k, local in enumerate(_transposed(f, vectors)):
                    made[k][node] = local
            for k in range(4):
                with lanes.level({w_axis: w + k, v_axis: v}, values=made[k]):
                    lanes.store(0, spec.value)
        with f.loop_range(v, None, stop):
            for k in range(4):
                with tail.level({**coordinates, w_axis: w + k, v_axis: v}):
                    tail.store(0, spec.value)
    with (
        f.loop_range(w, None, end),
        f.loop_range(v, 0, stop),
        tail.level({**coordinates, w_axis: w, v_axis: v}),
    ):
        tail.store(0, spec.value)


def _transposed(f: Function, rows: list[Local]) -> list[Local]:
    """Four vectors with rows and columns exchanged, in new locals."""
    a, b, c, d = rows
    halves = []
    for x, y in ((a, b), (c, d)):
        for lanes in ((0, 4, 1, 5), (2, 6, 3, 7)):
            f.get(x, y)
            f.i32x4_shuffle(*lanes)
            halves.append(f.local(V128))
            f.set(halves[-1])
    low_ab, high_ab, low_cd, high_cd = halves
    result = []
    for x, y in ((low_ab, low_cd), (high_ab, high_cd)):
        for lanes in ((0, 1, 4, 5), (2, 3, 6, 7)):
            f.get(x, y)
            f.i32x4_shuffle(*lanes)
            result.append(f.local(V128))
            f.set(result[-1])
    return result
