"""The wasm assembler: what it emits validates and runs, what it must refuse is refused."""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wasmtime

from pywebgpu.codegen.wasm import asm
from pywebgpu.codegen.wasm.abi import COUNTS, LINE
from pywebgpu.codegen.wasm.asm import (
    F32,
    I32,
    I64,
    V128,
    AsmError,
    Function,
    Module,
    Target,
    imax,
    imin,
    sleb,
    uleb,
)
from pywebgpu.codegen.wasm.partition import PIECES, shares
from pywebgpu.executors.wasmtime_executor import PAGE, Memory, Worker, engine


class Instance:
    """An instantiated module with one page of memory."""

    def __init__(self, module: Module) -> None:
        self.store = wasmtime.Store(engine())
        self.memory = wasmtime.Memory(self.store, wasmtime.MemoryType(wasmtime.Limits(1, None)))
        compiled = wasmtime.Module(engine(), module.encode())
        self.exports = wasmtime.Instance(self.store, compiled, [self.memory]).exports(self.store)

    def __call__(self, name: str, *args: Any) -> Any:
        function = self.exports[name]
        assert isinstance(function, wasmtime.Func)
        return function(self.store, *args)

    def read(self, layout: str, at: int) -> tuple[Any, ...]:
        return struct.unpack(layout, self.memory.read(self.store, at, at + struct.calcsize(layout)))


def one(build: Any, params: int = 2, results: int = 1) -> Instance:
    """A module whose function "f" takes i32s and gives an i32."""
    module = Module()
    f = module.function("f", [I32] * params, [I32] * results)
    build(f, *f.params)
    module.export("f", f)
    return Instance(module)


@pytest.mark.parametrize("value", [0, 1, 63, 64, 127, 128, 300, 2**31 - 1, -1, -64, -65, -(2**31)])
def test_leb128(value: int) -> None:
    def decode(data: bytes, signed: bool) -> int:
        total = sum((byte & 0x7F) << 7 * i for i, byte in enumerate(data))
        return total - (1 << 7 * len(data)) if signed and data[-1] & 0x40 else total

    assert decode(sleb(value), True) == value
    if value >= 0:
        assert decode(uleb(value), False) == value


@pytest.mark.parametrize(
    "expression",
    [
        lambda x, y: x + y * 4 + 12,
        lambda x, y: x * 8 - y * 8 + 16,
        lambda x, y: 5 - x,
        lambda x, y: -(x + 1) * 3,
        lambda x, y: x * y + x * 2,
        lambda x, y: (x + 7) // 4 * 4,
        lambda x, y: x // 7 + x % 7 + y % 8,
        lambda x, y: (x + y) * 0 + 3,
        lambda x, y: x - x,
    ],
)
def test_integer_expressions(expression: Any) -> None:
    f = one(lambda f, x, y: f.push(expression(x, y)))
    for x, y in ((0, 0), (1, 2), (100, 7), (12345, 678)):
        assert f("f", x, y) == expression(x, y)


def test_minimum_and_maximum() -> None:
    f = one(lambda f, x, y: f.push(imin(x, y) * 1000 + imax(x, -5)))
    assert [f("f", 3, 9), f("f", 9, 3), f("f", -7, 1)] == [3003, 3009, -7005]


def test_constants_are_folded() -> None:
    def size(value: Any) -> int:
        module = Module()
        f = module.function("f", [I32], [I32])
        f.push(value(f.params[0]))
        return len(f._code)

    assert size(lambda x: x + 4 - 4) == size(lambda x: x)
    assert size(lambda x: (x + 1) + 2) == size(lambda x: x + 3)
    assert size(lambda x: x * 3 * 2) == size(lambda x: x * 6)


@pytest.mark.parametrize(
    ("start", "end", "step"), [(0, 10, 1), (0, 10, 4), (3, 4, 1), (5, 5, 1), (6, 2, 1)]
)
@pytest.mark.parametrize("constant", [False, True])
def test_loop_range(start: int, end: int, step: int, constant: bool) -> None:
    def build(f: Function, a: Any, b: Any) -> None:
        i, total = f.locals(I32, 2)
        f.assign(total, 0)
        first, last = (start, end) if constant else (a, b)
        with f.loop_range(i, first, last, step):
            f.assign(total, total + i + 100)
        f.push(total * 1000 + i)

    steps = range(start, end, step)
    after = start + len(steps) * step
    assert one(build)("f", start, end) == (sum(steps) + 100 * len(steps)) * 1000 + after


@pytest.mark.parametrize("total", [0, 1, 3, 4, 17, 1000])
@pytest.mark.parametrize("tile", [1, 4])
@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_shares_cover_the_range(total: int, tile: int, threads: int) -> None:
    def build(f: Function, thread: Any, count: Any, n: Any) -> None:
        found = f.value(0)
        with shares(f, thread, count, n, tile) as (start, end):
            f.assign(found, start * 10000 + end)
        f.push(found)

    f = one(build, 3)
    parts = [divmod(f("f", t, threads, total), 10000) for t in range(threads)]
    sizes = [end - start for start, end in parts]
    assert sum(sizes) == total
    assert max(sizes) - min(sizes) < 2 * tile
    parts = [part for part in parts if part != (0, 0)]
    assert not total or (parts[0][0], parts[-1][1]) == (0, total)
    for (_, end), (start, _) in pairwise(parts):
        assert end == start
        assert end % tile == 0


@pytest.mark.parametrize("total", [0, 1, 3, 4, 17, 1000])
@pytest.mark.parametrize(("tile", "least"), [(1, 1), (4, 1), (4, 3), (1, 2000)])
@pytest.mark.parametrize("threads", [2, 3, 7])
def test_threads_take_over_from_each_other(total: int, tile: int, least: int, threads: int) -> None:
    """Every place is done once, and nothing is left for who comes late."""
    module = Module(Target(threads=True))
    counters, marks = 1024, 4096
    f = module.function("f", [I32] * 3)
    thread, count, n = f.params
    i = f.local(I32)
    f.push(counters)
    f.global_set(COUNTS)
    parts = shares(f, thread, count, n, tile, least)
    with parts as (start, end), f.loop_range(i, start, end):
        f.push(i + marks, i + marks)
        f.i32_load8_u()
        f.push(1)
        f.i32_add()
        f.i32_store8()
    module.export("f", f)
    memory = Memory(True, PAGE)
    worker = Worker(wasmtime.Module(engine(), module.encode()), memory)
    for thread_ in random.sample(range(threads), threads):
        worker.call("f", thread_, threads, total)
        assert memory.data[marks : marks + total + 1].tolist() == [1] * total + [0]
    taken = memory.data[counters : counters + threads * LINE].view(np.int32)[:: LINE // 4]
    assert taken.max() <= PIECES + threads


def test_control_flow_and_calls() -> None:
    module = Module(names=True)
    f = module.function("f", [I32], [I32])
    later = module.function("later", [I32], [I32])
    (x,) = f.params
    f.push(x)
    with f.if_(I32):
        f.push(x)
        f.call(later)
        f.else_()
        f.push(-1)
    later.push(later.params[0] * 3)
    module.export("f", f)
    module.custom("note", b"hello")
    instance = Instance(module)
    assert [instance("f", 0), instance("f", 5)] == [-1, 15]


def test_vectors_and_memory() -> None:
    def build(f: Function, at: Any) -> None:
        f.push(at)
        f.f32x4_const(1.0, 2.0, 3.0, 4.0)
        f.f32x4_const(0.5)
        f.f32x4_mul()
        f.v128_store(16)
        x = f.local(V128)
        f.v128_load32_splat(addr=at + 20)
        f.set(x)
        f.push(at)
        f.get(x)
        f.v128_store32_lane(3, 32)
        f.push(at)
        f.v128_load(16, at)
        f.get(x)
        f.i32x4_shuffle(0, 4, 1, 5)
        f.v128_store(48)

    f = one(build, 1, 0)
    f("f", 64)
    assert f.read("4f", 80) == (0.5, 1.0, 1.5, 2.0)
    assert f.read("f", 96) == (1.0,)
    assert f.read("4f", 112) == (0.5, 1.0, 1.0, 1.0)


@pytest.mark.parametrize("relaxed", [False, True])
def test_multiply_add(relaxed: bool) -> None:
    module = Module(Target(relaxed=relaxed))
    f = module.function("f", [I32])
    acc = f.local(V128)
    f.f32x4_const(10.0)
    f.set(acc)
    f.f32x4_const(3.0)
    f.f32x4_const(4.0)
    f.madd(acc)
    f.store(f.params[0], acc)
    module.export("f", f)
    instance = Instance(module)
    instance("f", 0)
    assert instance.read("4f", 0) == (22.0,) * 4


def test_locals_are_reused() -> None:
    f = Module().function("f")
    with f.scope():
        first = f.locals(V128, 3)
        f.free_local(first[0])
        assert f.local(V128) is first[0]
    assert {x.index for x in f.locals(V128, 3)} == {x.index for x in first}
    assert f.local(F32).index == 3


MISTAKES: dict[str, Any] = {
    "wrong type": lambda f: (f.push(1), f.f32x4_add()),
    "empty stack": lambda f: f.i32_add(),
    "value left over": lambda f: (f.push(1), f._encode()),
    "below the block": lambda f: (f.push(1), _in_block(f, lambda: f.i32_eqz())),
    "left in a block": lambda f: _in_block(f, lambda: f.push(1)),
    "lane": lambda f: (f.f32x4_const(1.0), f.f32x4_extract_lane(4)),
    "shuffle": lambda f: (f.f32x4_const(1.0), f.f32x4_const(1.0), f.i8x16_shuffle(*[32] * 16)),
    "offset": lambda f: f.v128_load(-4, f.params[0]),
    "address of a store": lambda f: (f.f32x4_const(1.0), f.v128_store(addr=f.params[0])),
    "set of another type": lambda f: (f.push(1), f.set(f.local(V128))),
    "sum of floats": lambda f: f.push(f.local(F32) + 1),
    "constant": lambda f: f.i32_const(1 << 33),
    "else without if": lambda f: _in_block(f, f.else_),
    "closed label": lambda f: _branch_to_closed(f),
}


def _in_block(f: Function, body: Any) -> None:
    with f.block():
        body()


def _branch_to_closed(f: Function) -> None:
    with f.block() as label:
        pass
    f.br(label)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_reported_where_they_are_made(mistake: str) -> None:
    f = Module().function("f", [I32])
    with pytest.raises(AsmError):
        MISTAKES[mistake](f)


def _every_instruction(relaxed: bool) -> Module:
    """A module with each plain instruction, load and store once."""
    module = Module(Target(relaxed=relaxed, threads=True), names=True)
    f = module.function("all", [I32, I64, F32, V128])
    by_type = {p.type: p for p in f.params}
    for name, member in vars(Function).items():
        if name.startswith("_") or ("relaxed" in name and not relaxed):
            continue
        if isinstance(member, asm._Access):
            f.get(*(by_type[t] for t in member.want))
            bound = getattr(f, name)
            if isinstance(member, asm._LaneAccess):
                bound(1)
            else:
                bound(8)
        elif getattr(member, "__qualname__", "").startswith(("_op.", "_lane.")):
            closure = dict(zip(member.__code__.co_freevars, member.__closure__, strict=True))
            lane = "plain" in closure
            inner = closure["plain"].cell_contents if lane else member
            cells = dict(zip(inner.__code__.co_freevars, inner.__closure__, strict=True))
            f.get(*(by_type[t] for t in cells["want"].cell_contents))
            member(f, 1) if lane else member(f)
        else:
            continue
        for _ in list(f._stack):
            f.drop()
    module.export("all", f)
    return module


@pytest.mark.parametrize("relaxed", [False, True])
def test_every_instruction_validates(relaxed: bool, tmp_path: Path) -> None:
    binary = _every_instruction(relaxed).encode()
    wasmtime.Module.validate(engine(), binary)
    tool = shutil.which("wasm-objdump")
    if tool is None:
        pytest.skip("wabt is not installed (apt-get install wabt)")
    path = tmp_path / "all.wasm"
    path.write_bytes(binary)
    text = subprocess.run([tool, "-d", path], capture_output=True, text=True, check=True).stdout
    # Every method is named after its instruction; wabt leaves "relaxed" out of some names.
    lines = [line.split("|")[1].split()[0] for line in text.splitlines() if " | " in line]
    spelled = {line.replace(".", "_").replace("relaxed_", "") for line in lines}
    for name, member in vars(Function).items():
        plain = getattr(member, "__qualname__", "").startswith(("_op.", "_lane."))
        if (plain or isinstance(member, asm._Access)) and ("relaxed" not in name or relaxed):
            assert name.replace("relaxed_", "") in spelled, name


@pytest.mark.parametrize("threads", [False, True])
def test_wabt_accepts_it(threads: bool, tmp_path: Path) -> None:
    tool = shutil.which("wasm-validate")
    if tool is None:
        pytest.skip("wabt is not installed (apt-get install wabt)")
    module = Module(Target(threads=threads), names=True)
    f = module.function("f", [I32, I32])
    i = f.local(I32)
    with shares(f, *f.params, 100, 4) as (start, end), f.loop_range(i, start, end):
        f.push(i)
        f.drop()
    module.export("f", f)
    path = tmp_path / "module.wasm"
    path.write_bytes(module.encode())
    subprocess.run([tool, "--enable-all", path], check=True)
