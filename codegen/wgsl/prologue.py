"""A product's left operand where it is made as it is read (`spec.Prologue`).

Defines a_at and a_load as `product` wants them, over `value_at` (the element before normalisation)
and `final_at` (what becomes of it); and `prepare_rows`, which a workgroup calls before it
multiplies, where rows are normalised.
"""

from __future__ import annotations

from dataclasses import dataclass

from .. import scalar as sc
from ..scalar import Op, Scalar, Type
from ..spec import STATISTICS, Matmul, Prologue, RowOp, Storage
from .module import Module, dim_multiple, dim_text, fill, runs_along
from .product_operands import define_checked
from .scalar import literal

_LEAST_LANES = 8
"""Threads that share one row's statistics: as many vec4s are a line of any cache."""


@dataclass(frozen=True, slots=True)
class Fields:
    """What the template sees."""

    rows: int
    threads: int
    lanes: int
    turns: int  # rows are taken by threads / lanes at a time
    m: str
    length: str
    layer: bool
    eps: str
    given: int  # columns that each of the given statistics is of; 0: none are
    wide: bool
    keep: bool
    kept: str


def prepares(spec: Matmul) -> bool:
    """Whether a workgroup takes statistics of its rows first."""
    return spec.prologue is not None and spec.prologue.norm is not None


def operands(spec: Matmul) -> frozenset[int]:
    """Those that the prologue reads."""
    made = spec.prologue
    return frozenset() if made is None else frozenset(_operands(made.value, made.final))


def storage(spec: Matmul, rows: int, threads: int) -> int:
    """Bytes of workgroup memory that `prepare_rows` takes."""
    return 8 * rows + (16 * threads if _lanes(spec, rows, threads) > 1 else 0)


def _lanes(spec: Matmul, rows: int, threads: int) -> int:
    """Threads per row: a power of two that divides `threads`."""
    assert spec.prologue is not None
    least = _LEAST_LANES if spec.prologue.statistics is None else 1
    lanes = 1
    while threads % (lanes * 2) == 0 and (lanes < least or lanes * 2 * rows <= threads):
        lanes *= 2
    return lanes


def define_a(module: Module, spec: Matmul, wide: bool, half: bool, rows: int, threads: int) -> None:
    """What `product` reads A through. Where there is a norm, also `prepare_rows(first, thread,
    share, shares)`, and for tiles `raw_load` and `made`, the two halves of a load.

    wide: load vec4s along k. half: hand out f16. rows, threads: of a workgroup, whose first row is
    a multiple of rows.
    """
    prologue = spec.prologue
    assert prologue is not None
    wide = wide and dim_multiple(spec.k, 4)
    elsewhere = _operands(spec.final)
    _define(module, "value_at", prologue.value, wide, elsewhere, acc=False)
    _define(module, "final_at", prologue.final, wide, elsewhere, acc=True)
    kind = "f16" if half else "f32"
    head = "(z: i32, m: i32, k: i32)"
    four = "4" if wide else ""
    body = [
        *_normalised(prologue, rows, f"value_at{four}(m, k)"),
        f"return {f'vec4<{kind}>' if wide else kind}(final_at{four}(m, k, v));",
    ]
    if wide:
        module.text(f"fn a_load{head} -> vec4<{kind}> {{", body)
        module.text(f"fn a_at{head} -> {kind} {{", ["return a_load(z, m, k & ~3)[k & 3];"])
    else:
        module.text(f"fn a_at{head} -> {kind} {{", body)
        inner = ", ".join(f"a_at(z, m, k + {i})" for i in range(4))
        module.text(f"fn a_load{head} -> vec4<{kind}> {{", [f"return vec4<{kind}>({inner});"])
    define_checked(module, spec.k, kind)
    if prologue.norm is not None:
        _define_halves(module, spec, prologue, wide, kind, rows)
        _define_prepare(module, spec, prologue, wide, rows, threads)


def _normalised(prologue: Prologue, rows: int, value: str) -> list[str]:
    if prologue.norm is None:
        return [f"let v = {value};"]
    mean = " - s.x" if prologue.norm is RowOp.LAYER else ""
    return [f"let s = row_statistics[u32(m) % {rows}u];", f"let v = ({value}{mean}) * s.y;"]


def _define_halves(
    module: Module, spec: Matmul, prologue: Prologue, wide: bool, kind: str, rows: int
) -> None:
    """raw_load(z, m, k), zeros from K on, and made(m, k, raw): what is normalised, and the rest."""
    size = dim_text(spec.k)
    if wide:
        raw = [
            f"if (u32(k) >= {size}) {{ return vec4<f32>(); }}",
            "return value_at4(m, k);",
        ]
        final = "final_at4(m, k, v)"
    else:
        raw = ["var v = vec4<f32>();"]
        raw += [
            f"if (u32(k + {i}) < {size}) {{ v.{c} = value_at(m, k + {i}); }}"
            for i, c in enumerate("xyzw")
        ]
        raw.append("return v;")
        last = f"i32({size}) - 1"
        lanes = (f"final_at(m, min(k + {i}, {last}), v.{c})" for i, c in enumerate("xyzw"))
        final = f"vec4<f32>({', '.join(lanes)})"
    module.text("fn raw_load(z: i32, m: i32, k: i32) -> vec4<f32> {", raw)
    head = "(m: i32, k: i32, raw: vec4<f32>)"
    body = [*_normalised(prologue, rows, "raw"), f"return vec4<{kind}>({final});"]
    module.text(f"fn made{head} -> vec4<{kind}> {{", body)
    zeros = f"if (u32(k) >= {size}) {{ return vec4<{kind}>(); }}"
    module.text(f"fn made_checked{head} -> vec4<{kind}> {{", [zeros, "return made(m, k, raw);"])


def _define_given(module: Module, first: Scalar) -> None:
    """given_statistics(m, piece): the mean of a piece of the row, and the squares about it."""
    (load,) = (n for n in sc.walk([first]) if n.op is Op.LOAD)
    speller = module.speller({sc.axis(0): "m"})
    (at,) = speller.spell(load.args[0])
    operand = int(load.value or 0)
    values = ", ".join(
        module.element(operand, f"u32({at}) + piece * 2u{more}") for more in ("", " + 1u")
    )
    module.text(
        "fn given_statistics(m: i32, piece: u32) -> vec2<f32> {",
        [*speller.lines, f"return vec2<f32>({values});"],
    )


def _define_prepare(
    module: Module, spec: Matmul, prologue: Prologue, wide: bool, rows: int, threads: int
) -> None:
    lanes = _lanes(spec, rows, threads)
    if prologue.statistics is not None:
        _define_given(module, prologue.statistics)
    kept = "f32" if prologue.keep is not Storage.F16 else "f16"
    if prologue.keep is not None:
        module.keep(prologue.keep, wide)
    fields = Fields(
        rows=rows,
        threads=threads,
        lanes=lanes,
        turns=-(-rows * lanes // threads),
        m=dim_text(spec.m),
        length=dim_text(spec.k),
        layer=prologue.norm is RowOp.LAYER,
        eps=literal(sc.const(prologue.eps).value, Type.F32, module.helpers),
        given=0 if prologue.statistics is None else STATISTICS,
        wide=wide,
        keep=prologue.keep is not None,
        kept=f"vec4<{kept}>" if wide else kept,
    )
    module.functions.append(fill("prepare_rows", fields).rstrip())


def _operands(*roots: Scalar) -> set[int]:
    return {int(n.value or 0) for n in sc.walk(roots) if n.op is Op.LOAD}


def define_rows(module: Module, name: str, value: Scalar, elsewhere: frozenset[int]) -> None:
    """`name4(m, k, acc)`: the value at k .. k + 3 of a row, over AXIS (m, k) and ACC."""
    _define(module, name, value, True, set(elsewhere), acc=True)


def _define(
    module: Module, name: str, value: Scalar, wide: bool, elsewhere: set[int], acc: bool
) -> None:
    """`name(m, k[, acc])`, and with `wide` name4 for k .. k + 3 of a row, with vec4s loaded where
    all of an operand's loads run along k and it is not read `elsewhere`."""
    params = {sc.axis(0): ("m", "i32"), sc.axis(1): ("k", "i32")}
    if acc:
        params[sc.acc()] = ("acc", "f32")
    if not wide:
        module.function(name, params, value)
        return
    loads = [n for n in sc.walk([value]) if n.op is Op.LOAD]
    scalar = elsewhere | {int(n.value or 0) for n in loads if not runs_along(n.args[0], 1)}
    scalar |= {int(m.value or 0) for n in loads for m in sc.walk([n.args[0]]) if m.op is Op.LOAD}
    vectors = {n: i for i, n in enumerate(n for n in loads if int(n.value or 0) not in scalar)}
    own = {**params, **{n: (f"lane{i}", "f32") for n, i in vectors.items()}}
    module.function(f"{name}_given", own, value)
    speller = module.speller({node: text for node, (text, _) in params.items()})
    places = speller.spell(*(n.args[0] for n in vectors)) if vectors else []
    body = list(speller.lines)
    for (node, i), place in zip(vectors.items(), places, strict=True):
        vector = module.element4(int(node.value or 0), f"u32({place}) / 4u")
        body.append(f"let lane{i} = {vector};")
    calls = []
    for i, c in enumerate("xyzw"):
        passed = ["m", f"k + {i}", *([f"acc.{c}"] if acc else [])]
        passed += [f"lane{j}.{c}" for j in vectors.values()]
        calls.append(f"{name}_given({', '.join(passed)})")
    head = "m: i32, k: i32" + (", acc: vec4<f32>" if acc else "")
    body.append(f"return vec4<f32>({', '.join(calls)});")
    module.text(f"fn {name}4({head}) -> vec4<f32> {{", body)
    if not acc:
        module.text(f"fn {name}(m: i32, k: i32) -> f32 {{", [f"return {name}4(m, k & ~3)[k & 3];"])
