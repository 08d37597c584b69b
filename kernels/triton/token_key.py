# SPDX-License-Identifier: MIT
"""What draws of tokens are made of: keys that order tokens, and noise."""

import triton
import triton.language as tl

_GOLDEN = tl.constexpr(0x9E3779B97F4A7C15 - (1 << 64))
_MIX = tl.constexpr(0xBF58476D1CE4E5B9 - (1 << 64))
_MIX_MORE = tl.constexpr(0x94D049BB133111EB - (1 << 64))


@triton.jit
def _mixed(z):
    """Return the splitmix64 finaliser of int64."""
    z = (z ^ ((z >> 30) & ((1 << 34) - 1))) * _MIX
    z = (z ^ ((z >> 27) & ((1 << 37) - 1))) * _MIX_MORE
    return z ^ ((z >> 31) & ((1 << 33) - 1))


@triton.jit
def key_of(x, token, BITS: tl.constexpr):
    """Return keys `[BV]` int64 >= 0: larger for larger logits, among equals for smaller ids."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)  # -0 equals 0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    low = ((1 << BITS) - 1) - token.to(tl.int64)
    return ((ordered.to(tl.int64) + 2147483648) << BITS) | low


@triton.jit
def mass_of(x, top, divisor):
    """Return masses `[BV]` int64 of logits: whole, a half goes to the even one."""
    exact = tl.exp((x.to(tl.float64) - top.to(tl.float64)) / divisor) * 1099511627776.0
    whole = (exact + 4503599627370496.0) - 4503599627370496.0
    return whole.to(tl.int64)


@triton.jit
def score_of(x, token, heat, seed, position):
    """Return float64 scores `[BV]`, whose greatest is the draw."""
    first = _mixed(seed + (position.to(tl.int64) + 1) * _GOLDEN)
    z = _mixed(first + (token.to(tl.int64) + 1) * _GOLDEN)
    u = (((z >> 12) & ((1 << 52) - 1)).to(tl.float64) + 0.5) * 2.220446049250313e-16
    score = x.to(tl.float64)
    if heat > 0:
        score = score / heat - tl.log(-tl.log(1.0 - u))
    return score
