"""Generate text with a decoder that keeps its keys and values: one bundle, one token a run.

    python examples/generate.py [--model llama|gpt2|qwen2] [--tokens 24] [--provider wasm|webgpu]

A small transformers model with random weights (so what it says is noise) is exported as people
export decoders for generation: a run takes the new tokens, an attention mask and the past keys and
values, and gives logits and the keys and values with the new token's. `batch` and `past` are
symbolic: the session is made once, and no step compiles anything. Every token is compared with
PyTorch's own generation.

Needs ``pip install -e '.[examples]'``.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from pywebgpu import InferenceSession

LAYERS, HEADS, SIZE, VOCABULARY = 2, 4, 8, 96
KEY_VALUE_HEADS = {"llama": 2, "qwen2": 2, "gpt2": HEADS}  # fewer than heads: grouped queries


def build(kind: str) -> Any:
    """A decoder of two layers."""
    import torch
    import transformers

    torch.manual_seed(0)
    if kind == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=VOCABULARY, n_embd=HEADS * SIZE, n_layer=LAYERS, n_head=HEADS
        )
        return transformers.GPT2LMHeadModel(config).eval()
    name = {"llama": "Llama", "qwen2": "Qwen2"}[kind]
    config = getattr(transformers, f"{name}Config")(
        vocab_size=VOCABULARY,
        hidden_size=HEADS * SIZE,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_VALUE_HEADS[kind],
    )
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


def export(model: Any, kind: str, path: Path) -> None:
    """The model's step as ONNX."""
    import torch
    import transformers

    class Step(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any, past: list[Any]) -> Any:
            cache = transformers.DynamicCache(list(zip(past[::2], past[1::2], strict=True)))
            out = self.model(
                input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache,
                use_cache=True,
            )  # fmt: skip
            kept = [t for layer in out.past_key_values.layers for t in (layer.keys, layer.values)]
            return (out.logits, *kept)

    batch, before = 2, 5  # any sizes but 0 and 1, which the exporter would take for fixed
    past = [torch.randn(batch, KEY_VALUE_HEADS[kind], before, SIZE) for _ in range(2 * LAYERS)]
    rows, length = torch.export.Dim("batch"), torch.export.Dim("past")
    names = [f"past_{i // 2}_{'key' if i % 2 == 0 else 'value'}" for i in range(2 * LAYERS)]
    torch.onnx.export(
        Step(),
        (torch.ones(batch, 1, dtype=torch.int64), torch.ones(batch, before + 1).long(), past),
        str(path),
        input_names=["input_ids", "attention_mask", *names],
        output_names=["logits", *(n.replace("past", "present") for n in names)],
        dynamic_shapes=({0: rows}, {0: rows, 1: length + 1}, [{0: rows, 2: length}] * len(past)),
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def generate(session: InferenceSession, first: np.ndarray[Any, Any], count: int) -> Any:
    """The `count` most likely tokens after `first` int64[batch, 1], one run for each."""
    names = [port.name for port in session.get_inputs()][2:]
    batch = len(first)
    kv_heads = session.get_inputs()[2].shape[1]
    past = [np.zeros((batch, kv_heads, 0, SIZE), np.float32) for _ in names]
    token, found = first, []
    for position in range(count):
        feeds = {
            "input_ids": token,
            "attention_mask": np.ones((batch, position + 1), np.int64),
            **dict(zip(names, past, strict=True)),
        }
        logits, *past = session.run(None, feeds)
        token = logits[:, -1:].argmax(-1)
        found.append(token)
    return np.concatenate(found, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", choices=list(KEY_VALUE_HEADS), default="llama")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--provider", choices=["wasm", "webgpu"], action="append")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    import torch

    model = build(args.model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{args.model}.onnx"
        export(model, args.model, path)
        onnx_bytes = path.read_bytes()
    first = np.array([[1], [2], [7]])
    with torch.no_grad():
        whole = model.generate(
            torch.from_numpy(first), attention_mask=torch.ones(3, 1).long(),
            max_new_tokens=args.tokens, min_new_tokens=args.tokens, do_sample=False,
            pad_token_id=0, eos_token_id=None,
        )  # fmt: skip
    expected = whole[:, 1:].numpy()
    for provider in args.provider or ["wasm", "webgpu"]:
        with InferenceSession(onnx_bytes, [provider]) as session:
            start = time.perf_counter()
            tokens = generate(session, first, args.tokens)
            took = time.perf_counter() - start
        wrong = int((tokens != expected).sum())
        print(
            f"{args.model} on {provider}: {args.tokens} tokens for {len(first)} texts, "
            f"{1000 * took / args.tokens:.1f} ms a step; {wrong} differ from PyTorch's"
        )
        if wrong:
            sys.exit("the tokens differ")


if __name__ == "__main__":
    main()
