"""Inputs for trying a model out: from files, or random ones that the model can make sense of.

Random floats are standard normal. Random integers are the hard part: token ids must be rows of the
table they look up, a mask must be ones and then zeros, positions must fit their table. What the
graph says (an embedding's number of rows) goes before what a name suggests.
"""

from __future__ import annotations

import ast
import json
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError
from .graph import DType
from .plan import NodeArg

Array = np.ndarray[Any, Any]

# Operators through which a table index travels unchanged.
_TRANSPARENT = {"Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose"}

_NUMPY_TYPES = {
    "float": "float32",
    "double": "float64",
    "float16": "float16",
    # NumPy has none of these, and a session takes what holds their numbers.
    "bfloat16": "float32",
    **dict.fromkeys(
        ("float8e4m3fn", "float8e4m3fnuz", "float8e5m2", "float8e5m2fnuz", "float4e2m1"), "float32"
    ),
    **{"int4": "int8", "int2": "int8", "uint4": "uint8", "uint2": "uint8"},
    "bool": "bool",
    **{name: name for name in ("int8", "int16", "int32", "int64")},
    **{name: name for name in ("uint8", "uint16", "uint32", "uint64")},
}
_BELOW = {"int4": 8, "uint4": 10, "int2": 2, "uint2": 4}


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One input as a session describes it: `shape` holds ints, symbols or their expressions."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str, ...]
    below: int = 10
    """Random integers without a meaning are less than this."""

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


def input_spec(name: str, type_name: str, shape: Sequence[Any]) -> InputSpec:
    """From ONNX Runtime's way of saying it: ("x", "tensor(float)", ["batch", 3])."""
    inner = type_name.removeprefix("tensor(").removesuffix(")")
    return InputSpec(
        name,
        np.dtype(_NUMPY_TYPES.get(inner, inner)),
        tuple(dim if isinstance(dim, int) else str(dim) for dim in shape),
        _BELOW.get(inner, 10),
    )


def input_specs(ports: Iterable[NodeArg]) -> list[InputSpec]:
    """Of all that `get_inputs()` of a session lists."""
    return [input_spec(port.name, port.type, port.shape) for port in ports]


def default_dim(symbol: str) -> int:
    """A size for a symbol that the caller did not choose: small, and common for its name."""
    lowered = symbol.lower()
    for part, size in (("batch", 1), ("past", 8), ("seq", 16), ("height", 224), ("width", 224)):
        if part in lowered:
            return size
    return 1


def bind_dims(specs: Sequence[InputSpec], chosen: Mapping[str, int]) -> dict[str, int]:
    """A size for every symbol in the inputs' shapes: the caller's, or a default.

    Raises InputError for a name that no input has, or a size below 0.
    """
    symbols = {s: None for spec in specs for dim in spec.shape for s in _symbols_of(dim)}
    for name, size in chosen.items():
        if name not in symbols:
            raise InputError(
                "no input has this dimension",
                where=f"--dim {name}={size}",
                expected=", ".join(symbols) or "no dimensions: all shapes are fixed",
            )
        if size < 0:
            raise InputError("a size cannot be negative", where=f"--dim {name}={size}", got=size)
    return {name: chosen.get(name, default_dim(name)) for name in symbols}


def _symbols_of(dim: int | str) -> list[str]:
    """The symbols in one dimension; a name that is no expression is one symbol."""
    if isinstance(dim, int):
        return []
    try:
        tree = ast.parse(dim, mode="eval")
        _evaluate(tree.body, dict.fromkeys(_names(tree), 1), dim)
    except (SyntaxError, ValueError):
        return [dim]
    return _names(tree)


def _names(tree: ast.AST) -> list[str]:
    called = {node.func for node in ast.walk(tree) if isinstance(node, ast.Call)}
    names = [n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and n not in called]
    return list(dict.fromkeys(names))


_BINARY: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


def _evaluate(node: ast.expr, dims: Mapping[str, int], text: str) -> int:
    """The value of a size expression such as `past + sequence`; ValueError if it is not one."""
    match node:
        case ast.Constant(value=int(value)):
            return value
        case ast.Name(id=name):
            return dims[name]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _BINARY[type(op)](_evaluate(left, dims, text), _evaluate(right, dims, text))
        case ast.Call(func=ast.Name(id="min" | "max" as name), args=args):
            values = [_evaluate(arg, dims, text) for arg in args]
            return min(values) if name == "min" else max(values)
        case _:
            raise ValueError(f"not a size expression: {text}")


def concrete_shape(spec: InputSpec, dims: Mapping[str, int]) -> tuple[int, ...]:
    """The input's shape with every symbol replaced."""
    shape = []
    for dim in spec.shape:
        if isinstance(dim, int):
            shape.append(dim)
        elif dim in dims:
            shape.append(dims[dim])
        else:
            shape.append(_evaluate(ast.parse(dim, mode="eval").body, dims, dim))
    return tuple(shape)


def table_rows(model: Any) -> dict[str, int]:
    """For graph inputs used as indices into a constant table: the number of rows they may name.

    `model` is an onnx.ModelProto; its weights need not be loaded.
    """
    graph = model.graph
    sizes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    alias = {value.name: value.name for value in graph.input}
    rows: dict[str, int] = {}
    for node in graph.node:
        if node.op_type in _TRANSPARENT and node.input and node.input[0] in alias:
            alias[node.output[0]] = alias[node.input[0]]
        elif node.op_type == "Gather" and node.input[0] in sizes and node.input[1] in alias:
            axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
            name = alias[node.input[1]]
            count = sizes[node.input[0]][axis]
            rows[name] = min(count, rows.get(name, count))
    return rows


def random_feeds(
    specs: Sequence[InputSpec],
    dims: Mapping[str, int],
    *,
    rows: Mapping[str, int] | None = None,
    seed: int = 0,
) -> dict[str, Array]:
    """One array per input. `rows` bounds the inputs that index tables (see `table_rows`)."""
    rng = np.random.default_rng(seed)
    rows = rows or {}
    return {
        spec.name: _random_array(spec, concrete_shape(spec, dims), rows.get(spec.name), rng)
        for spec in specs
    }


def _random_array(
    spec: InputSpec, shape: tuple[int, ...], rows: int | None, rng: np.random.Generator
) -> Array:
    lowered = spec.name.lower()
    values: Array
    if spec.dtype.kind == "f":
        values = rng.standard_normal(shape)
    elif "mask" in lowered:
        values = _padding_mask(shape, rng)
    elif spec.dtype.kind == "b":
        values = rng.integers(0, 2, shape)
    elif "position" in lowered:
        last = shape[-1] if shape else 1
        values = np.broadcast_to(np.arange(last) % (rows or max(last, 1)), shape)
    elif "type" in lowered or "segment" in lowered:
        values = rng.integers(0, min(rows or 2, 2), shape)
    else:
        values = rng.integers(0, rows or spec.below, shape)
    # Not ascontiguousarray, which gives scalars a dimension.
    return np.array(values, dtype=spec.dtype, order="C")


def _padding_mask(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Ones for the real tokens, then zeros for padding; every row keeps at least half its ones."""
    if not shape:
        return np.ones((), dtype=np.int64)
    length = shape[-1]
    kept = rng.integers((length + 1) // 2, length + 1, (*shape[:-1], 1))
    # The first row is whole, as the longest sentence of a batch is.
    kept.reshape(-1)[:1] = length
    return (np.arange(length) < kept).astype(np.int64)


def parse_value(option: str) -> tuple[str, Array]:
    """`NAME=VALUE` of the command line as (name, array): a number or nested lists of them, as JSON.

    The array's type is what the numbers suggest.
    """
    name, separator, text = option.partition("=")
    try:
        array = np.array(json.loads(text))
    except ValueError:  # not JSON, or lists of different lengths
        array = np.array("")
    if not separator or not name or array.dtype.kind not in "biuf":
        raise InputError(
            "not a value", where=f"--value {option}", expected="NAME=5, NAME=[1,2] or NAME=0.5"
        )
    return name, array if array.size else array.astype(np.int64)


def typed_value(spec: InputSpec, array: Array) -> Array:
    """`array` in the input's type, which must hold its elements."""
    made: Array = array.astype(spec.dtype)
    if spec.dtype.kind not in "f" and not (made == array).all():
        raise InputError(
            "a value is not of the input's type",
            where=f"input '{spec.name}'",
            got=array.tolist(),
            expected=spec.dtype,
        )
    return made


def load_feed(option: str) -> tuple[str, Array]:
    """`NAME=file.npy` of the command line as (name, array)."""
    name, separator, file = option.partition("=")
    if not separator or not name or not file:
        raise InputError("not a feed", where=f"--feed {option}", expected="NAME=FILE.npy")
    path = Path(file)
    if not path.is_file():
        raise InputError("no such file", where=f"--feed {option}", got=str(path))
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(
            "cannot be read as an array",
            where=str(path),
            got=str(error).partition(". ")[0],  # what NumPy advises next is to trust the file
            expected="one array written by numpy.save",
        ) from error
    if not isinstance(array, np.ndarray):
        raise InputError(
            "holds several arrays", where=str(path), expected="one array written by numpy.save"
        )
    return name, array


def save_arrays(file: Path, arrays: Mapping[str, Array]) -> None:
    """All arrays in one .npz file, which appears only when it is complete. Those of types that
    NumPy lacks are saved as what holds their numbers: it could not read them back."""
    held = {dtype.ml_dtype: dtype.numpy for dtype in DType if dtype.ml_dtype is not None}
    plain = {k: a.astype(held.get(a.dtype.name, a.dtype), copy=False) for k, a in arrays.items()}
    partial = file.with_name(file.name + ".part")
    with partial.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **plain)
    partial.replace(file)
