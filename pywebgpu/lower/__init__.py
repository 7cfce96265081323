"""Operators to kernel specs. Start at `engine`; each category file holds the operators of its name.

`lower(graph)` gives the program: kernel calls over numbered buffers. It knows nothing of how a
kernel is spelled, and passes that rewrite the graph come before it.
"""

from __future__ import annotations

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

__all__ = ["Int8", "Lowering", "lower", "supported"]

ADDRESSABLE = 1 << 32
"""Bytes: kernels compute addresses in 32 bits."""


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
                    remedy="Export the model for smaller inputs or a smaller batch",
                )
    return lowering
