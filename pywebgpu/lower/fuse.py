"""What a GPU does in fewer kernels: a product makes its left operand as it reads it.

On a GPU a kernel's launch costs as much as a small kernel's work, so that normalising rows, turning
a query, or multiplying a gate into its values is better done again by each workgroup that reads the
result than once by a kernel of its own. On a CPU it is the other way round. So the program is
lowered once, and this gives a GPU's version of it, over the same buffers:

1. A `Row` (layer or RMS normalisation) of what a product wrote becomes part of that product. Where
   its sums are no longer than its rows, these are short, and a product reads the result, it stores
   statistics beside its values, and that product normalises them as it reads them: a prologue,
   which stores the result if others want it. Where they are longer, or nobody takes them so, it
   becomes the epilogue: the second pass, which adds up the parts of the k axis, has whole rows.
   Where others read the product's own values, as the residual of a pre-norm layer, it stores them
   too.
2. A `Row` of few rows whose first reader is a product that takes it as its left operand becomes
   that product's prologue. Where others read it later, the product stores it too. Every column of
   workgroups takes the statistics again, which costs more than a kernel where the rows are many.
3. A `Map` whose only reader is a product's left operand, and whose loads run along with it, becomes
   the prologue.
4. A `Map` whose only reader takes it as an attention's query becomes the query.
5. Of what is left, two `Map`s that store alike and could run side by side become one with two
   outputs: the longer caches of keys and of values, cosines and sines.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

from ..codegen import scalar as sc
from ..codegen.dims import Dim, substitute, symbol
from ..codegen.scalar import Op, Scalar, Type
from ..codegen.spec import (
    STATISTICS,
    Attention,
    Beside,
    Epilogue,
    KernelSpec,
    Map,
    Matmul,
    Prologue,
    Row,
    RowOp,
    Storage,
    View,
)
from .cost import MAX_OPERANDS, loads
from .finish import close, rewritten
from .index import Space, shift_axes, unravel
from .values import BufferInfo, Emitted

_NORMS = (RowOp.LAYER, RowOp.RMS)
_FEW_ROWS = 8
_LONGEST_MEASURED = 512
"""Of rows with statistics beside them. On an H100 a layer of 384 columns takes as long as with the
epilogue, in a kernel less; of 768 columns 18 us longer than its 290: the product that normalises
does so again in every column of workgroups, and the one that measures cannot divide its sums."""
_LONGEST_ROW = 8192  # elements that a workgroup holds in registers
_FLOATS = (Storage.F32, Storage.F16)


def fuse(
    steps: Sequence[Emitted],
    buffers: list[BufferInfo],
    large: Collection[int] = (),
    *,
    statistics: bool = True,
) -> list[Emitted | None]:
    """For each step what a GPU plays in its place: the same, another one, or nothing.

    Adds buffers for statistics. `statistics` False: products store none (to measure by).
    large: weights that are to be split: products of them compute parts of rows, and normalise none.
    """
    return _Fusion(steps, buffers, large, statistics).run()


class _Fusion:
    def __init__(
        self,
        steps: Sequence[Emitted],
        buffers: list[BufferInfo],
        large: Collection[int],
        statistics: bool,
    ) -> None:
        self.buffers, self.large, self.statistics = buffers, large, statistics
        self.steps: list[Emitted | None] = list(steps)
        self.sizes: list[Dim] = []  # the program's arguments: those of all steps
        self.writers: dict[int, list[int]] = {}
        self.readers: dict[int, list[int]] = {}
        for i, step in enumerate(steps):
            self.writers.setdefault(step.output, []).append(i)
            for buffer in dict.fromkeys(step.operands):
                self.readers.setdefault(buffer, []).append(i)

    def run(self) -> list[Emitted | None]:
        for i, step in enumerate(self.steps):
            if step is None:
                continue
            made = self._measured(i, step) or self._finished(i, step) or self._absorbed(i, step)
            for other, fused in made.items():
                self.steps[i] = None
                self.steps[other] = fused
        self._pair_maps()
        return self.steps

    def _pair_maps(self) -> None:
        """Join each `Map` with the first one before it that it may move up to."""
        written: dict[int, list[int]] = {}
        for i, step in enumerate(self.steps):
            for buffer in () if step is None else (step.output, step.kept):
                if buffer is not None:
                    written.setdefault(buffer, []).append(i)
        alone: list[tuple[int, Map]] = []
        for i, step in enumerate(self.steps):
            if step is None or not isinstance(step.spec, Map) or written[step.output] != [i]:
                continue
            spec = self._opened(step)
            assert isinstance(spec, Map)
            ready = max((w for b in step.operands for w in written.get(b, [])), default=-1)
            for number, (earlier, first) in enumerate(alone):
                joined = self._joined(earlier, first, step, spec) if ready < earlier else None
                if joined is not None:
                    self.steps[earlier], self.steps[i] = joined, None
                    written[step.output] = [earlier]
                    del alone[number]
                    break
            else:
                alone.append((i, spec))

    def _joined(self, earlier: int, first: Map, step: Emitted, spec: Map) -> Emitted | None:
        before = self.steps[earlier]
        assert before is not None
        if (first.shape, first.index) != (spec.shape, spec.index):
            return None
        both = dataclasses.replace(first, beside=Beside(spec.value, spec.output))
        made, operands, arguments = close(both, (), lambda b: self.buffers[b].storage)
        if len(operands) >= MAX_OPERANDS:
            return None
        args = tuple(self.sizes[a] for a in arguments)
        label = f"{before.label} | {step.label}"
        return Emitted(made, tuple(operands), before.output, args, label, step.output)

    def _normalised_product(self, number: int, step: Emitted) -> tuple[int, Row, Matmul] | None:
        """The product that alone wrote the rows which a step normalises, and where it is."""
        if not isinstance(step.spec, Row) or step.spec.op not in _NORMS:
            return None
        source = self._opened(step)
        assert isinstance(source, Row)
        made = source.value
        if made.op is not Op.LOAD or self.writers[step.output] != [number]:
            return None
        buffer = int(made.value or 0)
        writers = self.writers.get(buffer, [])
        target = self.steps[writers[0]] if len(writers) == 1 and writers[0] < number else None
        if target is None or not isinstance(target.spec, Matmul) or target.output != buffer:
            return None
        if target.operands[1] in self.large:
            return None
        product = self._opened(target)
        assert isinstance(product, Matmul)
        return (writers[0], source, product) if self._normalises(source, product) else None

    def _measured(self, number: int, step: Emitted) -> dict[int, Emitted]:
        """The product whose rows a step normalises, made to store their statistics, and the product
        that reads the step's result, made to normalise with them."""
        found = self._normalised_product(number, step) if self.statistics else None
        if found is None or not self.readers.get(step.output):
            return {}
        writer, source, product = found
        reader = self.readers[step.output][0]
        target, other = self.steps[writer], self.steps[reader]
        assert target is not None
        assert isinstance(product.n, int)
        short = isinstance(product.k, int) and product.k <= product.n <= _LONGEST_MEASURED
        if not short or product.n % STATISTICS != 0 or target.kept is not None:
            return {}
        if other is None or reader < number or not isinstance(other.spec, Matmul):
            return {}
        keep = len(self.readers[step.output]) > 1 or self.buffers[step.output].port
        taken = self._opened(other)
        assert isinstance(taken, Matmul)
        fused = self._normalised(source, taken, step.output, keep)
        if fused is None or other.operands[0] != step.output:
            return {}
        if other.operands.count(step.output) != 1:
            return {}
        pieces = product.n // STATISTICS
        assert fused.prologue is not None
        first = sc.load(len(self.buffers), sc.axis(0) * (2 * pieces))
        fused = dataclasses.replace(
            fused, prologue=dataclasses.replace(fused.prologue, statistics=first)
        )
        names = {f"a{i}": size for i, size in enumerate(self.sizes)}
        rows = substitute(product.m, names)
        self.buffers.append(BufferInfo(Storage.F32, rows * (2 * pieces)))
        kept = step.output if keep else None
        made = self._closed_prologue(fused, step, other, kept)
        if made is None:
            self.buffers.pop()
            return {}
        assert isinstance(target.spec, Matmul)
        spec = dataclasses.replace(target.spec, statistics=source.op)
        buffer = int(source.value.value or 0)
        self.readers[buffer] = sorted({*self.readers[buffer], reader} - {number})
        self.writers[step.output] = [reader] if keep else []
        measured = dataclasses.replace(
            target, spec=spec, label=f"{target.label} + statistics", kept=len(self.buffers) - 1
        )
        return {writer: measured, reader: made}

    def _finished(self, number: int, step: Emitted) -> dict[int, Emitted]:
        """The product whose rows a step normalises, made to do that as well."""
        found = self._normalised_product(number, step)
        if found is None:
            return {}
        writer, source, product = found
        target = self.steps[writer]
        assert target is not None
        assert isinstance(target.spec, Matmul)
        buffer = int(source.value.value or 0)
        early = all(w < writer for b in loads(source.final) for w in self.writers.get(b, []))
        keep = len(self.readers[buffer]) > 1 or self.buffers[buffer].port
        if not early or (keep and target.kept is not None):
            return {}
        fused = dataclasses.replace(
            product,
            output=source.output,
            epilogue=Epilogue(
                source.op, source.eps, source.final, product.output if keep else None
            ),
        )
        # The product's own operands keep their places.
        first = target.spec.prologue is not None
        fixed = target.operands[: product.weights]
        spec, operands, arguments = close(fused, fixed, lambda b: self.buffers[b].storage, first)
        if len(operands) + (keep or target.kept is not None) > MAX_OPERANDS:
            return {}
        args = tuple(self.sizes[a] for a in arguments)
        label = f"{target.label} + {step.label}"
        kept = buffer if keep else target.kept
        return {writer: Emitted(spec, tuple(operands), step.output, args, label, kept)}

    @staticmethod
    def _normalises(source: Row, product: Matmul) -> bool:
        """Every row of a product with a packed matrix, of floats or in blocks, that it stores
        row-major."""
        n = product.n
        if len(source.shape) != 1 or len(source.row) != 1 or not isinstance(n, int):
            return False
        whole = View((n, 1))
        space = Space((product.m, n))
        few = isinstance(product.m, int) and product.m <= _FEW_ROWS
        return (
            not few
            and n % 4 == 0
            and n <= _LONGEST_ROW
            and (source.shape[0], source.row[0]) == (product.m, n)
            and not product.batch
            and product.b is None
            and product.epilogue is None
            and product.statistics is None
            and (product.blocks is not None or product.operands[1] in _FLOATS)
            and all(s in _FLOATS for s in (product.operands[0], product.output, source.output))
            and _same(product.out, whole, product.m)
            and _same(space.view(source.value.args[0]), whole, product.m)
            and _same(space.view(source.index), whole, product.m)
        )

    def _absorbed(self, number: int, step: Emitted) -> dict[int, Emitted]:
        """The first reader of a step's result, made to do that step as well."""
        made, readers = step.output, self.readers.get(step.output, [])
        if self.writers[made] != [number] or not readers or readers[0] < number:
            return {}
        target = self.steps[readers[0]]
        assert target is not None, "steps are absorbed by later ones"
        # The second output is one more buffer, and a port is wanted whoever reads it.
        keep = len(readers) > 1 or self.buffers[made].port
        if target.operands.count(made) != 1 or target.operands[0] != made:
            return {}
        source, reader = self._opened(step), self._opened(target)
        fused: KernelSpec | None = None
        if isinstance(source, Row) and isinstance(reader, Matmul):
            few = isinstance(reader.m, int) and reader.m <= _FEW_ROWS
            fused = self._normalised(source, reader, made, keep) if few else None
        elif isinstance(source, Map) and not keep and self._plain(source):
            if isinstance(reader, Matmul):
                fused = self._computed(source, reader, made)
            elif isinstance(reader, Attention):
                fused = self._queried(source, reader)
        kept = made if keep else None
        whole = None if fused is None else self._closed_prologue(fused, step, target, kept)
        return {} if whole is None else {readers[0]: whole}

    def _closed_prologue(
        self, fused: KernelSpec, step: Emitted, target: Emitted, kept: int | None
    ) -> Emitted | None:
        """The call of `target` that does what `step` did; None where it has too many operands."""
        first = next(iter(loads(*self._inner(fused))), None)
        if first is None:
            return None
        fixed = [first, *self._fixed(target)]
        spec, operands, arguments = close(fused, fixed, lambda b: self.buffers[b].storage, True)
        if kept is not None and target.kept is not None:
            return None
        kept = target.kept if kept is None else kept
        if len(operands) + (kept is not None) > MAX_OPERANDS:
            return None
        args = tuple(self.sizes[a] for a in arguments)
        label = f"{step.label} + {target.label}"
        return Emitted(spec, tuple(operands), target.output, args, label, kept)

    @staticmethod
    def _inner(spec: KernelSpec) -> list[Scalar]:
        """The expressions that say what operand 0 was."""
        if isinstance(spec, Matmul) and spec.prologue is not None:
            return [spec.prologue.value, spec.prologue.final]
        assert isinstance(spec, Attention)
        assert spec.query is not None
        return [spec.query]

    @staticmethod
    def _fixed(target: Emitted) -> tuple[int, ...]:
        """The operands after the first that have their place."""
        if isinstance(target.spec, Matmul):
            return target.operands[1 : target.spec.weights]
        return target.operands[1:3]

    # -- specs over the program's buffers and arguments ------------------------------------------

    def _opened(self, step: Emitted) -> KernelSpec:
        """The spec with the program's numbers for its operands and arguments."""
        names: dict[str, Dim] = {}
        numbers: list[int] = []
        for i, size in enumerate(step.args):
            if size not in self.sizes:
                self.sizes.append(size)
            numbers.append(self.sizes.index(size))
            names[f"a{i}"] = symbol(f"a{numbers[-1]}")

        def scalar(root: Scalar) -> Scalar:
            def renamed(node: Scalar) -> Scalar | None:
                return sc.arg(numbers[int(node.value or 0)]) if node.op is Op.ARG else None

            done: dict[Scalar, Scalar] = {}
            for node in sc.walk([root]):
                if node.op is Op.LOAD:
                    buffer = step.operands[int(node.value or 0)]
                    done[node] = sc.load(buffer, done[node.args[0]], node.type)
                else:
                    done[node] = renamed(node) or sc.rebuild(node, [done[a] for a in node.args])
            return done[root]

        fields = rewritten(step.spec, scalar, lambda d: substitute(d, names))
        return type(step.spec)(**fields)

    # -- the three cases -------------------------------------------------------------------------

    def _takes(self, reader: Matmul, made: int) -> bool:
        """A product with a packed matrix, of floats or in blocks, that reads a whole row-major left
        operand of floats."""
        return (
            not reader.batch
            and reader.b is None
            and reader.prologue is None
            and made not in loads(reader.final)
            and all(s in _FLOATS for s in reader.operands if s is not Storage.I8)
            and (reader.blocks is not None or reader.operands[1] is not Storage.I8)
        )

    def _normalised(self, source: Row, reader: Matmul, made: int, keep: bool) -> Matmul | None:
        if source.op not in _NORMS or len(source.shape) != 1 or len(source.row) != 1:
            return None
        (m,), (k,) = source.shape, source.row
        space = Space((m, k))
        whole = View((k, 1))
        fits = reader.m == m and reader.k == k and _same(reader.a, whole, m)
        if not (fits and self._takes(reader, made) and _same(space.view(source.index), whole, m)):
            return None
        if source.output not in _FLOATS:
            return None
        prologue = Prologue(
            source.value, source.final, source.op, source.eps, source.output if keep else None
        )
        return dataclasses.replace(reader, prologue=prologue)

    @staticmethod
    def _plain(source: Map) -> bool:
        """Stores floats in row-major order."""
        if source.output not in _FLOATS or source.value.type is not Type.F32:
            return False
        space = Space(source.shape)
        return space.simplify(source.index) is space.simplify(sc.linear(space.axes, source.shape))

    def _computed(self, source: Map, reader: Matmul, made: int) -> Matmul | None:
        if not self._takes(reader, made):
            return None
        space = Space((reader.m, reader.k))
        value = _at(source, space, reader.a)
        for node in sc.walk([value]):
            if node.op is Op.LOAD:
                view = space.view(node.args[0])
                if view is None or view.strides[1] not in (0, 1):
                    return None
        return dataclasses.replace(reader, prologue=Prologue(value, sc.acc()))

    @staticmethod
    def _queried(source: Map, reader: Attention) -> Attention | None:
        if reader.query is not None:
            return None
        space = Space((reader.batch, reader.heads, reader.q_len, reader.head_dim))
        return dataclasses.replace(reader, query=_at(source, space, reader.q))


def _at(source: Map, space: Space, view: View) -> Scalar:
    """The map's value at the element that a view reads."""
    flat = sc.dim(view.offset)
    for axis, stride in zip(space.axes, view.strides, strict=True):
        flat = flat + axis * sc.dim(stride)
    coordinates = unravel(space.simplify(flat), source.shape)
    value = shift_axes(source.value, lambda i: coordinates[i])
    return space.simplify(value)


def _same(view: View | None, wanted: View, rows: Dim) -> bool:
    """Equal strides; a single row's stride does not matter."""
    if view is None or view.offset != wanted.offset:
        return False
    skip = 1 if rows == 1 else 0
    return view.strides[skip:] == wanted.strides[skip:]
