"""The benchmark cases: single operators as small ONNX models, and whole models from the zoo.

One definition serves our exporter and every peer, so that all run the same arithmetic on the same
weights. Operator models take their left operand as input and hold the right one as a constant, as
the layers of a network do.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.bench import layers, text
from tests.models import zoo


@dataclass(frozen=True)
class Case:
    """`make` writes the model to a path; `dims` binds its symbolic sizes; `flops` per run.

    `op` describes a single-operator case to peers that do not read ONNX ({} for whole models);
    `zoo` names the model of a whole-model case. `int8`: ours and ONNX Runtime's own quantised
    forms of the model take part too. `dtype`: "f32"; "f16", where everybody's floats are; "int4",
    where the model's weights are.
    """

    name: str
    make: Callable[[Path], None]
    dims: dict[str, int]
    flops: float
    op: dict[str, object] = field(default_factory=dict)
    zoo: str = ""
    int8: bool = False
    dtype: str = "f32"

    @property
    def model(self) -> str:
        """The name of the ONNX model that `make` writes, which cases may share."""
        return self.name.removesuffix(" f16")


def _save(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, ...]],
    output: tuple[str, tuple[int, ...]],
    constants: dict[str, np.ndarray],
) -> None:
    graph = helper.make_graph(
        nodes,
        path.stem,
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(output[0], TensorProto.FLOAT, output[1])],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _random(*shape: int) -> np.ndarray:
    # A fixed seed, so that every peer multiplies the same numbers; scaled to keep outputs near 1.
    fan_in = int(np.prod(shape[1:])) if len(shape) == 4 else shape[0]
    generator = np.random.default_rng(7)
    return (generator.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32)


def matmul(m: int, k: int, n: int) -> Case:
    """y = x @ W with x of m x k and constant W of k x n."""

    def make(path: Path) -> None:
        node = helper.make_node("MatMul", ["x", "w"], ["y"])
        _save(path, [node], {"x": (m, k)}, ("y", (m, n)), {"w": _random(k, n)})

    op = {"op": "matmul", "m": m, "k": k, "n": n}
    return Case(f"matmul {m}x{k}x{n}", make, {}, 2.0 * m * k * n, op)


def conv(
    label: str, cin: int, cout: int, kernel: int, size: int, stride: int = 1, groups: int = 1
) -> Case:
    """Convolution with 'same' padding and bias, batch 1, NCHW as in every exported model."""
    out = -(-size // stride)
    pad = kernel // 2

    def make(path: Path) -> None:
        node = helper.make_node(
            "Conv", ["x", "w", "b"], ["y"], kernel_shape=[kernel] * 2, strides=[stride] * 2,
            pads=[pad] * 4, group=groups,
        )  # fmt: skip
        weights = {"w": _random(cout, cin // groups, kernel, kernel), "b": _random(cout)}
        _save(path, [node], {"x": (1, cin, size, size)}, ("y", (1, cout, out, out)), weights)

    flops = 2.0 * out * out * cout * (cin // groups) * kernel * kernel
    op = {
        "op": "depthwise" if groups == cin else "conv",
        "cin": cin, "cout": cout, "kernel": kernel, "size": size, "stride": stride, "pad": pad,
    }  # fmt: skip
    return Case(label, make, {}, flops, op)


def constants(path: Path) -> dict[str, np.ndarray]:
    """The constants of an operator case's model, for peers that take them as tensors."""
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


OPERATORS: list[Case] = [
    matmul(128, 384, 384),
    matmul(128, 384, 1536),
    matmul(128, 1536, 384),
    matmul(128, 768, 3072),
    matmul(1, 768, 3072),
    matmul(512, 512, 512),
    matmul(1024, 1024, 1024),
    conv("conv 3x3 64->64 @56", 64, 64, 3, 56),
    conv("conv 1x1 64->256 @56", 64, 256, 1, 56),
    conv("depthwise 3x3 96 @112", 96, 96, 3, 112, groups=96),
    conv("depthwise 3x3/2 96 @112", 96, 96, 3, 112, stride=2, groups=96),
    conv("depthwise 5x5 96 @56", 96, 96, 5, 56, groups=96),
]


def _model(name: str) -> zoo.ZooModel:
    return zoo.MODELS.get(name) or text.MODELS[name]


def whole(name: str, **dims: int) -> Case:
    """A model of the zoo, or of `text`, with its symbolic sizes bound; `past` also "past + 1"."""
    if "past" in dims:
        dims["past + 1"] = dims["past"] + 1

    def make(path: Path) -> None:
        path.write_bytes(zoo.build_once(_model(name)).read_bytes())

    label = " ".join([name, *(f"{k}={v}" for k, v in dims.items() if k != "past + 1")])
    return Case(label, make, dims, 0.0, zoo=name)


def encoder_case(label: str, sequence: int, **sizes: int) -> Case:
    """`layers.encoder`, one text of that length."""
    depth, hidden = sizes["layers"], sizes["hidden"]
    flops = depth * sequence * (24.0 * hidden**2 + 4 * sequence * hidden)
    make = functools.partial(layers.encoder, **sizes)
    return Case(f"{label} s{sequence}", make, {"batch": 1, "sequence": sequence}, flops)


def attention_case(heads: int, length: int, size: int) -> Case:
    """One attention, in the operator that ONNX Runtime has a kernel for."""
    make = functools.partial(layers.attention, heads=heads, length=length, size=size)
    name = f"attention {heads} heads, s {length}, d {size}"
    return Case(name, make, {}, 4.0 * heads * length * length * size)


def decoder_case(past: int, **sizes: int) -> Case:
    """`layers.decoder`, one step after `past` tokens; the products alone are counted."""
    size = sizes["hidden"] // sizes["heads"]
    per_layer = (2 * sizes["heads"] + 2 * sizes["kv_heads"]) * size + 3 * sizes["wide"]
    flops = 2.0 * sizes["layers"] * sizes["hidden"] * per_layer
    make = functools.partial(layers.decoder, **sizes)
    label = f"Llama step, hidden {sizes['hidden']}, {sizes['layers']} layers, past {past}"
    return Case(label, make, {"past": past}, flops)


def int4_product(m: int, k: int, n: int) -> Case:
    """y = x @ W with weights in 4 bits, in ONNX Runtime's own operator."""
    make = functools.partial(layers.product4, m=m, k=k, n=n)
    return Case(f"matmul {m}x{k}x{n} int4", make, {}, 2.0 * m * k * n, dtype="int4")


def int4_decoder(past: int, **sizes: int) -> Case:
    """`layers.genai_decoder`, one step after `past` tokens; the products alone are counted."""
    plain = decoder_case(past, **sizes)
    make = functools.partial(layers.genai_decoder, past=past, **sizes)
    name = f"{plain.name}, int4"
    return replace(plain, name=name, make=make, dims={"seqlens_k": past}, dtype="int4")


def in_half(case: Case) -> Case:
    return replace(case, name=f"{case.name} f16", dtype="f16")


def models() -> list[Case]:
    """Whole models; random weights except MiniLM's and the digits network's."""
    return [
        whole("digits", batch=1),
        whole("minilm", batch=1, sequence=128),
        whole("bert-base-2", batch=1, sequence=384),
        whole("t5-small-encoder", batch=1, sequence=256),
        whole("bart-base-encoder", batch=1, sequence=384),
        whole("gpt2-2", batch=1, sequence=64),
        whole("gpt2-2-step", batch=1, past=63),
        whole("vit-tiny", batch=1),
        whole("resnet-50", batch=1),
        whole("mobilenet-v2", batch=1),
        whole("mobilenet-v3-small", batch=1),
        whole("squeezenet-1.1", batch=1),
    ]


def int8_models() -> list[Case]:
    """Whole models, quantised by whoever can."""
    found = [
        whole("digits", batch=1),
        whole("minilm", batch=1, sequence=128),
        whole("bert-base-2", batch=1, sequence=384),
        whole("vit-tiny", batch=1),
        whole("resnet-50", batch=1),
        whole("mobilenet-v2", batch=1),
    ]
    return [replace(case, name=f"{case.name} int8", int8=True) for case in found]


def feeds(case: Case, path: Path) -> dict[str, np.ndarray]:
    """The inputs that every runtime gets: random, the same for all; lengths are in the case's
    dims."""
    if case.zoo:
        return zoo.feeds_for(_model(case.zoo), dims=case.dims)
    generator = np.random.default_rng(11)
    found: dict[str, np.ndarray] = {}
    for port in onnx.load(path).graph.input:
        type_ = port.type.tensor_type
        shape = [case.dims[d.dim_param] if d.dim_param else d.dim_value for d in type_.shape.dim]
        if type_.elem_type == TensorProto.FLOAT:
            found[port.name] = generator.standard_normal(shape, dtype=np.float32)
        else:
            found[port.name] = np.full(shape, case.dims[port.name], np.int32)
    return found
