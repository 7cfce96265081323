"""Random programs of movement, pointwise and core operators: the plan computes what ONNX says.

Fusion through reshapes and transposes has more paths than examples can cover.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from pywebgpu.compile import compile_model
from tests.plan_eval import play

Array = np.ndarray[Any, Any]
N = 3  # what the symbol "n" is bound to; it stays the first axis


@dataclass
class Program:
    """Nodes made so far, and the values that may be used, with their shapes at n = N."""

    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def constant(self, array: Array) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = array
        return name

    def weights(self, *shape: int) -> str:
        return self.constant((self.rng.standard_normal(shape) * 0.4).astype(np.float32))

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def add(self, op: str, inputs: list[str], shape: tuple[int, ...], **attrs: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], **attrs))
        self.shapes[name] = shape
        return name


def _step(draw: Any, p: Program) -> None:
    name = draw(st.sampled_from(list(p.shapes)))
    shape = p.shapes[name]
    axis = draw(st.integers(1, len(shape) - 1)) if len(shape) > 1 else 0
    kind = draw(st.sampled_from(
        ["transpose", "split", "merge", "slice", "unary", "binary", "bias", "matmul", "softmax",
         "reduce", "concat", "pad", "norm", "flip", "product"]
    ))  # fmt: skip
    if kind == "transpose" and len(shape) > 2:
        perm = [0, *draw(st.permutations(range(1, len(shape))))]
        p.add("Transpose", [name], tuple(shape[i] for i in perm), perm=perm)
    elif kind == "split" and axis and shape[axis] % 2 == 0 and len(shape) < 5:
        new = (*shape[:axis], 2, shape[axis] // 2, *shape[axis + 1 :])
        p.add("Reshape", [name, p.ints(-1, *new[1:])], new)
    elif kind == "merge" and len(shape) > 2:
        at = draw(st.integers(1, len(shape) - 2))
        new = (*shape[:at], shape[at] * shape[at + 1], *shape[at + 2 :])
        p.add("Reshape", [name, p.ints(-1, *new[1:])], new)
    elif kind == "slice" and axis and shape[axis] > 2:
        new = (*shape[:axis], shape[axis] - 1, *shape[axis + 1 :])
        p.add("Slice", [name, p.ints(1), p.ints(1 << 40), p.ints(axis)], new)
    elif kind == "flip" and axis:
        p.add("Slice", [name, p.ints(-1), p.ints(-1 << 40), p.ints(axis), p.ints(-1)], shape)
    elif kind == "unary":
        p.add(draw(st.sampled_from(["Relu", "Tanh", "Sigmoid", "Neg"])), [name], shape)
    elif kind == "binary":
        same = [other for other, s in p.shapes.items() if s == shape]
        op = draw(st.sampled_from(["Add", "Mul", "Sub"]))
        p.add(op, [name, draw(st.sampled_from(same))], shape)
    elif kind == "bias" and axis:
        p.add("Add", [name, p.weights(shape[-1])], shape)
    elif kind == "matmul" and len(shape) > 1:
        p.add("MatMul", [name, p.weights(shape[-1], 4)], (*shape[:-1], 4))
    elif kind == "product" and len(shape) > 2:
        swapped = [*range(len(shape) - 2), len(shape) - 1, len(shape) - 2]
        other = p.add("Transpose", [name], tuple(shape[i] for i in swapped), perm=swapped)
        p.add("MatMul", [name, other], (*shape[:-1], shape[-2]))
    elif kind == "softmax" and axis:
        p.add("Softmax", [name], shape, axis=axis)
    elif kind == "norm" and axis:
        scale, shift = p.weights(shape[-1]), p.weights(shape[-1])
        p.add("LayerNormalization", [name, scale, shift], shape, axis=-1)
    elif kind == "reduce" and len(shape) > 2:
        p.add("ReduceMean", [name, p.ints(axis)], (*shape[:axis], *shape[axis + 1 :]), keepdims=0)
    elif kind == "concat" and axis:
        rest = [o for o, s in p.shapes.items() if len(s) == len(shape)
                and s[:axis] + s[axis + 1 :] == shape[:axis] + shape[axis + 1 :]]  # fmt: skip
        other = draw(st.sampled_from(rest))
        new = (*shape[:axis], shape[axis] + p.shapes[other][axis], *shape[axis + 1 :])
        p.add("Concat", [name, other], new, axis=axis)
    elif kind == "pad" and axis:
        new = (*shape[:axis], shape[axis] + 3, *shape[axis + 1 :])
        p.add("Pad", [name, p.ints(1, 2), "", p.ints(axis)], new, mode="constant")


@st.composite
def _programs(draw: Any) -> Program:
    p = Program(np.random.default_rng(draw(st.integers(0, 1000))))
    p.shapes["x"] = (N, 4, 6)
    for _ in range(draw(st.integers(2, 10))):
        _step(draw, p)
    return p


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_programs())
def test_plan_is_the_model(program: Program) -> None:
    ort = pytest.importorskip("onnxruntime")
    if not program.nodes:
        return
    # The last value, and one from the middle that others also read.
    outputs = list(dict.fromkeys([program.nodes[-1].output[0],
                                  program.nodes[len(program.nodes) // 2].output[0]]))  # fmt: skip
    graph = helper.make_graph(
        program.nodes,
        "random",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4, 6])],
        [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs],
        [numpy_helper.from_array(a, n) for n, a in program.constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 9
    data = model.SerializeToString()
    x = program.rng.standard_normal((N, 4, 6)).astype(np.float32)
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    compiled = compile_model(data)
    got = play(compiled, {"x": x})
    for name, want in zip(outputs, session.run(outputs, {"x": x}), strict=True):
        assert got[name].shape == want.shape
        scale = max(float(np.abs(want).max(initial=0)), 1.0)
        assert float(np.abs(got[name] - want).max(initial=0)) <= 1e-4 * scale
    assert all(len(kernel.operands) <= 7 for kernel in compiled.plan.kernels)
