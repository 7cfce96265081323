"""The stage on which runtimes meet: one folder, one server, one browser, a fresh page a row."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from playwright.sync_api import sync_playwright

from pywebgpu.export import export
from pywebgpu.serve import SiteServer
from tests.bench import peak, peers
from tests.bench.cases import Case, constants, feeds
from tests.conftest import CHROMIUM, CHROMIUM_ARGS

ROOT = Path(__file__).parents[2]


class Stage:
    """Context manager; `folder` keeps models and peers between runs, bundles are made anew."""

    def __init__(self, folder: Path, chromium_args: list[str] | None = None) -> None:
        self.folder = folder.resolve()
        self.args = CHROMIUM_ARGS if chromium_args is None else chromium_args

    def __enter__(self) -> Stage:
        self.folder.mkdir(parents=True, exist_ok=True)
        peers.link(peers.install(self.folder / "npm"), self.folder / "peers")
        for name, source in {"web": ROOT / "web", "page": ROOT / "tests/bench/page"}.items():
            shutil.rmtree(self.folder / name, ignore_errors=True)
            shutil.copytree(source, self.folder / name)
        shutil.rmtree(self.folder / "bundles", ignore_errors=True)
        self.server = SiteServer(self.folder, isolation=True).start()
        self.playwright = sync_playwright().start()
        self.browser = self.playwright.chromium.launch(executable_path=CHROMIUM, args=self.args)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.browser.close()
        self.playwright.stop()
        self.server.close()

    def prepare(self, case: Case) -> dict[str, Any]:
        """Model, bundle, inputs and constants as files below the folder, and their URLs."""
        key = hashlib.sha256(case.name.encode()).hexdigest()[:12]
        model = self.folder / "models" / f"{key}.onnx"
        model.parent.mkdir(exist_ok=True)
        if not model.exists():
            case.make(model)
        bundle = self.folder / "bundles" / key
        if not bundle.exists():
            bundle.parent.mkdir(exist_ok=True)
            export(model, bundle)
        data = self.folder / "data" / key
        data.mkdir(parents=True, exist_ok=True)

        def write(kind: str, name: str, array: np.ndarray[Any, Any]) -> str:
            path = data / f"{kind}-{name}.bin"
            path.write_bytes(np.ascontiguousarray(array).tobytes())
            return f"../data/{key}/{path.name}"

        fed = feeds(case, model)
        return {
            "name": case.name,
            "dims": case.dims,
            "op": case.op,
            "model": f"../models/{key}.onnx",
            "bundle": f"../bundles/{key}/",
            "constants": {
                n: {"url": write("constant", n, a), "shape": list(a.shape)}
                for n, a in (constants(model) if case.op else {}).items()
            },
            "feeds": {
                n: {"type": str(a.dtype), "shape": list(a.shape), "url": write("feed", n, a)}
                for n, a in fed.items()
            },
        }

    def run(self, case: Case, options: dict[str, Any]) -> dict[str, Any]:
        """`bench.js` on a fresh page: a runtime's thread count and backend are fixed once set."""
        info = self.prepare(case)
        page = self.browser.new_page()
        try:
            page.goto(self.server.url + "page/bench.html")
            if "tfjs" in options["runtimes"]:
                for script in (
                    "tfjs/tf.min.js",
                    "tfjs-backend-wasm/tf-backend-wasm.min.js",
                    "tfjs-backend-webgpu/tf-backend-webgpu.min.js",
                ):
                    page.add_script_tag(url=f"../peers/{script}")
            page.wait_for_function("window.bench")
            page.set_default_timeout(600_000)
            return page.evaluate(
                "([info, options]) => window.bench(info, options)", [info, options]
            )
        finally:
            page.close()

    def peak_gflops(self) -> float:
        """The machine's multiply-add peak on one thread, measured now."""
        page = self.browser.new_page()
        try:
            page.goto(self.server.url + "page/bench.html")
            return peak.measure(page)
        finally:
            page.close()
