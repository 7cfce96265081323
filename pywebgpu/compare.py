"""Run a model on one of our executors, time it, and compare it with a reference.

The library function behind `pywebgpu run`. The reference is native ONNX Runtime on the same ONNX
file, or arrays that the caller expects.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DeviceError, InputError, ModelError
from .feeds import Array, InputSpec, bind_dims, input_specs, random_feeds, table_rows, typed_value

#: `progress(label, done, total)`
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class OutputReport:
    """One output, and how far it is from the reference (None: not compared, or not finite)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    scale: float | None = None
    max_abs: float | None = None
    max_rel_to_scale: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "scale": self.scale,
            "max_abs": self.max_abs,
            "max_rel_to_scale": self.max_rel_to_scale,
        }


@dataclass(frozen=True, slots=True)
class RunReport:
    """What one `run_model` found. Times are in milliseconds."""

    model: str
    provider: str
    device: str
    dims: dict[str, int]
    inputs: dict[str, str]
    outputs: tuple[OutputReport, ...]
    repeat: int
    ms_create: float
    ms_first: float
    ms_median: float
    ms_min: float
    compared_with: str | None = None
    reference_ms_median: float | None = None
    values: dict[str, Array] = field(default_factory=dict)

    @property
    def max_abs(self) -> float | None:
        """The largest difference over all outputs; None when nothing finite was compared."""
        return self._worst([output.max_abs for output in self.outputs])

    @property
    def max_rel_to_scale(self) -> float | None:
        """The largest difference relative to its output's scale, max |reference|."""
        return self._worst([output.max_rel_to_scale for output in self.outputs])

    def _worst(self, values: list[float | None]) -> float | None:
        """None if any output could not be compared: a NaN must not hide behind a good output."""
        known = [value for value in values if value is not None]
        return max(known) if known and len(known) == len(values) else None

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "provider": self.provider,
            "device": self.device,
            "max_abs": self.max_abs,
            "max_rel_to_scale": self.max_rel_to_scale,
            "ms_median": self.ms_median,
            "ms_min": self.ms_min,
            "ms_first": self.ms_first,
            "ms_create": self.ms_create,
            "repeat": self.repeat,
            "compared_with": self.compared_with,
            "reference_ms_median": self.reference_ms_median,
            "dims": self.dims,
            "inputs": self.inputs,
            "outputs": [output.to_json() for output in self.outputs],
        }


def run_model(
    model: Path,
    *,
    provider: str = "wasm",
    feeds: Mapping[str, Array] | None = None,
    values: Mapping[str, Array] | None = None,
    dims: Mapping[str, int] | None = None,
    compare: str | Mapping[str, Array] | None = None,
    repeat: int = 10,
    seed: int = 0,
    session_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> RunReport:
    """Run `model` (an ONNX file or a bundle) `repeat` times after one warm-up.

    feeds: arrays by input name; inputs that are not in it get random values.
    values: the same, of any element type that can be converted to the input's.
    dims: sizes for symbolic dimensions of the random inputs.
    compare: "onnxruntime", or the expected outputs by name, or None.
    session_options: passed on to InferenceSession.
    """
    from .session import InferenceSession

    tell = progress or (lambda label, done, total: None)
    if repeat < 1:
        raise InputError("at least one run is needed", where="repeat", got=repeat, expected=">= 1")
    if compare == "onnxruntime":
        _require_onnx_file(model)
    tell("Preparing the session", 0, repeat + 1)
    started = time.perf_counter()
    session = InferenceSession(model, providers=[provider], **(session_options or {}))
    ms_create = (time.perf_counter() - started) * 1e3
    specs = input_specs(session.get_inputs())
    loose = dict(values or {})
    typed = {s.name: typed_value(s, loose[s.name]) for s in specs if s.name in loose}
    given = {**(feeds or {}), **loose, **typed}
    _require_deciding(session.specialised, given)
    sizes, all_feeds = complete_feeds(model, specs, given, dims, seed)
    output_names = [port.name for port in session.get_outputs()]

    times = []
    with session:
        for turn in range(repeat + 1):
            tell("Running", turn, repeat + 1)
            started = time.perf_counter()
            results = session.run(output_names, all_feeds)
            times.append((time.perf_counter() - started) * 1e3)
    return judge(
        model,
        session.provider,
        session.device,
        sizes,
        all_feeds,
        dict(zip(output_names, results, strict=True)),
        times,
        compare=compare,
        ms_create=ms_create,
        progress=tell,
    )


def judge(
    model: Path,
    provider: str,
    device: str,
    dims: dict[str, int],
    feeds: Mapping[str, Array],
    values: dict[str, Array],
    times: Sequence[float],
    *,
    compare: str | Mapping[str, Array] | None,
    ms_create: float = 0.0,
    progress: Progress | None = None,
) -> RunReport:
    """What some session answered, beside a reference.

    values: the outputs for `feeds`. times: milliseconds of every run, the first one included.
    compare: see `run_model`.
    """
    names, repeat = list(values), len(times) - 1
    tell = progress or (lambda label, done, total: None)
    reference_ms = None
    expected: Mapping[str, Array] | None = None
    if compare == "onnxruntime":
        tell("Asking ONNX Runtime", repeat, repeat + 1)
        _require_onnx_file(model)
        expected, reference_ms = _onnxruntime(model, feeds, names, repeat)
    elif isinstance(compare, str):
        raise InputError("unknown reference", where="compare", got=compare, expected="onnxruntime")
    elif compare is not None:
        expected = _known_outputs(compare, names)
    tell("Running", repeat + 1, repeat + 1)

    steady = times[1:] or times
    return RunReport(
        model=str(model),
        provider=provider,
        device=device,
        dims=dims,
        inputs={name: f"{a.dtype}{list(a.shape)}" for name, a in feeds.items()},
        outputs=tuple(
            compare_output(name, value, None if expected is None else expected.get(name))
            for name, value in values.items()
        ),
        repeat=repeat,
        ms_create=round(ms_create, 3),
        ms_first=round(times[0], 4),
        ms_median=round(statistics.median(steady), 4),
        ms_min=round(min(steady), 4),
        compared_with=None
        if compare is None
        else (compare if isinstance(compare, str) else "expected outputs"),
        reference_ms_median=reference_ms,
        values=values,
    )


def _require_deciding(names: Sequence[str], given: Mapping[str, Array]) -> None:
    """A random number will hardly do for a shape or an axis."""
    for name in names:
        if name not in given:
            raise InputError(
                "the value of this input decides a shape, so that it must be given",
                where=f"input '{name}'",
                remedy=f"Give it with --value {name}=..., as a number or a JSON list",
            )


def complete_feeds(
    model: Any,
    specs: list[InputSpec],
    given: Mapping[str, Array] | None,
    dims: Mapping[str, int] | None,
    seed: int,
) -> tuple[dict[str, int], dict[str, Array]]:
    """(sizes of the symbols, arrays for all inputs): the given ones, random ones for the rest.

    model: where the inputs come from; only a path to an ONNX file says what indexes may be random.
    """
    given = given or {}
    by_name = {spec.name: spec for spec in specs}
    for name in given:
        if name not in by_name:
            raise InputError(
                "the model has no such input",
                where=f"input '{name}'",
                expected=", ".join(by_name) or "no inputs",
            )
    # Given arrays fix the symbols they show, so that the random inputs fit them.
    shown = {
        dim: size
        for name, array in given.items()
        for dim, size in zip(by_name[name].shape, array.shape, strict=False)
        if isinstance(dim, str) and dim.isidentifier()
    }
    sizes = bind_dims(specs, {**shown, **(dims or {})})
    missing = [spec for spec in specs if spec.name not in given]
    rows = _table_rows(model) if missing and isinstance(model, Path) else {}
    filled = random_feeds(missing, sizes, rows=rows, seed=seed)
    every = {**filled, **given}
    return sizes, {spec.name: every[spec.name] for spec in specs}


def _is_bundle(model: Path) -> bool:
    """A folder or a zip file; see `InferenceSession`."""
    return model.is_dir() or model.suffix == ".zip"


def _table_rows(model: Path) -> dict[str, int]:
    """See `feeds.table_rows`; a bundle no longer says what its inputs index."""
    if _is_bundle(model):
        return {}
    import onnx

    return table_rows(onnx.load(str(model), load_external_data=False))


def _require_onnx_file(model: Path) -> None:
    if _is_bundle(model):
        raise InputError(
            "ONNX Runtime cannot run a bundle",
            where=str(model),
            expected="an ONNX file",
            remedy="Compare with the ONNX file that the bundle was exported from.",
        )


def _onnxruntime(
    model: Path, feeds: Mapping[str, Array], names: list[str], repeat: int
) -> tuple[dict[str, Array], float]:
    """(outputs, median milliseconds) of native ONNX Runtime on the CPU."""
    try:
        import onnxruntime
    except ImportError:
        raise DeviceError(
            "the Python package onnxruntime is not installed",
            where="--compare onnxruntime",
            remedy="Install it with `pip install onnxruntime`.",
        ) from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(
            str(model), options, providers=["CPUExecutionProvider"]
        )
        outputs = session.run(names, dict(feeds))
        times = []
        for _ in range(repeat):
            started = time.perf_counter()
            session.run(names, dict(feeds))
            times.append((time.perf_counter() - started) * 1e3)
    except Exception as error:  # its exception classes share no base but Exception
        raise ModelError(
            f"ONNX Runtime cannot run this model: {error}",
            where=str(model),
            remedy="Leave out --compare to run it without a reference.",
        ) from error
    return dict(zip(names, outputs, strict=True)), round(statistics.median(times), 4)


def _known_outputs(expected: Mapping[str, Array], names: list[str]) -> Mapping[str, Array]:
    for name in expected:
        if name not in names:
            raise InputError(
                "the model has no such output",
                where=f"expected output '{name}'",
                expected=", ".join(names),
            )
    return expected


def compare_output(name: str, got: Array, expected: Array | None) -> OutputReport:
    """Differences relative to the output's scale, max |reference|; NaN and infinity must agree."""
    plain = OutputReport(name, str(got.dtype), tuple(got.shape))
    if expected is None:
        return plain
    if got.shape != expected.shape:
        raise ModelError(
            "the output's shape differs from the reference's",
            where=f"output '{name}'",
            got=list(got.shape),
            expected=list(expected.shape),
            remedy="This is a bug in pywebgpu; please report it with the model.",
        )
    if got.dtype.name.startswith("float8") and expected.dtype == np.uint8:
        expected = expected.view(got.dtype)  # ONNX Runtime gives the bits of 8-bit floats
    ours, theirs = got.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(theirs)
    scale = float(np.abs(theirs[finite]).max(initial=0.0))
    special_agree = np.array_equal(ours[~finite], theirs[~finite], equal_nan=True)
    difference = np.abs(ours[finite] - theirs[finite])
    max_abs = float(difference.max(initial=0.0))
    if not special_agree or not math.isfinite(max_abs):
        return OutputReport(plain.name, plain.dtype, plain.shape, scale)
    relative = max_abs / scale if scale > 0 else max_abs
    return OutputReport(plain.name, plain.dtype, plain.shape, scale, max_abs, relative)
