"""Lowering: what fuses, what becomes a view, when a buffer is written; checked by playing plans."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pywebgpu.codegen.spec import Conv, Matmul, family
from pywebgpu.compile import Compiled, compile_model
from pywebgpu.errors import UnsupportedError
from tests.plan_eval import play

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(0)


def _model(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, list[Any]]],
    outputs: list[str],
    constants: dict[str, Array] | None = None,
    opset: int = 20,
) -> bytes:
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(n, t, s) for n, (t, s) in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        [numpy_helper.from_array(a, n) for n, a in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[
        helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1),
    ])  # fmt: skip
    model.ir_version = 9
    data: bytes = onnx.shape_inference.infer_shapes(model).SerializeToString()
    return data


def _float(*shape: Any) -> tuple[int, list[Any]]:
    return TensorProto.FLOAT, list(shape)


def _array(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def _families(compiled: Compiled) -> list[str]:
    plan = compiled.plan
    return [family(plan.kernels[step.kernel]) for step in plan.steps]


def _against_ort(model: bytes, compiled: Compiled, feeds: dict[str, Array]) -> None:
    ort = pytest.importorskip("onnxruntime")
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    got = play(compiled, feeds)
    for port, want in zip(session.get_outputs(), session.run(None, feeds), strict=True):
        assert got[port.name].shape == want.shape
        np.testing.assert_allclose(got[port.name], want, rtol=1e-4, atol=1e-5)


def test_elementwise_chain_is_one_kernel() -> None:
    model = _model(
        [
            helper.make_node("Add", ["x", "b"], ["s"]),
            helper.make_node("Sigmoid", ["s"], ["g"]),
            helper.make_node("Mul", ["s", "g"], ["y"]),
        ],
        {"x": _float("n", 6)},
        ["y"],
        {"b": _array(6)},
    )
    compiled = compile_model(model)
    assert _families(compiled) == ["map"]
    _against_ort(model, compiled, {"x": _array(5, 6)})


def test_bias_activation_and_residual_join_the_product() -> None:
    model = _model(
        [
            helper.make_node("MatMul", ["x", "w"], ["p"]),
            helper.make_node("Add", ["p", "b"], ["q"]),
            helper.make_node("Relu", ["q"], ["r"]),
            helper.make_node("Add", ["r", "x"], ["y"]),
        ],
        {"x": _float("n", 3, 8)},
        ["y"],
        {"w": _array(8, 8), "b": _array(8)},
    )
    compiled = compile_model(model)
    assert _families(compiled) == ["matmul"]
    assert compiled.plan.kernels[0].b is None  # type: ignore[union-attr]
    _against_ort(model, compiled, {"x": _array(4, 3, 8)})


def test_diamond_behind_a_product_is_its_epilogue() -> None:
    model = _model(
        [
            helper.make_node("MatMul", ["x", "w"], ["p"]),
            helper.make_node("Sigmoid", ["p"], ["g"]),
            helper.make_node("Mul", ["p", "g"], ["y"]),
        ],
        {"x": _float("n", 8)},
        ["y"],
        {"w": _array(8, 5)},
    )
    compiled = compile_model(model)
    assert _families(compiled) == ["matmul"]
    _against_ort(model, compiled, {"x": _array(4, 8)})


def test_two_products_added_are_two_kernels() -> None:
    model = _model(
        [
            helper.make_node("MatMul", ["x", "w"], ["p"]),
            helper.make_node("MatMul", ["z", "v"], ["q"]),
            helper.make_node("Add", ["p", "q"], ["y"]),
        ],
        {"x": _float("n", 8), "z": _float("n", 4)},
        ["y"],
        {"w": _array(8, 5), "v": _array(4, 5)},
    )
    compiled = compile_model(model)
    assert _families(compiled) == ["matmul", "matmul"]
    _against_ort(model, compiled, {"x": _array(4, 8), "z": _array(4, 4)})


def test_head_split_is_a_view_on_both_sides() -> None:
    """Transposes and reshapes around a batched product cost nothing."""
    shape = np.array([0, 0, 4, 8], np.int64)
    merged = np.array([0, 0, 32], np.int64)
    model = _model(
        [
            helper.make_node("Reshape", ["x", "shape"], ["a"]),
            helper.make_node("Transpose", ["a"], ["q"], perm=[0, 2, 1, 3]),
            helper.make_node("Transpose", ["a"], ["k"], perm=[0, 2, 3, 1]),
            helper.make_node("MatMul", ["q", "k"], ["s"]),
            helper.make_node("MatMul", ["s", "q"], ["c"]),
            helper.make_node("Transpose", ["c"], ["t"], perm=[0, 2, 1, 3]),
            helper.make_node("Reshape", ["t", "merged"], ["y"]),
        ],
        {"x": _float("n", "s", 32)},
        ["y"],
        {"shape": shape, "merged": merged},
    )
    compiled = compile_model(model)
    assert _families(compiled) == ["matmul", "matmul"]
    _against_ort(model, compiled, {"x": _array(2, 5, 32)})


@pytest.mark.parametrize("biased", [False, True])
def test_scaled_query_joins_key_and_value(biased: bool) -> None:
    """Whisper multiplies the query by its scale before it is split into heads."""
    ends = ["q", "k", "v"]
    heads = np.array([0, 0, 2, 8], np.int64)
    constants: dict[str, Array] = {f"w{e}": _array(12, 16) for e in ends}
    constants |= {"heads": heads, "half": np.array(0.5, np.float32), "bias": _array(16)}
    nodes = [helper.make_node("MatMul", ["x", f"w{e}"], [f"{e}0"]) for e in ends]
    first = "q0"
    if biased:
        nodes.append(helper.make_node("Add", ["q0", "bias"], ["q1"]))
        first = "q1"
    nodes += [
        helper.make_node("Mul", [first, "half"], ["q2"]),
        *(
            helper.make_node("Reshape", [name, "heads"], [f"{e}3"])
            for e, name in zip(ends, ["q2", "k0", "v0"], strict=True)
        ),
        helper.make_node("Transpose", ["q3"], ["q4"], perm=[0, 2, 1, 3]),
        helper.make_node("Transpose", ["k3"], ["k4"], perm=[0, 2, 3, 1]),
        helper.make_node("Transpose", ["v3"], ["v4"], perm=[0, 2, 1, 3]),
        helper.make_node("MatMul", ["q4", "k4"], ["s"]),
        helper.make_node("Softmax", ["s"], ["p"], axis=-1),
        helper.make_node("MatMul", ["p", "v4"], ["y"]),
    ]
    model = _model(nodes, {"x": _float("n", "s", 12)}, ["y"], constants)
    compiled = compile_model(model)
    assert _families(compiled) == ["matmul", "attention"]
    _against_ort(model, compiled, {"x": _array(2, 5, 12)})


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_products_in_blocks_are_joined(bits: int, zeros: bool) -> None:
    """Query, key and value with a bias and a factor, then gate and up; three blocks of k."""
    k, size, widths = 48, 16, {"q": 32, "k": 16, "v": 16, "gate": 24, "up": 24, "odd": 8}
    constants: dict[str, Array] = {"half": np.array(0.5, np.float32), "bias": _array(32)}
    nodes = []

    def product(source: str, name: str, k: int, size: int = size) -> None:
        n, blocks = widths[name], -(-k // size)
        given = {"codes": RNG.integers(0, 256, (n, blocks, size * bits // 8), np.uint8)}
        given["scales"] = RNG.uniform(0.005, 0.05, (n, blocks)).astype(np.float32)
        if zeros:
            given["zeros"] = RNG.integers(0, 256, (n, -(-blocks * bits // 8)), np.uint8)
        constants.update({f"{name} {part}": array for part, array in given.items()})
        nodes.append(helper.make_node(
            "MatMulNBits", [source, *(f"{name} {part}" for part in given)], [name],
            domain="com.microsoft", K=k, N=n, bits=bits, block_size=size,
        ))  # fmt: skip

    for name in ("q", "k", "v"):
        product("x", name, k)
    product("x", "odd", k, 32)
    nodes += [
        helper.make_node("Add", ["q", "bias"], ["q1"]),
        helper.make_node("Mul", ["q1", "half"], ["q2"]),
        helper.make_node("Concat", ["q2", "v", "k", "odd"], ["y"], axis=-1),
    ]
    for name in ("gate", "up"):
        product("z", name, k)
    nodes += [
        helper.make_node("Sigmoid", ["gate"], ["g"]),
        helper.make_node("Mul", ["gate", "g"], ["silu"]),
        helper.make_node("Mul", ["silu", "up"], ["both"]),
    ]
    widths["down"] = 16
    product("both", "down", 24)
    model = _model(nodes, {"x": _float("n", k), "z": _float("n", k)}, ["y", "down"], constants, 21)
    compiled = compile_model(model)
    assert _families(compiled).count("matmul") == 4
    gpu = compiled.plan.on_gpu
    assert sum(family(gpu.kernels[s.kernel]) == "matmul" for s in gpu.steps) == 4
    made = [gpu.kernels[s.kernel] for s in gpu.steps]
    assert any(isinstance(m, Matmul) and m.n == 64 for m in made)
    assert any(isinstance(m, Matmul) and m.n == 48 for m in made)
    assert isinstance(made[-1], Matmul)
    assert made[-1].prologue is not None
    _against_ort(model, compiled, {"x": _array(3, k), "z": _array(3, k)})


def test_sizes_outlive_the_nodes_that_made_them() -> None:
    """A number that follows from sizes is an operand though no node makes it any more."""
    model = _model(
        [
            helper.make_node("Shape", ["x"], ["sizes"]),
            helper.make_node("Gather", ["sizes", "one"], ["s"]),
            helper.make_node("Sub", ["s", "one"], ["last"]),
            helper.make_node("Unsqueeze", ["last", "zero"], ["limit"]),
            helper.make_node("LessOrEqual", ["ids", "limit"], ["ok"]),
            helper.make_node("Where", ["ok", "x", "nothing"], ["y"]),
        ],
        {"x": _float("n", "s"), "ids": (TensorProto.INT64, ["n", "s"])},
        ["y"],
        {
            "one": np.array(1, np.int64),
            "zero": np.array([0], np.int64),
            "nothing": np.array(0.0, np.float32),
        },
    )
    compiled = compile_model(model)
    assert _families(compiled) == ["map"]
    feeds = {"x": _array(2, 5), "ids": np.array([[3, 4, 5, 6, 0]] * 2, np.int64)}
    _against_ort(model, compiled, feeds)


def _rotary(swap: bool = False) -> bytes:
    """Queries of 4 heads and keys of 2, turned by their positions; `swap`: each in its own way."""
    constants: dict[str, Array] = {
        "wq": _array(12, 32), "wk": _array(12, 16),
        "h": np.array([0, 0, -1, 8], np.int64),
        "i0": np.array([0], np.int64), "i4": np.array([4], np.int64),
        "i8": np.array([8], np.int64), "last": np.array([3], np.int64),
    }  # fmt: skip
    nodes = []
    for e, angle in (("q", ["cos", "sin"]), ("k", ["sin", "cos"] if swap else ["cos", "sin"])):
        nodes += [
            helper.make_node("MatMul", ["x", f"w{e}"], [f"{e}0"]),
            helper.make_node("Reshape", [f"{e}0", "h"], [f"{e}1"]),
            helper.make_node("Transpose", [f"{e}1"], [f"{e}2"], perm=[0, 2, 1, 3]),
            helper.make_node("Slice", [f"{e}2", "i0", "i4", "last"], [f"{e}a"]),
            helper.make_node("Slice", [f"{e}2", "i4", "i8", "last"], [f"{e}b"]),
            helper.make_node("Neg", [f"{e}b"], [f"{e}c"]),
            helper.make_node("Concat", [f"{e}c", f"{e}a"], [f"{e}d"], axis=-1),
            helper.make_node("Mul", [f"{e}2", angle[0]], [f"{e}e"]),
            helper.make_node("Mul", [f"{e}d", angle[1]], [f"{e}f"]),
            helper.make_node("Add", [f"{e}e", f"{e}f"], [e]),
        ]
        nodes.append(helper.make_node("Transpose", [e], [f"{e}t"], perm=[0, 1, 3, 2]))
        nodes.append(helper.make_node("MatMul", [e, f"{e}t"], [f"{e}y"]))
    inputs = {"x": _float("n", "s", 12), "cos": _float("s", 8), "sin": _float("s", 8)}
    return _model(nodes, inputs, ["qy", "ky"], constants)


@pytest.mark.parametrize("swap", [False, True])
def test_queries_and_keys_are_turned_together(swap: bool) -> None:
    model = _rotary(swap)
    compiled = compile_model(model)
    assert _families(compiled).count("map") == (2 if swap else 1)
    feeds = {"x": _array(2, 5, 12), "cos": _array(5, 8), "sin": _array(5, 8)}
    _against_ort(model, compiled, feeds)


def test_convolutions_are_channels_last_between_themselves() -> None:
    model = _model(
        [
            helper.make_node("Conv", ["x", "w", "b"], ["a"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["a"], ["r"]),
            helper.make_node("Conv", ["r", "v"], ["c"], pads=[1, 1, 1, 1], strides=[2, 2]),
            helper.make_node("Conv", ["c", "u"], ["d"]),
            helper.make_node("Conv", ["d", "t"], ["y"]),
        ],
        {"x": _float("n", 3, "h", "w_")},
        ["y"],
        {
            "w": _array(8, 3, 3, 3),
            "b": _array(8),
            "v": _array(6, 8, 3, 3),
            "u": _array(4, 6, 1, 1),
            "t": _array(2, 4, 1, 1),
        },
    )
    compiled = compile_model(model)
    assert _families(compiled) == ["conv", "conv", "matmul", "conv"]
    first, second, last = (k for k in compiled.plan.kernels if isinstance(k, Conv))
    assert first.x.strides[3] != 1, "the input is read as it lies: NCHW"
    assert first.out.strides[3] == second.x.strides[3] == 1
    assert last.out.strides[3] != 1, "the output is stored as it must lie: NCHW"
    _against_ort(model, compiled, {"x": _array(2, 3, 9, 7)})


def test_flatten_behind_pooling_stays_in_the_plan_once() -> None:
    model = _model(
        [
            helper.make_node("Conv", ["x", "w"], ["a"]),
            helper.make_node("MaxPool", ["a"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
            helper.make_node("Flatten", ["p"], ["f"]),
            helper.make_node("Gemm", ["f", "g"], ["y"]),
        ],
        {"x": _float("n", 1, 7, 7)},
        ["y"],
        {"w": _array(4, 1, 3, 3), "g": _array(16, 3)},
    )
    compiled = compile_model(model)
    assert _families(compiled) == ["conv", "reduce", "matmul"]
    _against_ort(model, compiled, {"x": _array(2, 1, 7, 7)})


def test_equal_layers_share_kernels() -> None:
    nodes, constants, name = [], {}, "x"
    for i in range(3):
        constants[f"w{i}"] = _array(8, 8)
        nodes.append(helper.make_node("MatMul", [name, f"w{i}"], [f"p{i}"]))
        nodes.append(helper.make_node("Tanh", [f"p{i}"], [f"t{i}"]))
        name = f"t{i}"
    compiled = compile_model(_model(nodes, {"x": _float("n", 8)}, [name], constants))
    assert len(compiled.plan.steps) == 3
    assert len(compiled.plan.kernels) == 1


def test_concat_of_results_is_written_in_place() -> None:
    model = _model(
        [
            helper.make_node("Conv", ["x", "w"], ["a"]),
            helper.make_node("Conv", ["x", "v"], ["b"]),
            helper.make_node("Concat", ["a", "b"], ["y"], axis=1),
            helper.make_node("MaxPool", ["y"], ["z"], kernel_shape=[2, 2]),
        ],
        {"x": _float(1, 3, 6, 6)},
        ["z"],
        {"w": _array(4, 3, 3, 3), "v": _array(5, 3, 3, 3)},
    )
    compiled = compile_model(model)
    assert _families(compiled) == ["conv", "conv", "reduce"]
    _against_ort(model, compiled, {"x": _array(1, 3, 6, 6)})


def test_concat_of_one_value_with_itself() -> None:
    model = _model(
        [
            helper.make_node("ReduceMean", ["x", "axes"], ["r"], keepdims=0),
            helper.make_node("Concat", ["r", "r"], ["y"], axis=1),
        ],
        {"x": _float("n", 4, 6)},
        ["y"],
        {"axes": np.array([1])},
    )
    _against_ort(model, compile_model(model), {"x": _array(3, 4, 6)})


def test_embedding_and_logits_share_one_table() -> None:
    table = _array(700, 400)
    model = _model(
        [
            helper.make_node("Gather", ["table", "ids"], ["e"]),
            helper.make_node("Tanh", ["e"], ["h"]),
            helper.make_node("MatMul", ["h", "head"], ["y"]),
        ],
        {"ids": (TensorProto.INT64, ["n", 3])},
        ["y"],
        {"table": table, "head": np.ascontiguousarray(table.T)},
    )
    compiled = compile_model(model)
    assert compiled.plan.weight_bytes < 1.1 * table.nbytes
    _against_ort(model, compiled, {"ids": np.array([[0, 699, -1], [5, 8, 7]])})


def test_operand_limit_holds() -> None:
    names = [f"x{i}" for i in range(12)]
    model = _model(
        [helper.make_node("Sum", names, ["y"])], {n: _float("n", 4) for n in names}, ["y"]
    )
    compiled = compile_model(model)
    assert all(len(k.operands) <= 7 for k in compiled.plan.kernels)
    _against_ort(model, compiled, {n: _array(3, 4) for n in names})


def test_operand_limit_holds_where_virtual_values_meet() -> None:
    names = [f"x{i}" for i in range(12)]
    nodes = [helper.make_node("Sum", names[i : i + 4], [f"s{i}"]) for i in (0, 4, 8)]
    model = _model(
        [
            *nodes,
            helper.make_node("Concat", ["s0", "s4", "s8"], ["y"], axis=1),
            helper.make_node("Cast", ["s0"], ["i"], to=TensorProto.INT64),
            helper.make_node("GatherElements", ["s4", "i"], ["z"], axis=1),
        ],
        {n: _float("n", 4) for n in names},
        ["y", "z"],
    )
    compiled = compile_model(model)
    assert all(len(k.operands) <= 7 for k in compiled.plan.kernels)
    feeds = {n: np.zeros((3, 4), np.float32) for n in names} | {"x5": _array(3, 4)}
    _against_ort(model, compiled, feeds)


def test_outputs_that_are_inputs_or_named_twice_are_copies() -> None:
    model = _model(
        [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Identity", ["x"], ["z"])],
        {"x": _float("n", 4)},
        ["y", "z"],
    )
    compiled = compile_model(model)
    buffers = [p.buffer for p in (*compiled.plan.inputs, *compiled.plan.outputs)]
    assert len(set(buffers)) == 3
    _against_ort(model, compiled, {"x": _array(3, 4)})


@pytest.mark.parametrize("size", [0, 1, 3])
def test_empty_and_single_batches(size: int) -> None:
    model = _model(
        [
            helper.make_node("MatMul", ["x", "w"], ["p"]),
            helper.make_node("Softmax", ["p"], ["y"], axis=-1),
        ],
        {"x": _float("n", 4)},
        ["y"],
        {"w": _array(4, 5)},
    )
    compiled = compile_model(model)
    got = play(compiled, {"x": _array(size, 4)})["y"]
    assert got.shape == (size, 5)


def test_all_unsupported_nodes_are_named_at_once() -> None:
    graph = helper.make_graph(
        [
            helper.make_node("NoSuchOperator", ["b", "s"], ["i"], name="first"),
            helper.make_node("NorThisOne", ["x"], ["u"], name="second"),
        ],
        "test",
        [
            helper.make_tensor_value_info("x", *_float(4)),
            helper.make_tensor_value_info("b", *_float(1, 4, 4)),
            helper.make_tensor_value_info("s", *_float(1, 1, 4)),
        ],
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, None),
            helper.make_tensor_value_info("u", TensorProto.FLOAT, None),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    with pytest.raises(UnsupportedError) as caught:
        compile_model(model.SerializeToString())
    assert "first" in str(caught.value)
    assert "second" in str(caught.value)
