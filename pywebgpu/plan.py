"""What both runtimes play: buffers, kernels and the order to run them in.

A `Plan` is target-free. Its kernels are specs; the `model.*.wasm` and `kernels.*.wgsl.json` of a
bundle hold the generated code for each of them, in the plan's order. Sizes are `Dim`s over the
plan's symbols, evaluated by the runtime once per new set of input shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .codegen.dims import Dim
from .codegen.program import Program, Read, reads
from .codegen.spec import KernelSpec, Storage
from .graph import DType, Shape, SizeCheck

FORMAT_VERSION = 1

_ORT_TYPES = {"float32": "float", "float64": "double"}


@dataclass(frozen=True, slots=True)
class Port:
    """A model input or output as the user sees it, and the buffer that holds it.

    `dtype` is the user's; the buffer's elements are `storage` (int64 arrives range-checked as
    int32, bool as 0/1 in int32, float16 widened to float32 unless stored as f16).
    """

    name: str
    dtype: DType
    shape: Shape
    storage: Storage
    buffer: int
    limits: tuple[int, int] | None = None
    """Of an input: what its integers must lie between, if that is not all that 32 bits hold."""


@dataclass(frozen=True, slots=True)
class NodeArg:
    """An input or output as ONNX Runtime describes it: `type` such as "tensor(float)", `shape`
    of ints and symbols' names (or expressions over them)."""

    name: str
    type: str
    shape: list[int | str]


def node_arg(name: str, dtype: str, shape: Sequence[int | str]) -> NodeArg:
    """`dtype` is ONNX's name of the element type, "float32"."""
    return NodeArg(name, f"tensor({_ORT_TYPES.get(dtype, dtype)})", list(shape))


@dataclass(frozen=True, slots=True)
class WeightBuffer:
    """Constant bytes at `offset` of the weight space (all shards joined), 256-byte aligned.

    A GPU's steps may have a large one in parts, each of which begins at a multiple of 16.
    """

    offset: int
    bytes: int


@dataclass(frozen=True, slots=True)
class SlotBuffer:
    """Activation memory that lives as `slot`: buffers whose lives do not overlap share a slot.

    Input and output ports have slots of their own.
    """

    slot: int
    bytes: Dim


Buffer = WeightBuffer | SlotBuffer


@dataclass(frozen=True, slots=True)
class Step:
    """One kernel call: buffer numbers in the spec's operand order, then the output's."""

    kernel: int
    operands: tuple[int, ...]
    output: int
    args: tuple[Dim, ...]
    label: str
    """For people: the nodes it came from."""
    kept: int | None = None
    """The buffer of a second output (see `spec.Beside`, `spec.Prologue` and `spec.Epilogue`)."""


@dataclass(frozen=True, slots=True)
class Plan:
    """`slots` are sizes in bytes: the maximum over the buffers that share one.

    `symbols` names what the input shapes bind: a Port's dim that is just a symbol binds it, and
    every other dim is checked against its expression. `checks` are further conditions on the
    symbols ("at most 512 positions") that a runtime verifies before it computes anything.
    """

    name: str
    symbols: tuple[str, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    buffers: tuple[Buffer, ...]
    slots: tuple[Dim, ...]
    kernels: tuple[KernelSpec, ...]
    steps: tuple[Step, ...]
    weight_bytes: int
    checks: tuple[SizeCheck, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)
    program: Program = ()
    """In which order the steps are played, where data decide it; empty: in theirs."""
    gpu: Plan | None = None
    """The same with the kernels and steps that a GPU plays in their place, where those differ."""

    @property
    def on_gpu(self) -> Plan:
        return self.gpu or self

    @property
    def counted(self) -> tuple[Read, ...]:
        """The sizes that only a run finds out. Buffers have room for the most they can be."""
        return tuple(reads(self.program))
