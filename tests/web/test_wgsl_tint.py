"""Chromium's WGSL compiler (Tint) takes every candidate's text.

It differs from the one behind wgpu-py: it proves uniform control flow around barriers, knows other
reserved words, and refuses constant expressions that overflow.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Page

from pywebgpu.codegen import wgsl
from pywebgpu.codegen.caps import WgslCaps
from pywebgpu.testing import ServeSite
from tests.kernels.cases import every_operator, for_gpus, one_of_each

pytestmark = pytest.mark.browser

_COMPILE = """async (codes) => {
  const adapter = await navigator.gpu.requestAdapter();
  const device = await adapter.requestDevice();
  const found = [];
  for (const [name, code] of codes) {
    device.pushErrorScope("validation");
    const module = device.createShaderModule({ code });
    const info = await module.getCompilationInfo();
    const error = await device.popErrorScope();
    for (const m of info.messages) {
      const line = code.split("\\n")[m.lineNum - 1] ?? "";
      found.push(`${name} line ${m.lineNum}: ${m.type}: ${m.message} | ${line.trim()}`);
    }
    if (error && !info.messages.length) found.push(`${name}: ${error.message}`);
  }
  device.destroy();
  return found;
}"""


def texts() -> dict[str, str]:
    """Shader text -> a name for it: all candidates, with little and with much to offer."""
    found: dict[str, str] = {}
    rich = WgslCaps(max_workgroup_storage=32768, max_invocations=1024,
                    max_workgroup_size=(1024, 1024, 64))  # fmt: skip
    for name, case in [*one_of_each(), *for_gpus()]:
        for caps in (WgslCaps(), rich):
            for knobs in wgsl.space(case.spec, caps):
                kernel = wgsl.render(case.spec, knobs)
                for i, one in enumerate(kernel.passes):
                    found.setdefault(one.code, f"{name} {kernel.name} pass {i}")
    for op, case in every_operator():
        kernel = wgsl.render(case.spec, wgsl.space(case.spec, WgslCaps())[0])
        found.setdefault(kernel.passes[0].code, op.value)
    return found


def test_tint_accepts_every_candidate(
    page: Page, serve_site: ServeSite, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder: Path = tmp_path_factory.mktemp("tint")
    (folder / "index.html").write_text("<!doctype html><title>tint</title>")
    page.goto(serve_site(folder))
    codes = [[name, code] for code, name in texts().items()]
    messages = []
    for start in range(0, len(codes), 100):
        messages += page.evaluate(_COMPILE, codes[start : start + 100])
    assert not messages, "\n".join(messages[:20])
