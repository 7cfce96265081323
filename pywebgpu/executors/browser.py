"""`InferenceSession` in Pyodide: the browser runtime (web/pywebgpu.js) with Python's face.

It runs in the worker of web/py/, which registers the JavaScript module `_pywebgpu_js`. Nothing
here needs NumPy: feeds may be nested lists, anything with the buffer protocol, or `Tensor`;
outputs are `Tensor`s. Once the page's code has imported NumPy, arrays come out instead.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from math import prod
from typing import Any

from .. import errors
from ..errors import InputError, PywebgpuError

FORMATS = {
    "float32": "f",
    "float16": "e",
    "float64": "d",
    "bfloat16": "f",
    "int64": "q",
    "int32": "i",
    "int16": "h",
    "int8": "b",
    "uint64": "Q",
    "uint32": "I",
    "uint16": "H",
    "uint8": "B",
    "int4": "b",
    "uint4": "B",
    "int2": "b",
    "uint2": "B",
    "float8e4m3fn": "f",
    "float8e4m3fnuz": "f",
    "float8e5m2": "f",
    "float8e5m2fnuz": "f",
    "float4e2m1": "f",
    "bool": "?",
}
"""ONNX element type -> how `struct` and NumPy call it. Those that neither has have an element of
the next type each."""


_ONNX_NAMES = {"float32": "float", "float64": "double"}


@dataclass(frozen=True, slots=True)
class Port:
    """A model's input or output. `name`, `type` ("tensor(float)") and `shape` are as on the
    desktop; `dtype` is the plain name of the element type."""

    name: str
    dtype: str
    shape: list[int | str]

    @property
    def type(self) -> str:
        return f"tensor({_ONNX_NAMES.get(self.dtype, self.dtype)})"


class Tensor:
    """An n-dimensional array without NumPy: a flat memoryview and a shape.

    dtype: an ONNX element type such as "float32".
    data: flat, row-major (float16 as bits); a buffer, or (nested) lists of numbers.
    shape: by default that of the lists, else the buffer's.
    """

    __slots__ = ("data", "dtype", "shape")

    def __init__(self, data: Any, shape: Sequence[int] | None = None, dtype: str = "float32"):
        if dtype not in FORMATS:
            raise InputError("unknown element type", where="Tensor", got=dtype, expected=[*FORMATS])
        view, found = _flat(data, dtype, "Tensor")
        self.dtype = dtype
        self.data = view
        self.shape = found if shape is None else tuple(shape)
        if prod(self.shape) != len(view):
            raise InputError(
                "the shape does not fit the data",
                where="Tensor",
                got=f"{len(view)} elements for {list(self.shape)}",
                expected=f"{prod(self.shape)} elements",
            )

    def __repr__(self) -> str:
        return f"Tensor({self.dtype}{list(self.shape)})"

    def __len__(self) -> int:
        return self.shape[0]

    def tolist(self) -> Any:
        """Nested lists; a number for a tensor without dimensions."""
        flat = struct.unpack(f"={len(self.data)}{FORMATS[self.dtype]}", self.data)
        return _nest(list(flat), self.shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        """For NumPy, where it is loaded: `np.asarray(tensor)`."""
        np = import_module("numpy")
        flat = np.frombuffer(self.data, dtype=FORMATS[self.dtype])
        return np.array(flat.reshape(self.shape), dtype=dtype, copy=copy)


def _nest(flat: list[Any], shape: tuple[int, ...]) -> Any:
    if not shape:
        return flat[0]
    if len(shape) == 1:
        return flat
    step = prod(shape[1:])
    return [_nest(flat[i * step : (i + 1) * step], shape[1:]) for i in range(shape[0])]


def _flat(value: Any, dtype: str, where: str) -> tuple[memoryview[Any], tuple[int, ...]]:
    """(flat memoryview of the dtype's format, shape). A buffer must have the dtype already."""
    if isinstance(value, Tensor):
        _same(value.dtype, dtype, where)
        return value.data, value.shape
    if hasattr(value, "__array__") and hasattr(value, "dtype"):
        np = import_module("numpy")
        _same(str(value.dtype), _type_of(FORMATS[dtype]), where)
        value = np.ascontiguousarray(value)
        # Its bytes, since memoryview refuses to cast arrays with an empty dimension.
        return _cast(value.tobytes(), dtype), tuple(value.shape)
    try:
        view = memoryview(value)
    except TypeError:
        shape = _list_shape(value, where)
        return _pack(_flatten(value, len(shape)), dtype, where), shape
    found = _type_of(view.format)
    if (found, dtype) != ("uint16", "float16"):  # bits, as in JavaScript
        _same(found, _type_of(FORMATS[dtype]), where)
    return _cast(view.tobytes(), dtype), tuple(view.shape or ())


def _type_of(format_: str) -> str:
    """The ONNX type of a buffer's format: C has several letters for one type of integer."""
    letter = format_[-1]
    if letter == "?":
        return "bool"
    kind = "float" if letter in "efd" else "uint" if letter.isupper() else "int"
    return f"{kind}{8 * struct.calcsize(format_)}"


def _cast(data: bytes | bytearray, dtype: str) -> memoryview[Any]:
    # No memoryview holds half floats; they stay bits until someone asks for numbers.
    format_: Any = "H" if dtype == "float16" else FORMATS[dtype]
    return memoryview(data).cast(format_)


def _same(got: str, expected: str, where: str) -> None:
    if got != expected:
        raise InputError("wrong element type", where=where, got=got, expected=expected)


def _list_shape(value: Any, where: str) -> tuple[int, ...]:
    """The lengths of nested lists, which must agree; () for a number."""
    if isinstance(value, (int, float)):
        return ()
    if not isinstance(value, (list, tuple)):
        raise InputError(
            "is not an array",
            where=where,
            got=type(value).__name__,
            expected="nested lists of numbers, a buffer, a Tensor or a NumPy array",
        )
    inner = {_list_shape(item, where) for item in value}
    if len(inner) > 1:
        raise InputError("the lists have different lengths", where=where, got=sorted(inner))
    return (len(value), *(inner.pop() if inner else ()))


def _flatten(value: Any, depth: int) -> list[Any]:
    if depth == 0:
        return [value]
    if depth == 1:
        return list(value)
    return [item for part in value for item in _flatten(part, depth - 1)]


def _pack(flat: list[Any], dtype: str, where: str) -> memoryview[Any]:
    try:
        return _cast(struct.pack(f"={len(flat)}{FORMATS[dtype]}", *flat), dtype)
    except (struct.error, TypeError, OverflowError) as error:
        raise InputError(f"has a wrong value: {error}", where=where, expected=dtype) from error


def _feed(port: Port, value: Any) -> tuple[memoryview[Any], tuple[int, ...]]:
    """The elements and the shape to send for one input."""
    where = f"input {port.name!r}"
    view, shape = _flat(value, port.dtype, where)
    sizes = [size for size in port.shape if isinstance(size, int)]
    # A flat buffer has no shape to say; where the model leaves no choice, take the model's.
    if len(shape) == 1 != len(port.shape) == len(sizes) and prod(sizes) == len(view):
        return view, tuple(sizes)
    return view, shape


def _error(facts: Any) -> PywebgpuError:
    """The Python exception of the same name as the JavaScript one."""
    data = facts.to_py() if hasattr(facts, "to_py") else facts
    cls: type[PywebgpuError] = getattr(errors, data["type"], PywebgpuError)
    return cls(
        data["what"],
        where=data["where"] or "",
        got=data["got"],
        expected=data["expected"],
        remedy=data["remedy"] or "",
    )


class InferenceSession:
    """A bundle on WebGPU or WebAssembly of this browser: `await InferenceSession.create(url)`."""

    def __init__(self, *_: object, **__: object) -> None:
        raise InputError(
            "a browser cannot wait for a session",
            where="InferenceSession()",
            remedy="Write `session = await InferenceSession.create(url)`",
        )

    @classmethod
    async def create(
        cls,
        url: str,
        providers: Sequence[str] = ("webgpu", "wasm"),
        *,
        threads: int | None = None,
        warmup: bool = True,
        on_progress: Callable[[dict[str, Any]], None] | None = None,
    ) -> InferenceSession:
        """Download the bundle at `url` (relative to the page) and make it ready.

        providers: tried in this order.
        threads: for wasm; by default one per processor.
        on_progress: called with {"file", "loaded", "total", "fileLoaded", "fileTotal"}.

        Raises:
            BundleError: a file is missing, damaged or of another version.
            DeviceError: none of the providers works here.
        """
        js: Any = import_module("_pywebgpu_js")
        ffi: Any = import_module("pyodide.ffi")
        options: dict[str, Any] = {"executionProviders": list(providers), "warmup": warmup}
        if threads is not None:
            options["threads"] = threads
        callback = None
        if on_progress is not None:
            callback = ffi.create_proxy(lambda event: on_progress(event.to_py()))
            options["onProgress"] = callback
        absolute = str(import_module("js").URL.new(url, js.base).href)
        convert = import_module("js").Object.fromEntries
        try:
            answer = await js.create(absolute, ffi.to_js(options, dict_converter=convert))
        finally:
            if callback is not None:
                callback.destroy()
        if not hasattr(answer, "value"):
            raise _error(answer.error)
        session = cls.__new__(cls)
        session._bind(js, ffi, answer.value)
        return session

    def _bind(self, js: Any, ffi: Any, session: Any) -> None:
        self._js, self._ffi, self._session = js, ffi, session
        self._inputs = [_port(p) for p in session.inputMetadata.to_py()]
        self._outputs = [_port(p) for p in session.outputMetadata.to_py()]

    def get_inputs(self) -> list[Port]:
        return list(self._inputs)

    def get_outputs(self) -> list[Port]:
        return list(self._outputs)

    @property
    def provider(self) -> str:
        """ "webgpu" or "wasm"."""
        return str(self._session.provider)

    @property
    def device(self) -> str:
        """For people: what it runs on."""
        return str(self._session.info.device)

    def get_providers(self) -> list[str]:
        return [self.provider]

    @property
    def info(self) -> dict[str, Any]:
        """What runs where, and what could not be used and why."""
        info: dict[str, Any] = self._session.info.to_py()
        return info

    async def run_async(
        self, feeds: Mapping[str, Any], output_names: Sequence[str] | None = None
    ) -> dict[str, Any]:
        """Output name -> `Tensor`, or NumPy array where NumPy has been imported.

        Raises:
            InputError: a name, shape, dtype or value of the feeds, or an output's name, is wrong.
            DeviceError: the device failed.
        """
        known = [port.name for port in self._outputs]
        for name in output_names or ():
            if name not in known:
                raise InputError("no such output", where=f"output {name!r}", expected=known)
        ports = {port.name: port for port in self._inputs}
        rows = []
        for name, value in feeds.items():
            if name not in ports:
                raise InputError("no such input", where=f"input {name!r}", expected=[*ports])
            view, shape = _feed(ports[name], value)
            # to_js copies, so no view of Python's memory outlives this call.
            rows.append([name, ports[name].dtype, self._ffi.to_js(view.cast("B")), list(shape)])
        answer = await self._js.run(self._session, self._ffi.to_js(rows))
        if not hasattr(answer, "value"):
            raise _error(answer.error)
        results = {row[0]: _result(row[1], row[2].to_bytes(), row[3]) for row in answer.value}
        return {name: results[name] for name in output_names or known}

    def run(self, output_names: Sequence[str] | None, feeds: Mapping[str, Any]) -> list[Any]:
        """Not here: the answer arrives while Python waits, which only `await` allows."""
        raise InputError(
            "a browser cannot wait for the answer",
            where="InferenceSession.run",
            remedy="Write `outputs = await session.run_async(feeds)`",
        )

    async def tune(
        self,
        *,
        budget: float = 30.0,
        on_progress: Callable[[dict[str, Any]], None] | None = None,
        records: str | None = None,
        contribute: bool = False,
    ) -> Tuning:
        """Find quicker kernels for this device while the session goes on running: see `Tuning`.

        budget: seconds, pauses apart.
        on_progress: called with {"stage", "label", "done", "total", "seconds"}.
        records: the URL of a records service to ask for what won elsewhere.
        contribute: tell it what was measured here.

        Raises:
            InputError: an option is wrong, or the session is being tuned already.
        """
        options: dict[str, Any] = {"budget": budget, "records": records, "contribute": contribute}
        callback = None
        if on_progress is not None:
            callback = self._ffi.create_proxy(lambda event: on_progress(event.to_py()))
            options["onProgress"] = callback
        convert = import_module("js").Object.fromEntries
        answer = await self._js.tune(
            self._session, self._ffi.to_js(options, dict_converter=convert)
        )
        if not hasattr(answer, "value"):
            raise _error(answer.error)
        return Tuning(self._js, answer.value, callback)

    async def records(self) -> dict[str, Any]:
        """What tuning has found out in this browser, in the form of records.schema.json."""
        found: dict[str, Any] = (await self._session.records()).to_py()
        return found

    def close(self) -> None:
        """Give workers, memory and the GPU device back; later runs raise."""
        self._session.release()

    def __enter__(self) -> InferenceSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Tuning:
    """A tuning under way. Winners come into use between two runs, and are kept for later visits."""

    def __init__(self, js: Any, tuning: Any, callback: Any) -> None:
        self._js, self._tuning, self._callback = js, tuning, callback

    @property
    def state(self) -> str:
        """ "loading", "running", "paused", "done", "cancelled" or "failed"."""
        return str(self._tuning.state)

    def pause(self) -> None:
        self._tuning.pause()

    def resume(self) -> None:
        self._tuning.resume()

    def cancel(self) -> None:
        """End it now; what has been found stays in use."""
        self._tuning.cancel()

    async def finished(self) -> dict[str, Any]:
        """The report, also of a tuning that was cancelled.

        Raises:
            PywebgpuError: it could not go on.
        """
        answer = await self._js.finished(self._tuning)
        if self._callback is not None:
            self._callback.destroy()
            self._callback = None
        if not hasattr(answer, "value"):
            raise _error(answer.error)
        report: dict[str, Any] = json.loads(answer.value)
        return report


def _port(data: Mapping[str, Any]) -> Port:
    return Port(data["name"], data["type"], list(data["shape"]))


def _result(dtype: str, data: bytes, shape: Any) -> Any:
    tensor = Tensor(_cast(bytearray(data), dtype), [int(size) for size in shape], dtype)
    return tensor.__array__() if "numpy" in sys.modules else tensor
