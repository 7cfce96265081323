"""`--from torch` and `--from transformers`: the bundle answers as PyTorch does, and what a user can
get wrong is said in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pywebgpu.errors import InputError
from pywebgpu.from_torch import _require, write_torch, write_transformers
from pywebgpu.session import InferenceSession
from tests.executors_seen import record_executor

torch = pytest.importorskip("torch", reason="pip install 'pywebgpu[torch]'")
pytest.importorskip("onnxscript", reason="pip install 'pywebgpu[torch]'")

NETS = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = torch.nn.Linear(4, 8), torch.nn.Linear(8, 3)

    def forward(self, x, scale):
        hidden = torch.relu(self.first(x))
        return {"logits": self.last(hidden) * scale, "hidden": hidden}

def make():
    torch.manual_seed(0)
    print("made")  # on stdout, where only results belong
    inputs = {"x": torch.randn(2, 4), "scale": torch.rand(3)}
    return Net(), inputs, {"x": {0: "rows"}, "scale": None}

def positional():
    return torch.nn.Sequential(torch.nn.Linear(4, 2)), torch.randn(3, 4)

def unsupported():
    class Sorted(torch.nn.Module):
        def forward(self, x):
            return torch.linalg.svd(x)[1]
    return Sorted(), (torch.randn(3, 3),)

def branches():
    class Branch(torch.nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x
    return Branch(), (torch.randn(3),)

def fails(): raise RuntimeError("no weights here")
def asks(path): return None
def nothing(): return None
def alone(): return Net()
def numbers(): return Net(), (1.0, 2.0)
def misfit(): return Net(), (torch.randn(2, 5), torch.rand(3))
not_a_function = 3
"""


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("torch") / "nets.py"
    path.write_text(NETS)
    return path


def pywebgpu(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pywebgpu", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def _answers(bundle: Path, feeds: dict[str, Any]) -> dict[str, Any]:
    with InferenceSession(bundle, ["wasm"]) as session:
        names = [port.name for port in session.get_outputs()]
        answers = dict(zip(names, session.run(None, feeds), strict=True))
    record_executor("wasmtime")
    return answers


def test_a_module_and_its_names(nets: Path, tmp_path: Path) -> None:
    result = pywebgpu("export", "--from", "torch", f"{nets}:make", "-o", tmp_path / "b", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["name"] == "make"
    scope: dict[str, Any] = {}
    exec(NETS, scope)
    module, _, _ = scope["make"]()
    for rows in (1, 5):  # none was the example's
        feeds = {"x": torch.randn(rows, 4), "scale": torch.rand(3)}
        with torch.no_grad():
            expected = module(**feeds)
        got = _answers(tmp_path / "b", {name: t.numpy() for name, t in feeds.items()})
        assert set(got) == {"logits", "hidden"}
        for name, array in got.items():
            np.testing.assert_allclose(array, expected[name].numpy(), rtol=1e-5, atol=1e-6)


def test_a_single_example_input(nets: Path, tmp_path: Path) -> None:
    write_torch(f"{nets}:positional", tmp_path / "net.onnx")
    with InferenceSession(tmp_path / "net.onnx", ["wasm"]) as session:
        assert [port.shape for port in session.get_inputs()] == [[3, 4]]
        assert [port.name for port in session.get_outputs()] == ["output"]


def test_check_names_what_will_not_run(nets: Path) -> None:
    result = pywebgpu("check", "--from", "torch", f"{nets}:make", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["model"] == f"{nets}:make"


@pytest.mark.parametrize(
    ("reference", "what"),
    [
        ("{file}", "does not name a function"),
        ("nowhere.at.all:make", "cannot be imported: ModuleNotFoundError"),
        ("{file}:absent", "has no function 'absent'"),
        ("{file}:not_a_function", "has no function 'not_a_function'"),
        ("{file}:fails", "the function failed: RuntimeError: no weights here"),
        ("{file}:asks", "the function failed: TypeError"),
        ("{file}:nothing", "the function returns something else"),
        ("{file}:alone", "the function returns something else"),
        ("{file}:numbers", "the example inputs are no tensors"),
        ("{file}:misfit", "does not take the example inputs: RuntimeError"),
        ("{file}:unsupported", "torch.onnx cannot export the module"),
        ("{file}:branches", "torch.onnx cannot export the module"),
    ],
)
def test_mistakes(nets: Path, tmp_path: Path, reference: str, what: str) -> None:
    with pytest.raises(InputError) as caught:
        write_torch(reference.format(file=nets), tmp_path / "net.onnx")
    assert what in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mistake_ends_with_code_2_and_leaves_nothing(nets: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    result = pywebgpu("export", "--from", "torch", f"{nets}:fails", "-o", out)
    assert result.returncode == 2
    assert result.stderr.startswith("pywebgpu: error: --from torch")
    assert "Traceback" not in result.stderr
    assert not out.exists()


def test_a_missing_package_names_the_extra() -> None:
    with pytest.raises(InputError, match=r"pip install 'pywebgpu\[torch\]'"):
        _require("a_package_that_nobody_has", "torch")


# ---------------------------------------------------------------- transformers


def _save(folder: Path, kind: str, **config: Any) -> Any:
    transformers = pytest.importorskip(
        "transformers", reason="pip install 'pywebgpu[transformers]'"
    )
    torch.manual_seed(0)
    made = getattr(transformers, kind)(getattr(transformers, config.pop("config"))(**config))
    made.save_pretrained(folder)
    return made.eval()


_SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}


def test_a_text_classifier(tmp_path: Path) -> None:
    model = _save(
        tmp_path / "saved",
        "BertForSequenceClassification",
        config="BertConfig",
        vocab_size=50,
        **_SMALL,
    )
    result = pywebgpu(
        "export", "--from", "transformers", tmp_path / "saved", "-o", tmp_path / "b", "--json"
    )
    assert result.returncode == 0, result.stderr
    ids = torch.randint(0, 50, (3, 9))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask).logits.numpy()
    got = _answers(tmp_path / "b", {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
    assert set(got) == {"logits"}
    assert np.abs(got["logits"] - expected).max() <= 1e-3 * np.abs(expected).max()


def test_an_image_encoder(tmp_path: Path) -> None:
    model = _save(
        tmp_path / "saved",
        "ViTModel",
        config="ViTConfig",
        image_size=16,
        patch_size=8,
        **_SMALL,
    )
    write_transformers(tmp_path / "saved", tmp_path / "vit.onnx")
    pixels = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        expected = model(pixel_values=pixels).last_hidden_state.numpy()
    with InferenceSession(tmp_path / "vit.onnx", ["wasm"]) as session:
        [got] = session.run(["last_hidden_state"], {"pixel_values": pixels.numpy()})
    assert np.abs(got - expected).max() <= 1e-3 * np.abs(expected).max()


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json"):
        write_transformers(tmp_path, tmp_path / "model.onnx")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="cannot be loaded"):
        write_transformers(tmp_path, tmp_path / "model.onnx")
