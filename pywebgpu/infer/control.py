"""Types of control flow: what its bodies give."""

from __future__ import annotations

from ..errors import UnsupportedError
from ..graph import Graph, TensorType
from .registry import Site, infers


def _body(site: Site, name: str) -> Graph:
    body = site.attr(name)
    if not isinstance(body, Graph):
        raise site.error(f"attribute '{name}' is missing")
    return body


@infers("If")
def infer_if(site: Site) -> list[TensorType]:
    """Both branches; a size on which they differ is known only after the node has run."""
    from .engine import infer_graph

    found = []
    for name in ("then_branch", "else_branch"):
        body = _body(site, name)
        infer_graph(body)
        found.append([body.types[o] for o in body.outputs])
    out = []
    for i, (a, b) in enumerate(zip(*found, strict=True)):
        if a.dtype is not b.dtype:
            raise site.error("the branches differ in type", got=f"{a} and {b}")
        if len(a.shape) != len(b.shape):
            raise UnsupportedError(
                "the branches of an If give different ranks",
                where=site.node.where(),
                got=f"{a} and {b}",
                remedy="Export with the condition fixed",
            )
        shape = [
            x if x == y else site.fresh_dim(j, i)
            for j, (x, y) in enumerate(zip(a.shape, b.shape, strict=True))
        ]
        out.append(TensorType(a.dtype, tuple(shape)))
    return out
