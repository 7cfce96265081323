"""Resize: every output element gathers one, two or four inputs per axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product as combinations

from ..codegen import scalar as sc
from ..codegen.dims import Dim
from ..codegen.scalar import Op, Scalar
from ..errors import UnsupportedError
from ..graph import Node
from .antialias import antialiased
from .elementwise import both, less, maximum, minimum
from .engine import Lowering, lowers
from .movement import clamp
from .values import Coordinates, Value, convert, scalar_type

Tap = tuple[Scalar, Scalar | None]
"""Source coordinate (inside) and its weight; None for 1."""


@dataclass(frozen=True, slots=True)
class Axis:
    """How one axis is resized. `scale`: output size / input size; `scaled`: the model gave it."""

    size: Dim
    out: Dim
    scale: Scalar
    roi: tuple[float, float]
    scaled: bool


def _f(x: Dim) -> Scalar:
    return convert(sc.dim(x), sc.Type.F32)


def _text(node: Node, name: str, default: str) -> str:
    value = node.attrs.get(name, default)
    return value.decode() if isinstance(value, bytes) else str(value)


def source_position(mode: str, axis: Axis, c: Scalar) -> Scalar:
    """ONNX's coordinate transformations: where an output coordinate lies in the input."""
    x = convert(c, sc.Type.F32)
    size, out = _f(axis.size), _f(axis.out)
    if mode == "asymmetric":
        return x / axis.scale
    if mode == "align_corners":
        if axis.out == 1:
            return sc.const(0.0)
        # The length before it was cut to whole elements, where a scale says it.
        length = axis.scale * size if axis.scaled else out
        return x * (size - 1.0) / (length - 1.0)
    if mode == "tf_crop_and_resize":
        start, end = axis.roi
        if axis.out == 1:
            return (size - 1.0) * (0.5 * (start + end))
        step = (size - 1.0) * (end - start) / maximum(out - 1.0, 1.0)
        return (size - 1.0) * start + x * step
    if mode == "half_pixel_symmetric":
        # The output may be longer than scale * size; centre it.
        adjustment = out / (axis.scale * size)
        centre = size * 0.5
        return centre * (1.0 - adjustment) + (x + 0.5) / axis.scale - 0.5
    half = (x + 0.5) / axis.scale - 0.5
    if mode == "pytorch_half_pixel":
        return sc.const(0.0) if axis.out == 1 else half
    if mode == "half_pixel":
        return half
    raise UnsupportedError("unknown coordinate_transformation_mode", got=mode)


def _nearest(mode: str, x: Scalar) -> Scalar:
    if mode == "floor":
        return sc.unary(Op.FLOOR, x)
    if mode == "ceil":
        return sc.unary(Op.CEIL, x)
    if mode == "round_prefer_ceil":
        return sc.unary(Op.FLOOR, x + 0.5)
    return sc.unary(Op.CEIL, x - 0.5)


def cubic(a: float) -> Callable[[Scalar], list[Scalar]]:
    """Weights of the taps at -1, 0, 1, 2 for a fraction t (Keys, 1981)."""

    def weights(t: Scalar) -> list[Scalar]:
        def near(s: Scalar) -> Scalar:
            return ((a + 2) * s - (a + 3)) * s * s + 1.0

        def far(s: Scalar) -> Scalar:
            return ((a * s - 5 * a) * s + 8 * a) * s - 4 * a

        return [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)]

    return weights


@lowers("Resize", "Upsample")
def lower_resize(lw: Lowering, node: Node) -> Value:
    x = lw.input(node, 0)
    dtype, shape = lw.out(node)
    mode = _text(node, "mode", "nearest")
    mode = "linear" if mode == "bilinear" else mode
    transform = _text(node, "coordinate_transformation_mode", "half_pixel")
    if node.op == "Upsample":
        transform = "asymmetric"
    axes = _axes(lw, node, x, shape)
    if node.attrs.get("antialias", 0):
        given = [_given(axis) for axis in axes]
        return antialiased(lw, node, x, shape, given, mode, transform)
    rounding = _text(node, "nearest_mode", "round_prefer_floor")
    if node.op == "Upsample":
        rounding = "floor"
    outside = float(node.attrs.get("extrapolation_value", 0.0))
    exclude = bool(node.attrs.get("exclude_outside", 0))
    a = float(node.attrs.get("cubic_coeff_a", -0.75))

    def taps(axis: Axis, c: Scalar) -> list[Tap]:
        where = source_position(transform, axis, c)
        top = _f(axis.size) - 1.0
        if mode == "nearest":
            return [(_index(_nearest(rounding, where), axis.size), None)]
        if mode == "linear":
            where = maximum(minimum(where, top), 0.0)
            low = sc.unary(Op.FLOOR, where)
            t = where - low
            first = _index(low, axis.size)
            return [(first, 1.0 - t), (clamp(first + 1, axis.size), t)]
        low = sc.unary(Op.FLOOR, where)
        weights = cubic(a)(where - low)
        steps = [low + float(i) for i in (-1, 0, 1, 2)]
        if exclude:
            weights = [
                sc.select(both(less(sc.const(-0.5), s), less(s, top + 0.5)), w, 0.0)
                for s, w in zip(steps, weights, strict=True)
            ]
            total = weights[0] + weights[1] + weights[2] + weights[3]
            weights = [w / total for w in weights]
        return [(_index(s, axis.size), w) for s, w in zip(steps, weights, strict=True)]

    def read(c: Coordinates) -> Scalar:
        choices: list[list[Tap]] = [
            taps(axis, i) if axis is not None else [(i, None)]
            for axis, i in zip(axes, c, strict=True)
        ]
        total: Scalar | None = None
        for chosen in combinations(*choices):
            element = lw.read(x, [at for at, _ in chosen])
            if mode != "nearest":
                element = convert(element, sc.Type.F32)
            for _, weight in chosen:
                if weight is not None:
                    element = element * weight
            total = element if total is None else total + element
        assert total is not None
        if transform == "tf_crop_and_resize":
            inside: Scalar = sc.const(True)
            for axis, i in zip(axes, c, strict=True):
                if axis is not None:
                    where = source_position(transform, axis, i)
                    ok = both(
                        sc.binary(Op.LE, sc.const(0.0), where),
                        sc.binary(Op.LE, where, _f(axis.size) - 1.0),
                    )
                    inside = ok if inside.op is Op.CONST else both(inside, ok)
            if inside.op is not Op.CONST:
                total = sc.select(inside, total, convert(sc.const(outside), total.type))
        return convert(total, scalar_type(dtype))

    result = lw.virtual(dtype, shape, read)
    if mode == "cubic":
        lw.materialise(result)
    return result


def _given(axis: Axis | None) -> float | None:
    """The scale in the model's own words; a policy's common scale counts as that."""
    if axis is None or axis.scale.op is not Op.CONST:
        return None
    return float(axis.scale.value or 0.0)


def _index(x: Scalar, size: Dim) -> Scalar:
    return clamp(sc.unary(Op.TO_I32, x), size)


def _axes(lw: Lowering, node: Node, x: Value, shape: Sequence[Dim]) -> list[Axis | None]:
    """Per axis of x how it is resized; None where nothing changes."""
    upsample = node.op == "Upsample"
    chosen = node.attrs.get("axes")
    which = [int(i) % x.rank for i in chosen] if chosen else list(range(x.rank))
    scales = node.attrs.get("scales") if upsample and "scales" in node.attrs else None
    if scales is None:
        position = 1 if upsample else 2
        given = lw.optional(node, position)
        if given is not None and given.shape != (0,):
            array = lw.array(node, position)
            if array is None:
                raise UnsupportedError("scales must be constants", where=node.where())
            scales = [float(s) for s in array.ravel()]
    roi_array = None if upsample else lw.array(node, 1)
    roi = [float(r) for r in roi_array.ravel()] if roi_array is not None else []
    crop = _text(node, "coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize"
    policy = _text(node, "keep_aspect_ratio_policy", "stretch")
    axes: list[Axis | None] = [None] * x.rank
    for i, axis in enumerate(which):
        size, out = x.shape[axis], shape[axis]
        if scales is not None:
            scale = sc.const(scales[i])
            same = scales[i] == 1.0
        else:
            same = size == out
            ratio = _ratio(lw, node, x, which, i, policy)
            scale = ratio if ratio is not None else _f(out) / _f(size)
        if same and not crop:
            continue
        n = len(which)
        window = (roi[i], roi[n + i]) if len(roi) == 2 * n else (0.0, 1.0)
        if crop and same and window == (0.0, 1.0):
            continue
        axes[axis] = Axis(size, out, scale, window, scales is not None)
    return axes


def _ratio(
    lw: Lowering, node: Node, x: Value, which: list[int], i: int, policy: str
) -> Scalar | None:
    """The common scale of axes that keep their aspect ratio."""
    if policy == "stretch":
        return None
    sizes = lw.ints(node, 3) or ()
    ratios: list[float] = []
    for axis, want in zip(which, sizes, strict=True):
        have = x.shape[axis]
        if not isinstance(have, int) or not isinstance(want, int):
            raise UnsupportedError(
                "keep_aspect_ratio_policy needs static sizes", where=node.where(), got=policy
            )
        ratios.append(want / have)
    return sc.const(min(ratios) if policy == "not_larger" else max(ratios))
