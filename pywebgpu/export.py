"""`pywebgpu export`: a model to a bundle."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .accuracy import AccuracyReport, accuracy
from .build import NO_WINNERS, WASM_VARIANTS, tuned_kernels, wasm_code, wgsl_tests, wgsl_variants
from .bundle import wgsl_file, write_bundle
from .compile import compile_model
from .console import human_bytes
from .errors import InputError
from .half_range import RangeReport, out_of_range
from .lower import Int8
from .lower.int4 import Int4
from .records import Winners, load_records

Progress = Callable[[str, int, int], None]
"""progress(what is being done, done, total)"""

NOMINAL = 64
"""What a symbol is taken for when memory is reported."""


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What an export made. `activation_bytes`: all slots, with each symbol at `NOMINAL`."""

    name: str
    path: str
    kernels: int
    dispatches: int
    weight_bytes: int
    wasm_bytes: int
    wgsl_bytes: int
    bundle_bytes: int
    activation_bytes: int
    seconds: float
    tuned: dict[str, int] = field(default_factory=dict)
    """Kernels whose knobs come from a record, by target."""
    accuracy: AccuracyReport | None = None
    """What quantising cost, where that was asked for."""
    ranges: RangeReport | None = None
    """What f16 cannot hold, where that was asked for."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.path}: {self.dispatches} steps with {self.kernels} kernels, "
            f"weights {human_bytes(self.weight_bytes)}, wasm {human_bytes(self.wasm_bytes)}, "
            f"WGSL {human_bytes(self.wgsl_bytes)}, in {self.seconds:.1f} s"
            + "".join(f"; {n} kernels by record for {t}" for t, n in self.tuned.items())
            + ("" if self.accuracy is None else "\n" + "\n".join(self._accuracy_lines()))
            + ("" if self.ranges is None else "\n" + "\n".join(self.ranges.lines()))
        )

    def _accuracy_lines(self) -> list[str]:
        assert self.accuracy is not None
        before = human_bytes(self.accuracy.weight_bytes_before)
        after = human_bytes(self.accuracy.weight_bytes_after)
        return [f"  weights {before} before, {after} after", *self.accuracy.lines()]


def export(
    model: str | os.PathLike[str] | bytes | Any,
    out: str | os.PathLike[str],
    *,
    progress: Progress | None = None,
    values: Mapping[str, np.ndarray[Any, Any]] | None = None,
    records: str | os.PathLike[str] | None = None,
    records_for: str | None = None,
    dtype: str = "f32",
    quantize: str | None = None,
    keep: Collection[str] = (),
    feeds: Mapping[str, np.ndarray[Any, Any]] | None = None,
    dims: Mapping[str, int] | None = None,
) -> ExportReport:
    """Compile `model` and write it to the folder `out`.

    values: inputs to fix. The bundle has them as inputs no more.
    records: a file of tuning records; kernels that it speaks of are generated as it says.
    records_for: a device as records name it; of each kernel only the nearest device's records
        count. By default all do, and a winner is one that none of them shows to be slower.
    dtype: how floats are stored, "f32" or "f16". An f16 bundle is half as large, needs a GPU with
        shader-f16, and has no WebAssembly module. The f32 model is run once here, and what f16
        could not hold stays f32; the report names it.
    quantize: "int8": large constants become bytes, and the other operand of their products is
        rounded as it comes. The report then says what that cost, compared on this machine's CPU.
        "int4": matrices of products become 4-bit codes in blocks of 32 with a scale and a zero
        point each; activations stay floats. It goes with either dtype.
    keep: names of nodes or constants that are not quantised.
    feeds, dims: inputs, and sizes of the random ones for the rest, for that comparison and run.

    Raises:
        ModelError, InputError: the model or the records cannot be read, a value does not fit its
            input, or the folder cannot be written.
        UnsupportedError: the model uses something that cannot be compiled.
    """
    start = time.perf_counter()
    stages = 3 + len(WASM_VARIANTS)
    say = progress or (lambda label, done, total: None)
    if records_for is not None and records is None:
        raise InputError(
            "there are no records to choose from", where="records_for", got=records_for
        )
    winners = NO_WINNERS if records is None else Winners(load_records(records), records_for)
    say("compiling", 0, stages)
    if dtype not in ("f32", "f16"):
        raise InputError("no such storage type", where="dtype", got=dtype, expected="f32 or f16")
    int8 = _int8(quantize, keep, dtype)
    wide: tuple[int, ...] = ()
    ranges = None
    if dtype == "f16":
        say("looking at the range of activations", 0, stages)
        whole = compile_model(model, values=values, int8=None if int8 is None else type(int8)(keep))
        ranges = out_of_range(whole, model=model, feeds=feeds, dims=dims)
        wide = tuple(tensor.buffer for tensor in ranges.kept)
    compiled = compile_model(model, values=values, half=dtype == "f16", wide=wide, int8=int8)
    plan = compiled.plan
    report = None
    if int8 is not None:
        _refuse_unknown(keep, int8)
        say("comparing with f32", 0, stages)
        before = compile_model(model, values=values)
        # What runs here is the f32 program: f16 storage is for GPUs.
        after = compiled
        if dtype != "f32":
            after = compile_model(model, values=values, int8=type(int8)(keep))
        report = accuracy(before, after, int8, model=model, feeds=feeds, dims=dims)
    say("generating WGSL", 1, stages)
    wgsl = wgsl_variants(plan, winners)
    done = iter(range(2, stages))
    wasm = wasm_code(
        plan,
        [] if dtype == "f16" else None,
        progress=lambda name: say(f"generating wasm {name}", next(done), stages),
        winners=winners,
    )
    say("writing weights", stages - 1, stages)
    tests = {variant: wgsl_tests(plan, winners, variant) for variant in wgsl}
    manifest = write_bundle(out, plan, compiled.weight_chunks(), wasm, wgsl, tests=tests)
    say("done", stages, stages)
    files = {name: entry["bytes"] for name, entry in manifest["files"].items()}
    folder = Path(out)
    return ExportReport(
        name=plan.name,
        path=str(out),
        kernels=len(plan.on_gpu.kernels),
        dispatches=sum(len(wgsl["default"][step.kernel].passes) for step in plan.on_gpu.steps),
        weight_bytes=plan.weight_bytes,
        wasm_bytes=max((n for f, n in files.items() if f.endswith(".wasm")), default=0),
        wgsl_bytes=files[wgsl_file("default")],
        bundle_bytes=sum(files.values()) + (folder / "manifest.json").stat().st_size,
        activation_bytes=compiled.memory.total(dict.fromkeys(plan.symbols, NOMINAL)),
        seconds=round(time.perf_counter() - start, 3),
        tuned=tuned_kernels(plan, winners),
        accuracy=report,
        ranges=ranges,
    )


def _int8(quantize: str | None, keep: Collection[str], dtype: str) -> Int8 | None:
    if quantize is None:
        if keep:
            raise InputError(
                "nothing is quantised, so that nothing is kept from it", where="keep",
                got=", ".join(keep), remedy="Add quantize='int8' (--quantize int8)",
            )  # fmt: skip
        return None
    if quantize == "int4":
        return Int4(keep)
    if quantize != "int8":
        raise InputError(
            "no such quantisation", where="quantize", got=quantize, expected="int8 or int4"
        )
    if dtype != "f32":
        raise InputError(
            "int8 weights go with f32 activations", where="dtype", got=dtype, expected="f32",
            remedy="Choose either quantize='int8' or dtype='f16'",
        )  # fmt: skip
    return Int8(keep)


def _refuse_unknown(keep: Collection[str], int8: Int8) -> None:
    unknown = [name for name in keep if name not in int8.used]
    if unknown:
        names = sorted(int8.tensors)
        raise InputError(
            "no node or constant of this name would be quantised",
            where=f"--keep {unknown[0]}",
            expected=", ".join(names[:8]) + (", ..." if len(names) > 8 else "") or "nothing is",
            remedy="Export without --keep; the report lists the constants that lost most",
        )
