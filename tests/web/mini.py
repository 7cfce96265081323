"""A bundle small enough to write by hand, for what a page can observe about the runtime itself.

y[n] = 2 * x + table[i % 300] + shift, and k_out = k. It has a run-time size, weights that lie
across the edge of a shard, an int64 port, a kernel of two passes with scratch memory, and modules
that trap when k[1] is 13. Its files follow docs/design.md without the exporter's help, so that the
two can disagree.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pywebgpu.codegen.wasm.abi import weights_base
from pywebgpu.codegen.wasm.asm import F32, I32, Module, Target

TABLE = [i * 0.5 for i in range(300)]
SHIFT = 100.0
_TABLE_BYTES = 4 * len(TABLE)
_SHIFT_AT = 1280  # the next multiple of 256
_SHARD = 1024
_PARAMS: list[dict[str, Any]] = [
    *({"slot": i} for i in range(4)),
    {"dim": "n"},
    {"scratch": True},
]
_BASE = weights_base(len(_PARAMS))

_DOUBLE = """
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> table: array<f32>;
@group(0) @binding(2) var<storage, read> shift: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;
struct Args { v: array<vec4<u32>, 1> }
@group(0) @binding(4) var<uniform> args: Args;
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  if (id.x < args.v[0][0]) { y[id.x] = 2.0 * x[id.x] + table[id.x % 300u] + shift[0]; }
}
"""
_COPY_IN = """
@group(0) @binding(0) var<storage, read> k: array<i32>;
@group(0) @binding(1) var<storage, read_write> scratch: array<i32>;
@compute @workgroup_size(2)
fn main(@builtin(global_invocation_id) id: vec3<u32>) { scratch[id.x] = k[id.x] - 1; }
"""
_COPY_OUT = """
@group(0) @binding(0) var<storage, read_write> out: array<i32>;
@group(0) @binding(1) var<storage, read_write> scratch: array<i32>;
@compute @workgroup_size(2)
fn main(@builtin(global_invocation_id) id: vec3<u32>) { out[id.x] = scratch[id.x] + 1; }
"""


def expected(x: list[float]) -> list[float]:
    return [2 * v + TABLE[i % 300] + SHIFT for i, v in enumerate(x)]


def module(target: Target) -> bytes:
    """`run(thread, threads)`: thread t computes elements t, t + threads, ... of y."""
    m = Module(target)
    run = m.function("run", [I32, I32])
    thread, threads = run.params
    x, k, y, k_out, n = (run.local(I32) for _ in range(5))
    for i, local in enumerate((x, k, y, k_out, n)):
        run.i32_const(256 + 4 * i)
        run.i32_load()
        run.set(local)
    run.get(k)
    run.i32_load(offset=4)
    run.i32_const(13)
    run.i32_eq()
    with run.if_():
        run.unreachable()
    for offset in (0, 4):
        run.get(k_out, k)
        run.i32_load(offset=offset)
        run.i32_store(offset=offset)
    i, value = run.local(I32), run.local(F32)
    run.assign(i, thread)
    with run.block() as done, run.loop() as again:
        run.get(i, n)
        run.i32_ge_u()
        run.br_if(done)
        run.push(x + i * 4)
        run.f32_load()
        run.f32_const(2.0)
        run.f32_mul()
        run.push((i % 300) * 4)
        run.f32_load(offset=_BASE)
        run.f32_add()
        run.i32_const(_BASE + _SHIFT_AT)
        run.f32_load()
        run.f32_add()
        run.set(value)
        run.push(y + i * 4)
        run.get(value)
        run.f32_store()
        run.assign(i, i + threads)
        run.br(again)
    m.export("run", run)
    return m.encode()


_GPU_KERNELS = [
    {
        "passes": [
            {
                "code": 0,
                "bindings": [
                    *(["operand", i] for i in range(3)),
                    ["output", 0],
                    ["args", 0],
                ],
                "grid": [["//", ["+", "a0", 63], 64], 1, 1],
            }
        ],
        "scratch": [],
        "features": [],
    },
    {
        "passes": [
            {
                "code": 1,
                "bindings": [["operand", 0], ["scratch", 0]],
                "grid": [1, 1, 1],
            },
            {
                "code": 2,
                "bindings": [["output", 0], ["scratch", 0]],
                "grid": [1, 1, 1],
            },
        ],
        "scratch": [8],
        "features": [],
    },
]

_STEPS = [
    {"kernel": 0, "operands": [0, 4, 5], "output": 2, "args": ["n"], "label": "double"},
    {"kernel": 1, "operands": [1], "output": 3, "args": [], "label": "copy"},
]


def write(folder: Path, **changes: Any) -> Path:
    """Write the bundle; `changes` replace top-level entries of the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = struct.pack(f"<{len(TABLE)}f", *TABLE).ljust(_SHIFT_AT, b"\0")
    weights += struct.pack("<4f", SHIFT, 0, 0, 0)
    shards = [weights[i : i + _SHARD] for i in range(0, len(weights), _SHARD)]
    files = {f"weights-{i:03}.bin": shard for i, shard in enumerate(shards)}
    variants = []
    for relaxed, threads in ((True, True), (False, True), (True, False), (False, False)):
        target = Target(relaxed=relaxed, threads=threads)
        file = f"model.{target.name}.wasm"
        files[file] = module(target)
        variants.append({"name": target.name, "file": file, "relaxed": relaxed, "threads": threads})
    codes = [_DOUBLE, _COPY_IN, _COPY_OUT]
    files["kernels.default.wgsl.json"] = json.dumps(codes).encode()
    manifest = {
        "format_version": 1,
        "generator_version": "1",
        "name": "mini",
        "symbols": ["n"],
        "inputs": [
            {"name": "x", "dtype": "float32", "shape": ["n"], "storage": "f32", "buffer": 0},
            {"name": "k", "dtype": "int64", "shape": [2], "storage": "i32", "buffer": 1},
        ],
        "outputs": [
            {"name": "y", "dtype": "float32", "shape": ["n"], "storage": "f32", "buffer": 2},
            {"name": "k_out", "dtype": "int64", "shape": [2], "storage": "i32", "buffer": 3},
        ],
        "buffers": [
            {"slot": 0, "bytes": ["*", "n", 4]},
            {"slot": 1, "bytes": 8},
            {"slot": 2, "bytes": ["*", "n", 4]},
            {"slot": 3, "bytes": 8},
            {"weight": 0, "bytes": _TABLE_BYTES},
            {"weight": _SHIFT_AT, "bytes": 16},
        ],
        "slots": [["*", "n", 4], 8, ["*", "n", 4], 8],
        "weights": {"bytes": len(weights), "shards": [f for f in files if f.endswith(".bin")]},
        "steps": _STEPS,
        "program": [],
        "checks": [{"left": "n", "right": ["min", "n", 4_000_000], "where": "a node"}],
        "wasm": {
            "variants": variants,
            "params": _PARAMS,
            "weights_base": _BASE,
            "scratch_per_thread": 0,
        },
        "webgpu": {
            "steps": _STEPS,
            "variants": [
                {
                    "name": "default",
                    "file": "kernels.default.wgsl.json",
                    "needs": [],
                    "kernels": _GPU_KERNELS,
                }
            ],
        },
        "files": {
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in files.items()
        },
        "metadata": {},
        **changes,
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


WRONG_FIELDS: list[tuple[list[Any], Any]] = [
    (["steps", 0, "kernel"], "zero"),
    (["inputs", 0, "shape", 0], ["pow", "n", 2]),
    (["inputs", 0, "shape", 0], ["//", "n", 2, 2]),
    (["inputs", 0, "shape", 0], "m"),
    (["inputs", 1, "dtype"], "string"),
    (["files", "weights-000.bin", "sha256"], "abc"),
    (["slots"], None),
    (["slots", 0], "m"),
    (["buffers", 4, "weight"], 1 << 20),
    (["buffers", 4, "weight"], 0.5),
    (["webgpu", "steps", 1, "kernel"], 2),
    (["webgpu", "steps", 0, "args"], []),
    (["webgpu", "steps", 0, "output"], 0),
    (["webgpu", "steps", 0, "output"], 4),
    (["webgpu", "steps", 0, "operands"], []),
    (["steps", 0], None),
    (["steps", 0, "args", 0], "m"),
    (["outputs", 0, "buffer"], 6),
    (["wasm", "params", 3], {"slot": 4}),
    (["wasm", "scratch_per_thread"], "m"),
    (["weights", "shards", 0], "weights-009.bin"),
    (["webgpu", "variants", 0, "kernels", 0, "passes", 0, "bindings", 0], ["operant", 0]),
    (["webgpu", "variants", 0, "kernels", 0, "passes", 0, "bindings", 0], ["scratch", 3]),
    (["webgpu", "variants", 0, "file"], "../kernels.json"),
    (["webgpu", "variants", 0, "tests"], "nowhere.json"),
    (["program"], [{"steps": [0, 9]}]),
    (["program"], [{"loop": {"trips": "m", "limited": False, "body": [], "where": ""}}]),
    (["no such entry"], 1),
]
"""What is wrong of a manifest, with the schema or with what it refers to."""


def damage(folder: Path, path: Sequence[Any], value: Any) -> str:
    """Write something else at a place of the bundle's manifest; the place around it, as an error
    says it."""
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text())
    target = manifest
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    file.write_text(json.dumps(manifest))
    return "".join(f"/{key}" for key in path[:-1])
