"""Inference against ONNX: its node cases' own results, and its shape inference on whole models."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pywebgpu.codegen.dims import Dim, dim_max, dim_min, evaluate, symbol
from pywebgpu.errors import UnsupportedError
from pywebgpu.graph import DType, Graph
from pywebgpu.infer import symbolic
from pywebgpu.load import load
from tests.null.test_load import model

DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"
LIGHT = sorted((DATA / "light").glob("*.onnx"))
CONVERTED = sorted(
    p for folder in ("simple", "pytorch-converted", "pytorch-operator")
    for p in (DATA / folder).glob("*/model.onnx")
)  # fmt: skip

# What these name is refused on purpose: no such element types, values that are no tensors,
# control flow with a body, operators that make sizes out of data, training, strings.
REFUSED = (
    "tensors of ",
    "a value of kind",
    "with a body",
    "not a tensor",
    "depend on data",
    "depends on data",
    "training mode",
    "strings are not",
    "opset",
    "is not known",
)


def load_case(case: Any) -> Graph:
    """A node case's graph; where shapes depend on small inputs, for these very inputs."""
    try:
        return load(case.model)
    except UnsupportedError:
        fixed = {}
        names = [i.name for i in case.model.graph.input]
        for i, (name, given) in enumerate(zip(names, case.data_sets[0][0], strict=False)):
            array = None if given is None or isinstance(given, list) else np.asarray(given)
            if array is None or array.size > 64 or array.dtype.kind not in "fiub":
                continue
            if i > 0 or array.dtype.kind != "f":
                fixed[name] = array
        if not fixed:
            raise
        return load(case.model, fixed=fixed)


def node_cases() -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        return list(collect_testcases(None))


@pytest.mark.slow
def test_node_cases_have_the_inferred_shapes() -> None:
    """Every node case of ONNX: dtype, rank and static sizes of the outputs it expects."""
    wrong: list[str] = []
    judged = 0
    for case in node_cases():
        try:
            graph = load_case(case)
        except UnsupportedError as error:
            if not any(text in str(error) for text in REFUSED):
                wrong.append(f"{case.name}: {error}")
            continue
        for name, expected in zip(graph.outputs, case.data_sets[0][1], strict=False):
            if not isinstance(expected, (np.ndarray, np.generic)):
                continue
            array, type_ = np.asarray(expected), graph.types[name]
            sizes = [
                d if isinstance(d, int) else s
                for d, s in zip(type_.shape, array.shape, strict=False)
            ]
            judged += 1
            same = str(array.dtype) in (type_.dtype.value, type_.dtype.ml_dtype)
            if len(type_.shape) != array.ndim or sizes != list(array.shape):
                wrong.append(f"{case.name}: {name} is {type_}, expected {array.shape}")
            elif not same:
                wrong.append(f"{case.name}: {name} is {type_}, expected {array.dtype}")
    assert not wrong, "\n".join(wrong)
    assert judged > 1500


def compare_with_onnx(path: Path) -> int:
    """Values whose static sizes both inferences know; asserts that they agree."""
    proto = onnx.load(str(path))
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
    graph = load(path)
    count = 0
    for info in inferred.graph.value_info:
        if info.name not in graph.types:
            continue
        ours = graph.types[info.name]
        tensor = info.type.tensor_type
        assert tensor.elem_type == onnx.TensorProto.DataType.Value(_onnx_name(ours.dtype))
        if not tensor.HasField("shape"):
            continue
        assert len(tensor.shape.dim) == len(ours.shape), info.name
        for theirs, dim in zip(tensor.shape.dim, ours.shape, strict=True):
            if theirs.HasField("dim_value") and isinstance(dim, int):
                assert theirs.dim_value == dim, (info.name, str(ours))
        count += 1
    return count


def _onnx_name(dtype: DType) -> str:
    return {"float32": "FLOAT", "float64": "DOUBLE"}.get(dtype.value, dtype.value.upper())


@pytest.mark.parametrize("path", LIGHT, ids=lambda p: p.stem)
def test_light_models_agree_with_onnx(path: Path) -> None:
    assert compare_with_onnx(path) > 10


@pytest.mark.parametrize("path", CONVERTED, ids=lambda p: p.parent.name)
def test_converted_models(path: Path) -> None:
    """Outputs as the files record them; of those refused, that this is on purpose."""
    try:
        graph = load(path)
    except UnsupportedError as error:
        if any(text in str(error) for text in REFUSED):
            return
        raise
    for info in onnx.load(str(path)).graph.output:
        dims = [d.dim_value for d in info.type.tensor_type.shape.dim]
        ours = graph.types[info.name]
        assert len(dims) == len(ours.shape)
        for want, have in zip(dims, ours.shape, strict=True):
            assert not want or not isinstance(have, int) or want == have


# Sizes as exporters compute them


def node(op: str, inputs: list[str], output: str, **attrs: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [output], **attrs)


def i64(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int64)


def test_view_of_a_flattened_batch() -> None:
    """x.view(x.size(0), -1, 8, 64): Shape, Gather, Unsqueeze, Concat, Reshape."""
    nodes = [
        node("Shape", ["x"], "s"),
        node("Gather", ["s", "zero"], "b", axis=0),
        node("Unsqueeze", ["b", "axis"], "b1"),
        node("Concat", ["b1", "rest"], "shape", axis=0),
        node("Reshape", ["x", "shape"], "y"),
    ]
    constants = {"zero": np.array(0), "axis": i64(0), "rest": i64(-1, 8, 64)}
    graph = load(model(nodes, {"x": ["batch", "seq", 512]}, ["y"], constants))
    assert [n.op for n in graph.nodes] == ["Reshape"]
    assert str(graph.types["y"]) == "float32[batch, seq, 8, 64]"


def test_where_equal_minus_one() -> None:
    """expand(-1, ...) as TorchScript writes it."""
    nodes = [
        node("Shape", ["x"], "s"),
        node("Equal", ["s", "minus"], "is_minus"),
        node("Where", ["is_minus", "ones", "s"], "shape"),
        node("Expand", ["x", "shape"], "y"),
    ]
    constants = {"minus": i64(-1), "ones": i64(1, 1)}
    graph = load(model(nodes, {"x": ["batch", 3]}, ["y"], constants))
    assert str(graph.types["y"]) == "float32[batch, 3]"
    assert [n.op for n in graph.nodes] == ["Expand"]


def test_resize_to_twice_the_size() -> None:
    """Shape, Slice, Cast, Mul, Cast, Concat, Resize(sizes)."""
    nodes = [
        node("Shape", ["x"], "s"),
        node("Slice", ["s", "two", "far", "zero"], "hw"),
        node("Cast", ["hw"], "f", to=onnx.TensorProto.FLOAT),
        node("Mul", ["f", "factor"], "f2"),
        node("Floor", ["f2"], "f3"),
        node("Cast", ["f3"], "i", to=onnx.TensorProto.INT64),
        node("Slice", ["s", "zero", "two", "zero"], "nc"),
        node("Concat", ["nc", "i"], "sizes", axis=0),
        node("Resize", ["x", "", "", "sizes"], "y"),
    ]
    constants = {
        "two": i64(2),
        "zero": i64(0),
        "far": i64(2**63 - 1),
        "factor": np.array([2.0, 2.0], np.float32),
    }
    graph = load(model(nodes, {"x": [1, 3, "h", "w"]}, ["y"], constants))
    assert str(graph.types["y"]) == "float32[1, 3, 2*h, 2*w]"
    assert [n.op for n in graph.nodes] == ["Resize"]


@pytest.mark.parametrize(
    ("start", "end", "size"),
    [(0, 2**63 - 1, "n"), (1, 2**63 - 1, "-1 + n"), (0, -1, "-1 + n"), (-1, 2**63 - 1, "1")],
)
def test_slices_of_a_symbolic_size(start: int, end: int, size: str) -> None:
    nodes = [node("Slice", ["x", "start", "end"], "y")]
    constants = {"start": i64(start), "end": i64(end)}
    graph = load(model(nodes, {"x": ["n", 3]}, ["y"], constants))
    dim = graph.types["y"].shape[0]
    for n in (1, 2, 9):
        assert evaluate(dim, {"n": n}) == len(range(n)[slice(start, min(end, n))]), (str(dim), size)


def test_pooled_sizes_are_floor_divisions() -> None:
    nodes = [node("MaxPool", ["x"], "y", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])]
    graph = load(model(nodes, {"x": ["n", 8, "h", 7]}, ["y"]))
    shape = graph.types["y"].shape
    assert [evaluate(d, {"n": 2, "h": 9}) for d in shape] == [2, 8, 5, 4]


def test_range_over_a_symbolic_size() -> None:
    nodes = [
        node("Shape", ["x"], "s"),
        node("Squeeze", ["s"], "n"),
        node("Range", ["zero", "n", "one"], "y"),
    ]
    constants = {"zero": np.array(0), "one": np.array(1)}
    made = model(nodes, {"x": ["n"]}, ["y"], constants)
    made.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    graph = load(made)
    assert str(graph.types["y"]) == "int64[n]"


def test_table_that_is_too_short_is_checked_when_it_runs() -> None:
    """A position table of 512 rows, sliced to the length of the input and added."""
    nodes = [
        node("Shape", ["x"], "n", start=0, end=1),
        node("Slice", ["table", "zero", "n"], "rows"),
        node("Add", ["x", "rows"], "y"),
    ]
    constants = {"zero": i64(0), "table": np.zeros((512, 4), np.float32)}
    graph = load(model(nodes, {"x": ["n", 4]}, ["y"], constants))
    assert str(graph.types["rows"]) == "float32[n, 4]"
    (check,) = graph.checks
    for n, fits in ((3, True), (512, True), (513, False)):
        assert (evaluate(check.left, {"n": n}) == evaluate(check.right, {"n": n})) is fits


# What can be proved

S, T = symbol("s"), symbol("t")


@pytest.mark.parametrize(
    ("a", "b", "certain"),
    [
        (S, 0, True),
        (S, 1, False),
        (S + 1, 1, True),
        (S * T + 3, S * T, True),
        (S, dim_min(S, 512), True),
        (512, dim_min(S, 512), True),
        (dim_max(S, T), T, True),
        (S, S // 2, True),
        ((S // 2) * 2 + 1, S, True),
        (S, (S // 2) * 2, True),
        (S // 2, S, False),
        (S - 1, 0, False),
    ],
)
def test_order(a: Dim, b: Dim, certain: bool) -> None:
    assert symbolic.at_least(a, b) is certain
    for s in range(7):
        for t in range(4):
            values = {"s": s, "t": t}
            if certain:
                assert evaluate(a, values) >= evaluate(b, values)


def test_equality() -> None:
    assert symbolic.equal(S, S) is True
    assert symbolic.equal(S, -1) is False
    assert symbolic.equal(S, S + 1) is False
    assert symbolic.equal(S, T) is None
    assert symbolic.smallest(dim_min(S, 512), 512) == dim_min(S, 512)
    assert symbolic.rewrite(dim_min(S, 512) + 1, {"s": 600}) == 513


def test_older_opsets_in_which_nothing_was_different() -> None:
    def made(op: str, count: int, kind: int) -> bytes:
        graph = helper.make_graph(
            [helper.make_node(op, ["x"] * count, ["y"])], "g",
            [helper.make_tensor_value_info("x", kind, [3])],
            [helper.make_tensor_value_info("y", kind, [3])],
        )  # fmt: skip
        opsets = [helper.make_opsetid("", 1)]
        data: bytes = helper.make_model(
            graph, opset_imports=opsets, ir_version=3
        ).SerializeToString()
        return data

    assert load(made("Not", 1, TensorProto.BOOL)).outputs == ["y"]
    with pytest.raises(UnsupportedError, match="opset 1 is older"):
        load(made("Add", 2, TensorProto.FLOAT))
