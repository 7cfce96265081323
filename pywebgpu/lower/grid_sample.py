"""GridSample: reads an image at computed fractional positions."""

from __future__ import annotations

from itertools import product as combinations

from ..codegen import scalar as sc
from ..codegen.dims import Dim
from ..codegen.scalar import Op, Scalar, Type
from ..graph import Node
from .elementwise import both, maximum, minimum
from .engine import Lowering, lowers
from .movement import clamp
from .resize import cubic
from .values import Coordinates, Value, convert


def _text(node: Node, name: str, default: str) -> str:
    value = node.attrs.get(name, default)
    return value.decode() if isinstance(value, bytes) else str(value)


def _reflected(x: Scalar, low: Scalar, high: Scalar) -> Scalar:
    """Mirrored at both ends of [low, high], any number of times."""
    span = maximum(high - low, 1e-6)
    period = span * 2.0
    offset = x - low
    offset = offset - sc.unary(Op.FLOOR, offset / period) * period
    return low + minimum(offset, period - offset)


@lowers("GridSample")
def lower_grid_sample(lw: Lowering, node: Node) -> Value:
    x, grid = lw.input(node, 0), lw.input(node, 1)
    dtype, shape = lw.out(node)
    aligned = bool(node.attrs.get("align_corners", 0))
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(
        _text(node, "mode", "linear"), _text(node, "mode", "linear")
    )
    padding = _text(node, "padding_mode", "zeros")
    lw.limit(x, grid)
    sizes = x.shape[2:]
    rank = len(sizes)

    def position(c: Coordinates, axis: int) -> Scalar:
        """Where in the image, in elements; the grid's last axis runs x, y, ..."""
        at = lw.read(grid, (c[0], *c[2:], sc.const(rank - 1 - axis)))
        size = convert(sc.dim(sizes[axis]), Type.F32)
        if aligned:
            return (at + 1.0) * 0.5 * (size - 1.0)
        return ((at + 1.0) * size - 1.0) * 0.5

    def bounded(where: Scalar, size: Dim) -> Scalar:
        n = convert(sc.dim(size), Type.F32)
        if padding == "border":
            return maximum(minimum(where, n - 1.0), 0.0)
        if padding == "reflection":
            if aligned:
                return _reflected(where, sc.const(0.0), n - 1.0)
            return maximum(minimum(_reflected(where, sc.const(-0.5), n - 0.5), n - 1.0), 0.0)
        return where

    def tap(step: Scalar, size: Dim) -> tuple[Scalar, Scalar]:
        """Source coordinate (inside) of a whole position, and whether it lies inside."""
        step = bounded(step, size)
        top = convert(sc.dim(size), Type.F32) - 1.0
        inside = both(sc.binary(Op.LE, sc.const(0.0), step), sc.binary(Op.LE, step, top))
        # Far outside, the conversion saturates; the clamp brings it back.
        return clamp(sc.unary(Op.TO_I32, sc.unary(Op.ROUND, step)), size), inside

    def taps(c: Coordinates, axis: int) -> list[tuple[Scalar, Scalar, Scalar]]:
        where = position(c, axis)
        size = sizes[axis]
        if mode != "cubic":
            where = bounded(where, size)
        one = sc.const(1.0)
        if mode == "nearest":
            return [(*tap(sc.unary(Op.ROUND, where), size), one)]
        low = sc.unary(Op.FLOOR, where)
        t = where - low
        if mode == "linear":
            return [(*tap(low, size), 1.0 - t), (*tap(low + 1.0, size), t)]
        weights = cubic(-0.75)(t)
        return [
            (*tap(low + float(i), size), w) for i, w in zip((-1, 0, 1, 2), weights, strict=True)
        ]

    def read(c: Coordinates) -> Scalar:
        total: Scalar | None = None
        for chosen in combinations(*(taps(c, axis) for axis in range(rank))):
            element = lw.read(x, (c[0], c[1], *(at for at, _, _ in chosen)))
            weight: Scalar | None = None
            for _, inside, w in chosen:
                if padding == "zeros":
                    element = sc.select(inside, element, 0.0)
                weight = w if weight is None else weight * w
            assert weight is not None
            term = element if mode == "nearest" else element * weight
            total = term if total is None else total + term
        assert total is not None
        return total

    result = lw.virtual(dtype, shape, read)
    lw.materialise(result)
    return result
