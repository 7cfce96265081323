"""Recurrent: a workgroup plays all steps of one sequence in one direction.

What a step hands to the next never leaves the workgroup: h lies in workgroup memory, c in
registers. Small weights lie in registers, too, for all steps (as in FlashRNN: Pöppel, Beck and
Hochreiter, 2024); larger ones are read again in every step, from the device's caches.
Layers too wide for workgroup memory keep h in a buffer of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

from .. import scalar as sc
from ..caps import WgslCaps
from ..scalar import Type
from ..spec import Cell, Recurrent, View
from .kernel import WgslKernel
from .module import Module, dim_text, fold_grid

_MOST_HELD = 96
"""Weights that a thread keeps in registers."""

_UNROLL = 8
"""Terms of a sum per turn of the loop. (Mesa's llvmpipe ends every shader's loops after 65,535
turns in all, without a word: fewer turns, longer sequences.)"""


@dataclass(frozen=True, slots=True)
class Knobs:
    """`units` threads work side by side, each on the units that are so far apart; `split` threads
    share the sum of one unit. `held`: weights in registers. `shared`: h in workgroup memory."""

    units: int
    split: int
    held: bool
    shared: bool


@dataclass(frozen=True, slots=True)
class Fields:
    """What the template sees."""

    head: str
    hidden: int
    units: int
    split: int
    rounds: int  # units of each thread
    per_share: int  # terms of a sum that each of `split` threads adds up
    unroll: int
    turns: int  # of the loop over `unroll` terms; the rest follow one by one
    shared: bool
    held: bool
    cell: str
    gates: int
    first: int  # gates of the first product; the rest follow in a second one
    coupled: bool
    peephole: bool
    batch: str
    directions: int
    steps: str
    length: str
    reverse: str  # whether direction d runs from the end
    initial: bool
    vectors: int  # of h, per sequence and direction
    final_h: str  # the output's element where they begin
    final_c: str


def space(spec: Recurrent, caps: WgslCaps) -> list[Knobs]:
    """Weights in registers first, then as many threads as the layer has use for."""
    limit = min(caps.max_invocations, caps.max_workgroup_size[0])
    found: dict[Knobs, None] = {}
    wide = 32
    while wide < min(spec.hidden, limit):
        wide *= 2
    for units in dict.fromkeys((wide, max(wide // 2, 32), max(wide // 4, 32))):
        split = 1
        while units * split <= limit:
            for held in (True, False):
                for shared in (True, False):
                    knobs = Knobs(units, split, held, shared)
                    if _legal(spec, knobs, caps):
                        found[knobs] = None
            split *= 2
    candidates = list(found)

    def order(k: Knobs) -> tuple[object, ...]:
        # Unrolled weights are long to compile where shaders run on the CPU.
        return (not k.shared, k.held if caps.emulated else not k.held, k.units != wide, -k.split)

    return sorted(candidates, key=order)


def _rounds(spec: Recurrent, k: Knobs) -> int:
    return -(-spec.hidden // k.units)


def _legal(spec: Recurrent, k: Knobs, caps: WgslCaps) -> bool:
    rounds = _rounds(spec, k)
    if (k.split > 1 or k.held) and rounds > 1:
        return False
    if k.split > 1 and k.split > spec.hidden:
        return False
    if k.held and spec.cell.gates * -(-spec.hidden // k.split) > _MOST_HELD:
        return False
    storage = 4 * spec.cell.gates * k.units * k.split if k.split > 1 else 0
    if k.shared:
        storage += 4 * spec.hidden * _vectors(spec)
    return storage <= caps.max_workgroup_storage


def _vectors(spec: Recurrent) -> int:
    return 2 if spec.cell is Cell.GRU else 1


def render(spec: Recurrent, knobs: Knobs) -> WgslKernel:
    module = Module(spec.operands, spec.output, spec.n_args)
    if not knobs.shared:
        module.scratch.append(("state", "f32"))
    gates, hidden = spec.cell.gates, spec.hidden
    _read(module, "x_at", 0, spec.x, ("t", "b", "d", "n"))
    tiles = -(-hidden // 8)
    at = f"((d * {tiles} + j / 8) * {hidden} + k) * {8 * gates} + g * 8 + j % 8"
    module.text("fn weight_at(d: i32, j: i32, k: i32, g: i32) -> f32 {",
                [f"return {module.element(1, at)};"])  # fmt: skip
    for i, view in enumerate(spec.initial):
        _read(module, ("h_initial", "c_initial")[i], 2 + i, view, ("d", "b", "j"))
    bias, holes = spec.operand("bias"), spec.operand("peephole")
    if bias is not None:
        element = module.element(bias, f"d * {hidden} + j")
        module.text("fn bias_at(d: i32, j: i32) -> f32 {", [f"return {element};"])
    if holes is not None:
        element = module.element(holes, f"(d * 3 + g) * {hidden} + j")
        module.text("fn peephole_at(d: i32, g: i32, j: i32) -> f32 {", [f"return {element};"])
    for number in range(spec.cell.functions):
        _activation(module, spec, number)
    stored = module.stored("value", Type.F32, spec.output)
    module.text("fn put(at: u32, value: f32) {", [f"out[at] = {stored};"])
    lengths = spec.operand("lengths")
    steps, batch = dim_text(spec.steps), dim_text(spec.batch)
    length = steps
    if lengths is not None:
        length = f"min(u32(max({module.element(lengths, 'b')}, 0)), {steps})"
    block = spec.batch * (spec.directions * hidden)
    vectors = _vectors(spec)
    flags = [f"d == {i}" for i, back in enumerate(spec.reverse) if back]
    fields = Fields(
        head=module.head(),
        hidden=hidden,
        units=knobs.units,
        split=knobs.split,
        rounds=_rounds(spec, knobs),
        per_share=-(-hidden // knobs.split),
        unroll=_UNROLL,
        turns=hidden // (_UNROLL * knobs.split),
        shared=knobs.shared,
        held=knobs.held,
        cell=spec.cell.value,
        gates=gates,
        first=2 if spec.cell is Cell.GRU else gates,
        coupled=spec.coupled,
        peephole=spec.peephole,
        batch=batch,
        directions=spec.directions,
        steps=steps,
        length=length,
        reverse="true" if all(spec.reverse) else " || ".join(flags) or "false",
        initial=bool(spec.initial),
        vectors=vectors,
        final_h=dim_text(spec.steps * block),
        final_c=dim_text((spec.steps + 1) * block),
    )
    pairs = spec.batch * spec.directions
    one = module.dispatch("recurrent", fields, fold_grid(pairs))
    scratch = () if knobs.shared else (pairs * (4 * hidden * vectors),)
    name = f"recurrent_{spec.cell.value}_{knobs.units}x{knobs.split}{'h' if knobs.held else ''}"
    return WgslKernel(name, (one,), scratch, module.features())


def _read(module: Module, name: str, operand: int, view: View, axes: tuple[str, ...]) -> None:
    """`name(axes...)`: an element of a view."""
    index = sc.dim(view.offset)
    for i, stride in enumerate(view.strides):
        if stride != 0:
            index = index + sc.axis(i) * sc.dim(stride)
    speller = module.speller({sc.axis(i): axis for i, axis in enumerate(axes)})
    (at,) = speller.spell(index)
    heads = ", ".join(f"{axis}: i32" for axis in axes)
    body = [*speller.lines, f"return {module.element(operand, at)};"]
    module.text(f"fn {name}({heads}) -> f32 {{", body)


def _activation(module: Module, spec: Recurrent, number: int) -> None:
    """`act<number>(d, x)`; the directions may differ."""
    choices = [functions[number] for functions in spec.activations]
    for d, expression in enumerate(choices):
        if expression not in choices[:d]:
            module.function(f"act{number}_{d}", {sc.acc(): ("x", "f32")}, expression)
    calls = [f"act{number}_{choices.index(e)}(x)" for e in choices]
    same = len(set(choices)) == 1
    body = calls[0] if same else f"select({calls[0]}, {calls[1]}, d == 1)"
    module.text(f"fn act{number}(d: i32, x: f32) -> f32 {{", [f"return {body};"])
