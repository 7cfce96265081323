"""Attention with caches as ONNX Runtime's exporters write it, against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pywebgpu.compile import compile_model
from pywebgpu.session import InferenceSession
from tests.executors_seen import record_executor
from tests.ops.agree import agree, by_onnxruntime, feeds_of, model_of
from tests.plan_eval import play

Array = np.ndarray[Any, Any]
Inputs = dict[str, Array | None]
DOMAIN = "com.microsoft"
HEADS, SIZE = 4, 16
few = settings(max_examples=12, deadline=None)


def _floats(rng: np.random.Generator, *shape: int) -> Array:
    return rng.normal(size=shape).astype(np.float32)


def _results(model: onnx.ModelProto, feeds: dict[str, Array]) -> list[tuple[str, list[Array]]]:
    compiled = compile_model(model.SerializeToString())
    found = [("played", list(play(compiled, feeds).values()))]
    with InferenceSession(compiled, ["wasm"], threads=1) as session:
        found.append(("wasmtime", list(session.run(None, dict(feeds)))))
    record_executor("wasmtime")
    return found


def _rotation(rng: np.random.Generator, half: int, positions: int) -> tuple[Array, Array]:
    turn = np.outer(np.arange(positions), rng.uniform(0.01, 1, half))
    return np.cos(turn).astype(np.float32), np.sin(turn).astype(np.float32)


@few
@given(st.data())
def test_group_query_attention(data: st.DataObject) -> None:
    """Every row of the batch at its own length; what a row has no use for is not compared."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    kv_heads = data.draw(st.sampled_from([1, 2, 4]))
    step = data.draw(st.sampled_from(["prompt", "decode", "chunk"]))
    packed, shared = data.draw(st.booleans()), data.draw(st.booleans())
    rotary = data.draw(st.sampled_from(["none", "halves", "pairs"]))
    batch = 1 if step == "chunk" else int(rng.integers(1, 4))
    length = 1 if step == "decode" else int(rng.integers(2, 6))
    before = 0 if step == "prompt" else int(rng.integers(1, 20))
    total = before + length
    lasts = rng.integers(0, total, batch)
    lasts[rng.integers(batch)] = total - 1
    room = total + int(rng.integers(1, 5)) if shared else before
    cos, sin = _rotation(rng, SIZE // 2, total + 8)
    inputs: Inputs = {
        "q": _floats(rng, batch, length, (HEADS + (2 * kv_heads if packed else 0)) * SIZE),
        "k": None if packed else _floats(rng, batch, length, kv_heads * SIZE),
        "v": None if packed else _floats(rng, batch, length, kv_heads * SIZE),
        "past_key": _floats(rng, batch, kv_heads, room, SIZE),
        "past_value": _floats(rng, batch, kv_heads, room, SIZE),
        "seqlens_k": lasts.astype(np.int32),
        "total": np.array(total, np.int32),
        "cos": cos if rotary != "none" else None,
        "sin": sin if rotary != "none" else None,
        "positions": None,
        "bias": None,
        "sinks": None,
    }
    if rotary != "none" and data.draw(st.booleans()):
        # ONNX Runtime reads one start for all rows, except in a step of one token.
        start = rng.integers(0, before + 8, (batch if length == 1 else 1, 1))
        inputs["positions"] = np.broadcast_to(start + np.arange(length), (batch, length)).copy()
    if data.draw(st.booleans()):
        planes = [int(rng.choice([1, most])) for most in (batch, HEADS)]
        inputs["bias"] = _floats(rng, *planes, length, total)
    smooth = data.draw(st.sampled_from(["", "", "smooth", "sinks"]))
    if smooth == "sinks":
        inputs["sinks"] = _floats(rng, HEADS)
    model = model_of(
        "GroupQueryAttention",
        inputs,
        [(name, np.float32) for name in ("y", "present_key", "present_value")],
        ["total", "cos", "sin"],
        domain=DOMAIN,
        num_heads=HEADS,
        kv_num_heads=kv_heads,
        do_rotary=int(rotary != "none"),
        rotary_interleaved=int(rotary == "pairs"),
        local_window_size=data.draw(st.sampled_from([-1, -1, 1, 3])),
        softcap=data.draw(st.sampled_from([0.0, 0.0, 2.0])),
        smooth_softmax=int(smooth == "smooth"),
        scale=data.draw(st.sampled_from([0.0, 0.3])),
    )
    feeds = feeds_of(model, inputs)
    expected = by_onnxruntime(model, feeds)
    for how, found in _results(model, feeds):
        assert [x.shape for x in found] == [x.shape for x in expected], how
        for row, last in enumerate(lasts):
            valid = min(length, last + 1)
            pairs = [(found[0][row, :valid], expected[0][row, :valid])]
            pairs += [
                (found[i][row, :, : last + 1], expected[i][row, :, : last + 1]) for i in (1, 2)
            ]
            for got, want in pairs:
                np.testing.assert_allclose(got, want, 1e-4, 1e-5, err_msg=how)


def test_the_total_as_an_input() -> None:
    """How long the present is cannot be told then: compiled for each total that is fed."""
    rng = np.random.default_rng()
    inputs: Inputs = {
        "q": _floats(rng, 1, 1, HEADS * SIZE),
        "k": _floats(rng, 1, 1, SIZE),
        "v": _floats(rng, 1, 1, SIZE),
        "past_key": _floats(rng, 1, 1, 5, SIZE),
        "past_value": _floats(rng, 1, 1, 5, SIZE),
        "seqlens_k": np.array([5], np.int32),
        "total": np.array(6, np.int32),
    }
    outputs = [(name, np.float32) for name in ("y", "present_key", "present_value")]
    attrs = {"num_heads": HEADS, "kv_num_heads": 1}
    model = model_of("GroupQueryAttention", inputs, outputs, domain=DOMAIN, **attrs)
    with InferenceSession(model.SerializeToString(), ["wasm"]) as session:
        for total in (6, 4):
            feeds = feeds_of(model, inputs)
            feeds["total"] = np.array(total, np.int32)
            feeds["seqlens_k"] = np.array([total - 1], np.int32)
            for got, want in zip(
                session.run(None, feeds), by_onnxruntime(model, feeds), strict=True
            ):
                assert got.shape == want.shape
                rows = slice(None) if want.ndim == 3 else (..., slice(total), slice(None))
                np.testing.assert_allclose(got[rows], want[rows], 1e-4, 1e-5)
        assert session.specialised == ("total",)


@few
@given(st.data())
def test_multi_head_attention(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    batch, length, past = (int(rng.integers(low, 5)) for low in (1, 1, 1))
    keys = length if data.draw(st.booleans()) else int(rng.integers(1, 6))
    kept, crossed = data.draw(st.sampled_from([(False, False), (True, False), (False, True)]))
    if kept:
        keys = length
    total = keys + (past if kept else 0)
    width = HEADS * SIZE
    masks: dict[str, Array | None] = {
        "none": None,
        "keys": rng.integers(0, 2, (batch, total)).astype(np.int32),
        "pairs": rng.integers(0, 2, (batch, length, total)).astype(np.int32),
        "counts": rng.integers(1, total + 1, batch).astype(np.int32),
    }
    sides = [(batch, HEADS, keys, SIZE) if crossed else (batch, keys, width)] * 2
    inputs: Inputs = {
        "q": _floats(rng, batch, length, width),
        "k": _floats(rng, *sides[0]),
        "v": _floats(rng, *sides[1]),
        "projections": _floats(rng, 3 * width) if data.draw(st.booleans()) else None,
        "mask": masks[data.draw(st.sampled_from(list(masks)))],
        "bias": _floats(rng, 1, HEADS, length, total) if data.draw(st.booleans()) else None,
        "past_key": _floats(rng, batch, HEADS, past, SIZE) if kept else None,
        "past_value": _floats(rng, batch, HEADS, past, SIZE) if kept else None,
    }
    names = ["y", "present_key", "present_value"] if not crossed else ["y"]
    model = model_of(
        "MultiHeadAttention",
        inputs,
        [(name, np.float32) for name in names],
        domain=DOMAIN,
        num_heads=HEADS,
        mask_filter_value=-3.0,
        unidirectional=int(keys == length and data.draw(st.booleans())),
    )
    feeds = feeds_of(model, inputs)
    agree(model, feeds, by_onnxruntime(model, feeds))


@pytest.mark.parametrize("packed", ["all", "keys and values"])
def test_packed_multi_head_attention(packed: str) -> None:
    """ONNX Runtime's CPU does not take these; the same apart is what it is compared with."""
    rng = np.random.default_rng()
    q, k, v = (_floats(rng, 2, 5, HEADS, SIZE) for _ in range(3))
    apart: Inputs = {n: x.reshape(2, 5, -1) for n, x in (("q", q), ("k", k), ("v", v))}
    together: Inputs = (
        {"q": np.stack([q, k, v], 3)}
        if packed == "all"
        else {"q": apart["q"], "k": np.stack([k, v], 3)}
    )
    outputs = [("y", np.float32)]
    name = "MultiHeadAttention"
    reference = model_of(name, apart, outputs, domain=DOMAIN, num_heads=HEADS)
    model = model_of(name, together, outputs, domain=DOMAIN, num_heads=HEADS)
    expected = by_onnxruntime(reference, feeds_of(reference, apart))
    agree(model, feeds_of(model, together), expected)
