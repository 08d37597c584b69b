# SPDX-License-Identifier: MIT
"""Small sums over ranks whose memory each rank can write: every word travels with its turn.

A rank writes its `x` into the memory of each peer, in words of 8 bytes: 4 of data and the number of
the turn.  A peer reads its own memory until all words are of this turn, so a sum takes the time of
one way between two ranks, where `all_reduce` takes three: a flag there, a question, its answer.  A
word comes whole or not at all, since it is one aligned store; so no order of stores is needed.

A program owns one region of each half for each rank, and uses the halves in turn: what it writes at
a turn lay there two turns ago, and who has sent words of the last turn has read it.  A region is
always written whole, so no word of an older turn is left for one of the same number, 2^32 later.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .all_reduce import Exchange, can_sum, finish, operands
from .device import device_of

WORDS = 512  # of a program
PROGRAMS = 128
_WORD_BYTES = 8
_DATA_BYTES = 4  # of a word


def word_bytes(ranks: int) -> int:
    """Return the bytes of memory that each rank gives for what its peers write."""
    return 2 * ranks * PROGRAMS * WORDS * _WORD_BYTES


@triton.jit
def _send(at, word, PDL: tl.constexpr):
    """Store words where another rank sees each whole."""
    if PDL:
        tl.inline_asm_elementwise(
            "st.relaxed.sys.global.b64 [$1], $2; mov.b32 $0, 0;",
            "=r,l,l",
            [at.to(tl.int64), word],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
    else:
        tl.store(at, word)


@triton.jit
def _low(word, DTYPE: tl.constexpr):
    """Return the first of a word's two numbers of 16 bits."""
    return (word & 0xFFFF).to(tl.int16).to(DTYPE, bitcast=True)


@triton.jit
def sum_words(
    x, residual, y, addresses, turns, size,
    RANK: tl.constexpr, RANKS: tl.constexpr, WORDS: tl.constexpr, PROGRAMS: tl.constexpr,
    PAIRS: tl.constexpr, ADDS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """`y[size]`, the sum of the ranks' `x[size]`, WORDS words a program.

    PAIRS: a word holds two numbers of 16 bits, else one of 32.  ADDS: the rounded sum is added to
    `residual[size]`.
    """
    DTYPE: tl.constexpr = x.dtype.element_ty
    PER: tl.constexpr = 2 if PAIRS else 1
    pid = tl.program_id(0)
    w = tl.arange(0, WORDS)
    e = (pid * WORDS + w)[:, None] * PER + tl.arange(0, PER)[None, :]
    ok = e < size
    own = tl.load(addresses + RANK).to(tl.pointer_type(tl.int64))
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    turn = tl.load(turns + pid) + 1
    mine = tl.load(x + e, mask=ok, other=0.0)
    if PAIRS:
        low, high = tl.split(mine)
        bits = high.to(tl.int16, bitcast=True).to(tl.int64) << 16
        bits |= low.to(tl.int16, bitcast=True).to(tl.int64) & 0xFFFF
    else:
        bits = tl.reshape(mine, (WORDS,)).to(tl.int32, bitcast=True).to(tl.int64)
    bits &= 0xFFFFFFFF
    word = bits | (turn.to(tl.int64) << 32)
    half = (turn & 1) * RANKS
    for r in tl.static_range(RANKS):
        if r != RANK:
            peer = tl.load(addresses + r).to(tl.pointer_type(tl.int64))
            _send(peer + ((half + RANK) * PROGRAMS + pid) * WORDS + w, word, PDL)
    first = tl.zeros((WORDS,), tl.float32)
    second = tl.zeros((WORDS,), tl.float32)
    for r in tl.static_range(RANKS):
        came = word
        if r != RANK:
            at = own + ((half + r) * PROGRAMS + pid) * WORDS + w
            came = tl.load(at, volatile=True)
            while tl.max(((came >> 32).to(tl.int32) != turn).to(tl.int32)) > 0:
                came = tl.load(at, volatile=True)
        if PAIRS:
            first += _low(came, DTYPE).to(tl.float32)
            second += _low(came >> 16, DTYPE).to(tl.float32)
        else:
            first += (came & 0xFFFFFFFF).to(tl.int32).to(DTYPE, bitcast=True)
    total = tl.join(first, second) if PAIRS else tl.reshape(first, (WORDS, 1))
    finish(total.to(DTYPE), residual, y, e, size, ADDS)
    tl.store(turns + pid, turn)


def can_sum_words(x: Tensor) -> bool:
    """Whether `sum_by_words` takes `x`: 16- or 32-bit floats, at most 256 KiB of them."""
    return can_sum(x) and x.nbytes <= PROGRAMS * WORDS * _DATA_BYTES


def sum_by_words(x: Tensor, exchange: Exchange, residual: Tensor | None = None) -> Tensor:
    """Return the sum in float32, in rank order, of the ranks' `x`, as `all_reduce` does.

    `exchange` is of `word_bytes(ranks)` of zeros, apart from what other sums use.
    """
    assert can_sum_words(x), (x.dtype, x.shape)
    x, kept = operands(x, residual)
    y = torch.empty_like(x)
    device = device_of(x)
    grid = (triton.cdiv(x.nbytes, WORDS * _DATA_BYTES),)
    sum_words[grid](
        x, kept, y, exchange.addresses, exchange.turns, x.numel(),
        exchange.rank, len(exchange.addresses), WORDS, PROGRAMS,
        x.itemsize == 2, residual is not None, device.has_dependent_launch, **device.options(4),
    )  # fmt: skip
    return y
