"""Real models in the browser: the answers of ONNX Runtime, and the same code from Pyodide."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from playwright.sync_api import Browser, Page

from pywebgpu import pyodide_archive
from pywebgpu.export import export
from pywebgpu.session import InferenceSession
from pywebgpu.vendored import PYODIDE, package_folder
from tests.executors_seen import record_executor
from tests.models import zoo
from tests.models.genai_decoder import Decoder, steps
from tests.web import conftest, regenerate
from tests.web.conftest import run

pytestmark = [pytest.mark.browser, pytest.mark.slow]

MODELS = ["digits", "bert-tiny", "gpt2-tiny", "vit-micro", "mobilenet-v2-micro", "resnet-micro"]
TOLERANCE = 1e-3  # relative to the output's scale


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site with the runtime, Pyodide, and bundles as tests ask for them."""
    folder = tmp_path_factory.mktemp("models") / "site"
    conftest.write_site(folder)
    pyodide_archive.build(folder / "web", package_folder(PYODIDE))
    return folder


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, folder: Path) -> str:
    """A model's name; its bundle is in the site."""
    name = str(request.param)
    missing = zoo.MODELS[name].missing()
    if missing:
        pytest.skip(f"building {name} needs {', '.join(missing)}")
    export(zoo.path_of(name), folder / name)
    return name


@pytest.fixture(scope="module")
def page(browser: Browser, serve_site: Any, folder: Path) -> Iterator[Page]:
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(300_000)
    page.goto(serve_site(folder))
    yield page
    context.close()


@pytest.mark.parametrize("provider", ["wasm", "webgpu"])
def test_answers_as_onnxruntime(page: Page, model: str, provider: str) -> None:
    """At the model's own sizes, twice, with another shape in between."""
    sizes = [zoo.MODELS[model].dims, {k: v + 1 for k, v in zoo.MODELS[model].dims.items()}]
    reference = onnxruntime.InferenceSession(zoo.path_of(model))
    types = {i.name: i.type.removeprefix("tensor(").rstrip(")") for i in reference.get_inputs()}
    onnx_types = {"float": "float32", "int64": "int64", "bool": "bool"}
    cases = []
    for seed, dims in enumerate([sizes[0], sizes[1], sizes[0]]):
        feeds = zoo.random_feeds(model, seed=seed, dims=dims)
        data = {
            name: [onnx_types[types[name]], array.ravel().tolist(), list(array.shape)]
            for name, array in feeds.items()
        }
        cases.append((feeds, data))
    answers = run(
        page,
        """const session = await t.create(arg[0], {}, arg[1]);
        const answers = [];
        for (const feeds of arg[2]) {
          const tensors = Object.entries(feeds).map(([n, [type, data, dims]]) =>
            [n, new t.Tensor(type, data, dims)]);
          const outputs = await session.run(Object.fromEntries(tensors));
          answers.push(Object.entries(outputs).map(([name, { data, dims }]) =>
            [name, [...data].map(Number), [...dims]]));
        }
        session.release();
        return answers;""",
        [provider, model, [data for _, data in cases]],
    )
    for (feeds, _), answer in zip(cases, answers, strict=True):
        wanted = reference.run([name for name, _, _ in answer], feeds)
        for array, (name, data, dims) in zip(wanted, answer, strict=True):
            got = np.array(data).reshape(dims)
            assert got.shape == array.shape, name
            scale = max(float(np.abs(array).max()), 1e-30)
            assert np.abs(got - array).max() / scale <= TOLERANCE, name
    record_executor(f"chromium-{provider}")


@pytest.mark.parametrize("shared", [False, True], ids=["growing", "shared"])
@pytest.mark.parametrize("provider", ["wasm", "webgpu"])
def test_a_decoder_with_caches(page: Page, folder: Path, provider: str, shared: bool) -> None:
    """The prompt and two steps; the first past of a growing cache has no elements."""
    content = Decoder(11).model().SerializeToString()
    model = folder / "decoder.onnx"
    if not model.exists():
        model.write_bytes(content)
        export(model, folder / "decoder")
    cases = list(steps(content, shared, 3, np.random.default_rng()))
    answers = run(
        page,
        """const session = await t.create(arg[0], {}, "decoder");
        const answers = [];
        for (const feeds of arg[1]) {
          const tensors = feeds.map(([n, type, data, dims]) =>
            [n, new t.Tensor(type, type === "int64" ? data.map(BigInt) : data, dims)]);
          const { logits } = await session.run(Object.fromEntries(tensors));
          answers.push([...logits.data]);
        }
        session.release();
        return answers;""",
        [
            provider,
            [
                [[n, str(x.dtype), x.ravel().tolist(), list(x.shape)] for n, x in feeds.items()]
                for feeds, _, _ in cases
            ],
        ],
    )
    for (feeds, want, lengths), answer in zip(cases, answers, strict=True):
        got = np.array(answer).reshape(want[0].shape)
        for row, length in enumerate(lengths):
            valid = min(feeds["input_ids"].shape[1], length)
            np.testing.assert_allclose(got[row, :valid], want[0][row, :valid], 1e-3, 1e-3)
    record_executor(f"chromium-{provider}")


@pytest.mark.parametrize("provider", ["wasm", "webgpu"])
def test_a_quantised_bundle_answers_as_here(page: Page, folder: Path, provider: str) -> None:
    """The same bytes, weights and integers: only what f32 models differ by is left, and now and
    then a number that was rounded to its neighbour."""
    export(zoo.path_of("digits"), folder / "digits-int8", quantize="int8")
    image = np.random.default_rng(3).random((4, 1, 8, 8), np.float32)
    with InferenceSession(folder / "digits-int8", ["wasm"]) as session:
        (want,) = session.run(None, {"image": image})
    got = run(
        page,
        """const session = await t.create(arg[0], {}, "digits-int8");
        const image = new t.Tensor("float32", arg[1], [4, 1, 8, 8]);
        const { probabilities } = await session.run({ image });
        session.release();
        return [...probabilities.data];""",
        [provider, image.ravel().tolist()],
    )
    assert np.abs(np.array(got).reshape(want.shape) - want).max() <= 2e-3
    record_executor(f"chromium-{provider}")


def test_pyodide_generates_the_same_bytes(page: Page, folder: Path, model: str) -> None:
    """Every kernel on both targets, each module variant and the shaders' file."""
    manifest = (folder / model / "manifest.json").read_text()
    specs = (folder / model / "specs.json").read_text()
    here = regenerate.regenerate(manifest, specs)
    exported = {
        name: hashlib.sha256((folder / model / name).read_bytes()).hexdigest()
        for name in json.loads(manifest)["files"]
        if name in here
    }
    variants = [v for part in ("wasm", "webgpu") for v in json.loads(manifest)[part]["variants"]]
    assert set(exported) == {variant["file"] for variant in variants}
    assert {name: here[name] for name in exported} == exported
    there = page.evaluate(
        """async ([code, manifest, specs]) => {
          const { PythonRuntime } = await import(new URL("web/py/client.js", document.baseURI));
          globalThis.python ??= await PythonRuntime.create();
          return await python.run(code, { manifest, specs });
        }""",
        [Path(regenerate.__file__).read_text() + "\nregenerate(manifest, specs)", manifest, specs],
    )
    assert there == here
