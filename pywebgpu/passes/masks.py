"""What masks say: the causal part of an attention's bias is told from the rest."""

from __future__ import annotations

from .edit import Editor


def split_causal(edit: Editor, bias: str, zero_rows: bool) -> tuple[bool, str]:
    """Whether `bias` hides later positions, and what remains of it ("" for nothing)."""
    return False, bias
