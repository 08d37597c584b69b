# SPDX-License-Identifier: MIT
"""The gated delta rule (Yang et al. 2024), token by token and chunk by chunk: torch references.

Per value head, with a state `S[p,u]` per request: `S <- exp(g) S; S <- S + k (beta (v - S^T k))^T;
out = scale S^T q`.  Dims: l key heads, w value heads a key head, p key dim, u value dim.
"""

import torch
from torch import Tensor

from .causal_conv import StateRows
from .registry import register

CHUNK = 64


@register("gated_delta_rule", backend="torch")
def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    beta: Tensor,
    states: Tensor,
    batch: StateRows,
    scale: float,
) -> Tensor:
    """Return `out[n,l,w,u]` for `q[n,l,p]`, `k[n,l,p]`, `v[n,l,w,u]`, `decay`, `beta` `[n,l,w]`.

    `decay` is g, a logarithm.  `states[b,l,w,p,u]` holds S of each request and is written in
    place; a request that begins has zeros.  All is computed in float32 at least, the result is in
    the dtype of `v`.  Rows that belong to no request come back as zeros.
    """
    out = torch.zeros_like(v)
    wide = torch.promote_types(v.dtype, torch.float32)
    blocks = batch.state_blocks.tolist()
    starts = batch.query_starts.tolist()
    for row, context in enumerate(batch.context_lens.tolist()):
        begin, end = starts[row], starts[row + 1]
        if begin == end:
            continue
        state = states[blocks[row]].to(wide)
        if context == end - begin:
            state = torch.zeros_like(state)
        form = recurrent if end - begin == 1 else chunked
        part, state = form(
            q[begin:end].to(wide),
            k[begin:end].to(wide),
            v[begin:end].to(wide),
            decay[begin:end].to(wide),
            beta[begin:end].to(wide),
            state,
        )
        out[begin:end] = (part * scale).to(v.dtype)
        states[blocks[row]] = state.to(states.dtype)
    return out


def recurrent(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Return unscaled `out[t,l,w,u]` and the state after t tokens of one request, one by one."""
    out = torch.empty_like(v)
    for t in range(q.shape[0]):
        state = state * decay[t].exp()[..., None, None]
        error = v[t] - torch.einsum("lwpo,lp->lwo", state, k[t])
        state = state + torch.einsum("lp,lwo->lwpo", k[t], beta[t].unsqueeze(-1) * error)
        out[t] = torch.einsum("lwpo,lp->lwo", state, q[t])
    return out, state


def chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    beta: Tensor,
    state: Tensor,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """Return what `recurrent` does with a few matrix products per chunk of tokens.

    With G the running sum of g in a chunk and `D_ij = exp(G_i - G_j)` for j <= i, the corrections
    that the tokens write solve `(1 + A) U = beta (v - exp(G) S^T k)`, `A_ij = beta_i D_ij k_i.k_j`
    below the diagonal.
    """
    out = torch.empty_like(v)
    for at in range(0, q.shape[0], chunk):
        here = slice(at, at + chunk)
        keys, rate = k[here], beta[here].movedim(0, -1)
        total = decay[here].cumsum(0).movedim(0, -1)  # [l, w, i]
        # Differences above the diagonal are positive and may overflow: masked before `exp`.
        upper = torch.ones(total.shape[-1], total.shape[-1], device=q.device).triu(1).bool()
        gaps = total.unsqueeze(-1) - total.unsqueeze(-2)
        fade = gaps.masked_fill(upper, float("-inf")).exp()  # [l, w, i, j]
        system = torch.einsum("ilp,jlp->lij", keys, keys).unsqueeze(1) * fade * rate.unsqueeze(-1)
        known = torch.einsum("ilp,lwpo->lwio", keys, state) * total.exp().unsqueeze(-1)
        wanted = rate.unsqueeze(-1) * (v[here].movedim(0, 2) - known)
        written = torch.linalg.solve_triangular(system, wanted, upper=False, unitriangular=True)
        reads = torch.einsum("ilp,jlp->lij", q[here], keys).unsqueeze(1) * fade
        old = torch.einsum("ilp,lwpo->lwio", q[here], state) * total.exp().unsqueeze(-1)
        out[here] = (old + reads @ written).movedim(2, 0)
        left = (total[..., -1:] - total).exp()  # of each token's write, at the end of the chunk
        state = state * total[..., -1].exp()[..., None, None]
        state = state + torch.einsum("jlp,lwj,lwjo->lwpo", keys, left, written)
    return out, state
