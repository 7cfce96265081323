"""Every element type that ONNX lets an operator have, for operators of every family, on both
executors of this machine: as ONNX's reference has it, or refused with an error that says why.

Integers of up to 32 bits are drawn from all that their type holds, with both ends, so wrapping
around and signs show; uint32 from what a feed may hold. The upper half of uint32, which only
computing reaches, has a test of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import defs, helper

from pywebgpu.compile import compile_model
from pywebgpu.errors import InputError, UnsupportedError
from pywebgpu.session import InferenceSession
from tests.executors_seen import record_executor
from tests.ops.agree import by_definition, feeds_of, model_of

Array = np.ndarray[Any, Any]
Inputs = dict[str, Array | None]
Draw = Callable[..., Array]

EXECUTORS = [
    pytest.param("wasm", id="wasmtime"),
    pytest.param("webgpu", id="wgpu", marks=pytest.mark.wgpu),
]
TYPES: dict[str, np.dtype[Any]] = {
    "float": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "double": np.dtype(np.float64),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "bool": np.dtype(bool),
    **{name: np.dtype(name) for name in ("int8", "int16", "int32", "int64")},
    **{name: np.dtype(name) for name in ("uint8", "uint16", "uint32", "uint64")},
}
SAME = "the type of the inputs"
ROW, WIDE = (3, 5), (4, 6)


@dataclass(frozen=True)
class Case:
    """`make(draw, dtype)` gives the inputs; `types` names the types' constraint in the schema;
    `judge` answers in place of the reference; `refused` are types with a part of the error."""

    op: str
    make: Callable[[Draw, np.dtype[Any]], Inputs]
    constants: tuple[str, ...] = ()
    outputs: tuple[Any, ...] = (SAME,)
    types: str = "T"
    opset: int = 21
    attrs: Mapping[str, Any] = field(default_factory=dict)
    judge: Callable[..., Any] | None = None
    refused: Mapping[str, str] = field(default_factory=dict)

    def model(self, dtype: np.dtype[Any], inputs: Inputs) -> onnx.ModelProto:
        outputs = [(f"y{i}", dtype if t is SAME else t) for i, t in enumerate(self.outputs)]
        constants, opset = self.constants, self.opset
        return model_of(self.op, inputs, outputs, constants, opset=opset, **self.attrs)

    def answer(self, model: onnx.ModelProto, inputs: Inputs, dtype: np.dtype[Any]) -> list[Array]:
        if self.judge is not None:
            return [np.asarray(self.judge(*inputs.values())).astype(dtype)]
        types = [dtype if t is SAME else np.dtype(t) for t in self.outputs]
        answers = by_definition(model, feeds_of(model, inputs))
        return [np.asarray(a).astype(t) for a, t in zip(answers, types, strict=True)]

    def allowed(self) -> list[str]:
        schema = defs.get_schema(self.op, self.opset)
        given = {t.type_param_str: t.allowed_type_strs for t in schema.type_constraints}
        found = [name for name in TYPES if f"tensor({name})" in given[self.types]]
        assert found, self.op
        return found


def drawing(rng: np.random.Generator, dtype: np.dtype[Any]) -> Draw:
    def draw(*shape: int, small: bool = False, positive: bool = False, like: Any = None) -> Array:
        kind = dtype if like is None else np.dtype(like)
        if kind.kind == "b":
            return rng.integers(0, 2, shape).astype(bool)
        if kind.kind not in "iu":
            values = rng.standard_normal(shape) * 3
            return (np.abs(values) + 0.5 if positive else values).astype(kind)
        low, high = int(np.iinfo(kind).min), min(int(np.iinfo(kind).max), 2**31 - 1)
        if small or kind.itemsize == 8:
            low, high = max(low, -9), 9
        low = 1 if positive else low
        found = rng.integers(low, high, shape, endpoint=True, dtype=np.int64)
        if found.size > 2:
            found.ravel()[:2] = low, high
        return found.astype(kind)

    return draw


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


def one(draw: Draw, dtype: np.dtype[Any]) -> Inputs:
    return {"a": draw(*ROW)}


def two(draw: Draw, dtype: np.dtype[Any]) -> Inputs:
    return {"a": draw(*ROW), "b": draw(*ROW)}


def divided(draw: Draw, dtype: np.dtype[Any]) -> Inputs:
    divisor = draw(*ROW, positive=True)
    return {"a": draw(*ROW), "b": divisor if dtype.kind == "u" else divisor * draw_sign(draw)}


def draw_sign(draw: Draw) -> Array:
    return np.where(draw(*ROW, like=bool), 1, -1).astype(np.int8)


def along(draw: Draw, dtype: np.dtype[Any]) -> Inputs:
    return {"a": draw(*ROW), "axes": ints(1)}


def picture(draw: Draw, dtype: np.dtype[Any]) -> Inputs:
    return {"a": draw(1, 2, 6, 6)}


def scattered(draw: Draw, dtype: np.dtype[Any]) -> Inputs:
    return {"a": draw(*ROW), "i": ints(2, 2, 1, 0, 1, 1).reshape(2, 3), "u": draw(2, 3)}


def product(draw: Draw, dtype: np.dtype[Any]) -> Inputs:
    return {"a": draw(*WIDE), "b": draw(6, 5)}


def affine(draw: Draw, dtype: np.dtype[Any]) -> Inputs:
    return {"a": draw(*WIDE), "b": draw(6, 5), "c": draw(5)}


def enlarged(draw: Draw, dtype: np.dtype[Any]) -> Inputs:
    # Numbers of more than 24 bits are rounded on the way, as in every runtime.
    return {"a": draw(1, 1, 3, 4, small=True), "": None, "s": np.array([1, 1, 2, 2], np.float32)}


def truncated_linear(a: Array, *_: Any) -> Array:
    """Fractions are dropped, as ONNX Runtime does; the reference rounds some."""
    sizes = {"a": a.astype(np.float32), "": None, "s": np.array([1, 1, 2, 2], np.float32)}
    model = model_of("Resize", sizes, [("y", np.float32)], ["s"], mode="linear")
    (y,) = by_definition(model, {"a": sizes["a"]})
    return np.trunc(y) if a.dtype.kind in "iu" else y


def attention(*sides: Array) -> Array:
    q, k, v = (side.astype(np.float64) for side in sides)
    scores = np.exp(q @ k.swapaxes(2, 3) / np.sqrt(q.shape[3]))
    return np.asarray(scores / scores.sum(3, keepdims=True) @ v)


def case(op: str, make: Any, *constants: str, **attrs: Any) -> Case:
    return Case(op, make, constants, attrs=attrs)


def answers(found: Case, *outputs: Any, **changes: Any) -> Case:
    return Case(**{**vars(found), **({"outputs": outputs} if outputs else {}), **changes})


WIDER = "may not fit 32 bits"
NO_BOUND = {"int64": WIDER, "uint64": WIDER}
CASES: dict[str, Case] = {
    **{op: case(op, two) for op in ("Add", "Mul", "Max", "Min", "Mean", "Sum")},
    "Sub": answers(case("Sub", two), refused={"uint64": WIDER}),
    "Div": case("Div", divided),
    "Mod": case("Mod", divided),
    "Mod as fmod": case("Mod", divided, fmod=1),
    "Pow": case("Pow", lambda d, t: {
        "a": d(*ROW, small=True, positive=t.kind not in "iu"),
        "b": np.array([0, 1, 2, 2, 3]).astype(t)}, "b"),
    **{op: case(op, one) for op in ("Abs", "Neg", "Sign", "Relu", "Floor", "Tanh", "Sigmoid")},
    **{op: case(op, lambda d, t: {"a": d(*ROW, positive=True)}) for op in ("Sqrt", "Exp", "Erf")},
    **{op: answers(case(op, two), bool) for op in ("Equal", "Less", "GreaterOrEqual")},
    **{op: answers(case(op, two), bool) for op in ("And", "Xor")},
    "Not": answers(case("Not", one), bool),
    **{op: case(op, two) for op in ("BitwiseAnd", "BitwiseXor")},
    "BitwiseNot": case("BitwiseNot", one),
    **{f"BitShift {way}": case("BitShift", lambda d, t: {
        "a": d(*ROW), "b": np.arange(15).reshape(ROW).astype(t) % 8}, direction=way)
       for way in ("LEFT", "RIGHT")},
    "Where": case("Where", lambda d, t: {"c": d(*ROW, like=bool), "a": d(*ROW), "b": d(*ROW)}),
    "Clip": case("Clip", lambda d, t: {
        "a": d(*ROW), "low": np.array(2).astype(t), "high": np.array(5).astype(t)}, "low", "high"),
    "PRelu": case("PRelu", lambda d, t: {"a": d(*ROW), "s": d(5)}, "s"),
    "IsNaN": answers(case("IsNaN", one), bool, types="T1"),
    **{op: case(op, along, "axes") for op in (
        "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceSumSquare")},
    "ReduceMean": case("ReduceMean", lambda d, t: {
        "a": d(*ROW, small=t == np.uint32), "axes": ints(1)}, "axes"),
    **{op: answers(case(op, one, axis=1), np.int64) for op in ("ArgMax", "ArgMin")},
    "CumSum": case("CumSum", lambda d, t: {"a": d(*ROW), "axis": np.array(1)}, "axis"),
    "Softmax": case("Softmax", one),
    "LayerNormalization": case("LayerNormalization", lambda d, t: {
        "a": d(*ROW), "g": d(5), "b": d(5)}, "g", "b"),
    "Transpose": case("Transpose", one),
    "Identity": answers(case("Identity", one), types="V"),
    "Concat": case("Concat", two, axis=1),
    "Split": answers(case("Split", lambda d, t: {"a": d(4, 5)}, num_outputs=2), SAME, SAME),
    "Slice": case("Slice", lambda d, t: {
        "a": d(*ROW), "s": ints(4), "e": ints(-6), "x": ints(1), "t": ints(-2)},
        "s", "e", "x", "t"),
    "Pad": case("Pad", lambda d, t: {
        "a": d(*ROW), "p": ints(1, 0, 0, 2), "v": np.array(1).astype(t)}, "p", "v"),
    "Pad by reflection": case("Pad", lambda d, t: {"a": d(*ROW), "p": ints(1, 1, 0, 2)}, "p",
                              mode="reflect"),
    "Gather": case("Gather", lambda d, t: {"a": d(*ROW), "i": ints(2, -1)}, axis=1),
    "GatherND": case("GatherND", lambda d, t: {"a": d(*ROW), "i": ints(2, 0).reshape(1, 2)}),
    "GatherElements": case("GatherElements", lambda d, t: {
        "a": d(*ROW), "i": np.arange(15).reshape(ROW) % 6 - 3}),
    "ScatterElements": case("ScatterElements", lambda d, t: {
        "a": d(*ROW), "i": ints(2, 0, 1).reshape(1, 3), "u": d(1, 3)}),
    **{f"ScatterElements {how}": case("ScatterElements", scattered, reduction=how)
       for how in ("add", "max", "min")},
    "ScatterElements mul": answers(case("ScatterElements", scattered, reduction="mul"),
                                   refused=NO_BOUND),
    "ScatterND": case("ScatterND", lambda d, t: {
        "a": d(*ROW), "i": ints(2, 0).reshape(2, 1), "u": d(2, 5)}),
    "Expand": case("Expand", lambda d, t: {"a": d(1, 5), "s": ints(3, 5)}, "s"),
    "Tile": case("Tile", lambda d, t: {"a": d(*ROW), "s": ints(2, 1)}, "s"),
    "Reshape": case("Reshape", lambda d, t: {"a": d(*ROW), "s": ints(5, 3)}, "s"),
    "Trilu": case("Trilu", one, upper=0),
    "EyeLike": answers(case("EyeLike", one), types="T1"),
    "OneHot": answers(
        case("OneHot", lambda d, t: {"i": ints(0, 2, -1), "n": np.array(4), "v": d(2)}, "n"),
        types="T3", judge=lambda i, n, v: v[(i[:, None] % 4 == np.arange(4)).astype(int)]),
    "ReverseSequence": case("ReverseSequence", lambda d, t: {"a": d(4, 3), "l": ints(1, 4, 2)}),
    "DepthToSpace": case("DepthToSpace", lambda d, t: {"a": d(1, 4, 2, 3)}, blocksize=2),
    "Compress": case("Compress", lambda d, t: {
        "a": d(*ROW), "c": np.array([1, 0, 1], bool)}, "c", axis=0),
    "Range": case("Range", lambda d, t: {
        n: np.array(v).astype(t) for n, v in (("a", 1), ("b", 9), ("c", 2))}, "a", "b", "c"),
    "MatMul": case("MatMul", product),
    "MatMul with weights": case("MatMul", product, "b"),
    "Gemm": answers(case("Gemm", affine, "b", "c"), judge=lambda a, b, c: (
        a @ b + c if a.dtype.kind in "iu" else a.astype("d") @ b.astype("d") + c.astype("d")),
        refused=NO_BOUND),
    "Einsum": case("Einsum", lambda d, t: {"a": d(2, 4, 6), "b": d(2, 6, 5)},
                   equation="bij,bjk->bik"),
    "Conv": case("Conv", lambda d, t: {"a": d(1, 3, 6, 6), "w": d(4, 3, 3, 3)}, "w"),
    "MaxPool": answers(case("MaxPool", picture, kernel_shape=[2, 2], strides=[2, 2]),
                       SAME, np.int64),
    "AveragePool": case("AveragePool", picture, kernel_shape=[2, 2]),
    "Resize to the nearest": answers(
        case("Resize", enlarged, "s", mode="nearest", nearest_mode="floor",
             coordinate_transformation_mode="asymmetric"),
        types="T1", judge=lambda a, *_: a.repeat(2, 2).repeat(2, 3)),
    "Resize linearly": answers(case("Resize", enlarged, "s", mode="linear"), types="T1",
                               judge=truncated_linear),
    "TopK": answers(case("TopK", lambda d, t: {"a": d(3, 9), "k": ints(4)}, "k"), SAME, np.int64),
    "NonZero": answers(case("NonZero", lambda d, t: {"a": d(*ROW, small=True)}), np.int64),
    "Unique": case("Unique", lambda d, t: {"a": d(9, small=True)}),
    "Attention": answers(
        case("Attention", lambda d, t: {n: d(1, 2, 4, 8) for n in ("q", "k", "v")}),
        types="T1", opset=23, judge=attention),
    "LSTM": case("LSTM", lambda d, t: {"x": d(3, 1, 4), "w": d(1, 12, 4), "r": d(1, 12, 3)},
                 "w", "r", hidden_size=3),
}  # fmt: skip


def same(got: Array, want: Array, where: str) -> None:
    assert got.shape == want.shape, where
    assert got.dtype == want.dtype, where
    if want.dtype.kind in "biu":
        np.testing.assert_array_equal(got, want, where)
        return
    tolerance = {"float16": 2e-3, "bfloat16": 1e-2}.get(want.dtype.name, 2e-5)
    wanted = want.astype(np.float64)
    scale = np.abs(wanted[np.isfinite(wanted)]).max(initial=1)
    np.testing.assert_allclose(
        got.astype(np.float64), wanted, tolerance, tolerance * scale, err_msg=where
    )


@pytest.fixture
def rng() -> np.random.Generator:
    """Seeded afresh; pytest shows the seed of a test that fails, and SEED=... takes it again."""
    seed = int(os.environ.get("SEED") or np.random.SeedSequence().generate_state(1)[0])
    print(f"SEED={seed}")
    return np.random.default_rng(seed)


def ran(model: onnx.ModelProto, feeds: Mapping[str, Array], executor: str) -> Sequence[Array]:
    with InferenceSession(compile_model(model.SerializeToString()), [executor]) as session:
        found = session.run(None, dict(feeds))
    record_executor({"wasm": "wasmtime", "webgpu": "wgpu"}[executor])
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("name", CASES)
def test_every_type_of_an_operator(name: str, executor: str, rng: np.random.Generator) -> None:
    tried = CASES[name]
    for type_ in tried.allowed():
        dtype = TYPES[type_]
        inputs = tried.make(drawing(rng, dtype), dtype)
        model = tried.model(dtype, inputs)
        feeds = feeds_of(model, inputs)
        if type_ in tried.refused:
            with pytest.raises(UnsupportedError, match=tried.refused[type_]) as caught:
                ran(model, feeds, executor)
            assert tried.op in caught.value.where
            continue
        with np.errstate(all="ignore"):
            expected = tried.answer(model, inputs, dtype)
        for got, want in zip(ran(model, feeds, executor), expected, strict=True):
            same(got, want, f"{name} of {type_}")


# What becomes of uint32 beyond the numbers that int32 has, too: ~x, for any x that is fed.
UPPER = (
    "Add", "Sub", "Mul", "Max", "Min", "Equal", "Less", "GreaterOrEqual", "BitwiseXor", "Where",
    "Clip", "ReduceSum", "CumSum", "Transpose", "Gather", "ScatterElements", "ScatterElements add",
    "Concat", "Pad", "MatMul",
)  # fmt: skip
NOT_UPPER = (
    "Div", "Mod", "Abs", "Sign", "BitShift RIGHT", "ReduceMax", "ReduceMean", "ReduceProd",
    "ArgMax", "ScatterElements max", "ScatterElements min", "TopK", "NonZero", "Unique", "Gemm",
    "Resize linearly",
)  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("name", [*UPPER, *NOT_UPPER])
def test_the_upper_half_of_uint32(name: str, executor: str, rng: np.random.Generator) -> None:
    tried, dtype = CASES[name], TYPES["uint32"]
    inputs = tried.make(drawing(rng, dtype), dtype)
    model = tried.model(dtype, inputs)
    (node,) = model.graph.node
    node.input[:] = ["large" if i == "a" else i for i in node.input]
    model.graph.node.insert(0, helper.make_node("BitwiseNot", ["a"], ["large"]))
    feeds = feeds_of(model, inputs)
    if name in NOT_UPPER:
        with pytest.raises(UnsupportedError, match=WIDER):
            ran(model, feeds, executor)
        return
    for got, want in zip(ran(model, feeds, executor), by_definition(model, feeds), strict=True):
        same(got, want, name)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("source", TYPES)
def test_casts(source: str, executor: str, rng: np.random.Generator) -> None:
    """Between all pairs, of numbers that both types hold, but for fractions and wrapping."""
    dtype = TYPES[source]
    for target, to in TYPES.items():
        x = rng.integers(0, 100, 40) if dtype.kind == "u" else rng.integers(-100, 100, 40)
        if dtype.kind not in "iub":
            x = x / 8 if to.kind != "u" else np.abs(x) / 8
        x = x.astype(dtype)
        model = model_of(
            "Cast", {"x": x}, [("y", to)], to=helper.np_dtype_to_tensor_dtype(to)
        )  # fmt: skip
        if target == "uint64" and (dtype.kind not in "ub"):
            # Below zero it has no number of 32 bits.
            with pytest.raises(UnsupportedError, match=WIDER):
                ran(model, {"x": x}, executor)
            continue
        (want,) = by_definition(model, {"x": x})
        same(ran(model, {"x": x}, executor)[0], want.astype(to), f"{source} to {target}")


def test_what_no_32_bits_hold_is_refused() -> None:
    for feed in (np.array([2**40]), np.array([2**32 - 1], np.uint32), np.array([1e300])):
        model = model_of("Abs", {"x": feed}, [("y", feed.dtype)])
        with pytest.raises(InputError, match=r"input 'x': a value does not fit"):
            ran(model, {"x": feed}, "wasm")
    model = model_of("Add", {"x": np.ones(2), "c": np.array([1e300, 1])}, [("y", "d")], ["c"])
    with pytest.raises(UnsupportedError, match=r"constant 'c': an element does not fit float32"):
        compile_model(model.SerializeToString())


def test_a_mean_whose_sum_does_not_fit_is_refused() -> None:
    x = np.full(5, 2**30)
    model = model_of("ReduceMean", {"x": x}, [("y", x.dtype)], keepdims=0)
    with pytest.raises(InputError, match="does not fit 32 bits after what the model does"):
        ran(model, {"x": x}, "wasm")
    np.testing.assert_array_equal(ran(model, {"x": x // 8}, "wasm")[0], 2**27)
