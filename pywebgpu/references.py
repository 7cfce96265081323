"""What no schema can say of a manifest: that the numbers and names in it refer to something.

web/references.js says the same in JavaScript; tests/web/test_bundle_errors.py asks both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set
from typing import Any

from .codegen.dims import Dim, dim_from_json, symbols
from .codegen.program import Branch, Loop, Range, Read, program_from_json, walk


def dangling(manifest: dict[str, Any]) -> str | None:
    """The first number or name that refers to nothing, as "path: what"; None where there is none.

    The manifest fits its schema.
    """
    return next(_Looking(manifest).found(), None)


class _Looking:
    def __init__(self, manifest: dict[str, Any]) -> None:
        self.manifest = manifest
        self.program = list(walk(program_from_json(manifest["program"])))
        counted = [item.symbol for item in self.program if isinstance(item, Read)]
        self.sizes = {*manifest["symbols"], *counted}
        self.buffers, self.slots = len(manifest["buffers"]), len(manifest["slots"])

    def found(self) -> Iterator[str]:
        manifest, wasm = self.manifest, self.manifest["wasm"]
        for kind in ("inputs", "outputs"):
            for i, port in enumerate(manifest[kind]):
                yield from _beyond(f"/{kind}/{i}/buffer", port["buffer"], self.buffers)
                yield from self._unknown(f"/{kind}/{i}/shape", port["shape"])
        for i, buffer in enumerate(manifest["buffers"]):
            if "slot" in buffer:
                yield from _beyond(f"/buffers/{i}/slot", buffer["slot"], self.slots)
                yield from self._unknown(f"/buffers/{i}/bytes", [buffer["bytes"]])
            else:
                last = buffer["weight"] + buffer["bytes"] - 1
                yield from _beyond(f"/buffers/{i}/weight", last, manifest["weights"]["bytes"])
        yield from self._unknown("/slots", manifest["slots"])
        for i, check in enumerate(manifest["checks"]):
            yield from self._unknown(f"/checks/{i}", [check["left"], check["right"]])
        for i, name in enumerate(manifest["weights"]["shards"]):
            yield from self._unlisted(f"/weights/shards/{i}", name)
        for i, param in enumerate(wasm["params"]):
            if "slot" in param:
                yield from _beyond(f"/wasm/params/{i}", param["slot"], self.slots)
            yield from self._unknown(f"/wasm/params/{i}", [param.get("dim", 0)])
        yield from self._unknown("/wasm/scratch_per_thread", [wasm["scratch_per_thread"]])
        for i, variant in enumerate(wasm["variants"]):
            yield from self._unlisted(f"/wasm/variants/{i}/file", variant["file"])
        yield from self._steps("/steps", manifest["steps"])
        yield from self._webgpu(manifest["webgpu"])
        yield from self._program()

    def _steps(self, path: str, steps: Sequence[dict[str, Any]]) -> Iterator[str]:
        for i, step in enumerate(steps):
            output = step["output"]
            for number in (*step["operands"], output, step.get("kept", output)):
                yield from _beyond(f"{path}/{i}", number, self.buffers)
            yield from self._unknown(f"{path}/{i}/args", step["args"])

    def _webgpu(self, section: dict[str, Any]) -> Iterator[str]:
        yield from self._steps("/webgpu/steps", section["steps"])
        slots = [buffer.get("slot") for buffer in self.manifest["buffers"]]
        for i, step in enumerate(section["steps"]):
            if slots[step["output"]] in (None, *(slots[number] for number in step["operands"])):
                yield f"/webgpu/steps/{i}: it writes where it reads, or into weights"
        for v, variant in enumerate(section["variants"]):
            at, kernels = f"/webgpu/variants/{v}", variant["kernels"]
            for key in ("file", "tests"):
                if key in variant:
                    yield from self._unlisted(f"{at}/{key}", variant[key])
            for k, kernel in enumerate(kernels):
                for p, part in enumerate(kernel["passes"]):
                    for b, (role, number) in enumerate(part["bindings"]):
                        if role == "scratch":
                            path = f"{at}/kernels/{k}/passes/{p}/bindings/{b}"
                            yield from _beyond(path, number, len(kernel["scratch"]))
            for i, step in enumerate(section["steps"]):
                path = f"/webgpu/steps/{i}"
                yield from _beyond(f"{path}/kernel", step["kernel"], len(kernels))
                kernel = kernels[step["kernel"]]
                names = {f"a{n}" for n in range(len(step["args"]))}  # as a kernel calls them
                dims = [*kernel["scratch"], *(d for part in kernel["passes"] for d in part["grid"])]
                yield from _unnamed(f"{path}/args", map(dim_from_json, dims), names)
                for part in kernel["passes"]:
                    for role, number in part["bindings"]:
                        if role == "operand":
                            yield from _beyond(f"{path}/operands", number, len(step["operands"]))

    def _program(self) -> Iterator[str]:
        at = "/program"
        for item in self.program:
            if isinstance(item, Range):
                last = max(item.first, item.end) - 1
                yield from _beyond(at, last, len(self.manifest["steps"]))
            elif isinstance(item, Read):
                yield from _beyond(at, item.buffer, self.buffers)
                yield from _unnamed(at, [item.most], self.sizes)
            elif isinstance(item, Branch):
                yield from _beyond(at, item.condition, self.buffers)
            elif isinstance(item, Loop):
                yield from _beyond(at, -1 if item.going is None else item.going, self.buffers)
                yield from _unnamed(at, [item.trips], self.sizes)

    def _unlisted(self, path: str, name: str) -> Iterator[str]:
        if name not in self.manifest["files"]:
            yield f'{path}: "{name}" is not in files'

    def _unknown(self, path: str, dims: Sequence[Any]) -> Iterator[str]:
        yield from _unnamed(path, map(dim_from_json, dims), self.sizes)


def _beyond(path: str, number: int, count: int) -> Iterator[str]:
    if number >= count:
        yield f"{path}: {number}, but there are only {count}"


def _unnamed(path: str, dims: Iterable[Dim], sizes: Set[str]) -> Iterator[str]:
    for dim in dims:
        for name in symbols(dim):
            if name not in sizes:
                yield f'{path}: no size is called "{name}"'
