"""What a GPU plays in fewer kernels: which steps disappear, which stay, and that both agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from pywebgpu.codegen import wgsl
from pywebgpu.codegen.caps import WgslCaps
from pywebgpu.codegen.codec import spec_from_json, spec_to_json
from pywebgpu.codegen.spec import Attention, Map, Matmul, Row, family
from pywebgpu.compile import Compiled, compile_model
from pywebgpu.lower.int4 import Int4
from tests.bench.layers import _Graph, decoder, encoder, genai_decoder
from tests.plan_eval import play

SIZES = {"layers": 2, "hidden": 32, "heads": 4}
PAST = 80
IN_BLOCKS = {"layers": 2, "hidden": 128, "heads": 4, "kv_heads": 2, "wide": 160}
"""Large enough that every product is quantised."""


@pytest.fixture
def compiled(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Compiled, Path]:
    path = tmp_path / "model.onnx"
    if request.param == "encoder":
        encoder(path, **SIZES)
    elif request.param == "decoder, int4":
        decoder(path, **IN_BLOCKS)
        return compile_model(path, int8=Int4()), path
    elif request.param == "decoder, MatMulNBits":
        genai_decoder(path, **IN_BLOCKS, past=PAST)
    else:
        decoder(path, **SIZES, kv_heads=2, wide=48)
    return compile_model(path), path


@pytest.mark.parametrize(
    ("compiled", "per_layer", "around"),
    [
        ("encoder", 5, 0),
        ("decoder", 6, 1),
        ("decoder, int4", 6, 1),
        # Once for all layers: cosines and sines; where new rows go, and the mask; which they are.
        ("decoder, MatMulNBits", 6, 1 + 3),
    ],
    indirect=["compiled"],
)
def test_dispatches_per_layer(
    compiled: tuple[Compiled, Path], per_layer: int, around: int
) -> None:  # fmt: skip
    """An encoder's five: products for queries, keys and values, attention, three products. One
    stores statistics of its rows, the next normalises by them, the last in its second pass. A
    decoder's six: one writes both longer caches."""
    plan = compiled[0].plan
    assert len(plan.on_gpu.steps) == 2 * per_layer + around
    assert plan.gpu is not None
    assert len(plan.steps) > len(plan.gpu.steps)
    assert all(getattr(k, "prologue", None) is None for k in plan.kernels), "wasm has none"
    assert all(getattr(k, "query", None) is None for k in plan.kernels)
    rows = [s for s in plan.gpu.steps if isinstance(plan.gpu.kernels[s.kernel], Row)]
    assert len(rows) == min(around, 1)
    for spec in plan.gpu.kernels:
        assert spec_from_json(spec_to_json(spec)) == spec
        kept = isinstance(spec, (Map, Matmul)) and spec.keep is not None
        assert len(spec.operands) + kept <= 7


@pytest.mark.parametrize(
    ("hidden", "heads", "rows", "most"), [(384, 12, 128, 6), (768, 12, 384, 7), (64, 4, "n", 6)]
)
def test_passes_of_an_encoder_layer(
    tmp_path: Path, hidden: int, heads: int, rows: int | str, most: int
) -> None:
    """MiniLM's layer, BERT base's, and a small one: a product's second pass counts, and BERT's two
    normalisations are such (see `_LONGEST_MEASURED`)."""
    path = tmp_path / "encoder.onnx"
    encoder(path, layers=1, hidden=hidden, heads=heads)
    model = onnx.load(path)
    for port in (*model.graph.input, *model.graph.output):
        for dim, size in zip(port.type.tensor_type.shape.dim, (1, rows), strict=False):
            if isinstance(size, int):
                dim.dim_value = size
    plan = compile_model(model).plan.on_gpu
    kernels = [plan.kernels[step.kernel] for step in plan.steps]
    for caps in (WgslCaps(), WgslCaps(emulated=True)):
        passes = [len(wgsl.render(k, wgsl.space(k, caps)[0]).passes) for k in kernels]
        assert sum(passes) <= most, passes


@pytest.mark.parametrize("compiled", ["encoder", "decoder", "decoder, MatMulNBits"], indirect=True)
def test_both_programs_mean_the_model(compiled: tuple[Compiled, Path]) -> None:
    model, path = compiled
    native = onnxruntime.InferenceSession(path)
    rng = np.random.default_rng(2)
    sizes = {"batch": 2, "sequence": 5, "past": PAST}
    feeds = {
        port.name: rng.standard_normal([sizes.get(d, d) for d in port.shape]).astype(np.float32)
        for port in native.get_inputs()
    }
    if "seqlens_k" in feeds:
        feeds["seqlens_k"] = np.array([sizes["past"]], np.int32)
    wanted = dict(zip([o.name for o in native.get_outputs()], native.run(None, feeds), strict=True))
    for name, got in play(model, feeds).items():  # plays both, and compares them
        np.testing.assert_allclose(got, wanted[name], 1e-4, 1e-4, err_msg=name)


@pytest.mark.parametrize("compiled", ["decoder"], indirect=True)
def test_a_decoder_turns_its_queries_where_they_are_read(compiled: tuple[Compiled, Path]) -> None:
    gpu = compiled[0].plan.on_gpu
    attentions = [k for k in gpu.kernels if isinstance(k, Attention)]
    assert attentions
    assert all(a.query is not None for a in attentions)


def _save(
    path: Path, nodes: list[Any], constants: dict[str, Any], ports: dict[str, Any], outputs: int,
    opset: int = 20,
) -> Compiled:  # fmt: skip
    """The last `outputs` of the ports are outputs."""
    values = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in ports.items()
    ]
    graph = helper.make_graph(
        nodes, "port", values[:-outputs], values[-outputs:],
        [numpy_helper.from_array(a.astype(np.float32), n) for n, a in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.save(model, path)
    return compile_model(path)


def _check(compiled: Compiled, path: Path, feeds: dict[str, Any]) -> None:
    session = onnxruntime.InferenceSession(path)
    found = play(compiled, feeds)
    for port, wanted in zip(session.get_outputs(), session.run(None, feeds), strict=True):
        np.testing.assert_allclose(found[port.name], wanted, 1e-4, 1e-4, err_msg=port.name)


def test_a_port_is_stored_by_the_product_that_normalises_it(tmp_path: Path) -> None:
    """The hidden state is an output, and a product of few rows reads it."""
    rng = np.random.default_rng(0)
    constants = {"g": rng.random(16), "b": rng.random(16), "w": rng.standard_normal((16, 24))}
    nodes = [
        helper.make_node("LayerNormalization", ["x", "g", "b"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "w"], ["y"]),
    ]
    ports = {"x": [7, 16], "hidden": [7, 16], "y": [7, 24]}
    path = tmp_path / "port.onnx"
    compiled = _save(path, nodes, constants, ports, outputs=2)
    (step,) = compiled.plan.on_gpu.steps
    assert family(compiled.plan.on_gpu.kernels[step.kernel]) == "matmul"
    assert step.kept == compiled.plan.outputs[0].buffer
    _check(compiled, path, {"x": rng.standard_normal((7, 16)).astype(np.float32)})


@pytest.mark.parametrize("port", [True, False])
def test_a_product_normalises_its_rows(tmp_path: Path, port: bool) -> None:
    """A residual stream, which is an output or read again: the product stores that as well."""
    rng = np.random.default_rng(0)
    constants = {"g": rng.random(24), "b": rng.random(24), "w": rng.standard_normal((16, 24))}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node("Add", ["product", "r"], ["stream"]),
        helper.make_node("LayerNormalization", ["stream", "g", "b"], ["y"]),
    ]
    if not port:
        nodes += [
            helper.make_node("MatMul", ["y", "v"], ["more"]),
            helper.make_node("Add", ["stream", "more"], ["stream2"]),
        ]
        constants["v"] = rng.standard_normal((24, 24))
    last = "stream" if port else "stream2"
    ports = {"x": ["n", 16], "r": ["n", 24], "y": ["n", 24], last: ["n", 24]}
    path = tmp_path / "rows.onnx"
    compiled = _save(path, nodes, constants, ports, outputs=2)
    steps = compiled.plan.on_gpu.steps
    assert len(steps) == (1 if port else 2)
    spec = compiled.plan.on_gpu.kernels[steps[0].kernel]
    assert isinstance(spec, Matmul)
    assert spec.epilogue is not None
    assert steps[0].kept is not None
    x, r = (rng.standard_normal((9, size)).astype(np.float32) for size in (16, 24))
    _check(compiled, path, {"x": x, "r": r})


def test_maps_that_store_alike_are_one_kernel(tmp_path: Path) -> None:
    """Two each; what depends on one of them comes after, and what reads crosswise stays alone."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Exp", ["x"], ["a"]),
        helper.make_node("Tanh", ["a"], ["b"]),
        helper.make_node("Sin", ["x"], ["c"]),
        helper.make_node("Transpose", ["z"], ["d"]),
        helper.make_node("Neg", ["x"], ["e"]),
    ]
    ports = {"x": ["n", 6], "z": [6, "n"], **{key: ["n", 6] for key in "abcde"}}
    path = tmp_path / "maps.onnx"
    compiled = _save(path, nodes, {}, ports, outputs=5)
    plan = compiled.plan
    assert len(plan.steps) == 5
    pairs = [(step.output, step.kept) for step in plan.on_gpu.steps]
    number = {port.name: port.buffer for port in plan.outputs}
    assert pairs == [(number["a"], number["c"]), (number["b"], number["e"]), (number["d"], None)]
    feeds = {"x": rng.standard_normal((5, 6)), "z": rng.standard_normal((6, 5))}
    _check(compiled, path, {name: x.astype(np.float32) for name, x in feeds.items()})


@pytest.mark.parametrize("norm", ["LayerNormalization", "RMSNormalization"])
@pytest.mark.parametrize("reader", ["product", "residual", "port"])
def test_rows_are_normalised_by_their_reader(tmp_path: Path, norm: str, reader: str) -> None:
    """By statistics that the product before has stored; who else reads the result, or the values
    themselves, finds them."""
    rng = np.random.default_rng(0)
    constants = {
        "g": rng.random(64), "w": rng.standard_normal((48, 64)), "v": rng.standard_normal((64, 64)),
        "b": rng.random(64),
    }  # fmt: skip
    scale = ["g"] if norm == "RMSNormalization" else ["g", "b"]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node("Add", ["product", "r"], ["stream"]),
        helper.make_node(norm, ["stream", *scale], ["normed"], axis=-1),
        helper.make_node("MatMul", ["normed", "v"], ["more"]),
        helper.make_node("Add", ["stream", "more"], ["y"]),
    ]
    if reader == "residual":
        nodes[-1:] = [
            helper.make_node("MatMul", ["more", "v"], ["again"]),
            helper.make_node("Add", ["normed", "again"], ["y"]),
        ]
    ports = {"x": ["n", 48], "r": ["n", 64], "y": ["n", 64]}
    outputs = 1
    if reader == "port":
        ports["normed"], outputs = ["n", 64], 2
    path = tmp_path / "rows.onnx"
    compiled = _save(path, nodes, constants, ports, outputs, opset=23)
    first, second, *_ = compiled.plan.on_gpu.steps
    kernels = [compiled.plan.on_gpu.kernels[step.kernel] for step in (first, second)]
    assert isinstance(kernels[0], Matmul)
    assert isinstance(kernels[1], Matmul)
    assert kernels[0].statistics is not None
    assert kernels[1].prologue is not None
    assert kernels[1].prologue.statistics is not None
    assert first.kept in second.operands
    assert (second.kept is None) == (reader == "product")
    x, r = (rng.standard_normal((37, size)).astype(np.float32) for size in (48, 64))
    _check(compiled, path, {"x": x, "r": r + 30})


@pytest.mark.parametrize("long", [False, True])
def test_products_in_blocks_normalise_rows_too(tmp_path: Path, long: bool) -> None:
    """Of any number: by the next product, or where sums are `long` in the second pass."""
    g = _Graph()
    k = 128 if long else 64
    stream = g.op("Add", g.linear4("x", k, 64), "r")
    kind = "SimplifiedLayerNormalization"
    normed = g.op(kind, stream, g.vector(64, 1.0), epsilon=1e-5)
    g.output(g.op("Add", stream, g.linear4(normed, 64, 64)), "y")
    path = tmp_path / "blocks.onnx"
    g.save(path, {"x": ["n", k], "r": ["n", 64]}, {"y": ["n", 64]})
    compiled = compile_model(path)
    first, second = (compiled.plan.on_gpu.kernels[s.kernel] for s in compiled.plan.on_gpu.steps)
    assert isinstance(first, Matmul)
    assert isinstance(second, Matmul)
    assert first.blocks is not None
    assert (first.statistics is None, first.epilogue is None) == (long, not long)
    rng = np.random.default_rng(0)
    feeds = {"x": rng.standard_normal((21, k)), "r": rng.standard_normal((21, 64)) + 30}
    _check(compiled, path, {name: x.astype(np.float32) for name, x in feeds.items()})
