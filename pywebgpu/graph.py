"""The model between ONNX and kernels: typed values, nodes in topological order, constants.

Passes rewrite a `Graph` in place through its methods; lowering reads it. Nodes keep ONNX operator
names and attributes; what a pass introduces lives in the domain `INTERNAL`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .codegen.dims import Atom, Dim
from .codegen.spec import Storage

INTERNAL = "pywebgpu"

KNOWN_LIMIT = 4096
"""Tensors of more elements are data, not shapes: their elements are not followed one by one."""


class DType(enum.Enum):
    """ONNX tensor element types that a graph may hold."""

    F32 = "float32"
    F16 = "float16"
    F64 = "float64"
    BF16 = "bfloat16"
    I64 = "int64"
    I32 = "int32"
    I16 = "int16"
    I8 = "int8"
    U64 = "uint64"
    U32 = "uint32"
    U16 = "uint16"
    U8 = "uint8"
    I4 = "int4"
    U4 = "uint4"
    I2 = "int2"
    U2 = "uint2"
    F8E4M3FN = "float8e4m3fn"
    F8E4M3FNUZ = "float8e4m3fnuz"
    F8E5M2 = "float8e5m2"
    F8E5M2FNUZ = "float8e5m2fnuz"
    F4E2M1 = "float4e2m1"
    BOOL = "bool"

    @property
    def storage(self) -> Storage:
        """How a kernel's buffer holds it. F16 is widened unless the export asks for f16."""
        return Storage.F32 if "float" in self.value else Storage.I32

    @property
    def numpy(self) -> np.dtype[Any]:
        """What holds its numbers: those that NumPy lacks are held in the next type that it has,
        an element each."""
        if self.ml_dtype is None:
            return np.dtype(self.value)
        return np.dtype("float32" if self.is_float else self.value.rstrip("24") + "8")

    @property
    def ml_dtype(self) -> str | None:
        """The name in the package ml_dtypes of a type that NumPy lacks."""
        return _ML_DTYPES.get(self)

    @property
    def is_float(self) -> bool:
        return self.storage is Storage.F32

    @property
    def bits(self) -> int:
        """Width of an integer type."""
        return int(self.value.lstrip("uint"))

    @property
    def limits(self) -> tuple[int, int]:
        """The least and the largest number of an integer type."""
        if self.value.startswith("u"):
            return 0, (1 << self.bits) - 1
        return -(1 << self.bits - 1), (1 << self.bits - 1) - 1


_ML_DTYPES = {
    DType.BF16: "bfloat16",
    DType.I4: "int4",
    DType.U4: "uint4",
    DType.I2: "int2",
    DType.U2: "uint2",
    DType.F8E4M3FN: "float8_e4m3fn",
    DType.F8E4M3FNUZ: "float8_e4m3fnuz",
    DType.F8E5M2: "float8_e5m2",
    DType.F8E5M2FNUZ: "float8_e5m2fnuz",
    DType.F4E2M1: "float4_e2m1fn",
}


Shape = tuple[Dim, ...]


@dataclass(frozen=True, slots=True)
class TensorType:
    """Element type and shape; dims known only at run time are `Expr`s over the graph's symbols."""

    dtype: DType
    shape: Shape

    def __str__(self) -> str:
        return f"{self.dtype.value}[{', '.join(map(str, self.shape))}]"


@dataclass(slots=True)
class Node:
    """One operator. An omitted optional input is "" (as in ONNX)."""

    op: str
    inputs: list[str]
    outputs: list[str]
    attrs: dict[str, Any] = field(default_factory=dict)
    domain: str = ""
    name: str = ""

    def where(self) -> str:
        """For error messages: "Conv 'layer1/conv'"."""
        label = self.name or (self.outputs[0] if self.outputs else "")
        return f"{self.op} '{label}'"


@dataclass(frozen=True, slots=True)
class SizeCheck:
    """Two sizes that must be equal when the model runs, because the node at `where` needs it.

    Inference assumes so (and writes one for the other); a runtime must verify it once per set of
    input shapes, before it computes anything.
    """

    left: Dim
    right: Dim
    where: str


@dataclass(slots=True)
class Graph:
    """A model, or the body of one.

    `types` has an entry for every value. `constants` holds arrays for initializers and folded
    values. `values` holds what is known of small integer tensors whose elements are expressions
    over symbols (shapes being computed): flat, row-major, one `Dim` per element.
    `opsets` maps a domain to the version its nodes follow.

    A name in `values` that no node produces is a small tensor to be made of sizes, if anything
    reads it as data (float tensors among them hold whole numbers).
    `equal` is what inference has assumed about sizes: an atom and what to write for it; `checks`
    is what a runtime must verify for that.
    """

    name: str
    inputs: list[str]
    outputs: list[str]
    nodes: list[Node]
    types: dict[str, TensorType]
    constants: dict[str, np.ndarray[Any, Any]]
    opsets: dict[str, int]
    values: dict[str, tuple[Dim, ...]] = field(default_factory=dict)
    equal: dict[Atom, Dim] = field(default_factory=dict)
    checks: list[SizeCheck] = field(default_factory=list)
    counted: dict[str, Dim] = field(default_factory=dict)
    """Sizes that only a run finds out, and the most they can be. Bodies share their graph's."""
    limits: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Inputs whose integers must lie between two numbers, for what is computed from them to fit."""
    _counter: int = 0

    def fresh(self, stem: str) -> str:
        """A value name that is not in use."""
        while True:
            self._counter += 1
            name = f"{stem}__{self._counter}"
            if name not in self.types:
                return name

    def add_constant(self, stem: str, array: np.ndarray[Any, Any]) -> str:
        """A new constant; returns its name."""
        name = self.fresh(stem)
        self.constants[name] = array
        self.types[name] = TensorType(DType(str(array.dtype)), tuple(array.shape))
        return name

    def known(self, name: str) -> tuple[Dim, ...] | None:
        """The elements of an integer or boolean tensor, flat, where they are constants or sizes."""
        if name in self.values:
            return self.values[name]
        array = self.constants.get(name)
        if array is None or array.dtype.kind not in "iub" or array.size > KNOWN_LIMIT:
            return None
        return tuple(int(x) for x in array.ravel())

    def producers(self) -> dict[str, Node]:
        return {out: node for node in self.nodes for out in node.outputs if out}

    def consumers(self) -> dict[str, list[Node]]:
        """Nodes that read each value, once per node."""
        users: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                if name:
                    users.setdefault(name, []).append(node)
        return users

    def prune(self) -> int:
        """Drop nodes and constants that no output needs; returns how many nodes went."""
        needed = set(self.outputs)
        kept: list[Node] = []
        for node in reversed(self.nodes):
            if needed.intersection(out for out in node.outputs if out):
                kept.append(node)
                needed.update(outer_names(node))
        dropped = len(self.nodes) - len(kept)
        self.nodes = kept[::-1]
        self.constants = {k: v for k, v in self.constants.items() if k in needed}
        return dropped


def subgraphs(node: Node) -> list[Graph]:
    """The bodies among a node's attributes (If, Loop, Scan)."""
    found = [value for value in node.attrs.values() if isinstance(value, Graph)]
    for value in node.attrs.values():
        if isinstance(value, list):
            found += [item for item in value if isinstance(item, Graph)]
    return found


def outer_names(node: Node) -> list[str]:
    """Every value that a node reads: its inputs, and what its bodies take from around them."""
    names = dict.fromkeys(name for name in node.inputs if name)
    for body in subgraphs(node):
        own = {*body.inputs, *body.constants, *body.producers()}
        read = [name for inner in body.nodes for name in outer_names(inner)] + body.outputs
        names.update(dict.fromkeys(name for name in read if name not in own))
    return list(names)
