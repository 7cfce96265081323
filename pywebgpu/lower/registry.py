"""Which function lowers which operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..graph import Node

if TYPE_CHECKING:
    from .engine import Lowering
    from .values import Value

Lower = Callable[["Lowering", Node], "Value | list[Value]"]

LOWERINGS: dict[tuple[str, str], Lower] = {}
"""By domain ("" is ONNX's) and operator."""

POINTWISE: set[str] = set()
"""Operators whose output element needs the same element of each (broadcast) input. Like
`LOWERINGS`, filled by the files that lower them."""


def lowers(*ops: str, domain: str = "") -> Callable[[Lower], Lower]:
    """Marks the function that lowers `ops`. It reads the opset from the engine where it matters."""

    def add(function: Lower) -> Lower:
        for op in ops:
            LOWERINGS[domain, op] = function
        return function

    return add
