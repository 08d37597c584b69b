# SPDX-License-Identifier: MIT
"""Causal attention over a paged cache: the torch reference."""

from typing import Protocol

import torch
from torch import Tensor

from .float8 import kept
from .registry import register


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


@register("paged_attention", backend="torch", features=("window", "sinks", "float8"))
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

    Caches are `[b,k,s,h]` (b blocks of s slots), written in place, saturated if in float8.  Row r's
    queries are the last of its `context_lens[r]` tokens, each attending to itself and what precedes
    it: with a `window`, to so many tokens in all.  `sinks[k,g]` is one more logit of each head,
    unscaled, that has no value (Xiao et al. 2023).  The softmax is in float32 at least.  Rows of
    `q` that belong to no request come back as zeros.
    """
    size = k_cache.shape[2]
    block = torch.div(batch.cache_slots, size, rounding_mode="floor")
    slot = batch.cache_slots % size
    k_cache[block, :, slot] = kept(k, k_cache.dtype)
    v_cache[block, :, slot] = kept(v, v_cache.dtype)
    out = torch.zeros_like(q)
    wide = torch.promote_types(q.dtype, torch.float32)
    starts = batch.query_starts.tolist()
    for row, context in enumerate(batch.context_lens.tolist()):
        begin, end = starts[row], starts[row + 1]
        if begin == end:
            continue
        # Tokens before `first` are out of the window of all queries: their blocks may be gone.
        first = max(context - (end - begin) - window + 1, 0) // size * size if window else 0
        blocks = batch.block_tables[row, first // size : -(-context // size)]
        keys = k_cache[blocks].transpose(1, 2).flatten(0, 1)[: context - first].to(wide)
        values = v_cache[blocks].transpose(1, 2).flatten(0, 1)[: context - first].to(wide)
        scores = torch.einsum("qkgh,skh->kgqs", q[begin:end].to(wide), keys) * scale
        at = torch.arange(context - (end - begin), context, device=q.device)[:, None]
        position = torch.arange(first, context, device=q.device)
        hidden = position > at
        if window:
            hidden |= position <= at - window
        scores = scores.masked_fill(hidden, float("-inf"))
        if sinks is not None:
            sink = sinks.to(wide)[:, :, None, None].expand(-1, -1, end - begin, 1)
            scores = torch.cat((scores, sink), dim=-1)
        weights = scores.softmax(dim=-1)[..., : context - first]
        out[begin:end] = torch.einsum("kgqs,skh->qkgh", weights, values).to(q.dtype)
    return out


@register("paged_attention_share", backend="torch", features=("float8",))
def paged_attention_share(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: Rows,
    scale: float,
    window: int,
    place: int,
    ways: int,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attend as `paged_attention` to part `place` of `ways` of the slots of every block.

    Caches are `[b,k,s,h]`, s slots of blocks that have `s * ways`.  Returns `[n,k,g,h+1]`, float32
    at least: the softmax-weighted mean of the values here, and the log of the weights' sum, minus
    infinity where there is none.  `sinks[k,g]` are a term of that sum, without a value.
    """
    part = k_cache.shape[2]
    size = part * ways
    block = torch.div(batch.cache_slots, size, rounding_mode="floor")
    slot = batch.cache_slots % size - place * part
    mine = (slot >= 0) & (slot < part)
    k_cache[block[mine], :, slot[mine]] = kept(k[mine], k_cache.dtype)
    v_cache[block[mine], :, slot[mine]] = kept(v[mine], v_cache.dtype)
    wide = torch.promote_types(q.dtype, torch.float32)
    out = q.new_zeros(*q.shape[:-1], q.shape[-1] + 1, dtype=wide)
    out[..., -1] = float("-inf")
    starts = batch.query_starts.tolist()
    for row, context in enumerate(batch.context_lens.tolist()):
        begin, end = starts[row], starts[row + 1]
        if begin == end:
            continue
        blocks = batch.block_tables[row, : -(-context // size)]
        keys = k_cache[blocks].transpose(1, 2).flatten(0, 1).to(wide)
        values = v_cache[blocks].transpose(1, 2).flatten(0, 1).to(wide)
        first = torch.arange(len(blocks), device=q.device)[:, None] * size + place * part
        position = (first + torch.arange(part, device=q.device)).flatten()
        at = torch.arange(context - (end - begin), context, device=q.device)[:, None]
        hidden = position > at
        if window:
            hidden |= position <= at - window
        scores = torch.einsum("qkgh,skh->qkgs", q[begin:end].to(wide), keys) * scale
        scores = scores.masked_fill(hidden[:, None, None], float("-inf"))
        lse = scores.logsumexp(-1, keepdim=True)
        if sinks is not None:
            lse = lse.logaddexp(sinks.to(wide)[..., None])
        weights = (scores - lse.clamp(min=torch.finfo(wide).min)).exp()
        # What was never written may be anything, and must not meet a weight of zero.
        values = values.masked_fill(hidden.all(0)[:, None, None], 0)
        out[begin:end, ..., :-1] = torch.einsum("qkgs,skh->qkgh", weights, values)
        out[begin:end, ..., -1:] = lse
    return out
