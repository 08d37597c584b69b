# SPDX-License-Identifier: MIT
"""Causal attention over a paged cache of latents: the torch reference, in both its forms."""

import torch
from torch import Tensor

from .float8 import kept
from .paged_attention import Rows
from .registry import register


@register("latent_attention", backend="torch", features=("float8",))
def latent_attention(
    qh: Tensor,
    qr: Tensor,
    latent: Tensor,
    kr: Tensor,
    w_key: Tensor,
    w_value: Tensor,
    cache: Tensor,
    batch: Rows,
    scale: float,
) -> Tensor:
    """Write `latent[n,c]`, `kr[n,r]` to the cache, attend with `qh[n,k,h]`, `qr[n,k,r]`.

    Returns `o[n,k,u]`.  The cache is `[b,s,c+r]`: one row a token, latent first, written in place.
    A head's keys are `w_key[k,h,c] . latent` beside the shared `kr`, its values
    `w_value[k,u,c] . latent`.  Each request is computed in whichever form costs fewer products.
    The softmax is in float32 at least.  Rows that belong to no request come back as zeros.
    """
    size = cache.shape[1]
    block = torch.div(batch.cache_slots, size, rounding_mode="floor")
    cache[block, batch.cache_slots % size] = kept(torch.cat((latent, kr), dim=-1), cache.dtype)
    width = latent.shape[-1]
    out = qh.new_zeros(*qh.shape[:2], w_value.shape[1])
    wide = torch.promote_types(qh.dtype, torch.float32)
    w_key, w_value = w_key.to(wide), w_value.to(wide)
    starts = batch.query_starts.tolist()
    for row, context in enumerate(batch.context_lens.tolist()):
        begin, end = starts[row], starts[row + 1]
        if begin == end:
            continue
        blocks = batch.block_tables[row, : -(-context // size)]
        rows = cache[blocks].flatten(0, 1)[:context].to(wide)
        at = torch.arange(context - (end - begin), context, device=qh.device)
        ahead = torch.arange(context, device=qh.device) > at[:, None]
        cheaper = absorbed_is_cheaper(end - begin, context, qh.shape[-1] + w_value.shape[1], width)
        form = absorbed if cheaper else expanded
        out[begin:end] = form(
            qh[begin:end].to(wide),
            qr[begin:end].to(wide),
            rows[:, :width],
            rows[:, width:],
            w_key,
            w_value,
            ahead,
            scale,
        ).to(qh.dtype)
    return out


def absorbed_is_cheaper(queries: int, context: int, head: int, width: int) -> bool:
    """Return whether the absorbed form needs fewer products per head than the expanded one.

    `head` is h + u, `width` is c.  Absorbed: queries, not cached tokens, pass through the weights
    (`queries * c * (h+u)`), and each pair costs `2 c`; expanded: `context * c * (h+u)` and `h+u`.
    """
    pairs = queries * context
    return queries * width * head + pairs * 2 * width <= context * width * head + pairs * head


def absorbed(
    qh: Tensor,
    qr: Tensor,
    latents: Tensor,
    kr: Tensor,
    w_key: Tensor,
    w_value: Tensor,
    ahead: Tensor,
    scale: float,
) -> Tensor:
    """Return `o[q,k,u]` of one request: queries go to the latents, nothing is made per token.

    `latents[t,c]`, `kr[t,r]` are what is cached; `ahead[q,t]` masks what a query may not see.
    """
    ql = torch.einsum("qkh,khc->qkc", qh, w_key)
    scores = torch.einsum("qkc,tc->kqt", ql, latents) + torch.einsum("qkr,tr->kqt", qr, kr)
    weights = (scores * scale).masked_fill(ahead, float("-inf")).softmax(dim=-1)
    ol = torch.einsum("kqt,tc->qkc", weights, latents)
    return torch.einsum("qkc,kuc->qku", ol, w_value)


def expanded(
    qh: Tensor,
    qr: Tensor,
    latents: Tensor,
    kr: Tensor,
    w_key: Tensor,
    w_value: Tensor,
    ahead: Tensor,
    scale: float,
) -> Tensor:
    """Return what `absorbed` does, from keys and values made of the latents for every head."""
    keys = torch.einsum("tc,khc->tkh", latents, w_key)
    values = torch.einsum("tc,kuc->tku", latents, w_value)
    scores = torch.einsum("qkh,tkh->kqt", qh, keys) + torch.einsum("qkr,tr->kqt", qr, kr)
    weights = (scores * scale).masked_fill(ahead, float("-inf")).softmax(dim=-1)
    return torch.einsum("kqt,tku->qku", weights, values)


@register("latent_attention_share", backend="torch")
def latent_attention_share(
    qh: Tensor,
    qr: Tensor,
    latent: Tensor,
    kr: Tensor,
    w_key: Tensor,
    w_value: Tensor,
    cache: Tensor,
    batch: Rows,
    scale: float,
    place: int,
    ways: int,
) -> Tensor:
    """Attend as `latent_attention` to part `place` of `ways` of the slots of every block.

    The cache is `[b,s,c+r]`, s slots of blocks that have `s * ways`.  Returns `[n,k,u+1]`, float32
    at least: the softmax-weighted mean of the values here, and the log of the weights' sum, minus
    infinity where there is none.  Absorbed: nothing is made per cached token.
    """
    part = cache.shape[1]
    size = part * ways
    block = torch.div(batch.cache_slots, size, rounding_mode="floor")
    slot = batch.cache_slots % size - place * part
    mine = (slot >= 0) & (slot < part)
    rows = torch.cat((latent, kr), dim=-1).to(cache.dtype)
    cache[block[mine], slot[mine]] = rows[mine]
    width = latent.shape[-1]
    wide = torch.promote_types(qh.dtype, torch.float32)
    w_key, w_value = w_key.to(wide), w_value.to(wide)
    out = qh.new_zeros(*qh.shape[:2], w_value.shape[1] + 1, dtype=wide)
    out[..., -1] = float("-inf")
    starts = batch.query_starts.tolist()
    for row, context in enumerate(batch.context_lens.tolist()):
        begin, end = starts[row], starts[row + 1]
        if begin == end:
            continue
        blocks = batch.block_tables[row, : -(-context // size)]
        first = torch.arange(len(blocks), device=qh.device)[:, None] * size + place * part
        position = (first + torch.arange(part, device=qh.device)).flatten()
        at = torch.arange(context - (end - begin), context, device=qh.device)[:, None]
        hidden = position > at
        # What was never written may be anything, and must not meet a weight of zero.
        cached = cache[blocks].flatten(0, 1).to(wide).masked_fill(hidden.all(0)[:, None], 0)
        latents, keys = cached[:, :width], cached[:, width:]
        ql = torch.einsum("qkh,khc->qkc", qh[begin:end].to(wide), w_key)
        scores = torch.einsum("qkc,tc->qkt", ql, latents)
        scores = scores + torch.einsum("qkr,tr->qkt", qr[begin:end].to(wide), keys)
        scores = (scores * scale).masked_fill(hidden[:, None], float("-inf"))
        lse = scores.logsumexp(-1, keepdim=True)
        weights = (scores - lse.clamp(min=torch.finfo(wide).min)).exp()
        ol = torch.einsum("qkt,tc->qkc", weights, latents)
        out[begin:end, :, :-1] = torch.einsum("qkc,kuc->qku", ol, w_value)
        out[begin:end, :, -1:] = lse
    return out
