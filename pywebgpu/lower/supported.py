"""What can be lowered at all."""

from __future__ import annotations

from ..errors import UnsupportedError
from ..graph import Graph, Node, subgraphs
from ..infer.contrib import refused_setting
from .engine import LOWERINGS


def refuse_unsupported(graph: Graph) -> None:
    """One error for all nodes that cannot be lowered."""
    found: dict[str, list[str]] = {}

    def look(graph: Graph) -> None:
        for node in graph.nodes:
            computed = all(name in graph.values for name in node.outputs if name)
            reason = None if computed else supported(node)
            if reason is not None:
                found.setdefault(reason, []).append(node.where())
            for body in subgraphs(node):
                look(body)

    look(graph)
    if found:
        lines = [f"{reason} ({', '.join(where[:3])}{', ...' if len(where) > 3 else ''})"
                 for reason, where in found.items()]  # fmt: skip
        raise UnsupportedError(
            "; ".join(lines),
            where=f"model {graph.name!r}",
            remedy="`pywebgpu check` lists what is supported",
        )


def supported(node: Node) -> str | None:
    """Why this operator cannot be lowered; None if it can."""
    refused = refused_setting(node)
    if refused is not None:
        return f"{node.op} with {refused} is not supported"
    if (node.domain, node.op) in LOWERINGS:
        return None
    domain = f" of domain {node.domain!r}" if node.domain else ""
    return f"operator {node.op}{domain} is not supported"
