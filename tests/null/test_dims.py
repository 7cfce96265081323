"""Symbolic sizes: simplification never changes the value, and JSON round-trips."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pywebgpu.codegen import dims
from pywebgpu.codegen.dims import Dim, symbol

NAMES = ("a", "b", "c")

leaves: st.SearchStrategy[Dim] = st.one_of(
    st.integers(-20, 20), st.sampled_from([symbol(n) for n in NAMES])
)


def _combine(inner: st.SearchStrategy[Dim]) -> st.SearchStrategy[tuple[str, Dim, Dim]]:
    return st.tuples(st.sampled_from(["+", "-", "*", "//", "%", "max", "min"]), inner, inner)


trees = st.recursive(leaves, _combine, max_leaves=12)


def _build(tree: object) -> Dim:
    if not isinstance(tree, tuple):
        return tree  # type: ignore[return-value]
    op, a, b = tree[0], _build(tree[1]), _build(tree[2])
    return {
        "+": lambda: a + b,
        "-": lambda: a - b,
        "*": lambda: a * b,
        "//": lambda: dims.floordiv(a, b) if b != 0 else 0,
        "%": lambda: dims.mod(a, b) if b != 0 else 0,
        "max": lambda: dims.dim_max(a, b),
        "min": lambda: dims.dim_min(a, b),
    }[op]()


def _value(tree: object, env: dict[str, int]) -> int | None:
    """Plain Python on the unsimplified tree; None where something divides by zero."""
    if not isinstance(tree, tuple):
        return dims.evaluate(tree, env)  # type: ignore[arg-type]
    a, b = _value(tree[1], env), _value(tree[2], env)
    if a is None or b is None or (tree[0] in ("//", "%") and b == 0):
        return None
    return {
        "+": lambda: a + b,
        "-": lambda: a - b,
        "*": lambda: a * b,
        "//": lambda: a // b,
        "%": lambda: a % b,
        "max": lambda: max(a, b),
        "min": lambda: min(a, b),
    }[tree[0]]()


@given(trees, st.fixed_dictionaries({n: st.integers(1, 50) for n in NAMES}))
def test_simplified_expression_has_the_value_of_the_original(tree, env):
    want = _value(tree, env)
    if want is None:
        return
    built = _build(tree)
    assert dims.evaluate(built, env) == want
    assert dims.dim_from_json(json.loads(json.dumps(dims.dim_json(built)))) == built
    renamed_env = env | {"a": env["c"]}
    renamed_want = _value(tree, renamed_env)
    if renamed_want is not None:
        renamed = dims.substitute(built, {"a": symbol("c")})
        assert dims.evaluate(renamed, renamed_env) == renamed_want


def test_equal_products_are_equal_and_exact_divisions_cancel():
    batch, seq = symbol("batch"), symbol("seq")
    assert batch * seq == seq * batch
    assert (batch * seq * 384) // 384 == batch * seq
    assert (batch * seq * 12) // (seq * 4) == batch * 3
    assert (batch * seq) % seq == 0
    assert batch - batch == 0
    assert str((batch - 1) // 2 + 1) == "1 + ((-1 + batch) // (2))"


def test_unknown_operator_in_json_is_refused():
    with pytest.raises(ValueError, match="unknown operator"):
        dims.dim_from_json(["<<", 1, 2])
