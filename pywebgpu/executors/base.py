"""What every executor does on the host, whatever the device: feeds in, sizes bound, results out.

A feed is checked against its port, its dims bind the plan's symbols, its elements become what the
kernels store (see `spec.Storage`); on the way back elements become what the user's dtype says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Protocol

import numpy as np

from ..codegen.dims import Dim, Expr, dim_str, evaluate
from ..codegen.program import Loop, Read
from ..codegen.spec import Storage
from ..errors import InputError
from ..graph import DType
from ..plan import Plan, Port

Array = np.ndarray[Any, Any]
Feeds = Mapping[str, Any]

_STORAGE: dict[Storage, Any] = {
    Storage.F32: np.dtype(np.float32),
    Storage.F16: np.dtype(np.float16),
    Storage.I32: np.dtype(np.int32),
    Storage.I8: np.dtype(np.int8),
}


class Executor(Protocol):
    """Runs one plan on one device. Not for use from several threads at once."""

    provider: str
    """"webgpu" or "wasm"."""

    device: str
    """For people: what it runs on."""

    @property
    def lost(self) -> bool:
        """Whether the device is gone, so that no further run is possible."""
        ...

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """The named outputs (all by default), in that order.

        Raises:
            InputError: a feed has a wrong name, shape, dtype or value.
            DeviceError: the device failed or has not enough memory.
        """
        ...

    def close(self) -> None:
        """Give threads and memory back; the executor cannot be used afterwards."""
        ...


def storage_dtype(storage: Storage) -> np.dtype[Any]:
    """How an element lies in a buffer."""
    dtype: np.dtype[Any] = _STORAGE[storage]
    return dtype


def wanted_outputs(plan: Plan, names: Sequence[str] | None) -> list[Port]:
    """The output ports of those names, in that order; all when `names` is None."""
    ports = {port.name: port for port in plan.outputs}
    if names is None:
        return list(plan.outputs)
    for name in names:
        if name not in ports:
            raise InputError("no such output", where=f"output {name!r}", expected=_names(ports))
    return [ports[name] for name in names]


def check_feeds(plan: Plan, feeds: Feeds) -> tuple[dict[str, Array], dict[str, int]]:
    """(input name -> contiguous array of the port's storage type, symbol -> its value).

    Raises:
        InputError: a name, shape, dtype or value does not fit.
    """
    ports = {port.name: port for port in plan.inputs}
    arrays = typed_feeds(plan.inputs, feeds)
    symbols = bind_symbols(plan, {name: array.shape for name, array in arrays.items()})
    return {name: to_storage(ports[name], array) for name, array in arrays.items()}, symbols


def typed_feeds(inputs: Sequence[Port], feeds: Feeds) -> dict[str, Array]:
    """Every input's feed as an array of its element type.

    Raises:
        InputError: a name or an element type does not fit.
    """
    ports = {port.name: port for port in inputs}
    for name in feeds:
        if name not in ports:
            raise InputError("no such input", where=f"input {name!r}", expected=_names(ports))
    missing = [name for name in ports if name not in feeds]
    if missing:
        raise InputError("is missing", where=f"input {missing[0]!r}", expected=_names(ports))
    return {name: _as_array(port, feeds[name]) for name, port in ports.items()}


def _names(names: Mapping[str, object]) -> str:
    return ", ".join(map(repr, names)) or "none"


def _as_array(port: Port, value: Any) -> Array:
    """A feed as an array of what holds the port's elements. For types that NumPy lacks
    (`DType.ml_dtype`) it may come in either.

    Raises:
        InputError: it has another element type, or is no array.
    """
    if isinstance(value, np.ndarray) or hasattr(value, "__array__"):
        array = np.asarray(value)
        if port.dtype.ml_dtype is not None and array.dtype.name == port.dtype.ml_dtype:
            return array.astype(port.dtype.numpy)
        if array.dtype != port.dtype.numpy:
            raise InputError(
                "wrong element type",
                where=f"input {port.name!r}",
                got=array.dtype,
                expected=port.dtype.numpy,
                remedy=f"Convert it with .astype({str(port.dtype.numpy)!r})",
            )
        return array
    try:  # Lists and numbers have no dtype of their own.
        return np.asarray(value, dtype=port.dtype.numpy)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"is not an array: {error}", where=f"input {port.name!r}", expected=port.dtype.numpy
        ) from error


def bind_symbols(plan: Plan, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """What the shapes of the inputs make of the plan's symbols.

    Raises:
        InputError: a rank or a size differs from what the model says.
    """
    values: dict[str, int] = {}
    for port in plan.inputs:
        shape = shapes[port.name]
        if len(shape) != len(port.shape):
            raise _shape_error(port, shape, {})
        for size, dim in zip(shape, port.shape, strict=True):
            name = _symbol(dim)
            if name is not None and values.setdefault(name, size) != size:
                raise _shape_error(port, shape, values)
    for port in plan.inputs:
        shape = shapes[port.name]
        try:
            want = tuple(evaluate(dim, values) for dim in port.shape)
        except KeyError as error:
            raise InputError(
                f"no input's shape tells the size {error.args[0]!r}", where=f"input {port.name!r}"
            ) from error
        if want != shape:
            raise _shape_error(port, shape, values)
    _verify(plan, values)
    return values


def _verify(plan: Plan, values: Mapping[str, int]) -> None:
    """What the model needs of its sizes beyond the ports' shapes: at most 512 positions, say."""
    for check in plan.checks:
        left, right = evaluate(check.left, values), evaluate(check.right, values)
        if left != right:
            raise InputError(
                "the model cannot take inputs of these sizes",
                where=check.where,
                got=f"{dim_str(check.left)} = {left} and {dim_str(check.right)} = {right} with "
                + ", ".join(f"{k} = {v}" for k, v in values.items()),
                expected="two equal sizes",
                remedy="Feed smaller inputs, or export the model for such sizes",
            )


def _symbol(dim: Dim) -> str | None:
    """The name, if `dim` is just a symbol."""
    if isinstance(dim, Expr) and len(dim.terms) == 1:
        monomial, coefficient = dim.terms[0]
        if coefficient == 1 and len(monomial) == 1 and isinstance(monomial[0], str):
            return monomial[0]
    return None


def _shape_error(port: Port, got: tuple[int, ...], values: Mapping[str, int]) -> InputError:
    want = "[" + ", ".join(map(dim_str, port.shape)) + "]"
    known = ", ".join(f"{k} = {v}" for k, v in values.items())
    return InputError(
        "wrong shape",
        where=f"input {port.name!r}",
        got=list(got),
        expected=f"{want} with {known}" if known else want,
    )


def to_storage(port: Port, array: Array) -> Array:
    """A contiguous array of the element type in which the port's buffer is stored.

    Raises:
        InputError: a value does not fit what the buffer stores.
    """
    dtype = _STORAGE[port.storage]
    packed = port.dtype.ml_dtype is not None
    wide = array.dtype != dtype and (packed or array.itemsize >= 4)
    if port.storage is Storage.I32 and (wide or port.limits):
        low, high = port.limits or (port.dtype if packed else DType.I32).limits
        if array.size and (int(array.min()) < low or int(array.max()) > high):
            worst = int(array.max()) if int(array.max()) > high else int(array.min())
            fits = "32 bits after what the model does with it" if port.limits else "32 bits"
            raise InputError(
                f"a value does not fit {port.dtype.value if packed else fits}",
                where=f"input {port.name!r}",
                got=worst,
                expected=f"{low}..{high}",
                remedy="" if packed else "Integers are computed in 32 bits",
            )
    given = np.ascontiguousarray(array)
    with np.errstate(over="ignore"):
        stored: Array = given.astype(dtype, copy=False)
    if given.dtype.kind == "f" and given.dtype.itemsize > dtype.itemsize:
        lost = np.isinf(stored) & np.isfinite(given)
        if lost.any():
            raise InputError(
                f"a value does not fit {dtype}",
                where=f"input {port.name!r}",
                got=given[lost][0],
                expected=f"at most {np.finfo(dtype).max:.4g}",
                remedy=f"{port.dtype.value} is computed in {dtype}",
            )
    return stored


def from_storage(port: Port, elements: Array, symbols: Mapping[str, int]) -> Array:
    """The port's array in the user's dtype and shape; `elements` holds its storage, flat.

    Always a copy, so that the buffer can be reused.
    """
    return typed(port, elements, shape_of(port, symbols))


def shape_of(port: Port, symbols: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(evaluate(dim, symbols) for dim in port.shape)


def typed(port: Port, elements: Array, shape: tuple[int, ...]) -> Array:
    """As `from_storage`, of a known shape."""
    count = int(np.prod(shape, dtype=np.int64))
    flat: Array = elements.view(_STORAGE[port.storage])[:count].reshape(shape)
    # != and astype both make a new array.
    result: Array = flat != 0 if port.dtype is DType.BOOL else flat.astype(user_dtype(port.dtype))
    return result


@cache
def user_dtype(dtype: DType) -> np.dtype[Any]:
    """What a caller gets. Types that NumPy lacks come from ml_dtypes, as they do in onnx; where it
    is not installed the numbers come as float32, int8 or uint8."""
    if dtype.ml_dtype is None:
        return dtype.numpy
    try:
        import ml_dtypes
    except ImportError:
        return dtype.numpy
    found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, dtype.ml_dtype))
    return found


def port_bytes(port: Port, symbols: Mapping[str, int]) -> int:
    """Bytes of the port's elements in its buffer."""
    count = port.storage.bytes
    for dim in port.shape:
        count *= evaluate(dim, symbols)
    return count


def count(item: Read, found: int, symbols: dict[str, int]) -> None:
    """Bind a size that the run has found out.

    Raises:
        InputError: it is more than there is room for.
    """
    most = evaluate(item.most, symbols)
    if not 0 <= found <= most:
        raise InputError(
            "the data ask for more than there is room for",
            where=item.where,
            got=found,
            expected=f"0 to {most}",
            remedy="Feed other values, or change the model's limits",
        )
    symbols[item.symbol] = found


def endless(item: Loop, symbols: Mapping[str, int]) -> InputError:
    """A loop whose condition has stayed true for too long."""
    return InputError(
        "the loop does not end",
        where=item.where,
        got=f"{evaluate(item.trips, symbols)} turns",
        expected="a condition that becomes false before",
        remedy="Feed other values, or give the Loop a number of trips",
    )


def slot_bytes(plan: Plan, symbols: Mapping[str, int]) -> list[int]:
    """The size of each slot for these symbols."""
    return [evaluate(size, symbols) for size in plan.slots]
