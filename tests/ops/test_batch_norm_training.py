"""Batch normalisation as it is in training: by the batch's own statistics."""

from __future__ import annotations

import numpy as np

from tests.ops.agree import agree, by_definition, feeds_of, model_of


def test_batch_statistics() -> None:
    rng = np.random.default_rng()
    inputs = {"x": rng.standard_normal((2, 3, 4, 5)).astype(np.float32)}
    inputs |= {name: rng.random(3).astype(np.float32) for name in ("s", "b", "mean", "var")}
    outputs = [("y", np.float32), ("new_mean", np.float32), ("new_var", np.float32)]
    for momentum in (0.9, 0.5):
        model = model_of("BatchNormalization", inputs, outputs, training_mode=1, momentum=momentum)
        feeds = feeds_of(model, inputs)
        agree(model, feeds, by_definition(model, feeds))
