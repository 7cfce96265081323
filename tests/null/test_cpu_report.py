"""The CPU benchmark's table says what its rows say."""

from __future__ import annotations

from typing import Any

from tests.bench.cpu_report import table


def row(case: str, best: float, **more: Any) -> dict[str, Any]:
    return {
        "case": case, "threads": 1, "dtype": "float32", "ours_ms": 1.25, "peers": {"ort": 2.5},
        "ratio_ort": 2.0, "ratio_best": best, "ratio_f32": None, "peak_fraction": None, **more,
    }  # fmt: skip


def test_a_line_per_row_and_what_is_missing_stays_empty() -> None:
    report = {
        "rows": [
            row("a", 0.9, peak_fraction=0.934),
            row("b", 1.5, disturbed={"repeated": 9, "gaveUp": True}),
            row("c int8", 3.0, dtype="int8", ratio_f32=1.6, peers={"ours": 2.0, "ort_int8": 3.1}),
        ],
        "failed": {"d, 2 threads": "no memory"},
        "geomean": {"ort": 2.0, "best": 1.16, "int8_over_f32": 1.6},
        "peak_gflops": 57.04,
    }
    lines = table(report).splitlines()
    assert "| a | 1 | 1.25 | 2.5 |  |  |  | 2.00 | 0.90 | 93% |" in lines
    assert "| b | 1 | 1.25 | 2.5 |  |  |  | 2.00 | 1.50 |  |" in lines
    assert "| c int8 | 1 | 1.25 | 2 | 3.1 |  | 1.60 | 2.00 |" in lines
    text = "\n".join(lines)
    assert "2.00 times ONNX Runtime Web, 1.16 times the best peer" in text
    assert "slower than a peer in 1 of 2 rows" in text
    assert "57.0 GFLOP/s" in text
    assert "too often in the rows of b (1)." in text
    assert "Failed: d, 2 threads: no memory" in text
