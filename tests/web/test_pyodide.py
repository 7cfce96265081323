"""Python in the page: the same API, no NumPy, and kernels byte for byte as on the desktop.

NumPy for Pyodide is not on the package registries (only on Pyodide's own CDN), so what happens
when a page has loaded it is tested on the desktop, through the same functions: see test_feeds.
"""

from __future__ import annotations

import array
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page

from pywebgpu import pyodide_archive
from pywebgpu.errors import InputError
from pywebgpu.executors import browser as browser_executor
from pywebgpu.executors.browser import Port, Tensor
from pywebgpu.serve import STRICT_CSP
from pywebgpu.site import build_site
from pywebgpu.vendored import PYODIDE, package_folder
from tests.executors_seen import record_executor
from tests.web import conftest
from tests.web.mini import expected

pytestmark = pytest.mark.browser

DIGITS = Path(__file__).parents[2] / "examples" / "digits" / "digits.onnx"


@pytest.fixture(scope="module")
def python_page(
    browser: Browser, serve_site: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Page]:
    """A strict-policy page below a sub-path, with `python`, a PythonRuntime that has started."""
    folder = tmp_path_factory.mktemp("python") / "site"
    conftest.write_site(folder)
    pyodide_archive.build(folder / "web", package_folder(PYODIDE))
    context = browser.new_context()
    page = context.new_page()
    asked: list[str] = []
    context.on("request", lambda request: asked.append(request.url))
    page.requests = asked  # type: ignore[attr-defined]
    page.goto(serve_site(folder, csp=STRICT_CSP, base="/sub/path/"))
    page.evaluate(
        """async () => {
          const m = await import(new URL("web/py/client.js", document.baseURI));
          globalThis.out = [];
          const onOutput = (text, stream) => out.push([stream, text]);
          const onMessage = (value) => out.push(["page", value]);
          globalThis.PythonError = m.PythonError;
          globalThis.python = await m.PythonRuntime.create({ onOutput, onMessage });
        }"""
    )
    yield page
    context.close()


def python(page: Page, code: str, **values: Any) -> Any:
    return page.evaluate("([code, values]) => python.run(code, values)", [code, values])


def raised(page: Page, code: str) -> dict[str, str]:
    facts = page.evaluate(
        """(code) => python.run(code).then(() => null, (e) =>
          ({ ours: e instanceof PythonError, type: e.type, traceback: e.traceback,
             message: e.message }))""",
        code,
    )
    assert facts is not None
    assert facts["ours"], facts
    return dict(facts)


@pytest.mark.parametrize("provider", ["webgpu", "wasm"])
def test_session(python_page: Page, provider: str) -> None:
    answer = python(
        python_page,
        """
import pywebgpu
from array import array
session = await pywebgpu.InferenceSession.create("mini", providers=[provider])
flat = await session.run_async({"x": [1, 2.5], "k": [7, 0]})
buffered = await session.run_async({"x": array("f", [3]), "k": array("q", [-8, 0])}, ["y"])
k = memoryview(array("q", [9, 0]))
tensors = await session.run_async({"x": pywebgpu.Tensor([4.0]), "k": k})
empty = await session.run_async({"x": [], "k": [1, 0]})
result = {
    "provider": session.provider,
    "inputs": [[p.name, p.type, p.shape] for p in session.get_inputs()],
    "flat": [flat["y"].tolist(), flat["k_out"].tolist(), repr(flat["y"])],
    "buffered": {name: t.tolist() for name, t in buffered.items()},
    "tensors": tensors["y"].tolist(),
    "empty": [empty["y"].tolist(), list(empty["y"].shape)],
    "threads": session.info["threads"],
}
session.close()
result
""",
        provider=provider,
    )
    assert answer["provider"] == provider
    assert answer["inputs"] == [["x", "tensor(float)", ["n"]], ["k", "tensor(int64)", [2]]]
    # 64-bit integers come as BigInt where they do not fit a double; these do.
    assert answer["flat"] == [expected([1, 2.5]), [7, 0], "Tensor(float32[2])"]
    assert answer["buffered"] == {"y": expected([3])}
    assert answer["tensors"] == expected([4])
    assert answer["empty"] == [[], [0]]
    assert answer["threads"] == (0 if provider == "webgpu" else 2)
    record_executor(f"chromium-{provider}")


def test_python_comes_started(python_page: Page) -> None:
    """Out of its snapshot; and as ever where that is damaged, with the same kernels."""
    code = """
import sys
loaded = "pywebgpu.tune_page" in sys.modules
from pywebgpu import tune
spec = tune.speed_job().spec
target = tune.WasmTarget()
[loaded, [target.generate(spec, knobs).binary.hex() for knobs in target.space(spec)]]
"""
    loaded, kernels = python(python_page, code)
    assert loaded
    damaged = lambda route: route.fulfill(body=b"not a snapshot")  # noqa: E731
    python_page.route("**/*.snapshot.gz", damaged)
    again = python_page.evaluate(
        """async (code) => {
          const m = await import(new URL("web/py/client.js", document.baseURI));
          const python = await m.PythonRuntime.create();
          const found = await python.run(code);
          python.terminate();
          return found;
        }""",
        code,
    )
    assert again == [False, kernels]


def test_errors_have_a_traceback(python_page: Page) -> None:
    facts = raised(python_page, "def f():\n  return 1 / 0\nf()")
    assert facts["type"] == "ZeroDivisionError"
    assert "line 2, in f" in facts["traceback"]
    assert facts["message"] == "Python: ZeroDivisionError: division by zero"


@pytest.mark.parametrize(
    ("call", "type_", "mentioned"),
    [
        ("await pywebgpu.InferenceSession.create('nothing')", "BundleError", "HTTP status 404"),
        ("await pywebgpu.InferenceSession.create('mini', providers=['x'])", "InputError", "webgpu"),
        ("pywebgpu.InferenceSession('mini')", "InputError", "await"),
        ("await s.run_async({'x': [1]})", "InputError", '"k"'),
        ("await s.run_async({'x': [[1], [2, 3]], 'k': [1, 0]})", "InputError", "lengths"),
        ("await s.run_async({'x': ['a'], 'k': [1, 0]})", "InputError", "'x'"),
        ("await s.run_async({'x': [1], 'k': [2**31, 0]})", "InputError", "32 bits"),
        ("await s.run_async({'x': [1], 'k': [1, 0]}, ['z'])", "InputError", "'z'"),
    ],
)
def test_typed_errors(python_page: Page, call: str, type_: str, mentioned: str) -> None:
    setup = """
import pywebgpu
if "s" not in globals():
    s = await pywebgpu.InferenceSession.create("mini", providers=["wasm"])
"""
    facts = raised(python_page, setup + call)
    assert facts["type"] == type_
    assert mentioned in facts["message"]


def test_output_messages_and_values(python_page: Page) -> None:
    answer = python(
        python_page,
        """
import sys, page
print("hello"); print("oops", file=sys.stderr)
page.post({"half": 0.5})
[len(numbers), table["a"], bytes([1, 2])]
""",
        numbers=[1, 2, 3],
        table={"a": None},
    )
    assert answer[:2] == [3, None]
    assert python_page.evaluate("out") == [
        ["stdout", "hello"],
        ["stderr", "oops"],
        ["page", {"half": 0.5}],
    ]


def test_own_origin_only(python_page: Page) -> None:
    base = python_page.url
    asked: list[str] = python_page.requests  # type: ignore[attr-defined]
    assert [url for url in asked if not url.startswith((base, "data:"))] == []
    assert any(url.endswith("pyodide.asm.wasm") for url in asked)


def test_terminate_ends_a_loop(python_page: Page) -> None:
    messages = python_page.evaluate(
        """async () => {
          const m = await import(new URL("web/py/client.js", document.baseURI));
          const other = await m.PythonRuntime.create();
          const running = other.run("while True: pass").catch((e) => e.message);
          setTimeout(() => other.terminate(), 100);
          return [await running, await other.run("1").catch((e) => e.message)];
        }"""
    )
    assert all("terminated" in message for message in messages)


def test_missing_archive_is_an_error(python_page: Page) -> None:
    message = python_page.evaluate(
        """async () => {
          const m = await import(new URL("web/py/client.js", document.baseURI));
          const archive = "nothing.zip";
          return m.PythonRuntime.create({ archive }).catch((e) => e.message);
        }"""
    )
    assert "nothing.zip" in message
    assert "404" in message


def test_built_site(browser: Browser, serve_site: Any, tmp_path: Path) -> None:
    """`pywebgpu site` puts Python where its pages find it; a real model answers."""
    build_site([DIGITS], tmp_path / "site", pyodide="local")
    context = browser.new_context()
    page = context.new_page()
    page.goto(serve_site(tmp_path / "site", csp=STRICT_CSP, isolation=False))
    answer = page.evaluate(
        """async (code) => {
          const { PythonRuntime } = await import(new URL("py/client.js", document.baseURI));
          return (await PythonRuntime.create()).run(code);
        }""",
        """
import pywebgpu
session = await pywebgpu.InferenceSession.create("models/digits/", ["wasm"])
pixels = [[[[0.0] * 8] * 8]] * 3
(await session.run_async({session.get_inputs()[0].name: pixels}))["probabilities"].tolist()
""",
    )
    context.close()
    assert np.array(answer).shape == (3, 10)
    np.testing.assert_allclose(np.sum(answer, axis=1), 1, atol=1e-5)
    record_executor("chromium-wasm")


# ------------------------------------------------------------------ without a browser


def test_archive_is_deterministic(tmp_path: Path) -> None:
    pyodide_archive.write_archive(tmp_path / "a.zip")
    pyodide_archive.write_archive(tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_incomplete_pyodide(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"pyodide\.mjs"):
        pyodide_archive.build(tmp_path / "site", tmp_path)


FEEDS: list[tuple[Any, str, list[Any]]] = [
    ([[1, 2], [3, 4]], "float32", [[1, 2], [3, 4]]),
    (3, "int64", 3),
    (array.array("f", [1, 2]), "float32", [1, 2]),
    (memoryview(array.array("i", [1, 2])), "int32", [1, 2]),
    (array.array("l", [1, 2]), f"int{8 * array.array('l').itemsize}", [1, 2]),
    (b"\x01\x02", "uint8", [1, 2]),
    ([True, False], "bool", [True, False]),
    ([0.5], "float16", [0.5]),
    ([[], []], "float32", [[], []]),
    (Tensor([1, 2, 3, 4], [2, 2]), "float32", [[1, 2], [3, 4]]),
    (np.arange(4.0, dtype=np.float32).reshape(2, 2).T, "float32", [[0, 2], [1, 3]]),
    (np.zeros((0, 3), np.int64), "int64", []),
    (np.array(5, np.int32), "int32", 5),
]


@pytest.mark.parametrize(("value", "dtype", "wanted"), FEEDS)
def test_feeds(value: Any, dtype: str, wanted: list[Any]) -> None:
    shape = np.shape(wanted) if isinstance(value, (Tensor, bytes)) else np.shape(value)
    port = Port("x", dtype, [f"d{i}" for i in range(len(shape))])
    view, found = browser_executor._feed(port, value)
    result = Tensor(view, found, dtype)
    assert result.shape == (tuple(value.shape) if hasattr(value, "shape") else shape)
    assert result.tolist() == wanted
    np.testing.assert_array_equal(np.asarray(result), np.array(wanted).reshape(result.shape))


def test_outputs_are_arrays_where_numpy_is_loaded() -> None:
    answer = browser_executor._result("int64", np.array([[1, 2]]).tobytes(), [1, 2])
    assert isinstance(answer, np.ndarray)
    assert answer.dtype == np.int64
    assert answer.tolist() == [[1, 2]]
    assert browser_executor._result("float32", b"", [0, 3]).shape == (0, 3)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (np.zeros(2), "float32"),
        (array.array("d", [1]), "float32"),
        (array.array("I", [1]), "int32"),
        (Tensor([1]), "int64"),
        ("text", "float32"),
        ({"a": 1}, "float32"),
        ([1.5], "int64"),
        ([300], "uint8"),
    ],
)
def test_wrong_feeds(value: Any, dtype: str) -> None:
    with pytest.raises(InputError, match="input 'x'"):
        browser_executor._feed(Port("x", dtype, ["n"]), value)


def test_flat_buffer_takes_the_models_shape() -> None:
    port = Port("x", "float32", [2, 3])
    assert browser_executor._feed(port, array.array("f", range(6)))[1] == (2, 3)
    assert json.dumps(Tensor([1, 2]).tolist()) == "[1.0, 2.0]"
