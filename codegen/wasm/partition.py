"""How a kernel divides its work among threads: contiguous shares, cut at tile boundaries."""

from __future__ import annotations

from .asm import Function, IntLike, Local, affine, imin


def share(
    f: Function, thread: Local, threads: Local, total: IntLike, tile: int = 1
) -> tuple[Local, Local]:
    """(start, end) of thread `thread`'s part of range(total), in new locals.

    Shares differ by at most one tile, are multiples of `tile` except at the end of the range, and
    may be empty (start >= end). `total` / `tile` * `threads` must stay below 2**31.
    """
    tiles = f.hold((affine(total) + (tile - 1)) // tile)
    start = f.value((thread * tiles) // threads * tile)
    end = f.value(((thread + 1) * tiles) // threads * tile)
    if tile > 1:
        bound = f.hold(total)
        f.assign(end, imin(end, bound))
    return start, end
