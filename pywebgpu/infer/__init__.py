"""Types, shapes and known sizes of every value; see `engine.infer_graph`."""

from . import contrib, control, counted, elementwise, movement, neural, reduce, sample, symbolic
from .engine import Problems, infer_graph, infer_node, unbound_sizes
from .registry import DataDependent

__all__ = [
    "DataDependent",
    "Problems",
    "contrib",
    "control",
    "counted",
    "elementwise",
    "infer_graph",
    "infer_node",
    "movement",
    "neural",
    "reduce",
    "sample",
    "symbolic",
    "unbound_sizes",
]
