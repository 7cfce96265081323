"""The less common settings of com.microsoft's attention operators, alone and together: right to a
float64 reference on both executors of this machine, or refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pywebgpu.compile import compile_model
from pywebgpu.errors import UnsupportedError
from pywebgpu.session import InferenceSession
from tests.executors_seen import record_executor
from tests.ops.agree import feeds_of, model_of

Array = np.ndarray[Any, Any]
Inputs = dict[str, Array | None]
HEADS, GROUPS, SIZE = 4, 2, 16
BATCH, LENGTH, ROOM = 2, 3, 9
EXECUTORS = [
    pytest.param("wasm", id="wasmtime"),
    pytest.param("webgpu", id="wgpu", marks=pytest.mark.wgpu),
]
CORNERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "soft cap": {"softcap": 1.5},
    "window": {"local_window_size": 2},
    "smooth softmax": {"smooth_softmax": 1},
    "sinks": {"sinks": True},
    "rotated by halves": {"do_rotary": 1},
    "rotated by pairs": {"do_rotary": 1, "rotary_interleaved": 1},
    "packed": {"packed": True},
    "all but sinks": {
        "softcap": 1.5, "local_window_size": 2, "smooth_softmax": 1, "do_rotary": 1,
        "rotary_interleaved": 1, "packed": True, "scale": 0.4,
    },
    "packed with sinks": {"sinks": True, "packed": True, "do_rotary": 1, "local_window_size": 4},
}  # fmt: skip


def floats(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape).astype(np.float32)


def rotated(x: Array, cos: Array, sin: Array, first: int, pairs: bool) -> Array:
    """x (s, h, d) from position `first` on."""
    c, s = (t[first : first + len(x), None].astype(np.float64) for t in (cos, sin))
    a, b = (x[..., ::2], x[..., 1::2]) if pairs else np.split(x, 2, -1)
    real, imaginary = a * c - b * s, a * s + b * c
    if not pairs:
        return np.concatenate([real, imaginary], -1)
    return np.stack([real, imaginary], -1).reshape(x.shape)


def weights_of(scores: Array, seen: Array, cap: float, sinks: Array | None) -> Array:
    """Softmax over the last axis of (h, s, t), of what is seen, with a sink per head if given."""
    scores = cap * np.tanh(scores / cap) if cap else scores
    powers = np.where(seen, np.exp(scores), 0)
    more = 0 if sinks is None else np.exp(sinks.astype(np.float64))[:, None, None]
    return np.asarray(powers / (powers.sum(-1, keepdims=True) + more))


def by_rows(inputs: dict[str, Array], lasts: Array, given: dict[str, Any]) -> Array:
    """Y (b, s, h * d), each row of the batch by itself, in float64."""
    every = []
    for row, last in enumerate(lasts):
        q, k, v = (inputs[n][row].reshape(LENGTH, -1, SIZE).astype(np.float64) for n in "qkv")
        before = int(last) + 1 - LENGTH
        if given.get("do_rotary"):
            pairs = bool(given.get("rotary_interleaved"))
            q, k = (rotated(x, inputs["cos"], inputs["sin"], before, pairs) for x in (q, k))
        k, v = (
            np.concatenate([inputs[n][row, :, :before].swapaxes(0, 1), x]).repeat(
                HEADS // GROUPS, 1
            )
            for n, x in (("past_key", k), ("past_value", v))
        )
        scores = np.einsum("shd,thd->hst", q, k) * (given.get("scale") or SIZE**-0.5)
        at, key = before + np.arange(LENGTH)[:, None], np.arange(len(k))
        window = given.get("local_window_size", len(k) + 1)
        seen = (key <= at) & (key > at - window)
        sinks = inputs["sinks"] if given.get("sinks") else None
        if given.get("smooth_softmax"):
            sinks = np.zeros(HEADS)
        weights = weights_of(scores, seen, given.get("softcap", 0.0), sinks)
        every.append(np.einsum("hst,thd->shd", weights, v).reshape(LENGTH, -1))
    return np.stack(every)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("corner", CORNERS)
def test_group_query_attention(corner: str, executor: str) -> None:
    given, rng = CORNERS[corner], np.random.default_rng()
    turn = np.outer(np.arange(ROOM), rng.uniform(0.01, 1, SIZE // 2))
    lasts = np.array([ROOM - 2, LENGTH + 1], np.int32)
    apart = {
        "q": floats(rng, BATCH, LENGTH, HEADS * SIZE),
        "k": floats(rng, BATCH, LENGTH, GROUPS * SIZE),
        "v": floats(rng, BATCH, LENGTH, GROUPS * SIZE),
        "past_key": floats(rng, BATCH, GROUPS, ROOM, SIZE),
        "past_value": floats(rng, BATCH, GROUPS, ROOM, SIZE),
        "cos": np.cos(turn).astype(np.float32),
        "sin": np.sin(turn).astype(np.float32),
        "sinks": floats(rng, HEADS),
    }
    packed, rotary = given.get("packed"), given.get("do_rotary")
    inputs: Inputs = {
        "q": np.concatenate([apart[n] for n in "qkv"], -1) if packed else apart["q"],
        "k": None if packed else apart["k"],
        "v": None if packed else apart["v"],
        "past_key": apart["past_key"],
        "past_value": apart["past_value"],
        "seqlens_k": lasts,
        "total": np.array(ROOM - 1, np.int32),
        "cos": apart["cos"] if rotary else None,
        "sin": apart["sin"] if rotary else None,
        "positions": None,
        "bias": None,
        "sinks": apart["sinks"] if given.get("sinks") else None,
    }
    attrs = {n: v for n, v in given.items() if n not in ("packed", "sinks")}
    model = model_of(
        "GroupQueryAttention", inputs,
        [(n, np.float32) for n in ("y", "present_key", "present_value")],
        ["total", "cos", "sin"], domain="com.microsoft", num_heads=HEADS, kv_num_heads=GROUPS,
        **attrs,
    )  # fmt: skip
    with InferenceSession(compile_model(model.SerializeToString()), [executor]) as session:
        y = session.run(["y"], feeds_of(model, inputs))[0]
    record_executor({"wasm": "wasmtime", "webgpu": "wgpu"}[executor])
    np.testing.assert_allclose(y, by_rows(apart, lasts, given), 1e-4, 1e-5)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("packed", ["all", "keys and values", "nothing"])
def test_multi_head_attention(packed: str, causal: int, executor: str) -> None:
    rng = np.random.default_rng()
    q, k, v = (floats(rng, BATCH, LENGTH, HEADS, SIZE) for _ in range(3))
    rows = (BATCH, LENGTH, HEADS * SIZE)
    inputs: Inputs = {"q": q.reshape(rows), "k": k.reshape(rows), "v": v.reshape(rows)}
    if packed == "all":
        inputs = {"q": np.stack([q, k, v], 3)}
    elif packed != "nothing":
        inputs = {"q": q.reshape(rows), "k": np.stack([k, v], 3)}
    model = model_of(
        "MultiHeadAttention", inputs, [("y", np.float32)], domain="com.microsoft",
        num_heads=HEADS, unidirectional=causal, scale=0.3,
    )  # fmt: skip
    with InferenceSession(compile_model(model.SerializeToString()), [executor]) as session:
        y = session.run(None, feeds_of(model, inputs))[0]
    record_executor({"wasm": "wasmtime", "webgpu": "wgpu"}[executor])
    seen = np.tril(np.ones((LENGTH, LENGTH), bool)) if causal else np.bool_(True)
    want = [
        np.einsum("hst,thd->shd", weights_of(np.einsum("shd,thd->hst", a, b) * 0.3, seen, 0, None),
                  c).reshape(LENGTH, -1)
        for a, b, c in zip(*(x.astype(np.float64) for x in (q, k, v)), strict=True)
    ]  # fmt: skip
    np.testing.assert_allclose(y, np.stack(want), 1e-4, 1e-5)


def refused(op: str, inputs: Inputs, outputs: str, **attrs: Any) -> str:
    model = model_of(op, inputs, [(n, np.float32) for n in outputs.split()], ["total"],
                     domain="com.microsoft", num_heads=HEADS, **attrs)  # fmt: skip
    with pytest.raises(UnsupportedError) as caught:
        compile_model(model.SerializeToString())
    return str(caught.value)


@pytest.mark.parametrize(
    ("attrs", "more", "named"),
    [
        ({"k_quant_type": "PER_TENSOR"}, {}, "attribute k_quant_type = 'PER_TENSOR'"),
        ({"v_quant_type": "PER_CHANNEL"}, {}, "attribute v_quant_type = 'PER_CHANNEL'"),
        ({}, {"k_scale": np.ones(1, np.float32)}, "input k_scale"),
        ({"softcap": -1.0}, {}, "attribute softcap = -1.0"),
        ({"local_window_size": 0}, {}, "attribute local_window_size = 0"),
        ({"do_rotary": 1}, {}, "no cos_cache"),
        ({"of_tomorrow": 1}, {}, "attribute of_tomorrow = 1"),
        ({}, {"past_value": None}, "only one of past_key and past_value"),
        ({"qk_output": 1}, {}, "its scores as an output"),
    ],
)
def test_what_group_query_attention_does_not_do(
    attrs: dict[str, Any], more: dict[str, Any], named: str
) -> None:
    rng = np.random.default_rng()
    sides: Inputs = {n: floats(rng, 1, LENGTH, h * SIZE) for n, h in (("q", HEADS), ("k", GROUPS))}
    inputs: Inputs = {
        **sides,
        "v": sides["k"],
        "past_key": floats(rng, 1, GROUPS, ROOM, SIZE),
        "past_value": floats(rng, 1, GROUPS, ROOM, SIZE),
        "seqlens_k": np.array([ROOM - 1], np.int32),
        "total": np.array(ROOM, np.int32),
        **dict.fromkeys(("cos", "sin", "positions", "bias", "sinks")),
    }
    outputs = "y key value scores" if "qk_output" in attrs else "y key value"
    text = refused("GroupQueryAttention", inputs | more, outputs, kv_num_heads=GROUPS, **attrs)
    assert "GroupQueryAttention with " in text
    assert named in text


@pytest.mark.parametrize("name", ["softcap", "local_window_size", "do_rotary"])
def test_multi_head_attention_has_no(name: str) -> None:
    rng = np.random.default_rng()
    inputs: Inputs = {n: floats(rng, 1, LENGTH, HEADS * SIZE) for n in "qkv"}
    assert f"attribute {name} = 1" in refused("MultiHeadAttention", inputs, "y", **{name: 1})


def test_multi_head_attention_refuses_what_decoding_loops_feed() -> None:
    rng = np.random.default_rng()
    inputs: Inputs = {
        **{n: floats(rng, 1, 1, HEADS * SIZE) for n in "qkv"},
        **dict.fromkeys(("projections", "mask", "bias")),
        "past_key": floats(rng, 1, HEADS, ROOM, SIZE),
        "past_value": floats(rng, 1, HEADS, ROOM, SIZE),
        "length": np.array([2], np.int32),
    }
    text = refused("MultiHeadAttention", inputs, "y key value")
    assert "MultiHeadAttention with input past_sequence_length" in text
