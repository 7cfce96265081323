"""Bundles: what is written is read back, twice the same, and damage is named."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pywebgpu import bundle as module
from pywebgpu.build import WASM_VARIANTS
from pywebgpu.bundle import Bundle, content_hash, schema_violation
from pywebgpu.compile import compile_model
from pywebgpu.errors import BundleError, InputError
from pywebgpu.export import export
from pywebgpu.references import dangling
from tests.web import mini


def _model(width: int = 40) -> bytes:
    weight = np.arange(8 * width, dtype=np.float32).reshape(8, width)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["p"]),
            helper.make_node("Softmax", ["p"], ["y"], axis=-1),
        ],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", width])],
        [numpy_helper.from_array(weight, "w")],
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    data: bytes = model.SerializeToString()
    return data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    export(_model(), tmp_path / "bundle")
    return tmp_path / "bundle"


def test_round_trip(folder: Path) -> None:
    bundle = Bundle.load(folder)
    bundle.verify()
    compiled = compile_model(_model())
    assert bundle.plan() == compiled.plan
    assert bundle.weights() == b"".join(compiled.weight_chunks())
    assert list(bundle.wasm_variants()) == [name for name, _ in WASM_VARIANTS]
    for name in bundle.wasm_variants():
        assert bundle.wasm_code(name).modules[name][:4] == b"\0asm"
    assert len(bundle.wgsl_kernels()) == len(compiled.plan.kernels)


def test_report_counts_what_was_written(tmp_path: Path) -> None:
    report = export(_model(), tmp_path / "bundle")
    files = [f.stat().st_size for f in (tmp_path / "bundle").iterdir()]
    assert report.bundle_bytes == sum(files)
    assert report.dispatches >= report.kernels == 2
    json.dumps(report.to_json())


def test_deterministic(tmp_path: Path, folder: Path) -> None:
    export(_model(), tmp_path / "again")
    for file in folder.iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes(), file.name


def test_shards_are_cut_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARD_BYTES", 500)
    export(_model(), tmp_path / "bundle")
    bundle = Bundle.load(tmp_path / "bundle")
    shards = bundle.manifest["weights"]["shards"]
    assert len(shards) > 1
    assert all(bundle.manifest["files"][name]["bytes"] <= 500 for name in shards)
    assert bundle.weights() == b"".join(compile_model(_model()).weight_chunks())


def test_zip_with_and_without_a_folder(tmp_path: Path, folder: Path) -> None:
    for prefix in ("", "bundle/"):
        path = tmp_path / f"{len(prefix)}.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for file in folder.iterdir():
                archive.write(file, prefix + file.name)
        Bundle.load(path).verify()
        Bundle.load(path.read_bytes()).verify()


def test_replaces_a_bundle_and_nothing_else(tmp_path: Path, folder: Path) -> None:
    export(_model(16), folder)
    assert Bundle.load(folder).plan().outputs[0].shape[1] == 16
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("mine")
    with pytest.raises(InputError, match="not a bundle"):
        export(_model(), tmp_path / "precious")
    assert (tmp_path / "precious" / "file").read_text() == "mine"
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")], "no leftovers"


def test_nothing_is_left_of_a_failed_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_wgsl_section", fail)
    with pytest.raises(InputError, match="No space left"):
        export(_model(), tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def _edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_other_version(folder: Path) -> None:
    _edit(folder, lambda m: m.update(format_version=99))
    with pytest.raises(BundleError, match="version") as caught:
        Bundle.load(folder)
    assert "99" in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop("steps"),
        lambda m: m.update(extra=1),
        lambda m: m["slots"].append(["^", 1, 2]),
        lambda m: m["files"].update({"../../etc/passwd": {"bytes": 0, "sha256": "0" * 64}}),
        lambda m: m["steps"][0].update(output=-1),
    ],
)
def test_manifest_that_does_not_fit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    _edit(folder, change)
    with pytest.raises(BundleError, match="manifest is damaged"):
        Bundle.load(folder)


def test_no_bundle_at_all(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not a bundle"):
        Bundle.load(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(BundleError, match="cannot be read"):
        Bundle.load(tmp_path)


def test_flipped_byte(folder: Path) -> None:
    path = folder / "weights-000.bin"
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match="hash"):
        Bundle.load(folder).weights()


def test_truncated_file(folder: Path) -> None:
    path = folder / "weights-000.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match="size"):
        Bundle.load(folder).weights()


def test_missing_shard(folder: Path) -> None:
    (folder / "weights-000.bin").unlink()
    with pytest.raises(BundleError, match="missing"):
        Bundle.load(folder).verify()


def test_schema_keywords_are_those_that_javascript_knows() -> None:
    text = Path(module.__file__).with_name("manifest.schema.json").read_text()
    schema = json.loads(text)
    source = (Path(module.__file__).parent / "web" / "schema.js").read_text()

    def keywords(node: Any) -> set[str]:
        if not isinstance(node, dict):
            return set()
        found = set(node)
        for key in ("properties", "$defs"):
            for child in node.get(key, {}).values():
                found |= keywords(child)
        for key in ("items", "additionalProperties", "propertyNames"):
            found |= keywords(node.get(key))
        for key in ("oneOf", "anyOf", "allOf", "prefixItems"):
            for child in node.get(key, []):
                found |= keywords(child)
        return found

    for keyword in keywords(schema):
        assert f"  {keyword}: " in source or f'"{keyword}"' in source, keyword
    assert schema_violation({}) is not None


@pytest.mark.parametrize(("path", "value"), mini.WRONG_FIELDS)
def test_a_manifest_with_a_wrong_field(tmp_path: Path, path: list[Any], value: Any) -> None:
    """The browser's runtime is asked the same in tests/web/test_bundle_errors.py."""
    mini.write(tmp_path / "mini")
    assert dangling(Bundle.load(tmp_path / "mini").manifest) is None
    place = mini.damage(tmp_path / "mini", path, value)
    with pytest.raises(BundleError) as caught:
        Bundle.load(tmp_path / "mini")
    assert f"{tmp_path}/mini/manifest.json" in caught.value.where
    assert place in caught.value.what or "0.5" in caught.value.what


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"null", b"[1, 2, 3]", b'{"a": 1}'])
@pytest.mark.parametrize("name", ["specs.json", "kernels.default.wgsl.json"])
def test_a_file_of_another_content(folder: Path, name: str, content: bytes) -> None:
    """With the right hash: what a bundle says of itself is not enough."""
    (folder / name).write_bytes(content)
    entry = {"bytes": len(content), "sha256": content_hash(content)}
    mini.damage(folder, ["files", name], entry)
    bundle = Bundle.load(folder)
    use = bundle.plan if name == "specs.json" else bundle.wgsl_kernels
    with pytest.raises(BundleError, match="cannot be read") as caught:
        use()
    assert name in caught.value.where
