"""Operators to kernel specs. Start at `engine`; each category file holds the operators of its name.

`lower(graph)` gives the program: kernel calls over numbered buffers. It knows nothing of how a
kernel is spelled, and passes that rewrite the graph come before it.
"""

from __future__ import annotations

from ..codegen.dims import Dim, product
from ..codegen.spec import Map, Reduce, Row
from ..errors import UnsupportedError
from ..graph import Graph
from . import (  # noqa: F401  (each registers its operators)
    attention,
    bits,
    control,
    conv,
    counted,
    elementwise,
    gather,
    generate,
    grid_sample,
    matmul,
    movement,
    norm,
    pool,
    quantize,
    recurrent,
    reduce,
    resize,
    sample,
    scatter,
    signal,
)
from .engine import Lowering
from .int8 import Int8
from .supported import refuse_unsupported, supported
from .values import Emitted

__all__ = ["Int8", "Lowering", "lower", "supported"]

ADDRESSABLE = 1 << 32
"""Bytes: kernels compute addresses in 32 bits."""
COUNTABLE = 1 << 31
_SMALLER = "Export the model for smaller inputs or a smaller batch"


def lower(graph: Graph, int8: Int8 | None = None) -> Lowering:
    """The program of `graph`; with `int8`, constant operands become bytes where it says so.

    Raises:
        UnsupportedError: an operator, or a use of one, that cannot be lowered, or a tensor that no
            executor can hold.
    """
    refuse_unsupported(graph)
    lowering = Lowering(graph, int8)
    lowering.run()
    ports = zip(lowering.input_buffers + lowering.output_buffers, graph.inputs + graph.outputs,
                strict=True)  # fmt: skip
    names = dict(ports)
    for number, buffer in enumerate(lowering.buffers):
        if isinstance(buffer.elements, int):
            size = buffer.elements * buffer.storage.bytes
            if size >= ADDRESSABLE:
                raise UnsupportedError(
                    "a tensor is larger than kernels can address",
                    where=f"'{names[number]}'" if number in names else f"model '{graph.name}'",
                    got=f"{size:,} bytes",
                    expected=f"less than {ADDRESSABLE:,}",
                    remedy=_SMALLER,
                )
    for step in lowering.steps:
        _refuse_huge(step)
    return lowering


def _refuse_huge(step: Emitted) -> None:
    """What no buffer holds may still be too much to count: a sum over 2^40 equal elements."""
    spaces: list[tuple[Dim, ...]] = []
    if isinstance(step.spec, Map | Reduce | Row):
        spaces.append(step.spec.shape)
    if isinstance(step.spec, Reduce):
        spaces.append(step.spec.reduce)
    elif isinstance(step.spec, Row):
        spaces.append(step.spec.row)
    for space in spaces:
        count = product(space)
        if isinstance(count, int) and count >= COUNTABLE:
            raise UnsupportedError(
                "a kernel would compute more elements than it can count",
                where=step.label,
                got=f"{count:,} elements",
                expected=f"less than {COUNTABLE:,}",
                remedy=_SMALLER,
            )
