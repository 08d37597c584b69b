# SPDX-License-Identifier: MIT
"""Attention over a paged cache: which launches a batch takes, and of what size.

Leading requests of one token are decoded; the rest are extended.  The host integers of the batch
alone decide, so that a captured graph holds for every batch of its bucket.
"""

from typing import Protocol

import torch
import triton
from torch import Tensor

from .decode_attention import decode
from .device import MERGES, Device, counters, device_of
from .extend_attention import MERGED, extend, gather, merge, prepare
from .shared_attention import attend_shared

# Below this many keys a part of a context is not worth a program of its own.
MIN_SPLIT = 64
_MIN_EXTEND_SPLIT = 1024
_MAX_EXTEND_SPLITS = 32
# Of a request that has fewer keys than the step might, so many at least are a part.
PART_KEYS = 512
# Keys are gathered from so many tokens on, where there is room for them.
GATHER_TOKENS = 2048
_GATHER_BYTES = 640 << 20
# Sizes that hold a batch's requests and one more: few, since a kernel is compiled for each.
_REQUEST_BLOCKS = (128, 1024, 8192)


class Rows(Protocol):
    """What attention reads of a step's batch; see `ops/batch.py` for shapes."""

    @property
    def cache_slots(self) -> Tensor: ...
    @property
    def query_starts(self) -> Tensor: ...
    @property
    def context_lens(self) -> Tensor: ...
    @property
    def block_tables(self) -> Tensor: ...
    @property
    def num_rows(self) -> int: ...
    @property
    def num_decode_rows(self) -> int: ...
    @property
    def max_query(self) -> int: ...
    @property
    def max_context(self) -> int: ...
    @property
    def shared_parts(self) -> Tensor | None: ...
    @property
    def shared_rows(self) -> Tensor | None: ...
    @property
    def most_parts(self) -> int: ...


def rope_attention(
    qkv: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: Rows,
    scale: float,
    window: int,
    eps: float,
) -> Tensor:
    """Norm and rotate the heads of `qkv[n,(k g h)+(k h)+(k h)]`, then attend; return `o[n,k,g,h]`.

    `q_norm[h]`, `k_norm[h]` or None; `cos`, `sin` `[n,r]`, r <= h; caches `[b,k,s,h]`, written in
    place; `window` 0 sees all.
    """
    if qkv.stride(1) != 1:
        qkv = qkv.contiguous()
    _, heads, _, h = k_cache.shape
    n, width = qkv.shape
    keys = heads * h
    q, k, v = qkv.split_with_sizes([width - 2 * keys, keys, keys], 1)
    q = q.view(n, heads, -1, h)
    k, v = k.view(n, heads, h), v.view(n, heads, h)
    gains = None if q_norm is None or k_norm is None else (q_norm, k_norm)
    angles = (cos.contiguous(), sin.contiguous())
    return _attend(q, k, v, k_cache, v_cache, batch, scale, window, None, gains, angles, eps)


def paged_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: Rows,
    scale: float,
    window: int = 0,
    sinks: Tensor | None = None,
) -> Tensor:
    """Write `k[n,k,h]`, `v[n,k,h]` to the caches, then attend `q[n,k,g,h]`; return `o[n,k,g,h]`.

    See the reference for `window` and `sinks`.
    """
    return _attend(q, k, v, k_cache, v_cache, batch, scale, window, sinks, None, None, 0.0)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: Rows,
    scale: float,
    window: int,
    sinks: Tensor | None,
    gains: tuple[Tensor, Tensor] | None,
    angles: tuple[Tensor, Tensor] | None,
    eps: float,
) -> Tensor:
    q, k, v = (x if x[:1].is_contiguous() else x.contiguous() for x in (q, k, v))
    n, heads, group, h = q.shape
    assert k_cache.stride() == v_cache.stride()
    assert k_cache[:1].is_contiguous()
    out = torch.empty(n, heads, group, h, dtype=q.dtype, device=q.device)
    if not n:
        return out
    device = device_of(q)
    requests = batch.context_lens.shape[0]
    everyone = batch.max_query <= 1
    decoded = requests if everyone else batch.num_decode_rows
    # A pointer stands in for what a kernel does not read.
    q_gain, k_gain = gains or (q, q)
    cos, sin = angles or (q, q)
    width = cos.shape[1] if angles else 0
    size = k_cache.shape[2]
    group_block, head_block = max(16, triton.next_power_of_2(group)), triton.next_power_of_2(h)
    lengths, table = batch.context_lens, batch.block_tables
    marks = (window, sinks is not None)
    sink = q if sinks is None else sinks.contiguous()
    block = request_block(requests)
    strides = (q.stride(0), k.stride(0), v.stride(0), k_cache.stride(0))
    pdl = device.has_dependent_launch
    if decoded:
        # Of the sizes, the least: a batch of one waits for it.
        few = 16 if requests < 16 else block
        tile, depth, warps = _decode_tile(device, head_block, k_cache.element_size(), decoded)
        splits = _decode_splits(device, decoded, heads, batch.max_context)
        shape = (decoded, heads, splits, group, h)
        # What a window hides is not shared; a mixed step's host integers do not tell who shares.
        parts, rows = batch.shared_parts, batch.shared_rows
        shares = everyone and not window and parts is not None and rows is not None
        merges = splits > 1 or shares
        assert decoded * heads <= MERGES or not merges
        part_o = torch.empty(shape if merges else 1, dtype=torch.float32, device=q.device)
        part_ml = torch.empty(
            (*shape[:-1], 2) if merges else 1, dtype=torch.float32, device=q.device
        )
        shared_o, shared_ml = part_o, part_ml
        if shares:
            assert parts is not None
            shape = (requests, batch.most_parts, heads, group, h)
            shared_o = torch.empty(shape, dtype=torch.float32, device=q.device)
            shared_ml = torch.empty((*shape[:-1], 2), dtype=torch.float32, device=q.device)
            height, tall, stages, wide = _shared_tile(
                device, requests * group, head_block, group, k_cache.element_size()
            )
            tiles = triton.cdiv(requests, height // group)
            attend_shared[(tiles, heads, len(parts))](
                q, q_gain, cos, sin, k_cache, v_cache, batch.query_starts, table, parts, rows,
                shared_o, shared_ml, q.stride(0), k_cache.stride(0), table.stride(0),
                batch.most_parts, scale, eps, heads, group, h, head_block, size, width,
                gains is not None, height, tall, stages, pdl, **device.options(wide),
            )  # fmt: skip
        grid = (max(requests, n) if everyone else decoded, heads, splits)
        decode[grid](
            q, k, v, q_gain, k_gain, cos, sin, k_cache, v_cache, batch.cache_slots,
            batch.query_starts, lengths, table, sink, out, part_o, part_ml, counters(q),
            rows if shares else lengths, shared_o, shared_ml, n if everyone else 0,
            decoded, *strides, table.stride(0), splits, batch.most_parts, scale, eps,
            heads, group, triton.next_power_of_2(group), group_block, h, head_block, size, width,
            gains is not None, *marks, shares, few, tile, MERGED, 2 * device.processors,
            MIN_SPLIT, depth, pdl, **device.options(warps),
        )  # fmt: skip
        if everyone:
            return out
    turned = torch.empty_like(out) if angles else q
    prepare[(n - decoded, heads)](
        q, k, v, q_gain, k_gain, cos, sin, k_cache, v_cache, batch.cache_slots,
        batch.query_starts, turned, decoded, requests, *strides, eps,
        heads, group, triton.next_power_of_2(group), h, head_block, size, width,
        gains is not None, angles is not None, pdl, **device.options(1),
    )  # fmt: skip
    extended, reach = requests - decoded, -(-batch.max_context // 128) * 128
    keys, values, stride, held = k_cache, v_cache, k_cache.stride(0), size
    gathers = _gathers(
        device, k_cache, q.element_size(), group, extended * reach, n - decoded, window
    )
    height, tile, stages, warps = _extend_tile(
        device, head_block, group, q.element_size(), reach if gathers else 0
    )
    if gathers:
        keys = torch.empty(extended, heads, reach, h, dtype=q.dtype, device=q.device)
        values, stride, held = torch.empty_like(keys), reach * h, 0
        gather[(reach // 128, heads, extended)](
            k_cache, v_cache, lengths, table, keys, values, decoded, k_cache.stride(0), stride,
            table.stride(0), heads, h, head_block, size, 128, pdl, **device.options(4),
        )  # fmt: skip
    tiles = (n - decoded) // (height // group) + requests - decoded + 1
    longest = min(batch.max_context, window + batch.max_query) if window else batch.max_context
    # A captured batch has places for more requests than it counts on.
    busy = triton.cdiv(n - decoded, height // group) + max(1, batch.num_rows - decoded) - 1
    splits = _extend_splits(device.processors * (1 if warps > 4 else 2), busy * heads, longest)
    part_o, part_lse = out, out
    if splits > 1:
        part_o = torch.empty((splits, *out.shape), dtype=q.dtype, device=q.device)
        part_lse = torch.empty(part_o.shape[:-1], dtype=torch.float32, device=q.device)
    grid = (tiles, heads, splits)
    if gathers and device.has_gluon:
        from .hopper_attention import extend_gathered

        extend_gathered(
            grid, turned, keys, values, batch.query_starts, lengths, sinks, out, part_o, part_lse,
            decoded, splits, scale, block, PART_KEYS,
        )  # fmt: skip
    else:
        extend[grid](
            turned, keys, values, batch.query_starts, lengths, table, sink, out, part_o, part_lse,
            n, decoded, requests, turned.stride(0), stride, table.stride(0), splits,
            scale, heads, group, h, head_block, held, *marks, block, height, tile, splits > 1,
            PART_KEYS, stages, pdl, **device.options(warps),
        )  # fmt: skip
    if splits > 1:
        first, total = decoded * heads * group, n * heads * group
        some, at_once = max(1, 1024 // head_block), min(MERGED, triton.next_power_of_2(splits))
        merge[(triton.cdiv(total - first, some),)](
            part_o, part_lse, out, first, total, splits, h, head_block, at_once, some, pdl,
            **device.options(4),
        )  # fmt: skip
    return out


def request_block(requests: int) -> int:
    """Return the size of a tile that holds so many requests and one more."""
    return next(each for each in _REQUEST_BLOCKS if each > requests)


def _decode_tile(
    device: Device, head_block: int, itemsize: int, requests: int
) -> tuple[int, int, int]:
    """Return (keys a step, stages, warps): keys and values of two have to fit in shared memory.

    Tiles of bytes are small: three of them under way are faster until programs are many.
    """
    step = 4 * head_block * itemsize
    keys = 128
    while keys > 16 and keys * step > device.shared_bytes * 3 // 4:
        keys //= 2
    stages = 3 if itemsize == 1 and requests < 128 else 2
    return keys, min(stages, device.max_stages), 4


def _decode_splits(device: Device, requests: int, heads: int, max_context: int) -> int:
    """Return the most programs that one (request, kv head) may be split over.

    One long request alone may fill the device; empty programs are cheap, not free.
    """
    most = triton.cdiv(2 * device.processors, heads)
    room = max(1, 16 * device.processors // (requests * heads))
    return int(max(1, min(most, room, triton.cdiv(max_context, MIN_SPLIT))))


def _shared_tile(
    device: Device, rows: int, head_block: int, group: int, itemsize: int
) -> tuple[int, int, int, int]:
    """Return (rows, keys a step, stages, warps) for so many rows of one kv head."""
    height, tile, stages, warps = _extend_tile(device, head_block, group, itemsize)
    while height >= 2 * max(rows, 16, group):
        height //= 2
    return height, tile, stages, warps


def _extend_tile(
    device: Device, head_block: int, group: int, itemsize: int, gathered: int = 0
) -> tuple[int, int, int, int]:
    """Return (rows, keys a step, stages, warps); so many keys a request were `gathered`."""
    rows = max(128, triton.next_power_of_2(group))
    if device.processors <= 4:  # the interpreter
        return max(16, triton.next_power_of_2(group)), 16, 1, 4
    if gathered and device.has_gluon:  # what `hopper_attention.py` is written for
        return 128, 128, 3, 12
    if gathered:
        return (64, 64, 3, 4) if gathered < 4096 else (128, 128, 3, 8)
    if itemsize > 2 or head_block > 128:
        return max(64, triton.next_power_of_2(group)), 32, min(2, device.max_stages), 4
    if device.shared_bytes < 160 << 10:
        return rows, 32, min(2, device.max_stages), 4
    return rows, 64, 3, 4


def _gathers(
    device: Device,
    cache: Tensor,
    itemsize: int,
    group: int,
    tokens: int,
    queries: int,
    window: int,
) -> bool:
    """Return whether keys of so many `tokens` in all are better laid in rows first, wider maybe.

    Attention then does without addresses by the key, which is half as fast again; a copy of a key
    pays from some hundred queries on.
    """
    if device.processors <= 4:  # the interpreter
        return tokens >= GATHER_TOKENS and not window
    room = tokens * 2 * cache.stride(0) // cache.shape[2] * itemsize
    return (
        not window
        and queries >= 256
        and tokens >= GATHER_TOKENS
        and room <= _GATHER_BYTES
        and cache.shape[3] == 128
        and cache.element_size() <= 2
        and itemsize == 2
        and group <= 64
        and device.shared_bytes >= 225 << 10
    )


def _extend_splits(slots: int, tiles: int, max_context: int) -> int:
    """Return into how many ranges keys are cut: programs run in waves of `slots`.

    A range takes 1/splits of the time of all keys; its merge is as long as some hundred keys.
    """
    most = max(1, min(_MAX_EXTEND_SPLITS, max_context // _MIN_EXTEND_SPLIT, 6 * slots // tiles))

    def time(splits: int) -> float:
        return float(triton.cdiv(tiles * splits, slots) / splits + splits / 250)

    return min(range(1, most + 1), key=time)
