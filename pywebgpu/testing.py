"""Test your own model in a real browser: a pytest plugin.

    def test_my_model(browser_session):
        session = browser_session("model.onnx", provider="wasm")
        report = session.compare(dims={"batch": 2})
        assert report.max_rel_to_scale < 1e-4

Install it with `pip install 'pywebgpu[testing]'`; pytest finds it by itself. It needs a Chromium:
the one that `--pywebgpu-chromium` or the variable PYWEBGPU_CHROMIUM names, or one on the PATH, or
the one that `playwright install chromium` brings. WebGPU works without a GPU there, in software.
A browser that is missing fails the test: a skipped one would look like a passed one.

Fixtures:

- `browser_session(model, provider=...)`: a `BrowserSession`, with the methods of
  `pywebgpu.InferenceSession`, of an ONNX file or a bundle.
- `serve_site(folder)`: the URL of a loopback server for a built site, for tests of your own pages.
- `pywebgpu_chromium`: Playwright's `Browser` with WebGPU, headless.
"""

from __future__ import annotations

import base64
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .chromium import CHROMIUM_ARGS, find_chromium
from .errors import BundleError, DeviceError, InputError, ModelError, PywebgpuError
from .link import write_runtime

if TYPE_CHECKING:
    import numpy as np
    from playwright.sync_api import Browser, Page, Playwright

    from .compare import RunReport
    from .plan import NodeArg

    Array = np.ndarray[Any, Any]

_WEB = Path(__file__).parent / "web"
_ERRORS = {c.__name__: c for c in (BundleError, DeviceError, InputError, ModelError)}

BrowserSessions = Callable[..., "BrowserSession"]
ServeSite = Callable[..., str]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("pywebgpu", "models in a browser (pywebgpu)")
    group.addoption(
        "--pywebgpu-chromium",
        metavar="PATH",
        default=os.environ.get("PYWEBGPU_CHROMIUM"),
        help="the Chromium to start; by default the first on the PATH, or Playwright's own",
    )
    group.addoption(
        "--pywebgpu-chromium-arg",
        metavar="ARG",
        action="append",
        default=[],
        help="one more argument for Chromium, such as --use-angle=vulkan; repeatable",
    )


class BrowserSession:
    """A model on one provider in a page of its own; the methods are `InferenceSession`'s.

    model: the file or bundle it came from. page: Playwright's page that it runs in. info: what the
    runtime says of itself: provider, device, threads, variant, what was unavailable and why.
    """

    def __init__(self, page: Page, bundle: str, model: Path, options: Mapping[str, Any]) -> None:
        self.page = page
        self.model = model
        made = self._ask("create", {"bundle": bundle, "options": options})
        self._session: int = made["session"]
        self._inputs: list[dict[str, Any]] = made["inputs"]
        self._outputs: list[dict[str, Any]] = made["outputs"]
        self.info: dict[str, Any] = made["info"]
        self.last_ms = 0.0
        """What the last run took in the page, in milliseconds, tensors in and out included."""

    @property
    def provider(self) -> str:
        return str(self.info["provider"])

    def get_inputs(self) -> list[NodeArg]:
        return _node_args(self._inputs)

    def get_outputs(self) -> list[NodeArg]:
        return _node_args(self._outputs)

    def run(self, output_names: Sequence[str] | None, feeds: Mapping[str, Any]) -> list[Array]:
        """The outputs, in the order of `output_names` (None: all, in the model's order).

        Raises:
            InputError: a name, shape or dtype is wrong. DeviceError: the device failed.
        """
        types = {port["name"]: port["type"] for port in self._inputs}
        packed = {name: _pack(value, types.get(name)) for name, value in feeds.items()}
        answer = self._ask("run", {"session": self._session, "feeds": packed})
        self.last_ms = float(answer["ms"])
        outputs = {name: _unpack(tensor) for name, tensor in answer["outputs"].items()}
        wanted = list(outputs) if output_names is None else list(output_names)
        for name in wanted:
            if name not in outputs:
                raise InputError(
                    "the model has no such output",
                    where=f"output '{name}'",
                    expected=", ".join(outputs),
                )
        return [outputs[name] for name in wanted]

    def compare(
        self,
        reference: str | Mapping[str, Array] = "onnxruntime",
        *,
        feeds: Mapping[str, Array] | None = None,
        dims: Mapping[str, int] | None = None,
        repeat: int = 1,
        seed: int = 0,
    ) -> RunReport:
        """Run on `feeds` (random ones for inputs left out) and compare with a reference.

        reference: "onnxruntime" for native ONNX Runtime on the same ONNX file, or the expected
            outputs by name.
        dims: sizes for the symbolic dimensions of random inputs.
        repeat: runs after a first one; their times are in the report.

        `max_rel_to_scale` of the report is the largest difference over all outputs, each relative
        to max |reference| of its output; None if a NaN or an infinity is where the reference has
        none.
        """
        from .compare import complete_feeds, judge
        from .feeds import input_specs

        specs = input_specs(self.get_inputs())
        sizes, fed = complete_feeds(self.model, specs, feeds, dims, seed)
        names = [port.name for port in self.get_outputs()]
        times = []
        for _ in range(repeat + 1):
            results = self.run(names, fed)
            times.append(self.last_ms)
        values = dict(zip(names, results, strict=True))
        device = str(self.info["device"])
        return judge(
            self.model, self.provider, device, sizes, fed, values, times, compare=reference
        )

    def release(self) -> None:
        """Free what the session holds in the page."""
        self._ask("release", self._session)

    def _ask(self, method: str, request: object) -> Any:
        answer = self.page.evaluate(f"pywebgpuTesting.{method}", request)
        if "error" not in answer:
            return answer.get("value")
        error = dict(answer["error"])
        kind = _ERRORS.get(error.pop("type"), PywebgpuError)
        raise kind(error.pop("what"), **{k: v for k, v in error.items() if v is not None})


def _node_args(ports: Sequence[Mapping[str, Any]]) -> list[NodeArg]:
    from .plan import node_arg

    return [node_arg(port["name"], port["type"], port["shape"]) for port in ports]


def _pack(value: Any, type_name: str | None) -> dict[str, Any]:
    """An array as JSON; a dtype that is not the input's goes through, for the page to judge."""
    import numpy as np

    from .graph import DType

    array = np.asarray(value)
    name = array.dtype.name
    if type_name is not None and DType(type_name).numpy == array.dtype:
        name = type_name
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {"type": name, "dims": list(array.shape), "data": data}


def _unpack(tensor: Mapping[str, Any]) -> Array:
    import numpy as np

    from .graph import DType

    data = np.frombuffer(base64.b64decode(tensor["data"]), DType(tensor["type"]).numpy)
    return data.reshape(tensor["dims"]).copy()


# -- fixtures --------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def serve_site() -> Iterator[ServeSite]:
    """`serve_site(folder, isolation=True, csp=None, base="/")` gives the URL of a running server.

    isolation: send the headers that allow threads. csp: a Content-Security-Policy to send, such as
    `pywebgpu.serve.STRICT_CSP`. base: the sub-path that the site appears under. The same arguments
    give the same server; all are closed at the end of the session.
    """
    from .serve import SiteServer

    servers: dict[tuple[Path, bool, str | None, str], SiteServer] = {}

    def serve(
        folder: str | Path, *, isolation: bool = True, csp: str | None = None, base: str = "/"
    ) -> str:
        key = (Path(folder).resolve(), isolation, csp, base)
        if key not in servers:
            server = SiteServer(key[0], isolation=isolation, csp=csp, base=base)
            servers[key] = server.start()
        return servers[key].url

    yield serve
    for server in servers.values():
        server.close()


@pytest.fixture(scope="session")
def pywebgpu_chromium(playwright: Playwright, pytestconfig: pytest.Config) -> Iterator[Browser]:
    """Headless Chromium with WebGPU, one for the whole test session."""
    path = pytestconfig.getoption("--pywebgpu-chromium") or find_chromium()
    args = [*CHROMIUM_ARGS, *pytestconfig.getoption("--pywebgpu-chromium-arg")]
    from playwright.sync_api import Error

    try:
        browser = playwright.chromium.launch(executable_path=path, args=args)
    except Error as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        pytest.fail(
            f"pywebgpu.testing: Chromium does not start (tried {path or 'the one of Playwright'}): "
            f"{first}. Install one (`apt-get install chromium`, or `playwright install chromium`) "
            "or name one with --pywebgpu-chromium.",
            pytrace=False,
        )
    yield browser
    browser.close()


@pytest.fixture(scope="session")
def _bundles() -> Iterator[Callable[[Path], Path]]:
    """A folder per model with its bundle, the runtime and the page, built once a session."""
    from .export import export

    made: dict[tuple[Path, int], Path] = {}
    with tempfile.TemporaryDirectory(prefix="pywebgpu-testing-") as top:

        def folder_of(model: Path) -> Path:
            key = (model.resolve(), model.stat().st_mtime_ns)
            if key not in made:
                folder = Path(top) / str(len(made))
                write_runtime(_WEB, folder)
                shutil.copytree(_WEB / "testing", folder / "testing")
                if model.is_dir():
                    shutil.copytree(model, folder / "bundle")
                else:
                    export(model, folder / "bundle")
                made[key] = folder
            return made[key]

        yield folder_of


@pytest.fixture
def browser_session(
    pywebgpu_chromium: Browser, serve_site: ServeSite, _bundles: Callable[[Path], Path]
) -> Iterator[BrowserSessions]:
    """`browser_session(model, provider="wasm", threads=None, isolation=True, csp=None)`: the model
    running in a page of its own.

    model: an ONNX file, or a bundle's folder. provider: "wasm" or "webgpu"; there is no falling
    back. threads: of the wasm provider. isolation: False for a page without the headers that allow
    threads. csp: a Content-Security-Policy for the page. More arguments are options of the
    runtime's `InferenceSession.create`.
    """
    contexts = []

    def start(
        model: str | os.PathLike[str],
        provider: str = "wasm",
        *,
        threads: int | None = None,
        isolation: bool = True,
        csp: str | None = None,
        **options: Any,
    ) -> BrowserSession:
        path = Path(model)
        if not path.exists():
            raise InputError("no such file or folder", where=str(path), remedy="Check the path.")
        url = serve_site(_bundles(path), isolation=isolation, csp=csp)
        context = pywebgpu_chromium.new_context()
        contexts.append(context)
        page = context.new_page()
        page.goto(url + "testing/")
        chosen = {"executionProviders": [provider], **options}
        if threads is not None:
            chosen["threads"] = threads
        return BrowserSession(page, url + "bundle/", path, chosen)

    yield start
    for context in contexts:
        context.close()
