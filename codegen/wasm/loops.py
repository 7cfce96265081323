"""The frame around the pointwise families: who does what, and the walk over the outer axes.

A kernel has an entry function, which takes its thread's share and walks over it, and an inner
function, called for each piece, in which the loops over elements are. Engines optimise a function
after a number of calls, so the pieces are kept small enough for many calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from ..dims import Dim
from ..spec import KernelSpec, family
from .asm import I32, Function, IntLike, Local, Module, affine
from .partition import shares
from .product import size
from .scalar import Lanes

PIECE = 4096
"""About so many elements are computed per call of an inner function."""


@dataclass(frozen=True, slots=True)
class Frame:
    """The parameters of a kernel's entry function or of one of its inner functions."""

    f: Function
    operands: list[Local]
    output: Local
    args: list[Local]
    own: list[Local]
    """An inner function's further parameters."""
    thread: Local
    threads: Local
    scratch: Local

    def size(self, dim: Dim) -> IntLike:
        """A size of the spec as an integer of this function."""
        return size(dim, self.args)

    def lanes(self, spec: KernelSpec, **options: object) -> Lanes:
        """Expressions over the spec's operands and arguments in this function."""
        operands = list(zip(self.operands, spec.operands, strict=True))
        return Lanes(self.f, operands, self.args, **options)  # type: ignore[arg-type]

    def call(self, inner: Frame, *own: IntLike) -> None:
        """Call an inner function of the same kernel."""
        self.f.push(self.scratch, *self.operands, self.output, *self.args, *own)
        self.f.call(inner.f)


def entry(module: Module, spec: KernelSpec) -> Frame:
    """The function with the calling convention of docs/design.md."""
    n = len(spec.operands)
    f = module.function(family(spec), [I32] * (4 + n + spec.n_args))
    p = f.params
    return Frame(f, p[2 : 2 + n], p[2 + n], p[4 + n :], [], p[0], p[1], p[3 + n])


def inner(module: Module, spec: KernelSpec, own: int, name: str = "inner") -> Frame:
    """A function that gets all buffers and arguments, and `own` integers more."""
    n = len(spec.operands)
    f = module.function(f"{family(spec)}_{name}", [I32] * (2 + n + spec.n_args + own))
    p = f.params
    args = p[2 + n : 2 + n + spec.n_args]
    return Frame(f, p[1 : 1 + n], p[1 + n], args, p[2 + n + spec.n_args :], p[0], p[0], p[0])


def walk(
    frame: Frame,
    sizes: Sequence[IntLike],
    body: Callable[[Sequence[IntLike]], None],
    otherwise_empty: IntLike = 1,
) -> None:
    """Call `body` with each coordinate of this thread's share of a space, in row-major order.

    The first coordinate is found by division, the next ones by counting. Nothing is done when a
    size, or `otherwise_empty`, is 0.
    """
    f = frame.f
    held = [f.hold(s) for s in sizes]
    total: IntLike = 1
    for s in held:
        total = f.hold(affine(total) * s)
    if not isinstance(otherwise_empty, int) or otherwise_empty <= 0:
        f.push(otherwise_empty)
        f.i32_eqz()
        with f.if_():
            f.return_()
    with shares(f, frame.thread, frame.threads, total) as (at, end):
        _count(f, at, end, held, body)


def _count(
    f: Function,
    at: Local,
    end: Local,
    held: Sequence[int | Local],
    body: Callable[[Sequence[IntLike]], None],
) -> None:
    """Call `body` with the coordinates of the places `at` to `end` of a space of such sizes."""
    coordinates: list[IntLike] = [0] * len(held)
    counted = [i for i, s in enumerate(held) if s != 1]
    if len(counted) == 1:
        with f.loop_range(at, None, end):
            coordinates[counted[0]] = at
            body(coordinates)
        return
    rest = f.value(at)
    for i in reversed(counted):
        # The outermost needs no remainder.
        counter = f.local(I32)
        coordinates[i] = counter
        f.assign(counter, rest if i == counted[0] else rest % held[i])
        if i != counted[0]:
            f.assign(rest, rest // held[i])
    with f.loop_range(at, None, end):
        body(coordinates)
        with f.block() as counted_on:
            for i in reversed(counted):
                c = coordinates[i]
                assert isinstance(c, Local)
                f.assign(c, c + 1)
                if i != counted[0]:
                    f.push(c, held[i])
                    f.i32_lt_s()
                    f.br_if(counted_on)
                    f.assign(c, 0)


def pieces(total: Dim, per_step: Dim, tile: int = 1) -> int:
    """How many steps of an axis an inner function takes, if each step is `per_step` elements.

    A multiple of `tile`; all of a short axis.
    """
    each = per_step if isinstance(per_step, int) else 128
    steps = max(1, PIECE // max(1, each))
    if isinstance(total, int) and total <= steps:
        return max(1, total)
    return max(tile, steps // tile * tile)


@contextmanager
def nested(
    frame: Frame, axes: Sequence[tuple[int, Dim]], *lanes: Lanes
) -> Iterator[dict[int, IntLike]]:
    """Loops over whole axes, outermost first, with a level of each of `lanes` in every loop.

    Yields the coordinates.
    """
    f = frame.f
    coordinates: dict[int, IntLike] = {}
    ends = [f.hold(frame.size(size)) for _, size in axes]
    with ExitStack() as stack:
        for (axis, _), end in zip(axes, ends, strict=True):
            i = f.local(I32)
            coordinates[axis] = i
            stack.enter_context(f.loop_range(i, 0, end))
            for each in lanes:
                stack.enter_context(each.level({axis: i}))
        yield coordinates


def fold_lanes(f: Function, vector: Local, combine: Callable[[Function], None]) -> None:
    """Lane 0 of `vector` = its four lanes combined; the other lanes then hold nothing useful."""
    for lanes in ((2, 3, 2, 3), (1, 1, 1, 1)):
        f.get(vector, vector, vector)
        f.i32x4_shuffle(*lanes)
        combine(f)
        f.set(vector)


def spread_lane(f: Function, vector: Local) -> None:
    """All lanes of `vector` = its lane 0."""
    f.get(vector, vector)
    f.i32x4_shuffle(0, 0, 0, 0)
    f.set(vector)


def remainder(size: Dim, width: int) -> int:
    """Elements left over after steps of `width`; if not known, the most there can be."""
    return size % width if isinstance(size, int) else width - 1
