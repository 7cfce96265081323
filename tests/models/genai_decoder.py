"""A small Llama as ONNX Runtime GenAI exports it: int4 weights, attention with caches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]
DOMAIN = "com.microsoft"
WORDS, WIDTH, HEADS, KV_HEADS, SIZE, INNER, LAYERS, BLOCK = 96, 64, 4, 2, 16, 96, 2, 32
ROOM = 16
"""Positions in a shared cache."""


class Decoder:
    """Builds the graph; names as the exporter has them where they matter."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, array: Array) -> str:
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def node(self, op: str, inputs: list[str], outputs: list[str], **attrs: Any) -> str:
        own = {"MatMulNBits", "GroupQueryAttention", "SkipSimplifiedLayerNormalization"}
        domain = DOMAIN if op in own else ""
        self.nodes.append(helper.make_node(op, inputs, outputs, outputs[0], domain=domain, **attrs))
        return outputs[0]

    def product(self, x: str, name: str, k: int, n: int) -> str:
        blocks = k // BLOCK
        codes = self.rng.integers(0, 256, (n, blocks, BLOCK // 2), np.uint8)
        scales = self.rng.uniform(0.01, 0.04, (n, blocks)).astype(np.float32)
        weights = [self.constant(f"{name}.codes", codes), self.constant(f"{name}.scales", scales)]
        return self.node("MatMulNBits", [x, *weights], [name], K=k, N=n, bits=4, block_size=BLOCK)

    def weight(self, name: str) -> str:
        return self.constant(name, self.rng.uniform(0.5, 1.5, WIDTH).astype(np.float32))

    def skip(self, x: str, skip: str, name: str) -> tuple[str, str]:
        """The normalised sum, and the sum."""
        outputs = [f"{name}.y", "", "", f"{name}.sum"]
        inputs = [x, skip, self.weight(f"{name}.weight")]
        self.node("SkipSimplifiedLayerNormalization", inputs, outputs, epsilon=1e-5)
        return outputs[0], outputs[3]

    def attention(self, x: str, layer: int) -> str:
        packed = self.product(x, f"{layer}.qkv", WIDTH, (HEADS + 2 * KV_HEADS) * SIZE)
        past = [f"past_key_values.{layer}.{side}" for side in ("key", "value")]
        present = [f"present.{layer}.{side}" for side in ("key", "value")]
        mixed = self.node(
            "GroupQueryAttention",
            [packed, "", "", *past, "seqlens_k", "total", "cos_cache", "sin_cache"],
            [f"{layer}.attention", *present],
            num_heads=HEADS,
            kv_num_heads=KV_HEADS,
            do_rotary=1,
        )
        return self.product(mixed, f"{layer}.o", HEADS * SIZE, WIDTH)

    def mlp(self, x: str, layer: int) -> str:
        gate = self.product(x, f"{layer}.gate", WIDTH, INNER)
        up = self.product(x, f"{layer}.up", WIDTH, INNER)
        turned = self.node("Sigmoid", [gate], [f"{layer}.sigmoid"])
        silu = self.node("Mul", [gate, turned], [f"{layer}.silu"])
        both = self.node("Mul", [silu, up], [f"{layer}.both"])
        return self.product(both, f"{layer}.down", INNER, WIDTH)

    def model(self) -> onnx.ModelProto:
        turn = np.outer(np.arange(ROOM), 10.0 ** -np.linspace(0, 2, SIZE // 2))
        self.constant("cos_cache", np.cos(turn).astype(np.float32))
        self.constant("sin_cache", np.sin(turn).astype(np.float32))
        one = self.constant("one", np.array([1], np.int64))
        at = self.constant("at", np.array(1, np.int64))
        self.node("ReduceSum", ["attention_mask", one], ["lengths"])
        self.node("Sub", ["lengths", one], ["lasts"])
        self.node("Cast", ["lasts"], ["seqlens_k"], to=TensorProto.INT32)
        self.node("Shape", ["attention_mask"], ["sizes"])
        self.node("Gather", ["sizes", at], ["size"], axis=0)
        self.node("Cast", ["size"], ["total"], to=TensorProto.INT32)
        words = self.rng.normal(size=(WORDS, WIDTH)).astype(np.float32)
        total = self.node("Gather", [self.constant("words", words), "input_ids"], ["embedded"])
        x = self.node(
            "SimplifiedLayerNormalization",
            [total, self.weight("first")],
            ["normalised"],
            epsilon=1e-5,
        )
        for layer in range(LAYERS):
            x, total = self.skip(total, self.attention(x, layer), f"{layer}.middle")
            x, total = self.skip(total, self.mlp(x, layer), f"{layer}.end")
        logits = self.product(x, "logits", WIDTH, WORDS)
        info = helper.make_tensor_value_info
        whole, real = TensorProto.INT64, TensorProto.FLOAT
        caches = [(i, side) for i in range(LAYERS) for side in ("key", "value")]

        def cache(name: str, length: str) -> list[onnx.ValueInfoProto]:
            shape = ["batch_size", KV_HEADS, length, SIZE]
            return [info(f"{name}.{i}.{side}", real, shape) for i, side in caches]

        graph = helper.make_graph(
            self.nodes,
            "decoder",
            [
                info("input_ids", whole, ["batch_size", "sequence_length"]),
                info("attention_mask", whole, ["batch_size", "total_sequence_length"]),
                *cache("past_key_values", "past_sequence_length"),
            ],
            [
                info(logits, real, ["batch_size", "sequence_length", WORDS]),
                *cache("present", "present_sequence_length"),
            ],
            self.constants,
        )
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def steps(
    content: bytes, shared: bool, count: int, rng: np.random.Generator
) -> Iterator[tuple[dict[str, Array], list[Array], Array]]:
    """A prompt and what follows it, by ONNX Runtime: feeds, results, and every text's length.

    Three texts of unequal length lie side by side, padded on the right.
    """
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_inputs()[2:]]
    empty = np.zeros((3, KV_HEADS, ROOM if shared else 0, SIZE), np.float32)
    caches = dict.fromkeys(names, empty)
    lengths = np.array([5, 3, 1])
    tokens = rng.integers(0, WORDS, (3, 5))
    for _ in range(count):
        mask = np.arange(lengths.max())[None] < lengths[:, None]
        feeds = {"input_ids": tokens, "attention_mask": mask.astype(np.int64)} | caches
        results = session.run(None, feeds)
        yield feeds, results, lengths
        caches = dict(zip(names, results[1:], strict=True))
        last = np.minimum(tokens.shape[1], lengths) - 1
        tokens = results[0][np.arange(3), last].argmax(-1)[:, None]
        lengths = lengths + 1
