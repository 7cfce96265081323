"""Layers over random sizes and settings: normalisations, pooling, resizing, scatters, transposed
convolutions, reductions; empty tensors and scalars among them, against ONNX's own definition or
native ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.ops.agree import Array, agree, by_definition, by_onnxruntime, feeds_of, model_of

few = settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
SEEDS = st.integers(0, 2**31)
DATA = st.data()


def _floats(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _check(
    op: str, inputs: dict[str, Array], fixed: list[str] | None = None, dtypes: Any = (np.float32,),
    native: bool = True, opset: int = 21, **attrs: Any,
) -> None:  # fmt: skip
    model = model_of(
        op, inputs, [(f"y{i}", t) for i, t in enumerate(dtypes)], fixed or [], opset=opset, **attrs
    )
    feeds = feeds_of(model, inputs)
    known = (by_onnxruntime if native else by_definition)(model, feeds)
    agree(model, feeds, [np.asarray(y) for y in known], rtol=1e-3, atol=2e-5)


def _sizes(data: st.DataObject, low: int, high: int, count: int) -> list[int]:
    return [data.draw(st.integers(low, high)) for _ in range(count)]


@few
@given(SEEDS, DATA)
def test_layer_normalization(seed: int, data: st.DataObject) -> None:
    shape = _sizes(data, 1, 7, data.draw(st.integers(1, 4)))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    tail = shape[axis:]
    inputs = {"x": _floats(seed, *shape) * 3 + 50, "scale": _floats(seed + 1, *tail)}
    if data.draw(st.booleans()):
        inputs["bias"] = _floats(seed + 2, *tail)
    _check("LayerNormalization", inputs, axis=axis, epsilon=1e-3)


@few
@given(SEEDS, DATA)
def test_rms_normalization(seed: int, data: st.DataObject) -> None:
    shape = _sizes(data, 1, 7, data.draw(st.integers(1, 4)))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    inputs = {"x": _floats(seed, *shape), "scale": _floats(seed + 1, *shape[axis:])}
    _check("RMSNormalization", inputs, native=False, opset=23, axis=axis)


@few
@given(SEEDS, DATA, st.sampled_from(["BatchNormalization", "InstanceNormalization"]))
def test_batch_and_instance_normalization(seed: int, data: st.DataObject, op: str) -> None:
    channels = data.draw(st.integers(1, 5))
    spatial = _sizes(data, 1, 6, data.draw(st.integers(1, 3)))
    inputs = {"x": _floats(seed, data.draw(st.integers(1, 3)), channels, *spatial)}
    inputs |= {n: _floats(seed + i, channels) for i, n in enumerate(["scale", "bias"], 1)}
    if op == "BatchNormalization":
        inputs |= {"mean": _floats(seed + 3, channels), "var": _floats(seed + 4, channels) ** 2}
    fixed = [n for n in inputs if n != "x"] if data.draw(st.booleans()) else []
    _check(op, inputs, fixed, epsilon=1e-3)


@few
@given(SEEDS, DATA)
def test_group_normalization(seed: int, data: st.DataObject) -> None:
    groups, each = _sizes(data, 1, 4, 2)
    spatial = _sizes(data, 1, 6, data.draw(st.integers(1, 3)))
    inputs = {"x": _floats(seed, 2, groups * each, *spatial)}
    inputs |= {n: _floats(seed + i, groups * each) for i, n in enumerate(["scale", "bias"], 1)}
    _check("GroupNormalization", inputs, native=False, num_groups=groups, epsilon=1e-3)


@few
@given(SEEDS, DATA, st.sampled_from(["MaxPool", "AveragePool", "LpPool"]))
def test_pooling(seed: int, data: st.DataObject, op: str) -> None:
    rank = data.draw(st.integers(1, 3))
    kernel = _sizes(data, 1, 3, rank)
    attrs: dict[str, Any] = {"kernel_shape": kernel, "strides": _sizes(data, 1, 3, rank)}
    attrs["dilations"] = _sizes(data, 1, 2, rank)
    attrs["ceil_mode"] = data.draw(st.integers(0, 1))
    how = data.draw(st.sampled_from(["pads", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if how == "pads":
        attrs["pads"] = [data.draw(st.integers(0, k - 1)) for k in kernel * 2]
    else:
        # ONNX Runtime and the definition disagree about SAME with dilations; with strides beyond
        # the kernel, ONNX Runtime pads by less than nothing.
        attrs |= {"auto_pad": how, "ceil_mode": 0, "dilations": [1] * rank}
        attrs["strides"] = [min(s, k) for s, k in zip(attrs["strides"], kernel, strict=True)]
    if op == "AveragePool":
        attrs["count_include_pad"] = data.draw(st.integers(0, 1))
    if op == "LpPool":
        attrs |= {"p": data.draw(st.integers(1, 3)), "ceil_mode": 0}
    spatial = [2 * k + data.draw(st.integers(0, 5)) for k in kernel]
    x = _floats(seed, data.draw(st.integers(1, 2)), data.draw(st.integers(1, 5)), *spatial)
    _check(op, {"x": x}, **attrs)


@few
@given(SEEDS, DATA)
def test_resize(seed: int, data: st.DataObject) -> None:
    mode = data.draw(st.sampled_from(["nearest", "linear", "cubic"]))
    where = data.draw(
        st.sampled_from(["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"])
    )
    attrs: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": where}
    if mode == "nearest":
        roundings = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]
        attrs["nearest_mode"] = data.draw(st.sampled_from(roundings))
    if mode == "cubic":
        attrs["cubic_coeff_a"] = data.draw(st.sampled_from([-0.5, -0.75]))
    smooth = mode != "nearest" and where == "half_pixel"
    if smooth and data.draw(st.booleans()):
        attrs["antialias"] = 1
    spatial, target = _sizes(data, 2, 7, 2), _sizes(data, 1, 11, 2)
    inputs = {"x": _floats(seed, 1, 2, *spatial)}
    inputs |= {"roi": None, "scales": None, "sizes": np.array([1, 2, *target])}  # type: ignore[dict-item]
    _check("Resize", inputs, ["sizes"], native="antialias" not in attrs, **attrs)


@few
@given(SEEDS, DATA, st.sampled_from(["none", "add", "mul", "max", "min"]))
def test_scatter_elements(seed: int, data: st.DataObject, reduction: str) -> None:
    shape = _sizes(data, 1, 5, data.draw(st.integers(1, 3)))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    part = [data.draw(st.integers(0 if reduction == "add" else 1, d)) for d in shape]
    rng = np.random.default_rng(seed)
    indices = rng.integers(-shape[axis], shape[axis], part)
    if reduction == "none":  # where two meet, ONNX leaves open which stays
        indices = np.argsort(rng.random(part), axis=axis)
    inputs = {"x": _floats(seed, *shape), "i": indices, "u": _floats(seed + 1, *part)}
    _check("ScatterElements", inputs, native=False, axis=axis, reduction=reduction)


@few
@given(SEEDS, DATA, st.sampled_from(["none", "add", "mul", "max", "min"]))
def test_scatter_nd(seed: int, data: st.DataObject, reduction: str) -> None:
    shape = _sizes(data, 1, 5, data.draw(st.integers(1, 3)))
    depth = data.draw(st.integers(1, len(shape)))
    count = data.draw(st.integers(1, 6))
    rng = np.random.default_rng(seed)
    every = np.stack(np.unravel_index(rng.permutation(int(np.prod(shape[:depth]))),
                                      shape[:depth]), axis=-1)  # fmt: skip
    indices = every[:count] if reduction == "none" else every[rng.integers(0, len(every), count)]
    updates = _floats(seed + 1, len(indices), *shape[depth:])
    inputs = {"x": _floats(seed, *shape), "i": indices.astype(np.int64), "u": updates}
    _check("ScatterND", inputs, native=False, reduction=reduction)


@few
@given(SEEDS, DATA)
def test_gather_elements_and_nd(seed: int, data: st.DataObject) -> None:
    shape = _sizes(data, 1, 5, data.draw(st.integers(1, 3)))
    rng = np.random.default_rng(seed)
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    part = [d if i == axis % len(shape) else data.draw(st.integers(0, d))
            for i, d in enumerate(shape)]  # fmt: skip
    where = rng.integers(-shape[axis], shape[axis], part)
    _check("GatherElements", {"x": _floats(seed, *shape), "i": where}, axis=axis)
    depth = data.draw(st.integers(1, len(shape)))
    rows = data.draw(st.integers(1, 4))
    tuples = np.stack([rng.integers(-d, d, rows) for d in shape[:depth]], axis=-1)
    _check("GatherND", {"x": _floats(seed, *shape), "i": tuples})


@few
@given(SEEDS, DATA)
def test_conv_transpose(seed: int, data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, 2))
    groups, ins, outs = _sizes(data, 1, 3, 3)
    kernel, strides = _sizes(data, 1, 3, rank), _sizes(data, 1, 3, rank)
    attrs: dict[str, Any] = {"group": groups, "strides": strides, "kernel_shape": kernel}
    attrs["dilations"] = _sizes(data, 1, 2, rank)
    attrs["output_padding"] = [data.draw(st.integers(0, s - 1)) for s in strides]
    attrs["pads"] = [data.draw(st.integers(0, k // 2)) for k in kernel * 2]
    inputs = {
        "x": _floats(seed, data.draw(st.integers(1, 2)), groups * ins, *_sizes(data, 3, 6, rank))
    }
    inputs["w"] = _floats(seed + 1, groups * ins, outs, *kernel)
    if data.draw(st.booleans()):
        inputs["b"] = _floats(seed + 2, groups * outs)
    fixed = ["w"] if data.draw(st.booleans()) else []
    _check("ConvTranspose", inputs, fixed, **attrs)


@few
@given(SEEDS, DATA)
def test_dilated_and_padded_conv(seed: int, data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, 3))
    groups, ins, outs = _sizes(data, 1, 3, 3)
    kernel = _sizes(data, 1, 3, rank)
    attrs: dict[str, Any] = {"group": groups, "kernel_shape": kernel}
    attrs["strides"] = _sizes(data, 1, 3, rank)
    how = data.draw(st.sampled_from(["pads", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if how == "pads":
        attrs |= {"pads": _sizes(data, 0, 2, 2 * rank), "dilations": _sizes(data, 1, 2, rank)}
    else:
        attrs["auto_pad"] = how
        attrs["strides"] = [min(s, k) for s, k in zip(attrs["strides"], kernel, strict=True)]
    inputs = {"x": _floats(seed, 1, groups * ins, *_sizes(data, 5, 9, rank))}
    inputs |= {"w": _floats(seed + 1, groups * outs, ins, *kernel)}
    if data.draw(st.booleans()):
        inputs["b"] = _floats(seed + 2, groups * outs)
    _check("Conv", inputs, ["w"] if data.draw(st.booleans()) else [], **attrs)


@few
@given(
    SEEDS,
    DATA,
    st.sampled_from(
        [
            "ReduceProd",
            "ReduceMin",
            "ReduceL1",
            "ReduceLogSum",
            "ReduceLogSumExp",
            "ReduceSumSquare",
        ]
    ),
)
def test_reductions(seed: int, data: st.DataObject, op: str) -> None:
    """Over empty axes as well, where the result has elements."""
    shape = _sizes(data, 0 if op == "ReduceL1" else 1, 5, data.draw(st.integers(0, 4)))
    rank = len(shape)
    picked = data.draw(st.lists(st.sampled_from(range(rank)), unique=True)) if rank else []
    axes = [data.draw(st.sampled_from([a, a - rank])) for a in picked]
    inputs = {"x": np.abs(_floats(seed, *shape)) + np.float32(0.1)}
    attrs = {"keepdims": data.draw(st.integers(0, 1)),
             "noop_with_empty_axes": data.draw(st.integers(0, 1)) if axes else 0}  # fmt: skip
    _check(op, inputs | {"axes": np.array(axes, np.int64)}, ["axes"], native=False, **attrs)
