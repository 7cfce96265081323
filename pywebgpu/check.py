"""What will run, what will not and why: everything that can be said before anything is built.

`check` loads a model leniently, runs the passes, and asks the lowering about each node that is
left. It reports all problems at once.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .codegen.dims import Dim, product, symbols
from .compile import MAX_BINDING, on_gpu
from .errors import PywebgpuError, UnsupportedError
from .graph import INTERNAL, DType, Graph, Node
from .infer import Problems
from .load import Source, judged, load_leniently
from .lower import Lowering, lower, supported
from .lower.split import too_large
from .passes.pipeline import optimise
from .passes.ranges import fit_integers
from .specialise import deciding_inputs

_NARROWED = (DType.I64, DType.U64, DType.U32)
_ROUNDED = (DType.F64,)


@dataclass(frozen=True, slots=True)
class PortInfo:
    """An input or output as the user sees it; sizes as text, "batch" or "2*height"."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A node that can not be compiled."""

    node: str
    op: str
    reason: str
    remedy: str


@dataclass(frozen=True, slots=True)
class LargeBuffer:
    """A value larger than `compile.MAX_BINDING`, more than which some devices do not bind.

    weight: a GPU gets it in parts. whole: a weight that it cannot get so, by the label of the step
    that reads it; a device has to bind it all.
    """

    name: str
    bytes: int
    weight: bool = False
    whole: bool = False


@dataclass(frozen=True, slots=True)
class CheckReport:
    """See the module's head. `ok`: the model can be exported."""

    ok: bool
    model: str
    opsets: dict[str, int]
    inputs: tuple[PortInfo, ...]
    outputs: tuple[PortInfo, ...]
    symbols: tuple[str, ...]
    nodes: dict[str, int]
    """Operators of the model as it is read (functions inlined, constants folded), with counts."""
    operators: dict[str, int]
    """What is left for kernels after the passes; fused operators have names of their own."""
    unsupported: tuple[Refusal, ...]
    blocked: tuple[str, ...]
    """Nodes that could not be judged, because they follow an unsupported one."""
    weight_bytes: int
    large_buffers: tuple[LargeBuffer, ...]
    size_checks: tuple[str, ...]
    """Equalities between sizes that are verified whenever input shapes change."""
    remarks: tuple[str, ...]
    specialised: tuple[str, ...] = ()
    """Inputs whose values decide shapes, as far as they are found before values are known: a
    session compiles anew for each value of them, and an export needs them fixed."""

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def check(
    model: Source, name: str = "", values: Mapping[str, np.ndarray[Any, Any]] | None = None
) -> CheckReport:
    """Judge a model. `values` fixes inputs, as for `compile_model`.

    Raises:
        InputError: no such file, or a value does not fit its input.
        ModelError: the bytes are no valid ONNX model.
    """
    with judged(model):
        return _check(model, name, values)


def _check(
    model: Source, name: str, values: Mapping[str, np.ndarray[Any, Any]] | None
) -> CheckReport:
    problems = Problems()
    whole: list[LargeBuffer] = []
    graph = load_leniently(model, problems, name, values)
    before = Counter(_label(node) for node in graph.nodes)
    opsets = {**graph.opsets, "": problems.opset}
    refusals = {id(node): _refusal(node, error) for node, error in problems.unsupported}
    if not problems.unsupported:
        try:
            fit_integers(graph)
        except UnsupportedError as beyond:
            refusals[0] = _refused_at(beyond, graph.name)
        optimise(graph)
        for node in graph.nodes:
            reason = supported(node)
            if reason is not None:
                remedy = "Export the model without it, or ask for it to be added"
                refusals[id(node)] = Refusal(node.where(), node.op, reason, remedy)
        if not refusals:
            lowered = _try_to_lower(graph)
            if isinstance(lowered, Refusal):
                refusals[0] = lowered
            else:
                whole = _whole_weights(lowered)
    deciding: list[str] = []
    if refusals:
        first = next(iter(refusals.values()))
        error = UnsupportedError(first.reason, where=first.node)
        deciding = deciding_inputs(model, error, values)
    typed = [n for n in graph.outputs if n in graph.types]
    return CheckReport(
        ok=not refusals,
        model=graph.name,
        opsets=opsets,
        inputs=tuple(_port(graph, n) for n in graph.inputs),
        outputs=tuple(_port(graph, n) for n in typed),
        symbols=_symbols(graph),
        nodes=dict(sorted(before.items())),
        operators=dict(sorted(Counter(_label(node) for node in graph.nodes).items())),
        unsupported=tuple(refusals.values()),
        blocked=tuple(node.where() for node in problems.blocked),
        weight_bytes=sum(_stored(a.size, graph.types[n].dtype) for n, a in graph.constants.items()),
        large_buffers=(*_large(graph), *whole),
        size_checks=tuple(f"{c.left} = {c.right} ({c.where})" for c in graph.checks),
        remarks=(*_remarks(graph), *map(_specialised, deciding)),
        specialised=tuple(deciding),
    )


def _label(node: Node) -> str:
    return f"{node.domain}.{node.op}" if node.domain and node.domain != INTERNAL else node.op


def _refusal(node: Node, error: UnsupportedError) -> Refusal:
    refusal = _refused_at(error, node.where())
    return dataclasses.replace(refusal, op=node.op)


def _try_to_lower(graph: Graph) -> Lowering | Refusal:
    """Lowering may refuse a node for how it is used: it stops at the first such node."""
    try:
        return lower(graph)
    except PywebgpuError as error:
        return _refused_at(error, graph.name)


def _whole_weights(lowering: Lowering) -> list[LargeBuffer]:
    """The weights that are too large still when a GPU's steps have them in parts."""
    steps = [step for steps in on_gpu(lowering) for step in steps]
    large = too_large(lowering.buffers, MAX_BINDING)
    users = {b: step.label for step in reversed(steps) for b in step.operands if b in large}
    return [LargeBuffer(label, large[b], True, True) for b, label in users.items()]


def _refused_at(error: PywebgpuError, name: str) -> Refusal:
    where = error.where or name
    reason = error.what if error.got is None else f"{error.what} (got {error.got})"
    return Refusal(where, where.split(" ")[0], reason, error.remedy)


def _port(graph: Graph, name: str) -> PortInfo:
    type_ = graph.types[name]
    shape = tuple(d if isinstance(d, int) else str(d) for d in type_.shape)
    return PortInfo(name, type_.dtype.value, shape)


def _symbols(graph: Graph) -> tuple[str, ...]:
    dims = [d for name in graph.inputs for d in graph.types[name].shape]
    return tuple(dict.fromkeys(s for d in dims for s in symbols(d)))


def _stored(count: int, dtype: DType) -> int:
    return count * dtype.storage.bytes


def _large(graph: Graph) -> tuple[LargeBuffer, ...]:
    """Values of static size over the limit; weights that are one number take no buffer."""
    found = []
    for name, type_ in graph.types.items():
        array = graph.constants.get(name)
        if array is not None and not any(array.strides) and array.size > 1:
            continue
        count: Dim = product(type_.shape)
        if isinstance(count, int) and _stored(count, type_.dtype) > MAX_BINDING:
            found.append(LargeBuffer(name, _stored(count, type_.dtype), array is not None))
    return tuple(sorted(found, key=lambda b: (-b.bytes, b.name)))


def _specialised(name: str) -> str:
    return (
        f"input '{name}' decides a shape by its value: InferenceSession compiles the model for "
        f"each new value; an export takes one, with --value {name}=..."
    )


def _remarks(graph: Graph) -> list[str]:
    remarks = []
    for name in graph.inputs:
        dtype = graph.types[name].dtype
        if name in graph.limits:
            low, high = graph.limits[name]
            remarks.append(
                f"input '{name}' is {dtype.value}: its values must be {low} to {high}, so that "
                "what is computed from them fits 32 bits, which is checked"
            )
        elif dtype in _NARROWED:
            remarks.append(
                f"input '{name}' is {dtype.value}: its values must fit 32 bits, which is checked"
            )
        elif dtype in _ROUNDED:
            remarks.append(f"input '{name}' is {dtype.value}: it is computed in float32")
    if any(t.dtype is DType.F64 for t in graph.types.values()):
        remarks.append("float64 values are computed in float32")
    for name in graph.outputs:
        if name in graph.types and graph.types[name].dtype in _NARROWED:
            kind = graph.types[name].dtype.value
            remarks.append(f"output '{name}' is {kind}, computed in 32 bits")
    return remarks
