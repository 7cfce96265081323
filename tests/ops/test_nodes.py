"""ONNX's own node tests, one test per operator: what the compiler accepts must be right.

Every case is played with NumPy (`tests.plan_eval`), which judges inference, passes and lowering.
One case per operator also runs on wasmtime; `tests.conformance` runs all of them on every executor.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from pywebgpu.compile import Compiled, compile_model
from pywebgpu.errors import UnsupportedError
from pywebgpu.session import InferenceSession
from tests.conformance.cases import Case, collect, out_of_scope
from tests.executors_seen import record_executor
from tests.plan_eval import play

Array = np.ndarray[Any, Any]

# Where the expected result is not ours to give.
EXEMPT = {
    "test_bitcast_uint32_to_int32": "inputs of more than 31 bits are refused",
    "test_dynamicquantizelinear": "one value is a tie in f32 but not in the judge's float64",
    "test_dynamicquantizelinear_expanded": "one value is a tie in f32 but not in float64",
    "test_mod_float_edge_cases_fmod_0_float16": "signs of NaN and zero in edge cases",
    "test_mod_float_edge_cases_fmod_0_float32": "signs of NaN and zero in edge cases",
    "test_mod_float_edge_cases_fmod_0_float64": "signs of NaN and zero in edge cases",
}

# Operators of which at least one case must be accepted.
COVERED = set(
    """
Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization BitCast
BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil Celu CenterCropPad Clip
Col2Im Concat ConstantOfShape Conv ConvInteger ConvTranspose Cos Cosh CumSum DFT DeformConv
DepthToSpace DequantizeLinear Det Div Dropout DynamicQuantizeLinear Einsum Elu Equal Erf Exp Expand
EyeLike Flatten Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalMaxPool
Greater GreaterOrEqual GroupNormalization HardSigmoid HardSwish Hardmax Identity
InstanceNormalization IsInf IsNaN LRN LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax
LpNormalization LpPool MatMul MatMulInteger Max MaxPool MaxUnpool Mean MeanVarianceNormalization Min
Mish Mod Mul Neg OneHot Or PRelu Pad Pow QLinearConv QLinearMatMul QuantizeLinear RMSNormalization
Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin
ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence RoiAlign Round STFT Selu
Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt
Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile Transpose Trilu Unsqueeze Where Xor
""".split()  # noqa: SIM905
)


@cache
def _by_operator() -> dict[str, list[Case]]:
    found: dict[str, list[Case]] = {}
    for case in collect().values():
        if case.kind == "node":
            model = case.load()
            if out_of_scope(model) is None and "training" not in case.name:
                found.setdefault(model.graph.node[0].op_type, []).append(case)
    return dict(sorted(found.items()))


def _operators() -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the suite overflows on purpose while generating
        yield from _by_operator()


def _variants(case: Case) -> Iterator[tuple[onnx.ModelProto, dict[str, Array], list[Array]]]:
    """The model as it is and, in case that is refused, with its small integer inputs (shapes,
    axes, sizes) fixed, which is how models come."""
    model = case.load()
    for inputs, expected in case.data():
        arrays = map(_array, inputs)
        feeds = dict(zip([i.name for i in model.graph.input], arrays, strict=True))
        yield model, feeds, [_array(x) for x in expected]


def _array(value: Any) -> Array:
    """The suite holds some tensors as arrays, some as scalars and some as messages."""
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return np.asarray(value)


def _fixed(
    model: onnx.ModelProto, feeds: dict[str, Array]
) -> tuple[onnx.ModelProto, dict[str, Array]]:
    result = onnx.ModelProto()
    result.CopyFrom(model)
    kept = [i for i in model.graph.input if not _is_setting(feeds[i.name], len(feeds))]
    del result.graph.input[:]
    result.graph.input.extend(kept)
    names = {i.name for i in kept}
    for name, array in feeds.items():
        if name not in names:
            result.graph.initializer.append(numpy_helper.from_array(array, name))
    return result, {name: feeds[name] for name in feeds if name in names}


def _is_setting(array: Array, count: int) -> bool:
    if count == 1:
        return array.dtype == np.int64 and array.ndim == 1
    return array.size <= 64 and (array.dtype.kind in "iub" or array.ndim <= 1)


def _compile(model: onnx.ModelProto, feeds: dict[str, Array]) -> tuple[Compiled, dict[str, Array]]:
    try:
        return compile_model(model.SerializeToString()), feeds
    except UnsupportedError:
        model, feeds = _fixed(model, feeds)
        return compile_model(model.SerializeToString()), feeds


def _compare(name: str, got: dict[str, Array], expected: list[Array]) -> None:
    for (output, value), want in zip(got.items(), expected, strict=True):
        assert value.shape == want.shape, f"{name} {output}"
        # As precise as the expected values are.
        tolerance = {"float16": 2e-3, "bfloat16": 2e-2}.get(want.dtype.name, 1e-4)
        np.testing.assert_allclose(
            value.astype(np.float64),
            want.astype(np.float64),
            rtol=max(2e-3, tolerance),
            atol=tolerance,
            err_msg=f"{name} {output}",
        )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("operator", list(_operators()))
def test_operator(operator: str) -> None:
    accepted, on_wasm = 0, False
    for case in _by_operator()[operator]:
        if case.name in EXEMPT:
            continue
        for model, feeds, expected in _variants(case):
            try:
                compiled, rest = _compile(model, feeds)
            except UnsupportedError:
                continue
            if any(a.dtype != p.dtype.numpy for p in compiled.plan.inputs
                   if (a := rest[p.name]) is not None):  # fmt: skip
                continue  # bfloat16 arrives as float32
            accepted += 1
            _compare(case.name, play(compiled, rest), expected)
            if not on_wasm:
                with InferenceSession(compiled, ["wasm"], threads=1) as session:
                    names = [p.name for p in session.get_outputs()]
                    got = dict(zip(names, session.run(None, rest), strict=True))
                _compare(f"{case.name} on wasmtime", got, expected)
                record_executor("wasmtime")
                on_wasm = True
    if not accepted:
        assert operator not in COVERED, "no case is accepted any more"
        pytest.skip(f"{operator} is not supported")


def test_covered_operators_are_in_the_suite() -> None:
    assert not COVERED - set(_by_operator())
