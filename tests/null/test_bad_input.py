"""Bad input through the command line: exit code 2, one clear message, nothing half-written."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from pywebgpu.cli import app
from pywebgpu.console import run_guarded
from pywebgpu.errors import PywebgpuError

DIGITS = Path(__file__).resolve().parents[2] / "examples" / "digits" / "digits.onnx"


def call(*arguments: str | Path) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of the command, run inside this process."""
    out, err = io.StringIO(), io.StringIO()
    argv = ["pywebgpu", *map(str, arguments)]
    with (
        mock.patch.object(sys, "argv", argv),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            code = run_guarded(app)
        except SystemExit as exit_:
            code = int(exit_.code or 0)
    return code, out.getvalue(), err.getvalue()


def assert_user_error(result: tuple[int, str, str], *mentions: str) -> None:
    code, out, err = result
    assert code == 2, f"exit code {code}: {out}{err}"
    assert err.startswith("pywebgpu: error: ")
    assert "Traceback" not in err
    assert len(err) < 4000
    for text in mentions:
        assert text in err


def small_model(
    nodes: list[onnx.NodeProto], shape: tuple[int, ...] = (3, 3), **opsets: int
) -> onnx.ModelProto:
    """x: float[3, 3] -> y: float[shape], through `nodes`."""
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (3, 3))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    imports = [helper.make_opsetid("", 20)]
    imports += [helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    return helper.make_model(graph, opset_imports=imports, ir_version=9)


def external(location: str) -> bytes:
    """A model whose one weight lies in a file of that name."""
    model = small_model([helper.make_node("Add", ["x", "w"], ["y"])])
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3, 3])
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    model.graph.initializer.append(weight)
    return model.SerializeToString()


def node(op: str, shape: tuple[int, ...] = (3, 3), **options: str) -> bytes:
    """A model of one node."""
    nodes = [helper.make_node(op, ["x"], ["y"], **options)]
    return small_model(nodes, shape, **{"my.domain": 1}).SerializeToString()


def wide(*shape: int) -> bytes:
    """A model of an input of that shape."""
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in "xy"]
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])], "wide", ports[:1], ports[1:]
    )
    opsets = [helper.make_opsetid("", 20)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString())


def integers_beyond() -> bytes:
    nodes = [
        helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT64),
        helper.make_node("Mul", ["i", "i"], ["j"], name="my node"),
        helper.make_node("Cast", ["j"], ["y"], to=TensorProto.FLOAT),
    ]
    return bytes(small_model(nodes).SerializeToString())


BAD_MODELS: dict[str, tuple[Callable[[], bytes], tuple[str, ...]]] = {
    "empty": (lambda: b"", ()),
    "text": (lambda: b"<!doctype html><title>404</title>", ()),
    "random": (lambda: np.random.default_rng(0).bytes(5000), ()),
    "zeros": (lambda: bytes(1000), ()),
    "truncated": (lambda: DIGITS.read_bytes()[:100_000], ()),
    "cut at the end": (lambda: DIGITS.read_bytes()[:-7], ()),
    "unknown operator": (lambda: node("Frobnicate", name="my node"), ("Frobnicate", "my node")),
    "unknown domain": (lambda: node("Frob", domain="my.domain", name="my node"), ("my.domain",)),
    "operator without a kernel": (
        lambda: node("RandomNormalLike", (), name="my node"),
        ("RandomNormalLike", "my node"),
    ),
    "undefined value": (
        lambda: small_model([helper.make_node("Relu", ["z"], ["y"])]).SerializeToString(),
        ("z",),
    ),
    "cycle": (
        lambda: small_model(
            [
                helper.make_node("Add", ["x", "b"], ["a"]),
                helper.make_node("Relu", ["a"], ["b"]),
                helper.make_node("Relu", ["a"], ["y"]),
            ]
        ).SerializeToString(),
        ("'b'", "sorted"),
    ),
    "value produced twice": (
        lambda: small_model(
            [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Abs", ["x"], ["y"])]
        ).SerializeToString(),
        ("'y'",),
    ),
    "contradictory shapes": (
        lambda: small_model(
            [
                helper.make_node("Concat", ["x", "x"], ["w"], axis=0),
                helper.make_node("MatMul", ["x", "w"], ["y"], name="my node"),
            ]
        ).SerializeToString(),
        ("my node", "3", "6"),
    ),
    "sizes that overflow": (
        lambda: wide(1 << 40, 1 << 40),
        ("'x'", "too large"),
    ),
    "more than memory holds": (
        lambda: wide(1 << 16, 1 << 15),
        ("'x'", "8,589,934,592 bytes"),
    ),
    "integers beyond 32 bits": (integers_beyond, ("my node", "32 bits")),
    "external data missing": (lambda: external("gone.bin"), ("gone.bin",)),
    "external data outside": (lambda: external("../secret.bin"), ("../secret.bin",)),
}


@pytest.mark.parametrize("command", ["export", "check", "run", "site"])
@pytest.mark.parametrize("kind", BAD_MODELS)
def test_bad_model(tmp_path: Path, kind: str, command: str) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(36))
    folder = tmp_path / "models"
    folder.mkdir()
    make, mentions = BAD_MODELS[kind]
    model = folder / "bad.onnx"
    model.write_bytes(make())
    options = {
        "export": ["-o", folder / "out"],
        "site": ["-o", folder / "out", "--pyodide", "none"],
    }
    result = call(command, model, *options.get(command, []))
    assert_user_error(result, *mentions)
    assert sorted(path.name for path in folder.iterdir()) == ["bad.onnx"]


@pytest.mark.parametrize("command", ["export", "site"])
def test_output_that_cannot_be_written(tmp_path: Path, command: str) -> None:
    """Below a file, since the tests may run as root, whom permissions do not stop."""
    (tmp_path / "file").write_text("mine")
    options = ["--pyodide", "none"] if command == "site" else []
    assert_user_error(call(command, DIGITS, "-o", tmp_path / "file" / "out", *options), "file")
    assert_user_error(call(command, DIGITS, "-o", tmp_path / "file", *options), "file")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("command", ["export", "site"])
def test_a_folder_with_other_files_is_not_replaced(tmp_path: Path, command: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    options = ["--pyodide", "none"] if command == "site" else []
    assert_user_error(call(command, DIGITS, "-o", out, *options), "out")
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.fixture(scope="module")
def good_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundle = tmp_path_factory.mktemp("bundle") / "digits"
    code, out, err = call("export", DIGITS, "-o", bundle, "--json")
    assert code == 0, out + err
    return bundle


@pytest.fixture
def bundle(good_bundle: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(good_bundle, tmp_path / "digits"))


def edit_manifest(bundle: Path, **values: object) -> None:
    file = bundle / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def flip_byte(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


DAMAGE: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "newer version": (lambda b: edit_manifest(b, format_version=999), ("999",)),
    "no manifest": (lambda b: (b / "manifest.json").unlink(), ("manifest.json",)),
    "manifest cut": (lambda b: truncate(b / "manifest.json"), ("manifest.json",)),
    "manifest of another shape": (lambda b: edit_manifest(b, steps={"a": 1}), ("manifest.json",)),
    "flipped byte": (lambda b: flip_byte(b / "weights-000.bin"), ("weights-000.bin",)),
    "shard missing": (lambda b: (b / "weights-000.bin").unlink(), ("weights-000.bin",)),
    "shard cut": (lambda b: truncate(b / "weights-000.bin"), ("weights-000.bin",)),
    "wasm damaged": (lambda b: [flip_byte(file) for file in b.glob("*.wasm")], (".wasm",)),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_bundle(bundle: Path, kind: str) -> None:
    damage, mentions = DAMAGE[kind]
    damage(bundle)
    assert_user_error(call("run", bundle, "--repeat", "1"), *mentions)


@pytest.mark.parametrize(
    ("name", "array", "mentions"),
    [
        ("picture", np.zeros((1, 1, 8, 8), np.float32), ("picture", "image")),
        ("image", np.zeros((1, 1, 8, 9), np.float32), ("image", "9")),
        ("image", np.zeros((8, 8), np.float32), ("image", "[8, 8]")),
        ("image", np.zeros((1, 1, 8, 8), np.float64), ("image", "float64", "float32")),
        ("image", np.zeros((1, 1, 8, 8), np.int64), ("image", "int64", "float32")),
    ],
    ids=["name", "size", "rank", "float64", "int64"],
)
def test_wrong_feed(
    good_bundle: Path, tmp_path: Path, name: str, array: np.ndarray, mentions: tuple[str, ...]
) -> None:
    np.save(tmp_path / "feed.npy", array)
    result = call("run", good_bundle, "--feed", f"{name}={tmp_path / 'feed.npy'}")
    assert_user_error(result, *mentions)


def test_wrong_dimension_name(good_bundle: Path) -> None:
    assert_user_error(call("run", good_bundle, "--dim", "length=3"), "length", "batch")


def test_a_bundle_is_no_reference_for_onnxruntime(good_bundle: Path) -> None:
    assert_user_error(call("run", good_bundle, "--compare", "onnxruntime"), "ONNX file")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_damaged_model_bytes_never_surprise(data: st.DataObject) -> None:
    """Any bytes are either a model or a PywebgpuError; never another exception."""
    from pywebgpu.load import load

    original = DIGITS.read_bytes()
    # Structure lies at the file's start and end; the middle is weights, where nothing can go wrong.
    position = data.draw(st.integers(0, 3000)) - data.draw(st.sampled_from([0, 3000]))
    damaged = bytearray(original)
    damaged[position] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([len(damaged), len(damaged) - 1, 2000, 100]))
    with contextlib.suppress(PywebgpuError):
        load(bytes(damaged[:cut]))
