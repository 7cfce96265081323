"""What an operator may be given: the number and the element types of inputs, by ONNX's schemas.

ONNX's checker looks at the number of inputs and at attributes; whether a model adds integers to
floats only its type inference knows. Here it is one look per node.
"""

from __future__ import annotations

from functools import cache

import onnx

from ..graph import DType
from ..onnx_types import LATEST
from .registry import Site

_Formal = tuple[str, frozenset[str], bool]
"""Of an input: the name of its type, the types that it may have, whether those of that name are
one type."""

_RUNTIME_NAMES = {DType.F32: "tensor(float)", DType.F64: "tensor(double)"}


def check_types(site: Site) -> None:
    """
    Raises:
        ModelError: an input is missing or of a type that the operator does not take, or two inputs
            differ that must have one type.
    """
    formals, variadic, least = _signature(site.node.op, site.node.domain)
    for i in range(least):
        site.input(i)
    bound: dict[str, tuple[int, str]] = {}
    for i, name in enumerate(site.node.inputs):
        formal = formals[i] if i < len(formals) else variadic
        if not name or formal is None:
            continue
        type_name, allowed, one = formal
        dtype = site.graph.types[name].dtype
        found = _RUNTIME_NAMES.get(dtype, f"tensor({dtype.value})")
        if found not in allowed:
            raise site.error(
                f"input {i} ({name!r}) has a type that {site.node.op} does not take",
                got=dtype.value,
                expected=", ".join(t.removeprefix("tensor(")[:-1] for t in sorted(allowed)),
            )
        first, other = bound.setdefault(type_name, (i, found))
        if one and other != found:
            raise site.error(
                f"inputs {first} and {i} differ in type",
                got=f"{site.input(first)} and {site.input(i)}",
                expected="one type",
            )


@cache
def _signature(op: str, domain: str) -> tuple[tuple[_Formal | None, ...], _Formal | None, int]:
    """The inputs' types by position, and that of all behind them (None: anything); how many there
    must be."""
    try:
        schema = onnx.defs.get_schema(op, LATEST, domain)
    except onnx.defs.SchemaError:
        return (), None, 0
    types = {c.type_param_str: frozenset(c.allowed_type_strs) for c in schema.type_constraints}
    formals: list[_Formal | None] = []
    for formal in schema.inputs:
        name = formal.type_str
        allowed = types.get(name, frozenset([name]))
        plain = all(text.startswith("tensor(") for text in allowed)
        formals.append((name, allowed, formal.is_homogeneous) if plain else None)
    many = bool(schema.inputs) and schema.inputs[-1].option is _Option.Variadic
    required = [i for i, f in enumerate(schema.inputs) if f.option is _Option.Single]
    least = max(required, default=-1) + 1
    return tuple(formals), formals[-1] if many else None, least


_Option = onnx.defs.OpSchema.FormalParameterOption
