"""Models whose course data decide, and recurrent ones, in the browser: as ONNX Runtime has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from pywebgpu.codegen.program import LOOP_LIMIT, STACK_LIMIT
from pywebgpu.export import export
from tests.executors_seen import record_executor
from tests.ops import test_control as control
from tests.ops import test_counted as counted
from tests.ops.agree import by_onnxruntime, model_of
from tests.web.conftest import OpenPage, run

pytestmark = pytest.mark.browser

EXECUTORS: dict[str, tuple[str, dict[str, Any]]] = {
    "wasm-threads": ("wasm", {}),
    "wasm": ("wasm", {"isolation": False}),
    "webgpu": ("webgpu", {}),
}
F = np.float32


def lstm() -> onnx.ModelProto:
    rng = np.random.default_rng()
    inputs = {
        "x": np.zeros((1, 1, 6), F),
        "w": rng.standard_normal((2, 4 * 12, 6)).astype(F),
        "r": rng.standard_normal((2, 4 * 12, 12)).astype(F) / 3,
    }
    return model_of(
        "LSTM", inputs, [("y", F), ("y_h", F), ("y_c", F)], ("w", "r"),
        {"x": ["steps", "batch", 6]}, hidden_size=12, direction="bidirectional",
    )  # fmt: skip


def normal(*shape: int) -> Any:
    return np.random.default_rng().standard_normal(shape).astype(F)


CASES: dict[str, tuple[Any, list[dict[str, Any]]]] = {
    "lstm": (lstm, [{"x": normal(5, 2, 6)}, {"x": normal(9, 1, 6)}]),
    "if": (control.early_exit, [{"x": abs(normal(2, 8))}, {"x": -abs(normal(2, 8))}]),
    "loop": (
        lambda: control.halving(rows=True),
        [{"x": np.array([3, 100, 7], F)}, {"x": np.array([1.5, 0.1], F)}],
    ),
    "non-zero": (counted.positives, [{"x": normal(5, 30)}, {"x": -abs(normal(2, 3))}]),
    "suppression": (
        lambda: counted.suppression(most=np.array([4])),
        [{"boxes": abs(normal(2, n, 4)), "scores": abs(normal(2, 3, n))} for n in (12, 5)],
    ),
    "scan": (
        control.selective_scan,
        [
            {"h0": normal(4, 3), "a": normal(t, 4, 3), "b": normal(t, 3), "c": normal(t, 3),
             "x": normal(4, t)}
            for t in (5, 40)
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("executor", EXECUTORS)
def test_as_onnxruntime(open_page: OpenPage, site: Path, executor: str, tmp_path: Path) -> None:
    provider, server = EXECUTORS[executor]
    models = {}
    for name, (make, _) in CASES.items():
        models[name] = make()
        onnx.save(models[name], tmp_path / f"{name}.onnx")
        export(tmp_path / f"{name}.onnx", site / name)
    page = open_page(**server)
    for name, (_, cases) in CASES.items():
        data = [{k: [v.ravel().tolist(), list(v.shape)] for k, v in c.items()} for c in cases]
        answers = run(
            page,
            """const session = await t.create(arg[0], {}, arg[1]);
            const ask = async (feeds) => {
              const tensors = Object.entries(feeds).map(([n, [data, dims]]) =>
                [n, new t.Tensor("float32", data, dims)]);
              const outputs = await session.run(Object.fromEntries(tensors));
              return Object.values(outputs).map(({ data, dims }) =>
                [[...data].map(Number), [...dims]]);
            };
            // The second time all at once: runs must not get in each other's way.
            const first = [];
            for (const feeds of arg[2]) first.push(await ask(feeds));
            const second = await Promise.all(arg[2].map(ask));
            session.release();
            return [first, second];""",
            [provider, name, data],
        )
        for answer in answers:
            for feeds, got in zip(cases, answer, strict=True):
                wanted = by_onnxruntime(models[name], feeds)
                for (values, dims), want in zip(got, wanted, strict=True):
                    assert tuple(dims) == want.shape, name
                    found = np.array(values, want.dtype).reshape(dims)
                    np.testing.assert_allclose(found, want, 1e-4, 1e-5, err_msg=name)
    record_executor(f"chromium-{provider}")


@pytest.mark.parametrize("executor", EXECUTORS)
def test_more_turns_than_there_is_room_for(
    open_page: OpenPage, site: Path, executor: str, tmp_path: Path
) -> None:
    """An error that says so, and the session goes on."""
    provider, server = EXECUTORS[executor]
    onnx.save(control.halving(trips=True, rows=True), tmp_path / "m.onnx")
    export(tmp_path / "m.onnx", site / "long")
    facts, after = run(
        open_page(**server),
        """const session = await t.create(arg, {}, "long");
        const ask = (x, m) => session.run({
          x: new t.Tensor("float32", [x]), m: new t.Tensor("int64", [m], []) });
        const facts = await t.facts(ask(Infinity, 5000n));
        return [facts, [...(await ask(4, 5n)).z.data]];""",
        provider,
    )
    assert facts["name"] == "InputError"
    assert "there is room for" in facts["message"]
    assert facts["got"] == "5000"
    assert after == [2.0]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_loop_without_end(open_page: OpenPage, site: Path, executor: str, tmp_path: Path) -> None:
    """It is given up, the error names it, runs that waited behind it get their answers, and the
    session goes on. Where a turn takes a round trip or a barrier only with rows, which allow fewer.
    """
    provider, server = EXECUTORS[executor]
    limits = {True: STACK_LIMIT} | ({False: LOOP_LIMIT} if executor == "wasm" else {})
    page = open_page(**server)
    for rows, limit in limits.items():
        onnx.save(control.halving(rows=rows), tmp_path / "m.onnx")
        export(tmp_path / "m.onnx", site / f"endless-{rows}")
        facts, behind, after = run(
            page,
            """const session = await t.create(arg[0], {}, arg[1]);
            const ask = async (x) =>
              [...(await session.run({ x: new t.Tensor("float32", [x]) })).z.data];
            const [facts, behind] = await Promise.all([t.facts(ask(Infinity)), ask(4)]);
            const after = await ask(8);
            session.release();
            return [facts, behind, after];""",
            [provider, f"endless-{rows}"],
        )
        assert facts["name"] == "InputError"
        assert facts["isOurs"]
        assert facts["what"] == "the loop does not end"
        assert "Loop" in facts["where"]
        assert facts["got"] == f"{limit} turns"
        assert facts["remedy"]
        # 4, 2, 1 and the turns' numbers 0 + 1; 8, 4, 2, 1 and 0 + 1 + 2.
        assert behind == [2.0]
        assert after == [4.0]
    record_executor(f"chromium-{provider}")
