# SPDX-License-Identifier: MIT
"""Attention of many new tokens over keys and values laid in rows, as Hopper does it fastest.

A program has 128 packed rows of one kv head, as in `extend_attention.py`.  One warp has tiles of
keys and values copied, the last first, into rings in shared memory; two groups of four warps have
64 rows each.  A group's scores of a tile and its sum of the tile before run in the tensor cores;
while they sum, the group turns scores into weights, and groups take turns, so that one has the
tensor cores while the other weighs (FlashAttention-3, arXiv:2407.08608, sections 3.1 and 3.2).

It is written in Gluon of Triton 3.6, whose interface is not settled: `Device.has_gluon` tells where
it holds, and nothing else may import it.
"""

from typing import Any

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

LOG2E = gl.constexpr(1.4426950408889634)
# Rows of a group of warps, keys of a tile, numbers of a key.
ROWS = gl.constexpr(64)
KEYS = gl.constexpr(128)
DIM = gl.constexpr(128)
TILE = gl.constexpr(gl.NVMMASharedLayout(128, 16))
SCORES = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 16]))
WEIGHTS = gl.constexpr(gl.DotOperandLayout(0, SCORES.value, 2))
ROW = gl.constexpr(gl.SliceLayout(1, SCORES.value))
KEY = gl.constexpr(gl.SliceLayout(0, SCORES.value))
# Whole rows to a warp.
WIDE = gl.constexpr(gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0]))
WIDE_ROW = gl.constexpr(gl.SliceLayout(1, WIDE.value))
WIDE_DIM = gl.constexpr(gl.SliceLayout(0, WIDE.value))
# Tiles of keys, and of values, that are copied ahead.
STAGES = gl.constexpr(3)


def extend_gathered(
    grid: tuple[int, int, int],
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    starts: Tensor,
    lengths: Tensor,
    sinks: Tensor | None,
    out: Tensor,
    part_o: Tensor,
    part_lse: Tensor,
    skipped: int,
    splits: int,
    scale: float,
    block: int,
    least: int,
) -> None:
    """Do what `extend` does with keys and values of `gather`, `[requests,k,reach,128]` each.

    `grid` is (tiles of 128 rows, k, splits); values behind a length must be numbers up to the next
    multiple of 128.
    """
    tokens, heads, group, dim = out.shape
    reach = keys.shape[2]
    shape = [keys.numel() // dim, dim]
    tiles = (
        TensorDescriptor(x, shape, [dim, 1], [KEYS.value, dim], TILE.value) for x in (keys, values)
    )
    sink = q if sinks is None else sinks.contiguous()
    options: dict[str, Any] = {"num_warps": 4, "maxnreg": 168, "launch_pdl": True}
    extend_rows[grid](
        q, *tiles, starts, lengths, sink, out, part_o, part_lse, tokens, skipped, lengths.shape[0],
        q.stride(0), reach, splits, scale, heads, group, sinks is not None, block, splits > 1,
        least, **options,
    )  # fmt: skip


@gluon.jit
def tile_of(starts, lengths, tile, tokens, skipped, requests, T: gl.constexpr, BR: gl.constexpr):
    """Return what `tile_of` in `extend_attention.py` does."""
    r = gl.arange(0, BR, gl.BlockedLayout([1], [32], [gl.num_warps()], [0]))
    first = gl.load(starts + skipped)
    some = requests - skipped
    begins = gl.load(starts + skipped + r, mask=r <= some, other=0) - first
    order = gl.where(r <= some, begins // T + r, 2147483647)
    request = gl.sum((order <= tile).to(gl.int32), 0) - 1
    base = gl.load(starts + skipped + request)
    stop = tokens
    length = 0
    if request < some:
        stop = gl.load(starts + skipped + request + 1)
        length = gl.load(lengths + skipped + request)
    offset = (tile - ((base - first) // T + request)) * T
    return request, base, stop, length, offset


@gluon.jit
def rows_of(
    base, offset, count, GROUP: gl.constexpr, G: gl.constexpr, LAYOUT: gl.constexpr
):  # fmt: skip
    """Return (token, query head, whether it is one) of a group's rows."""
    T: gl.constexpr = 2 * ROWS // G
    i = GROUP * ROWS + gl.arange(0, ROWS, LAYOUT)
    token = offset + i // G
    return (base + token).to(gl.int64), i % G, (token < count) & (i < T * G)


@gluon.jit
def anew(x):
    """Return `x`, of which the compiler knows no more: it keeps nothing made of it from before."""
    return gl.inline_asm_elementwise(
        "mov.b32 $0, $1;", "=r,r", [x], gl.int32, is_pure=False, pack=1
    )  # fmt: skip


@gluon.jit
def take_turn(GROUP: gl.constexpr):
    """Wait until the other group of warps has passed the turn."""
    ASM: gl.constexpr = "bar.sync 8, 256; // $0" if GROUP == 0 else "bar.sync 9, 256; // $0"
    gl.inline_asm_elementwise(ASM, "=r", [], gl.int32, is_pure=False, pack=1)


@gluon.jit
def pass_turn(GROUP: gl.constexpr):
    """Let the other group of warps go on."""
    ASM: gl.constexpr = "bar.arrive 9, 256; // $0" if GROUP == 0 else "bar.arrive 8, 256; // $0"
    gl.inline_asm_elementwise(ASM, "=r", [], gl.int32, is_pure=False, pack=1)


@gluon.jit
def rounded(w, DTYPE: gl.constexpr):
    """Return weights as the left side of a product, from now on two in a register."""
    if DTYPE == gl.bfloat16:  # noqa: SIM300
        w = gl.inline_asm_elementwise(
            "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,r,r", [w], gl.bfloat16, is_pure=True, pack=2
        )
    else:
        w = gl.inline_asm_elementwise(
            "cvt.rn.f16x2.f32 $0, $2, $1;", "=r,r,r", [w], gl.float16, is_pure=True, pack=2
        )
    return gl.convert_layout(w, WEIGHTS)


@gluon.jit
def weighed(x, m, mass, last, n, MASK: gl.constexpr):
    """Return the weights of scores, new maximum and mass, and by how much what was before fades."""
    if MASK:
        at = n + gl.arange(0, KEYS, KEY)
        x = gl.where(at[None, :] <= last[:, None], x, float("-inf"))
    top = gl.maximum(m, gl.max(x, 1))
    safe = top
    if MASK:
        safe = gl.where(top == float("-inf"), 0.0, top)
    w = gl.exp2(x - safe[:, None])
    fade = gl.exp2(m - safe)
    return w, top, mass * fade + gl.sum(w, 1), fade


@gluon.jit
def copy_tiles(keys, values, rings, bars, row, many):
    """Copy `many` tiles, the first of which is at `row`, into the rings, the last first."""
    k_ring, v_ring = rings
    k_full, k_empty, v_full, v_empty = bars
    for j in range(many):
        stage = j % STAGES
        phase = (j // STAGES) & 1
        at = row + (many - 1 - j) * KEYS
        mbarrier.wait(k_empty.index(stage), phase ^ 1)
        mbarrier.expect(k_full.index(stage), KEYS * DIM * 2)
        tma.async_copy_global_to_shared(keys, [at, 0], k_full.index(stage), k_ring.index(stage))
        mbarrier.wait(v_empty.index(stage), phase ^ 1)
        mbarrier.expect(v_full.index(stage), KEYS * DIM * 2)
        tma.async_copy_global_to_shared(values, [at, 0], v_full.index(stage), v_ring.index(stage))


@gluon.jit
def fold(
    query, rings, bars, p, m, mass, acc, last, j, n,
    GROUP: gl.constexpr, MASK: gl.constexpr,
):  # fmt: skip
    """Score tile `j`, whose keys begin at `n`; sum the tile before it, of weights `p`."""
    k_ring, v_ring = rings
    k_full, k_empty, v_full, v_empty = bars
    stage = j % STAGES
    before = (j - 1) % STAGES
    phase = (j // STAGES) & 1
    none = gl.zeros([ROWS, KEYS], gl.float32, SCORES)
    mbarrier.wait(k_full.index(stage), phase)
    take_turn(GROUP)
    k = k_ring.index(stage).permute((1, 0))
    x = warpgroup_mma(query, k, none, use_acc=False, is_async=True)
    acc = warpgroup_mma(p, v_ring.index(before), acc, is_async=True)
    pass_turn(GROUP)
    x = warpgroup_mma_wait(1, deps=(x,))
    mbarrier.arrive(k_empty.index(stage))
    w, m, mass, fade = weighed(x, m, mass, last, n, MASK)
    p = rounded(w, query.dtype)
    # Here, not where values are read: the assembler moves no weighing past this wait's branch, and
    # past the next wait, of the sum, it would.
    mbarrier.wait(v_full.index(stage), phase)
    acc = warpgroup_mma_wait(0, deps=(acc,))
    mbarrier.arrive(v_empty.index(before))
    return p, m, mass, acc * fade[:, None]


@gluon.jit
def attend(
    q, sinks, out, part_o, part_lse, queries, rings, bars, base, offset, count, length, begin, end,
    many, tokens, q_stride, scale,
    GROUP: gl.constexpr, K: gl.constexpr, G: gl.constexpr, SINKS: gl.constexpr,
    SPLIT: gl.constexpr,
):  # fmt: skip
    """Attend a group's rows over `many` tiles of keys, from `begin` to `end`."""
    DTYPE: gl.constexpr = out.dtype.element_ty
    head = gl.program_id(1)
    split = gl.program_id(2)
    k_ring, v_ring = rings
    k_full, k_empty, v_full, _ = bars
    query = queries.index(GROUP)
    row, g, live = rows_of(base, offset, count, GROUP, G, WIDE_ROW)
    d = gl.arange(0, DIM, WIDE_DIM)
    at = (row * q_stride + (head * G + g) * DIM)[:, None] + d[None, :]
    heads = gl.load(q + at, mask=live[:, None] & (d < DIM)[None, :], other=0.0)
    query.store((heads.to(gl.float32) * (scale * LOG2E)).to(DTYPE))
    fence_async_shared()
    gl.thread_barrier()
    r = GROUP * ROWS + gl.arange(0, ROWS, ROW)
    m = gl.full([ROWS], float("-inf"), gl.float32, ROW)
    mass = gl.zeros([ROWS], gl.float32, ROW)
    if SINKS:  # noqa: SIM102  (the outer one is a constant)
        if split == 0:
            m = gl.load(sinks + head * G + r % G).to(gl.float32) * LOG2E
            mass = gl.full([ROWS], 1.0, gl.float32, ROW)
    acc = gl.zeros([ROWS, DIM], gl.float32, SCORES)
    if many > 0:
        sees = length - count + offset
        last = gl.minimum(sees + r // G, end - 1)
        # Tiles that some row does not see whole: they come first.
        masked = many - gl.maximum(gl.minimum(end, sees + 1) - begin, 0) // KEYS
        n = begin + (many - 1) * KEYS
        none = gl.zeros([ROWS, KEYS], gl.float32, SCORES)
        mbarrier.wait(k_full.index(0), 0)
        x = warpgroup_mma(query, k_ring.index(0).permute((1, 0)), none, use_acc=False)
        mbarrier.arrive(k_empty.index(0))
        w, m, mass, _fade = weighed(x, m, mass, last, n, True)
        p = rounded(w, DTYPE)
        mbarrier.wait(v_full.index(0), 0)
        if GROUP == 1:
            pass_turn(GROUP)
        for j in range(1, masked):
            p, m, mass, acc = fold(
                query, rings, bars, p, m, mass, acc, last, j, n - j * KEYS, GROUP, True,
            )  # fmt: skip
        for j in range(gl.maximum(masked, 1), many):
            p, m, mass, acc = fold(
                query, rings, bars, p, m, mass, acc, last, j, n - j * KEYS, GROUP, False,
            )  # fmt: skip
        if GROUP == 0:
            take_turn(GROUP)
        acc = warpgroup_mma(p, v_ring.index((many - 1) % STAGES), acc)
    result = acc * (1 / gl.where(mass == 0, 1.0, mass))[:, None]
    if length == 0:  # a sink alone
        result = gl.zeros([ROWS, DIM], gl.float32, SCORES)
    # By way of shared memory a warp writes whole rows.
    gl.thread_barrier()
    query.store(result.to(DTYPE))
    gl.thread_barrier()
    wide = query.load(WIDE)
    base, offset = anew(base), anew(offset)
    row, g, live = rows_of(base, offset, count, GROUP, G, WIDE_ROW)
    unit = (row * K + head) * G + g
    held = live[:, None] & (d < DIM)[None, :]
    if SPLIT:
        part = split * tokens.to(gl.int64) * (K * G)
        gl.store(part_o + (part + unit)[:, None] * DIM + d[None, :], wide, mask=held)
        row, g, live = rows_of(base, offset, count, GROUP, G, ROW)
        lse = gl.where((mass == 0) | (length == 0), float("-inf"), m + gl.log2(mass))
        gl.store(part_lse + part + (row * K + head) * G + g, lse, mask=live)
    else:
        gl.store(out + unit[:, None] * DIM + d[None, :], wide, mask=held)


@gluon.jit(
    do_not_specialize=["tokens", "skipped", "requests", "splits"],
    do_not_specialize_on_alignment=["starts", "lengths"],
)
def extend_rows(
    q, keys, values, starts, lengths, sinks, out, part_o, part_lse, tokens, skipped, requests,
    q_stride, reach, splits, scale,
    K: gl.constexpr, G: gl.constexpr, SINKS: gl.constexpr, BR: gl.constexpr, SPLIT: gl.constexpr,
    LEAST: gl.constexpr,
):  # fmt: skip
    """See `extend_gathered`, and `extend` for what is written where."""
    T: gl.constexpr = 2 * ROWS // G
    DTYPE: gl.constexpr = out.dtype.element_ty
    tile = gl.num_programs(0) - 1 - gl.program_id(0)
    split = gl.program_id(2)
    gdc_wait()
    request, base, stop, length, offset = tile_of(
        starts, lengths, tile, tokens, skipped, requests, T, BR
    )
    count = stop - base
    # A request's own part of the keys; a token of no request has none.
    end = gl.minimum(length - count + gl.minimum(offset + T, count), length)
    parts = splits
    if SPLIT:
        parts = gl.minimum(splits, gl.maximum(end // LEAST, 1))
    part = gl.cdiv(gl.cdiv(gl.maximum(end, 0), KEYS), parts) * KEYS
    begin = split * part
    end = gl.minimum(begin + part, end)
    many = gl.cdiv(gl.maximum(end - begin, 0), KEYS)
    if SPLIT and many == 0:
        for group in gl.static_range(2):
            token, g, live = rows_of(base, offset, count, group, G, ROW)
            at = ((split * tokens + token) * K + gl.program_id(1)) * G + g
            gl.store(part_lse + at, gl.full([ROWS], float("-inf"), gl.float32, ROW), mask=live)
    elif offset < count:
        queries = gl.allocate_shared_memory(DTYPE, [2, ROWS, DIM], TILE)
        k_ring = gl.allocate_shared_memory(DTYPE, [STAGES, KEYS, DIM], TILE)
        v_ring = gl.allocate_shared_memory(DTYPE, [STAGES, KEYS, DIM], TILE)
        k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
        k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
        v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
        v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
        for s in gl.static_range(STAGES):
            mbarrier.init(k_full.index(s), count=1)
            mbarrier.init(v_full.index(s), count=1)
            mbarrier.init(k_empty.index(s), count=2)
            mbarrier.init(v_empty.index(s), count=2)
        fence_async_shared()
        rings = (k_ring, v_ring)
        bars = (k_full, k_empty, v_full, v_empty)
        row = (request * K + gl.program_id(1)) * reach + begin
        gl.warp_specialize(
            [
                (attend, (
                    q, sinks, out, part_o, part_lse, queries, rings, bars, base, offset, count,
                    length, begin, end, many, tokens, q_stride, scale, 0, K, G, SINKS, SPLIT,
                )),
                (attend, (
                    q, sinks, out, part_o, part_lse, queries, rings, bars, base, offset, count,
                    length, begin, end, many, tokens, q_stride, scale, 1, K, G, SINKS, SPLIT,
                )),
                (copy_tiles, (keys, values, rings, bars, row, many)),
            ],
            [4, 1],
            [240, 24],
        )  # fmt: skip
    gdc_launch_dependents()
