"""The CPU benchmark's table and plot, and their place in a Markdown page."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path
from typing import Any

PEERS = {"ort": "ONNX Runtime Web", "tfjs": "TF.js", "litert": "LiteRT.js", "jax": "jax-js"}
BEGIN = "<!-- cpu: begin (python -m tests.bench.cpu --write) -->"
END = "<!-- cpu: end -->"


def machine(browser: str) -> dict[str, Any]:
    """When and where a report is made."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = (line.split(":") for line in cpuinfo.read_text().splitlines() if ":" in line)
        name = next((value.strip() for key, value in lines if key.strip() == "model name"), name)
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": name,
        "processors": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "browser": f"Chromium {browser}",
    }


def table(report: dict[str, Any]) -> str:
    """Markdown: a line per case and number of threads, then the means and what failed."""
    lines = [
        "| case | threads | ours, ms | "
        + " | ".join(PEERS.values())
        + " | x ORT | x best | peak |",
        "|---|--:|--:|" + "--:|" * (len(PEERS) + 3),
    ]
    plain = [r for r in report["rows"] if r["dtype"] == "float32"]
    for r in plain:
        peers = [_ms(r["peers"].get(name)) for name in PEERS]
        ratios = [_ratio(r["ratio_ort"]), _ratio(r["ratio_best"])]
        peak = f"{r['peak_fraction']:.0%}" if r["peak_fraction"] else ""
        cells = [r["case"], str(r["threads"]), _ms(r["ours_ms"]), *peers, *ratios, peak]
        lines.append("| " + " | ".join(cells) + " |")
    mean = report["geomean"]
    slower = [r for r in plain if r["ratio_best"] and r["ratio_best"] < 1]
    lines += [
        "",
        f"Geometric means: {_ratio(mean['ort'])} times ONNX Runtime Web, {_ratio(mean['best'])} "
        f"times the best peer of each row; slower than a peer in {len(slower)} of {len(plain)} "
        f"rows. Multiply-adds on registers alone reach {report['peak_gflops']:.1f} GFLOP/s on one "
        "thread.",
    ]
    noisy = [r for r in report["rows"] if r.get("disturbed", {}).get("gaveUp")]
    if noisy:
        names = ", ".join(f"{r['case']} ({r['threads']})" for r in noisy)
        lines[-1] += f" The machine was somebody else's too often in the rows of {names}."
    lines += _int8([r for r in report["rows"] if r["dtype"] == "int8"], mean)
    lines += [f"\nFailed: {case}: {why}" for case, why in report["failed"].items()]
    return "\n".join(lines)


def _int8(rows: list[dict[str, Any]], mean: dict[str, Any]) -> list[str]:
    if not rows:
        return []
    lines = [
        "",
        "| int8 | threads | ours, ms | ours f32 | ORT int8 | ORT f32 | x our f32 | x ORT f32 |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for r in rows:
        times = [_ms(r["peers"].get(name)) for name in ("ours", "ort_int8", "ort")]
        cells = [r["case"], str(r["threads"]), _ms(r["ours_ms"]), *times]
        lines.append(
            "| " + " | ".join([*cells, _ratio(r["ratio_f32"]), _ratio(r["ratio_ort"])]) + " |"
        )
    return [*lines, "", f"Geometric mean over our f32: {_ratio(mean['int8_over_f32'])}."]


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def plot(report: dict[str, Any], path: Path) -> None:
    """An SVG: how many times as long the peers take, a bar per case, peer and number of threads."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "pywebgpu"  # the same figures give the same file
    from matplotlib import pyplot

    plain = [r for r in report["rows"] if r["dtype"] == "float32"]
    counts = sorted({r["threads"] for r in plain})
    cases = list(dict.fromkeys(r["case"] for r in plain))
    figure, axes = pyplot.subplots(
        1, len(counts), sharey=True, squeeze=False, figsize=(11, 1 + 0.32 * len(cases))
    )
    for axis, count in zip(axes[0], counts, strict=True):
        rows = {r["case"]: r for r in plain if r["threads"] == count}
        for number, (peer, label) in enumerate(PEERS.items()):
            there = [c for c in cases if c in rows and peer in rows[c]["peers"]]
            axis.barh(
                [cases.index(c) + 0.2 * (number - 1.5) for c in there],
                [rows[c]["peers"][peer] / rows[c]["ours_ms"] for c in there],
                height=0.19,
                label=label,
            )
        axis.axvline(1, color="black", linewidth=1)
        axis.set_yticks(range(len(cases)), cases)
        axis.set_title(f"{count} thread" + ("s" if count > 1 else ""))
        axis.set_xlabel("peer's time / ours")
        axis.grid(axis="x", alpha=0.3)
        axis.set_axisbelow(True)
    axes[0][0].invert_yaxis()
    axes[0][-1].legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def write(report: dict[str, Any], page: Path) -> None:
    """Put table and plot between the page's markers, or at its end; the plot lies beside it."""
    picture = page.with_name(f"{page.stem}-cpu.svg")
    if any(r["dtype"] == "float32" for r in report["rows"]):
        plot(report, picture)
    where = report["where"]
    section = "\n".join(
        [
            BEGIN,
            "## On the CPU",
            f"{where['date']}, {where['cpu']}, {where['processors']} processors, "
            f"{where['browser']}, load {where['load']} at the start. "
            "`python -m tests.bench.cpu --write docs/performance.md`: medians; ours and each peer "
            "in turn in one page, copies of inputs and outputs included, except that TF.js and "
            "LiteRT.js keep their input (channels last) in place. Whoever runs many inputs "
            "disposes of outputs that are no longer needed, and so does this loop, for every "
            "runtime that can.",
            "",
            table(report),
            "",
            f"![Peers' times over ours]({picture.name})",
            END,
        ]
    )
    text = page.read_text() if page.exists() else "# Measured\n"
    if BEGIN in text:
        before, rest = text.split(BEGIN, 1)
        text = before + section + rest.split(END, 1)[1]
    else:
        text = f"{text.rstrip()}\n\n{section}\n"
    page.write_text(text)
