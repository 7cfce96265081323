"""The product of the wasm target for one spec: a function in a module under construction."""

from __future__ import annotations

from dataclasses import dataclass

from ..dims import Dim


@dataclass(frozen=True, slots=True)
class WasmKernel:
    """`function`: index in the module, with the calling convention of docs/design.md.

    `scratch`: bytes each thread needs, over the spec's arguments; thread t's begins at
    scratch pointer + t * scratch (the kernel computes that itself).
    """

    function: int
    scratch: Dim = 0
