"""Shader variants that check themselves: taken where they find nothing wrong, else passed over."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from playwright.sync_api import Page

from pywebgpu.testing import ServeSite
from tests.web.conftest import run, write_site

pytestmark = pytest.mark.browser

_CHECK = """
@group(0) @binding(0) var<storage, read_write> wrong: array<u32>;
@compute @workgroup_size(1) fn main() { VALUE }
"""


@pytest.mark.parametrize(
    ("body", "variant"),
    [("wrong[0] = 0u;", "wgsl-checked"), ("wrong[0] = 3u;", "wgsl-default"),
     ("if (wrong[0] == 7u) { wrong[0] = 0u; }", "wgsl-default"), ("what?", "wgsl-default")],
)  # fmt: skip
def test_checked_variants(
    page: Page, serve_site: ServeSite, tmp_path: Path, body: str, variant: str
) -> None:
    write_site(tmp_path)
    path = tmp_path / "mini" / "manifest.json"
    manifest = json.loads(path.read_text())
    (plain,) = manifest["webgpu"]["variants"]
    checked = {**plain, "name": "checked", "check": _CHECK.replace("VALUE", body)}
    manifest["webgpu"]["variants"] = [checked, plain]
    path.write_text(json.dumps(manifest))
    page.goto(serve_site(tmp_path))
    taken, unavailable, y = run(
        page,
        """const session = await t.create("webgpu");
        const { variant, unavailable } = session.info;
        return [variant, unavailable.map((u) => u.feature), (await t.ask(session, [1, 2])).y];""",
    )
    assert taken == variant
    assert unavailable == ([] if variant == "wgsl-checked" else ["wgsl-checked"])
    assert len(y) == 2
