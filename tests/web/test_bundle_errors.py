"""What a page is told when a bundle or a feed is wrong, and how files travel and are kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

from pywebgpu.bundle import content_hash
from pywebgpu.export import export
from tests.web import mini
from tests.web.conftest import run
from tests.web.mini import expected

pytestmark = pytest.mark.browser

OpenPage = Callable[..., Page]


@pytest.fixture(params=["webgpu", "wasm"])
def provider(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def create_facts(page: Page, provider: str, url: str = "mini") -> dict[str, Any]:
    facts = run(page, "return await t.facts(t.create(arg[0], {}, arg[1]))", [provider, url])
    assert facts is not None, "create() succeeded"
    assert facts["isOurs"], facts
    return dict(facts)


def test_wrong_version(open_page: OpenPage, site: Path, provider: str) -> None:
    mini.write(site / "mini", format_version=99)
    facts = create_facts(open_page(), provider)
    assert facts["name"] == "BundleError"
    assert "99" in facts["got"]
    assert facts["expected"] == "1"
    assert facts["where"].endswith("/mini/manifest.json")
    assert "Export" in facts["remedy"]


@pytest.mark.parametrize("content", [b"{", b"<!doctype html>", b"", b"\xff\xfe", b"null", b"[]"])
def test_manifest_that_is_none(open_page: OpenPage, site: Path, content: bytes) -> None:
    (site / "mini" / "manifest.json").write_bytes(content)
    facts = create_facts(open_page(), "wasm")
    assert facts["name"] == "BundleError"
    assert facts["where"].endswith("/mini/manifest.json")


@pytest.mark.parametrize(("path", "value"), mini.WRONG_FIELDS)
def test_manifest_with_a_wrong_field(
    open_page: OpenPage, site: Path, path: list[Any], value: Any
) -> None:
    place = mini.damage(site / "mini", path, value)
    facts = create_facts(open_page(), "wasm")
    assert facts["name"] == "BundleError"
    assert place in facts["what"]


def test_half_precision_where_it_cannot_run(open_page: OpenPage, site: Path, provider: str) -> None:
    """The software adapter has no shader-f16, WebAssembly no half-precision loads."""
    digits = Path(__file__).parents[2] / "examples/digits/digits.onnx"
    export(digits, site / "half", dtype="f16")
    facts = create_facts(open_page(), provider, "half")
    assert facts["name"] == "DeviceError"
    assert ("shader-f16" if provider == "webgpu" else "no WebAssembly module") in facts["message"]


def test_a_shader_that_is_not_there(open_page: OpenPage, site: Path) -> None:
    mini.damage(site / "mini", ["webgpu", "variants", 0, "kernels", 0, "passes", 0, "code"], 7)
    facts = create_facts(open_page(), "webgpu")
    assert facts["name"] == "BundleError"
    assert facts["got"] == "3 shaders"
    assert facts["where"].endswith("/mini/kernels.default.wgsl.json")


def test_no_bundle_there(open_page: OpenPage, provider: str) -> None:
    facts = create_facts(open_page(), provider, "nothing")
    assert facts["name"] == "BundleError"
    assert facts["got"] == "HTTP status 404"
    assert facts["where"].endswith("/nothing/manifest.json")


def test_no_server_there(open_page: OpenPage) -> None:
    facts = create_facts(open_page(), "wasm", "http://127.0.0.1:9/")
    assert facts["name"] == "BundleError"
    assert "connection" in facts["remedy"]


def _files(provider: str) -> list[str]:
    code = "kernels.default.wgsl.json" if provider == "webgpu" else "model.relaxed-threads.wasm"
    return [code, "weights-000.bin", "weights-001.bin"]


@pytest.mark.parametrize("number", range(3))
def test_missing_file(open_page: OpenPage, site: Path, provider: str, number: int) -> None:
    name = _files(provider)[number]
    (site / "mini" / name).unlink()
    facts = create_facts(open_page(), provider)
    assert facts["name"] == "BundleError"
    assert facts["where"].endswith(f"/mini/{name}")
    assert facts["got"] == "HTTP status 404"


@pytest.mark.parametrize("number", range(3))
def test_flipped_byte(open_page: OpenPage, site: Path, provider: str, number: int) -> None:
    file = site / "mini" / _files(provider)[number]
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    facts = create_facts(open_page(), provider)
    assert facts["name"] == "BundleError"
    assert facts["where"].endswith(file.name)
    assert "SHA-256" in facts["what"]


@pytest.mark.parametrize("change", ["shorter", "longer", "empty"])
def test_wrong_length(open_page: OpenPage, site: Path, provider: str, change: str) -> None:
    file = site / "mini" / "weights-000.bin"
    data = file.read_bytes()
    file.write_bytes({"shorter": data[:-1], "longer": data + b"0", "empty": b""}[change])
    facts = create_facts(open_page(), provider)
    assert facts["name"] == "BundleError"
    assert "size" in facts["what"]
    assert facts["expected"] == "1024 bytes"


WRONG_FEEDS = {
    "unknown name": ("({ ...good, z: good.x })", '"z"'),
    "missing": ("({ x: good.x })", '"k"'),
    "not a tensor": ("({ ...good, x: [1, 2] })", '"x"'),
    "type": ("({ ...good, x: new t.Tensor('int32', [1]) })", "int32"),
    "rank": ("({ ...good, x: new t.Tensor('float32', [1, 2], [1, 2]) })", "[1, 2]"),
    "size": ("({ ...good, k: new t.Tensor('int64', [1n, 2n, 3n]) })", "[3]"),
    "check": ("t.feeds(new Float32Array(4000001))", "4000000"),
    "range": ("({ ...good, k: new t.Tensor('int64', [1n << 31n, 0n]) })", "2147483648"),
}


@pytest.mark.parametrize("case", WRONG_FEEDS)
def test_wrong_feeds(open_page: OpenPage, provider: str, case: str) -> None:
    """Each is an InputError that names the input; the session goes on working."""
    feeds, mentioned = WRONG_FEEDS[case]
    facts, y = run(
        open_page(),
        f"""const s = await t.create(arg); const good = t.feeds([1]);
        const facts = await t.facts(s.run({feeds}));
        return [facts, (await t.ask(s, [2])).y];""",
        provider,
    )
    assert facts["name"] == "InputError"
    assert mentioned in facts["message"]
    assert y == expected([2])


@pytest.mark.parametrize(
    "call",
    [
        "new t.Tensor('float31', [1])",
        "new t.Tensor('float32', new Int32Array(1))",
        "new t.Tensor('float32', [1, 2], [3])",
        "new t.Tensor('float32', [1], [1, -1])",
        "t.create('cuda')",
        "t.InferenceSession.create('mini', { executionProviders: [] })",
    ],
)
def test_wrong_arguments(open_page: OpenPage, call: str) -> None:
    facts = run(open_page(), f"return await t.facts((async () => {call})())")
    assert facts["name"] == "InputError"
    assert facts["got"]
    assert facts["expected"]


def test_progress(open_page: OpenPage, provider: str) -> None:
    """Every byte that is needed is announced once, file by file and in total."""
    events = run(
        open_page(),
        "const seen = []; await t.create(arg, { onProgress: (p) => seen.push(p) }); return seen;",
        provider,
    )
    last = {event["file"]: event for event in events}
    assert set(last) == set(_files(provider))
    assert all(e["fileLoaded"] == e["fileTotal"] for e in last.values())
    assert events[-1]["loaded"] == events[-1]["total"] == sum(e["fileTotal"] for e in last.values())
    assert [e["loaded"] for e in events] == sorted(e["loaded"] for e in events)


def test_second_visit_takes_files_from_the_cache(open_page: OpenPage, provider: str) -> None:
    page = open_page()
    run(page, "await t.create(arg)", provider)
    # The copies are written some seconds after create() has returned.
    page.evaluate(
        """async () => {
          const cache = await caches.open("pywebgpu");
          while ((await cache.keys()).length < 3) await new Promise((r) => setTimeout(r, 50));
        }"""
    )
    page.requests.clear()  # type: ignore[attr-defined]
    page.reload()
    y, events = run(
        page,
        """let events = 0;
        const s = await t.create(arg, { onProgress: () => events++ });
        return [(await t.ask(s, [1])).y, events]""",
        provider,
    )
    assert y == expected([1])
    assert events == 3
    asked = [url for url in page.requests if "/mini/" in url]  # type: ignore[attr-defined]
    assert [url.rsplit("/", 1)[1] for url in asked] == ["manifest.json"]
    assert run(page, "return await t.clearCache()")


def test_damaged_cache_is_not_believed(open_page: OpenPage, site: Path) -> None:
    sha256 = json.loads((site / "mini" / "manifest.json").read_text())["files"]["weights-000.bin"]
    y = run(
        open_page(),
        """const cache = await caches.open("pywebgpu");
        await cache.put("/pywebgpu-cache/" + arg, new Response(new Uint8Array(1024)));
        return (await t.ask(await t.create("wasm"), [1])).y;""",
        sha256["sha256"],
    )
    assert y == expected([1])


_ASK_AND_INFO = "const s = await t.create('wasm'); return [(await t.ask(s, [1])).y, s.info]"


def test_works_without_cache_storage(open_page: OpenPage) -> None:
    page = open_page()
    page.add_init_script("caches.open = () => Promise.reject(new Error('storage is off'));")
    page.reload()
    y, info = run(page, _ASK_AND_INFO)
    assert y == expected([1])
    assert [u["feature"] for u in info["unavailable"]] == ["cache"]
    assert "storage is off" in info["unavailable"][0]["reason"]


def test_insecure_page_says_what_it_cannot_do(open_page: OpenPage, site: Path) -> None:
    """Plain HTTP on another host: no hashes, no cache, no WebGPU, and each is told."""
    page = open_page(isolation=False)
    # Chromium resolves every name below .localhost to loopback but trusts them; others not at all.
    page.add_init_script(
        "Object.defineProperty(globalThis, 'crypto', { value: {} }); delete globalThis.caches;"
    )
    page.reload()
    y, info = run(page, _ASK_AND_INFO)
    assert y == expected([1])
    assert {u["feature"] for u in info["unavailable"]} == {"threads", "cache", "hash check"}


def test_abort(open_page: OpenPage, site: Path, provider: str) -> None:
    """Before, during the download, and during a run: the signal's reason, and nothing is left."""
    page = open_page()
    page.route("**/weights-001.bin", lambda route: None)  # never answered
    before, during = run(
        page,
        """const name = async (p) => { try { await p; return null } catch (e) { return e.name } };
        const early = new AbortController(); early.abort();
        const before = await name(t.create(arg, { signal: early.signal }));
        const late = new AbortController();
        const onProgress = ({ file }) => file === "weights-000.bin" && late.abort();
        return [before, await name(t.create(arg, { signal: late.signal, onProgress }))];""",
        provider,
    )
    assert before == during == "AbortError"
    page.unroute("**/weights-001.bin")
    reason, y = run(
        page,
        """const s = await t.create(arg);
        const controller = new AbortController();
        const running = s.run(t.feeds(new Float32Array(100000)), { signal: controller.signal });
        controller.abort(new Error("changed my mind"));
        const reason = await t.facts(running);
        return [reason.message, (await t.ask(s, [1])).y];""",
        provider,
    )
    assert reason == "changed my mind"
    assert y == expected([1])


_FILL = """const { Bundle } = await import("./web/bundle.js");
const [name, entry] = arg;
const manifest = { files: { [name]: entry } };
const bundle = new Bundle(new URL(".", location).href, null, manifest, {}, null, []);
bundle.expect([name]);
const copy = new Uint8Array(entry.bytes);
let last = 0;
bundle.onProgress = (p) => { last = p.loaded; };
const facts = await t.facts(bundle.fill(name, (block, at) => copy.set(block, at)));
return [facts, last, copy.every((v, i) => v === (i * 7 + (i >> 8)) % 251)];"""


@pytest.mark.parametrize("bytes_", [0, 1, 262143, 262144, 262145, 1_000_000, 2 * 262144])
@pytest.mark.parametrize("into", ["our memory", "memory of the browser's"])
def test_files_of_many_blocks(open_page: OpenPage, site: Path, bytes_: int, into: str) -> None:
    """Whole and in order; one wrong bit anywhere is found, and so is a wrong end."""
    content = bytes((i * 7 + (i >> 8)) % 251 for i in range(bytes_))
    hashes = [
        hashlib.sha256(content[i : i + 262144]).digest() for i in range(0, bytes_, 262144)
    ] or [hashlib.sha256().digest()]
    sha256 = hashes[0] if len(hashes) == 1 else hashlib.sha256(b"".join(hashes)).digest()
    assert sha256.hex() == content_hash(content)
    page = open_page()
    if into != "our memory":
        page.add_init_script(
            """const { getReader } = ReadableStream.prototype;
            ReadableStream.prototype.getReader = function (options) {
              if (options) throw new TypeError("not a byte stream");
              return getReader.call(this);
            };"""
        )
        page.reload()
    entry = {"bytes": bytes_, "sha256": sha256.hex()}

    def fill(name: str, served: bytes) -> Any:
        # Another name each time: browsers take files changed within a second for the same.
        (site / name).write_bytes(served)
        return run(page, _FILL, [name, entry])

    assert fill("right.bin", content) == [None, bytes_, True]
    for place in {0, bytes_ // 2, bytes_ - 1} if bytes_ else ():
        wrong = bytearray(content)
        wrong[place] ^= 1
        facts, _, intact = fill(f"wrong-{place}.bin", bytes(wrong))
        assert facts["name"] == "BundleError"
        assert "SHA-256" in facts["what"]
        assert not intact
    facts, *_ = fill("longer.bin", content + b"0")
    assert "size" in facts["what"]
    if content:
        facts, *_ = fill("shorter.bin", content[:-1])
        assert "size" in facts["what"]
