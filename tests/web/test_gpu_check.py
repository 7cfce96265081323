"""Shaders that a driver refuses or computes wrongly: variants that check themselves, and small
kernels of the families in use."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from pathlib import Path

import pytest
from playwright.sync_api import Page

from pywebgpu.export import export
from pywebgpu.testing import ServeSite
from tests.executors_seen import record_executor
from tests.web.conftest import OpenPage, run, write_site
from tests.web.mini import expected

pytestmark = pytest.mark.browser
ROOT = Path(__file__).parents[2]

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


def test_wasm_takes_over_where_no_variant_is_right(open_page: OpenPage, site: Path) -> None:
    path = site / "mini" / "manifest.json"
    manifest = json.loads(path.read_text())
    (plain,) = manifest["webgpu"]["variants"]
    check = _CHECK.replace("VALUE", "wrong[0] = 3u;")
    manifest["webgpu"]["variants"] = [{**plain, "name": "checked", "check": check}]
    path.write_text(json.dumps(manifest))
    alone, provider, y = run(
        open_page(),
        """const alone = await t.facts(t.create("webgpu"));
        const s = await t.InferenceSession.create("mini");
        return [alone, s.info.provider, (await t.ask(s, [1, 2])).y];""",
    )
    assert alone["name"] == "DeviceError"
    assert "compute right numbers" in alone["message"]
    assert (provider, y) == ("wasm", expected([1.0, 2.0]))


_HALVE = """
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
@compute @workgroup_size(4) fn main(@builtin(global_invocation_id) at: vec3<u32>) {
  y[at.x] = x[at.x] * 0.5;
}
"""


def _with_tests(folder: Path, expected: list[float], second: bool = False) -> None:
    """The mini bundle with one self-test, which its first variant names."""
    operand = base64.b64encode(struct.pack("<4f", 2, 4, 6, 8)).decode()
    kernel = {
        "name": "map_4", "scratch": [], "features": [],
        "passes": [{"code": 0, "bindings": [["operand", 0], ["output", 0]], "grid": [1, 1, 1]}],
    }  # fmt: skip
    test = {"family": "map", "kernel": kernel, "operands": [operand], "output": "f32",
            "expected": expected, "tolerance": 1e-4}  # fmt: skip
    data = json.dumps({"codes": [_HALVE], "tests": [test]}).encode()
    path = folder / "mini" / "manifest.json"
    manifest = json.loads(path.read_text())
    (plain,) = manifest["webgpu"]["variants"]
    first = {**plain, "tests": "self-tests.first.json"}
    if second:
        first["name"] = "first"
        manifest["webgpu"]["variants"] = [first, plain]
    else:
        manifest["webgpu"]["variants"] = [first]
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest["files"]["self-tests.first.json"] = entry
    (folder / "mini" / "self-tests.first.json").write_bytes(data)
    path.write_text(json.dumps(manifest))


def test_families_are_tried_once_after_the_first_answer(open_page: OpenPage, site: Path) -> None:
    _with_tests(site, [1, 2, 3, 4])
    page = open_page()
    requested = run(page, "globalThis.s = await t.create('webgpu'); return (await t.ask(s, [1])).y")
    assert requested == expected([1.0])
    page.wait_for_function("(localStorage.getItem('pywebgpu-self-tests') ?? '').length > 70")
    seen = page.requests  # type: ignore[attr-defined]
    assert sum("self-tests.first" in url for url in seen) == 1
    assert run(page, "return s.selfTest()") == []
    run(page, "const again = await t.create('webgpu'); return again.selfTest()")
    assert sum("self-tests.first" in url for url in seen) == 1
    record_executor("chromium-webgpu")


def test_a_wrong_family_is_named_and_wasm_takes_over(open_page: OpenPage, site: Path) -> None:
    _with_tests(site, [1, 2, 3, 5])
    page = open_page()
    wrong, y, info = run(
        page,
        """const s = await t.InferenceSession.create("mini");
        const wrong = await s.selfTest();
        return [wrong, (await t.ask(s, [1, 2])).y, s.info];""",
    )
    assert wrong[0]["family"] == "map"
    assert "1 of 4 elements" in wrong[0]["problem"]
    assert "4 in place of 5" in wrong[0]["problem"]
    assert y == expected([1.0, 2.0])
    assert info["provider"] == "wasm"
    assert any(
        u["feature"] == "wgsl-default" and "map kernels wrongly" in u["reason"]
        for u in info["unavailable"]
    )


def test_a_wrong_family_without_another_provider(open_page: OpenPage, site: Path) -> None:
    _with_tests(site, [1, 2, 3, 5])
    facts = run(
        open_page(),
        """const s = await t.create("webgpu");
        await s.selfTest();
        return [await t.facts(s.run(t.feeds([1]))), await t.facts(s.run(t.feeds([2])))];""",
    )
    for fact in facts:
        assert fact["name"] == "DeviceError"
        assert "map kernels wrongly" in fact["message"]


def test_a_wrong_family_leaves_it_to_the_next_variant(open_page: OpenPage, site: Path) -> None:
    _with_tests(site, [9, 2, 3, 4], second=True)
    before, y, after = run(
        open_page(),
        """const s = await t.create("webgpu");
        const before = s.info.variant;
        await s.selfTest();
        return [before, (await t.ask(s, [3])).y, s.info.variant];""",
    )
    assert (before, y, after) == ("wgsl-first", expected([3.0]), "wgsl-default")


def test_a_variant_that_does_not_compile_leaves_it_to_the_next(
    open_page: OpenPage, site: Path
) -> None:
    path = site / "mini" / "manifest.json"
    manifest = json.loads(path.read_text())
    (plain,) = manifest["webgpu"]["variants"]
    data = json.dumps(["what?"] * 3).encode()
    manifest["files"]["broken.json"] = {
        "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(),
    }  # fmt: skip
    (site / "mini" / "broken.json").write_bytes(data)
    manifest["webgpu"]["variants"] = [{**plain, "name": "odd", "file": "broken.json"}, plain]
    path.write_text(json.dumps(manifest))
    y, variant, unavailable = run(
        open_page(),
        """const s = await t.create("webgpu");
        return [(await t.ask(s, [3])).y, s.info.variant, s.info.unavailable];""",
    )
    assert (y, variant) == (expected([3.0]), "wgsl-default")
    assert unavailable[0]["feature"] == "wgsl-odd"
    assert "(double)" in unavailable[0]["reason"] or "(copy)" in unavailable[0]["reason"]
    assert "does not compile" in unavailable[0]["reason"]


def test_an_exported_models_families(open_page: OpenPage, site: Path) -> None:
    """What the generator writes passes in this browser."""
    export(ROOT / "examples" / "digits" / "digits.onnx", site / "digits")
    wrong, families, kept = run(
        open_page(),
        """const s = await t.create("webgpu", {}, "digits");
        const wrong = await s.selfTest();
        const manifest = await (await fetch("digits/manifest.json")).json();
        const name = `wgsl-`;
        const own = manifest.webgpu.variants.find((v) => name + v.name === s.info.variant);
        const { tests } = await (await fetch(`digits/${own.tests}`)).json();
        return [wrong, tests.map((one) => one.family),
                localStorage.getItem("pywebgpu-self-tests")];""",
    )
    assert wrong == []
    assert {"conv", "matmul", "row"} <= set(families)
    assert kept
