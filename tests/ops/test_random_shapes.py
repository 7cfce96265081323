"""Operators by family over random ranks, sizes, axes and broadcasts, with empty tensors and scalars
among them, against ONNX's own definition (`onnx.reference`)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.ops.agree import agree, by_definition, feeds_of, model_of

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]

few = settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
SIZES = st.sampled_from([0, 1, 2, 3, 5, 8])
SHAPES = st.lists(SIZES, max_size=4).map(tuple)
FULL = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)
SEEDS = st.integers(0, 2**31)


def _floats(seed: int, shape: Shape) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _check(
    op: str, inputs: dict[str, Array], dtype: Any = np.float32, fixed: list[str] | None = None,
    outputs: int = 1, **attrs: Any,
) -> None:  # fmt: skip
    named = [(f"y{i}", dtype) for i in range(outputs)]
    model = model_of(op, dict(inputs), named, fixed or [], **attrs)
    feeds = feeds_of(model, dict(inputs))
    agree(model, feeds, [np.asarray(y) for y in by_definition(model, feeds)])


@st.composite
def _broadcast(draw: Any) -> tuple[Shape, Shape]:
    """Two shapes that broadcast: leading axes missing, or sizes of 1 on either side."""
    whole = draw(SHAPES)
    one = tuple(draw(st.sampled_from([d, 1])) for d in whole)[draw(st.integers(0, len(whole))) :]
    return (whole, one) if draw(st.booleans()) else (one, whole)


@few
@given(_broadcast(), SEEDS, st.sampled_from(["Add", "Sub", "Mul", "Less", "Max"]))
def test_binary(shapes: tuple[Shape, Shape], seed: int, op: str) -> None:
    a, b = (_floats(seed + i, s) for i, s in enumerate(shapes))
    _check(op, {"a": a, "b": b}, np.bool_ if op == "Less" else np.float32)


@few
@given(SHAPES, SEEDS, st.sampled_from(["Abs", "Exp", "Tanh", "Erf", "Floor", "Sigmoid"]))
def test_unary(shape: Shape, seed: int, op: str) -> None:
    _check(op, {"x": _floats(seed, shape)})


@few
@given(_broadcast(), SEEDS)
def test_where(shapes: tuple[Shape, Shape], seed: int) -> None:
    a, b = (_floats(seed + i, s) for i, s in enumerate(shapes))
    _check("Where", {"c": _floats(seed + 2, shapes[0]) > 0, "a": a, "b": b})


@few
@given(
    FULL, SEEDS, st.data(), st.sampled_from(["ReduceSum", "ReduceMean", "ReduceMax", "ReduceL2"])
)
def test_reduce(shape: Shape, seed: int, data: st.DataObject, op: str) -> None:
    rank = len(shape)
    axes = data.draw(
        st.lists(st.integers(-rank, rank - 1), max_size=rank, unique_by=lambda a: a % rank)
    )
    keep = data.draw(st.integers(0, 1))
    inputs = {"x": _floats(seed, shape), "axes": np.array(axes, np.int64)}
    _check(op, inputs, fixed=["axes"], keepdims=keep)


@few
@given(FULL, SEEDS, st.data(), st.sampled_from(["ArgMax", "ArgMin"]))
def test_arg_reduce(shape: Shape, seed: int, data: st.DataObject, op: str) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    _check(
        op, {"x": _floats(seed, shape)}, np.int64, axis=axis, keepdims=data.draw(st.integers(0, 1))
    )


@few
@given(FULL, SEEDS, st.data(), st.sampled_from(["Softmax", "LogSoftmax"]))
def test_softmax(shape: Shape, seed: int, data: st.DataObject, op: str) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    _check(op, {"x": _floats(seed, shape)}, axis=axis)


@few
@given(_broadcast(), st.tuples(SIZES, st.integers(1, 6), SIZES), SEEDS)
def test_matmul(batches: tuple[Shape, Shape], sizes: tuple[int, int, int], seed: int) -> None:
    m, k, n = sizes
    a, b = _floats(seed, (*batches[0][:2], m, k)), _floats(seed + 1, (*batches[1][:2], k, n))
    try:
        np.broadcast_shapes(batches[0][:2], batches[1][:2])
    except ValueError:
        return
    _check("MatMul", {"a": a, "b": b})


@few
@given(SHAPES.filter(len), SEEDS, st.data())
def test_transpose(shape: Shape, seed: int, data: st.DataObject) -> None:
    perm = data.draw(st.permutations(range(len(shape))))
    _check("Transpose", {"x": _floats(seed, shape)}, perm=list(perm))


@few
@given(SHAPES.filter(len), SEEDS, st.data())
def test_concat(shape: Shape, seed: int, data: st.DataObject) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    other = list(shape)
    other[axis] = data.draw(SIZES)
    inputs = {"a": _floats(seed, shape), "b": _floats(seed + 1, tuple(other))}
    _check("Concat", inputs, axis=axis)


@pytest.mark.parametrize("shape", [(0,), (0, 3)])
def test_concat_of_nothing(shape: Shape) -> None:
    _check("Concat", {"a": _floats(0, shape), "b": _floats(1, shape)}, axis=0)


@few
@given(FULL, SEEDS, st.data())
def test_slice(shape: Shape, seed: int, data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    ends = st.integers(-shape[axis] - 2, shape[axis] + 2)
    values = [data.draw(ends), data.draw(ends), axis, data.draw(st.sampled_from([1, 2, -1, -2]))]
    names = ["starts", "ends", "axes", "steps"]
    inputs = {"x": _floats(seed, shape)}
    inputs |= {n: np.array([v], np.int64) for n, v in zip(names, values, strict=True)}
    _check("Slice", inputs, fixed=names)


@few
@given(FULL, SHAPES, SEEDS, st.data())
def test_gather(shape: Shape, wanted: Shape, seed: int, data: st.DataObject) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    size = shape[axis]
    where = np.random.default_rng(seed).integers(-size, size, wanted[:2], np.int64)
    _check("Gather", {"x": _floats(seed, shape), "i": where}, axis=axis)


@few
@given(FULL, SEEDS, st.data(), st.sampled_from(["constant", "edge"]))
def test_pad(shape: Shape, seed: int, data: st.DataObject, mode: str) -> None:
    pads = data.draw(st.lists(st.integers(0, 3), min_size=2 * len(shape), max_size=2 * len(shape)))
    inputs = {"x": _floats(seed, shape), "pads": np.array(pads, np.int64)}
    _check("Pad", inputs, fixed=["pads"], mode=mode)


@few
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), SEEDS, st.data())
def test_conv(batch: int, channels: int, groups: int, seed: int, data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, 3))
    kernel = data.draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank))
    strides = data.draw(st.lists(st.integers(1, 2), min_size=rank, max_size=rank))
    pads = data.draw(st.lists(st.integers(0, 1), min_size=2 * rank, max_size=2 * rank))
    spatial = [k + data.draw(st.integers(0, 4)) for k in kernel]
    x = _floats(seed, (batch, channels * groups, *spatial))
    w = _floats(seed + 1, (2 * groups, channels, *kernel))
    _check("Conv", {"x": x, "w": w}, fixed=["w"], group=groups, strides=strides, pads=pads,
           kernel_shape=kernel)  # fmt: skip


@pytest.mark.parametrize("op", ["Add", "Exp", "ReduceSum", "Identity"])
def test_scalars(op: str) -> None:
    x = np.float32(1.5).reshape(())
    _check(op, {"x": x, "y": x} if op == "Add" else {"x": x})
