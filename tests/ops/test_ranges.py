"""64-bit integers are computed in 32 bits: what may not fit is refused, before or as it arrives,
and what is let in comes out as ONNX Runtime has it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from pywebgpu.check import check
from pywebgpu.compile import compile_model
from pywebgpu.errors import DeviceError, InputError, UnsupportedError
from pywebgpu.export import export
from pywebgpu.session import InferenceSession
from tests.executors_seen import record_executor
from tests.ops.agree import agree, by_onnxruntime

F, I64 = TensorProto.FLOAT, TensorProto.INT64
U32, U64 = TensorProto.UINT32, TensorProto.UINT64
node = helper.make_node
MAX = 2**31 - 1
Array = np.ndarray[Any, Any]


def made(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, list[int | str]]],
    output: tuple[int, list[int | str] | None] = (I64, None),
    **constants: Any,
) -> onnx.ModelProto:
    """A model with the output y."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, *t) for n, t in inputs.items()],
        [helper.make_tensor_value_info("y", *output)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def limits(model: onnx.ModelProto) -> tuple[int, int] | None:
    (port,) = compile_model(model.SerializeToString()).plan.inputs
    return port.limits


def op(name: str, *others: str, **attrs: Any) -> onnx.NodeProto:
    return node(name, ["x", *others], ["y"], **attrs)


X = {"x": (I64, [4])}

ARITHMETIC: dict[str, tuple[onnx.ModelProto, int]] = {
    # A model of x, and the largest |x| with which nothing can be beyond 32 bits.
    "square": (made([op("Mul", "x")], X), 46340),
    "twice": (made([op("Add", "x")], X), 2**30),
    "one more": (made([op("Add", "c")], X, c=np.array(1)), MAX - 1),
    "far more": (made([op("Add", "c")], X, c=np.array(2_000_000_000)), 147_483_647),
    "times": (made([op("Mul", "c")], X, c=np.array(1000)), 2_147_483),
    "cube": (made([op("Pow", "c")], X, c=np.array(3)), 1290),
    "sum": (made([op("ReduceSum", keepdims=0)], X), MAX // 4),
    "squares": (made([op("ReduceSumSquare", keepdims=0)], X), 23170),
    "product": (made([op("ReduceProd", keepdims=0)], X), 215),
    "running sum": (made([op("CumSum", "c")], X, c=np.array(0)), MAX // 4),
    "negative": (made([op("Neg")], X), MAX),
    "matmul": (made([op("MatMul", "x")], X, (I64, [])), 23170),
    "scattered": (
        made([node("ScatterElements", ["z", "i", "x"], ["y"], reduction="add")], X,
             z=np.zeros(2, np.int64), i=np.array([0, 0, 1, 0])), MAX // 4),
    "in a branch": (
        made([node("ReduceMax", ["x"], ["m"], keepdims=0), node("Less", ["m", "c"], ["b"]),
              node("If", ["b"], ["y"], then_branch=helper.make_graph(
                  [node("Mul", ["x", "x"], ["p"])], "then", [],
                  [helper.make_tensor_value_info("p", I64, [4])]),
                  else_branch=helper.make_graph(
                      [node("Identity", ["x"], ["q"])], "else", [],
                      [helper.make_tensor_value_info("q", I64, [4])]))], X, c=np.array(7)), 46340),
}  # fmt: skip


@pytest.mark.parametrize("kind", ARITHMETIC)
def test_inputs_are_limited_to_what_fits(kind: str) -> None:
    """Never more than fits, and at least half of it: limits are powers of two."""
    model, largest = ARITHMETIC[kind]
    found = limits(model)
    assert found is not None
    low, high = found
    assert largest // 4 <= high <= largest
    feeds = {"x": np.array([high, low + 1, high, low + 1])}
    agree(model, feeds, by_onnxruntime(model, feeds))
    for provider in ("wasm", "webgpu"):
        try:
            session = InferenceSession(model.SerializeToString(), [provider])
        except DeviceError as error:
            pytest.skip(str(error))
        with session, pytest.raises(InputError, match="does not fit 32 bits") as error:
            session.run(None, {"x": np.array([0, high + 1, 0, 0])})
        assert str(low) in str(error.value)
        assert str(high) in str(error.value)


@pytest.mark.parametrize("name", ["Identity", "Abs", "Neg", "Relu", "Max", "Sign"])
def test_what_moves_elements_takes_all_of_32_bits(name: str) -> None:
    model = made([op(name, *(["x"] if name == "Max" else []))], X)
    assert limits(model) in (None, (-(2**30), 2**30 - 1))  # the least has no opposite


@pytest.mark.parametrize("provider", ["wasm", "webgpu"])
@pytest.mark.parametrize("value", [2**31, -(2**31) - 1, 2**62, -(2**63)])
def test_larger_numbers_do_not_come_in(provider: str, value: int) -> None:
    model = made([op("Identity")], X).SerializeToString()
    try:
        session = InferenceSession(model, [provider])
    except DeviceError as error:
        pytest.skip(str(error))
    with session, pytest.raises(InputError, match="does not fit 32 bits"):
        session.run(None, {"x": np.array([0, value, 0, 0])})


BEYOND: dict[str, onnx.ModelProto] = {
    "a constant that is added": made([op("Add", "c")], X, c=np.array(2**40)),
    "a constant that is divided by": made([op("Div", "c")], X, c=np.array(2**40)),
    "a constant that is gathered from": made(
        [node("Gather", ["c", "x"], ["y"])], X, c=np.array([2**31, 5])
    ),
    "a constant that stands where a mask is": made(
        [node("Less", ["x", "z"], ["b"]), node("Where", ["b", "c", "x"], ["y"])], X,
        c=np.array(-(2**63)), z=np.array(1),
    ),
    "a constant that is an output": made([node("Identity", ["c"], ["y"])], X, c=np.array([2**31])),
    "bits shifted out": made([op("BitShift", "c", direction="LEFT")], {"x": (U64, [4])}, (U64, [4]),
                             c=np.array(40, np.uint64)),
    "less than nothing without a sign": made([op("Sub", "c")], {"x": (U64, [4])}, (U64, [4]),
                                             c=np.array(1, np.uint64)),
    "floats squared": made(
        [node("Cast", ["x"], ["i"], to=I64), node("Mul", ["i", "i"], ["y"])], {"x": (F, [4])}
    ),
    "a sum that doubles in every turn": made(
        [node("Loop", ["n", "", "x"], ["y"], body=helper.make_graph(
            [node("Add", ["v", "v"], ["w"]), node("Identity", ["on"], ["go"])], "body",
            [helper.make_tensor_value_info("i", I64, []),
             helper.make_tensor_value_info("on", TensorProto.BOOL, []),
             helper.make_tensor_value_info("v", I64, [4])],
            [helper.make_tensor_value_info("go", TensorProto.BOOL, []),
             helper.make_tensor_value_info("w", I64, [4])]))], X, n=np.array(100)),
}  # fmt: skip


@pytest.mark.parametrize("kind", BEYOND)
def test_what_cannot_be_proven_is_refused(kind: str) -> None:
    with pytest.raises(UnsupportedError, match="32 bits"):
        compile_model(BEYOND[kind].SerializeToString())
    report = check(BEYOND[kind].SerializeToString())
    assert not report.ok
    assert "32 bits" in report.unsupported[0].reason


@pytest.mark.parametrize(
    ("name", "constant"),
    [("Min", 2**62), ("Max", -(2**62)), ("Less", 2**62), ("Greater", -(2**40)), ("Equal", 2**33)],
)
def test_constants_that_only_bound_may_be_larger(name: str, constant: int) -> None:
    compared = name in ("Less", "Greater", "Equal")
    model = made([op(name, "c")], X, (TensorProto.BOOL if compared else I64, [4]),
                 c=np.array(constant))  # fmt: skip
    low, high = limits(model) or (-(2**31), MAX)
    feeds = {"x": np.array([low, -1, 0, high])}
    agree(model, feeds, by_onnxruntime(model, feeds))


def test_clipped_by_the_ends_of_int64() -> None:
    model = made([op("Clip", "a", "b")], X, a=np.array(-(2**63)), b=np.array(2**63 - 1))
    feeds = {"x": np.array([-(2**31), -1, 5, MAX])}
    agree(model, feeds, by_onnxruntime(model, feeds))


def test_floats_are_clipped_before_they_become_integers_to_add_to() -> None:
    """Beyond 2^24 not every integer is a float, so that nobody counts on those."""
    model = made(
        [node("Cast", ["x"], ["i"], to=I64), node("Add", ["i", "c"], ["y"])], {"x": (F, [4])},
        c=np.array(16),
    )  # fmt: skip
    feeds = {"x": np.array([1e7, -1e7, 0.9, -0.9], np.float32)}
    agree(model, feeds, by_onnxruntime(model, feeds))
    with InferenceSession(model.SerializeToString(), ["wasm"], threads=1) as session:
        (got,) = session.run(None, {"x": np.array([3e9, -3e9, np.inf, 5], np.float32)})
    assert (np.sign(got) == [1, -1, 1, 1]).all()
    assert (np.abs(got[:3]) >= 2**24).all()
    record_executor("wasmtime")


def test_sums_of_a_mask_limit_how_long_it_is() -> None:
    """RoBERTa's positions: the mask is narrowed first, then the sequence."""
    nodes = [node("CumSum", ["x", "one"], ["s"]), node("Mul", ["s", "x"], ["y"])]
    model = made(nodes, {"x": (I64, ["batch", "sequence"])}, (I64, None), one=np.array(1))
    plan = compile_model(model.SerializeToString()).plan
    low, high = plan.inputs[0].limits or (0, 0)
    assert low < 0 < 1 <= high
    (found,) = plan.checks
    assert "sequence" in str(found.right)
    mask = np.array([[1, 1, 1, 0], [1, 1, 0, 0]])
    agree(model, {"x": mask}, by_onnxruntime(model, {"x": mask}))


def test_uint32_wraps_around_and_is_not_misread() -> None:
    ring = made([op("Mul", "c")], {"x": (U32, [4])}, (U32, [4]), c=np.array(2654435761, np.uint32))
    feeds = {"x": np.array([1, 2**31, 4_000_000_000, 77], np.uint32)}
    expected = feeds["x"] * np.uint32(2654435761)
    agree(ring, feeds, [expected])
    halved = made([op("Div", "c")], {"x": (U32, [4])}, (U32, [4]), c=np.array(2, np.uint32))
    assert limits(ring) == (0, 2**32 - 1)
    with (
        InferenceSession(halved.SerializeToString(), ["wasm"], threads=1) as session,
        pytest.raises(InputError, match="does not fit 32 bits"),
    ):
        session.run(None, feeds)


def test_a_page_is_told_the_limits(tmp_path: Path) -> None:
    onnx.save(ARITHMETIC["square"][0], tmp_path / "m.onnx")
    export(tmp_path / "m.onnx", tmp_path / "bundle")
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert manifest["inputs"][0]["limits"] == [-32768, 32767]
    with (
        InferenceSession(tmp_path / "bundle", ["wasm"], threads=1) as session,
        pytest.raises(InputError, match="does not fit 32 bits"),
    ):
        session.run(None, {"x": np.full(4, 40000)})


_UNARY = ("Neg", "Abs", "Sign")
_BINARY = ("Add", "Sub", "Mul", "Min", "Max", "Div", "Mod", "BitwiseAnd", "BitwiseOr", "BitwiseXor")


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_random_chains_of_integers(data: st.DataObject) -> None:
    """Whatever is let in comes out as NumPy's 64 bits have it."""
    nodes, names = [], ["x"]
    for i in range(data.draw(st.integers(1, 5))):
        name = data.draw(st.sampled_from([*_UNARY, *_BINARY]))
        read = [data.draw(st.sampled_from(names))]
        if name in ("Div", "Mod"):
            read.append("c")
        elif name in _BINARY:
            read.append(data.draw(st.sampled_from([*names, "c"])))
        nodes.append(node(name, read, [f"v{i}"]))
        names.append(f"v{i}")
    nodes.append(node("Identity", [names[-1]], ["y"]))
    constant = data.draw(st.sampled_from([1, 3, 1000, -7, 65535]))
    model = made(nodes, X, c=np.array(constant))
    try:
        low, high = limits(model) or (-(2**31), MAX)
    except UnsupportedError:
        return
    feeds = {"x": np.array([low, high, *data.draw(st.tuples(*[st.integers(low, high)] * 2))])}
    agree(model, feeds, by_onnxruntime(model, feeds))
