"""What tuning found out: which candidates of a kernel were measured, where, and what they took.

A record is keyed by kernel, target, device and generator version. The kernel's key is a hash of its
spec, so that equal kernels of different models share a record. Nothing here says whose machine it
was: a device is its features, its limits and the magnitude of its speed.

Standard library and `codegen` only: the page reads the same records. `records.schema.json` is the
form of the file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from .codegen import GENERATOR_VERSION
from .codegen.codec import spec_to_json
from .codegen.spec import KernelSpec
from .errors import InputError

FORMAT_VERSION = 1

MARGIN = 0.97
"""A winner takes at most this much of the default's time; less may be noise."""

KnobsJson = dict[str, Any]
"""A candidate's knobs by name."""


@dataclass(frozen=True, slots=True)
class Timing:
    """One candidate: what it took, or why it was skipped.

    ms: comparable with the other candidates of the record only.
    """

    knobs: KnobsJson
    ms: float | None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """What was measured for one kernel on one device. The first candidate is the default.

    kernel: see `kernel_key`. best: the winner's knobs; the default's where none won.
    """

    kernel: str
    target: str
    device: str
    generator_version: str
    candidates: tuple[Timing, ...]
    best: KnobsJson

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.target, self.device, self.kernel, self.generator_version

    def ratio(self, knobs: KnobsJson) -> float | None:
        """A candidate's time as a part of the default's; None where either was not measured."""
        default = self.candidates[0].ms if self.candidates else None
        ms = next((t.ms for t in self.candidates if t.knobs == knobs), None)
        return ms / default if ms is not None and default else None


# -- keys ------------------------------------------------------------------------------------------


@cache
def spec_key(spec: KernelSpec) -> str:
    """A stable hash of what the kernel computes."""
    text = json.dumps(spec_to_json(spec), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def kernel_key(spec: KernelSpec, args: Sequence[int] = ()) -> str:
    """The spec's hash and, where it has run-time sizes, their magnitudes in powers of two."""
    magnitudes = ",".join(str(arg.bit_length()) for arg in args)
    return f"{spec_key(spec)}@{magnitudes}" if args else spec_key(spec)


def knobs_json(knobs: Any) -> KnobsJson:
    """A candidate's knobs as they are after a trip through JSON: equal ones compare equal."""
    found: KnobsJson = json.loads(json.dumps(dataclasses.asdict(knobs)))
    return found


# -- devices ---------------------------------------------------------------------------------------


def distance(device: str, other: str) -> float:
    """How unlike two devices are, as records name them; 0 for the same.

    Sizes count by how often one is twice the other, the magnitude of speed by its steps; a feature
    that only one has, or a setting that differs, counts 2.
    """
    mine, theirs = _traits(device), _traits(other)
    total = 0.0
    for name in mine.keys() | theirs.keys():
        a, b = mine.get(name), theirs.get(name)
        if isinstance(a, float) and isinstance(b, float):
            total += abs(a - b)
        elif a != b:
            total += 2
    return total


@cache
def _traits(device: str) -> dict[str, float | str]:
    """What a device's name says: sizes as their log2, other settings as they are spelled."""
    found: dict[str, float | str] = {}
    for text in re.findall(r"[\w-]+=\([^)]*\)|[^\s,;]+", device):
        name, _, value = text.partition("=")
        if value.isdecimal():
            found[name] = math.log2(int(value) + 1)
        elif text.startswith("2^"):
            found["speed 2^"] = float(text[2:])
        else:
            found[name] = value
    return found


# -- choosing --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Winners:
    """Picks knobs by record. Records of other generator versions count for nothing.

    device: whom the winners are for; of each kernel only the records of the nearest device count.
    None for everybody.
    """

    records: tuple[Record, ...] = ()
    device: str | None = None
    _by_kernel: Mapping[tuple[str, str], list[Record]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        found: dict[tuple[str, str], list[Record]] = {}
        for record in self.records:
            if record.generator_version == GENERATOR_VERSION:
                spec = record.kernel.partition("@")[0]
                found.setdefault((record.target, spec), []).append(record)
        object.__setattr__(self, "_by_kernel", found)

    def matching(self, spec: KernelSpec, target: str) -> list[Record]:
        """The records of this kernel, of all run-time sizes."""
        found = self._by_kernel.get((target, spec_key(spec)), []) if self._by_kernel else []
        if self.device is None or not found:
            return found
        away = [distance(self.device, record.device) for record in found]
        return [r for r, far in zip(found, away, strict=True) if far == min(away)]

    def known(self, spec: KernelSpec, target: str, device: str) -> list[KnobsJson]:
        """What won for this kernel somewhere, what won on the nearest device first."""
        found = self._by_kernel.get((target, spec_key(spec)), []) if self._by_kernel else []
        return [r.best for r in sorted(found, key=lambda r: distance(device, r.device))]

    def pick(self, spec: KernelSpec, target: str, candidates: Sequence[Any]) -> Any | None:
        """The winner among `candidates` (the default first); None where no record speaks of it.

        With several records (devices, run-time sizes) that is the one with the least mean time of
        those that none of the records shows to be slower than the default.
        """
        records = self.matching(spec, target)
        if not records or not candidates:
            return None
        best = candidates[0]
        least = MARGIN
        for knobs in candidates:
            data = knobs_json(knobs)
            if all(record.best != data for record in records):
                continue
            ratios = [record.ratio(data) for record in records]
            known = [ratio for ratio in ratios if ratio is not None]
            if len(known) < len(ratios) or max(known) > 1 or min(known) <= 0:
                continue
            mean = math.exp(sum(map(math.log, known)) / len(known))
            if mean <= least:
                best, least = knobs, mean
        return best


# -- joining ---------------------------------------------------------------------------------------


def merge(*sources: Iterable[Record]) -> tuple[Record, ...]:
    """One record per key, sorted. Of two with the same key the later's timings count, and
    candidates that only the earlier has are kept, scaled by what the default took then and now."""
    found: dict[tuple[str, str, str, str], Record] = {}
    for source in sources:
        for record in source:
            old = found.get(record.key)
            found[record.key] = record if old is None else _join(old, record)
    return tuple(found[key] for key in sorted(found))


def _join(old: Record, new: Record) -> Record:
    then = old.candidates[0].ms if old.candidates else None
    now = new.candidates[0].ms if new.candidates else None
    if now is None and then is not None:
        return old  # a device that failed tells nothing about candidates
    if then is None or now is None or old.candidates[0].knobs != new.candidates[0].knobs:
        return new  # they have no common measure
    seen = [timing.knobs for timing in new.candidates]
    kept = tuple(
        t if t.ms is None else dataclasses.replace(t, ms=rounded(t.ms * now / then))
        for t in old.candidates
        if t.knobs not in seen
    )
    joined = dataclasses.replace(new, candidates=(*new.candidates, *kept))
    before, after = joined.ratio(old.best), joined.ratio(new.best)
    if before is not None and after is not None and before < after * MARGIN:
        joined = dataclasses.replace(joined, best=old.best)
    return joined


def rounded(ms: float) -> float:
    """Four significant digits: more would be noise."""
    return float(f"{ms:.4g}")


# -- files -----------------------------------------------------------------------------------------


def records_json(records: Iterable[Record]) -> str:
    """The file's text: the same records, the same bytes."""
    data = {
        "format_version": FORMAT_VERSION,
        "records": [dataclasses.asdict(record) for record in merge(records)],
    }
    return json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def records_from_json(
    text: str | bytes, where: str = "records", *, every: bool = False
) -> tuple[Record, ...]:
    """The records of this generator version, or of every one.

    Raises:
        InputError: another format version, or not such a file.
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        raise InputError(f"is not JSON: {error}", where=where, remedy=_REDO) from error
    version = data.get("format_version") if isinstance(data, dict) else None
    if version != FORMAT_VERSION:
        raise InputError(
            "these records have a version that this build does not read",
            where=where,
            got=f"format_version {version!r}",
            expected=FORMAT_VERSION,
            remedy=_REDO,
        )
    try:
        found = [_record(item) for item in data["records"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"the records are damaged: {type(error).__name__}: {error}", where=where, remedy=_REDO
        ) from error
    return merge(r for r in found if every or r.generator_version == GENERATOR_VERSION)


_REDO = "Make them with `pywebgpu tune MODEL.onnx -o records.json`"


def _record(data: dict[str, Any]) -> Record:
    def text(value: object) -> str:
        if not isinstance(value, str):
            raise TypeError(f"expected a text, got {value!r}")
        return value

    def knobs(value: object) -> KnobsJson:
        if not isinstance(value, dict):
            raise TypeError(f"expected knobs, got {value!r}")
        return value

    def timing(item: dict[str, Any]) -> Timing:
        ms, error = item["ms"], item["error"]
        if ms is not None and not (isinstance(ms, (int, float)) and 0 <= ms < math.inf):
            raise TypeError(f"expected milliseconds, got {ms!r}")
        return Timing(knobs(item["knobs"]), ms, None if error is None else text(error))

    return Record(
        text(data["kernel"]),
        text(data["target"]),
        text(data["device"]),
        text(data["generator_version"]),
        tuple(timing(item) for item in data["candidates"]),
        knobs(data["best"]),
    )


def load_records(path: str | os.PathLike[str], *, every: bool = False) -> tuple[Record, ...]:
    """The file's records of this generator version, or of every one.

    Raises:
        InputError: it cannot be read, has another format version, or is no such file.
    """
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise InputError(
            "the records cannot be read",
            where=str(path),
            got=error.strerror or error,
            remedy="Check the path",
        ) from error
    return records_from_json(text, str(path), every=every)


def save_records(path: str | os.PathLike[str], records: Iterable[Record]) -> None:
    """Write the file, whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    target = Path(path)
    scratch = target.with_name(f".{target.name}-{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(records_json(records), encoding="utf-8")
        scratch.replace(target)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise InputError(
            "the records cannot be written",
            where=str(path),
            got=error.strerror or error,
            remedy="Choose a path that you may write to",
        ) from error
