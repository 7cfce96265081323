"""Inputs whose values decide shapes: found, compiled for, kept, and reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pywebgpu.check import check
from pywebgpu.compare import run_model
from pywebgpu.compile import compile_model
from pywebgpu.errors import InputError, ModelError, UnsupportedError
from pywebgpu.export import export
from pywebgpu.session import SPECIALISATIONS, InferenceSession
from tests.executors_seen import record_executor

F, I32, I64 = TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64
X = np.arange(6, dtype=np.float32)


def made(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, list[Any]]],
    outputs: dict[str, tuple[int, list[Any]]],
) -> bytes:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, t, s) for n, (t, s) in inputs.items()],
        [helper.make_tensor_value_info(n, t, s) for n, (t, s) in outputs.items()],
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    data: bytes = model.SerializeToString()
    return data


def repeated() -> bytes:
    """A shape that arrives as int32, and a k that only matters once the shape is known."""
    nodes = [
        helper.make_node("Cast", ["shape"], ["wide"], to=I64),
        helper.make_node("Reshape", ["x", "wide"], ["rows"]),
        helper.make_node("Constant", [], ["one"], value_ints=[1]),
        helper.make_node("Concat", ["one", "k"], ["times"], axis=0),
        helper.make_node("Tile", ["rows", "times"], ["best"]),
    ]
    inputs = {"x": (F, ["n"]), "shape": (I32, [2]), "k": (I64, [1])}
    return made(nodes, inputs, {"best": (F, [None, None])})


def feeds(k: int, rows: int = 2) -> dict[str, Any]:
    return {"x": X, "shape": np.array([rows, -1], np.int32), "k": np.array([k])}


def want(k: int, rows: int = 2) -> Any:
    return np.tile(X.reshape(rows, -1), (1, k))


def test_a_session_compiles_for_the_values_it_is_fed() -> None:
    with InferenceSession(repeated(), ["wasm"], threads=1) as session:
        assert session.provider == "wasm"
        assert session.specialised == ("shape",)
        assert [i.name for i in session.get_inputs()] == ["x", "shape", "k"]
        assert [o.name for o in session.get_outputs()] == ["best"]
        for k, rows in ((1, 2), (2, 2), (1, 3), (1, 2)):
            (best,) = session.run(None, feeds(k, rows))
            np.testing.assert_array_equal(best, want(k, rows))
        assert session.specialised == ("shape", "k")
        assert [p.name for p in session.plan.inputs] == ["x"]
        assert len(session._made) == 3
        record_executor("wasmtime")


def test_the_oldest_values_go_with_one_warning() -> None:
    with InferenceSession(repeated(), ["wasm"], threads=1) as session:
        for k in range(1, SPECIALISATIONS + 1):
            session.run(None, feeds(k, 1))
        with pytest.warns(RuntimeWarning, match="each new one costs a compilation"):
            session.run(None, feeds(SPECIALISATIONS + 1, 1))
        assert len(session._made) == SPECIALISATIONS
        np.testing.assert_array_equal(session.run(None, feeds(1, 1))[0], want(1, 1))


def test_wrong_feeds_are_told_as_for_any_input() -> None:
    with InferenceSession(repeated(), ["wasm"], threads=1) as session:
        with pytest.raises(InputError, match="'k': is missing"):
            session.run(None, {"x": X, "shape": np.array([2, 3], np.int32)})
        with pytest.raises(InputError, match="wrong element type"):
            session.run(None, {**feeds(1), "shape": np.array([2, 3])})
        with pytest.raises(InputError, match="wrong shape"):
            session.run(None, {**feeds(1), "shape": np.array([2, 3, 1], np.int32)})
        with pytest.raises(ModelError, match="out of range"):
            session.run(None, feeds(-1))


def test_plain_data_is_never_fixed() -> None:
    """A slice's end that is computed from a matrix of data would mean a compilation per run."""
    nodes = [
        helper.make_node("ReduceMax", ["ids"], ["most"], keepdims=0),
        helper.make_node("Reshape", ["most", "one"], ["end"]),
        helper.make_node("Range", ["zero", "most", "step"], ["y"]),
    ]
    inputs = {"ids": (I64, ["b", "n"]), "one": (I64, [1]), "zero": (I64, []), "step": (I64, [])}
    with pytest.raises(UnsupportedError, match="depend on data"):
        InferenceSession(made(nodes, inputs, {"y": (I64, [None])}), ["wasm"])


def test_sizes_shared_with_a_fixed_input_are_fixed_too() -> None:
    """`axes` has as many elements as `x` has rows."""
    nodes = [helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=0)]
    model = made(nodes, {"x": (F, ["n", 3]), "axes": (I64, ["n"])}, {"y": (F, None)})  # type: ignore[dict-item]
    plan = compile_model(model, values={"axes": np.array([0])}).plan
    assert plan.inputs[0].shape == (1, 3)


def test_values_at_export(tmp_path: Path) -> None:
    values = {"shape": np.array([2, 3]), "k": np.array([2])}
    export(repeated(), tmp_path / "bundle", values=values)
    with InferenceSession(tmp_path / "bundle", ["wasm"], threads=1) as session:
        assert [i.name for i in session.get_inputs()] == ["x"]
        np.testing.assert_array_equal(session.run(None, {"x": X})[0], want(2))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"K": np.array([2])}, "no such input"),
        ({"k": np.array(2)}, "wrong shape"),
        ({"k": np.array([1.5])}, "not of the input's type"),
        ({"shape": np.array([2**40, 1])}, "not of the input's type"),
    ],
)
def test_values_that_do_not_fit(values: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        compile_model(repeated(), values=values)


def test_check_names_them_and_the_cost() -> None:
    report = check(repeated())
    assert not report.ok
    assert report.specialised == ("shape",)
    assert any("--value shape=" in text for text in report.remarks)
    fixed = check(repeated(), values={"shape": np.array([2, 3]), "k": np.array([2])})
    assert fixed.ok
    assert not fixed.specialised


def test_a_run_needs_their_values(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(repeated())
    with pytest.raises(InputError, match="decides a shape"):
        run_model(model, repeat=1)
    values = {"shape": np.array([2, 3]), "k": np.array([2]), "x": np.arange(6)}
    report = run_model(model, values=values, repeat=1, session_options={"threads": 1})
    np.testing.assert_array_equal(report.values["best"], want(2))


@pytest.mark.parametrize(
    ("op", "inputs", "out", "feed"),
    [
        ("ReduceSum", {"x": (F, [2, 3]), "axes": (I64, ["k"])}, (2,), [1]),
        ("Tile", {"x": (F, [2, 3]), "repeats": (I64, [2])}, (4, 3), [2, 1]),
        ("Expand", {"x": (F, [1, 3]), "shape": (I64, [2])}, (5, 3), [5, 3]),
        ("Pad", {"x": (F, [2, 3]), "pads": (I64, [4])}, (3, 5), [1, 1, 0, 1]),
        ("CumSum", {"x": (F, [2, 3]), "axis": (I64, [])}, (2, 3), 1),
        ("Unsqueeze", {"x": (F, [2, 3]), "axes": (I64, [1])}, (2, 1, 3), [1]),
    ],
)
def test_operators(op: str, inputs: dict[str, Any], out: tuple[int, ...], feed: Any) -> None:
    attributes = {"keepdims": 0} if op == "ReduceSum" else {}
    model = made(
        [helper.make_node(op, list(inputs), ["y"], **attributes)],
        inputs,
        {"y": (F, [None] * len(out))},
    )
    x = np.arange(np.prod(inputs["x"][1]), dtype=np.float32).reshape(inputs["x"][1])
    values = {"x": x, list(inputs)[1]: np.array(feed, np.int64)}
    with InferenceSession(model, ["wasm"], threads=1) as session:
        (got,) = session.run(None, values)
    (expected,) = onnx.reference.ReferenceEvaluator(onnx.load_from_string(model)).run(None, values)
    np.testing.assert_array_equal(got, expected)
