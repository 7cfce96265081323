"""Models that are valid protobuf and nonsense: each is one clear error, soon and in little memory.

What such a model says of sizes, counts and types is checked before anything is made of it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from pywebgpu.compile import compile_model
from pywebgpu.errors import ModelError, PywebgpuError, UnsupportedError

F, I = TensorProto.FLOAT, TensorProto.INT64  # noqa: E741
HUGE = 1 << 62
node = helper.make_node


def model(
    nodes: list[onnx.NodeProto],
    shape: list[int] | None = None,
    functions: list[onnx.FunctionProto] | None = None,
    /,
    **constants: Any,
) -> bytes:
    """x: float[3, 3], or of that shape -> y, through `nodes`. Constants are arrays or numbers."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", F, [3, 3] if shape is None else shape)],
        [helper.make_tensor_value_info("y", F, None)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("f", 1)]
    made = helper.make_model(graph, functions=functions or [], opset_imports=opsets, ir_version=9)
    return bytes(made.SerializeToString())


def summed(op: str, inputs: list[str], **constants: Any) -> bytes:
    """y = x + sum(op(constants)): the operator's result is never an output, so no buffer need hold
    it."""
    nodes = [
        node(op, inputs, ["huge"]),
        node("Cast", ["huge"], ["floats"], to=F),
        node("ReduceSum", ["floats"], ["sum"]),
        node("Add", ["x", "sum"], ["y"]),
    ]
    return model(nodes, **constants)


def resized(scale: float) -> bytes:
    scales = np.array([scale, 1], np.float32)
    return model([node("Resize", ["x", "", "scales"], ["y"])], scales=scales)


def bomb() -> bytes:
    """A function of two calls of the next, which ... 2^30 nodes in a file of a few kilobytes."""
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("f", 1)]
    functions = []
    for i in range(31):
        calls = [node(f"F{i + 1}", [a], [b], domain="f") for a, b in ("am", "mb")]
        nodes = calls if i < 30 else [node("Relu", ["a"], ["b"])]
        functions.append(helper.make_function("f", f"F{i}", ["a"], ["b"], nodes, opsets))
    return model([node("F0", ["x"], ["y"], domain="f")], None, functions)


def whole(array: Any) -> np.ndarray:
    return np.array(array, np.int64)


HOSTILE: dict[str, tuple[Callable[[], bytes], tuple[str, ...]]] = {
    "Reshape to 2^62": (
        lambda: model([node("Reshape", ["x", "s"], ["y"])], s=whole([HUGE])), ("Reshape 'y'", "9")
    ),
    "Expand to 2^62": (
        lambda: model([node("Expand", ["x", "s"], ["y"])], s=whole([HUGE, 1, 1])), ("Expand 'y'",)
    ),
    "Expand to 2^40 of two axes": (
        lambda: summed("Expand", ["c", "s"], c=np.float32(1), s=whole([1 << 20, 1 << 20])),
        ("1,099,511,627,776 elements",),
    ),
    "ConstantOfShape of a negative size": (
        lambda: summed("ConstantOfShape", ["s"], s=whole([-2])), ("ConstantOfShape 'huge'", "-2")
    ),
    "Tile to 2^40": (
        lambda: summed("Tile", ["c", "s"], c=np.ones((2, 2), np.float32), s=whole([1 << 20] * 2)),
        ("elements",),
    ),
    "Pad by 2^31": (
        lambda: model([node("Pad", ["x", "p"], ["y"])], p=whole([1 << 31] * 4)), ("Pad 'y'",)
    ),
    "Range to infinity": (
        lambda: summed("Range", [*"oio"], o=np.float32(1), i=np.float32(np.inf)),
        ("Range 'huge'", "inf"),
    ),
    "Range of a tiny step": (
        lambda: summed("Range", list("abc"), a=np.float32(0), b=np.float32(1), c=np.float32(1e-30)),
        ("Range 'huge'", "out of range"),
    ),
    "Range of 2^62": (
        lambda: summed("Range", list("abc"), a=whole(0), b=whole(HUGE), c=whole(1)), (str(HUGE),)
    ),
    "Resize by infinity": (lambda: resized(float("inf")), ("Resize 'y'", "inf")),
    "Resize by NaN": (lambda: resized(float("nan")), ("Resize 'y'", "nan")),
    "Resize by 0": (lambda: resized(0.0), ("Resize 'y'", "0.0")),
    "doubled 60 times": (
        lambda: model(
            [node("Concat", [f"x{i}" if i else "x"] * 2, [f"x{i + 1}"], axis=0) for i in range(60)]
            + [node("ReduceSum", ["x60"], ["y"])]
        ),
        ("Concat", "out of range"),
    ),
    "constant doubled 60 times": (
        lambda: model(
            [node("Concat", [f"c{i}"] * 2, [f"c{i + 1}"], axis=0) for i in range(60)]
            + [node("ReduceSum", ["c60"], ["sum"]), node("Add", ["x", "sum"], ["y"])],
            c0=np.ones(16, np.float32),
        ),
        ("Concat", "out of range"),
    ),
    "functions of functions": (bomb, ("1,073,741,824 nodes",)),
    "rank 500": (lambda: model([node("Relu", ["x"], ["y"])], [1] * 500), ("64",)),
    "blocks of 0": (
        lambda: model([node("DepthToSpace", ["x"], ["y"], blocksize=0)], [1, 4, 2, 2]),
        ("DepthToSpace 'y'", "blocksize"),
    ),
    "blocks of a matrix": (
        lambda: model([node("DepthToSpace", ["x"], ["y"], blocksize=2)]), ("rank 4",)
    ),
    "a window of 0 channels": (
        lambda: model([node("LRN", ["x"], ["y"], size=0)], [1, 4, 2, 2]), ("LRN 'y'", "size")
    ),
    "stride 2^31": (
        lambda: model(
            [node("MaxPool", ["x"], ["y"], kernel_shape=[1], strides=[1 << 31])], [1, 1, 8]
        ),
        ("MaxPool 'y'", "stride"),
    ),
    "stride 0 of a transposed convolution": (
        lambda: model(
            [node("ConvTranspose", ["x", "w"], ["y"], strides=[0])],
            [1, 1, 8],
            w=np.ones((1, 1, 3), np.float32),
        ),
        ("ConvTranspose 'y'", "strides [0]"),
    ),
    "groups that do not divide": (
        lambda: model(
            [node("GroupNormalization", ["x", "s", "s"], ["y"], num_groups=2)],
            s=np.ones(3, np.float32),
        ),
        ("GroupNormalization 'y'", "got 2"),
    ),
    "a letter from nowhere": (
        lambda: model([node("Einsum", ["x", "x"], ["y"], equation="ij,jk->iz")]), ("ij,jk->iz",)
    ),
    "fewer terms than inputs": (
        lambda: model([node("Einsum", ["x", "x"], ["y"], equation="ij")]), ("2 inputs",)
    ),
    "integers added to floats": (
        lambda: model([node("Add", ["x", "i"], ["y"])], i=whole([1, 2, 3])),
        ("Add 'y'", "float32[3, 3]", "int64[3]"),
    ),
    "a sine of integers": (
        lambda: model([node("Sin", ["i"], ["y"])], i=whole([1])), ("Sin 'y'", "int64", "float")
    ),
    "a row picked from nowhere": (
        lambda: model([node("Gather", ["x", "i"], ["y"])], i=whole([3])), ("Gather 'y'", "3")
    ),
    "more inputs scanned than there are": (
        lambda: model(
            [
                node(
                    "Scan",
                    ["x"],
                    ["y"],
                    num_scan_inputs=HUGE,
                    body=helper.make_graph(
                        [node("Relu", ["a"], ["b"])],
                        "body",
                        [helper.make_tensor_value_info("a", F, [3])],
                        [helper.make_tensor_value_info("b", F, [3])],
                    ),
                )
            ]
        ),
        ("num_scan_inputs",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_model(kind: str) -> None:
    make, mentions = HOSTILE[kind]
    data = make()
    start = time.process_time()
    with pytest.raises((ModelError, UnsupportedError)) as caught:
        compile_model(data)
    assert time.process_time() - start < 10
    for text in mentions:
        assert text in str(caught.value)


SHARED: dict[str, Callable[[], list[onnx.NodeProto]]] = {
    "sums": lambda: [node("Add", [f"x{i}"] * 2, [f"x{i + 1}"]) for i in range(100)],
    "moved pieces": lambda: [
        n
        for i in range(0, 40, 2)
        for n in (
            node("Concat", [f"x{i}"] * 2, [f"x{i + 1}"], axis=0),
            node("Slice", [f"x{i + 1}", "one", "four"], [f"x{i + 2}"]),
        )
    ],
    "one of 2,000": lambda: [node("Sum", ["x0"] * 2000, ["x1"])],
}


@pytest.mark.parametrize("kind", SHARED)
def test_values_read_twice_by_values_read_twice(kind: str) -> None:
    """Expressions in which a value occurs 2^20 times are not written out so often."""
    nodes = SHARED[kind]()
    last = nodes[-1].output[0]
    nodes = [node("Abs", ["x"], ["x0"]), *nodes, node("Tanh", [last], ["y"])]
    start = time.process_time()
    compiled = compile_model(model(nodes, one=whole([1]), four=whole([4])))
    assert time.process_time() - start < 10
    assert len(compiled.plan.kernels) < 100


def test_onnx_is_asked_whose_fault_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure that nobody foresaw is the model's where ONNX refuses the model, and else ours."""

    def fail(*_: object) -> None:
        raise KeyError("nobody")

    monkeypatch.setattr("pywebgpu.compile.optimise", fail)
    with pytest.raises(KeyError, match="nobody"):
        compile_model(model([node("Relu", ["x"], ["y"])]))
    sample = [node("GridSample", ["x", "grid"], ["y"])]
    with pytest.raises(ModelError, match=r"GridSample.*rank"):
        compile_model(model(sample, [1, 1, 3, 3], grid=np.zeros((1, 3, 2), np.float32)))


NUMBERS = st.sampled_from([0, 1, -1, 2, 3, 7, 1 << 16, 1 << 31, (1 << 31) - 1, HUGE, -HUGE])
FIELDS: dict[str, dict[str, Any]] = {
    "Conv": {"strides": 2, "dilations": 2, "pads": 4, "kernel_shape": 2, "group": 0},
    "ConvTranspose": {"strides": 2, "dilations": 2, "pads": 4, "output_padding": 2, "group": 0},
    "MaxPool": {"kernel_shape": 2, "strides": 2, "pads": 4, "dilations": 2, "ceil_mode": 0},
    "AveragePool": {"kernel_shape": 2, "strides": 2, "pads": 4, "count_include_pad": 0},
    "DepthToSpace": {"blocksize": 0},
    "LRN": {"size": 0},
    "Softmax": {"axis": 0},
    "Transpose": {"perm": 4},
    "Concat": {"axis": 0},
    "Split": {"axis": 0, "num_outputs": 0},
    "ArgMax": {"axis": 0, "keepdims": 0},
    "Flatten": {"axis": 0},
    "LpNormalization": {"axis": 0, "p": 0},
}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_attributes_of_any_size(data: st.DataObject) -> None:
    """An operator with whatever numbers is compiled, or a PywebgpuError."""
    op = data.draw(st.sampled_from(sorted(FIELDS)))
    attributes: dict[str, Any] = {}
    for name, length in FIELDS[op].items():
        if data.draw(st.booleans()):
            small = st.one_of(st.integers(0, 3), NUMBERS)
            attributes[name] = (
                data.draw(st.lists(small, min_size=length - 1, max_size=length + 1))
                if length
                else data.draw(small)
            )
    inputs = ["x", "w"] if op.startswith("Conv") else ["x"]
    shape = data.draw(st.lists(st.sampled_from([0, 1, 3, 4, 1 << 20]), min_size=3, max_size=4))
    weight = np.ones((4, 4, 3, 3), np.float32)
    with contextlib.suppress(PywebgpuError):
        compile_model(model([node(op, inputs, ["y"], **attributes)], shape, w=weight))
