"""How a kernel divides its work among threads: contiguous shares, cut at tile boundaries, of which
a thread that is done takes over what is left of the others'.

Processors are not alike (a phone's are of two or three kinds), and other work takes one of them
away for milliseconds. With fixed shares all threads wait for the slowest one; so each share is cut
into a few pieces, and how many of them are taken is counted in memory that all see. A thread
takes those of its own share first: what it wrote before is in its own processor's cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .abi import COUNTS, LINE
from .asm import I32, Function, IntLike, Local, affine, imax, imin

PIECES = 8
"""Of a share. More waste less time at the end of a step, and cost an atomic addition each."""


def share(f: Function, thread: Local, threads: Local, tiles: IntLike) -> tuple[Local, Local]:
    """(start, end) of thread `thread`'s part of range(tiles), in new locals. May be empty.

    `tiles` * `threads` must stay below 2**31.
    """
    start = f.value((thread * tiles) // threads)
    return start, f.value(((thread + 1) * tiles) // threads)


@contextmanager
def shares(
    f: Function, thread: Local, threads: Local, total: IntLike, tile: int = 1, least: IntLike = 1
) -> Iterator[tuple[Local, Local]]:
    """The code inside runs for each part of range(total) that this thread does, never for an
    empty one. It gets (start, end) of the part and may change `start`.

    Parts are multiples of `tile` except at the end of the range, and at least `least` tiles if
    possible. Shares differ by at most one tile.
    """
    tiles = f.hold((affine(total) + (tile - 1)) // tile)
    if not f.module.target.threads:
        start, end = share(f, thread, threads, tiles)
        with _part(f, start, end, total, tile):
            yield start, end
        return
    # Where this step's pieces are counted; 0 where nobody counts, as for a kernel on its own.
    counts = f.local(I32)
    f.global_get(COUNTS)
    f.set(counts)
    whose, others = f.value(thread), f.value(threads)
    with f.block() as done, f.loop() as again:
        start, end = share(f, whose, threads, tiles)
        f.push(counts)
        with f.if_(), f.scope():
            each = f.value((end - start + (PIECES - 1)) // PIECES)
            f.assign(each, imax(each, least))
            f.push(counts + whose * LINE, 1)
            f.i32_atomic_rmw_add()
            taken = f.local(I32)
            f.set(taken)
            f.assign(start, start + taken * each)
            f.push(start, end)
            f.i32_ge_s()
            with f.if_():
                # Nothing left of this share: on to the next thread's.
                f.push(others - 1)
                f.tee(others)
                f.i32_eqz()
                f.br_if(done)
                f.assign(whose, whose + 1)
                f.push(whose, 0, whose, threads)
                f.i32_lt_s()
                f.select()
                f.set(whose)
                f.br(again)
            f.assign(each, start + each)
            f.assign(end, imin(each, end))
        with _part(f, start, end, total, tile):
            yield start, end
        f.push(counts)
        f.br_if(again)


@contextmanager
def _part(f: Function, start: Local, end: Local, total: IntLike, tile: int) -> Iterator[None]:
    """Tiles as what they are made of, and nothing if there are none."""
    if tile > 1:
        f.assign(start, start * tile)
        f.assign(end, end * tile)
        f.assign(end, imin(end, f.hold(total)))
    f.push(start, end)
    f.i32_lt_s()
    with f.if_():
        yield
