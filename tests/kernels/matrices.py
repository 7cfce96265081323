"""Shaders on subgroup matrices, spelt out for adapters that have none.

The shader's own indices, barriers and control flow stay as they are; 32 neighbouring threads are a
subgroup. A thread has eight neighbours of one row of a sum and copies that row of the left matrix.
The right matrix is read where it lies when it is multiplied: shaders load it right before that.
"""

from __future__ import annotations

import re
from dataclasses import replace

from pywebgpu.codegen.wgsl.kernel import WgslKernel
from pywebgpu.codegen.wgsl.module import MATRIX_FEATURES

_SUM = "array<f32, 8>"
_LANES = """
  let lane = thread % 32u;
  let subgroup = thread / 32u;
"""


def uses_matrices(kernel: WgslKernel) -> bool:
    return set(MATRIX_FEATURES) <= set(kernel.features)


def spelt_out(kernel: WgslKernel) -> WgslKernel:
    """The same without subgroups and their matrices."""
    passes = tuple(replace(one, code=_spelt_out(one.code)) for one in kernel.passes)
    return replace(kernel, passes=passes, features=("shader-f16",))


def _spelt_out(code: str) -> str:
    if "subgroup_matrix" not in code:
        return code
    rights: dict[tuple[str, str], int] = {}
    functions: dict[str, None] = {}

    def load(found: re.Match[str]) -> str:
        side, order, source = found.groups()
        if side == "right":
            number = rights.setdefault((source, order), len(rights))
            return f"right_matrix({number}u,"
        functions[_left(source)] = None
        assert order == "row_major"
        return f"left_{source}(lane,"

    def store(found: re.Match[str]) -> str:
        target, rest = found.groups()
        functions[_store(target)] = None
        return f"store_{target}(lane, {rest});"

    matrix = r"subgroup_matrix_(left|right)<f16, 16, 16>"
    code = re.sub(rf"subgroupMatrixLoad<{matrix}, (\w+)>\(\s*&(\w+),", load, code)
    code = re.sub(r"subgroupMatrixStore<row_major>\(&(\w+), (.*)\);", store, code)
    code = code.replace("subgroupMatrixMultiplyAccumulate(", "multiply(lane, ")
    code = code.replace("subgroup_matrix_result<f32, 16, 16>", _SUM)
    code = re.sub(r"enable (subgroups|chromium_experimental_subgroup_matrix);\n", "", code)
    code = re.sub(r"\s*@builtin\(subgroup\w*\) \w+: u32,", "", code)
    head, body = code.split("fn main(", 1)
    parameters, body = body.split(") {", 1)
    assert "subgroup_matrix" not in body
    made = "".join(functions) + _multiply(rights)
    return f"{head}fn main({parameters}) {{{_LANES}{body}{made}"


def _left(source: str) -> str:
    return f"""
fn left_{source}(lane: u32, offset: u32, pitch: u32) -> array<f32, 16> {{
  var row: array<f32, 16>;
  for (var k = 0u; k < 16u; k++) {{ row[k] = f32({source}[offset + lane / 2u * pitch + k]); }}
  return row;
}}
"""


def _store(target: str) -> str:
    return f"""
fn store_{target}(lane: u32, offset: u32, sum: {_SUM}, pitch: u32) {{
  var values = sum;
  let at = offset + lane / 2u * pitch + lane % 2u * 8u;
  for (var i = 0u; i < 8u; i++) {{ {target}[at + i] = values[i]; }}
}}
"""


def _multiply(rights: dict[tuple[str, str], int]) -> str:
    """By any of the right matrices that the shader loads, as in `right_matrix`."""
    cases = []
    for (source, order), number in rights.items():
        at = "k * m.pitch + column" if order == "row_major" else "column * m.pitch + k"
        cases.append(f"case {number}u: {{ value = f32({source}[m.offset + {at}]); }}")
    return f"""
struct Right {{ source: u32, offset: u32, pitch: u32 }}

fn right_matrix(source: u32, offset: u32, pitch: u32) -> Right {{
  return Right(source, offset, pitch);
}}

fn multiply(lane: u32, row: array<f32, 16>, m: Right, sum: {_SUM}) -> {_SUM} {{
  var left = row;
  var sums = sum;
  for (var i = 0u; i < 8u; i++) {{
    let column = lane % 2u * 8u + i;
    for (var k = 0u; k < 16u; k++) {{
      var value = 0.0f;
      switch (m.source) {{
        {" ".join(cases)}
        default: {{ }}
      }}
      sums[i] += left[k] * value;
    }}
  }}
  return sums;
}}
"""
