"""A program in half precision: float buffers become f16, arithmetic stays f32.

Kernels widen what they load and accumulate in f32 (see `codegen.spec`), so only storage changes:
half the download, half the memory, half the traffic. What a weight cannot hold in f16 stays f32.
Devices without `shader-f16` refuse such a bundle by name, and so does WebAssembly, which has no
half-precision loads.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np

from .codegen.spec import Storage
from .lower import Lowering

LARGEST = float(np.finfo(np.float16).max)


def halve(lowering: Lowering, wide: Collection[int] = ()) -> int:
    """Store floats as f16, in place; returns how many weights stay f32 because of their range.

    wide: numbers of other buffers that stay f32.

    A finite weight beyond f16's largest number, 65504, would become infinite.
    """
    arrays = lowering.weights.arrays
    kept = {
        number
        for number, array in enumerate(arrays)
        if array.dtype == np.float32 and (np.abs(array[np.isfinite(array)]) > LARGEST).any()
    }
    for number, array in enumerate(arrays):
        if array.dtype == np.float32 and number not in kept:
            arrays[number] = array.astype(np.float16)
    for i, buffer in enumerate(lowering.buffers):
        if buffer.storage is Storage.F32 and buffer.weight not in kept and i not in wide:
            buffer.storage = Storage.F16
    for i, step in enumerate(lowering.steps):
        spec = replace(
            step.spec,
            operands=tuple(lowering.buffers[b].storage for b in step.operands),
            output=lowering.buffers[step.output].storage,
        )
        lowering.steps[i] = replace(step, spec=spec)
    return len(kept)
