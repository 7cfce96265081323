"""Transformers at the sizes that people run, with random weights: for the benchmarks alone.

Vocabularies are cut to 4096: what is left out is a table that a run reads a few rows of.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.models import zoo
from tests.models.family import write

_NEEDS = ("torch", "transformers", "onnxscript")
VOCABULARY = 4096


def _encoder(path: Path, model: Any) -> None:
    import torch

    def forward(encoder: Any, input_ids: Any, mask: Any) -> Any:
        return encoder(input_ids=input_ids, attention_mask=mask).last_hidden_state

    ids = torch.randint(0, VOCABULARY, (2, 7))
    axes = {0: "batch", 1: "sequence"}
    inputs = {"input_ids": (ids, axes), "attention_mask": (torch.ones_like(ids), axes)}
    write(path, model.eval().get_encoder(), forward, inputs, ["states"])


def _t5_small(path: Path) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=VOCABULARY, d_model=512, d_kv=64, d_ff=2048, num_layers=6, num_heads=8,
        pad_token_id=0, decoder_start_token_id=0, attn_implementation="eager",
    )  # fmt: skip
    _encoder(path, transformers.T5ForConditionalGeneration(config))


def _bart_base(path: Path) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.BartConfig(
        vocab_size=VOCABULARY, d_model=768, encoder_layers=6, decoder_layers=1,
        encoder_attention_heads=12, decoder_attention_heads=12, encoder_ffn_dim=3072,
        decoder_ffn_dim=64, max_position_embeddings=1024,
    )  # fmt: skip
    _encoder(path, transformers.BartForConditionalGeneration(config))


def _gpt2_step(path: Path) -> None:
    """One token after a cache: logits and the longer cache. Two layers of GPT-2's width."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=256, n_embd=768, n_layer=2, n_head=12,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip

    def forward(m: Any, input_ids: Any, mask: Any, *past: Any) -> Any:
        pairs = list(zip(past[::2], past[1::2], strict=True))
        cache = transformers.DynamicCache(pairs)
        out = m(input_ids=input_ids, attention_mask=mask, past_key_values=cache, use_cache=True)
        kept = [t for layer in out.past_key_values.layers for t in (layer.keys, layer.values)]
        return (out.logits, *kept)

    names = [f"past_{i}_{part}" for i in range(2) for part in ("key", "value")]
    inputs = {
        "input_ids": (torch.randint(0, VOCABULARY, (2, 1)), {0: "batch"}),
        "attention_mask": (torch.ones(2, 6, dtype=torch.int64), {0: "batch", 1: "past + 1"}),
        **{n: (torch.randn(2, 12, 5, 64), {0: "batch", 2: "past"}) for n in names},
    }
    outputs = ["logits", *(n.replace("past", "present") for n in names)]
    write(path, transformers.GPT2LMHeadModel(config).eval(), forward, inputs, outputs)


_IDS = {"input_ids": VOCABULARY}
MODELS = {
    model.name: model
    for model in (
        zoo.ZooModel("t5-small-encoder", "full", _t5_small, _NEEDS, vocabulary=_IDS),
        zoo.ZooModel("bart-base-encoder", "full", _bart_base, _NEEDS, vocabulary=_IDS),
        zoo.ZooModel("gpt2-2-step", "full", _gpt2_step, _NEEDS, vocabulary=_IDS),
    )
}
