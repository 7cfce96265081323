"""Transformer models spelled out in ONNX nodes: benchmark cases that need no exporter.

Their shapes are those of known models, their weights random. `encoder` is BERT's layer, post-norm;
`decoder` is Llama's, pre-norm, one step of generation over a cache of keys and values, and
`genai_decoder` the same in int4 as ONNX Runtime GenAI exports it, in the operators that ONNX
Runtime has kernels of its own for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Shape = list[int | str]
BLOCK = 32  # weights that share a scale


class _Graph:
    """Nodes and constants under construction; every method returns a value's name."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(5)

    def op(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        node = helper.make_node(kind, list(inputs), [name], domain=domain, **attributes)
        self.nodes.append(node)
        return name

    def constant(self, array: Any, dtype: Any = np.float32) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array, dtype), name))
        return name

    def ints(self, *values: int) -> str:
        return self.constant(values, np.int64)

    def weight(self, rows: int, columns: int) -> str:
        scaled = self._random.standard_normal((rows, columns), np.float32) / np.sqrt(rows)
        return self.constant(scaled)

    def vector(self, size: int, around: float = 0.0) -> str:
        return self.constant(around + 0.1 * self._random.standard_normal(size))

    def linear(self, x: str, rows: int, columns: int, bias: bool = True) -> str:
        y = self.op("MatMul", x, self.weight(rows, columns))
        return self.op("Add", y, self.vector(columns)) if bias else y

    def linear4(self, x: str, rows: int, columns: int) -> str:
        """With weights of 4 bits."""
        blocks = rows // BLOCK
        codes = self._random.integers(0, 256, (columns, blocks, BLOCK // 2), np.uint8)
        # Codes lie evenly in -8 .. 7: a deviation of 4.6.
        scales = self._random.uniform(0.5, 1.5, (columns, blocks)) / (4.6 * np.sqrt(rows))
        weights = self.constant(codes, np.uint8), self.constant(scales)
        sizes = {"K": rows, "N": columns, "bits": 4, "block_size": BLOCK}
        return self.op("MatMulNBits", x, *weights, domain="com.microsoft", **sizes)

    def heads(self, x: str, heads: int, size: int) -> str:
        """[batch, sequence, heads * size] to [batch, heads, sequence, size]."""
        split = self.op("Reshape", x, self.ints(0, 0, heads, size))
        return self.op("Transpose", split, perm=[0, 2, 1, 3])

    def attend(self, q: str, k: str, v: str, size: int, mask: str = "") -> str:
        """softmax(q k^T / sqrt(size) + mask) v, back to [batch, sequence, heads * size]."""
        scores = self.op("MatMul", q, self.op("Transpose", k, perm=[0, 1, 3, 2]))
        scores = self.op("Mul", scores, self.constant(size**-0.5))
        if mask:
            scores = self.op("Add", scores, mask)
        mixed = self.op("MatMul", self.op("Softmax", scores, axis=-1), v)
        back = self.op("Transpose", mixed, perm=[0, 2, 1, 3])
        return self.op("Reshape", back, self.ints(0, 0, -1))

    def save(
        self,
        path: Path,
        inputs: dict[str, Shape],
        outputs: dict[str, Shape],
        integers: dict[str, Shape] | None = None,
    ) -> None:
        def ports(shapes: dict[str, Shape], kind: int) -> list[onnx.ValueInfoProto]:
            return [helper.make_tensor_value_info(n, kind, s) for n, s in shapes.items()]

        whole = ports(integers or {}, TensorProto.INT32)
        taken, made = (ports(shapes, TensorProto.FLOAT) for shapes in (inputs, outputs))
        graph = helper.make_graph(self.nodes, path.stem, taken + whole, made, self.constants)
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
        onnx.save(model, path)

    def output(self, x: str, name: str) -> None:
        self.nodes.append(helper.make_node("Identity", [x], [name]))


def encoder(path: Path, *, layers: int, hidden: int, heads: int) -> None:
    """BERT's encoder on embedded tokens, f32[batch, sequence, hidden] to the same."""
    g = _Graph()
    x, size = "x", hidden // heads
    for _ in range(layers):
        q, k, v = (g.heads(g.linear(x, hidden, hidden), heads, size) for _ in range(3))
        mixed = g.linear(g.attend(q, k, v, size), hidden, hidden)
        x = _layer_norm(g, g.op("Add", mixed, x), hidden)
        wide = g.op("Gelu", g.linear(x, hidden, 4 * hidden))
        x = _layer_norm(g, g.op("Add", g.linear(wide, 4 * hidden, hidden), x), hidden)
    g.output(x, "y")
    shape: Shape = ["batch", "sequence", hidden]
    g.save(path, {"x": shape}, {"y": shape})


def _layer_norm(g: _Graph, x: str, size: int) -> str:
    return g.op("LayerNormalization", x, g.vector(size, 1.0), g.vector(size), epsilon=1e-12)


def decoder(path: Path, *, layers: int, hidden: int, heads: int, kv_heads: int, wide: int) -> None:
    """Llama's decoder, one step: f32[1, 1, hidden] and the cache of each layer, `past` long.

    The position's rotation arrives as cosines and sines f32[1, 1, 1, hidden / heads].
    """
    g = _Graph()
    x, size = "x", hidden // heads
    inputs: dict[str, Shape] = {
        "x": [1, 1, hidden], "cos": [1, 1, 1, size], "sin": [1, 1, 1, size],
    }  # fmt: skip
    outputs: dict[str, Shape] = {}
    made: list[tuple[str, str]] = []
    for layer in range(layers):
        normed = _rms_norm(g, x, hidden)
        q = g.heads(g.linear(normed, hidden, hidden, bias=False), heads, size)
        k, v = (
            g.heads(g.linear(normed, hidden, kv_heads * size, bias=False), kv_heads, size)
            for _ in range(2)
        )
        q, k = _rotate(g, q, size), _rotate(g, k, size)
        cache = []
        for part, new in (("key", k), ("value", v)):
            inputs[f"past_{layer}_{part}"] = [1, kv_heads, "past", size]
            outputs[f"present_{layer}_{part}"] = [1, kv_heads, "past + 1", size]
            joined = g.op("Concat", f"past_{layer}_{part}", new, axis=2)
            made.append((joined, f"present_{layer}_{part}"))
            cache.append(_repeat(g, joined, heads // kv_heads, heads, size))
        mixed = g.linear(g.attend(q, *cache, size), hidden, hidden, bias=False)
        x = g.op("Add", x, mixed)
        normed = _rms_norm(g, x, hidden)
        gate, up = (g.linear(normed, hidden, wide, bias=False) for _ in range(2))
        gated = g.op("Mul", g.op("Mul", gate, g.op("Sigmoid", gate)), up)
        x = g.op("Add", x, g.linear(gated, wide, hidden, bias=False))
    for value, name in [*made, (_rms_norm(g, x, hidden), "y")]:
        g.output(value, name)
    g.save(path, inputs, {**outputs, "y": [1, 1, hidden]})


def _rms_norm(g: _Graph, x: str, size: int) -> str:
    """As exporters spell it."""
    square = g.op("Pow", x, g.constant(2.0))
    mean = g.op("ReduceMean", square, g.ints(-1), keepdims=1)
    root = g.op("Sqrt", g.op("Add", mean, g.constant(1e-5)))
    return g.op("Mul", g.op("Div", x, root), g.vector(size, 1.0))


def _rotate(g: _Graph, x: str, size: int) -> str:
    first = g.op("Slice", x, g.ints(0), g.ints(size // 2), g.ints(3))
    second = g.op("Slice", x, g.ints(size // 2), g.ints(size), g.ints(3))
    turned = g.op("Concat", g.op("Neg", second), first, axis=-1)
    return g.op("Add", g.op("Mul", x, "cos"), g.op("Mul", turned, "sin"))


def _repeat(g: _Graph, x: str, times: int, heads: int, size: int) -> str:
    """Each head of [1, kv_heads, length, size] `times` times, as exporters spell it."""
    length = g.op("Slice", g.op("Shape", x), g.ints(2), g.ints(3))
    wide = g.op("Concat", g.ints(1, heads // times, times), length, g.ints(size), axis=0)
    spread = g.op("Expand", g.op("Unsqueeze", x, g.ints(2)), wide)
    back = g.op("Concat", g.ints(1, heads), length, g.ints(size), axis=0)
    return g.op("Reshape", spread, back)


def attention(path: Path, *, heads: int, length: int, size: int) -> None:
    """ONNX Runtime's MultiHeadAttention of f32[1, length, heads * size] q, k and v."""
    g = _Graph()
    g.op("MultiHeadAttention", "q", "k", "v", domain="com.microsoft", num_heads=heads)
    g.nodes[-1].output[0] = "y"
    shape: Shape = [1, length, heads * size]
    g.save(path, {"q": shape, "k": shape, "v": shape}, {"y": shape})


def product4(path: Path, *, m: int, k: int, n: int) -> None:
    """f32[m, k] with a constant in 4 bits."""
    g = _Graph()
    g.output(g.linear4("x", k, n), "y")
    g.save(path, {"x": [m, k]}, {"y": [m, n]})


def genai_decoder(
    path: Path, *, layers: int, hidden: int, heads: int, kv_heads: int, wide: int, past: int
) -> None:
    """`decoder` in int4: f32[1, 1, hidden], the cache of each layer and `seqlens_k` i32[1], the
    tokens before this one."""
    g = _Graph()
    size = hidden // heads
    turn = np.outer(np.arange(past + 1), 10000.0 ** -np.linspace(0, 1, size // 2, endpoint=False))
    cos, sin, total = (
        g.constant(np.cos(turn)),
        g.constant(np.sin(turn)),
        g.constant(past + 1, np.int32),
    )
    inputs: dict[str, Shape] = {"x": [1, 1, hidden]}
    outputs: dict[str, Shape] = {"y": [1, 1, hidden]}
    x = "x"
    normed = g.op("SimplifiedLayerNormalization", x, g.vector(hidden, 1.0), epsilon=1e-5)
    for layer in range(layers):
        packed = g.linear4(normed, hidden, hidden + 2 * kv_heads * size)
        names = [f"{layer}_key", f"{layer}_value"]
        inputs |= {f"past_{name}": [1, kv_heads, past, size] for name in names}
        outputs |= {f"present_{name}": [1, kv_heads, past + 1, size] for name in names}
        caches = [f"past_{name}" for name in names]
        mixed = g.op(
            "GroupQueryAttention", packed, "", "", *caches, "seqlens_k", total, cos, sin,
            domain="com.microsoft", num_heads=heads, kv_num_heads=kv_heads, do_rotary=1,
        )  # fmt: skip
        g.nodes[-1].output.extend(f"present_{name}" for name in names)
        normed, x = _skip_norm(g, x, g.linear4(mixed, hidden, hidden), hidden)
        gate, up = (g.linear4(normed, hidden, wide) for _ in range(2))
        gated = g.op("Mul", g.op("Mul", gate, g.op("Sigmoid", gate)), up)
        normed, x = _skip_norm(g, x, g.linear4(gated, wide, hidden), hidden)
    g.output(normed, "y")
    g.save(path, inputs, outputs, {"seqlens_k": [1]})


def _skip_norm(g: _Graph, x: str, skip: str, size: int) -> tuple[str, str]:
    """The normalised sum, and the sum."""
    kind, domain = "SkipSimplifiedLayerNormalization", "com.microsoft"
    normed = g.op(kind, x, skip, g.vector(size, 1.0), domain=domain, epsilon=1e-5)
    total = f"{normed}_sum"
    g.nodes[-1].output.extend(["", "", total])
    return normed, total
