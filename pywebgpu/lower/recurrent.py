"""Recurrent layers, as `passes/recurrent.py` leaves them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from ..codegen import scalar as sc
from ..codegen.dims import Dim
from ..codegen.scalar import Op, Scalar
from ..codegen.spec import PANEL, Cell, Recurrent, Storage
from ..errors import UnsupportedError
from ..graph import INTERNAL, Node
from ..packing import pack_recurrent
from .elementwise import SETTINGS, UNARY, maximum, minimum
from .engine import Lowering, lowers
from .matmul import contiguous_unit
from .values import Coordinates, Value

_CELLS = {"LSTM": Cell.LSTM, "GRU": Cell.GRU, "RNN": Cell.RNN}
_DEFAULTS = {
    "LSTM": ["Sigmoid", "Tanh", "Tanh"],
    "GRU": ["Sigmoid", "Tanh"],
    "RNN": ["Tanh"],
}
_OWN: dict[str, tuple[tuple[float, float], Callable[[Scalar, float, float], Scalar]]] = {
    "affine": ((1.0, 0.0), lambda x, a, b: x * a + b),
    "scaledtanh": ((1.0, 1.0), lambda x, a, b: sc.unary(Op.TANH, x * b) * a),
}
"""Activations that are no operators: defaults of alpha and beta, and what they compute."""

_SETTINGS = {name.lower(): (name, entry) for name, entry in SETTINGS.items()}
_UNARY = {name.lower(): compute for name, compute in UNARY.items()}


@lowers("Recurrent", domain=INTERNAL)
def lower_recurrent(lw: Lowering, node: Node) -> list[Value]:
    x, r = lw.input(node, 0), lw.input(node, 1)
    directions, rows, hidden = (int(str(n)) for n in r.shape)
    cell = _CELLS[node.attrs["cell"]]
    if cell is Cell.GRU and node.attrs["reset"]:
        cell = Cell.GRU_RESET
    batch_first = bool(node.attrs.get("layout", 0))
    first, second = x.shape[:2]
    steps, batch = (second, first) if batch_first else (first, second)

    def projected(c: Coordinates) -> Coordinates:
        t, b, d, n = c
        return (*((b, t) if batch_first else (t, b)), d * rows + n)

    source, view = lw.view(
        x, (steps, batch, directions, rows), projected, accept=lambda v: v.strides[3] in (0, 1)
    )
    fixed = [source, _packed_weights(lw, r, cell.gates)]
    views = []
    initial = [lw.optional(node, 4), lw.optional(node, 5)][: 2 if cell is Cell.LSTM else 1]
    if any(initial):
        for state in initial:
            given = state or _zeros(lw, x, (directions, batch, hidden), batch_first)
            buffer, found = lw.view(
                given,
                (directions, batch, hidden),
                lambda c: (c[1], c[0], c[2]) if batch_first else c,
            )
            fixed.append(buffer)
            views.append(found)
    if cell is Cell.GRU_RESET:
        bias = lw.optional(node, 2) or lw.constant(
            np.zeros((directions, hidden), np.float32), x.dtype
        )
        fixed.append(_plain(lw, bias))
    peephole, lengths = lw.optional(node, 6), lw.optional(node, 3)
    for extra in (peephole, lengths):
        if extra is not None:
            fixed.append(_plain(lw, extra))
    spec = Recurrent(
        cell=cell, steps=steps, batch=batch, hidden=hidden, reverse=_directions(node, directions),
        activations=_activations(node, directions), coupled=bool(node.attrs.get("input_forget", 0)),
        peephole=peephole is not None, lengths=lengths is not None,
        x=contiguous_unit(view, 3, rows), initial=tuple(views), operands=(), output=Storage.F32,
    )  # fmt: skip
    whole = (steps + spec.parts, directions, batch, hidden)
    buffer = lw.new_buffer(Storage.F32, whole)
    lw.emit(spec, fixed, buffer, node.name or node.attrs["cell"])
    return _results(lw, node, spec, buffer, whole, batch_first)


def _results(
    lw: Lowering,
    node: Node,
    spec: Recurrent,
    buffer: int,
    whole: tuple[Dim, ...],
    batch_first: bool,
) -> list[Value]:
    """Y, Y_h and Y_c where they lie in the kernel's output."""
    results = []
    for position, name in enumerate(node.outputs):
        if not name:
            continue
        dtype, shape = lw.out(node, position)

        def read(c: Coordinates, position: int = position) -> Scalar:
            if position:
                part = sc.dim(spec.steps) + (position - 1)
                at = (part, c[1], c[0], c[2]) if batch_first else (part, *c)
            else:
                at = (c[1], c[2], c[0], c[3]) if batch_first else tuple(c)
            return sc.load(buffer, sc.linear(at, whole))

        results.append(lw.virtual(dtype, shape, read))
    return results


def _packed_weights(lw: Lowering, r: Value, gates: int) -> int:
    """R in the order of `spec.Recurrent`, packed at export or, if it is computed, by a kernel."""
    directions, _, hidden = (int(str(n)) for n in r.shape)
    if r.constant is not None:
        return lw.weight(pack_recurrent(r.constant.astype(np.float32), gates), Storage.F32)
    tiles = -(-hidden // PANEL)

    def read(c: Coordinates) -> Scalar:
        d, tile, k, g, lane = c
        unit = tile * PANEL + lane
        inside = sc.binary(Op.LT, unit, hidden)
        row = g * hidden + sc.binary(Op.MIN, unit, hidden - 1)
        return sc.select(inside, lw.read(r, (d, row, k)), 0.0)

    return _plain(lw, lw.virtual(r.dtype, (directions, tiles, hidden, gates, PANEL), read))


def _plain(lw: Lowering, value: Value) -> int:
    """A buffer with the value's elements in order."""
    order = tuple(range(value.rank))
    buffer = lw.materialise(value, order)
    if value.order == order:
        return buffer
    found = lw.copy(value, order).buffer
    assert found is not None
    return found


def _zeros(lw: Lowering, like: Value, shape: tuple[Dim, ...], batch_first: bool) -> Value:
    d, b, h = shape
    return lw.virtual(like.dtype, (b, d, h) if batch_first else shape, lambda c: sc.const(0.0))


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _directions(node: Node, count: int) -> tuple[bool, ...]:
    direction = _text(node.attrs.get("direction", "forward"))
    found = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}.get(direction)
    if found is None or len(found) != count:
        raise UnsupportedError(
            "the direction does not fit the weights", where=node.where(),
            got=f"{direction!r} with weights for {count}",
            expected="forward, reverse or bidirectional",
        )  # fmt: skip
    return found


def _activations(node: Node, directions: int) -> tuple[tuple[Scalar, ...], ...]:
    """Every direction's activations, with their settings and the cell's clip, over ACC."""
    default = _DEFAULTS[node.attrs["cell"]] * directions
    names = [_text(n) for n in node.attrs.get("activations") or default]
    alphas = iter(node.attrs.get("activation_alpha") or ())
    betas = iter(node.attrs.get("activation_beta") or ())
    clip = float(node.attrs.get("clip") or math.inf)
    each = len(default) // directions
    clipped = sc.acc()
    if math.isfinite(clip):
        clipped = minimum(maximum(clipped, -clip), clip)
    # As ONNX Runtime has it, the LSTM's cell is not clipped on its way out.
    found = [
        _activation(node, name, sc.acc() if i % each == 2 else clipped, alphas, betas)
        for i, name in enumerate(names)
    ]
    return tuple(tuple(found[i : i + each]) for i in range(0, len(default), each))


def _activation(
    node: Node, name: str, x: Scalar, alphas: Iterator[float], betas: Iterator[float]
) -> Scalar:
    key = name.lower()
    if key in _UNARY:
        return _UNARY[key](x)
    if key in _OWN:
        (alpha, beta), compute = _OWN[key]
        return compute(x, float(next(alphas, alpha)), float(next(betas, beta)))
    if key not in _SETTINGS:
        raise UnsupportedError("unknown activation", where=node.where(), got=name)
    defaults, settings = _SETTINGS[key][1]
    values = {k: float(next(alphas if k == "alpha" else betas, v)) for k, v in defaults.items()}
    return settings(x, **values)
