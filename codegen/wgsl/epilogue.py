"""The second pass of a product whose rows are normalised (`spec.Epilogue`).

A workgroup has a whole row: it adds up the parts, takes the row's statistics from what it holds in
registers, and stores. Nothing is computed twice, and nothing waits for a kernel of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from .. import scalar as sc
from ..scalar import Type
from ..spec import Matmul, RowOp, Storage
from . import prologue
from .kernel import Pass
from .module import Module, dim_text, fold_grid
from .scalar import literal, loads

_MOST_QUADS = 4
"""Vec4s of a row that a thread should hold, as long as there are threads."""


@dataclass(frozen=True, slots=True)
class Fields:
    """What the template sees; `quads`: vec4s per row, `held`: per thread."""

    head: str
    threads: int
    held: int
    quads: int
    m: str
    parts: str
    layer: bool
    eps: str
    kept: str  # the element type of the second output, or nothing


def finish(module: Module, parts: str, spec: Matmul) -> Pass:
    """The pass, in a module that has the partial sums as its scratch; `parts`: how many."""
    made = spec.epilogue
    assert made is not None
    assert isinstance(spec.n, int)
    assert spec.n % 4 == 0
    quads = spec.n // 4
    threads = 64
    while threads < 256 and quads > threads * _MOST_QUADS:
        threads *= 2
    prologue.define_rows(module, "value_at", spec.final, frozenset(loads(made.final).values()))
    index = sc.dim(spec.out.offset) + sc.axis(0) * sc.dim(spec.out.strides[0]) + sc.axis(1)
    module.puts(
        made.final, index, ("m", "n"), Type.F32, lane=1, lane_size=spec.n,
        guarded=frozenset(loads(spec.final).values()),
    )  # fmt: skip
    if made.keep is not None:
        module.keep(made.keep, vector=True)
    element = "f16" if made.keep is Storage.F16 else "f32"
    eps = literal(sc.const(made.eps).value, Type.F32, module.helpers)
    fields = Fields(
        head=module.head(),
        threads=threads,
        held=-(-quads // threads),
        quads=quads,
        m=dim_text(spec.m),
        parts=parts,
        layer=made.norm is RowOp.LAYER,
        eps=eps,
        kept="" if made.keep is None else f"vec4<{element}>",
    )
    return module.dispatch("product_rows", fields, fold_grid(spec.m))
