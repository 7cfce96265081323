"""Operators of com.microsoft that have no kernels of their own, against ONNX Runtime."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pywebgpu.compile import compile_model
from pywebgpu.errors import UnsupportedError
from tests.ops.agree import agree, by_onnxruntime, feeds_of, model_of

Array = np.ndarray[Any, Any]
Inputs = dict[str, Array | None]
DOMAIN = "com.microsoft"
SEEDS = st.integers(0, 2**32 - 1)
few = settings(max_examples=4, deadline=None)


def _floats(rng: np.random.Generator, *shape: int) -> Array:
    return rng.normal(size=shape).astype(np.float32)


def _settings(**attrs: Any) -> dict[str, Any]:
    return attrs


@few
@given(SEEDS, st.booleans(), st.sampled_from(["none", "halves", "pairs", "part"]))
def test_group_query_attention(seed: int, packed: bool, rotary: str) -> None:
    rng = np.random.default_rng(seed)
    heads, kv_heads, size = 4, 2, 32
    batch, length = int(rng.integers(1, 3)), int(rng.integers(1, 6))
    half = (16 if rotary == "part" else size) // 2  # ONNX Runtime takes multiples of 8
    turn = np.outer(np.arange(8), 10.0 ** -np.arange(half))
    rotates = rotary != "none"
    inputs: Inputs = {
        "q": _floats(rng, batch, length, (heads + (2 * kv_heads if packed else 0)) * size),
        "k": None if packed else _floats(rng, batch, length, kv_heads * size),
        "v": None if packed else _floats(rng, batch, length, kv_heads * size),
        "past_key": None,
        "past_value": None,
        "lengths": np.full(batch, length - 1, np.int32),
        "total": np.array(length, np.int32),
        "cos": np.cos(turn).astype(np.float32) if rotates else None,
        "sin": np.sin(turn).astype(np.float32) if rotates else None,
    }
    attrs = _settings(
        num_heads=heads,
        kv_num_heads=kv_heads,
        do_rotary=int(rotates),
        rotary_interleaved=int(rotary == "pairs"),
    )
    outputs = [("y", np.float32), ("key", np.float32), ("value", np.float32)]
    model = model_of("GroupQueryAttention", inputs, outputs, domain=DOMAIN, **attrs)
    del model.graph.output[1:]
    feeds = feeds_of(model, inputs)
    agree(model, feeds, by_onnxruntime(model, feeds))


@pytest.mark.parametrize(
    ("activation", "params"),
    [("Relu", []), ("Tanh", []), ("LeakyRelu", [0.3]), ("Clip", [-0.5, 0.5]), ("", [])],
)
@pytest.mark.parametrize("adds", [False, True])
def test_fused_conv(activation: str, params: list[float], adds: bool) -> None:
    rng = np.random.default_rng(3)
    inputs: Inputs = {
        "x": _floats(rng, 1, 3, 6, 6),
        "w": _floats(rng, 4, 3, 3, 3),
        "b": _floats(rng, 4),
        "z": _floats(rng, 1, 4, 6, 6) if adds else None,
    }
    attrs = _settings(pads=[1, 1, 1, 1], kernel_shape=[3, 3])
    if activation:
        attrs["activation"] = activation
    if params:
        attrs["activation_params"] = params
    model = model_of("FusedConv", inputs, [("y", np.float32)], ["w", "b"], domain=DOMAIN, **attrs)
    feeds = feeds_of(model, inputs)
    agree(model, feeds, by_onnxruntime(model, feeds), 1e-3, 1e-4)


@few
@given(SEEDS, st.booleans(), st.sampled_from(["Relu", "LeakyRelu", "Sigmoid"]))
def test_fused_gemm(seed: int, transposed: bool, activation: str) -> None:
    rng = np.random.default_rng(seed)
    inputs: Inputs = {
        "a": _floats(rng, 3, 5),
        "b": _floats(rng, *((4, 5) if transposed else (5, 4))),
        "c": _floats(rng, 4),
    }
    attrs = _settings(activation=activation, transB=int(transposed), alpha=0.5)
    if activation == "LeakyRelu":
        attrs["activation_alpha"] = 0.3
    model = model_of("FusedGemm", inputs, [("y", np.float32)], domain=DOMAIN, **attrs)
    feeds = feeds_of(model, inputs)
    agree(model, feeds, by_onnxruntime(model, feeds))


def test_transpose_matmul() -> None:
    rng = np.random.default_rng(4)
    inputs: Inputs = {"a": _floats(rng, 2, 3, 4), "b": _floats(rng, 2, 5, 4)}
    model = model_of("TransposeMatMul", inputs, [("y", np.float32)], domain=DOMAIN, transB=1)
    feeds = feeds_of(model, inputs)
    agree(model, feeds, by_onnxruntime(model, feeds))


@few
@given(SEEDS, st.sampled_from([4, 8]), st.sampled_from([16, 32, 64]), st.booleans(), st.booleans())
def test_matmul_n_bits(seed: int, bits: int, size: int, zeros: bool, bias: bool) -> None:
    rng = np.random.default_rng(seed)
    m, n, k = (int(rng.integers(1, most)) for most in (9, 40, 150))
    blocks = -(-k // size)
    inputs: Inputs = {
        "x": _floats(rng, m, k),
        "codes": rng.integers(0, 256, (n, blocks, size * bits // 8), np.uint8),
        "scales": rng.uniform(0.01, 0.1, n * blocks).astype(np.float32),
        "zeros": rng.integers(0, 256, n * -(-blocks * bits // 8), np.uint8) if zeros else None,
        "groups": None,
        "bias": _floats(rng, n) if bias else None,
    }
    attrs = _settings(K=k, N=n, bits=bits, block_size=size)
    fixed = [name for name in inputs if name != "x"]
    outputs = [("y", np.float32)]
    model = model_of("MatMulNBits", inputs, outputs, fixed, domain=DOMAIN, **attrs)
    feeds = feeds_of(model, inputs)
    agree(model, feeds, by_onnxruntime(model, feeds))


@pytest.mark.parametrize("shape", [(2, 3, 8), (1, 5, 14), (4, 2)])
def test_bias_split_gelu(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(5)
    inputs: Inputs = {"x": _floats(rng, *shape), "bias": _floats(rng, shape[-1])}
    model = model_of("BiasSplitGelu", inputs, [("y", np.float32)], domain=DOMAIN)
    left, right = np.split(inputs["x"] + inputs["bias"], 2, axis=-1)
    erf = np.vectorize(math.erf)(right / math.sqrt(2))
    agree(model, feeds_of(model, inputs), [(left * right * (1 + erf) / 2).astype(np.float32)])


@pytest.mark.parametrize("op", ["SkipLayerNormalization", "SkipSimplifiedLayerNormalization"])
@pytest.mark.parametrize(
    "names",
    [["y", "mean", "deviation", "sum"], ["y", "", "", "sum"], ["y", "", "deviation"], ["y"]],
)
@pytest.mark.parametrize("biased", [False, True])
def test_skip_normalization(op: str, names: list[str], biased: bool) -> None:
    rng = np.random.default_rng()
    inputs: Inputs = {
        "x": _floats(rng, 2, 3, 16),
        "skip": _floats(rng, 2, 3, 16),
        "gamma": _floats(rng, 16),
    }
    if op == "SkipLayerNormalization":
        inputs["beta"] = _floats(rng, 16)
    if biased:
        inputs["bias"] = _floats(rng, 16)
    outputs = [(name, np.float32) for name in names]
    model = model_of(op, inputs, outputs, domain=DOMAIN, epsilon=0.01)
    feeds = feeds_of(model, inputs)
    agree(model, feeds, by_onnxruntime(model, feeds))


@pytest.mark.parametrize("names", [["y"], ["y", "deviation"]])
def test_simplified_layer_normalization(names: list[str]) -> None:
    rng = np.random.default_rng()
    inputs: Inputs = {"x": _floats(rng, 2, 3, 16), "gamma": _floats(rng, 16)}
    outputs = [(name, np.float32) for name in names]
    model = model_of("SimplifiedLayerNormalization", inputs, outputs, epsilon=0.01)
    feeds = feeds_of(model, inputs)
    agree(model, feeds, by_onnxruntime(model, feeds))


@pytest.mark.parametrize("masked", [False, True])
def test_embeddings_with_all_outputs(masked: bool) -> None:
    rng = np.random.default_rng()
    inputs: Inputs = {
        "ids": rng.integers(0, 9, (2, 4)).astype(np.int32),
        "kinds": rng.integers(0, 2, (2, 4)).astype(np.int32),
        "words": _floats(rng, 9, 16),
        "positions": _floats(rng, 6, 16),
        "segments": _floats(rng, 2, 16),
        "gamma": _floats(rng, 16),
        "beta": _floats(rng, 16),
        "mask": rng.integers(0, 2, (2, 4)).astype(np.int32) if masked else None,
    }
    outputs = [("y", np.float32), ("counts", np.int32), ("sum", np.float32)]
    model = model_of("EmbedLayerNormalization", inputs, outputs, domain=DOMAIN)
    feeds = feeds_of(model, inputs)
    agree(model, feeds, by_onnxruntime(model, feeds))


@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("first", [False, True])
def test_rotary_embedding(rank: int, first: bool) -> None:
    """Positions of every token, or of the first."""
    rng = np.random.default_rng()
    places = np.array([2]) if first else rng.integers(0, 16, (2, 5))
    inputs: Inputs = {
        "x": _floats(rng, 2, 5, 48) if rank == 3 else _floats(rng, 2, 3, 5, 16),
        "places": places.astype(np.int64),
        "cos": _floats(rng, 16, 8),
        "sin": _floats(rng, 16, 8),
    }
    outputs = [("y", np.float32)]
    model = model_of("RotaryEmbedding", inputs, outputs, domain=DOMAIN)
    feeds = feeds_of(model, inputs)
    agree(model, feeds, by_onnxruntime(model, feeds))


@pytest.mark.parametrize(
    ("op", "attrs", "named"),
    [
        ("Gelu", {"nobody_knows": 1}, "attribute nobody_knows = 1"),
        ("FusedMatMul", {"transBatchA": 1}, "attribute transBatchA = 1"),
        ("FusedConv", {"groups": 2, "activation": "Relu"}, "attribute groups = 2"),
        ("SkipLayerNormalization", {"eps": 1.0}, "attribute eps = 1.0"),
        ("MultiHeadAttention", {"num_heads": 1, "causal": 1}, "attribute causal = 1"),
    ],
)
def test_attributes_that_are_not_known_are_refused(
    op: str, attrs: dict[str, Any], named: str
) -> None:
    x = np.zeros((2, 2, 2, 2) if op in ("FusedConv", "FusedMatMul") else (1, 2, 8), np.float32)
    inputs: Inputs = {
        "Gelu": {"x": x},
        "FusedMatMul": {"x": x, "w": x},
        "FusedConv": {"x": x, "w": x},
        "SkipLayerNormalization": {"x": x, "s": x, "g": np.ones(8, np.float32)},
        "MultiHeadAttention": {"q": x, "k": x, "v": x},
    }[op]
    model = model_of(op, inputs, [("y", np.float32)], domain=DOMAIN, **attrs)
    with pytest.raises(UnsupportedError, match=f"{op} with {named} is not supported"):
        compile_model(model.SerializeToString())


def test_an_attribute_that_does_nothing_is_let_through() -> None:
    x = np.random.default_rng().normal(size=(3, 2, 4)).astype(np.float32)
    inputs: Inputs = {"x": x, "w": x}
    model = model_of(
        "FusedMatMul", inputs, [("y", np.float32)], domain=DOMAIN, transB=1, transBatchA=0
    )
    feeds = feeds_of(model, inputs)
    agree(model, feeds, by_onnxruntime(model, feeds))
