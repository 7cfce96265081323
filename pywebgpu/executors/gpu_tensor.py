"""A tensor that lies on the GPU between runs of desktop sessions."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..codegen.spec import Storage
from ..errors import InputError
from ..graph import DType
from ..plan import Port
from . import base
from .wgpu_device import Gpu


class GpuTensor:
    """What `InferenceSession.upload` and `run_on_gpu` give; fed like an array.

    `shape` and `dtype` are the user's; the buffer holds elements of `storage` (see `plan.Port`).
    Only the session that made it takes it.
    """

    def __init__(self, gpu: Gpu, buffer: Any, port: Port, shape: tuple[int, ...]) -> None:
        self.gpu, self.shape, self.storage = gpu, shape, port.storage
        self._buffer, self._port = buffer, port

    @property
    def dtype(self) -> DType:
        return self._port.dtype

    @property
    def nbytes(self) -> int:
        """In its buffer."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.storage.bytes

    @property
    def buffer(self) -> Any:
        """The `wgpu.GPUBuffer`.

        Raises:
            InputError: the tensor has been disposed.
        """
        if self._buffer is None:
            raise InputError("the tensor has been disposed", where="GpuTensor")
        return self._buffer

    def numpy(self) -> base.Array:
        """The elements; waits for the runs that compute them."""
        (raw,) = self.gpu.read([(self.buffer, self.nbytes)])
        return base.typed(self._port, np.frombuffer(raw, np.uint8), self.shape)

    def dispose(self) -> None:
        """Free the memory. Runs that were started before are not affected."""
        if self._buffer is not None:
            self._buffer.destroy()
        self._buffer = None

    def check(self, port: Port, gpu: Gpu) -> None:
        """Whether this input can take it.

        Raises:
            InputError: another device, element type or storage.
        """
        where = f"input {port.name!r}"
        if self.gpu is not gpu:
            raise InputError(
                "the tensor lies on another session's device",
                where=where,
                remedy="Make it with this session's upload(), or feed its numpy()",
            )
        found, wanted = (self.dtype, self.storage), (port.dtype, port.storage)
        if found != wanted:
            raise InputError(
                "wrong element type", where=where, got=_text(*found), expected=_text(*wanted)
            )
        _ = self.buffer  # not disposed


def _text(dtype: DType, storage: Storage) -> str:
    return f"{dtype.value} stored as {storage.value}"
