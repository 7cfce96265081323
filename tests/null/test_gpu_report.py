"""What the GPU benchmark makes of its pages' answers."""

from __future__ import annotations

from typing import Any

from tests.bench.cases import in_half, matmul
from tests.bench.gpu import _row

CASE = matmul(2, 3, 4)


def page(**changes: Any) -> dict[str, Any]:
    names = {"ours": 1.0, "ort": 3.0}
    return {
        "rounds": {name: [ms] * 3 for name, ms in names.items()},
        "single": dict(names), "first": dict(names), "created": dict(names),
        "deviation": dict.fromkeys(names, 1e-6), "dispatches": dict.fromkeys(names, 1),
        "errors": {}, "device": {"device": "a GPU"}, "profile": {"hostMs": 0.1}, **changes,
    }  # fmt: skip


def test_the_better_form_of_a_peer_counts() -> None:
    captured = page(rounds={"ours": [2.0] * 3, "ort+capture": [4.0] * 3})
    captured["deviation"] = {"ours": 1e-6, "ort+capture": 1e-6}
    row = _row(CASE, page(), captured)
    assert (row["ours_ms"], row["ratio_ort"], row["ratio_best"]) == (1.0, 2.0, 2.0)
    assert row["peers"] == {"ort": 3.0, "ort+capture": 4.0}
    assert row["hostMs"] == 0.1
    assert "errors" not in row


def test_wrong_outputs_are_not_timed() -> None:
    wrong = page(deviation={"ours": 1e-6, "ort": 0.01})
    assert _row(CASE, wrong, page())["ratio_ort"] == 3.0  # the other page's
    row = _row(CASE, wrong, {"failed": "no answer"})
    assert row["ratio_ort"] is None
    assert row["peers"] == {}
    assert row["errors"] == {"ort": "output deviates by 0.01", "page 2": "no answer"}
    assert _row(in_half(CASE), wrong, {"failed": "no answer"})["ratio_ort"] == 3.0


def test_a_row_without_ours() -> None:
    alone = page(rounds={"ort": [3.0] * 3}, deviation={"ort": 0.0}, errors={"ours": "no f16"})
    del alone["device"], alone["profile"]
    row = _row(CASE, alone, alone)
    assert row["peers"] == {"ort": 3.0}
    assert row["ratio_best"] is None
    assert row["errors"] == {"ours": "no f16"}
