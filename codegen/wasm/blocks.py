"""Block-quantised weights as floats: a group of panels at a time, into a thread's scratch."""

from __future__ import annotations

from ..spec import PANEL, Blocks
from .asm import I32, V128, Function, Module, imin


def unpack(module: Module, blocks: Blocks, k: int, panels: int) -> Function:
    """(codes, scales, zeros, target): target[k][8 * panels] of the panels from there on.

    Codes of four columns lie in one word: masked out where they are they are whole numbers times
    a power of two, which one multiplication takes away.
    """
    bits = blocks.bits
    word_of, shift = (0, 16) if bits == 4 else (4, 0)
    k4, count = -(-k // 4) * 4, -(-k // blocks.size)
    masks = [((1 << bits) - 1) << (bits * j) for j in range(4)]
    powers = [2.0 ** -(bits * j) for j in range(4)]

    def build(f: Function) -> None:
        codes, scales, zeros, target = f.params
        block, i, end, from_, to = f.locals(I32, 5)
        scale, zero = f.locals(V128, PANEL // 4), f.locals(V128, PANEL // 4)
        for panel in range(panels):
            f.assign(from_, codes + panel * k4 * bits)
            f.assign(to, target + panel * PANEL * 4)
            with f.loop_range(block, 0, count):
                for h in range(2):
                    f.get(scales)
                    f.v128_load(panel * count * 32 + 16 * h)
                    f.set(scale[h])
                    if blocks.zeros:
                        f.get(zeros)
                        f.v128_load(panel * count * 32 + 16 * h)
                    else:
                        f.f32x4_const(float(1 << (bits - 1)))
                    f.set(zero[h])
                f.assign(end, imin(f.value(block * -blocks.size + k), blocks.size))
                with f.loop_range(i, 0, end):
                    for h in range(2):
                        f.push(to)
                        f.get(from_)
                        f.v128_load32_splat(word_of * h)
                        f.i32x4_const(*(m << (shift * h) for m in masks))
                        f.v128_and()
                        f.f32x4_convert_i32x4_u()
                        f.f32x4_const(*(p * 2.0 ** -(shift * h) for p in powers))
                        f.f32x4_mul()
                        f.get(zero[h])
                        f.f32x4_sub()
                        f.get(scale[h])
                        f.f32x4_mul()
                        f.v128_store(16 * h)
                    f.assign(from_, from_ + bits)
                    f.assign(to, to + panels * PANEL * 4)
                f.assign(scales, scales + 32)
                f.assign(zeros, zeros + 32)
            f.assign(scales, scales - 32 * count)
            f.assign(zeros, zeros - 32 * count)

    name = f"unpack_{bits}_{blocks.size}{'z' if blocks.zeros else ''}_{k}x{panels}"
    return module.helper(name, [I32] * 4, [], build)
