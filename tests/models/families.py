"""Families of models as people bring them: tiny configurations, random weights, real exporters.

    python -m tests.models.families [NAME...]    # build and list

They ask whether a kind of model is understood, not how fast it runs: one or two layers, widths of
32 to 64, small vocabularies and images. Sizes that users vary are symbolic. Kept in the same
folder as the models of `zoo`; nothing is downloaded.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.models import timm_families  # registers its own
from tests.models.family import (
    FAMILIES,
    TEXT,
    VOCABULARY,
    family,
    image_input,
    path_of,
    picture_input,
    text_inputs,
    token_ids,
    torch_answers,
    write,
)
from tests.models.zoo import _calibrate, _seeded

__all__ = ["FAMILIES", "path_of", "timm_families", "torch_answers"]

# ---------------------------------------------------------------- text encoders


def _encoder(path: Path, kind: str, torchscript: bool = False, **more: Any) -> None:
    import transformers

    _seeded()
    config = getattr(transformers, f"{kind}Config")(
        **{
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "attn_implementation": "eager" if torchscript else "sdpa",
            **more,
        }
    )
    model = getattr(transformers, f"{kind}Model")(config)
    write(
        path,
        model,
        lambda m, input_ids, mask: m(input_ids=input_ids, attention_mask=mask).last_hidden_state,
        text_inputs(),
        torchscript=torchscript,
    )


_DEBERTA = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "attn_implementation": "eager",
}
for _name, _kind, _more in (
    ("bert", "Bert", {}),
    ("roberta", "Roberta", {}),
    ("distilbert", "DistilBert", {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}),
    ("albert", "Albert", {"embedding_size": 16}),
    ("mpnet", "MPNet", {"attn_implementation": "eager"}),
    ("modernbert", "ModernBert", {"pad_token_id": 0, "local_attention": 8}),
    ("deberta-v2", "DebertaV2", _DEBERTA),
):
    family(_name, dims=TEXT)(lambda path, k=_kind, m=_more: _encoder(path, k, **m))
    if _name in ("bert", "distilbert"):
        family(f"{_name}-torchscript", dims=TEXT)(
            lambda path, k=_kind, m=_more: _encoder(path, k, True, **m)
        )

# ---------------------------------------------------------------- decoders


def _causal(path: Path, kind: str, **more: Any) -> None:
    """Logits of a whole text, as for scoring or the first step of generation."""
    import transformers

    _seeded()
    model = _causal_model(transformers, kind, more)
    write(
        path,
        model,
        lambda m, input_ids, mask: (
            m(input_ids=input_ids, attention_mask=mask, use_cache=False).logits
        ),
        text_inputs(),
        ["logits"],
    )


def _causal_model(transformers: Any, kind: str, more: dict[str, Any]) -> Any:
    config = getattr(transformers, f"{kind}Config")(
        **{
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 64,
            "max_position_embeddings": 128,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            **more,
        }
    )
    name = {"GPT2": "GPT2LMHeadModel"}.get(kind, f"{kind}ForCausalLM")
    return getattr(transformers, name)(config).eval()


def _step(path: Path, kind: str, **more: Any) -> None:
    """One step of generation: the new tokens, the cache so far; logits and the longer cache."""
    import torch
    import transformers

    _seeded()
    model = _causal_model(transformers, kind, more)
    layers = model.config.num_hidden_layers
    heads = 4 if kind == "GPT2" else model.config.num_key_value_heads
    head = getattr(model.config, "head_dim", 0) or 32 // model.config.num_attention_heads

    def forward(m: Any, input_ids: Any, mask: Any, *past: Any) -> Any:
        pairs = list(zip(past[::2], past[1::2], strict=True))
        cache = transformers.DynamicCache(pairs)
        out = m(input_ids=input_ids, attention_mask=mask, past_key_values=cache, use_cache=True)
        kept = [t for layer in out.past_key_values.layers for t in (layer.keys, layer.values)]
        return (out.logits, *kept)

    axes = {0: "batch", 2: "past"}
    names = [f"past_{i}_{part}" for i in range(layers) for part in ("key", "value")]
    write(
        path,
        model,
        forward,
        {
            "input_ids": (token_ids(2, 1), {0: "batch"}),
            "attention_mask": (torch.ones(2, 6, dtype=torch.int64), {0: "batch", 1: "past + 1"}),
            **{n: (torch.randn(2, heads, 5, head), axes) for n in names},
        },
        ["logits", *(n.replace("past", "present") for n in names)],
    )


_DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}),
    "gpt-neox": ("GPTNeoX", {}),
    "llama": ("Llama", {}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 8}),
    "mistral": ("Mistral", {"sliding_window": 16}),
    "phi": ("Phi", {"partial_rotary_factor": 0.5}),
    "phi3": ("Phi3", {}),
    "gemma": ("Gemma", {"head_dim": 8}),
    "gemma3": ("Gemma3Text", {"head_dim": 8, "sliding_window": 16}),
    "opt": ("OPT", {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    "mamba": ("Mamba", {"state_size": 4, "time_step_rank": 4}),
}
for _name, (_kind, _more) in _DECODERS.items():
    if _name == "gemma3":
        continue
    if _name != "mamba":
        family(_name, dims=TEXT)(lambda path, k=_kind, m=_more: _causal(path, k, **m))
    if _name in ("gpt2", "llama", "qwen2"):
        family(f"{_name}-step", dims={"batch": 2, "past": 5, "past + 1": 6})(
            lambda path, k=_kind, m=_more: _step(path, k, **m)
        )


@family("mamba", dims=TEXT)
def _mamba(path: Path) -> None:
    import transformers

    _seeded()
    config = transformers.MambaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=1,
        state_size=4,
        time_step_rank=4,
        pad_token_id=0,
    )
    model = transformers.MambaModel(config)
    # The scan is unrolled by the exporter: its length is fixed.
    ids = {"input_ids": (token_ids(), {0: "batch"})}
    write(path, model, lambda m, x: m(input_ids=x, use_cache=False).last_hidden_state, ids)


# ---------------------------------------------------------------- encoder and decoder


def _t5_model() -> Any:
    import transformers

    _seeded()
    config = transformers.T5Config(
        vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
        feed_forward_proj="gated-gelu", pad_token_id=0, decoder_start_token_id=0,
        attn_implementation="eager",  # the exporter stumbles over the other
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(config).eval()


def _bart_model() -> Any:
    import transformers

    _seeded()
    config = transformers.BartConfig(
        vocab_size=VOCABULARY, d_model=32, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64,
        decoder_ffn_dim=64, max_position_embeddings=64,
    )  # fmt: skip
    return transformers.BartForConditionalGeneration(config).eval()


def _whisper_model() -> Any:
    import transformers

    _seeded()
    config = transformers.WhisperConfig(
        vocab_size=VOCABULARY, d_model=32, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64,
        decoder_ffn_dim=64, max_source_positions=50, max_target_positions=32, num_mel_bins=16,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        suppress_tokens=[], begin_suppress_tokens=[],
    )  # fmt: skip
    return transformers.WhisperForConditionalGeneration(config).eval()


def _encode(m: Any, input_ids: Any, mask: Any) -> Any:
    encoder = m.get_encoder()
    return encoder(input_ids=input_ids, attention_mask=mask).last_hidden_state


def _decode(m: Any, ids: Any, states: Any) -> Any:
    decoder = m.get_decoder()
    out = decoder(input_ids=ids, encoder_hidden_states=states, use_cache=False)
    return m.get_output_embeddings()(out.last_hidden_state)


def _decoder_inputs(states: int, length: int = 4) -> dict[str, Any]:
    import torch

    free = {0: "batch"} if states == 50 else {0: "batch", 1: "source"}
    return {
        "decoder_input_ids": (token_ids(2, length), {0: "batch", 1: "sequence"}),
        "encoder_hidden_states": (torch.randn(2, states, 32), free),
    }


_PAIR = {"batch": 2, "sequence": 4, "source": 9}


@family("t5-encoder", dims=TEXT)
def _t5_encoder(path: Path) -> None:
    write(path, _t5_model(), _encode, text_inputs())


@family("t5-decoder", dims=_PAIR)
def _t5_decoder(path: Path) -> None:
    write(path, _t5_model(), _decode, _decoder_inputs(9), ["logits"])


@family("t5-step", dims={"batch": 2, "past": 5, "source": 9})
def _t5_step(path: Path) -> None:
    _write_step(path, _t5_model())


@family("bart-encoder", dims=TEXT)
def _bart_encoder(path: Path) -> None:
    write(path, _bart_model(), _encode, text_inputs())


@family("bart-decoder", dims=_PAIR)
def _bart_decoder(path: Path) -> None:
    write(path, _bart_model(), _decode, _decoder_inputs(9), ["logits"])


@family("whisper-encoder", dims={"batch": 2})
def _whisper_encoder(path: Path) -> None:
    import torch

    sound = {"features": (torch.randn(2, 16, 100), {0: "batch"})}
    write(path, _whisper_model(), lambda m, x: m.get_encoder()(x).last_hidden_state, sound)


@family("whisper-decoder", dims=_PAIR)
def _whisper_decoder(path: Path) -> None:
    write(path, _whisper_model(), _decode, _decoder_inputs(50), ["logits"])


def _write_step(path: Path, model: Any) -> None:
    """One step of an encoder-decoder's generation: self-attention grows, the other is kept."""
    import torch
    import transformers

    layers = 2

    def forward(m: Any, ids: Any, states: Any, *past: Any) -> Any:
        own = list(zip(past[: 2 * layers : 2], past[1 : 2 * layers : 2], strict=True))
        cross = list(zip(past[2 * layers :: 2], past[2 * layers + 1 :: 2], strict=True))
        cache = transformers.EncoderDecoderCache(
            transformers.DynamicCache(own), transformers.DynamicCache(cross)
        )
        out = m.get_decoder()(
            input_ids=ids, encoder_hidden_states=states, past_key_values=cache, use_cache=True
        )
        kept = out.past_key_values.self_attention_cache.layers
        logits = m.get_output_embeddings()(out.last_hidden_state)
        return (logits, *(t for layer in kept for t in (layer.keys, layer.values)))

    parts = [f"{i}_{part}" for i in range(layers) for part in ("key", "value")]
    write(
        path,
        model,
        forward,
        {
            "decoder_input_ids": (token_ids(2, 1), {0: "batch"}),
            "encoder_hidden_states": (torch.randn(2, 9, 32), {0: "batch", 1: "source"}),
            **{f"past_{p}": (torch.randn(2, 4, 5, 8), {0: "batch", 2: "past"}) for p in parts},
            **{f"cross_{p}": (torch.randn(2, 4, 9, 8), {0: "batch", 2: "source"}) for p in parts},
        },
        ["logits", *(f"present_{p}" for p in parts)],
    )


# ---------------------------------------------------------------- vision transformers


def _vision(path: Path, kind: str, answer: str, image: int, config: dict[str, Any]) -> None:
    import transformers

    _seeded()
    names = {"Config": f"{kind}Config", "Model": f"{kind}Model"}
    if kind == "Segformer":
        names["Model"] = "SegformerForSemanticSegmentation"
    if kind == "MobileViT":
        names["Model"] = "MobileViTModel"
    model = getattr(transformers, names["Model"])(getattr(transformers, names["Config"])(**config))
    inputs = image_input(image)
    model = _calibrate(model, inputs["image"][0])
    write(path, model, lambda m, x: getattr(m(x), answer), inputs)


_BLOCK = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
_BEIT = {**_BLOCK, "use_relative_position_bias": True, "attn_implementation": "eager"}
_VISION: dict[str, tuple[str, str, int, dict[str, Any]]] = {
    "vit": ("ViT", "last_hidden_state", 32, _BLOCK),
    "deit": ("DeiT", "last_hidden_state", 32, _BLOCK),
    "beit": ("Beit", "last_hidden_state", 32, _BEIT),
    "dinov2": ("Dinov2", "last_hidden_state", 32, _BLOCK),
    "clip-vision": ("CLIPVision", "pooler_output", 32, _BLOCK),
    "swin": (
        "Swin",
        "last_hidden_state",
        64,
        {
            "image_size": 64,
            "patch_size": 4,
            "embed_dim": 16,
            "depths": [2, 2],
            "num_heads": [2, 4],
            "window_size": 4,
            "attn_implementation": "eager",  # the exporter stumbles over the other
        },
    ),
    "segformer": (
        "Segformer",
        "logits",
        64,
        {
            "num_encoder_blocks": 2,
            "depths": [1, 1],
            "sr_ratios": [4, 2],
            "hidden_sizes": [16, 32],
            "patch_sizes": [7, 3],
            "strides": [4, 2],
            "num_attention_heads": [1, 2],
            "mlp_ratios": [2, 2],
            "decoder_hidden_size": 32,
            "num_labels": 5,
        },
    ),
    "mobilevit": (
        "MobileViT",
        "last_hidden_state",
        64,
        {
            "image_size": 64,
            "hidden_sizes": [16, 24, 32],
            "neck_hidden_sizes": [8, 8, 16, 16, 24, 32, 64],
            "num_attention_heads": 2,
            "expand_ratio": 2.0,
        },
    ),
    "convnext": (
        "ConvNext",
        "last_hidden_state",
        64,
        {"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2},
    ),
    "convnextv2": (
        "ConvNextV2",
        "last_hidden_state",
        64,
        {"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2},
    ),
    "poolformer": (
        "PoolFormer",
        "last_hidden_state",
        64,
        {
            "hidden_sizes": [16, 32],
            "depths": [1, 1],
            "num_encoder_blocks": 2,
            "patch_sizes": [7, 3],
            "strides": [4, 2],
            "padding": [2, 1],
            "mlp_ratio": 2.0,
        },
    ),
    "efficientnet": (
        "EfficientNet",
        "last_hidden_state",
        64,
        {"width_coefficient": 0.35, "depth_coefficient": 0.35, "hidden_dim": 448, "image_size": 64},
    ),
    "resnet": (
        "ResNet",
        "last_hidden_state",
        64,
        {"embedding_size": 16, "hidden_sizes": [32, 64], "depths": [2, 2]},
    ),
    "regnet": (
        "RegNet",
        "last_hidden_state",
        64,
        {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "groups_width": 8},
    ),
}
for _name, _arguments in _VISION.items():
    family(_name, dims={"batch": 2})(lambda path, a=_arguments: _vision(path, *a))


@family("clip-text", dims=TEXT)
def _clip_text(path: Path) -> None:
    import transformers

    _seeded()
    config = transformers.CLIPTextConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=64, eos_token_id=2, projection_dim=16,
    )  # fmt: skip
    model = transformers.CLIPTextModelWithProjection(config)
    write(
        path,
        model,
        lambda m, input_ids, mask: m(input_ids=input_ids, attention_mask=mask).text_embeds,
        text_inputs(),
    )


@family("detr", dims={"batch": 1})
def _detr(path: Path) -> None:
    import transformers

    _seeded()
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1], out_features=["stage2"]
    )
    config = transformers.DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None,
        backbone_config=backbone, d_model=32, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64,
        decoder_ffn_dim=64, num_queries=6, num_labels=5,
    )  # fmt: skip
    model = transformers.DetrForObjectDetection(config)

    def forward(m: Any, image: Any) -> Any:
        out = m(image)
        return out.logits, out.pred_boxes

    write(path, model, forward, image_input(64, 1), ["logits", "boxes"])


# ---------------------------------------------------------------- plain torch: images


def _plain(
    path: Path, module: Any, inputs: dict[str, Any], outputs: Sequence[str] = ("output",), **kw: Any
) -> None:
    write(path, module.eval(), lambda m, *x: m(*x), inputs, outputs, **kw)


def _sized(module: Any) -> Any:
    """BatchNorm with the statistics of data, and convolutions whose outputs keep their scale."""
    import torch

    for part in module.modules():
        if isinstance(part, torch.nn.Conv1d | torch.nn.Conv2d | torch.nn.ConvTranspose2d):
            torch.nn.init.kaiming_normal_(part.weight)
    return module


_PICTURE = {"batch": 2, "height": 48, "width": 64}


def _unet_module() -> Any:
    import torch
    from torch import nn

    def double(cin: int, cout: int) -> Any:
        return nn.Sequential(
            nn.Conv2d(cin, cout, 3, padding=1), nn.BatchNorm2d(cout), nn.ReLU(),
            nn.Conv2d(cout, cout, 3, padding=1), nn.BatchNorm2d(cout), nn.ReLU(),
        )  # fmt: skip

    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.bottom = double(3, 8), double(8, 16), double(16, 32)
            self.up2, self.up1 = nn.ConvTranspose2d(32, 16, 2, 2), nn.Upsample(scale_factor=2)
            self.right2, self.right1 = double(32, 16), double(24, 8)
            self.head = nn.Conv2d(8, 2, 1)

        def forward(self, x: Any) -> Any:
            a = self.first(x)
            b = self.second(nn.functional.max_pool2d(a, 2))
            c = self.bottom(nn.functional.max_pool2d(b, 2))
            d = self.right2(torch.cat([self.up2(c), b], 1))
            return self.head(self.right1(torch.cat([self.up1(d), a], 1)))

    return _calibrate(UNet(), torch.randn(1, 3, 32, 32))


@family("unet", package=None, dims={"batch": 2})
def _unet(path: Path) -> None:
    _seeded()
    _plain(path, _unet_module(), image_input(32))


@family("unet-torchscript", package=None, dims=_PICTURE)
def _unet_torchscript(path: Path) -> None:
    _seeded()
    _plain(path, _unet_module(), picture_input(), torchscript=True)


@family("yolo", package=None, dims={"batch": 2})
def _yolo(path: Path) -> None:
    """Two levels, anchor-free: boxes from distributions over distances, as YOLOv8 has it."""
    import torch
    from torch import nn

    def conv(cin: int, cout: int, k: int, stride: int = 1) -> Any:
        return nn.Sequential(
            nn.Conv2d(cin, cout, k, stride, k // 2, bias=False), nn.BatchNorm2d(cout), nn.SiLU()
        )

    class Split(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.first, self.last = conv(width, width, 1), conv(width * 3 // 2, width, 1)
            self.inner = nn.Sequential(
                conv(width // 2, width // 2, 3), conv(width // 2, width // 2, 3)
            )

        def forward(self, x: Any) -> Any:
            a, b = self.first(x).chunk(2, 1)
            return self.last(torch.cat([a, b, b + self.inner(b)], 1))

    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool, self.mix = nn.MaxPool2d(5, 1, 2), conv(64, 16, 1)

        def forward(self, x: Any) -> Any:
            a = self.pool(x)
            b = self.pool(a)
            return self.mix(torch.cat([x, a, b, self.pool(b)], 1))

    class Yolo(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.c2 = nn.Sequential(conv(3, 8, 3, 2), conv(8, 16, 3, 2)), Split(16)
            self.down, self.spp = conv(16, 16, 3, 2), Pyramid()
            self.up, self.fuse = nn.Upsample(scale_factor=2, mode="nearest"), conv(32, 16, 1)
            self.boxes = nn.ModuleList(nn.Conv2d(16, 16, 1) for _ in range(2))
            self.classes = nn.ModuleList(nn.Conv2d(16, 5, 1) for _ in range(2))
            self.register_buffer("bins", torch.arange(4.0))

        def forward(self, x: Any) -> Any:
            low = self.c2(self.stem(x))
            high = self.spp(self.down(low))
            low = self.fuse(torch.cat([self.up(high), low], 1))
            found = []
            for level, (y, stride) in enumerate(((low, 4), (high, 8))):
                n, _, h, w = y.shape
                sides = self.boxes[level](y).view(n, 4, 4, h * w).transpose(1, 2).softmax(1)
                sides = (sides * self.bins.view(1, 4, 1, 1)).sum(1)
                rows, columns = torch.arange(h) + 0.5, torch.arange(w) + 0.5
                grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy")).view(1, 2, h * w)
                corner, far = grid - sides[:, :2], grid + sides[:, 2:]
                box = torch.cat([(corner + far) / 2, far - corner], 1) * stride
                score = self.classes[level](y).view(n, 5, h * w).sigmoid()
                found.append(torch.cat([box, score], 1))
            return torch.cat(found, 2)

    _seeded()
    _plain(path, _calibrate(Yolo(), torch.randn(2, 3, 32, 32)), image_input(32))


@family("autoencoder", package=None, dims=_PICTURE)
def _autoencoder(path: Path) -> None:
    from torch import nn

    _seeded()
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.GELU(), nn.Conv2d(8, 16, 3, 2, 1), nn.GELU(),
        nn.ConvTranspose2d(16, 8, 3, 2, 1, output_padding=1), nn.GELU(),
        nn.ConvTranspose2d(8, 3, 4, 2, 1), nn.Sigmoid(),
    )  # fmt: skip
    _plain(path, _sized(model), picture_input(height=16, width=24), torchscript=True)


@family("vae", package=None, dims={"batch": 2})
def _vae(path: Path) -> None:
    """GroupNorm and SiLU residual blocks with attention in the middle, as diffusion models do."""
    import torch
    from torch import nn

    class Residual(nn.Module):
        def __init__(self, cin: int, cout: int) -> None:
            super().__init__()
            self.layers = nn.Sequential(
                nn.GroupNorm(4, cin), nn.SiLU(), nn.Conv2d(cin, cout, 3, padding=1),
                nn.GroupNorm(4, cout), nn.SiLU(), nn.Conv2d(cout, cout, 3, padding=1),
            )  # fmt: skip
            self.skip = nn.Conv2d(cin, cout, 1) if cin != cout else nn.Identity()

        def forward(self, x: Any) -> Any:
            return self.skip(x) + self.layers(x)

    class Attend(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.norm, self.qkv = nn.GroupNorm(4, width), nn.Conv2d(width, 3 * width, 1)
            self.out = nn.Conv2d(width, width, 1)

        def forward(self, x: Any) -> Any:
            n, c, h, w = x.shape
            q, k, v = self.qkv(self.norm(x)).view(n, 3, c, h * w).transpose(2, 3).split(1, 1)
            y = nn.functional.scaled_dot_product_attention(q, k, v)  # one head
            return x + self.out(y.transpose(2, 3).reshape(n, c, h, w))

    _seeded()
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), Residual(16, 16), nn.Conv2d(16, 32, 3, 2, 1),
        Residual(32, 32), Attend(32), nn.Upsample(scale_factor=2.0), Residual(32, 16),
        nn.GroupNorm(4, 16), nn.SiLU(), nn.Conv2d(16, 3, 3, padding=1), nn.Tanh(),
    )  # fmt: skip
    _plain(path, _sized(model), {"image": (torch.randn(2, 3, 16, 16), {0: "batch"})})


@family("large-kernel", package=None, dims={"batch": 2})
def _large_kernel(path: Path) -> None:
    """Depthwise 13 x 13, and a dilated one, with pointwise layers between (RepLKNet, VAN)."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(width)
            self.near = nn.Conv2d(width, width, 13, padding=6, groups=width)
            self.far = nn.Conv2d(width, width, 7, padding=9, groups=width, dilation=3)
            self.mix, self.out = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)

        def forward(self, x: Any) -> Any:
            y = nn.functional.gelu(self.norm(x))
            gate = self.mix(self.far(self.near(y)))
            return x + self.out(gate * y)

    _seeded()
    model = nn.Sequential(nn.Conv2d(3, 16, 4, 4), Block(16), Block(16))
    _plain(path, _calibrate(model, torch.randn(2, 3, 64, 64)), image_input(64))


@family("inception-next", package=None, dims={"batch": 2})
def _inception_next(path: Path) -> None:
    """Channels split over a square, a wide, a tall depthwise kernel and none."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            part = width // 8
            self.sizes = [width - 3 * part, part, part, part]
            self.square = nn.Conv2d(part, part, 3, padding=1, groups=part)
            self.wide = nn.Conv2d(part, part, (1, 11), padding=(0, 5), groups=part)
            self.tall = nn.Conv2d(part, part, (11, 1), padding=(5, 0), groups=part)
            self.norm = nn.BatchNorm2d(width)
            self.mlp = nn.Sequential(nn.Conv2d(width, 64, 1), nn.GELU(), nn.Conv2d(64, width, 1))
            self.gamma = nn.Parameter(torch.rand(width))

        def forward(self, x: Any) -> Any:
            a, b, c, d = torch.split(x, self.sizes, 1)
            y = torch.cat([a, self.square(b), self.wide(c), self.tall(d)], 1)
            return x + self.mlp(self.norm(y)) * self.gamma.view(1, -1, 1, 1)

    _seeded()
    model = nn.Sequential(nn.Conv2d(3, 32, 4, 4), Block(32), Block(32))
    _plain(path, _calibrate(model, torch.randn(2, 3, 32, 32)), image_input(32))


@family("mobilenet-v3", package=None, dims={"batch": 2})
def _mobilenet_v3(path: Path) -> None:
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(
                nn.Conv2d(16, 48, 1, bias=False), nn.BatchNorm2d(48), nn.Hardswish(),
                nn.Conv2d(48, 48, 5, 1, 2, groups=48, bias=False), nn.BatchNorm2d(48),
                nn.Hardswish(),
            )  # fmt: skip
            self.reduce, self.expand = nn.Conv2d(48, 16, 1), nn.Conv2d(16, 48, 1)
            self.last = nn.Sequential(nn.Conv2d(48, 16, 1, bias=False), nn.BatchNorm2d(16))

        def forward(self, x: Any) -> Any:
            y = self.layers(x)
            s = torch.relu(self.reduce(y.mean((2, 3), keepdim=True)))
            return x + self.last(y * nn.functional.hardsigmoid(self.expand(s)))

    _seeded()
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.Hardswish(), Block(), Block(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip
    _plain(path, _calibrate(model, torch.randn(2, 3, 32, 32)), image_input(32), torchscript=True)


@family("super-resolution", package=None, dims=_PICTURE)
def _super_resolution(path: Path) -> None:
    """Sub-pixel convolution on images of any size."""
    from torch import nn

    _seeded()
    model = nn.Sequential(
        nn.Conv2d(3, 16, 5, padding=2), nn.Tanh(), nn.Conv2d(16, 12, 3, padding=1),
        nn.PixelShuffle(2),
    )  # fmt: skip
    _plain(path, _sized(model), picture_input(height=12, width=17))


# ---------------------------------------------------------------- plain torch: sound and others


def _sound(batch: int = 2, channels: int = 1, length: int = 160) -> dict[str, Any]:
    import torch

    return {"sound": (torch.randn(batch, channels, length), {0: "batch", 2: "length"})}


@family("audio-conv", package=None, dims={"batch": 2, "length": 400})
def _audio_conv(path: Path) -> None:
    from torch import nn

    _seeded()
    model = nn.Sequential(
        nn.Conv1d(1, 16, 10, 5), nn.GroupNorm(16, 16), nn.GELU(),
        nn.Conv1d(16, 16, 3, 2), nn.GELU(), nn.Conv1d(16, 32, 3, 2, groups=4), nn.GELU(),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(32, 6),
    )  # fmt: skip
    _plain(path, _sized(model), _sound(length=400))


@family("wavenet", package=None, dims={"batch": 2, "length": 60})
def _wavenet(path: Path) -> None:
    """Gated causal dilated convolutions with skip connections."""
    import torch
    from torch import nn

    class WaveNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv1d(1, 16, 1)
            self.gates = nn.ModuleList(nn.Conv1d(16, 32, 2, dilation=2**i) for i in range(4))
            self.out = nn.ModuleList(nn.Conv1d(16, 16, 1) for _ in range(4))
            self.skips = nn.ModuleList(nn.Conv1d(16, 16, 1) for _ in range(4))
            self.head = nn.Sequential(
                nn.ReLU(), nn.Conv1d(16, 16, 1), nn.ReLU(), nn.Conv1d(16, 8, 1)
            )

        def forward(self, x: Any) -> Any:
            x, total = self.first(x), 0
            for i, (gate, out, skip) in enumerate(
                zip(self.gates, self.out, self.skips, strict=True)
            ):
                a, b = gate(nn.functional.pad(x, (2**i, 0))).chunk(2, 1)
                y = torch.tanh(a) * torch.sigmoid(b)
                x, total = x + out(y), total + skip(y)
            return self.head(total)

    _seeded()
    _plain(path, _sized(WaveNet()), _sound(length=60))


@family("wav2vec2", dims={"batch": 2, "length": 400})
def _wav2vec2(path: Path) -> None:
    import torch
    import transformers

    _seeded()
    config = transformers.Wav2Vec2Config(
        vocab_size=20, hidden_size=32, num_hidden_layers=1, num_attention_heads=4,
        intermediate_size=64, conv_dim=[16, 16], conv_stride=[5, 2], conv_kernel=[10, 3],
        num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=4,
    )  # fmt: skip
    model = transformers.Wav2Vec2ForCTC(config)
    sound = {"sound": (torch.randn(2, 400), {0: "batch"})}
    write(path, model, lambda m, x: m(x).logits, sound)


@family("gcn", package=None, dims={"nodes": 11})
def _gcn(path: Path) -> None:
    """Graph convolution with a dense adjacency, normalised by degrees."""
    import torch
    from torch import nn

    class Gcn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(16, 32), nn.Linear(32, 4)

        def forward(self, features: Any, adjacency: Any) -> Any:
            a = adjacency.abs() + torch.eye(adjacency.shape[0])
            d = a.sum(1).rsqrt()
            a = d[:, None] * a * d[None, :]
            return (a @ self.second(torch.relu(a @ self.first(features)))).log_softmax(-1)

    _seeded()
    free = {0: "nodes"}
    inputs = {
        "features": (torch.randn(11, 16), free),
        "adjacency": (torch.rand(11, 11), {0: "nodes", 1: "nodes"}),
    }
    _plain(path, Gcn(), inputs)


@family("gcn-edges", package=None, dims={"nodes": 11, "edges": 30}, vocabulary={"edge_index": 11})
def _gcn_edges(path: Path) -> None:
    """Message passing over a list of edges: gather, then scatter with addition."""
    import torch
    from torch import nn

    class Edges(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 4)

        def forward(self, features: Any, edge_index: Any) -> Any:
            source, target = edge_index[0], edge_index[1]
            messages = self.first(features)[source]
            total = torch.zeros_like(features).index_add(0, target, messages)
            return self.second(torch.relu(total))

    _seeded()
    inputs = {
        "features": (torch.randn(11, 16), {0: "nodes"}),
        "edge_index": (torch.randint(0, 11, (2, 30)), {1: "edges"}),
    }
    _plain(path, Edges(), inputs)


@family("timesnet", package=None, dims={"batch": 2})
def _timesnet(path: Path) -> None:
    """A series folded into two dimensions by fixed periods, convolved, unfolded."""
    import torch
    from torch import nn

    class Times(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Linear(7, 16), nn.Linear(16, 7)
            self.convs = nn.ModuleList(nn.Conv2d(16, 16, 2 * i + 1, padding=i) for i in range(3))
            self.norm, self.grow = nn.LayerNorm(16), nn.Linear(96, 120)

        def forward(self, series: Any) -> Any:
            mean = series.mean(1, keepdim=True)
            scale = torch.sqrt(torch.var(series, dim=1, keepdim=True, unbiased=False) + 1e-5)
            x = self.grow(self.embed((series - mean) / scale).transpose(1, 2)).transpose(1, 2)
            for period in (12, 7):
                length = -(-120 // period) * period
                y = nn.functional.pad(x, (0, 0, 0, length - 120))
                y = y.reshape(-1, length // period, period, 16).permute(0, 3, 1, 2)
                y = sum(conv(y) for conv in self.convs) / 3
                x = self.norm(x + y.permute(0, 2, 3, 1).reshape(-1, length, 16)[:, :120])
            return self.head(x) * scale + mean

    _seeded()
    _plain(path, Times(), {"series": (torch.randn(2, 96, 7), {0: "batch"})})


@family("mlp-mixer", package=None, dims={"batch": 2})
def _mixer(path: Path) -> None:
    from torch import nn

    class Mix(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)
            self.tokens = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
            self.channels = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))

        def forward(self, x: Any) -> Any:
            x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
            return x + self.channels(self.norm2(x))

    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.blocks = nn.Conv2d(3, 32, 8, 8), nn.Sequential(Mix(), Mix())
            self.head = nn.Linear(32, 10)

        def forward(self, image: Any) -> Any:
            return self.head(self.blocks(self.patches(image).flatten(2).transpose(1, 2)).mean(1))

    _seeded()
    _plain(path, Mixer(), image_input(32))


def _tagger(path: Path, kind: str) -> None:
    from torch import nn

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(VOCABULARY, 16)
            self.cell = getattr(nn, kind)(16, 16, batch_first=True, bidirectional=True)
            self.head = nn.Linear(32, 5)

        def forward(self, input_ids: Any) -> Any:
            return self.head(self.cell(self.embed(input_ids))[0])

    _seeded()
    ids = {"input_ids": (token_ids(), {0: "batch", 1: "sequence"})}
    _plain(path, Tagger(), ids, torchscript=True)


@family("lstm", package=None, dims=TEXT)
def _lstm(path: Path) -> None:
    _tagger(path, "LSTM")


@family("gru", package=None, dims=TEXT)
def _gru(path: Path) -> None:
    _tagger(path, "GRU")


def main() -> None:
    for name in sys.argv[1:] or list(FAMILIES):
        path = path_of(name)
        print(f"{name:24} {path.stat().st_size / 1e6:8.2f} MB  {path}", flush=True)


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main()
