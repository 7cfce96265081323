"""Weights larger than a GPU binds, in parts.

Every WebGPU device binds 128 MiB at once, some no more, and a language model's vocabulary is often
larger. So a GPU's steps see such a weight as several buffers, which are ranges of the same weight
space, and who reads it decides where it may be cut:

1. A product or convolution with packed columns is played once per part, each time for the columns
   of that part, into their places of the one output. Nothing is read or computed twice.
2. A product through a view is played once per part of its first batch axis.
3. An expression that loads single elements (a row of a table) finds the element in one of the
   parts, all of which its kernel binds.

It is done here, and not when a device is known, because then a bundle has one plan, whose kernels
are ordinary ones: no runtime knows of parts. A kernel binds 8 buffers at least, so that a table
gets at most 6 parts, which may exceed the limit; such a model needs a device that binds more, as
does a weight whose every reader wants it whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from ..codegen import scalar as sc
from ..codegen.scalar import Op, Scalar
from ..codegen.spec import PANEL, Attention, Conv, Matmul, Recurrent, Storage, View
from .cost import MAX_OPERANDS
from .finish import rewritten
from .index import shift_axes
from .values import BufferInfo, Emitted

_ANYWHERE = 0
_GRAIN = 64
"""Elements between places where a table may be cut: whole vec4s of every storage."""


def too_large(buffers: Sequence[BufferInfo], limit: int) -> dict[int, int]:
    """The weights of more than `limit` bytes, and how many those are."""
    sizes = {
        i: _elements(b) * b.storage.bytes for i, b in enumerate(buffers) if b.weight is not None
    }
    return {i: size for i, size in sizes.items() if size > limit}


def _elements(buffer: BufferInfo) -> int:
    assert isinstance(buffer.elements, int), "a weight has a known size"
    return buffer.elements


@dataclass(slots=True)
class _Cut:
    """Weights that are cut alike: into `parts` runs of `units` units, of `size[b]` elements each in
    buffer `b`."""

    units: int
    size: dict[int, int]
    parts: int

    def bounds(self) -> list[tuple[int, int]]:
        """The first unit of each part and the one past its last."""
        step = -(-self.units // self.parts)
        return [(i, min(i + step, self.units)) for i in range(0, self.units, step)]


def split(
    steps: Sequence[Emitted | None], buffers: list[BufferInfo], limit: int
) -> list[list[Emitted]]:
    """For each step those that a GPU plays in its place, none of which binds a weight of more than
    `limit` bytes where that can be had. Adds the parts to `buffers`."""
    cuts = _cuts(steps, buffers, too_large(buffers, limit), limit)
    made = _Parts(buffers, cuts)
    return [[] if step is None else list(made.of(step)) for step in steps]


# -- where to cut ----------------------------------------------------------------------------------


def _grains(step: Emitted, buffers: Sequence[BufferInfo]) -> Iterator[tuple[int, int | None]]:
    """(position, units) of each operand that is a weight: into how many units its reader lets it
    be cut; None: it wants it whole."""
    for position, buffer in enumerate(step.operands):
        if buffers[buffer].weight is not None:
            yield position, _grain(step, position, _elements(buffers[buffer]))


def _grain(step: Emitted, position: int, elements: int) -> int | None:
    spec = step.spec
    if isinstance(spec, Matmul):
        if 1 <= position < spec.weights:
            return _product_grain(spec, elements)
        return _ANYWHERE if position or spec.prologue is not None else None
    if isinstance(spec, Conv):
        whole = spec.groups > 1 or spec.depthwise or position == 0
        return _ANYWHERE if position > 1 else None if whole else -(-spec.cout // PANEL)
    if isinstance(spec, Attention):
        return _ANYWHERE if position > 2 or (position == 0 and spec.query is not None) else None
    return None if isinstance(spec, Recurrent) else _ANYWHERE


def _product_grain(spec: Matmul, elements: int) -> int | None:
    if spec.epilogue is not None or spec.statistics is not None:
        return None
    if spec.b is None:
        return -(-spec.n // PANEL) if isinstance(spec.n, int) else None
    if not spec.batch or not isinstance(spec.batch[0], int) or spec.b.offset != 0:
        return None
    return spec.batch[0] if spec.b.strides[0] * spec.batch[0] == elements else None


def _cuts(
    steps: Sequence[Emitted | None],
    buffers: Sequence[BufferInfo],
    large: Collection[int],
    limit: int,
) -> dict[int, _Cut]:
    """By buffer; what is read together by a product shares a cut."""
    if not large:
        return {}
    played = [step for step in steps if step is not None]
    grains: dict[int, set[int | None]] = {}
    together: dict[int, set[int]] = {}
    for step in played:
        for position, units in _grains(step, buffers):
            grains.setdefault(step.operands[position], set()).add(units)
        if isinstance(step.spec, Matmul):
            group = set(step.operands[1 : step.spec.weights])
            for buffer in group:
                together.setdefault(buffer, {buffer}).update(group)
    found: dict[int, _Cut] = {}
    for buffer in large:
        cut = _cut({b: _elements(buffers[b]) for b in together.get(buffer, {buffer})}, grains)
        if cut is None or any(b in found for b in cut.size):
            continue
        # Of the largest piece, in bytes of each.
        room = min(limit // (n * buffers[b].storage.bytes) for b, n in cut.size.items())
        if room:
            cut.parts = -(-cut.units // room)
            found.update(dict.fromkeys(cut.size, cut))
    for step in played:
        _fit(step, buffers, found)
    return {b: cut for b, cut in found.items() if cut.parts > 1}


def _cut(sizes: dict[int, int], grains: dict[int, set[int | None]]) -> _Cut | None:
    """Weights of so many elements in one part, if all their readers agree on units."""
    wanted = {units for b in sizes for units in grains.get(b, {None})} - {_ANYWHERE}
    if len(wanted) > 1 or None in wanted:
        return None
    for units in wanted:
        assert units is not None
        if all(n % units == 0 for n in sizes.values()):
            return _Cut(units, {b: n // units for b, n in sizes.items()}, 1)
        return None
    ((buffer, elements),) = sizes.items()
    return _Cut(-(-elements // _GRAIN), {buffer: _GRAIN}, 1)


def _fit(step: Emitted, buffers: Sequence[BufferInfo], cuts: dict[int, _Cut]) -> None:
    """Fewer and larger parts where a kernel could not bind them all."""
    tables = [
        cuts[step.operands[p]]
        for p, units in _grains(step, buffers)
        if units == _ANYWHERE and step.operands[p] in cuts
    ]
    # Int8 products have scratch beside what they read, others a second output.
    int8 = isinstance(step.spec, (Matmul, Conv)) and step.spec.operands[1] is Storage.I8
    room = MAX_OPERANDS - (step.kept is not None) - int8
    while len(step.operands) + sum(cut.parts - 1 for cut in tables) > room:
        most = max(tables, key=lambda cut: cut.parts, default=None)
        if most is None or most.parts == 1:
            return
        most.parts -= 1


# -- what is played then ---------------------------------------------------------------------------


class _Parts:
    def __init__(self, buffers: list[BufferInfo], cuts: dict[int, _Cut]) -> None:
        self.buffers, self.cuts = buffers, cuts
        self.parts: dict[int, list[int]] = {}
        for buffer, cut in cuts.items():
            whole, size = buffers[buffer], cut.size[buffer]
            end = _elements(whole)
            self.parts[buffer] = []
            for first, last in cut.bounds():
                count = min(last * size, end) - first * size
                part = dataclasses.replace(whole, elements=count, first=first * size)
                self.parts[buffer].append(len(buffers))
                buffers.append(part)

    def of(self, step: Emitted) -> Iterator[Emitted]:
        """What is played in place of a step."""
        grains = dict(_grains(step, self.buffers))
        cut = {p for p, buffer in enumerate(step.operands) if buffer in self.cuts}
        step = self._choosing(step, [p for p in sorted(cut) if grains[p] == _ANYWHERE])
        divided = [p for p in sorted(cut) if grains[p] != _ANYWHERE]
        if not divided:
            yield step
            return
        bounds = self.cuts[step.operands[divided[0]]].bounds()
        for number, (first, last) in enumerate(bounds):
            operands = list(step.operands)
            for position in divided:
                operands[position] = self.parts[operands[position]][number]
            yield self._share(step, tuple(operands), first, last, f"{number + 1}/{len(bounds)}")

    def _choosing(self, step: Emitted, positions: Sequence[int]) -> Emitted:
        """The step with each of these operands as parts, of which its loads choose."""
        if not positions:
            return step
        operands = list(step.operands)
        places: dict[int, list[tuple[int, int, int]]] = {}
        for position in positions:
            parts = self.parts[step.operands[position]]
            numbers = [position, *range(len(operands), len(operands) + len(parts) - 1)]
            operands[position] = parts[0]
            operands += parts[1:]
            infos = [self.buffers[part] for part in parts]
            places[position] = [
                (n, i.first, i.first + _elements(i)) for n, i in zip(numbers, infos, strict=True)
            ]

        def chosen(root: Scalar) -> Scalar:
            done: dict[Scalar, Scalar] = {}
            for node in sc.walk([root]):
                args = [done[a] for a in node.args]
                if node.op is Op.LOAD and int(node.value or 0) in places:
                    done[node] = _choice(places[int(node.value or 0)], args[0], node)
                else:
                    done[node] = sc.rebuild(node, args)
            return done[root]

        fields = rewritten(step.spec, chosen, lambda d: d)
        fields["operands"] = tuple(self.buffers[b].storage for b in operands)
        return dataclasses.replace(step, spec=type(step.spec)(**fields), operands=tuple(operands))

    @staticmethod
    def _share(
        step: Emitted, operands: tuple[int, ...], first: int, last: int, which: str
    ) -> Emitted:
        """The step for the units first .. last - 1 of the weight that `operands` has."""
        spec = step.spec
        label = f"{step.label} ({which})"
        if isinstance(spec, Conv):
            start, end = first * PANEL, min(last * PANEL, spec.cout)
            part = dataclasses.replace(
                spec,
                cout=end - start,
                out=_shifted(spec.out, 3, start),
                final=_from(spec.final, 3, start),
            )
            return dataclasses.replace(step, spec=part, operands=operands, label=label)
        assert isinstance(spec, Matmul)
        if spec.b is not None:
            part_ = dataclasses.replace(
                spec,
                batch=(last - first, *spec.batch[1:]),
                a=_shifted(spec.a, 0, first),
                out=_shifted(spec.out, 0, first),
                final=_from(spec.final, 0, first),
            )
            return dataclasses.replace(step, spec=part_, operands=operands, label=label)
        assert isinstance(spec.n, int)
        start, end = first * PANEL, min(last * PANEL, spec.n)
        prologue, kept = spec.prologue, step.kept
        if prologue is not None and first:
            # The first part has stored the rows that others read.
            prologue, kept = dataclasses.replace(prologue, keep=None), None
        part_ = dataclasses.replace(
            spec,
            n=end - start,
            out=_shifted(spec.out, 1, start),
            final=_from(spec.final, 1, start),
            prologue=prologue,
        )
        return dataclasses.replace(step, spec=part_, operands=operands, label=label, kept=kept)


def _choice(places: Sequence[tuple[int, int, int]], at: Scalar, node: Scalar) -> Scalar:
    """Element `at` of the parts (operand, first element, end) that make one weight."""
    found: Scalar | None = None
    for operand, first, end in reversed(places):
        inside = sc.binary(Op.MIN, at, sc.const(end - 1))
        if first:
            inside = sc.binary(Op.MAX, inside, sc.const(first)) - first
        here = sc.load(operand, inside, node.type)
        before = sc.binary(Op.LT, at, sc.const(end))
        found = here if found is None else sc.select(before, here, found)
    assert found is not None
    return found


def _shifted(view: View, axis: int, start: int) -> View:
    return View(view.strides, view.offset + view.strides[axis] * start)


def _from(final: Scalar, axis: int, start: int) -> Scalar:
    return shift_axes(final, lambda i: sc.axis(i) + (start if i == axis else 0))
