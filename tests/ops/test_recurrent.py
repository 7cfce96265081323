"""LSTM, GRU and RNN against ONNX Runtime, with everything their operators can be told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.ops.agree import agree, by_onnxruntime, feeds_of, model_of

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
FUNCTIONS = {"LSTM": 3, "GRU": 2, "RNN": 1}


def check(
    op: str, direction: str, hidden: int = 5, *, steps: int = 6, batch: int = 3,
    initial: bool = False, lengths: bool = False, peephole: bool = False, bias: bool = True,
    constants: bool = True, symbolic: bool = False, **attrs: Any,
) -> None:  # fmt: skip
    rng = np.random.default_rng()
    d, g, size = 2 if direction == "bidirectional" else 1, GATES[op], 4

    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(np.float32)

    inputs: dict[str, Any] = {
        "X": normal(steps, batch, size),
        "W": normal(d, g * hidden, size),
        "R": normal(d, g * hidden, hidden) / 2,
        "B": normal(d, 2 * g * hidden) if bias else None,
        "lens": rng.integers(1, steps + 1, batch).astype(np.int32) if lengths else None,
        "h": normal(d, batch, hidden) if initial else None,
    }
    if op == "LSTM":
        inputs["c"] = normal(d, batch, hidden) if initial else None
        inputs["P"] = normal(d, 3 * hidden) if peephole else None
    outputs = [("Y", np.float32), ("Yh", np.float32), ("Yc", np.float32)][: 3 - (op != "LSTM")]
    shapes = {"X": ["steps", "batch", size], "lens": ["batch"], "h": [d, "batch", hidden],
              "c": [d, "batch", hidden]} if symbolic else {}  # fmt: skip
    model = model_of(
        op, inputs, outputs, ("W", "R", "B", "P") if constants else (), shapes,
        hidden_size=hidden, direction=direction, **attrs,
    )  # fmt: skip
    feeds = feeds_of(model, inputs)
    agree(model, feeds, by_onnxruntime(model, feeds))


@pytest.mark.parametrize("op", list(GATES))
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_directions(op: str, direction: str) -> None:
    check(op, direction)
    check(op, direction, hidden=8, initial=True, lengths=True, symbolic=True)


@pytest.mark.parametrize("op", list(GATES))
def test_weights_that_are_inputs(op: str) -> None:
    check(op, "bidirectional", hidden=9, constants=False, initial=True)
    check(op, "forward", bias=False)


def test_peepholes_and_coupled_gates() -> None:
    check("LSTM", "forward", peephole=True)
    check("LSTM", "bidirectional", peephole=True, input_forget=1, initial=True)


def test_reset_after_the_product() -> None:
    check("GRU", "bidirectional", linear_before_reset=1, lengths=True)
    check("GRU", "forward", linear_before_reset=1, bias=False)
    check("GRU", "forward", linear_before_reset=1, constants=False)


@pytest.mark.parametrize("op", list(GATES))
def test_activations_and_clip(op: str) -> None:
    names = {
        "LSTM": ["HardSigmoid", "Softsign", "ScaledTanh"],
        "GRU": ["Sigmoid", "Softsign"],
        "RNN": ["Affine"],
    }[op]
    alpha = {"LSTM": [0.3, 0.8], "GRU": [], "RNN": [0.4]}[op]
    beta = {"LSTM": [0.4, 0.7], "GRU": [], "RNN": [0.1]}[op]
    settings = {"activation_alpha": alpha, "activation_beta": beta} if alpha else {}
    check(op, "forward", activations=names, **settings)
    check(op, "forward", clip=0.5)
    two = ["Sigmoid", "Tanh", "Tanh"][3 - FUNCTIONS[op] :] if op != "GRU" else ["Sigmoid", "Tanh"]
    relu = [*two[:-1], "Relu"]
    check(op, "bidirectional", activations=[*two, *relu])


@pytest.mark.parametrize("op", list(GATES))
def test_batch_first(op: str) -> None:
    """ONNX Runtime has no layout 1: transposed by hand."""
    rng = np.random.default_rng()
    g, hidden, size, steps, batch = GATES[op], 5, 4, 6, 3

    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(np.float32)

    inputs = {
        "X": normal(steps, batch, size), "W": normal(2, g * hidden, size),
        "R": normal(2, g * hidden, hidden), "B": None, "lens": None, "h": normal(2, batch, hidden),
    }  # fmt: skip
    attrs: dict[str, Any] = {"hidden_size": hidden, "direction": "bidirectional"}
    if op == "LSTM":
        inputs["c"] = normal(2, batch, hidden)
    outputs = [("Y", np.float32), ("Yh", np.float32), ("Yc", np.float32)][: 3 - (op != "LSTM")]
    model = model_of(op, inputs, outputs, ("W", "R"), **attrs)
    y, *last = by_onnxruntime(model, feeds_of(model, inputs))
    turned = {**inputs, **{k: inputs[k].swapaxes(0, 1) for k in ("X", "h", "c") if k in inputs}}
    model = model_of(op, turned, outputs, ("W", "R"), layout=1, **attrs)
    agree(model, feeds_of(model, turned),
          [y.transpose(2, 0, 1, 3), *(v.swapaxes(0, 1) for v in last)])  # fmt: skip
