"""One walk over a graph that types every value, follows sizes and folds constants.

Inference and folding need each other (a Reshape's new shape may be the end of a long chain of
constants), so they are one walk. On the way older operator forms are rewritten, `If` with a
constant condition is replaced by the branch taken, short loops of known length are written out
(`unroll.py`), and nodes that only compute known sizes go.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..codegen.dims import Expr, symbols
from ..errors import ModelError, UnsupportedError
from ..graph import Graph, Node, TensorType, outer_names, subgraphs
from . import symbolic
from .evaluate import as_type, can_fold, evaluate
from .fallback import infer_with_onnx
from .registry import TABLE, Site
from .signature import check_types
from .unroll import unrolled

MOST_AXES = 64
"""As in NumPy."""

Rewrite = Callable[[Graph, Node, int], "list[Node] | None"]


@dataclass(slots=True)
class Problems:
    """What was found wrong, so that it can be reported together."""

    unsupported: list[tuple[Node, UnsupportedError]] = field(default_factory=list)
    opset: int = 0
    """The model's own, of the default domain."""
    blocked: list[Node] = field(default_factory=list)
    """Nodes that could not be typed because of an unsupported one before them."""


def infer_node(
    graph: Graph, node: Node, rewrite: Rewrite | None = None, version: int = 1 << 20
) -> None:
    """Set the types (and known elements) of a node's outputs; see `infer_graph` for the rest.

    Raises:
        ModelError: the node contradicts its inputs.
        UnsupportedError: the operator is not known, or its output's shape depends on data.
    """
    site = Site(graph, node, lambda body: infer_graph(body, None, rewrite, version))
    function = TABLE.get((node.domain, node.op), infer_with_onnx)
    for name in filter(None, node.outputs):
        graph.values.pop(name, None)
    found = function(site)
    types = [found] if isinstance(found, TensorType) else list(found)
    for name, type_ in zip(node.outputs, types, strict=False):
        if name and type_ is not None:
            shape = tuple(map(site.resolve, type_.shape))
            if len(shape) > MOST_AXES or any(
                isinstance(d, int) and not 0 <= d < 2**31 for d in shape
            ):
                raise site.error(
                    "an output's shape is out of range",
                    got=f"[{', '.join(map(str, shape[:MOST_AXES]))}]",
                    expected=f"at most {MOST_AXES} sizes of 0 to 2147483647",
                )
            graph.types[name] = TensorType(type_.dtype, shape)
    missing = [name for name in node.outputs if name and name not in graph.types]
    if missing:
        raise site.error("the node has more outputs than its operator", got=missing)


def infer_graph(
    graph: Graph,
    problems: Problems | None = None,
    rewrite: Rewrite | None = None,
    version: int = 1 << 20,
) -> bool:
    """Type every value of `graph`, fold what is constant; returns whether nodes went or changed.

    `rewrite` gets nodes that follow opset `version`; what it returns is in the newest form.
    With `problems`, unsupported nodes are collected there and inference goes on without them;
    otherwise the first one raises.

    Raises:
        ModelError: a node contradicts its inputs.
        UnsupportedError: see above.
    """
    todo: deque[tuple[Node, int]] = deque((node, version) for node in graph.nodes)
    done: list[Node] = []
    changed = False
    outputs = set(graph.outputs)
    while todo:
        node, since = todo.popleft()
        if node.op in _CONSTANT_OPS and not node.domain:
            _constant_node(graph, node, outputs, done)
            changed = True
            continue
        if any(name not in graph.types for name in outer_names(node)):
            if problems is None:
                missing = [n for n in outer_names(node) if n not in graph.types]
                raise ModelError("an input has no type", where=node.where(), got=missing)
            problems.blocked.append(node)
            done.append(node)
            continue
        try:
            new = rewrite(graph, node, since) if rewrite else None
            if new is None and node.op in _WITH_BODIES and not node.domain:
                for body in subgraphs(node):
                    _enter(graph, body)
                new = (
                    _constant_if(graph, node)
                    if node.op == "If"
                    else unrolled(graph, node, since, renamed)
                )
                if new is not None:
                    todo.extendleft((n, since) for n in reversed(new))
                    changed = True
                    continue
            if new is not None:
                todo.extendleft((n, _NEWEST) for n in reversed(new))
                changed = True
                continue
            check_types(Site(graph, node))
            infer_node(graph, node, rewrite, since)
        except UnsupportedError as error:
            if problems is None:
                raise
            problems.unsupported.append((node, error))
            done.append(node)
            continue
        if _settle(graph, node, outputs, done):
            changed = True
    graph.nodes = done
    return changed


_NEWEST = 1 << 20
_CONSTANT_OPS = {"Constant"}
_WITH_BODIES = {"If", "Loop", "Scan"}


def unbound_sizes(graph: Graph) -> list[tuple[Node, str]]:
    """Nodes that bring in sizes which no input has, with one of them: known once they have run."""
    bound = {s for name in graph.inputs for dim in graph.types[name].shape for s in symbols(dim)}
    bound.update(graph.counted)
    found = []
    for node in graph.nodes:
        for name in filter(None, node.outputs):
            type_ = graph.types.get(name)
            new = [s for dim in (type_.shape if type_ else ()) for s in symbols(dim)]
            new = [s for s in new if s not in bound]
            if new:
                found.append((node, new[0]))
                bound.update(new)
    return found


_NAMES = 10**6


def _enter(graph: Graph, body: Graph) -> None:
    """Let a body see the values around it. ONNX forbids names that hide outer ones."""
    if not body._counter:  # names that are made in a body are none of its surroundings'
        body._counter = (graph._counter // _NAMES + 1) * _NAMES
    body.types = {**body.types, **graph.types}
    body.constants = {**body.constants, **graph.constants}
    body.values = {**body.values, **graph.values}
    body.equal = graph.equal
    body.checks, body.counted = graph.checks, graph.counted


def _constant_node(graph: Graph, node: Node, outputs: set[str], done: list[Node]) -> None:
    """A Constant becomes an entry of `constants`."""
    value = next((v for v in node.attrs.values() if v is not None), None)
    if isinstance(value, (str, bytes)) or (
        isinstance(value, list) and any(isinstance(x, str) for x in value)
    ):
        raise UnsupportedError(
            "strings are not supported", where=node.where(), remedy="Compute them outside the model"
        )
    if value is None:
        raise ModelError("a constant without a value", where=node.where())
    if not isinstance(value, np.ndarray):
        kind = "float32" if any("float" in name for name in node.attrs) else "int64"
        value = np.array(value, dtype=kind)
    name = graph.add_constant(node.outputs[0], value)
    _rename_or_keep(graph, node.outputs[0], name, outputs, done)


def _rename_or_keep(graph: Graph, old: str, new: str, outputs: set[str], done: list[Node]) -> None:
    """`old` is what constant `new` holds; a graph's output stays the output of a node."""
    graph.types[old] = graph.types[new]
    if old in outputs:
        done.append(Node("Identity", [new], [old], name=old))
        return
    graph.constants[old] = graph.constants.pop(new)
    del graph.types[new]


def _settle(graph: Graph, node: Node, outputs: set[str], done: list[Node]) -> bool:
    """Keep the node, or replace it by what is known of its outputs; returns whether it went."""
    names = [name for name in node.outputs if name]
    for name in names:
        elements = graph.values.get(name)
        # Graph outputs stay products of a node, but readers may know the elements.
        if elements is None or name in outputs:
            continue
        if not any(isinstance(x, Expr) for x in elements):
            array = np.array(elements, dtype=graph.types[name].dtype.numpy)
            graph.constants[name] = as_type(array, graph.types[name])
            del graph.values[name]
    if all(name in graph.constants for name in names):
        return True
    kept_identity = node.op == "Identity" and names[0] in outputs
    found = _folded(graph, node) if not kept_identity else None
    if found is not None:
        for name, value in zip(node.outputs, found, strict=False):
            if not name or value is None:
                continue
            graph.values.pop(name, None)
            if name in outputs:
                constant = graph.fresh(name)
                graph.constants[constant] = value
                graph.types[constant] = graph.types[name]
                done.append(Node("Identity", [constant], [name], name=name))
            else:
                graph.constants[name] = value
        return True
    if all(name in graph.values for name in names) and not outputs.intersection(names):
        return True
    done.append(node)
    return False


def _folded(graph: Graph, node: Node) -> list[np.ndarray[Any, Any] | None] | None:
    """The outputs of a node with constant inputs. Where the evaluator fails the node stays: it
    may well be lowered, and if a shape depends on it, that is reported."""
    if not can_fold(graph, node):
        return None
    try:
        return evaluate(graph, node)
    except Exception:  # the reference evaluator raises all kinds
        return None


def _constant_if(graph: Graph, node: Node) -> list[Node] | None:
    """The branch of an If whose condition is known, renamed into the surrounding graph."""
    condition = graph.known(node.inputs[0])
    if condition is None or not all(isinstance(c, int) for c in condition):
        return None
    branch = node.attrs["then_branch" if condition[0] else "else_branch"]
    assert isinstance(branch, Graph)
    own = {*branch.constants, *branch.producers()}
    names: dict[str, str] = {}
    for name in sorted(own):
        names[name] = graph.fresh(name)
        # A placeholder keeps `fresh` from giving the name away twice.
        if name in branch.constants:
            graph.constants[names[name]] = branch.constants[name]
            graph.types[names[name]] = branch.types[name]
    nodes = [renamed(inner, names) for inner in branch.nodes]
    for inner_out, out in zip(branch.outputs, node.outputs, strict=True):
        nodes.append(Node("Identity", [names.get(inner_out, inner_out)], [out], name=out))
    return nodes


def renamed(node: Node, names: dict[str, str]) -> Node:
    """Rename what a node reads and makes, also inside its bodies; returns the node."""
    for body in subgraphs(node):
        hidden = {*body.inputs, *body.constants, *body.producers()}
        inner = {k: v for k, v in names.items() if k not in hidden}
        body.nodes = [renamed(n, inner) for n in body.nodes]
        body.outputs = [inner.get(o, o) for o in body.outputs]
    node.inputs = [names.get(i, i) for i in node.inputs]
    node.outputs = [names.get(o, o) for o in node.outputs]
    return node


__all__ = ["Problems", "infer_graph", "infer_node", "symbolic"]
