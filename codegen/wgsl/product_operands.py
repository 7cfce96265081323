"""The operands of a product as WGSL functions: what `product`'s templates call.

`half`: elements are handed out as the f16 they are stored as, else as f32.
"""

from __future__ import annotations

from .. import scalar as sc
from ..dims import Dim, ceildiv
from ..scalar import Scalar
from ..spec import Storage
from .module import Module, dim_multiple, dim_text


def define_a(
    module: Module,
    index: Scalar,
    inside: Scalar | None,
    k: Dim,
    vector: bool,
    half: bool,
    name: str = "a",
) -> None:
    """NAME_at, _load, _load_checked for operand 0; `index` and `inside` over AXIS (z, m, k).

    Where `inside` is false the element is 0. `vector`: index runs along k, K is a multiple of 4.
    """
    kind = "f16" if half else "f32"
    integer = module.operands[0] is Storage.I32
    names = {sc.axis(0): "z", sc.axis(1): "m", sc.axis(2): "k"}
    speller = module.speller(names)
    roots = [index] if inside is None else [index, inside]
    spelled = speller.spell(*roots)
    at = spelled[0]
    head = "(z: i32, m: i32, k: i32)"
    body = list(speller.lines)
    if inside is not None:
        zero = f"vec4<{kind}>()" if vector else f"{kind}(0)"
        body.append(f"if (!{spelled[1]}) {{ return {zero}; }}")
    if vector:
        value = module.element4(0, f"u32({at}) / 4u", widen=not half)
        value = f"vec4<f32>({value})" if integer else value
        module.text(f"fn {name}_load{head} -> vec4<{kind}> {{", [*body, f"return {value};"])
        define_checked(module, k, kind, name)
        module.text(
            f"fn {name}_at{head} -> {kind} {{", [f"return {name}_load(z, m, k & ~3)[k & 3];"]
        )
        return
    element = module.element(0, at, widen=not half)
    element = f"f32({element})" if integer else element
    module.text(f"fn {name}_at{head} -> {kind} {{", [*body, f"return {element};"])
    inner = ", ".join(f"{name}_at(z, m, k{f' + {i}' if i else ''})" for i in range(4))
    module.text(f"fn {name}_load{head} -> vec4<{kind}> {{", [f"return vec4<{kind}>({inner});"])
    define_checked(module, k, kind, name)


def define_checked(module: Module, k: Dim, kind: str, name: str = "a") -> None:
    """NAME_load_checked over NAME_load and, where K is no multiple of 4, NAME_at."""
    lines = [f"if (u32(k) >= {dim_text(k)}) {{ return vec4<{kind}>(); }}"]
    lines.append(f"return {name}_load(z, m, k);")
    if not dim_multiple(k, 4):
        lines = [f"var v = vec4<{kind}>();"]
        for i, c in enumerate("xyzw"):
            step = f"k + {i}" if i else "k"
            lines.append(f"if (u32({step}) < {dim_text(k)}) {{ v.{c} = {name}_at(z, m, {step}); }}")
        lines.append("return v;")
    head = "(z: i32, m: i32, k: i32)"
    module.text(f"fn {name}_load_checked{head} -> vec4<{kind}> {{", lines)


def define_b_panels(module: Module, n: Dim, k: Dim, panels: bool, half: bool) -> None:
    """b_load for packed operand 1; `panels`: one packed matrix after the other along z."""
    base = f"u32(z) * {dim_text(ceildiv(n, 8))} + u32(n) / 8u" if panels else "u32(n) / 8u"
    at = f"(({base}) * {dim_text(k)} + u32(k)) * 2u + (u32(n) / 4u) % 2u"
    _b_load(module, [f"return {module.element4(1, at, widen=not half)};"], half)


def define_b(module: Module, index: Scalar, vector: bool, half: bool) -> None:
    """b_load for operand 1 through `index` over AXIS (z, k, n)."""
    kind = "f16" if half else "f32"
    names = {sc.axis(0): "z", sc.axis(1): "k", sc.axis(2): "n"}
    speller = module.speller(names)
    (at,) = speller.spell(index)
    if vector:
        value = module.element4(1, f"u32({at}) / 4u", widen=not half)
        _b_load(module, [*speller.lines, f"return {value};"], half)
        return
    element = module.element(1, at, widen=not half)
    module.text(f"fn b_at(z: i32, k: i32, n: i32) -> {kind} {{",
                [*speller.lines, f"return {element};"])  # fmt: skip
    inner = ", ".join(f"b_at(z, k, n{f' + {i}' if i else ''})" for i in range(4))
    _b_load(module, [f"return vec4<{kind}>({inner});"], half)


def _b_load(module: Module, body: list[str], half: bool) -> None:
    kind = "f16" if half else "f32"
    module.text(f"fn b_load(z: i32, k: i32, n: i32) -> vec4<{kind}> {{", body)
