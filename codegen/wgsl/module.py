"""A shader under construction: bindings, pointwise functions, and the template that uses them.

Python decides, templates spell: everything that depends on the spec's expressions becomes a WGSL
function here (`put` stores one element, `put4` stores four neighbours), and a template is the
loop structure around calls of these functions.
"""

from __future__ import annotations

import functools
import importlib.resources
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from typing import Any

import jinja2

from .. import scalar as sc
from ..dims import Dim, ceildiv, dim_max, dim_min, floordiv, product
from ..scalar import Op, Scalar, Type
from ..spec import Storage
from .kernel import Binding, Pass, Role
from .scalar import ELEMENT, WGSL_TYPE, Helpers, Speller, loads

_ENABLES = {
    "shader-f16": "enable f16;",
    "subgroups": "enable subgroups;",
    "chromium-experimental-subgroup-matrix": "enable chromium_experimental_subgroup_matrix;",
}
"""WebGPU features and the directives that their use in a shader takes."""
FEATURES = frozenset(_ENABLES)
MATRIX_FEATURES = tuple(_ENABLES)
"""Those of shaders on subgroup matrices."""

MAX_GRID = 65535
"""Workgroups per dimension of a dispatch that every device allows."""


def _templates() -> Traversable:
    # The shaders package is a sibling of codegen, also when both come out of an archive.
    return importlib.resources.files(__package__.rsplit(".", 2)[0] + ".shaders")


@functools.cache
def _environment() -> jinja2.Environment:
    files = _templates()

    def read(name: str) -> str:
        return files.joinpath(name).read_text(encoding="utf-8")

    return jinja2.Environment(
        loader=jinja2.FunctionLoader(read),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )


def compile_templates() -> None:
    """All of them now, rather than each for the first kernel that needs it."""
    for entry in _templates().iterdir():
        if entry.name.endswith(".wgsl.j2"):
            _environment().get_template(entry.name)


def fill(template: str, fields: Any) -> str:
    """The text of `shaders/<template>.wgsl.j2` over one dataclass's fields, or over none."""
    names = () if fields is None else fields.__dataclass_fields__
    values = {name: getattr(fields, name) for name in names}
    return _environment().get_template(f"{template}.wgsl.j2").render(values)


def fold_grid(workgroups: Dim) -> tuple[Dim, Dim, Dim]:
    """A grid of at least `workgroups`; its linear number is `group.y * 65535 + group.x`."""
    if isinstance(workgroups, int) and workgroups <= MAX_GRID:
        return (workgroups, 1, 1)
    return (dim_min(workgroups, MAX_GRID), ceildiv(workgroups, MAX_GRID), 1)


ENOUGH = 396
"""Workgroups that a large device of today has use for: three per core of an H100."""


def parts(splits: int, workgroups: Dim, most: Dim = ENOUGH) -> Dim:
    """How many workgroups share what one would do, at most `splits` and `most`.

    Where all sizes are known that has been decided. Where they are not, no more than the device has
    use for: so that large sizes are left whole, and partial results stay small.
    """
    if splits == 1 or (isinstance(workgroups, int) and isinstance(most, int)):
        return splits
    return dim_max(dim_min(splits, floordiv(ENOUGH, dim_max(workgroups, 1)), most), 1)


def dim_text(dim: Dim) -> str:
    """A size as a u32 expression."""
    if isinstance(dim, int):
        return f"{dim}u"
    (text,) = Speller((), Helpers(), {}, inline=True).spell(sc.dim(dim))
    return f"u32({text})"


def is_multiple(node: Scalar, by: int, assume: frozenset[Scalar] = frozenset()) -> bool:
    """Whether `node` is known to be a multiple of `by` where the nodes in `assume` are."""
    if node in assume:
        return True
    if node.op is Op.CONST:
        return int(node.value or 0) % by == 0
    if node.op in (Op.ADD, Op.SUB):
        return all(is_multiple(a, by, assume) for a in node.args)
    if node.op is Op.MUL:
        return any(is_multiple(a, by, assume) for a in node.args)
    if node.op is Op.UMOD:
        return all(is_multiple(a, by, assume) for a in node.args)
    if node.op is Op.SELECT:
        return all(is_multiple(a, by, assume) for a in node.args[1:])
    return False


def runs_along(index: Scalar, axis: int) -> bool:
    """Whether four steps of `axis` from a multiple of 4 are four elements from a multiple of 4."""
    step = sc.coefficient(index, axis)
    if step is None or step.op is not Op.CONST or step.value != 1:
        return False
    return is_multiple(index, 4, frozenset([sc.axis(axis)]))


def dim_multiple(dim: Dim, by: int) -> bool:
    """Whether a size is known to be a multiple of `by`."""
    return is_multiple(sc.dim(dim), by)


@dataclass(frozen=True, slots=True)
class _Target:
    """An output, and the functions that store in it."""

    buffer: str
    storage: Storage
    value: str
    put: str
    put4: str


class Module:
    """Collects what one shader needs. `head()` goes to the top of the template."""

    def __init__(self, operands: tuple[Storage, ...], output: Storage, n_args: int) -> None:
        self.operands, self.output, self.n_args = operands, output, n_args
        self.helpers = Helpers()
        self.functions: list[str] = []
        self.used: set[int] = set()
        self.vector: set[int] = set()  # operands bound as vec4
        self.output_vector = False
        self.scratch: list[tuple[str, str]] = []  # (name, element type)
        self.also: tuple[str, ...] = ()  # features that the template uses
        self.kept: str | None = None  # element type of a second output

    # ---- expressions -------------------------------------------------------------------------

    def speller(self, names: Mapping[Scalar, str], prefix: str = "t") -> Speller:
        return Speller(self.operands, self.helpers, names, prefix)

    def function(
        self, name: str, params: Mapping[Scalar, tuple[str, str]], result: Scalar, type_: str = ""
    ) -> None:
        """`fn name(params) -> type { return result; }`; params: leaf -> (name, WGSL type)."""
        speller = self.speller({node: text for node, (text, _) in params.items()})
        (text,) = speller.spell(result)
        self.used |= speller.loaded
        heads = ", ".join(f"{n}: {t}" for n, t in params.values())
        self.text(f"fn {name}({heads}) -> {type_ or WGSL_TYPE[result.type]} {{",
                  [*speller.lines, f"return {text};"])  # fmt: skip

    def text(self, head: str, body: Sequence[str]) -> None:
        """A function from its first line and its statements."""
        self.functions.append("\n".join([head, *(f"  {line}" for line in body), "}"]))

    def element(self, operand: int, index: str, widen: bool = True) -> str:
        """One element of a scalar-bound operand, f16 as f32 if it is to be widened."""
        self.used.add(operand)
        text = f"in{operand}[{index}]"
        return f"f32({text})" if widen and self.operands[operand] is Storage.F16 else text

    def element4(self, operand: int, index: str, widen: bool = True) -> str:
        """Four elements of a vector-bound operand, widened alike; `index` counts vectors."""
        self.used.add(operand)
        self.vector.add(operand)
        text = f"in{operand}[{index}]"  # of I8: four words
        return f"vec4<f32>({text})" if widen and self.operands[operand] is Storage.F16 else text

    @staticmethod
    def stored(text: str, type_: Type, storage: Storage) -> str:
        """An expression converted to an output's element type."""
        if storage is Storage.F16:
            return f"f16({text})"
        if storage is Storage.I32 and type_ is not Type.I32:
            return f"i32({text})"
        return text

    # ---- stores ------------------------------------------------------------------------------

    def puts(
        self,
        value: Scalar,
        index: Scalar,
        axes: Sequence[str],
        acc: Type | None = None,
        lane: int | None = None,
        lane_size: Dim = 1,
        vector: bool = True,
        guarded: frozenset[int] = frozenset(),
        put4: str = "put4",
        kept: Storage | None = None,
    ) -> None:
        """Functions `put(axes..., acc)` and, with a lane axis, `put4(axes..., acc4)`.

        axes: names of AXIS 0, 1, ... (i32 parameters). `put4` stores at lane .. lane + 3, lane
        being a multiple of 4; lanes from `lane_size` on are left out. It reads and writes vec4s
        where `vector` allows and the addresses do; `guarded` operands are never bound as vec4.
        With `kept` they are `keep` and `keep4`, and store in the second output.
        """
        target = _Target("out", self.output, "value_of", "put", put4)
        if kept is not None:
            target = _Target("kept", kept, "kept_value_of", "keep", "keep4")
        params = {sc.axis(i): (name, "i32") for i, name in enumerate(axes)}
        if acc is not None:
            params[sc.acc(acc)] = ("acc", WGSL_TYPE[acc])
        wide = (
            lane is not None and vector and dim_multiple(lane_size, 4) and runs_along(index, lane)
        )
        lane_loads = self._lane_loads(value, index, lane, guarded) if wide else {}
        for node in lane_loads:
            params[node] = (f"lane{len(params)}", WGSL_TYPE[node.type])
        self.function(target.value, params, value)
        passed = [name for name, _ in params.values()]
        if kept is not None:
            self.keep(kept, wide)
        if wide:
            assert lane is not None
            self._put4_wide(params, value, index, axes, acc, lane, lane_loads, target)
            return
        heads = [f"{n}: {t}" for n, t in params.values()]
        speller = self.speller({node: text for node, (text, _) in params.items()})
        (at,) = speller.spell(index)
        self.used |= speller.loaded
        call = self.stored(f"{target.value}({', '.join(passed)})", value.type, target.storage)
        store = f"{target.buffer}[{at}] = {call};"
        self.text(f"fn {target.put}({', '.join(heads)}) {{", [*speller.lines, store])
        if lane is not None:
            self._put4_narrow(axes, acc, lane, lane_size, target)

    def scalar_operands(self, value: Scalar, index: Scalar, lane: int) -> set[int]:
        """Those with a load that is not four neighbours along the lane."""
        everywhere = loads(value, index)
        scalar = {o for n, o in everywhere.items() if not runs_along(n.args[0], lane)}
        scalar |= set(loads(index).values())
        scalar |= {o for o, storage in enumerate(self.operands) if storage is Storage.I8}
        nested = {m for n in everywhere for m in loads(n.args[0])}
        return scalar | {everywhere[n] for n in nested}

    def _lane_loads(
        self, value: Scalar, index: Scalar, lane: int | None, guarded: frozenset[int]
    ) -> dict[Scalar, int]:
        """Loads that can be vec4s: every load of their operand runs along the lane."""
        assert lane is not None
        scalar = self.scalar_operands(value, index, lane) | guarded
        return {n: o for n, o in loads(value, index).items() if o not in scalar}

    def _put4_wide(
        self,
        params: Mapping[Scalar, tuple[str, str]],
        value: Scalar,
        index: Scalar,
        axes: Sequence[str],
        acc: Type | None,
        lane: int,
        lane_loads: Mapping[Scalar, int],
        target: _Target,
    ) -> None:
        heads = [f"{a}: i32" for a in axes]
        if acc is not None:
            heads.append(f"acc: vec4<{WGSL_TYPE[acc]}>")
        speller = self.speller({sc.axis(i): name for i, name in enumerate(axes)})
        places = speller.spell(index, *(node.args[0] for node in lane_loads))
        self.used |= speller.loaded
        body = list(speller.lines)
        for (node, operand), place in zip(lane_loads.items(), places[1:], strict=True):
            vector = self.element4(operand, f"u32({place}) / 4u")
            body.append(f"let {params[node][0]} = {vector};")
        calls = []
        for i, component in enumerate("xyzw"):
            passed = [f"{a} + {i}" if j == lane and i else a for j, a in enumerate(axes)]
            if acc is not None:
                passed.append(f"acc.{component}")
            passed += [f"{params[node][0]}.{component}" for node in lane_loads]
            call = f"{target.value}({', '.join(passed)})"
            calls.append(self.stored(call, value.type, target.storage))
        element = ELEMENT[target.storage]
        body.append(f"{target.buffer}[u32({places[0]}) / 4u] = vec4<{element}>(")
        body += [f"  {call}{',' if i < 3 else ');'}" for i, call in enumerate(calls)]
        if target.buffer == "out":
            self.output_vector = True
        self.text(f"fn {target.put4}({', '.join(heads)}) {{", body)

    def _put4_narrow(
        self, axes: Sequence[str], acc: Type | None, lane: int, lane_size: Dim, target: _Target
    ) -> None:
        heads = [f"{a}: i32" for a in axes]
        if acc is not None:
            heads.append(f"acc: vec4<{WGSL_TYPE[acc]}>")
        body = []
        for i, component in enumerate("xyzw"):
            passed = [f"{a} + {i}" if j == lane and i else a for j, a in enumerate(axes)]
            if acc is not None:
                passed.append(f"acc.{component}")
            call = f"{target.put}({', '.join(passed)});"
            if dim_multiple(lane_size, 4):
                body.append(call)
            else:
                body.append(f"if (u32({axes[lane]} + {i}) < {dim_text(lane_size)}) {{ {call} }}")
        self.text(f"fn {target.put4}({', '.join(heads)}) {{", body)

    def keep(self, storage: Storage, vector: bool | int) -> None:
        """Declares `kept`, a second output, of vectors of `vector` elements (4 if True)."""
        element = ELEMENT[storage]
        lanes = 4 if vector is True else int(vector)
        self.kept = f"vec{lanes}<{element}>" if vector else element

    # ---- the whole -----------------------------------------------------------------------------

    def features(self, with_output: bool = True) -> tuple[str, ...]:
        half = Storage.F16 in {self.operands[i] for i in self.used}
        half |= with_output and self.output is Storage.F16
        half |= self.kept is not None and "f16" in self.kept
        return tuple(dict.fromkeys([*(("shader-f16",) if half else ()), *self.also]))

    def _bound(self, with_output: bool = True) -> list[tuple[Binding, str, str]]:
        """(binding, declaration's address space and name, type), in binding order."""
        found: list[tuple[Binding, str, str]] = []
        for i in sorted(self.used):
            element = ELEMENT[self.operands[i]]
            element = f"vec4<{element}>" if i in self.vector else element
            found.append(
                (Binding(Role.OPERAND, i), f"var<storage, read> in{i}", f"array<{element}>")
            )
        if with_output:
            element = ELEMENT[self.output]
            element = f"vec4<{element}>" if self.output_vector else element
            found.append(
                (Binding(Role.OUTPUT), "var<storage, read_write> out", f"array<{element}>")
            )
        if self.kept is not None:
            found.append(
                (Binding(Role.KEPT), "var<storage, read_write> kept", f"array<{self.kept}>")
            )
        for i, (name, element) in enumerate(self.scratch):
            declared = f"var<storage, read_write> {name}"
            found.append((Binding(Role.SCRATCH, i), declared, f"array<{element}>"))
        return found

    def _args(self, number: int) -> str:
        """The declaration of the arguments: last, so that it can be left out."""
        vectors = -(-self.n_args // 4)
        return (
            f"\n@group(0) @binding({number}) var<uniform> args: Arguments;"
            f"\n\nstruct Arguments {{\n  v: array<vec4<u32>, {vectors}>,\n}}"
        )

    def head(self, with_output: bool = True) -> str:
        """Directives, bindings, helpers and functions: the top of the shader."""
        parts = [_ENABLES[name] for name in self.features(with_output)]
        bound = self._bound(with_output)
        declared = "\n".join(
            f"@group(0) @binding({i}) {name}: {type_};" for i, (_, name, type_) in enumerate(bound)
        )
        parts.append(declared + (self._args(len(bound)) if self.n_args else ""))
        if self.helpers.used:
            parts.append(self.helpers.text())
        return "\n\n".join([*parts, *self.functions])

    def dispatch(
        self, template: str, fields: Any, grid: tuple[Dim, Dim, Dim], with_output: bool = True
    ) -> Pass:
        """The filled template. What it does not use it does not bind, the arguments included:
        a pipeline's automatic layout holds only what its shader uses."""
        code = fill(template, fields)
        bindings = [b for b, _, _ in self._bound(with_output)]
        if self.n_args and "args.v[" in code:
            bindings.append(Binding(Role.ARGS))
        elif self.n_args:
            code = code.replace(self._args(len(bindings)), "")
        return Pass(code, tuple(bindings), grid)


def unravel(flat: str, shape: Sequence[Dim], names: Sequence[str]) -> list[str]:
    """Statements that split the u32 `flat` into row-major coordinates, as i32 `names`."""
    lines, rest = [], flat
    for i in reversed(range(len(shape))):
        if i == 0:
            lines.append(f"let {names[0]} = i32({rest});")
        elif shape[i] == 1:
            lines.append(f"let {names[i]} = 0i;")
        else:
            size = dim_text(shape[i])
            lines.append(f"let {names[i]} = i32({rest} % {size});")
            if any(size_ != 1 for size_ in shape[:i]):
                lines.append(f"let {names[i]}_rest = {rest} / {size};")
                rest = f"{names[i]}_rest"
            else:
                rest = "0u"
    return lines


def size_of(shape: Sequence[Dim]) -> str:
    """Number of elements of a shape, as a u32 expression."""
    return dim_text(product(shape))
