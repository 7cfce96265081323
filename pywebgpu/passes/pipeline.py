"""The passes in order. Deterministic: the same graph always becomes the same graph."""

from __future__ import annotations

from collections.abc import Callable

from ..graph import Graph, subgraphs
from ..infer import Problems, infer_graph
from .activations import fuse_activations
from .attention import fuse_attention
from .batchnorm import fold_batch_norm
from .contrib import rewrite_contrib
from .cse import share
from .decompose import decompose
from .gathers import simplify_gathers
from .norms import fuse_norms
from .recurrent import split_recurrent
from .simplify import simplify

Pass = Callable[[Graph], bool]


def fold(graph: Graph) -> bool:
    """Type everything again and fold what has become constant."""
    changed = infer_graph(graph, Problems())
    graph.prune()
    return changed


CLEANING: tuple[Pass, ...] = (fold, simplify, simplify_gathers, share)
FUSING: tuple[Pass, ...] = (
    split_recurrent,
    rewrite_contrib,
    fold_batch_norm,
    fuse_norms,
    fuse_activations,
    fuse_attention,
)
_ROUNDS = 12


def clean(graph: Graph) -> bool:
    """Cleaning passes until none of them changes anything."""
    changed = False
    for _ in range(_ROUNDS):
        # Every pass runs in every round, whether or not one before it changed something.
        results = [run_pass(graph) for run_pass in CLEANING]
        if True not in results:
            break
        changed = True
    return changed


def optimise(graph: Graph) -> Graph:
    """All passes, in place; returns the graph."""
    clean(graph)
    for run_pass in FUSING:
        if run_pass(graph):
            clean(graph)
    if decompose(graph):
        clean(graph)
    for node in graph.nodes:
        for body in subgraphs(node):
            optimise(body)
    return graph
