# SPDX-License-Identifier: MIT
"""Numbers of eight bits (e4m3) in a kernel: how they are made, and made wide again."""

import triton
import triton.language as tl

# Of four bytes two (`pick`) go to the upper halves of two numbers; their exponents, three bits
# further down, are 120 too small, and a product makes subnormal numbers normal too.
_PAIR = """
    prmt.b32 word, 0, $2, {pick};
    and.b32 sign, word, 0x80008000;
    and.b32 word, word, 0x7f007f00;
    shr.b32 word, word, 4;
    or.b32 word, word, sign;
    mul.rn.bf16x2 {out}, word, scale;"""
_WIDEN = tl.constexpr(
    "{\n    .reg .b32 word, sign, scale;\n    mov.b32 scale, 0x7b807b80;"
    + _PAIR.format(pick="0x5040", out="$0")
    + _PAIR.format(pick="0x7060", out="$1")
    + "\n}"
)


@triton.jit
def kept(x, DTYPE: tl.constexpr):
    """Return `x` as a cache of DTYPE keeps it: float8 saturates."""
    if DTYPE == tl.float8e4nv:  # noqa: SIM300
        x = tl.minimum(tl.maximum(x.to(tl.float32), -448.0), 448.0)
    return x.to(DTYPE)


@triton.jit
def widened(x, DTYPE: tl.constexpr, HOPPER: tl.constexpr):
    """Return `x` in DTYPE.

    HOPPER: the device has its instructions, and bfloat16 comes from float8 by whole numbers, which
    is several times faster than by its conversions.  What is no number comes out as 480.
    """
    if HOPPER and (x.dtype == tl.float8e4nv and DTYPE == tl.bfloat16):  # noqa: SIM300
        return tl.inline_asm_elementwise(
            _WIDEN, "=r,=r,r", [x.to(tl.int8, bitcast=True)], tl.bfloat16, is_pure=True, pack=4
        )
    return x.to(DTYPE)
