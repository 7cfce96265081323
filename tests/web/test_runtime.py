"""The browser runtime on the hand-written bundle: answers, shapes, life and death of a session."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page

from pywebgpu.serve import STRICT_CSP
from tests.executors_seen import record_executor
from tests.web import mini
from tests.web.conftest import run
from tests.web.mini import expected

pytestmark = pytest.mark.browser

OpenPage = Callable[..., Page]

# name -> (execution provider, session options, server options)
EXECUTORS = {
    "webgpu": ("webgpu", {}, {}),
    "wasm-1-thread": ("wasm", {"threads": 1}, {}),
    "wasm-2-threads": ("wasm", {"threads": 2}, {}),
    "wasm-not-isolated": ("wasm", {}, {"isolation": False}),
}


@pytest.fixture(params=EXECUTORS)
def executor(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def start(open_page: OpenPage, executor: str, **server: object) -> Page:
    """A page with `s`, a session of the mini bundle on that executor."""
    provider, options, fixed = EXECUTORS[executor]
    page = open_page(**{**fixed, **server})
    run(page, "globalThis.s = await t.create(arg[0], arg[1])", [provider, options])
    return page


def record(executor: str) -> None:
    record_executor("chromium-webgpu" if executor == "webgpu" else "chromium-wasm")


def test_answers(open_page: OpenPage, executor: str) -> None:
    page = start(open_page, executor)
    x = [float(i) for i in range(1000)]
    answer = run(page, "return await t.ask(s, arg, 41)", x)
    assert answer == {"y": expected(x), "k": 41, "dims": [1000]}
    record(executor)
    info = run(page, "return s.info")
    assert info["provider"] == executor.partition("-")[0]
    if executor.startswith("wasm"):
        assert info["threads"] == (2 if executor == "wasm-2-threads" else 1)
        threaded = executor != "wasm-not-isolated"
        assert info["variant"] == ("relaxed-threads" if threaded else "relaxed")
        assert ("threads" in [u["feature"] for u in info["unavailable"]]) is not threaded


def test_changing_shapes(open_page: OpenPage, executor: str) -> None:
    """200 runs over a few dozen shapes, smaller and larger, empty and past any warm-up; the memory
    of some outputs serves later ones."""
    page = start(open_page, executor)
    wrong = run(
        page,
        """const wrong = [];
        for (let i = 0; i < 200; i++) {
          const n = i % 5 === 4 ? 40000 + 977 * (i % 11) : (i * 37) % 700;
          const x = Float32Array.from({ length: n }, (_, j) => (i + j) % 91);
          const { y, k_out } = await s.run(t.feeds(x, i));
          const good = y.size === n && Number(k_out.data[0]) === i &&
            y.data.every((v, j) => v === 2 * x[j] + (j % 300) * 0.5 + 100);
          if (!good) wrong.push([i, n]);
          const kept = y.data;
          if (i % 3) y.dispose();
          if (kept.length !== (i % 3 ? 0 : n)) wrong.push(["disposed", i, n, kept.length]);
        }
        return wrong;""",
    )
    assert wrong == []
    record(executor)


def test_runs_in_flight(open_page: OpenPage, executor: str) -> None:
    """Runs of different shapes started together do not mix."""
    page = start(open_page, executor)
    answers = run(
        page,
        """return await Promise.all(
          Array.from({ length: 24 }, (_, i) => t.ask(s, Array(1 + (i % 7)).fill(i), i)));""",
    )
    for i, answer in enumerate(answers):
        assert answer["y"] == expected([float(i)] * (1 + i % 7))
        assert answer["k"] == i
    record(executor)


def test_metadata(open_page: OpenPage, executor: str) -> None:
    page = start(open_page, executor)
    assert run(page, "return [s.inputNames, s.outputNames, s.inputMetadata]") == [
        ["x", "k"],
        ["y", "k_out"],
        [
            {"name": "x", "type": "float32", "shape": ["n"]},
            {"name": "k", "type": "int64", "shape": [2]},
        ],
    ]


def test_strict_policy(open_page: OpenPage, executor: str) -> None:
    """A page whose policy allows nothing but its own files and WebAssembly."""
    page = start(open_page, executor, csp=STRICT_CSP)
    assert run(page, "return await t.ask(s, [1, 2])")["y"] == expected([1, 2])
    record(executor)


def test_sub_path_and_own_origin(open_page: OpenPage, executor: str) -> None:
    page = start(open_page, executor, base="/some/where/")
    assert run(page, "return await t.ask(s, [5])")["y"] == expected([5])
    base = page.url
    assert base.endswith("/some/where/")
    strangers = [u for u in page.requests if not u.startswith((base, "data:"))]  # type: ignore[attr-defined]
    assert strangers == []


def test_release(open_page: OpenPage, executor: str) -> None:
    page = start(open_page, executor)
    facts = run(page, "s.release(); s.release(); return await t.facts(t.ask(s, [1]))")
    assert facts["name"] == "DeviceError"
    assert "released" in facts["message"]
    # Runs that had begun end too, one way or the other.
    assert run(
        page,
        """const s2 = await t.create(arg[0], arg[1]);
        const running = [t.ask(s2, [1]), t.ask(s2, [2])].map(t.facts);
        s2.release();
        return (await Promise.all(running)).every((f) => f === null || f.name === "DeviceError")""",
        EXECUTORS[executor][:2],
    )


def test_wasm_trap_is_an_error_not_a_hang(open_page: OpenPage, executor: str) -> None:
    if executor == "webgpu":
        pytest.skip("shaders cannot trap")
    page = start(open_page, executor)
    assert run(page, "return await t.ask(s, [1])")["y"] == expected([1])
    first, later = run(
        page,
        """const feeds = t.feeds([1]); feeds.k.data[1] = 13n;
        const both = [s.run(feeds), s.run(t.feeds([2]))].map(t.facts);
        return [...await Promise.all(both)]""",
    )
    assert first["name"] == later["name"] == "DeviceError"
    assert "unreachable" in first["got"]
    record(executor)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_session_that_ends_during_a_run_says_so(open_page: OpenPage, threads: int) -> None:
    """However the page waits for the run's end: asleep, or looking for it in turns of its loop."""
    page = open_page()
    endings = run(
        page,
        """const endings = [];
        for (let turn = 0; turn < 20; turn++) {
          const s = await t.create("wasm", arg);
          for (let i = 0; i < turn; i++) await s.run(t.feeds([1]));
          const feeds = t.feeds([1]); feeds.k.data[1] = turn % 2 ? 13n : 1n;
          const running = t.facts(s.run(feeds));
          if (turn % 2 === 0) queueMicrotask(() => queueMicrotask(() => s.release()));
          const late = new Promise((resolve) => setTimeout(resolve, 5000, { name: "hangs" }));
          endings.push((await Promise.race([running, late]))?.name ?? "answer");
          s.release();
        }
        return endings""",
        {"threads": threads},
    )
    assert set(endings[1::2]) == {"DeviceError"}
    # Released as it started: it may still have been in time.
    assert set(endings[::2]) <= {"DeviceError", "answer"}


def test_device_lost_once(open_page: OpenPage) -> None:
    """The session opens another device and repeats what was under way."""
    page = start(open_page, "webgpu")
    answers = run(
        page,
        """const first = s.device;
        const before = await t.ask(s, [1]);
        const running = [t.ask(s, [2]), t.ask(s, [3])];
        s.device.destroy();
        const during = await Promise.all(running);
        const idle = s.device; idle.destroy(); await idle.lost;
        const after = await t.ask(s, [4]);
        return [before, ...during, after].map((a) => a.y[0]).concat(first !== s.device);""",
    )
    assert answers == [expected([v])[0] for v in (1.0, 2.0, 3.0, 4.0)] + [True]
    record("webgpu")


def test_given_device(open_page: OpenPage) -> None:
    """A caller's device is used, not destroyed on release, and its loss is the caller's."""
    page = open_page()
    facts = run(
        page,
        """const device = await (await navigator.gpu.requestAdapter()).requestDevice();
        const s1 = await t.create("webgpu", { device });
        const one = (await t.ask(s1, [1])).y;
        const same = s1.device === device;
        s1.release();
        const s2 = await t.create("webgpu", { device });
        const two = (await t.ask(s2, [1])).y;
        device.destroy(); await device.lost;
        return { one, two, same, error: await t.facts(t.ask(s2, [1])) };""",
    )
    assert facts["one"] == facts["two"] == expected([1])
    assert facts["same"]
    assert facts["error"]["name"] == "DeviceError"
    assert "new device" in facts["error"]["remedy"]


_NO_GPU = "Object.defineProperty(Navigator.prototype, 'gpu', { get: () => undefined });"


def test_falls_to_the_next_listed_provider_and_says_so(open_page: OpenPage) -> None:
    page = open_page()
    page.add_init_script(_NO_GPU)
    page.reload()
    info = run(
        page,
        """const s = await t.InferenceSession.create("mini/manifest.json");
        return { ...s.info, y: (await t.ask(s, [1])).y };""",
    )
    assert info["provider"] == "wasm"
    assert info["y"] == expected([1])
    assert [u["feature"] for u in info["unavailable"]] == ["webgpu"]
    assert "no WebGPU" in info["unavailable"][0]["reason"]
    facts = run(page, "return await t.facts(t.create('webgpu'))")
    assert facts["name"] == "DeviceError"
    assert facts["remedy"]


def test_a_shader_that_does_not_compile(open_page: OpenPage, site: Path) -> None:
    mini.write(site / "broken")
    text = (site / "broken" / "kernels.default.wgsl.json").read_text()
    data = json.dumps(["fn main( {", *json.loads(text)[1:]]).encode()
    (site / "broken" / "kernels.default.wgsl.json").write_bytes(data)
    manifest = json.loads((site / "broken" / "manifest.json").read_text())
    manifest["files"]["kernels.default.wgsl.json"] = {
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    (site / "broken" / "manifest.json").write_text(json.dumps(manifest))
    page = open_page()
    facts = run(page, "return await t.facts(t.create('webgpu', {}, 'broken'))")
    assert facts["name"] == "DeviceError"
    assert "double" in facts["where"]
    assert "line 1" in facts["got"]


@pytest.mark.parametrize("size", [1 << 15, 3_000_000])
def test_large_tensors(open_page: OpenPage, executor: str, size: int) -> None:
    """Memory grows past what creation reserved."""
    page = start(open_page, executor)
    good = run(
        page,
        """const x = new Float32Array(arg).fill(3);
        const { y } = await s.run(t.feeds(x));
        return y.data.every((v, i) => v === 106 + (i % 300) * 0.5);""",
        size,
    )
    assert good


@pytest.mark.parametrize("switch", ["delete Atomics.waitAsync", "delete globalThis.Float16Array"])
def test_older_browsers(open_page: OpenPage, switch: str) -> None:
    page = open_page()
    page.add_init_script(switch)
    page.reload()
    run(page, "globalThis.s = await t.create('wasm', { threads: 2 })")
    for n in (3, 200_000):
        assert run(page, "return (await t.ask(s, Array(arg).fill(1))).y", n) == expected([1.0] * n)


def test_without_warm_up(open_page: OpenPage, executor: str) -> None:
    provider, options, server = EXECUTORS[executor]
    page = open_page(**server)
    body = "return (await t.ask(await t.create(arg[0], { ...arg[1], warmup: false }), [1])).y"
    assert run(page, body, [provider, options]) == expected([1])


def test_trial_sizes(open_page: OpenPage) -> None:
    """The smallest that fit, and larger ones where they are allowed.

    Two 3x3 windows without padding: sizes of 1 give a product of two negative numbers.
    """
    bytes_ = ["max", ["*", 4, ["+", "h", -2], ["+", "w", -2]], 16]
    manifest = {
        "symbols": ["h", "w"],
        "buffers": [{"slot": 0, "bytes": bytes_}],
        "slots": [bytes_],
        "program": [],
        "checks": [{"left": "h", "right": ["min", "h", 8], "where": ""}],
    }
    sizes = run(
        open_page(),
        """const { trialFrames } = await import("./web/shapes.js");
        const of = (m) =>
          trialFrames({ ...m, outputs: [] }).map((f) => Object.fromEntries(f.sizes));
        const none = { inputs: [], buffers: [], slots: [], program: [], checks: [] };
        const text = [{ shape: ["batch", "sequence"] }];
        return [
          of({ ...arg, inputs: [] }),
          of({ ...none, symbols: [] }),
          of({ ...none, symbols: ["batch"], inputs: [{ shape: ["batch", 8] }] }),
          of({ ...none, symbols: ["batch", "sequence"], inputs: text }),
        ];""",
        manifest,
    )
    assert sizes == [
        [{"h": 4, "w": 4}],
        [{}],
        [{"batch": 1}, {"batch": 4}],
        [{"batch": 1, "sequence": 1}, {"batch": 1, "sequence": 16}],
    ]


@pytest.mark.parametrize(("weights", "order"), [(90 << 20, [16, 1]), (500 << 20, [1])])
def test_warm_up_begins_with_the_larger_sizes_unless_they_are_long_work(
    open_page: OpenPage, weights: int, order: list[int]
) -> None:
    sequences = run(
        open_page(),
        """const { trialFrames } = await import("./web/shapes.js");
        const { trialOrder } = await import("./web/wasm.js");
        const inputs = [{ shape: ["batch", "sequence"] }];
        const none = { outputs: [], buffers: [], slots: [], program: [], checks: [] };
        const sizes = { symbols: ["batch", "sequence"], weights: { bytes: arg } };
        const manifest = { ...none, inputs, ...sizes };
        const frames = trialOrder(manifest, trialFrames(manifest));
        return frames.map(({ sizes }) => sizes.get("sequence"));""",
        weights,
    )
    assert sequences == order
