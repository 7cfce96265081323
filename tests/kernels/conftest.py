"""What a file of kernel tests leaves behind is given back before the next one begins."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from tests.kernels import harness


@pytest.fixture(scope="module", autouse=True)
def _give_back() -> Iterator[None]:
    """A device keeps every pipeline that it has compiled: machine code, on llvmpipe, of which a
    whole run made more than a gigabyte in each worker."""
    yield
    harness.forget()
    gc.collect()
