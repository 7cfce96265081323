"""Tensors that stay on the GPU between runs: fed, produced, chained, disposed, refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page

from tests.executors_seen import record_executor
from tests.web.conftest import run
from tests.web.mini import expected

pytestmark = pytest.mark.browser

OpenPage = Callable[..., Page]


@pytest.fixture
def page(open_page: OpenPage) -> Page:
    """A page with `s`, a WebGPU session of the mini bundle."""
    page = open_page()
    run(page, "globalThis.s = await t.create('webgpu')")
    return page


def test_outputs_stay_and_are_fed_again(page: Page) -> None:
    answer = run(
        page,
        """const first = await s.run(s.upload(t.feeds([1, 2, 3], 5)), { outputs: "gpu" });
        const second = await s.run({ x: first.y, k: first.k_out }, { outputs: "gpu" });
        const { y, k_out } = second;
        return { once: [...await first.y.data()], twice: [...await y.data()],
                 k: (await k_out.data()).map(String).join(), type: k_out.type, dims: [...y.dims],
                 mixed: (await s.run({ x: first.y, k: t.feeds([1], 9).k })).k_out.data.join() };""",
    )
    once = expected([1.0, 2.0, 3.0])
    assert answer["once"] == once
    assert answer["twice"] == expected(once)
    assert (answer["k"], answer["type"], answer["dims"]) == ("5,0", "int64", [3])
    assert answer["mixed"] == "9,0"
    record_executor("chromium-webgpu")


def test_runs_in_flight_have_outputs_of_their_own(page: Page) -> None:
    """Submitted together; disposed buffers serve later runs; shapes vary."""
    wrong = run(
        page,
        """const wrong = [];
        for (let turn = 0; turn < 6; turn++) {
          const runs = await Promise.all(Array.from({ length: 20 }, async (_, i) => {
            const fed = s.upload(t.feeds(Array(1 + (i % 3) * 7).fill(turn * 100 + i), i));
            const out = await s.run(fed, { outputs: "gpu" });
            fed.x.dispose(); fed.k.dispose();
            return out;
          }));
          for (const [i, { y, k_out }] of runs.entries()) {
            const data = await y.data();
            const good = data.length === 1 + (i % 3) * 7 && Number((await k_out.data())[0]) === i &&
              data.every((v, j) => v === 2 * (turn * 100 + i) + j * 0.5 + 100);
            if (!good) wrong.push([turn, i, [...data]]);
            y.dispose(); k_out.dispose();
          }
        }
        return wrong;""",
    )
    assert wrong == []


def test_runs_are_submitted_together(page: Page) -> None:
    """As long as nobody can look: every 32 dispatches or so, and when the task ends."""
    answer = run(
        page,
        """const { prototype } = GPUQueue;
        const { submit } = prototype;
        let count = 0;
        prototype.submit = function (...all) { count++; return submit.apply(this, all); };
        const fed = s.upload(t.feeds([1, 2, 3], 5));
        const keep = { outputs: "gpu" };
        await s.run(fed, keep);  // a set of shapes is checked alone
        await new Promise((done) => setTimeout(done, 20));
        const counted = [];
        count = 0;
        let { y, k_out } = await s.run(fed, keep);
        for (let i = 0; i < 3; i++) {
          const next = await s.run({ x: y, k: k_out }, keep);
          y.dispose(); k_out.dispose();
          ({ y, k_out } = next);
        }
        counted.push(count);
        const { data } = { data: [...await y.data()] };
        counted.push(count);
        const late = await s.run(fed, keep);
        counted.push(count);
        await new Promise((done) => setTimeout(done, 20));
        counted.push(count);
        for (let i = 0; i < 64; i++) (await s.run(fed, keep)).y.dispose();
        counted.push(count);
        prototype.submit = submit;
        return { counted, data, late: [...await late.y.data()] };""",
    )
    values = [1.0, 2.0, 3.0]
    assert answer["late"] == expected(values)
    for _ in range(4):
        values = expected(values)
    assert answer["data"] == values
    unread, read, held, ended, many = answer["counted"]
    assert (unread, read, held, ended) == (0, 1, 1, 2)
    assert 2 <= many - ended <= 8


def test_buffers_that_the_page_uses_itself(page: Page) -> None:
    """Its copies see what runs wrote, and runs what it wrote before them, not after them."""
    answer = run(
        page,
        """const keep = { outputs: "gpu" };
        const { device } = s;
        const fed = s.upload(t.feeds([1, 2, 3], 5));
        const found = [];
        const copy = async (from) => {
          const usage = GPUBufferUsage.COPY_DST | GPUBufferUsage.MAP_READ;
          const to = device.createBuffer({ size: 12, usage });
          const encoder = device.createCommandEncoder();
          encoder.copyBufferToBuffer(from, 0, to, 0, 12);
          device.queue.submit([encoder.finish()]);
          await to.mapAsync(GPUMapMode.READ);
          found.push([...new Float32Array(to.getMappedRange().slice(0))]);
        };
        await s.run(fed, keep);
        const first = await s.run(fed, keep);
        await copy(first.y.buffer);
        const { buffer } = fed.x;
        const before = await s.run(fed, keep);
        device.queue.writeBuffer(buffer, 0, new Float32Array([7, 8, 9]));
        const after = await s.run(fed, keep);
        device.queue.writeBuffer(buffer, 0, new Float32Array([0, 0, 0]));
        for (const { y } of [before, after]) found.push([...await y.data()]);
        return found;""",
    )
    one, other = expected([1.0, 2.0, 3.0]), expected([7.0, 8.0, 9.0])
    assert answer == [one, one, other]


def test_a_buffer_of_the_callers(page: Page) -> None:
    """Made by other code on the session's device, and left alone by runs."""
    answer = run(
        page,
        """const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
        const buffer = s.device.createBuffer({ size: 32, usage });
        s.device.queue.writeBuffer(buffer, 0, new Float32Array([4, 5, 6, 7, 8]));
        const x = new t.GpuTensor(s.device, buffer, "float32", [5]);
        const { y } = await s.run({ ...t.feeds([]), x });
        return { y: [...y.data], x: [...await x.data()] };""",
    )
    assert answer == {"y": expected([4.0, 5.0, 6.0, 7.0, 8.0]), "x": [4, 5, 6, 7, 8]}


BAD = {
    "disposed": (
        "const { x } = s.upload({ x: t.feeds([1]).x }); x.dispose();"
        "const error = await t.facts(s.run({ ...t.feeds([1]), x }))",
        "has been disposed",
    ),
    "another device": (
        "const other = await t.create('webgpu'); const { x } = other.upload({ x: t.feeds([1]).x });"
        "const error = await t.facts(s.run({ ...t.feeds([1]), x }))",
        "another device",
    ),
    "shape": (
        "const { k } = s.upload({ k: t.feeds([1]).k }); const bad = new t.GpuTensor("
        "  s.device, k.buffer, 'int64', [1], 'i32');"
        "const error = await t.facts(s.run({ ...t.feeds([1]), k: bad }))",
        "shape does not fit",
    ),
    "storage": (
        "const { x } = s.upload({ x: t.feeds([1, 2]).x }); const bad = new t.GpuTensor("
        "  s.device, x.buffer, 'float32', [2], 'f16');"
        "const error = await t.facts(s.run({ ...t.feeds([1]), x: bad }))",
        "lie otherwise",
    ),
    "small buffer": (
        "const { x } = s.upload({ x: t.feeds([1]).x }); const error = await t.facts((async () =>"
        "  new t.GpuTensor(s.device, x.buffer, 'float32', [100]))())",
        "cannot hold",
    ),
    "on wasm": (
        "const { x } = s.upload({ x: t.feeds([1]).x }); const cpu = await t.create('wasm');"
        "const error = await t.facts(cpu.run({ ...t.feeds([1]), x }))",
        "another device",
    ),
    "outputs of wasm": (
        "const cpu = await t.create('wasm');"
        "const error = await t.facts(cpu.run(t.feeds([1]), { outputs: 'gpu' }))",
        "does not run on a GPU",
    ),
    "no such input": (
        "const error = await t.facts((async () => s.upload({ z: t.feeds([1]).x }))())",
        "no such input",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_refused(page: Page, what: str) -> None:
    body, message = BAD[what]
    facts = run(page, body + "; return error")
    assert facts["name"] == "InputError"
    assert message in facts["message"]


def test_inputs_are_lost_with_their_device(page: Page) -> None:
    """Outputs can be computed again on a new device, inputs that lay on the old one cannot."""
    first, second, third = run(
        page,
        """const fed = s.upload(t.feeds([1, 2]));
        const old = s.device; old.destroy(); await old.lost;
        const { y } = await s.run(t.feeds([3]), { outputs: "gpu" });
        const lost = await t.facts(s.run(fed));
        return [[...await y.data()], lost.name, s.device !== old && y.device === s.device];""",
    )
    assert (first, second, third) == (expected([3.0]), "InputError", True)


def test_profile(page: Page) -> None:
    found = run(page, "return await s.profile(t.feeds(Array(5000).fill(1)), { repeats: 5 })")
    assert [step["label"] for step in found["steps"]] == ["double", "copy"]
    assert found["dispatches"] == 3
    assert all(step["ms"] >= 0 for step in found["steps"])
    assert found["deviceMs"] >= 0
    assert found["hostMs"] > 0
