"""If, Loop and Scan that data decide about, against ONNX Runtime; also out of a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pywebgpu.compile import compile_model
from pywebgpu.errors import DeviceError, InputError, UnsupportedError
from pywebgpu.export import export
from pywebgpu.session import InferenceSession
from tests.executors_seen import record_executor
from tests.ops.agree import agree, by_onnxruntime

F, I64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
info, node = helper.make_tensor_value_info, helper.make_node
Array = np.ndarray[Any, Any]


def model_of(nodes: Any, inputs: Any, outputs: Any, **constants: Any) -> onnx.ModelProto:
    weights = [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def check(model: onnx.ModelProto, feeds: Mapping[str, Array], gpu: bool = True) -> None:
    expected = by_onnxruntime(model, feeds)
    agree(model, feeds, expected)
    compiled = compile_model(model.SerializeToString())
    with InferenceSession(compiled, ["wasm"], threads=2) as session:
        for got, want in zip(session.run(None, dict(feeds)), expected, strict=True):
            np.testing.assert_allclose(got, want, 1e-4, 1e-5)
    if not gpu:
        return
    try:
        session = InferenceSession(compiled, ["webgpu"])
    except DeviceError as error:
        pytest.skip(str(error))
    with session:
        for _ in range(2):
            for got, want in zip(session.run(None, dict(feeds)), expected, strict=True):
                assert got.shape == want.shape
                np.testing.assert_allclose(got, want, 1e-4, 1e-5)
    record_executor("wgpu")


def early_exit() -> onnx.ModelProto:
    """The easy inputs take the short way: y = relu(x w) or x w w, by how large x is."""
    then = helper.make_graph(
        [node("Relu", ["h"], ["short"])], "then", [], [info("short", F, ["batch", 8])]
    )
    otherwise = helper.make_graph(
        [node("MatMul", ["h", "w"], ["deep"]), node("Tanh", ["deep"], ["long"])],
        "else", [], [info("long", F, ["batch", 8])],
    )  # fmt: skip
    return model_of(
        [
            node("MatMul", ["x", "w"], ["h"]),
            node("ReduceMean", ["x"], ["mean"], keepdims=0),
            node("Less", ["mean", "zero"], ["easy"]),
            node("If", ["easy"], ["y"], then_branch=then, else_branch=otherwise),
            node("Add", ["y", "h"], ["z"]),
        ],
        [info("x", F, ["batch", 8])],
        [info("z", F, ["batch", 8]), info("y", F, ["batch", 8])],
        w=np.random.default_rng().standard_normal((8, 8)).astype(np.float32),
        zero=np.float32(0),
    )


@pytest.mark.parametrize("sign", [-1, 1])
def test_if(sign: int) -> None:
    x = np.abs(np.random.default_rng().standard_normal((3, 8))).astype(np.float32)
    check(early_exit(), {"x": sign * x})


def halving(trips: bool = False, rows: bool = False) -> onnx.ModelProto:
    """x is halved while its largest element is above 1; `rows`: with every intermediate x."""
    body = helper.make_graph(
        [
            node("Mul", ["v", "half"], ["w"]),
            node("ReduceMax", ["w"], ["most"], keepdims=0),
            node("Greater", ["most", "one"], ["go"]),
            node("Identity", ["w"], ["seen"]),
            node("Cast", ["i"], ["number"], to=F),
            node("Add", ["sum", "number"], ["sum_out"]),
        ],
        "body",
        [info("i", I64, []), info("on", BOOL, []), info("v", F, ["n"]), info("sum", F, [])],
        [info("go", BOOL, []), info("w", F, ["n"]), info("sum_out", F, []),
         *([info("seen", F, ["n"])] if rows else [])],
    )  # fmt: skip
    return model_of(
        [
            node("Loop", ["m" if trips else "", "", "x", "zero"],
                 ["y", "total", *(["all"] if rows else [])], body=body),
            node("Add", ["y", "total"], ["z"]),
        ],
        [info("x", F, ["n"]), *([info("m", I64, [])] if trips else [])],
        [info("z", F, ["n"]), *([info("all", F, [None, "n"])] if rows else [])],
        half=np.float32(0.5), one=np.float32(1), zero=np.float32(0),
    )  # fmt: skip


@pytest.mark.parametrize("rows", [False, True])
def test_loop_until_data_end_it(rows: bool) -> None:
    x = np.array([3, 100, 7], np.float32)
    check(halving(rows=rows), {"x": x})
    check(halving(trips=True, rows=rows), {"x": x, "m": np.array(4)})
    if not rows:  # ONNX Runtime gives no rows of no columns
        check(halving(trips=True), {"x": x, "m": np.array(0)}, gpu=False)


def test_a_loop_that_does_not_end_is_given_up() -> None:
    x = {"x": np.array([np.inf], np.float32)}
    with (
        InferenceSession(halving(rows=True).SerializeToString(), ["wasm"], threads=1) as session,
        pytest.raises(InputError, match=r"Loop.*does not end.*4096 turns"),
    ):
        session.run(None, x)
    record_executor("wasmtime")


def test_carried_values_keep_their_shapes() -> None:
    body = helper.make_graph(
        [node("Concat", ["v", "v"], ["w"], axis=0), node("Identity", ["on"], ["go"])],
        "body", [info("i", I64, []), info("on", BOOL, []), info("v", F, None)],
        [info("go", BOOL, []), info("w", F, None)],
    )  # fmt: skip
    model = model_of([node("Loop", ["m", "", "x"], ["y"], body=body)],
                     [info("m", I64, []), info("x", F, [2])], [info("y", F, None)])  # fmt: skip
    with pytest.raises(UnsupportedError, match="changes its shape"):
        compile_model(model.SerializeToString())


def selective_scan(directions: int = 0) -> onnx.ModelProto:
    """A state-space layer: h = a[t] * h + b[t] * x[t]; y[t] = sum(c[t] * h)."""
    body = helper.make_graph(
        [
            node("Mul", ["a_t", "h"], ["kept"]),
            node("Unsqueeze", ["x_t", "last"], ["column"]),
            node("Mul", ["column", "b_t"], ["new"]),
            node("Add", ["kept", "new"], ["h_out"]),
            node("Mul", ["h_out", "c_t"], ["weighted"]),
            node("ReduceSum", ["weighted", "last"], ["y_t"], keepdims=0),
        ],
        "body",
        [info("h", F, [4, 3]), info("a_t", F, [4, 3]), info("b_t", F, [3]), info("c_t", F, [3]),
         info("x_t", F, [4])],
        [info("h_out", F, [4, 3]), info("y_t", F, [4])],
    )  # fmt: skip
    return model_of(
        [
            node("Sigmoid", ["a"], ["decay"]),
            node("Scan", ["h0", "decay", "b", "c", "x"], ["h1", "y"], body=body, num_scan_inputs=4,
                 scan_input_axes=[0, 0, 0, 1], scan_output_axes=[-1],
                 scan_input_directions=[directions] * 4, scan_output_directions=[directions]),
        ],
        [info("h0", F, [4, 3]), info("a", F, ["t", 4, 3]), info("b", F, ["t", 3]),
         info("c", F, ["t", 3]), info("x", F, [4, "t"])],
        [info("y", F, [4, "t"]), info("h1", F, [4, 3])],
        last=np.array([-1]),
    )  # fmt: skip


@pytest.mark.parametrize("directions", [0, 1])
def test_scan_of_any_length(directions: int) -> None:
    rng = np.random.default_rng()
    for t in (5, 1):
        shapes = {"h0": (4, 3), "a": (t, 4, 3), "b": (t, 3), "c": (t, 3), "x": (4, t)}
        feeds = {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()}
        check(selective_scan(directions), feeds)


def test_loops_within_branches_within_loops() -> None:
    """Rows of x are added up three times or not at all, as their sign says."""
    inner = helper.make_graph(
        [node("Add", ["s", "row"], ["s_out"]), node("Identity", ["on2"], ["go2"])],
        "inner", [info("j", I64, []), info("on2", BOOL, []), info("s", F, [2])],
        [info("go2", BOOL, []), info("s_out", F, [2])],
    )  # fmt: skip
    then = helper.make_graph([node("Loop", ["times", "", "acc"], ["tripled"], body=inner)], "then",
                             [], [info("tripled", F, [2])])  # fmt: skip
    otherwise = helper.make_graph([node("Identity", ["acc"], ["kept"])], "else", [],
                                  [info("kept", F, [2])])  # fmt: skip
    body = helper.make_graph(
        [
            node("ReduceSum", ["row"], ["sum"], keepdims=0),
            node("Greater", ["sum", "zero"], ["positive"]),
            node("If", ["positive"], ["acc_out"], then_branch=then, else_branch=otherwise),
            node("Identity", ["acc_out"], ["now"]),
        ],
        "body", [info("acc", F, [2]), info("row", F, [2])],
        [info("acc_out", F, [2]), info("now", F, [2])],
    )  # fmt: skip
    model = model_of(
        [node("Scan", ["start", "x"], ["end", "every"], body=body, num_scan_inputs=1)],
        [info("start", F, [2]), info("x", F, ["t", 2]), info("times", I64, [])],
        [info("end", F, [2]), info("every", F, ["t", 2])],
        zero=np.float32(0),
    )
    x = np.array([[1, 2], [-3, 1], [4, -1]], np.float32)
    check(model, {"start": np.ones(2, np.float32), "x": x, "times": np.array(3)})


def test_a_bundle_carries_its_program(tmp_path: Path) -> None:
    model = halving(rows=True)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    export(path, tmp_path / "bundle")
    feeds = {"x": np.array([3, 100, 7], np.float32)}
    with InferenceSession(tmp_path / "bundle", ["wasm"], threads=1) as session:
        for got, want in zip(session.run(None, feeds), by_onnxruntime(model, feeds), strict=True):
            np.testing.assert_allclose(got, want, 1e-5)
    record_executor("wasmtime")


def test_unknown_operators_are_listed_together_also_those_in_bodies() -> None:
    body = helper.make_graph(
        [node("Identity", ["on"], ["go"]), node("Frob", ["v"], ["u"], name="f", domain="acme"),
         node("Abs", ["u"], ["w"])],
        "body", [info("i", I64, []), info("on", BOOL, []), info("v", F, [2])],
        [info("go", BOOL, []), info("w", F, [2])],
    )  # fmt: skip
    model = model_of(
        [node("Loop", ["n", "", "x"], ["y"], body=body), node("Twiddle", ["y"], ["z"], name="t")],
        [info("n", I64, []), info("x", F, [2])], [info("z", F, [2])],
    )  # fmt: skip
    model.opset_import.append(helper.make_opsetid("acme", 1))
    with pytest.raises(UnsupportedError, match=r"2 nodes .*Frob 'f'.*Twiddle 't'"):
        compile_model(model.SerializeToString())
