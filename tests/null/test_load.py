"""Loading: what is read, and that anything that can not be read is one clear error."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from pywebgpu.codegen.dims import symbol
from pywebgpu.errors import InputError, ModelError, PywebgpuError, UnsupportedError
from pywebgpu.graph import DType
from pywebgpu.load import load
from pywebgpu.session import InferenceSession

F = TensorProto.FLOAT


def model(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[Any] | None],
    outputs: list[str],
    constants: dict[str, Any] | None = None,
    opset: int = 20,
    functions: list[onnx.FunctionProto] | None = None,
    domains: tuple[str, ...] = (),
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(k, F, v) for k, v in inputs.items()],
        [helper.make_tensor_value_info(k, F, None) for k in outputs],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    made = helper.make_model(graph, opset_imports=opsets, functions=functions or [])
    made.ir_version = 8
    return made


def small() -> bytes:
    """A model with a bit of everything a file can hold."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("Shape", ["c"], ["s"]),
        helper.make_node("Reshape", ["c", "s"], ["d"]),
        helper.make_node("Softmax", ["d"], ["y"], axis=-1),
    ]
    constants = {"w": np.ones((4, 3), np.float32), "b": np.zeros(3, np.float32)}
    return model(nodes, {"x": ["batch", 4]}, ["y"], constants).SerializeToString()


def test_small_model() -> None:
    graph = load(small())
    assert [n.op for n in graph.nodes] == ["MatMul", "Add", "Reshape", "Softmax"]
    assert str(graph.types["y"]) == "float32[batch, 3]"
    assert graph.known("s") == (symbol("batch"), 3)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_bytes_give_a_model_error(data: st.DataObject) -> None:
    good = small()
    broken = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    # Some flips only change a weight or a name.
    with contextlib.suppress(ModelError, UnsupportedError):
        load(bytes(broken))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(small()) - 1))
def test_truncated_bytes_give_a_model_error(length: int) -> None:
    with pytest.raises((ModelError, UnsupportedError)):
        load(small()[:length])


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes_give_a_model_error(data: bytes) -> None:
    with pytest.raises((ModelError, UnsupportedError)):
        load(data)


def test_missing_file_names_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        load(tmp_path / "nowhere.onnx")
    with pytest.raises(InputError, match="folder"):
        load(tmp_path)


def test_external_data(tmp_path: Path) -> None:
    made = onnx.load_from_string(small())
    onnx.save(
        made,
        str(tmp_path / "m.onnx"),
        save_as_external_data=True,
        location="w.bin",
        size_threshold=0,
    )
    graph = load(tmp_path / "m.onnx")
    assert np.array_equal(graph.constants["w"], np.ones((4, 3), np.float32))
    (tmp_path / "w.bin").write_bytes(b"\0")
    with pytest.raises(ModelError):
        load(tmp_path / "m.onnx")
    (tmp_path / "w.bin").unlink()
    with pytest.raises(ModelError, match=r"w\.bin"):
        load(tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="path"):
        load((tmp_path / "m.onnx").read_bytes())


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "a/../../b"])
def test_external_data_stays_beside_the_model(tmp_path: Path, location: str) -> None:
    made = onnx.load_from_string(small())
    tensor = made.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    with pytest.raises(ModelError, match="beside the model"):
        load(tmp_path / "m.onnx")


def test_tensor_that_claims_to_be_huge() -> None:
    made = onnx.load_from_string(small())
    made.graph.initializer[0].dims[:] = [2**30, 2**30]
    with pytest.raises(ModelError, match=r"too small|does not fit"):
        load(made)


def test_cycle() -> None:
    nodes = [
        helper.make_node("Add", ["x", "b"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
    ]
    with pytest.raises(ModelError):
        load(model(nodes, {"x": [2]}, ["b"]))


def test_value_that_nothing_produces() -> None:
    with pytest.raises(ModelError):
        load(model([helper.make_node("Add", ["x", "ghost"], ["y"])], {"x": [2]}, ["y"]))


def test_value_produced_twice() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Abs", ["x"], ["y"])]
    with pytest.raises(ModelError):
        load(model(nodes, {"x": [2]}, ["y"]))


@pytest.mark.parametrize("opset", [1, 5, 99])
def test_opset_out_of_range(opset: int) -> None:
    made = model([helper.make_node("Relu", ["x"], ["y"])], {"x": [2]}, ["y"], opset=opset)
    with pytest.raises(UnsupportedError, match=str(opset)) as caught:
        load(made)
    assert caught.value.remedy


def test_unknown_operators_are_listed_together() -> None:
    nodes = [
        helper.make_node("Frobnicate", ["x"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Twiddle", ["x"], ["c"], name="second", domain="com.acme"),
        helper.make_node("Add", ["b", "c"], ["y"]),
    ]
    with pytest.raises(UnsupportedError) as caught:
        load(model(nodes, {"x": [2]}, ["y"], domains=("com.acme",)))
    assert "first" in str(caught.value)
    assert "second" in str(caught.value)


def test_contradictory_shapes() -> None:
    with pytest.raises(ModelError):
        load(model([helper.make_node("Add", ["x", "z"], ["y"])], {"x": [2], "z": [3]}, ["y"]))


def test_axis_out_of_range() -> None:
    with pytest.raises(ModelError):
        load(model([helper.make_node("Softmax", ["x"], ["y"], axis=5)], {"x": [2, 3]}, ["y"]))


def test_size_names_and_expressions() -> None:
    shapes = {"x": ["past + new", "new"], "z": [None, "a b"], "w": ["past"]}
    nodes = [helper.make_node("Relu", [k], [f"{k}_out"]) for k in shapes]
    graph = load(model(nodes, shapes, [f"{k}_out" for k in shapes]))
    new = symbol("new")
    assert graph.types["x_out"].shape == (symbol("past") + new, new)
    assert graph.types["z_out"].shape == (symbol("z_d0"), symbol("a b"))


@pytest.mark.parametrize("text", ["past + 1", "n // 2", "a * b"])
def test_an_expression_of_sizes_that_no_input_has_is_a_size(text: str) -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    session = InferenceSession(
        model([node], {"x": [text, 2]}, ["y"]).SerializeToString(), providers=["wasm"], threads=1
    )
    x = np.array([[-1, 2], [3, -4], [5, 6]], np.float32)
    [y] = session.run(None, {"x": x})
    np.testing.assert_array_equal(y, np.maximum(x, 0))


def test_unequal_names_become_one_size_where_operators_need_it() -> None:
    graph = load(
        model([helper.make_node("Add", ["x", "z"], ["y"])], {"x": ["a"], "z": ["b"]}, ["y"])
    )
    assert graph.types["x"] == graph.types["z"] == graph.types["y"]
    assert [(str(c.left), str(c.right)) for c in graph.checks] == [("a", "b")]


def test_functions_are_inlined() -> None:
    twice = helper.make_function(
        "local",
        "Twice",
        ["i"],
        ["o"],
        [helper.make_node("Add", ["i", "i"], ["o"])],
        [helper.make_opsetid("", 20)],
    )
    made = model(
        [helper.make_node("Twice", ["x"], ["y"], domain="local")],
        {"x": [2]},
        ["y"],
        functions=[twice],
        domains=("local",),
    )
    assert [n.op for n in load(made).nodes] == ["Add"]


def test_if_with_a_constant_condition_is_its_branch() -> None:
    def branch(op: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info("o", F, None)
        return helper.make_graph([helper.make_node(op, ["x"], ["o"])], op, [], [out])

    node = helper.make_node(
        "If", ["c"], ["y"], then_branch=branch("Relu"), else_branch=branch("Abs")
    )
    for value, op in ((True, "Relu"), (False, "Abs")):
        graph = load(model([node], {"x": ["n"]}, ["y"], {"c": np.array(value)}))
        assert [n.op for n in graph.nodes if n.op != "Identity"] == [op]
        assert str(graph.types["y"]) == "float32[n]"


def test_fixed_inputs() -> None:
    made = model([helper.make_node("Reshape", ["x", "s"], ["y"])], {"x": [6]}, ["y"])
    made.graph.input.append(helper.make_tensor_value_info("s", TensorProto.INT64, [2]))
    with pytest.raises(UnsupportedError, match="depend on data"):
        load(made)
    graph = load(made, fixed={"s": np.array([2, 3])})
    assert graph.inputs == ["x"]
    assert str(graph.types["y"]) == "float32[2, 3]"
    with pytest.raises(InputError):
        load(made, fixed={"nope": np.array([1])})


def test_strings_are_refused_by_name() -> None:
    made = model([helper.make_node("Identity", ["x"], ["y"])], {"x": [2]}, ["y"])
    made.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING
    made.graph.output[0].type.tensor_type.elem_type = TensorProto.STRING
    with pytest.raises(PywebgpuError, match="string"):
        load(made)


@pytest.mark.parametrize(
    ("node", "opset", "constants", "want"),
    [
        (helper.make_node("Clip", ["x"], ["y"], min=0.0, max=6.0), 7, {}, "Clip"),
        (helper.make_node("Squeeze", ["x"], ["y"], axes=[1]), 11, {}, "Squeeze"),
        (helper.make_node("Slice", ["x"], ["y"], starts=[0], ends=[1]), 7, {}, "Slice"),
        (helper.make_node("ReduceMean", ["x"], ["y"], axes=[1]), 13, {}, "ReduceMean"),
        (helper.make_node("Pad", ["x"], ["y"], pads=[0, 0, 0, 1, 0, 0]), 7, {}, "Pad"),
        (helper.make_node("Upsample", ["x", "s"], ["y"]), 9, {"s": [1.0, 1.0, 2.0]}, "Resize"),
    ],
)
def test_old_forms(node: onnx.NodeProto, opset: int, constants: dict[str, Any], want: str) -> None:
    arrays = {k: np.array(v, np.float32) for k, v in constants.items()}
    graph = load(model([node], {"x": [4, 1, 5]}, ["y"], arrays, opset=opset))
    assert [n.op for n in graph.nodes] == [want]
    assert not {"axes", "min", "starts", "pads"}.intersection(graph.nodes[0].attrs)


def test_old_softmax_took_the_input_as_a_matrix() -> None:
    graph = load(
        model([helper.make_node("Softmax", ["x"], ["y"])], {"x": ["n", 3, 4]}, ["y"], opset=9)
    )
    assert [n.op for n in graph.nodes] == ["Flatten", "Softmax", "Reshape"]
    assert str(graph.types["y"]) == "float32[n, 3, 4]"


def test_narrow_types_are_widened() -> None:
    made = model(
        [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.BFLOAT16)], {"x": [2]}, ["y"]
    )
    made.graph.output[0].type.tensor_type.elem_type = TensorProto.BFLOAT16
    assert load(made).types["y"].dtype is DType.BF16
