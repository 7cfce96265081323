"""The stage on which runtimes meet: one folder, one server, one browser, a fresh page a row."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

from playwright.sync_api import sync_playwright

from pywebgpu.serve import SiteServer
from tests.bench.cases import Case
from tests.bench.folder import BenchFolder
from tests.bench.profile import profile_page
from tests.conftest import CHROMIUM, CHROMIUM_ARGS


class Stage:
    """Context manager; `folder` keeps models and peers between runs, bundles are made anew."""

    def __init__(self, folder: Path, chromium_args: list[str] | None = None) -> None:
        self.files = BenchFolder(folder)
        self.args = CHROMIUM_ARGS if chromium_args is None else chromium_args

    def __enter__(self) -> Stage:
        self.files.fill()
        self.server = SiteServer(self.files.folder, isolation=True).start()
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

    def run(self, case: Case, options: dict[str, Any]) -> dict[str, Any]:
        """`bench.js` on a fresh page: a runtime's thread count and backend are fixed once set."""
        info = self.files.prepare(case)
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
            page.wait_for_function("'bench' in window")
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
            return profile_page(page).gflops
        finally:
            page.close()
