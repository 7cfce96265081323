"""Inputs whose values decide shapes: which they are, and compiling for the values they are fed.

A plan's sizes are arithmetic on input shapes. Where an input's *elements* say what a shape, an axis
or a number of steps is (Reshape's shape, TopK's k), that input is made a constant, and the model is
compiled once for each value it takes. Inputs that are plain data are left alone: fixing those would
turn the compiler into an interpreter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .compile import Compiled, compile_model
from .errors import UnsupportedError
from .graph import KNOWN_LIMIT, DType, Graph, Node, Shape, TensorType, outer_names
from .infer import Problems
from .load import Source, load_leniently
from .onnx_types import LATEST
from .plan import Plan, Port

Array = np.ndarray[Any, Any]

_SETTINGS: dict[str, tuple[int, ...]] = {
    "AffineGrid": (1,),
    "BlackmanWindow": (0,),
    "CenterCropPad": (1,),
    "Col2Im": (1, 2),
    "Compress": (1,),
    "ConstantOfShape": (0,),
    "CumProd": (1,),
    "CumSum": (1,),
    "DFT": (1, 2),
    "Dropout": (1, 2),
    "Expand": (1,),
    "HammingWindow": (0,),
    "HannWindow": (0,),
    "If": (0,),
    "Loop": (0, 1),
    "MaxUnpool": (2,),
    "MelWeightMatrix": (0, 1, 2, 3, 4),
    "NonMaxSuppression": (2, 3, 4),
    "OneHot": (1,),
    "Pad": (1, 3),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "STFT": (1, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Trilu": (1,),
    "Unsqueeze": (1,),
    "Upsample": (1,),
    "com.microsoft.GroupQueryAttention": (6,),
    **{
        f"Reduce{kind}": (1,)
        for kind in (
            *("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean"),
            *("Min", "Prod", "Sum", "SumSquare"),
        )
    },
}
"""The inputs of operators (in their newest form) whose elements decide shapes, axes or trips."""

_ASKS_SHAPE = {"Shape", "Size"}


def deciding_inputs(
    model: Source, error: UnsupportedError, values: Mapping[str, Array] | None = None
) -> list[str]:
    """The inputs to fix so that what `compile_model` refused with `error` may be compiled.

    Empty when that would not help: a node is refused for another reason, or its setting is
    computed from data (a tensor of rank 2, or of more than `KNOWN_LIMIT` elements).
    """
    problems = Problems()
    graph = load_leniently(model, problems, fixed=values)
    if problems.unsupported:
        failing = [[node] for node, _ in problems.unsupported]
    else:
        named = [node for node in graph.nodes if error.where.startswith(node.where())]
        failing = [named or graph.nodes]  # passes may have renamed the node that was refused
    found: dict[str, None] = {}
    for nodes in failing:
        names = settings_from_inputs(graph, nodes)
        if not names:
            return []
        found.update(dict.fromkeys(names))
    return list(found)


def settings_from_inputs(graph: Graph, nodes: Iterable[Node]) -> list[str]:
    """The graph's inputs that the settings of `nodes` are computed from. A node with a setting that
    comes from plain data is passed over."""
    producers = graph.producers()
    found: set[str] = set()
    for node in nodes:
        indices = _SETTINGS.get(f"{node.domain}.{node.op}".lstrip("."), ())
        settings = [node.inputs[i] for i in indices if i < len(node.inputs) and node.inputs[i]]
        origins = [_origins(graph, producers, name) for name in settings]
        found.update(*(o for o in origins if None not in origins and o is not None))
    return [name for name in graph.inputs if name in found]


def _origins(graph: Graph, producers: Mapping[str, Node], name: str) -> set[str] | None:
    """The inputs that `name` is computed from; None if one of them is plain data."""
    inputs = set(graph.inputs)
    found: set[str] = set()
    todo, seen = [name], {name}
    while todo:
        name = todo.pop()
        if name in graph.constants or name in graph.values:
            continue
        if name in inputs:
            if not _is_small(graph.types[name].shape):
                return None
            found.add(name)
            continue
        node = producers.get(name)
        if node is None or node.op in _ASKS_SHAPE:
            continue
        new = [n for n in outer_names(node) if n not in seen]
        seen.update(new)
        todo += new
    return found


def _is_small(shape: Shape) -> bool:
    return len(shape) <= 1 and all(not isinstance(d, int) or d <= KNOWN_LIMIT for d in shape)


class Specialising:
    """A model that is compiled once its deciding inputs (`names`) have values."""

    def __init__(self, model: Source, names: Sequence[str]) -> None:
        self._model = model
        self.names = tuple(names)
        self.interface = _interface(model)

    @property
    def nothing(self) -> Compiled:
        """A plan without steps, to find out what runs plans here before there is one."""
        graph = Graph(self.interface.name, [], [], [], {}, {}, {"": LATEST})
        return compile_model(graph)

    def compile(self, feeds: Mapping[str, Array]) -> Compiled:
        """The model for the values that `feeds` holds. `names` grows where sizes that are known
        now bring to light that other inputs decide as well.

        Raises:
            UnsupportedError: it cannot be compiled for these values either.
            ModelError: the values contradict the model.
        """
        while True:
            values = {name: feeds[name] for name in self.names}
            try:
                return compile_model(self._model, values=values)
            except UnsupportedError as error:
                more = deciding_inputs(self._model, error, values)
                if not more:
                    raise
                self.names += tuple(more)


def compile_or_wait(model: Any) -> Compiled | Specialising:
    """The model compiled, or, where values of inputs decide shapes, ready to be.

    Raises:
        ModelError, InputError: the model cannot be read.
        UnsupportedError: it uses something that cannot be compiled.
    """
    try:
        return compile_model(model)
    except UnsupportedError as error:
        names = [] if isinstance(model, Graph) else deciding_inputs(model, error)
        if not names:
            raise
        return Specialising(model, names)


def _interface(model: Source) -> Plan:
    """The model's inputs and outputs, as far as they are known, as a plan that does nothing."""
    graph = load_leniently(model, Problems())
    unknown = TensorType(DType.F32, ())

    def ports(names: list[str]) -> tuple[Port, ...]:
        types = [(name, graph.types.get(name, unknown)) for name in names]
        return tuple(Port(n, t.dtype, t.shape, t.dtype.storage, -1) for n, t in types)

    return Plan(graph.name, (), ports(graph.inputs), ports(graph.outputs), (), (), (), (), 0)


def key_of(names: Iterable[str], feeds: Mapping[str, Array]) -> tuple[tuple[str, Any, bytes], ...]:
    """What tells two specialisations apart."""
    return tuple((name, feeds[name].shape, feeds[name].tobytes()) for name in names)
