"""A bundle's generated code made again from its manifest and its specs.

The same text runs on the desktop and, in the page, under Pyodide: hence standard library and
pywebgpu.codegen only.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pywebgpu.codegen import wasm, wgsl
from pywebgpu.codegen.caps import WGSL_VARIANTS, WasmCaps
from pywebgpu.codegen.codec import spec_from_json
from pywebgpu.codegen.dims import dim_from_json
from pywebgpu.codegen.program import looked_at, program_from_json
from pywebgpu.codegen.wasm.asm import Module, Target
from pywebgpu.codegen.wasm.model import Call, Slot, Weight, assemble


def regenerate(manifest_text: str, specs_text: str) -> dict[str, str]:
    """File name, or name of a part of one -> SHA-256 of its content."""
    manifest: dict[str, Any] = json.loads(manifest_text)
    specs = {
        target: [spec_from_json(data) for data in found]
        for target, found in json.loads(specs_text).items()
    }
    made: dict[str, bytes] = {}

    for variant in manifest["webgpu"]["variants"]:
        (caps,) = (v.caps for v in WGSL_VARIANTS if v.name == variant["name"])
        codes: dict[str, None] = {}
        for spec in specs["webgpu"]:
            for dispatch in wgsl.render(spec, wgsl.space(spec, caps)[0]).passes:
                codes[dispatch.code] = None
        text = json.dumps([*codes], separators=(",", ":"), ensure_ascii=False)
        made[variant["file"]] = text.encode()

    def place(number: int) -> Slot | Weight:
        buffer = manifest["buffers"][number]
        return Slot(buffer["slot"]) if "slot" in buffer else Weight(buffer["weight"])

    calls = [
        Call(
            step["kernel"],
            tuple(place(b) for b in step["operands"]),
            place(step["output"]),
            tuple(dim_from_json(arg) for arg in step["args"]),
        )
        for step in manifest["steps"]
    ]
    program = program_from_json(manifest["program"])
    places = {number: place(number) for number in looked_at(program)}
    for variant in manifest["wasm"]["variants"]:
        caps = WasmCaps(relaxed=variant["relaxed"], threads=variant["threads"])
        target = Target(relaxed=caps.relaxed, threads=caps.threads)
        chosen = [(spec, wasm.space(spec, caps)[0]) for spec in specs["wasm"]]
        made[variant["file"]] = assemble(chosen, calls, target, program, places).binary
        for i, (spec, knobs) in enumerate(chosen):
            module = Module(target)
            wasm.emit(module, spec, knobs)
            made[f"{variant['file']} kernel {i}"] = module.encode()
    return {name: hashlib.sha256(data).hexdigest() for name, data in made.items()}
