"""Types of control flow: what its bodies take and give."""

from __future__ import annotations

from collections.abc import Sequence

from ..codegen.dims import Dim, symbol
from ..codegen.program import STACK_LIMIT
from ..errors import UnsupportedError
from ..graph import DType, Graph, TensorType
from .registry import Site, infers, like


def _body(site: Site, name: str = "body") -> Graph:
    body = site.attr(name)
    if not isinstance(body, Graph):
        raise site.error(f"attribute '{name}' is missing")
    return body


def count(site: Site, what: str, most: Dim) -> Dim:
    """A size that the node finds out while it runs: 0 .. most.

    Its name stays the same however often the node is looked at.
    """
    name = f"{next(filter(None, site.node.outputs))}_{what}"
    site.graph.counted[name] = most
    return symbol(name)


@infers("If")
def infer_if(site: Site) -> list[TensorType]:
    """Both branches; they must agree on their shapes."""
    found = []
    for name in ("then_branch", "else_branch"):
        body = _body(site, name)
        site.descend(body)
        found.append([body.types[o] for o in body.outputs])
    out = []
    for a, b in zip(*found, strict=True):
        if a.dtype is not b.dtype:
            raise site.error("the branches differ in type", got=f"{a} and {b}")
        if a.shape != b.shape:
            raise UnsupportedError(
                "the branches of an If give different shapes",
                where=site.node.where(),
                got=f"{a} and {b}",
                remedy="Export with the condition fixed",
            )
        out.append(a)
    return out


@infers("Loop")
def infer_loop(site: Site) -> list[TensorType]:
    body = _body(site)
    carried = site.node.inputs[2:]
    types = [site.graph.types[name] for name in carried]
    given = [TensorType(DType.I64, ()), TensorType(DType.BOOL, ()), *types]
    _enter(site, body, given)
    results = [body.types[name] for name in body.outputs[1:]]
    _carried(site, types, results[: len(types)])
    stacked = results[len(types) :]
    if not stacked:
        return types
    trips = loop_trips(site)
    return [*types, *(like(t, (trips, *t.shape)) for t in stacked)]


def loop_trips(site: Site) -> Dim:
    """How many turns a loop takes: known beforehand, or counted."""
    most = site.value(0) if site.has(0) else None
    start = site.value(1) if site.has(1) else (1,)
    if most is not None and start == (1,) and always_on(_body(site)):
        return most[0]
    bound: Dim = STACK_LIMIT
    if most is not None and not (isinstance(most[0], int) and most[0] > STACK_LIMIT):
        bound = most[0]
    return count(site, "turns", bound)


def always_on(body: Graph) -> bool:
    """Whether a Loop's body never ends it: its condition is true, or stays what it was."""
    producers = body.producers()
    name = body.outputs[0]
    while name in producers and producers[name].op == "Identity":
        name = producers[name].inputs[0]
    known = body.known(name)
    return name == body.inputs[1] or (known is not None and known == (1,))


@infers("Scan")
def infer_scan(site: Site) -> list[TensorType]:
    body = _body(site)
    n = int(site.attr("num_scan_inputs"))
    carried, scanned = site.node.inputs[:-n], site.node.inputs[-n:]
    types = [site.graph.types[name] for name in carried]
    axes = site.attr("scan_input_axes") or [0] * n
    slices, trips = [], None
    for name, given in zip(scanned, axes, strict=True):
        type_ = site.graph.types[name]
        axis = site.axis(given, len(type_.shape))
        length = type_.shape[axis]
        trips = length if trips is None else site.same(trips, length)
        slices.append(like(type_, (*type_.shape[:axis], *type_.shape[axis + 1 :])))
    _enter(site, body, [*types, *slices])
    results = [body.types[name] for name in body.outputs]
    _carried(site, types, results[: len(types)])
    stacked = results[len(types) :]
    axes = site.attr("scan_output_axes") or [0] * len(stacked)
    out = []
    assert trips is not None
    for type_, given in zip(stacked, axes, strict=True):
        axis = site.axis(given, len(type_.shape) + 1)
        out.append(like(type_, (*type_.shape[:axis], trips, *type_.shape[axis:])))
    return [*types, *out]


def _enter(site: Site, body: Graph, types: Sequence[TensorType]) -> None:
    for name, type_ in zip(body.inputs, types, strict=True):
        body.types[name] = type_
    site.descend(body)


def _carried(site: Site, before: Sequence[TensorType], after: Sequence[TensorType]) -> None:
    for a, b in zip(before, after, strict=True):
        if a.dtype is not b.dtype:
            raise site.error("a carried value changes its type", got=f"{a}, then {b}")
        if a.shape != b.shape:
            raise UnsupportedError(
                "a carried value changes its shape from turn to turn",
                where=site.node.where(),
                got=f"{a}, then {b}",
                remedy="Preallocate it, and keep a count of what is used",
            )
