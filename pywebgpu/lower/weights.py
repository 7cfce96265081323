"""The weight space: constants in the form kernels read them, each content once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from ..codegen.spec import Storage
from .values import Array

ALIGN = 256
"""WebGPU binds storage buffers at multiples of this."""

_NUMPY = {
    Storage.F32: np.float32,
    Storage.F16: np.float16,
    Storage.I32: np.int32,
    Storage.I8: np.int8,
}


class Weights:
    """Arrays in order of first use; equal bytes are stored once."""

    def __init__(self) -> None:
        self.arrays: list[Array] = []
        self._known: dict[bytes, int] = {}

    def add(self, array: Array, storage: Storage) -> int:
        """The number of a constant converted to `storage`."""
        data = np.ascontiguousarray(_convert(array, storage))
        digest = hashlib.sha256(str(data.dtype).encode())
        digest.update(data.data if data.size else b"")
        key = digest.digest()
        if key not in self._known:
            self._known[key] = len(self.arrays)
            self.arrays.append(data)
        return self._known[key]

    def offsets(self) -> tuple[list[int], int]:
        """Where each array begins, and the size of the whole space."""
        offsets, end = [], 0
        for array in self.arrays:
            offsets.append(end)
            end += -(-max(array.nbytes, 4) // ALIGN) * ALIGN
        return offsets, end

    def chunks(self) -> Iterator[bytes]:
        """The weight space from its first byte to its last, piece by piece."""
        for array in self.arrays:
            data = array.tobytes()
            yield data
            size = -(-max(array.nbytes, 4) // ALIGN) * ALIGN
            if size > len(data):
                yield bytes(size - len(data))


def _convert(array: Array, storage: Storage) -> Array:
    wanted = _NUMPY[storage]
    if array.dtype == wanted:
        return array
    if storage is Storage.I32 and array.dtype.kind in "iu" and array.dtype.itemsize > 2:
        # 64-bit "infinities" (a Slice's end, a mask's minimum) keep their meaning when clamped.
        if array.dtype == np.uint32:
            return array.view(np.int32)
        return np.clip(array, -(2**31), 2**31 - 1).astype(np.int32)
    return array.astype(wanted)
