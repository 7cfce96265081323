"""The micro-benchmarks of `codegen.wasm.profile` in Chromium.

    python -m tests.bench.profile [--threads N]

`peak` of the other benchmarks is its multiply-add rate: registers alone, one thread, same browser.
"""

from __future__ import annotations

import argparse
import base64
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from pywebgpu.codegen.wasm.asm import Target
from pywebgpu.codegen.wasm.profile import PAGES, Time, WasmProfile, module, profile
from pywebgpu.serve import SiteServer
from tests.conftest import CHROMIUM, CHROMIUM_ARGS

PAGE = Path(__file__).parent / "page"
SETTLE_S = 0.005  # V8 optimises a loop that has run for some milliseconds


def profile_page(page: Any, threads: int = 1) -> WasmProfile:
    """`page`: cross-origin isolated, with profile.js beside its address."""
    code = base64.b64encode(module(Target(relaxed=True, threads=True))).decode()
    page.evaluate(
        """async ([code, pages, threads]) => {
            const { start } = await import(new URL("profile.js", location.href).href);
            window.profileHost = await start(code, pages, threads);
        }""",
        [code, PAGES, threads],
    )
    asking = profile(threads, relaxed=True, settle_s=SETTLE_S)
    request: Time = next(asking)
    try:
        while True:
            seconds = page.evaluate(
                "(request) => window.profileHost.time(...request)",
                [request.function, list(request.args), request.threads],
            )
            request = asking.send(float(seconds))
    except StopIteration as done:
        found: WasmProfile = done.value
        return found
    finally:
        page.evaluate("window.profileHost.stop()")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    threads = parser.parse_args().threads
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        (Path(folder) / "index.html").write_text("<!doctype html><title>profile</title>")
        for name in ("profile.js", "profile-worker.js"):
            shutil.copy(PAGE / name, folder)
        server = SiteServer(Path(folder), isolation=True).start()
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGS)
        page = browser.new_page()
        page.goto(server.url)
        print(json.dumps(profile_page(page, threads).to_json(), indent=1))
        browser.close()
        server.close()


if __name__ == "__main__":
    main()
