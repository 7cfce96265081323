"""Gathers whose indices are positions: what they do is reshape, slice or broadcast.

1. GatherND whose index tuple counts along axes of the output, one axis of the data each.
2. Gather of rows b, b + 1, ...: a Slice. Gather by the row-major number of its own index: a
   Reshape.
"""

from __future__ import annotations

import numpy as np

from ..codegen.dims import Dim, product
from ..graph import Graph, Node, Shape
from ..infer import symbolic
from ..infer.registry import Site
from .affine import affine
from .edit import Affine, Editor


def simplify_gathers(graph: Graph) -> bool:
    edit = Editor(graph)
    for node in edit.sweep():
        if node.domain:
            continue
        if node.op == "GatherND" and not node.attrs.get("batch_dims", 0):
            _gather_nd(edit, node)
        elif node.op == "Gather":
            _gather(edit, node)
    return edit.finish()


def _gather_nd(edit: Editor, node: Node) -> bool:
    data, index = node.inputs
    concat = edit.producer(index, "Concat")
    shape, out = edit.shape(data), edit.shape(node.outputs[0])
    lead = len(edit.shape(index)) - 1
    if concat is None or concat.attrs["axis"] % (lead + 1) != lead:
        return False
    if any(edit.shape(part)[-1] != 1 for part in concat.inputs):
        return False
    places: list[int] = []
    for axis, part in enumerate(concat.inputs):
        found = affine(edit, part)
        place = _counts(found, out[:lead], shape[axis]) if found is not None else None
        if place is None or place in places:
            return False
        places.append(place)
    depth = len(places)
    order = sorted(range(depth), key=lambda i: places[i])
    source = data
    if order != list(range(depth)):
        source = edit.insert("Transpose", [data], perm=[*order, *range(depth, len(shape))])
    spread: list[Dim] = [1] * lead
    for axis, place in enumerate(places):
        spread[place] = shape[axis]
    return _finish(edit, node, source, (*spread, *shape[depth:]))


def _counts(found: Affine, out: Shape, size: Dim) -> int | None:
    """The axis of `out` along which an index counts 0, 1, ... up to `size`."""
    moving = [i for i, s in enumerate(found.steps[: len(out)]) if s != 0]
    if found.base != 0 or len(moving) != 1 or found.steps[moving[0]] != 1:
        return None
    return moving[0] if out[moving[0]] == size else None


def _finish(edit: Editor, node: Node, source: str, shape: Shape) -> bool:
    """The output is `source` with another shape, broadcast."""
    out = edit.shape(node.outputs[0])
    if product(shape) == product(out):
        edit.become(node, "Reshape", [source, edit.sizes(out)], allowzero=1)
    else:
        edit.become(node, "Expand", [edit.reshape(source, shape), edit.sizes(out)])
    return True


def _gather(edit: Editor, node: Node) -> bool:
    data, index = node.inputs
    shape, where = edit.shape(data), edit.shape(index)
    axis = node.attrs.get("axis", 0) % len(shape)
    found = affine(edit, index)
    if found is None or not symbolic.at_least(found.base, 0):
        return False
    if _is_row_major(found, where) and product(where) == shape[axis]:
        out = edit.shape(node.outputs[0])
        edit.become(node, "Reshape", [data, edit.sizes(out)], allowzero=1)
        return True
    moving = [i for i, s in enumerate(found.steps) if s != 0]
    if not moving:
        return _one_row(edit, node, axis, found.base)
    if len(moving) != 1 or found.steps[moving[0]] != 1:
        return False
    count = where[moving[0]]
    # An index past the end would be an error, so the runtime must see to it that there is none.
    end = found.base + count
    Site(edit.graph, node).same(symbolic.smallest(end, shape[axis]), end)
    number = edit.graph.add_constant("axis", np.array([axis], dtype=np.int64))
    source = data
    if found.base != 0 or count != shape[axis]:
        source = edit.insert(
            "Slice", [data, edit.sizes([found.base]), edit.sizes([end]), number], stem=data
        )
    middle: list[Dim] = [1] * len(where)
    middle[moving[0]] = edit.shape(source)[axis]
    return _finish(edit, node, source, (*shape[:axis], *middle, *shape[axis + 1 :]))


def _one_row(edit: Editor, node: Node, axis: int, row: Dim) -> bool:
    """The same row everywhere."""
    data, index = node.inputs
    shape = edit.shape(data)
    size = shape[axis]
    if not isinstance(row, int) or not isinstance(size, int) or row >= size:
        return False
    number = edit.graph.add_constant("axis", np.array([axis], dtype=np.int64))
    source = edit.insert(
        "Slice", [data, edit.sizes([row]), edit.sizes([row + 1]), number], stem=data
    )
    ones: list[Dim] = [1] * len(edit.shape(index))
    return _finish(edit, node, source, (*shape[:axis], *ones, *shape[axis + 1 :]))


def _is_row_major(found: Affine, shape: Shape) -> bool:
    """Whether the elements count 0, 1, 2, ... in order."""
    if found.base != 0:
        return False
    step: Dim = 1
    for size, have in zip(shape[::-1], found.steps[::-1], strict=True):
        if size != 1:
            if have != step:
                return False
            step = step * size
    return True
