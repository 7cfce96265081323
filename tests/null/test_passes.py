"""Passes keep a graph's meaning, and recognise what they are there for.

Meaning is ONNX Runtime's: the file before, the graph after (`tests/graph_eval.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pywebgpu.graph import INTERNAL, Graph
from pywebgpu.load import load
from pywebgpu.passes.pipeline import optimise
from tests.graph_eval import run_graph, run_onnx

F, I = TensorProto.FLOAT, TensorProto.INT64  # noqa: E741
Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(7)


def floats(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


class Builder:
    """A model written line by line: `b("Add", x, y)` gives the name of the result."""

    def __init__(self, opset: int = 20) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, shape: list[int | str], kind: int = F) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def constant(self, value: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def __call__(self, op: str, *inputs: Any, outputs: int = 1, **attrs: Any) -> Any:
        names = [i if isinstance(i, str) else self.constant(i) for i in inputs]
        out = [f"v{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, names, out, **attrs))
        return out[0] if outputs == 1 else out

    def model(self, *outputs: str) -> onnx.ModelProto:
        infos = [helper.make_tensor_value_info(o, F, None) for o in outputs]
        for info in infos:
            info.type.tensor_type.ClearField("shape")
        graph = helper.make_graph(self.nodes, "g", self.inputs, infos, self.constants)
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        made = helper.make_model(graph, opset_imports=opsets)
        made.ir_version = 9
        return made


def optimised(made: onnx.ModelProto, tolerance: float = 1e-5, **feeds: Array) -> Graph:
    """The graph after all passes, once its results are those of the model."""
    expected = run_onnx(made, feeds)
    graph = optimise(load(made))
    found = run_graph(graph, feeds)
    for name, array in expected.items():
        scale = max(float(np.max(np.abs(array), initial=0)), 1e-6)
        np.testing.assert_allclose(found[name], array, rtol=0, atol=tolerance * scale)
    again = Counter(n.op for n in graph.nodes)
    optimise(graph)
    assert Counter(n.op for n in graph.nodes) == again, "the passes do not settle"
    return graph


def ops(graph: Graph) -> list[str]:
    return [n.op for n in graph.nodes]


def attention(graph: Graph) -> Any:
    (node,) = [n for n in graph.nodes if n.domain == INTERNAL]
    assert node.op == "Attention"
    return node


# Cleaning


def test_nodes_that_do_nothing_go() -> None:
    b = Builder()
    x = b.input("x", ["n", 4])
    y = b("Identity", x)
    y = b("Dropout", y)
    y = b("Cast", y, to=F)
    y = b("Add", y, np.zeros(1, np.float32))
    y = b("Transpose", b("Transpose", y, perm=[1, 0]), perm=[1, 0])
    y = b("Reshape", b("Reshape", y, np.array([-1])), np.array([-1, 4]))
    y = b("Slice", y, np.array([0]), np.array([2**63 - 1]), np.array([0]))
    graph = optimised(b.model(b("Relu", y)), x=floats(3, 4))
    assert ops(graph) == ["Relu"]


def test_outputs_that_are_inputs_or_constants_survive() -> None:
    b = Builder()
    x = b.input("x", ["n"])
    constant = b("Mul", np.float32([1, 2]), np.float32([3, 4]))
    graph = optimised(b.model(b("Identity", x), constant, b("Identity", b("Relu", x))), x=floats(3))
    assert len(graph.outputs) == 3


def test_equal_nodes_are_computed_once() -> None:
    b = Builder()
    x = b.input("x", [3])
    graph = optimised(b.model(b("Mul", b("Exp", x), b("Exp", x))), x=floats(3))
    assert sorted(ops(graph)) == ["Exp", "Mul"]


def test_transpose_between_reshapes_of_leading_axes() -> None:
    b = Builder()
    x = b.input("x", ["b", 2, "s", 8])
    y = b("Reshape", x, np.array([-1, 0, 8]))
    shape = b("Shape", x)
    s = b("Slice", shape, np.array([2]), np.array([3]))
    y = b("Reshape", x, b("Concat", np.array([-1]), s, np.array([8]), axis=0))
    y = b("Transpose", y, perm=[0, 2, 1])
    y = b("Reshape", y, b("Concat", np.array([-1, 2, 8]), s, axis=0))
    graph = optimised(b.model(y), x=floats(3, 2, 5, 8))
    assert ops(graph) == ["Transpose"]


def test_expand_moves_behind_pointwise_operators() -> None:
    b = Builder()
    x, m = b.input("x", ["b", "s"]), b.input("m", ["b", 1])
    wide = b("Expand", m, b("Shape", x))
    y = b("Add", x, b("Mul", b("Neg", wide), np.float32(2)))
    graph = optimised(b.model(y), x=floats(2, 3), m=floats(2, 1))
    assert "Expand" not in ops(graph)


# Folding into weights


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
def test_batch_norm_joins_the_convolution(bias: bool, groups: int) -> None:
    b = Builder()
    x = b.input("x", ["n", 4, 6, 6])
    extra = [floats(6)] if bias else []
    y = b("Conv", x, floats(6, 4 // groups, 3, 3), *extra, group=groups)
    y = b("BatchNormalization", y, floats(6), floats(6), floats(6), np.abs(floats(6)) + 0.1)
    y = b("Mul", y, floats(6, 1, 1))
    y = b("Add", y, floats(1, 6, 1, 1))
    assert ops(optimised(b.model(y), x=floats(2, 4, 6, 6))) == ["Conv"]


@pytest.mark.parametrize("groups", [1, 2])
def test_batch_norm_joins_the_transposed_convolution(groups: int) -> None:
    b = Builder()
    x = b.input("x", [2, 4, 5, 5])
    y = b("ConvTranspose", x, floats(4, 6 // groups, 3, 3), group=groups)
    y = b("BatchNormalization", y, floats(6), floats(6), floats(6), np.abs(floats(6)) + 0.1)
    assert ops(optimised(b.model(y), x=floats(2, 4, 5, 5))) == ["ConvTranspose"]


@pytest.mark.parametrize("transposed", [0, 1])
def test_batch_norm_joins_the_dense_layer(transposed: int) -> None:
    b = Builder()
    x = b.input("x", ["n", 4])
    w = floats(6, 4) if transposed else floats(4, 6)
    y = b("Gemm", x, w, floats(6), transB=transposed, alpha=0.5, beta=2.0)
    y = b("BatchNormalization", y, floats(6), floats(6), floats(6), np.abs(floats(6)) + 0.1)
    assert ops(optimised(b.model(y), x=floats(3, 4))) == ["Gemm"]


def test_batch_norm_alone_is_a_product_and_a_sum() -> None:
    b = Builder()
    x = b.input("x", ["n", 4, 3])
    y = b("BatchNormalization", x, floats(4), floats(4), floats(4), np.abs(floats(4)) + 0.1)
    assert ops(optimised(b.model(y), x=floats(2, 4, 3))) == ["Mul", "Add"]


def test_shared_convolution_is_left_alone() -> None:
    b = Builder()
    x = b.input("x", [1, 2, 4, 4])
    y = b("Conv", x, floats(2, 2, 1, 1))
    z = b("BatchNormalization", y, floats(2), floats(2), floats(2), np.abs(floats(2)) + 0.1)
    optimised(b.model(b("Add", y, z)), x=floats(1, 2, 4, 4))


# Norms and activations


def layer_norm(b: Builder, x: str, square: str, root: str, affine: bool) -> str:
    axes = np.array([-1])
    d = b("Sub", x, b("ReduceMean", x, axes))
    squared = b("Mul", d, d) if square == "Mul" else b("Pow", d, np.float32(2))
    v = b("Add", b("ReduceMean", squared, axes), np.float32(1e-5))
    if root == "Div":
        y = b("Div", d, b("Sqrt", v))
    elif root == "Reciprocal":
        y = b("Mul", d, b("Reciprocal", b("Sqrt", v)))
    else:
        y = b("Mul", d, b("Pow", v, np.float32(-0.5)))
    if affine:
        y = b("Add", b("Mul", floats(8), y), floats(8))
    return y


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("root", ["Div", "Reciprocal", "Pow"])
@pytest.mark.parametrize("square", ["Mul", "Pow"])
def test_layer_norm(square: str, root: str, affine: bool) -> None:
    b = Builder()
    x = b.input("x", ["n", "s", 8])
    graph = optimised(b.model(layer_norm(b, x, square, root, affine)), x=floats(2, 3, 8))
    assert ops(graph) == ["LayerNormalization"]


@pytest.mark.parametrize("root", ["Div", "Reciprocal", "One"])
def test_rms_norm(root: str) -> None:
    b = Builder()
    x = b.input("x", ["n", "s", 8])
    v = b("ReduceMean", b("Pow", x, np.float32(2)), np.array([-1]))
    r = b("Sqrt", b("Add", v, np.float32(1e-6)))
    if root == "Div":
        y = b("Div", x, r)
    elif root == "One":
        y = b("Mul", x, b("Div", np.float32(1), r))
    else:
        y = b("Mul", x, b("Reciprocal", r))
    graph = optimise(load(b.model(b("Mul", floats(8), y))))
    assert ops(graph) == ["RMSNormalization"]


@pytest.mark.parametrize("form", ["erf", "tanh"])
def test_gelu(form: str) -> None:
    b = Builder()
    x = b.input("x", ["n", 8])
    if form == "erf":
        inner = b("Erf", b("Div", x, np.float32(np.sqrt(2))))
    else:
        cubic = b("Mul", b("Pow", x, np.float32(3)), np.float32(0.044715))
        inner = b("Tanh", b("Mul", b("Add", x, cubic), np.float32(np.sqrt(2 / np.pi))))
    y = b("Mul", b("Mul", x, b("Add", inner, np.float32(1))), np.float32(0.5))
    graph = optimised(b.model(y), x=floats(3, 8))
    assert ops(graph) == ["Gelu"]


def test_a_number_that_is_not_gelu() -> None:
    b = Builder()
    x = b.input("x", [8])
    inner = b("Erf", b("Mul", x, np.float32(0.7)))
    y = b("Mul", b("Mul", x, b("Add", inner, np.float32(1))), np.float32(0.5))
    assert "Gelu" not in ops(optimised(b.model(y), x=floats(8)))


# Attention


def heads(b: Builder, x: str, h: int, perm: list[int]) -> str:
    return str(b("Transpose", b("Reshape", x, np.array([0, 0, h, -1])), perm=perm))


def scores(b: Builder, x: str, y: str, scale: float = 0.25) -> tuple[str, str]:
    """Scaled scores of the projections of x and y, and the values' heads."""
    q = heads(b, b("MatMul", x, floats(16, 16)), 4, [0, 2, 1, 3])
    k = heads(b, b("MatMul", y, floats(16, 16)), 4, [0, 2, 3, 1])
    v = heads(b, b("MatMul", y, floats(16, 16)), 4, [0, 2, 1, 3])
    return b("Mul", b("MatMul", q, k), np.float32(scale)), v


def finish(b: Builder, s: str, v: str) -> str:
    out = b("MatMul", b("Softmax", s, axis=-1), v)
    return str(b("Reshape", b("Transpose", out, perm=[0, 2, 1, 3]), np.array([0, 0, 16])))


def test_attention_reads_projections_as_they_lie() -> None:
    b = Builder()
    x = b.input("x", ["b", "s", 16])
    node = attention(optimised(b.model(finish(b, *scores(b, x, x))), x=floats(2, 5, 16)))
    assert [node.attrs[f"{t}_axes"] for t in ("q", "k", "v", "out")] == ["bshd"] * 4
    assert node.attrs["scale"] == pytest.approx(0.25)
    assert len(node.inputs) == 3
    assert not node.attrs["causal"]


def test_cross_attention_with_an_additive_bias() -> None:
    b = Builder()
    x, y = b.input("x", ["b", "s", 16]), b.input("y", ["b", "t", 16])
    m = b.input("m", ["b", 1, 1, "t"])
    s, v = scores(b, x, y)
    graph = optimised(
        b.model(finish(b, b("Add", s, m), v)),
        x=floats(2, 5, 16), y=floats(2, 3, 16), m=floats(2, 1, 1, 3),
    )  # fmt: skip
    assert attention(graph).inputs[3] == "m"


def test_bias_under_a_factor_is_scaled() -> None:
    b = Builder()
    x, m = b.input("x", ["b", "s", 16]), b.input("m", ["b", 1, 1, "s"])
    s, v = scores(b, x, x)
    s = b("Div", b("Add", s, m), np.float32(2))
    graph = optimised(b.model(finish(b, s, v)), x=floats(2, 5, 16), m=floats(2, 1, 1, 5))
    assert attention(graph).attrs["scale"] == pytest.approx(0.125)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("low", [-np.inf, -3.4028234663852886e38])
def test_masked_scores(keep: bool, low: float) -> None:
    b = Builder()
    x = b.input("x", ["b", "s", 16])
    m = b.input("m", ["b", 1, 1, "s"], TensorProto.BOOL)
    s, v = scores(b, x, x)
    pair = [s, np.float32(low)] if keep else [np.float32(low), s]
    mask = np.array([[1, 1, 0, 1, 1], [1, 0, 0, 1, 1]], bool).reshape(2, 1, 1, 5)
    graph = optimised(b.model(finish(b, b("Where", m, *pair), v)), x=floats(2, 5, 16), m=mask)
    assert len(attention(graph).inputs) == 4


def test_rows_without_any_key_give_zero() -> None:
    b = Builder()
    x = b.input("x", ["b", "s", 16])
    m = b.input("m", ["b", 1, "s", "s"], TensorProto.BOOL)
    s, v = scores(b, x, x)
    s = b("Add", s, b("Where", m, np.float32(0), np.float32(-np.inf)))
    p = b("Softmax", s, axis=-1)
    p = b("Where", b("IsNaN", p), np.float32(0), p)
    mask = RNG.integers(0, 2, (2, 1, 5, 5)).astype(bool)
    mask[0, 0, 2] = False
    graph = optimised(b.model(b("MatMul", p, v)), x=floats(2, 5, 16), m=mask)
    assert attention(graph).attrs["zero_masked_rows"]


def causal_by_range(b: Builder, x: str) -> str:
    n = b("Squeeze", b("Shape", x, start=1, end=2))
    r = b("Range", np.array(0), n, np.array(1))
    q, k = b("Unsqueeze", r, np.array([1])), b("Unsqueeze", r, np.array([0]))
    return str(b("Where", b("LessOrEqual", k, q), np.float32(0), np.float32(-np.inf)))


def causal_by_trilu(b: Builder, x: str) -> str:
    n = b("Shape", x, start=1, end=2)
    fill = b("Expand", np.float32(-np.inf), b("Concat", n, n, axis=0))
    return str(b("Trilu", fill, np.array(1), upper=1))


def causal_by_table(b: Builder, x: str) -> str:
    n = b("Shape", x, start=1, end=2)
    table = b.constant(np.tril(np.ones((1, 1, 32, 32), bool)))
    part = b("Slice", table, np.array([0]), n, np.array([2]))
    part = b("Slice", part, np.array([0]), n, np.array([3]))
    return str(b("Where", part, np.float32(0), np.float32(-3.4028234663852886e38)))


@pytest.mark.parametrize("mask", [causal_by_range, causal_by_trilu, causal_by_table])
def test_causal_masks_become_a_flag(mask: Callable[[Builder, str], str]) -> None:
    b = Builder()
    x = b.input("x", ["b", "s", 16])
    s, v = scores(b, x, x)
    graph = optimised(b.model(finish(b, b("Add", s, mask(b, x)), v)), x=floats(2, 6, 16))
    assert attention(graph).attrs["causal"]
    assert len(attention(graph).inputs) == 3


def test_a_window_is_not_causal() -> None:
    b = Builder()
    x = b.input("x", ["b", "s", 16])
    s, v = scores(b, x, x)
    n = b("Squeeze", b("Shape", x, start=1, end=2))
    r = b("Range", np.array(0), n, np.array(1))
    q, k = b("Unsqueeze", r, np.array([1])), b("Unsqueeze", r, np.array([0]))
    near = b("LessOrEqual", k, b("Add", q, np.array(1)))
    s = b("Add", s, b("Where", near, np.float32(0), np.float32(-np.inf)))
    graph = optimised(b.model(finish(b, s, v)), x=floats(2, 6, 16))
    assert not attention(graph).attrs["causal"]


def test_key_heads_repeated_for_groups_of_queries() -> None:
    b = Builder()
    x = b.input("x", ["b", "s", 16])
    q = heads(b, b("MatMul", x, floats(16, 16)), 4, [0, 2, 1, 3])
    kv = []
    for _ in range(2):
        t = heads(b, b("MatMul", x, floats(16, 8)), 2, [0, 2, 1, 3])
        t = b("Unsqueeze", t, np.array([2]))
        shape = b("Shape", t)
        front = b("Slice", shape, np.array([0]), np.array([2]))
        back = b("Slice", shape, np.array([3]), np.array([5]))
        t = b("Expand", t, b("Concat", front, np.array([2]), back, axis=0))
        n = b("Slice", shape, np.array([3]), np.array([4]))
        t = b("Reshape", t, b("Concat", np.array([-1, 4]), n, np.array([4]), axis=0))
        kv.append(t)
    s = b("MatMul", q, b("Transpose", kv[0], perm=[0, 1, 3, 2]))
    graph = optimised(b.model(finish(b, s, kv[1])), x=floats(2, 5, 16))
    node = attention(graph)
    assert graph.types[node.inputs[1]].shape[node.attrs["k_axes"].index("h")] == 2


def test_single_head_of_rank_three() -> None:
    b = Builder()
    x = b.input("x", ["b", "s", 16])
    s = b("MatMul", x, b("Transpose", x, perm=[0, 2, 1]))
    y = b("MatMul", b("Softmax", s, axis=-1), x)
    attention(optimised(b.model(y), x=floats(2, 5, 16)))


@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("causal", [0, 1])
def test_the_attention_operator(rank: int, causal: int) -> None:
    b = Builder(opset=23)
    if rank == 3:
        q, k, v = (b.input(n, ["b", "s", 16]) for n in "qkv")
        y = b("Attention", q, k, v, q_num_heads=4, kv_num_heads=4, is_causal=causal)
        feeds = {n: floats(2, 5, 16) for n in "qkv"}
    else:
        q, k, v = (b.input(n, ["b", 4, "s", 8]) for n in "qkv")
        y = b("Attention", q, k, v, is_causal=causal)
        feeds = {n: floats(2, 4, 5, 8) for n in "qkv"}
    node = attention(optimised(b.model(y), **feeds))
    assert node.attrs["causal"] is bool(causal)


# Gathers over positions


def test_gather_of_positions_is_a_slice() -> None:
    b = Builder()
    x = b.input("x", ["b", "s", 4])
    n = b("Squeeze", b("Shape", x, start=1, end=2))
    rows = b("Gather", floats(32, 4), b("Range", np.array(0), n, np.array(1)))
    graph = optimised(b.model(b("Add", x, rows)), x=floats(2, 5, 4))
    assert "Gather" not in ops(graph)
    assert "Slice" in ops(graph)


def test_gather_nd_along_ranges_is_a_reshape() -> None:
    """A padding mask looked up by (batch, key position), as new exporters write it."""
    b = Builder()
    m = b.input("m", ["b", "s"])
    shape = b("Shape", m)
    sizes = [b("Squeeze", b("Slice", shape, np.array([i]), np.array([i + 1]))) for i in (0, 1)]
    r0, r1 = (b("Range", np.array(0), n, np.array(1)) for n in sizes)
    i0 = b("Unsqueeze", r0, np.array([1, 2, 3]))
    i1 = b("Unsqueeze", r1, np.array([0, 1, 2]))
    wide = b("Shape", b("Max", i0, i1))
    parts = [b("Unsqueeze", b("Expand", i, wide), np.array([-1])) for i in (i0, i1)]
    y = b("GatherND", m, b("Concat", *parts, axis=-1))
    graph = optimised(b.model(y), m=floats(2, 5))
    assert ops(graph) == ["Reshape"]


# Operators of ONNX Runtime's own domain

CONTRIB = "com.microsoft"


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zeros", [True, False])
def test_matmul_n_bits(bits: int, zeros: bool) -> None:
    n, k, block = 6, 40, 16
    blocks = -(-k // block)
    packed = RNG.integers(0, 256, (n, blocks, block * bits // 8)).astype(np.uint8)
    extra = []
    if zeros:
        extra = [RNG.integers(0, 256, (n, -(-blocks * bits // 8))).astype(np.uint8)]
    b = Builder()
    x = b.input("x", ["m", k])
    scales = np.abs(floats(n, blocks))
    y = b(
        "MatMulNBits", x, packed, scales, *extra,
        domain=CONTRIB, K=k, N=n, bits=bits, block_size=block,
    )  # fmt: skip
    assert ops(optimised(b.model(y), x=floats(3, k))) == ["MatMulNBits"]


def test_matmul_of_two_bits() -> None:
    """No kernel has them: the weights are unpacked."""
    b = Builder()
    x = b.input("x", ["m", 32])
    packed = RNG.integers(0, 256, (6, 2, 4)).astype(np.uint8)
    scales = np.abs(floats(6, 2))
    y = b("MatMulNBits", x, packed, scales, domain=CONTRIB, K=32, N=6, bits=2, block_size=16)
    assert ops(optimise(load(b.model(y)))) == ["MatMul"]


@pytest.mark.parametrize("biased", [True, False])
def test_multi_head_attention(biased: bool) -> None:
    b = Builder()
    q = b.input("q", ["b", "s", 16])
    k, v = (b.input(name, ["b", "t", 16]) for name in "kv")
    feeds = {"q": floats(2, 3, 16), "k": floats(2, 5, 16), "v": floats(2, 5, 16)}
    extra = []
    if biased:
        extra = ["", "", b.input("m", ["b", 1, "s", "t"])]
        feeds["m"] = floats(2, 1, 3, 5)
    y = b("MultiHeadAttention", q, k, v, *extra, domain=CONTRIB, num_heads=4)
    attention(optimised(b.model(y), **feeds))


@pytest.mark.parametrize("interleaved", [0, 1])
def test_rotary_embedding(interleaved: int) -> None:
    b = Builder()
    x = b.input("x", ["b", 4, "s", 8])
    p = b.input("p", ["b", "s"], I)
    y = b(
        "RotaryEmbedding", x, p, floats(16, 4), floats(16, 4),
        domain=CONTRIB, interleaved=interleaved,
    )  # fmt: skip
    positions = RNG.integers(0, 16, (2, 5))
    graph = optimised(b.model(y), x=floats(2, 4, 5, 8), p=positions)
    assert not any(n.domain for n in graph.nodes)


@pytest.mark.parametrize("placed", [True, False])
def test_embed_layer_normalization(placed: bool) -> None:
    b = Builder()
    ids = b.input("ids", ["b", "s"], TensorProto.INT32)
    kinds = b.input("kinds", ["b", "s"], TensorProto.INT32)
    feeds = {n: RNG.integers(0, 2, (2, 5)).astype(np.int32) for n in ("ids", "kinds")}
    extra = []
    if placed:
        extra = ["", b.input("where", ["b", "s"], TensorProto.INT32)]
        feeds["where"] = RNG.integers(0, 16, (2, 5)).astype(np.int32)
    tables = [floats(9, 8), floats(16, 8), floats(2, 8), floats(8), floats(8)]
    y, _ = b("EmbedLayerNormalization", ids, kinds, *tables, *extra, outputs=2, domain=CONTRIB)
    graph = optimised(b.model(y), **feeds)
    assert "LayerNormalization" in ops(graph)


# Whole models


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kernels"),
    [
        ("digits", {"Attention": 0}),
        ("bert-tiny", {"Attention": 2, "Softmax": 0, "Range": 0, "GatherND": 0}),
        ("bert-tiny-torchscript", {"Attention": 2, "Gelu": 2, "Range": 0}),
        ("gpt2-tiny", {"Attention": 2, "Gelu": 2, "Where": 0, "CumSum": 0}),
        ("vit-micro", {"Attention": 2, "IsNaN": 0}),
        ("resnet-micro", {"BatchNormalization": 0}),
        ("squeezenet-1.1", {"Shape": 0}),
        ("light-shufflenet", {"BatchNormalization": 0, "Sum": 0}),
        ("mobilenet-v3-small-96", {"BatchNormalization": 0}),
    ],
)
def test_whole_models(name: str, kernels: dict[str, int]) -> None:
    from tests.models import zoo

    missing = zoo.MODELS[name].missing()
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    path, feeds = zoo.path_of(name), zoo.random_feeds(name)
    expected = run_onnx(str(path), feeds)
    graph = optimise(load(path))
    found = run_graph(graph, feeds)
    for key, array in expected.items():
        scale = max(float(np.max(np.abs(array))), 1e-6)
        np.testing.assert_allclose(found[key], array, rtol=0, atol=2e-5 * scale)
    counts = Counter(n.op for n in graph.nodes)
    assert {op: counts[op] for op in kernels} == kernels
