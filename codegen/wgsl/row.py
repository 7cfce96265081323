"""Row: softmax and normalisations: statistics of a row, then every element of it."""

from __future__ import annotations

from dataclasses import dataclass

from .. import scalar as sc
from ..caps import WgslCaps
from ..coalesce import coalesce
from ..dims import ceildiv, product
from ..scalar import Type
from ..spec import Row, RowOp
from .kernel import WgslKernel
from .module import Module, dim_text, fold_grid, size_of, unravel
from .reduce import walks_inner
from .scalar import literal

_MOST_KEPT = 16
"""Elements of a row that a thread keeps in registers between the passes."""


@dataclass(frozen=True, slots=True)
class Knobs:
    rows: int  # per workgroup
    threads: int  # that share one row; a power of two
    rows_first: bool  # neighbouring threads work on neighbouring rows, else along one row
    kept: int  # elements per thread kept in registers; 0: computed again in every pass


@dataclass(frozen=True, slots=True)
class Fields:
    """What the template sees. Statements have `v` (an element) and `a`, `b` (statistics)."""

    head: str
    rows: int
    threads: int
    rows_first: bool
    shared: bool
    kept: int
    count: str
    coordinates: list[str]
    row_count: str
    row_coordinates: list[str]
    value_call: str
    put_call: str
    first_identity: str  # statistic a = join over the row of `first`
    first: str
    first_join: str
    first_end: str
    two: bool  # whether there is a second statistic b
    second_identity: str
    second: str
    second_end: str
    result: str


# op: identity of a, a's step, its join, its end, b's step (from v and a), its end, the result
_OPS: dict[RowOp, tuple[float, str, str, str, str, str, str]] = {
    RowOp.SOFTMAX: (float("-inf"), "v", "max(x, y)", "x",
                    "exp(v - a)", "1.0f / x", "exp(v - a) * b"),
    RowOp.LOG_SOFTMAX: (float("-inf"), "v", "max(x, y)", "x",
                        "exp(v - a)", "log(x)", "(v - a) - b"),
    RowOp.LAYER: (0.0, "v", "x + y", "x / f32(length)",
                  "(v - a) * (v - a)", "inverseSqrt(x / f32(length) + EPS)", "(v - a) * b"),
    RowOp.RMS: (0.0, "v * v", "x + y", "inverseSqrt(x / f32(length) + EPS)", "", "", "v * a"),
}  # fmt: skip


def space(spec: Row, caps: WgslCaps) -> list[Knobs]:
    """Threads lie along the row, or across rows where that is the contiguous direction."""
    spec = coalesce(spec)
    length, rows = product(spec.row), product(spec.shape)
    along = walks_inner(spec.value, len(spec.shape), len(spec.row))
    wide = min(256, caps.max_invocations)
    pairs: list[tuple[int, int, bool]]
    if isinstance(length, int) and length <= 32:
        pairs = [(64, 1, True), (wide, 1, True), (wide // 8, 8, False), (16, 4, False)]
    elif along:
        small = isinstance(length, int) and length <= 256
        one = [(1, 64, False), (1, wide // 2, False), (1, wide, False)]
        pairs = one if small else [one[2], one[1], one[0]]
        pairs += [(wide // 32, 32, False), (wide // 16, 16, False), (wide // 8, 8, False)]
    else:
        pairs = [(16, wide // 16, True), (32, wide // 32, True), (8, wide // 8, True),
                 (4, wide // 4, True), (64, 1, True), (1, wide, False)]  # fmt: skip
        if isinstance(rows, int) and rows < 64:
            pairs = [pairs[2], pairs[3], pairs[0], pairs[1], pairs[5]]
    found = []
    for n, threads, rows_first in pairs:
        kept = ceildiv(length, threads)
        if isinstance(kept, int) and 0 < kept <= _MOST_KEPT:
            found.append(Knobs(n, threads, rows_first, kept))
        found.append(Knobs(n, threads, rows_first, 0))
    return found


def render(spec: Row, knobs: Knobs) -> WgslKernel:
    spec = coalesce(spec)
    module = Module(spec.operands, spec.output, spec.n_args)
    outer = [f"i{n}" for n in range(len(spec.shape))]
    inner = [f"r{n}" for n in range(len(spec.row))]
    axes = [*outer, *inner]
    params = {sc.axis(i): (name, "i32") for i, name in enumerate(axes)}
    module.function("value_at", params, spec.value)
    module.puts(spec.final, spec.index, axes, Type.F32)
    identity, first, join, end, second, second_end, result = _OPS[spec.op]
    eps = literal(sc.const(spec.eps).value, Type.F32, module.helpers)
    first_identity = literal(identity, Type.F32, module.helpers)
    fields = Fields(
        head=f"{module.head()}\n\nconst EPS = {eps};",
        rows=knobs.rows,
        threads=knobs.threads,
        rows_first=knobs.rows_first,
        shared=knobs.threads > 1,
        kept=knobs.kept,
        count=size_of(spec.shape),
        coordinates=unravel("number", spec.shape, outer),
        row_count=dim_text(product(spec.row)),
        row_coordinates=unravel("r", spec.row, inner),
        value_call=f"value_at({', '.join(axes)})",
        put_call=f"put({', '.join([*axes, result])})",
        first_identity=first_identity,
        first=first,
        first_join=join,
        first_end=end,
        two=bool(second),
        second_identity="0.0f",
        second=second,
        second_end=second_end,
        result=result,
    )
    grid = fold_grid(ceildiv(product(spec.shape), knobs.rows))
    name = f"row_{knobs.rows}x{knobs.threads}{'f' if knobs.rows_first else ''}k{knobs.kept}"
    return WgslKernel(name, (module.dispatch("row", fields, grid),), (), module.features())
