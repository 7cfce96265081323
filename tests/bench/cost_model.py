"""Would a learned cost model order candidates better than their space does?

    python -m tests.bench.cost_model collect wasm-relaxed -o wasm.json [--budget 120]
    python -m tests.bench.cost_model collect webgpu -o llvmpipe.json
    python -m tests.bench.cost_model take candidates.json "NVIDIA H100" -o h100.json
    python -m tests.bench.cost_model evaluate *.json [--json]

`collect` measures every candidate of every kernel of a few models on this machine (the adapter is
whichever wgpu finds: VK_ICD_FILENAMES chooses among several); `take` reads what
`tests.bench.candidates` has measured. `evaluate` trains boosted trees on all devices but one, and
asks of that one, kernel by kernel: how many candidates have to be measured, in the order of the
trees and in the space's own, until the best so far is within 2 % of the best of all?

A candidate is told to the trees by its family, the sizes of its kernel, its knobs, how much of its
tiles is waste, how many workgroups it makes, and the device's class. Runs of the page's tuner time
one thread only (a kernel's share of the work is the same code for any number), so threads are not
devices here.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor

from pywebgpu.codegen.caps import WasmCaps
from pywebgpu.codegen.dims import Dim, evaluate
from pywebgpu.codegen.spec import Attention, Conv, KernelSpec, Map, Matmul, family
from pywebgpu.compile import compile_model
from pywebgpu.records import knobs_json
from pywebgpu.tune import Job, Result, Target, WasmTarget, WgslTarget, drive, tune
from pywebgpu.tune_desktop import WasmtimeHost, WgpuHost, jobs
from tests.bench.candidates import CASES
from tests.models import zoo

MODELS: dict[str, dict[str, int]] = {
    "minilm": {"batch": 1, "sequence": 128},
    "mobilenet-v2": {"batch": 1},
    "gpt2-tiny": {},
    "digits": {"batch": 1},
}
NEAR = 1.02
FAMILIES = ("map", "reduce", "row", "matmul", "conv", "attention", "recurrent")

Entry = dict[str, Any]


# -- collecting ------------------------------------------------------------------------------------


def collect(device: str, budget_s: float) -> list[Entry]:
    """Every candidate of the models' kernels, as a part of the default's time."""
    target: Target
    if device == "webgpu":
        host: Any = WgpuHost()
        target = WgslTarget(host.caps)
        name = f"{host.gpu.name} ({target.name})"
    else:
        host, target = WasmtimeHost(), WasmTarget(WasmCaps(relaxed=device == "wasm-relaxed"))
        name = f"wasmtime {device}"
    found: dict[str, Job] = {}
    for model, dims in MODELS.items():
        plan = compile_model(zoo.path_of(model)).plan
        for job in jobs(plan.on_gpu if device == "webgpu" else plan, dims):
            found.setdefault(job.key, job)
    asking = tune(list(found.values()), target, host.features, budget_s, enough=0.0)
    result = drive(asking, host)
    assert isinstance(result, Result)
    share = {row.kernel: row.share for row in result.rows}
    return [
        entry(
            name,
            target.name,
            record.kernel,
            share.get(record.kernel, 0.0),
            found[record.kernel],
            rank,
            timing.knobs,
            (timing.ms or math.inf) / (record.candidates[0].ms or math.inf),
        )
        for record in result.records
        for rank, timing in enumerate(record.candidates)
        if timing.ms is not None and record.candidates[0].ms
    ]


def take(path: Path, device: str) -> Iterator[Entry]:
    """Products as `tests.bench.candidates` has measured them."""
    rows = [row for row in json.loads(path.read_text()) if not row["problem"] and row["us"] > 0]
    first = {row["case"]: row["us"] for row in rows if row["rank"] == 0}
    for row in rows:
        case = row["case"]
        if case not in CASES or case not in first:
            continue
        given = re.findall(r"(\w+)=([^,)]+)", row["knobs"])
        knobs = {key: {"True": 1, "False": 0}.get(value, value) for key, value in given}
        job = Job(CASES[case]().spec, (), (), 0, 1, case)
        ratio = row["us"] / first[case]
        yield entry(device, "webgpu", case, 0.1, job, row["rank"], knobs, ratio)


def entry(
    device: str,
    target: str,
    kernel: str,
    share: float,
    job: Job,
    rank: int,
    knobs: dict[str, Any],
    ratio: float,
) -> Entry:
    return {
        "device": device,
        "target": target,
        "kernel": kernel,
        "share": share,
        "family": family(job.spec),
        "sizes": sizes(job.spec, {f"a{i}": value for i, value in enumerate(job.args)}),
        "rank": rank,
        "knobs": {k: float(v) for k, v in flat(knobs) if is_number(v)},
        "ratio": ratio,
    }


def flat(knobs: Any) -> Iterator[tuple[str, Any]]:
    for name, value in knobs.items() if isinstance(knobs, dict) else knobs_json(knobs).items():
        if isinstance(value, dict):
            yield from flat(value)
        elif isinstance(value, list):
            yield from ((f"{name}{i}", one) for i, one in enumerate(value))
        else:
            yield name, value


def is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def sizes(spec: KernelSpec, args: dict[str, int]) -> dict[str, int]:
    """A kernel as a product or a reduction: rows, columns, and how many terms."""

    def size(*dims: Dim) -> int:
        return math.prod(evaluate(dim, args) for dim in dims)

    if isinstance(spec, Matmul):
        return {"batch": size(*spec.batch), "m": size(spec.m), "n": size(spec.n), "k": size(spec.k)}
    if isinstance(spec, Conv):
        k = math.prod(spec.kernel) * spec.cin // spec.groups
        return {"batch": spec.groups, "m": size(*spec.out_size), "n": spec.cout, "k": k}
    if isinstance(spec, Attention):
        rows, long = size(spec.batch, spec.q_len), size(spec.kv_len)
        return {"batch": spec.heads, "m": rows, "n": long, "k": spec.head_dim}
    if isinstance(spec, Map):
        return {"batch": 1, "m": size(*spec.shape), "n": 1, "k": 1}
    return {"batch": 1, "m": 1, "n": 1, "k": 1}


# -- learning --------------------------------------------------------------------------------------


def features(entries: list[Entry]) -> np.ndarray[Any, Any]:
    """[entries, features] of float64; -1 where a knob is not one of the candidate's."""
    names = sorted({name for e in entries for name in e["knobs"]})
    rows = []
    for e in entries:
        knobs, s = e["knobs"], e["sizes"]
        m, n = s["m"], s["n"]
        bm = knobs.get("bm") or knobs.get("tm") or knobs.get("rows") or knobs.get("mr") or 1
        bn = knobs.get("bn") or knobs.get("tn") or knobs.get("columns") or knobs.get("nr") or 1
        tiles = math.ceil(m / bm) * math.ceil(n / bn) * s["batch"]
        rows.append(
            [
                FAMILIES.index(e["family"]),
                "emulated" in e["target"] or "emulated" in e["device"],
                "relaxed" in e["target"],
                *(math.log2(s[d] + 1) for d in ("batch", "m", "n", "k")),
                math.log2(tiles),
                tiles * bm * bn / (m * n * s["batch"]),
                math.log2(bm * bn),
                *(knobs.get(name, -1.0) for name in names),
            ]
        )
    found = np.array(rows, np.float64)
    return found[:, found.min(0) < found.max(0)]


def evaluate_devices(entries: list[Entry]) -> list[dict[str, Any]]:
    """One row per device left out."""
    values = features(entries)
    # Whatever is slower than twice the default is equally hopeless.
    wanted = np.log([min(max(e["ratio"], 0.05), 2.0) for e in entries])
    side = ["wasm" if e["target"].startswith("wasm") else "webgpu" for e in entries]
    rows = []
    for device in sorted({e["device"] for e in entries}):
        mine = [i for i, e in enumerate(entries) if e["device"] == device]
        kind = side[mine[0]]
        others = [i for i, s in enumerate(side) if s == kind and i not in set(mine)]
        if not others:
            continue
        used = values[:, values[others].min(0) < values[others].max(0)]
        trees = HistGradientBoostingRegressor(max_iter=120, max_depth=4, random_state=0)
        guess = dict(
            zip(mine, trees.fit(used[others], wanted[others]).predict(used[mine]), strict=True)
        )
        kernels: dict[str, list[int]] = defaultdict(list)
        for i in mine:
            kernels[entries[i]["kernel"]].append(i)
        own, learned, counts, first, gain = 0, 0, 0, [], []
        for members in kernels.values():
            ratio = {i: entries[i]["ratio"] for i in members}
            in_order = sorted(members, key=lambda i: entries[i]["rank"])
            # The default is measured in any case, and first.
            by_trees = [in_order[0], *sorted(in_order[1:], key=guess.__getitem__)]
            own += needed([ratio[i] for i in in_order])
            learned += needed([ratio[i] for i in by_trees])
            counts += len(members)
            gain.append(min(ratio.values()))
            first.append(min(ratio[i] for i in by_trees[:3]) / min(ratio.values()))
        rows.append(
            {
                "left_out": device,
                "kernels": len(kernels),
                "candidates": counts,
                "space_order": own,
                "trees": learned,
                "saved": round(1 - learned / own, 3),
                "median_best": round(statistics.median(gain), 3),
                "loss_after_3": round(statistics.mean(first) - 1, 3),
            }
        )
    return rows


def needed(ratios: Iterable[float]) -> int:
    """How many are measured until the best of them is near the best of all."""
    found = list(ratios)
    return next(n for n in range(1, len(found) + 1) if min(found[:n]) <= NEAR * min(found))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("collect")
    one.add_argument("device", choices=["wasm-relaxed", "wasm-simd", "webgpu"])
    one.add_argument("--budget", type=float, default=120.0, help="seconds")
    one.add_argument("-o", "--out", type=Path, required=True)
    two = commands.add_parser("take")
    two.add_argument("file", type=Path)
    two.add_argument("device")
    two.add_argument("-o", "--out", type=Path, required=True)
    three = commands.add_parser("evaluate")
    three.add_argument("files", nargs="+", type=Path)
    three.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    if options.command == "evaluate":
        found = [entry for file in options.files for entry in json.loads(file.read_text())]
        rows = evaluate_devices(found)
        print(json.dumps({"rows": rows}) if options.json else "\n".join(map(str, rows)))
        return
    made = (
        collect(options.device, options.budget)
        if options.command == "collect"
        else list(take(options.file, options.device))
    )
    options.out.write_text(json.dumps(made))
    print(f"{len(made)} candidates of {len({e['kernel'] for e in made})} kernels")


if __name__ == "__main__":
    main()
