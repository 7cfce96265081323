"""Reduce: one value per output from many: sums, extremes, arg-extremes, pooling."""

from __future__ import annotations

from dataclasses import dataclass

from .. import scalar as sc
from ..caps import WgslCaps
from ..coalesce import coalesce
from ..dims import Dim, ceildiv, product
from ..scalar import Scalar, Type
from ..spec import Reduce, ReduceOp
from .kernel import WgslKernel
from .module import Module, dim_text, fold_grid, size_of, unravel
from .scalar import WGSL_TYPE, literal, loads


@dataclass(frozen=True, slots=True)
class Knobs:
    outputs: int  # per workgroup
    threads: int  # that share one output; a power of two
    outputs_first: bool  # neighbouring threads work on neighbouring outputs, else on one output


@dataclass(frozen=True, slots=True)
class Fields:
    """What the template sees. `state` is the WGSL type of a partial result."""

    head: str
    outputs: int
    threads: int
    outputs_first: bool
    shared: bool
    arg: bool
    state: str
    value_type: str
    identity: str
    count: str
    coordinates: list[str]
    reduce_count: str
    reduce_coordinates: list[str]
    value_call: str
    put_call: str


_ARG = {ReduceOp.ARGMIN, ReduceOp.ARGMAX, ReduceOp.ARGMIN_LAST, ReduceOp.ARGMAX_LAST}


def space(spec: Reduce, caps: WgslCaps) -> list[Knobs]:
    """Short reductions take a thread each; long ones share a workgroup's threads, which lie
    along whichever of the two spaces is contiguous in memory."""
    spec = coalesce(spec)
    length, outputs = product(spec.reduce), product(spec.shape)
    short = isinstance(length, int) and length <= 32
    few = isinstance(outputs, int) and outputs < 64
    along = walks_inner(spec.value, len(spec.shape), len(spec.reduce))
    wide = min(256, caps.max_invocations)
    alone = [Knobs(64, 1, True), Knobs(wide, 1, True)]
    inner = [Knobs(1, wide, False), Knobs(1, 64, False), Knobs(4, wide // 4, False),
             Knobs(8, wide // 8, False)]  # fmt: skip
    across = [Knobs(32, wide // 32, True), Knobs(16, wide // 16, True), Knobs(8, wide // 8, True)]
    if short:
        return [*alone, *across, *inner]
    if along or few:
        return [*inner, *across, *alone]
    return [*across, *inner, *alone]


def walks_inner(value: Scalar, outer: int, inner: int) -> bool:
    """Whether most loads step through memory along the last inner axis."""
    if inner == 0:
        return False
    last = sc.axis(outer + inner - 1).value
    steps = [sc.coefficient(node.args[0], int(last or 0)) for node in loads(value)]
    return any(s is not None and s.op is sc.Op.CONST and s.value == 1 for s in steps)


def render(spec: Reduce, knobs: Knobs) -> WgslKernel:
    spec = coalesce(spec)
    module = Module(spec.operands, spec.output, spec.n_args)
    kind = spec.value.type
    arg = spec.op in _ARG
    outer = [f"i{n}" for n in range(len(spec.shape))]
    inner = [f"r{n}" for n in range(len(spec.reduce))]
    params = {sc.axis(i): (name, "i32") for i, name in enumerate([*outer, *inner])}
    module.function("value_at", params, spec.value)
    module.puts(spec.final, spec.index, outer, Type.I32 if arg else kind)
    _combine(module, spec.op, kind)
    identity = _identity(module, spec.op, kind)
    fields = Fields(
        head=module.head(),
        outputs=knobs.outputs,
        threads=knobs.threads,
        outputs_first=knobs.outputs_first,
        shared=knobs.threads > 1,
        arg=arg,
        state="Best" if arg else WGSL_TYPE[kind],
        value_type=WGSL_TYPE[kind],
        identity=identity,
        count=size_of(spec.shape),
        coordinates=unravel("number", spec.shape, outer),
        reduce_count=dim_text(product(spec.reduce)),
        reduce_coordinates=unravel("r", spec.reduce, inner),
        value_call=f"value_at({', '.join([*outer, *inner])})",
        put_call=f"put({', '.join([*outer, 'i32(total.place)' if arg else 'total'])})",
    )
    outputs: Dim = product(spec.shape)
    grid = fold_grid(ceildiv(outputs, knobs.outputs))
    first = "f" if knobs.outputs_first else ""
    name = f"reduce_{knobs.outputs}x{knobs.threads}{first}"
    return WgslKernel(name, (module.dispatch("reduce", fields, grid),), (), module.features())


def _identity(module: Module, op: ReduceOp, kind: Type) -> str:
    if op in _ARG:
        return "Best(0, 0xffffffffu)"
    value: float
    if op is ReduceOp.SUM:
        value = 0
    elif op is ReduceOp.PROD:
        value = 1
    elif kind is Type.I32:
        value = 2**31 - 1 if op is ReduceOp.MIN else -(2**31)
    else:
        value = float("inf") if op is ReduceOp.MIN else float("-inf")
    return literal(value, kind, module.helpers)


def _combine(module: Module, op: ReduceOp, kind: Type) -> None:
    """`combine(a, b)` of two partial results, in either order: the tree needs no order."""
    name = WGSL_TYPE[kind]
    if op in _ARG:
        # Ties go to the place the operator asks for; 0xffffffff marks "nothing yet".
        module.functions.append(f"struct Best {{\n  value: {name},\n  place: u32,\n}}")
        better = "<" if op in (ReduceOp.ARGMIN, ReduceOp.ARGMIN_LAST) else ">"
        sooner = "<" if op in (ReduceOp.ARGMIN, ReduceOp.ARGMAX) else ">"
        lines = [
            "if (a.place == 0xffffffffu) { return b; }",
            "if (b.place == 0xffffffffu) { return a; }",
        ]
        equal = "a.value == b.value"
        if kind is Type.F32:  # NaN is more extreme than any number, and NaNs are alike
            nan = module.helpers.need("is_nan")
            lines += [
                f"let a_nan = {nan}(a.value);",
                f"let b_nan = {nan}(b.value);",
                "if (a_nan != b_nan) {",
                "  if (a_nan) { return a; }",
                "  return b;",
                "}",
            ]
            equal = f"({equal} || a_nan)"
        lines += [
            f"if ({equal}) {{",
            f"  if (a.place {sooner} b.place) {{ return a; }}",
            "  return b;",
            "}",
            f"if (a.value {better} b.value) {{ return a; }}",
            "return b;",
        ]
        module.text("fn combine(a: Best, b: Best) -> Best {", lines)
        return
    if op in (ReduceOp.SUM, ReduceOp.PROD):
        text = f"a {'+' if op is ReduceOp.SUM else '*'} b"
    else:
        call = "min" if op is ReduceOp.MIN else "max"
        call = call if kind is Type.I32 else module.helpers.need(f"{call}_nan")
        text = f"{call}(a, b)"
    module.text(f"fn combine(a: {name}, b: {name}) -> {name} {{", [f"return {text};"])
