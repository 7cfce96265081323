"""Operators that find out sizes while they run, and what follows them, against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pywebgpu.errors import InputError
from pywebgpu.session import InferenceSession
from tests.executors_seen import record_executor
from tests.ops.test_control import check, model_of

F, I64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
info, node = helper.make_tensor_value_info, helper.make_node


def positives() -> onnx.ModelProto:
    """The positive elements of x, doubled, their sum, and where they are."""
    return model_of(
        [
            node("Greater", ["x", "zero"], ["positive"]),
            node("NonZero", ["positive"], ["where"]),
            node("Transpose", ["where"], ["places"], perm=[1, 0]),
            node("GatherND", ["x", "places"], ["found"]),
            node("Add", ["found", "found"], ["twice"]),
            node("ReduceSum", ["twice"], ["sum"], keepdims=0),
            node("Shape", ["found"], ["size"]),
        ],
        [info("x", F, ["n", "m"])],
        [info("twice", F, None), info("sum", F, []), info("where", I64, None),
         info("size", I64, [1])],
        zero=np.float32(0),
    )  # fmt: skip


@pytest.mark.parametrize("shape", [(3, 4), (40, 37), (1, 1)])
def test_non_zero(shape: tuple[int, int]) -> None:
    x = np.random.default_rng().standard_normal(shape).astype(np.float32)
    check(positives(), {"x": x}, gpu=shape == (40, 37))


def test_none_and_all() -> None:
    check(positives(), {"x": -np.ones((2, 3), np.float32)})
    check(positives(), {"x": np.ones((2, 3), np.float32)}, gpu=False)


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_compress(axis: int | None) -> None:
    rng = np.random.default_rng()
    model = model_of(
        [node("Cast", ["c"], ["keep"], to=BOOL),
         node("Compress", ["x", "keep"], ["y"], **({} if axis is None else {"axis": axis}))],
        [info("x", F, [4, 5]), info("c", F, ["n"])], [info("y", F, None)],
    )  # fmt: skip
    x = rng.standard_normal((4, 5)).astype(np.float32)
    check(model, {"x": x, "c": rng.integers(0, 2, 3).astype(np.float32)}, gpu=axis == 1)


@pytest.mark.parametrize("ordered", [0, 1])
@pytest.mark.parametrize("axis", [None, 0, -1])
def test_unique(axis: int | None, ordered: int) -> None:
    model = model_of(
        [node("Unique", ["x"], ["y", "i", "inverse", "counts"], sorted=ordered,
              **({} if axis is None else {"axis": axis}))],
        [info("x", F, ["n", 2])],
        [info("y", F, None), info("i", I64, None), info("inverse", I64, None),
         info("counts", I64, None)],
    )  # fmt: skip
    x = np.random.default_rng().integers(0, 3, (9, 2)).astype(np.float32)
    check(model, {"x": x}, gpu=axis == 0)


def suppression(centre: int = 0, **constants: Any) -> onnx.ModelProto:
    """Boxes that are chosen, gathered as a detector's last layers do."""
    inputs = [info("boxes", F, [2, "n", 4]), info("scores", F, [2, 3, "n"])]
    if "most" not in constants:
        inputs.append(info("most", I64, [1]))
    return model_of(
        [
            node("NonMaxSuppression", ["boxes", "scores", "most", "iou", "least"], ["picked"],
                 center_point_box=centre),
            node("Gather", ["picked", "two"], ["box"], axis=1),
            node("Gather", ["picked", "nought"], ["batch"], axis=1),
            node("Concat", ["batch", "box"], ["place"], axis=1),
            node("GatherND", ["boxes", "place"], ["kept"]),
        ],
        inputs, [info("picked", I64, None), info("kept", F, None)],
        iou=np.array([0.4], np.float32), least=np.array([0.3], np.float32),
        two=np.array([2]), nought=np.array([0]), **constants,
    )  # fmt: skip


@pytest.mark.parametrize("centre", [0, 1])
def test_non_max_suppression(centre: int) -> None:
    rng = np.random.default_rng()
    for n, most in ((20, 5), (7, 100)):
        low, size = rng.random((2, n, 2)), rng.random((2, n, 2)) * 0.5
        boxes = np.concatenate([low, size if centre else low + size], -1).astype(np.float32)
        scores = rng.random((2, 3, n)).astype(np.float32)
        feeds = {"boxes": boxes, "scores": scores}
        check(suppression(centre, most=np.array([most])), feeds, gpu=n == 20)
        check(suppression(centre), {**feeds, "most": np.array([most])}, gpu=False)


def top_k() -> onnx.ModelProto:
    """As many of the largest as there are rows above 0."""
    return model_of(
        [
            node("Greater", ["x", "zero"], ["above"]),
            node("Cast", ["above"], ["ones"], to=I64),
            node("ReduceSum", ["ones"], ["count"], keepdims=0),
            node("Mul", ["count", "factor"], ["more"]),
            node("Reshape", ["more", "one"], ["k"]),
            node("TopK", ["x", "k"], ["y", "i"]),
        ],
        [info("x", F, ["n"]), info("factor", I64, [])],
        [info("y", F, None), info("i", I64, None)],
        zero=np.float32(0), one=np.array([1]),
    )  # fmt: skip


def test_top_k_of_a_computed_k() -> None:
    x = np.random.default_rng().permutation(np.linspace(-1, 1, 11)).astype(np.float32)
    check(top_k(), {"x": x, "factor": np.array(1)})


def test_more_than_there_is_room_for() -> None:
    feeds = {"x": np.ones(3, np.float32), "factor": np.array(2)}
    with (
        InferenceSession(top_k().SerializeToString(), ["wasm"], threads=1) as session,
        pytest.raises(InputError, match=r"TopK.*there is room for \(got 6, expected 0 to 3\)"),
    ):
        session.run(None, feeds)
    record_executor("wasmtime")
