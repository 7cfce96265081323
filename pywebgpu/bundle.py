"""The bundle: a plan, its generated code and its weights as a folder of static files.

Written once, deterministic byte for byte; read by the executors here and by web/bundle.js.
`manifest.schema.json` is the contract, checked whenever a manifest is written or read.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema

from .build import WASM_VARIANTS, WasmCode
from .codegen import GENERATOR_VERSION
from .codegen.caps import WGSL_VARIANTS
from .codegen.codec import spec_from_json, spec_to_json
from .codegen.dims import dim_from_json, dim_json
from .codegen.program import program_from_json, program_json
from .codegen.spec import Storage
from .codegen.wasm.model import Param, Scratch, Size, Slot
from .codegen.wgsl.kernel import Binding, Pass, Role, WgslKernel
from .codegen.wgsl.module import fill
from .errors import BundleError, InputError
from .graph import DType, SizeCheck
from .plan import FORMAT_VERSION, Buffer, Plan, Port, SlotBuffer, Step, WeightBuffer
from .references import dangling
from .self_test import SelfTest

MANIFEST = "manifest.json"
SPECS = "specs.json"
SHARD_BYTES = 24 << 20
"""Static hosts refuse files of more than 25 MiB."""
HASH_BLOCK = 256 << 10
"""See `content_hash`; the browser's runtime hashes by the same blocks."""

_REDO = "Export the model again"


def wasm_file(variant: str) -> str:
    return f"model.{variant}.wasm"


def wgsl_file(variant: str) -> str:
    return f"kernels.{variant}.wgsl.json"


def tests_file(variant: str) -> str:
    return f"self-tests.{variant}.json"


# -- writing ---------------------------------------------------------------------------------------


def write_bundle(
    folder: str | os.PathLike[str],
    plan: Plan,
    weights: Iterable[bytes],
    wasm: WasmCode,
    wgsl: Mapping[str, list[WgslKernel]],
    progress: Callable[[int, int], None] | None = None,
    tests: Mapping[str, Sequence[SelfTest]] | None = None,
) -> dict[str, Any]:
    """Write a bundle; the folder appears, or is replaced, only when it is complete.

    wgsl: variant -> its kernels, in the order of preference.
    tests: what tells whether a device computes a variant's kernels rightly.
    progress: called with bytes of weights written and their total.

    Returns the manifest.

    Raises:
        InputError: the folder cannot be written, or holds something that is not a bundle.
    """
    target = Path(folder)
    _refuse_foreign(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise _unwritable(target, error) from error
    try:
        manifest = _write_files(scratch, plan, weights, wasm, wgsl, tests or {}, progress)
        # mkdtemp makes a private folder; a bundle is there to be served.
        scratch.chmod(0o755)
        _replace(scratch, target)
    except OSError as error:
        raise _unwritable(target, error) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return manifest


def _refuse_foreign(target: Path) -> None:
    if not target.exists():
        return
    if not target.is_dir() or (any(target.iterdir()) and not (target / MANIFEST).is_file()):
        raise InputError(
            "exists and is not a bundle, so it is not overwritten",
            where=str(target),
            expected="a new folder, an empty one, or a bundle to replace",
            remedy="Choose another output folder",
        )


def _unwritable(target: Path, error: OSError) -> InputError:
    return InputError(
        "the bundle cannot be written",
        where=str(target),
        got=error.strerror or error,
        remedy="Choose a folder that you may write to, on a disk with space",
    )


def _replace(scratch: Path, target: Path) -> None:
    if not target.exists():
        scratch.rename(target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
    try:
        target.rename(old / "bundle")
        try:
            scratch.rename(target)
        except OSError:
            (old / "bundle").rename(target)
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def content_hash(data: bytes) -> str:
    """What a manifest says of a file's content, in hexadecimal.

    The SHA-256 of up to 256 KiB; of more, the SHA-256 of the SHA-256s of its blocks of 256 KiB.
    The browser's hash function takes no data in parts, and whole shards in its memory, twice, cost
    more time than hashing; blocks are checked while the next ones arrive.
    """
    blocks = [data[i : i + HASH_BLOCK] for i in range(0, len(data), HASH_BLOCK)]
    if len(blocks) <= 1:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha256(b"".join(hashlib.sha256(b).digest() for b in blocks)).hexdigest()


def _write_files(
    folder: Path,
    plan: Plan,
    weights: Iterable[bytes],
    wasm: WasmCode,
    wgsl: Mapping[str, list[WgslKernel]],
    tests: Mapping[str, Sequence[SelfTest]],
    progress: Callable[[int, int], None] | None,
) -> dict[str, Any]:
    files: dict[str, dict[str, Any]] = {}

    def write(name: str, data: bytes) -> None:
        (folder / name).write_bytes(data)
        files[name] = {"bytes": len(data), "sha256": content_hash(data)}

    for variant, binary in wasm.modules.items():
        write(wasm_file(variant), binary)
    known = {v.name: v for v in WGSL_VARIANTS}
    gpu_variants = []
    for variant, variant_kernels in wgsl.items():
        codes, kernels = _wgsl_section(variant_kernels)
        write(wgsl_file(variant), _json(codes))
        if variant in tests:
            write(tests_file(variant), _json(_tests_section(tests[variant])))
        gpu_variants.append(
            {
                "name": variant,
                "file": wgsl_file(variant),
                "needs": list(known[variant].needs),
                **({"check": fill(check, None)} if (check := known[variant].check) else {}),
                **({"tests": tests_file(variant)} if variant in tests else {}),
                "kernels": kernels,
            }
        )
    specs = {"wasm": plan.kernels, "webgpu": plan.on_gpu.kernels}
    write(SPECS, _json({k: [spec_to_json(spec) for spec in v] for k, v in specs.items()}))
    shards = []
    written = 0
    for number, data in enumerate(_shards(weights)):
        shards.append(f"weights-{number:03}.bin")
        write(shards[-1], data)
        written += len(data)
        if progress is not None:
            progress(written, plan.weight_bytes)
    manifest = {
        **plan_json(plan),
        "weights": {"bytes": plan.weight_bytes, "shards": shards},
        "wasm": _wasm_section(wasm),
        "webgpu": {"steps": _steps_json(plan.on_gpu), "variants": gpu_variants},
        "files": dict(sorted(files.items())),
        "metadata": plan.metadata,
    }
    problem = schema_violation(manifest)
    assert problem is None, f"the manifest does not fit its schema: {problem}"
    (folder / MANIFEST).write_bytes(_json(manifest))
    return manifest


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _shards(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The stream of chunks cut anew every `SHARD_BYTES`."""
    pending = bytearray()
    for chunk in chunks:
        view = memoryview(chunk)
        while view:
            room = SHARD_BYTES - len(pending)
            pending += view[:room]
            view = view[room:]
            if len(pending) == SHARD_BYTES:
                yield bytes(pending)
                pending.clear()
    if pending:
        yield bytes(pending)


def plan_json(plan: Plan) -> dict[str, Any]:
    """The parts of the manifest that are the plan."""
    return {
        "format_version": FORMAT_VERSION,
        "generator_version": GENERATOR_VERSION,
        "name": plan.name,
        "symbols": list(plan.symbols),
        "inputs": [_port_json(port) for port in plan.inputs],
        "outputs": [_port_json(port) for port in plan.outputs],
        "buffers": [_buffer_json(buffer) for buffer in plan.buffers],
        "slots": [dim_json(size) for size in plan.slots],
        "steps": _steps_json(plan),
        "program": program_json(plan.program),
        "checks": [
            {"left": dim_json(c.left), "right": dim_json(c.right), "where": c.where}
            for c in plan.checks
        ],
    }


def _steps_json(plan: Plan) -> list[dict[str, Any]]:
    return [
        {
            "kernel": step.kernel,
            "operands": list(step.operands),
            "output": step.output,
            **({} if step.kept is None else {"kept": step.kept}),
            "args": [dim_json(arg) for arg in step.args],
            "label": step.label,
        }
        for step in plan.steps
    ]


def _port_json(port: Port) -> dict[str, Any]:
    return {
        "name": port.name,
        "dtype": port.dtype.value,
        "shape": [dim_json(d) for d in port.shape],
        "storage": port.storage.value,
        "buffer": port.buffer,
        **({} if port.limits is None else {"limits": list(port.limits)}),
    }


def _buffer_json(buffer: Buffer) -> dict[str, Any]:
    if isinstance(buffer, WeightBuffer):
        return {"weight": buffer.offset, "bytes": buffer.bytes}
    return {"slot": buffer.slot, "bytes": dim_json(buffer.bytes)}


def _wasm_section(wasm: WasmCode) -> dict[str, Any]:
    def param(entry: Param) -> dict[str, Any]:
        if isinstance(entry, Slot):
            return {"slot": entry.number}
        return {"scratch": True} if isinstance(entry, Scratch) else {"dim": dim_json(entry.dim)}

    caps = dict(WASM_VARIANTS)
    return {
        "variants": [
            {
                "name": name,
                "file": wasm_file(name),
                "relaxed": caps[name].relaxed,
                "threads": caps[name].threads,
            }
            for name in wasm.modules
        ],
        "params": [param(entry) for entry in wasm.params],
        "weights_base": wasm.weights_base,
        "scratch_per_thread": dim_json(wasm.scratch_per_thread),
    }


def _tests_section(tests: Sequence[SelfTest]) -> dict[str, Any]:
    codes: dict[str, int] = {}
    made = [test.to_json(codes) for test in tests]
    return {"codes": list(codes), "tests": made}


def _wgsl_section(kernels: list[WgslKernel]) -> tuple[list[str], list[dict[str, Any]]]:
    codes: dict[str, int] = {}
    made = [kernel.to_json(codes) for kernel in kernels]
    return list(codes), made


# -- reading ---------------------------------------------------------------------------------------


@cache
def _validator() -> Any:
    text = Path(__file__).with_name("manifest.schema.json").read_text(encoding="utf-8")
    return jsonschema.Draft202012Validator(json.loads(text))


def schema_violation(manifest: Any) -> str | None:
    """The first place where a manifest is not what the schema says; None if it fits."""
    error = jsonschema.exceptions.best_match(_validator().iter_errors(manifest))
    return (
        None
        if error is None
        else f"/{'/'.join(map(str, error.absolute_path))}: {error.message[:200]}"
    )


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened bundle. Files are read, and checked against their hashes, when they are asked for.

    `read(name)` gives a file's bytes, or raises FileNotFoundError or KeyError.
    """

    where: str
    manifest: dict[str, Any]
    read: Callable[[str], bytes]

    @classmethod
    def load(cls, source: str | os.PathLike[str] | bytes) -> Bundle:
        """Open a folder, a zip file of one, or such a file's bytes.

        Raises:
            BundleError: no bundle, another format version, or a manifest that does not fit.
        """
        where, read = _reader(source)
        try:
            data = read(MANIFEST)
        except (OSError, KeyError) as error:
            raise BundleError(
                "not a bundle: it has no manifest.json",
                where=where,
                remedy="Make one with `pywebgpu export MODEL.onnx -o BUNDLE`",
            ) from error
        try:
            manifest = json.loads(data, parse_float=_no_fraction)
        except ValueError as error:
            raise BundleError(
                f"the manifest cannot be read: {error}", where=f"{where}/{MANIFEST}", remedy=_REDO
            ) from error
        found = manifest.get("format_version") if isinstance(manifest, dict) else None
        if found != FORMAT_VERSION:
            raise BundleError(
                "this bundle has a version that this build does not read",
                where=f"{where}/{MANIFEST}",
                got=f"format_version {found!r}",
                expected=FORMAT_VERSION,
                remedy="Export the model again with this version of pywebgpu",
            )
        problem = schema_violation(manifest) or dangling(manifest)
        if problem is not None:
            raise BundleError(
                f"the manifest is damaged: {problem}", where=f"{where}/{MANIFEST}", remedy=_REDO
            )
        return cls(where, manifest, read)

    def file(self, name: str) -> bytes:
        """A file's bytes, checked.

        Raises:
            BundleError: it is missing, or is not the file that was exported.
        """
        where = f"{self.where}/{name}"
        expected = self.manifest["files"].get(name)
        if expected is None:
            raise BundleError("the manifest does not list this file", where=where, remedy=_REDO)
        try:
            data = self.read(name)
        except (OSError, KeyError) as error:
            raise BundleError(
                "a file of the bundle is missing",
                where=where,
                remedy="Copy the whole folder, or export the model again",
            ) from error
        digest = content_hash(data)
        if len(data) != expected["bytes"]:
            raise BundleError(
                "a file of the bundle has the wrong size",
                where=where,
                got=f"{len(data)} bytes",
                expected=f"{expected['bytes']} bytes",
                remedy="Copy the whole folder again, or export the model again",
            )
        if digest != expected["sha256"]:
            raise BundleError(
                "a file of the bundle is damaged: its hash differs",
                where=where,
                got=f"sha256 {digest[:16]}...",
                expected=f"{expected['sha256'][:16]}...",
                remedy="Copy the whole folder again, or export the model again",
            )
        return data

    def verify(self) -> None:
        """Read and check every file."""
        for name in self.manifest["files"]:
            self.file(name)

    def plan(self) -> Plan:
        """The plan, specs included."""
        with self._reading(SPECS) as content:
            specs = {
                target: tuple(spec_from_json(data) for data in found)
                for target, found in content.items()
            }
            return _plan_from_json(self.manifest, specs)

    @contextmanager
    def _reading(self, name: str) -> Iterator[Any]:
        """A JSON file's content; what goes wrong with it is the file's fault.

        Raises:
            BundleError: as `file`, or the content is not what a bundle has there.
        """
        data = self.file(name)
        try:
            yield json.loads(data)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise BundleError(
                f"a file of the bundle cannot be read: {type(error).__name__}: {error}",
                where=f"{self.where}/{name}",
                remedy=_REDO,
            ) from error

    def weights(self) -> bytes:
        """The weight space."""
        section = self.manifest["weights"]
        data = b"".join(self.file(name) for name in section["shards"])
        if len(data) != section["bytes"]:
            raise BundleError(
                "the weights are incomplete",
                where=self.where,
                got=f"{len(data)} bytes",
                expected=f"{section['bytes']} bytes",
                remedy=_REDO,
            )
        return data

    def wasm_variants(self) -> dict[str, dict[str, Any]]:
        """The manifest's entries by name, the preferred first."""
        return {v["name"]: v for v in self.manifest["wasm"]["variants"]}

    def wasm_code(self, variant: str) -> WasmCode:
        """One variant, with the layout of its parameter block."""
        section = self.manifest["wasm"]
        entry = self.wasm_variants().get(variant)
        if entry is None:
            raise BundleError(
                "the bundle has no such wasm variant",
                where=self.where,
                got=variant,
                expected=", ".join(self.wasm_variants()) or "none",
                remedy=_REDO,
            )

        def param(data: dict[str, Any]) -> Param:
            if "slot" in data:
                return Slot(data["slot"])
            return Scratch() if "scratch" in data else Size(dim_from_json(data["dim"]))

        return WasmCode(
            {variant: self.file(entry["file"])},
            tuple(param(p) for p in section["params"]),
            section["weights_base"],
            dim_from_json(section["scratch_per_thread"]),
        )

    def wgsl_variants(self) -> list[tuple[str, list[str]]]:
        """(name, needs) of each variant, the preferred first."""
        return [(v["name"], v["needs"]) for v in self.manifest["webgpu"]["variants"]]

    def wgsl_kernels(self, variant: str = "default") -> list[WgslKernel]:
        """A variant's kernels in the plan's order; the last variant's where it is missing."""
        section = self._variant(variant)
        with self._reading(section["file"]) as codes:
            made = enumerate(section["kernels"])
            return [_wgsl_kernel(f"kernel {number}", kernel, codes) for number, kernel in made]

    def self_tests(self, variant: str = "default") -> list[SelfTest]:
        """What tells whether a device computes that variant's kernels rightly; [] where the bundle
        has nothing that does."""
        section = self._variant(variant)
        if "tests" not in section:
            return []
        with self._reading(section["tests"]) as data:
            return [
                SelfTest.from_json(t, _wgsl_kernel(t["kernel"]["name"], t["kernel"], data["codes"]))
                for t in data["tests"]
            ]

    def _variant(self, name: str) -> dict[str, Any]:
        variants: list[dict[str, Any]] = self.manifest["webgpu"]["variants"]
        return next((v for v in variants if v["name"] == name), variants[-1])


def _wgsl_kernel(name: str, data: dict[str, Any], codes: list[str]) -> WgslKernel:
    if not all(isinstance(code, str) for code in codes):
        raise TypeError("a shader is no text")
    passes = tuple(
        Pass(
            codes[p["code"]],
            tuple(Binding(Role(role), index) for role, index in p["bindings"]),
            _grid(p["grid"]),
        )
        for p in data["passes"]
    )
    scratch = tuple(dim_from_json(d) for d in data["scratch"])
    return WgslKernel(name, passes, scratch, tuple(data["features"]))


def _grid(data: list[Any]) -> tuple[Any, Any, Any]:
    x, y, z = (dim_from_json(d) for d in data)
    return x, y, z


def _no_fraction(text: str) -> float:
    raise ValueError(f"{text} is no whole number")


def _reader(source: str | os.PathLike[str] | bytes) -> tuple[str, Callable[[str], bytes]]:
    if isinstance(source, bytes):
        return "bundle", _zip_reader("bundle", io.BytesIO(source))
    path = Path(source)
    if path.is_file() and zipfile.is_zipfile(path):
        return str(path), _zip_reader(str(path), io.BytesIO(path.read_bytes()))
    return str(path), lambda name: (path / name).read_bytes()


def _zip_reader(where: str, file: io.BytesIO) -> Callable[[str], bytes]:
    try:
        archive = zipfile.ZipFile(file)
    except zipfile.BadZipFile as error:
        raise BundleError(
            "not a zip file", where=where, remedy="Pass the bytes of a zipped bundle"
        ) from error
    # A zipped folder has the folder's name before each file's.
    found = [n for n in archive.namelist() if n.rsplit("/", 1)[-1] == MANIFEST]
    prefix = found[0][: -len(MANIFEST)] if found else ""
    return lambda name: archive.read(prefix + name)


def _plan_from_json(data: dict[str, Any], specs: dict[str, tuple[Any, ...]]) -> Plan:
    def port(item: dict[str, Any]) -> Port:
        shape = tuple(dim_from_json(d) for d in item["shape"])
        storage = Storage(item["storage"])
        limits = tuple(item["limits"]) if "limits" in item else None
        return Port(item["name"], DType(item["dtype"]), shape, storage, item["buffer"], limits)

    def buffer(item: dict[str, Any]) -> Buffer:
        if "weight" in item:
            return WeightBuffer(item["weight"], item["bytes"])
        return SlotBuffer(item["slot"], dim_from_json(item["bytes"]))

    def step(item: dict[str, Any]) -> Step:
        args = tuple(dim_from_json(a) for a in item["args"])
        operands = tuple(item["operands"])
        return Step(item["kernel"], operands, item["output"], args, item["label"], item.get("kept"))

    def check(item: dict[str, Any]) -> SizeCheck:
        return SizeCheck(dim_from_json(item["left"]), dim_from_json(item["right"]), item["where"])

    plan = Plan(
        name=data["name"],
        symbols=tuple(data["symbols"]),
        inputs=tuple(map(port, data["inputs"])),
        outputs=tuple(map(port, data["outputs"])),
        buffers=tuple(map(buffer, data["buffers"])),
        slots=tuple(dim_from_json(s) for s in data["slots"]),
        kernels=specs["wasm"],
        steps=tuple(map(step, data["steps"])),
        weight_bytes=data["weights"]["bytes"],
        checks=tuple(map(check, data["checks"])),
        program=program_from_json(data["program"]),
        metadata=data["metadata"],
    )
    steps = tuple(map(step, data["webgpu"]["steps"]))
    if steps == plan.steps:
        return plan
    return replace(plan, gpu=replace(plan, kernels=specs["webgpu"], steps=steps))
