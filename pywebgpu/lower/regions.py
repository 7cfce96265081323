"""A look ahead in the graph: which values with several readers need no buffer for it."""

from __future__ import annotations

from heapq import heappop, heappush

from ..graph import Graph

POINTWISE: set[str] = set()
"""Operators whose output element needs the same element of each (broadcast) input: filled by the
files that lower them."""

REGION = 24
"""Nodes that a value's consumers may span before they meet again."""


def interior_values(graph: Graph) -> set[str]:
    """Values with several consumers that need no buffer for it: all paths from them are pointwise
    over one shape and meet in one value, as in x * sigmoid(x)."""
    number = {id(node): i for i, node in enumerate(graph.nodes)}
    users = {name: [number[id(n)] for n in nodes] for name, nodes in graph.consumers().items()}
    outputs = set(graph.outputs)
    interior: set[str] = set()

    def region(start: str) -> set[str] | None:
        shape = graph.types[start].shape
        inside = {start}
        queue: list[int] = []
        for u in users[start]:
            heappush(queue, u)
        seen = set(queue)
        for _ in range(REGION):
            node = graph.nodes[heappop(queue)]
            out = node.outputs[0]
            if node.op not in POINTWISE or graph.types[out].shape != shape:
                return None
            if not queue:
                return inside
            if out in outputs:
                return None
            inside.add(out)
            for u in users.get(out, []):
                if u not in seen:
                    seen.add(u)
                    heappush(queue, u)
        return None

    for name, nodes in users.items():
        if len(nodes) > 1 and name in graph.types and not {name} & (interior | outputs):
            interior |= region(name) or set()
    return interior
