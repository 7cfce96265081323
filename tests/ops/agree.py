"""One operator against what it should give: the plan played by NumPy, and the wasm executor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from pywebgpu.compile import compile_model
from pywebgpu.session import InferenceSession
from tests.executors_seen import record_executor
from tests.plan_eval import play

Array = np.ndarray[Any, Any]


def model_of(
    op: str,
    inputs: Mapping[str, Array | None],
    outputs: Sequence[tuple[str, Any]],
    constants: Sequence[str] = (),
    symbolic: Mapping[str, Sequence[str | int]] | None = None,
    domain: str = "",
    opset: int = 21,
    **attrs: Any,
) -> onnx.ModelProto:
    """A model of one node. Inputs that are None are omitted; those in `constants` are fixed;
    `symbolic` gives shapes that are not the arrays' own; `outputs` are names and NumPy types."""
    given = {name: array for name, array in inputs.items() if array is not None}
    code = helper.np_dtype_to_tensor_dtype
    node = helper.make_node(
        op, [n if n in given else "" for n in inputs], [n for n, _ in outputs], domain=domain,
        **attrs,
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        op,
        [
            helper.make_tensor_value_info(n, code(a.dtype), (symbolic or {}).get(n, a.shape))
            for n, a in given.items()
            if n not in constants
        ],
        [helper.make_tensor_value_info(n, code(np.dtype(t)), None) for n, t in outputs if n],
        [numpy_helper.from_array(given[n], n) for n in constants if n in given],
    )
    opsets = [helper.make_opsetid("", opset)]
    if domain:
        opsets.append(helper.make_opsetid(domain, 1))
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def feeds_of(model: onnx.ModelProto, inputs: Mapping[str, Array | None]) -> dict[str, Array]:
    found = {}
    for port in model.graph.input:
        array = inputs[port.name]
        assert array is not None
        found[port.name] = array
    return found


def by_onnxruntime(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, dict(feeds)))


def by_definition(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> list[Array]:
    return list(ReferenceEvaluator(model).run(None, dict(feeds)))


def agree(
    model: onnx.ModelProto,
    feeds: Mapping[str, Array],
    expected: Sequence[Array],
    rtol: float = 1e-4,
    atol: float = 1e-5,
) -> None:
    """Integers must be equal, floats within the tolerances."""
    compiled = compile_model(model.SerializeToString())
    played = play(compiled, feeds)
    with InferenceSession(compiled, ["wasm"], threads=1) as session:
        ran = session.run(None, dict(feeds))
    record_executor("wasmtime")
    for how, results in (("played", list(played.values())), ("wasmtime", ran)):
        for i, (got, want) in enumerate(zip(results, expected, strict=True)):
            assert got.shape == want.shape, f"{how}, output {i}"
            assert got.dtype == want.dtype, f"{how}, output {i}"
            if want.dtype.kind in "biu":
                np.testing.assert_array_equal(got, want, f"{how}, output {i}")
            else:
                np.testing.assert_allclose(got, want, rtol, atol, err_msg=f"{how}, output {i}")
