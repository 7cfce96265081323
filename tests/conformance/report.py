"""A conformance report as a page: what passed and why the rest did not."""

from __future__ import annotations

import datetime
import re
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

import onnx

from tests.bench.peers import PACKAGES
from tests.conformance.browser import ON_CPU, PEER
from tests.conformance.cases import Case, collect

Report = dict[str, Any]

VERDICTS = ("passed", "failed", "unsupported", "out_of_scope")
_HEAD = """# Conformance

ONNX's own backend test suite (onnx {version}) on our executors, written by
`python -m tests.conformance --write docs/conformance.md` on {date}. A case passes when every
output has the expected shape, type and values; see `tests/conformance/__main__.py` for tolerances.
"Unsupported" cases are refused with a clear error before anything is computed. "Out of scope" are
cases that are not ours to run, for the reasons at the end.

Cases whose inputs decide shapes by their values (a Reshape's shape, a Slice's ends) are compiled
for the values they are fed, as `InferenceSession` does for any model.

The browser is headless Chromium, with WebGPU on the software adapter SwiftShader. ONNX Runtime
Web {ort} runs the same cases in the same browser: its `wasm` build, and its `webgpu` build with no
other provider named. The latter places operators that it has no shader for on the CPU without a
word, so each case is first tried with `session.disable_cpu_ep_fallback`; where that is refused it
runs again as a page would have it, and counts as passed "partly on the CPU".
"""


def merge(reports: Iterable[Report]) -> Report:
    """One report of several, the later ones winning; counts are made anew."""
    cases: dict[str, dict[str, Any]] = {}
    for report in reports:
        for name, verdicts in report["cases"].items():
            cases.setdefault(name, {}).update(verdicts)
    executors: dict[str, Counter[str]] = {}
    for verdicts in cases.values():
        for executor, found in verdicts.items():
            counts = executors.setdefault(executor, Counter(dict.fromkeys(VERDICTS, 0)))
            counts[found["verdict"]] += 1
    return {"executors": {name: dict(c) for name, c in executors.items()}, "cases": cases}


def page(report: Report, note: str = "") -> str:
    """The report in Markdown. `note` says what a reader should know of how it came about."""
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    executors = list(report["executors"])
    head = _HEAD.format(version=onnx.__version__, date=today, ort=PACKAGES["onnxruntime-web"])
    parts = [head, _totals(report), _against_peers(report)]
    if note:
        parts.append(textwrap.fill(note, 100) + "\n")
    by_group: dict[str, list[str]] = defaultdict(list)
    for name in report["cases"]:
        by_group[_group(collect()[name])].append(name)
    parts.append(_table(report, executors, by_group))
    for executor in executors:
        if executor in PEER.values():
            continue  # its cases are counted above; why is not ours to tell
        parts.append(
            f"## What did not pass on {executor}\n\n" + _reasons(report, executor, by_group)
        )
    parts.append("## Out of scope\n\n" + _scope(report))
    return "\n".join(parts)


def _totals(report: Report) -> str:
    lines = [
        "| executor | passed | failed | unsupported | out of scope | of those in scope |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, counts in report["executors"].items():
        inside = sum(counts[v] for v in VERDICTS[:3])
        share = f"{100 * counts['passed'] / inside:.1f}%" if inside else "none"
        cells = [str(counts[v]) for v in VERDICTS]
        on_cpu = sum(v[name]["reason"] == ON_CPU for v in report["cases"].values() if name in v)
        if on_cpu:
            cells[0] += f" (of which {on_cpu} partly on the CPU)"
        lines.append(f"| {name} | {' | '.join(cells)} | {share} |")
    return "\n".join(lines) + "\n"


def _against_peers(report: Report) -> str:
    """In how many cases only one of two runtimes on the same target is right."""
    lines = []
    for ours, theirs in PEER.items():
        both = [v for v in report["cases"].values() if ours in v and theirs in v]
        if not both:
            continue
        good = [(v[ours]["verdict"] == "passed", v[theirs]["verdict"] == "passed") for v in both]
        alone = [v for v in both if v[theirs]["reason"] != ON_CPU]
        gpu = f"; {sum(v[theirs]['verdict'] == 'passed' for v in alone)} without the CPU's help"
        lines.append(
            f"- {ours}: {sum(a for a, _ in good)} cases pass; {theirs}: {sum(b for _, b in good)}"
            f"{gpu if len(alone) < len(both) else ''}. {sum(a and not b for a, b in good)} pass "
            f"with ours only, {sum(b and not a for a, b in good)} with theirs only."
        )
    return "\n".join(lines) + "\n"


def _group(case: Case) -> str:
    """The operator that a node case is about; other cases go by their kind."""
    if case.kind != "node":
        return f"({case.kind} models)"
    plain = collect().get(re.sub(r"_expanded(_ver\d+|_function)?$", "", case.name), case)
    return plain.load().graph.node[-1 if plain is case else 0].op_type


def _table(report: Report, executors: list[str], by_group: dict[str, list[str]]) -> str:
    lines = [
        "## By operator",
        "",
        "Cases passed / failed / unsupported, and how many more are out of scope.",
        "",
        f"| operator | {' | '.join(executors)} | out of scope |",
        f"|---|{'--:|' * (len(executors) + 1)}",
    ]
    for group, names in sorted(by_group.items()):
        cells = []
        outside = 0
        for executor in executors:
            found = [report["cases"][n][executor] for n in names if executor in report["cases"][n]]
            counts = Counter(f["verdict"] for f in found)
            outside = max(outside, counts["out_of_scope"])
            some = any(counts[v] for v in VERDICTS[:3])
            cells.append(" / ".join(str(counts[v]) for v in VERDICTS[:3]) if some else "")
        lines.append(f"| {group} | {' | '.join(cells)} | {outside or ''} |")
    return "\n".join(lines) + "\n"


def _reasons(report: Report, executor: str, by_group: dict[str, list[str]]) -> str:
    lines = []
    for group, names in sorted(by_group.items()):
        found: dict[tuple[str, str], list[str]] = defaultdict(list)
        for name in names:
            case = report["cases"][name].get(executor)
            if case and case["verdict"] in ("failed", "unsupported"):
                found[case["verdict"], _general(case["reason"])].append(name)
        for (verdict, reason), cases in sorted(found.items()):
            count = "" if len(cases) == 1 else f" and {len(cases) - 1} more"
            lines.append(f"- **{group}** {verdict}: {reason} (`{cases[0]}`{count})")
    return ("\n".join(lines) if lines else "Nothing.") + "\n"


def _general(reason: str) -> str:
    """A reason without what is particular to a case: names of values, numbers of the outcome."""
    reason = re.sub(r"^(model )?(\w+ )?'[^']*'( (input|output) '[^']*')?: ", "", reason)
    reason = re.sub(r"\(\w+ '[^']*'\)", "", reason)
    reason = re.sub(r" \((got|expected) [^()]*\)", "", reason)
    return reason.split(". ")[0].replace("|", "/").strip()[:160]


def _scope(report: Report) -> str:
    reasons: Counter[str] = Counter()
    for verdicts in report["cases"].values():
        outside = [v["reason"] for v in verdicts.values() if v["verdict"] == "out_of_scope"]
        reasons.update(outside[:1])
    total, every = reasons.total(), len(report["cases"])
    lines = [f"{total} of {every} cases ({100 * total / every:.1f}%).", ""]
    lines += ["| reason | cases |", "|---|--:|"]
    lines += [f"| {reason} | {count} |" for reason, count in reasons.most_common()]
    return "\n".join(lines) + "\n"
