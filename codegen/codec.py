"""Specs as JSON: what lets a page re-tune a model that a desktop exported.

A `Scalar` graph becomes a table of nodes (arguments before users) so that shared nodes stay
shared; the table belongs to the spec. Floats travel as hexadecimal text: exact, and able to
carry infinities and NaN.
"""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from functools import cache
from typing import Any

from . import scalar as sc
from .dims import Dim, Expr, dim_from_json, dim_json
from .scalar import Op, Scalar, Type
from .spec import FAMILIES, Beside, Blocks, Epilogue, KernelSpec, Prologue, View, family

_RECORDS = (Beside, Prologue, Epilogue)
"""Parts of specs that have expressions among their fields."""


def spec_to_json(spec: KernelSpec) -> dict[str, Any]:
    """A JSON-ready dict; `spec_from_json` gives back an equal spec."""
    scalars = [v for f in dataclasses.fields(spec) for v in _scalars(getattr(spec, f.name))]
    nodes = {node: i for i, node in enumerate(sc.walk(scalars))}
    data: dict[str, Any] = {"family": family(spec), "nodes": [_node(n, nodes) for n in nodes]}
    for f in dataclasses.fields(spec):
        data[f.name] = _encode(getattr(spec, f.name), nodes)
    return data


def _scalars(value: Any) -> list[Scalar]:
    if isinstance(value, tuple):
        return [found for item in value for found in _scalars(item)]
    if isinstance(value, _RECORDS):
        return [v for f in dataclasses.fields(value) for v in _scalars(getattr(value, f.name))]
    return [value] if isinstance(value, Scalar) else []


def _node(node: Scalar, numbers: dict[Scalar, int]) -> list[Any]:
    value = node.value.hex() if isinstance(node.value, float) else node.value
    return [node.op.value, node.type.value, value, *(numbers[a] for a in node.args)]


def _encode(value: Any, nodes: dict[Scalar, int]) -> Any:
    if isinstance(value, Scalar):
        return nodes[value]
    if isinstance(value, Expr):
        return dim_json(value)
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, View):
        return [dim_json(value.offset), *map(dim_json, value.strides)]
    if isinstance(value, Blocks):
        return [value.bits, value.size, value.zeros]
    if isinstance(value, _RECORDS):
        fields = dataclasses.fields(value)
        return {f.name: _encode(getattr(value, f.name), nodes) for f in fields}
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, tuple):
        return [_encode(item, nodes) for item in value]
    return value


def spec_from_json(data: dict[str, Any]) -> KernelSpec:
    """Raises KeyError, TypeError or ValueError when `data` is not what `spec_to_json` makes."""
    cls = FAMILIES[data["family"]]
    nodes: list[Scalar] = []
    for op, type_, value, *args in data["nodes"]:
        nodes.append(_read_node(Op(op), Type(type_), value, [nodes[a] for a in args]))
    made: KernelSpec = _record(cls, data, nodes)
    return made


def _record(cls: Any, data: dict[str, Any], nodes: list[Scalar]) -> Any:
    hints = _hints(cls)
    return cls(**{
        f.name: _decode(data[f.name], hints[f.name], nodes)
        for f in dataclasses.fields(cls)
        if f.init
    })  # fmt: skip


@cache
def _hints(cls: Any) -> dict[str, Any]:
    """The types of a class's fields; they are evaluated from text, which takes a millisecond."""
    return typing.get_type_hints(cls)


def _read_node(op: Op, type_: Type, value: Any, args: list[Scalar]) -> Scalar:
    # Nodes are made as they were written, not simplified again, so that the round trip is exact.
    if op is Op.CONST:
        return sc.const(float.fromhex(value) if type_ is Type.F32 else value, type_)
    return sc._make(op, type_, tuple(args), value)


def _decode(value: Any, hint: Any, nodes: list[Scalar]) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint == Dim:
        return dim_from_json(value)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return _decode(value, next(a for a in args if a is not type(None)), nodes)
    if origin is tuple:
        inner = [args[0]] * len(value) if args[-1] is Ellipsis else args
        return tuple(_decode(v, h, nodes) for v, h in zip(value, inner, strict=True))
    if hint is Scalar:
        return nodes[value]
    if hint in _RECORDS:
        return _record(hint, value, nodes)
    if hint is View:
        return View(tuple(dim_from_json(s) for s in value[1:]), dim_from_json(value[0]))
    if hint is Blocks:
        return Blocks(*value)
    if hint is float:
        return float.fromhex(value)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return hint(value)
    return value
