# SPDX-License-Identifier: MIT
"""Several ops in one call: the torch references, each the composition of the kernels it replaces.

Dims: n tokens, d model, i inputs, o outputs, f mlp, k kv heads, g query heads per kv head, h head,
r rotary angles; cache: b blocks, s slots in a block.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from .float8 import FLOAT8, Matrix, linear_op
from .paged_attention import Rows
from .registry import register, select


class Collectives(Protocol):
    """What a rank calls collectives of: sums and concatenations in rank order."""

    def all_reduce(self, x: Tensor, axis: str) -> Tensor: ...
    def all_gather(self, x: Tensor, axis: str, dim: int) -> Tensor: ...
    def reduce_scatter(self, x: Tensor, axis: str, dim: int) -> Tensor: ...
    def start(self, kind: str, x: Tensor, axis: str, *given: Any) -> Any: ...
    def wait(self, pending: Any) -> Tensor: ...
    def size(self, axis: str) -> int: ...


@register("norm_linear", backend="torch", features=("float8",))
def norm_linear(x: Tensor, w_norm: Tensor, w: Matrix, eps: float) -> Tensor:
    """Return `linear(rms_norm(x, w_norm), w)` `[n,o]` for `x[n,d]`, `w_norm[d]`, `w[o,d]`."""
    normed = _kernel("rms_norm", x)(x, w_norm, eps)
    y: Tensor = _kernel(linear_op(w), x)(normed, w)
    return y


@register("linear_add", backend="torch", features=("float8",))
def linear_add(x: Tensor, w: Matrix, residual: Tensor) -> Tensor:
    """Return `residual + linear(x, w)` `[n,o]` for `x[n,i]`, `w[o,i]`, `residual[n,o]`."""
    update: Tensor = _kernel(linear_op(w), x)(x, w)
    return residual + update


@register("norm_gate_up", backend="torch", features=("float8",))
def norm_gate_up(x: Tensor, w_norm: Tensor, w: Matrix, eps: float) -> Tensor:
    """Return `silu(gate) * up` `[n,f]` of the normed `x[n,d]`; `w[2f,d]`, rows of gate first."""
    y: Tensor = _kernel("silu_mul", x)(norm_linear(x, w_norm, w, eps))
    return y


@register("rope_attention", backend="torch", features=("float8",))
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
    """Return `paged_attention` `o[n,k,g,h]` of rotated queries and keys; keys and values are kept.

    `qkv[n,(k g h)+(k h)+(k h)]` are projections side by side; `q_norm[h]`, `k_norm[h]` norm each
    head before it is turned by `cos[n,r]`, `sin[n,r]`; caches are `[b,k,s,h]`; `window` tokens are
    seen, or all if it is 0.
    """
    heads, width = k_cache.shape[1], k_cache.shape[3]
    keys = heads * width
    q, k, v = qkv.split_with_sizes([qkv.shape[1] - 2 * keys, keys, keys], 1)
    q = q.view(q.shape[0], heads, -1, width)
    k, v = k.view(k.shape[0], heads, width), v.view(v.shape[0], heads, width)
    if q_norm is not None and k_norm is not None:
        norm = _kernel("rms_norm", qkv)
        q, k = norm(q, q_norm, eps), norm(k, k_norm, eps)
    q, k = _turned(q, cos, sin), _turned(k, cos, sin)
    seen = (window,) if window else ()
    needs = ("window",) * bool(window) + ("float8",) * (k_cache.dtype == FLOAT8)
    o: Tensor = _kernel("paged_attention", qkv, *needs)(
        q, k, v, k_cache, v_cache, batch, scale, *seen
    )
    return o


@register("norm_moe_add", backend="torch")
def norm_moe_add(
    x: Tensor,
    w_norm: Tensor,
    w_router: Tensor,
    w_gate: Tensor,
    w_up: Tensor,
    w_down: Tensor,
    active: int,
    renormalise: bool,
    eps: float,
) -> Tensor:
    """Return `x[n,d]` plus the update of experts `w_gate[e,j,d]`, `w_up[e,j,d]`, `w_down[e,d,j]`.

    They compute the rows normed by `w_norm[d]`; `w_router[e,d]` scores them for `softmax_router`.
    """
    normed = _kernel("rms_norm", x)(x, w_norm, eps)
    scores = _kernel("linear", x)(normed, w_router)
    ids, weights = _kernel("softmax_router", x)(scores, active, renormalise)
    update: Tensor = _kernel("experts", x)(normed, ids, weights, w_gate, w_up, w_down)
    return x + update


@register("all_reduce_add", backend="torch")
def all_reduce_add(c: Collectives, axis: str, x: Tensor, residual: Tensor) -> Tensor:
    """Return `residual[n,d]` plus the ranks' sum of `x[n,d]`."""
    return residual + c.all_reduce(x, axis)


CHUNKS = 2  # of rows: one is multiplied while the other travels


@register("all_gather_linear", backend="torch")
def all_gather_linear(c: Collectives, axis: str, x: Tensor, w: Tensor) -> Tensor:
    """Return `linear(x, w)` of the rows `x[n,i]` of all ranks of `axis`, chunk by chunk."""
    linear = _kernel("linear", x)
    rows, rest = divmod(len(x), CHUNKS)
    if rest:
        whole: Tensor = linear(c.all_gather(x, axis, 0), w)
        return whole
    going = [c.start("all_gather", part, axis, 0) for part in x.chunk(CHUNKS)]
    made = [linear(c.wait(each), w) for each in going]
    # They come a chunk of all ranks after the other, and belong rank by rank.
    return torch.stack([y.view(-1, rows, y.shape[1]) for y in made], 1).flatten(0, 2)


@register("linear_reduce_scatter", backend="torch")
def linear_reduce_scatter(c: Collectives, axis: str, x: Tensor, w: Tensor) -> Tensor:
    """Return this rank's even part of the rows of `linear(x, w)` summed over `axis`, by chunks."""
    linear, ways = _kernel("linear", x), c.size(axis)
    if len(x) % (ways * CHUNKS):
        return c.reduce_scatter(linear(x, w), axis, 0)
    blocks = x.view(ways, CHUNKS, -1, x.shape[1])  # by the rank that they are for
    going = [
        c.start("reduce_scatter", linear(blocks[:, at].flatten(0, 1), w), axis, 0)
        for at in range(CHUNKS)
    ]
    return torch.cat([c.wait(each) for each in going])


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return `rope` of the first r elements of each head of `x[n,...,h]`, the rest as they are."""
    rope, width = _kernel("rope", x), cos.shape[-1]
    if width == x.shape[-1]:
        whole: Tensor = rope(x, cos, sin)
        return whole
    return torch.cat((rope(x[..., :width], cos, sin), x[..., width:]), dim=-1)


def _kernel(op: str, x: Tensor, *needs: str) -> Callable[..., Any]:
    return select(op, "cpu" if x.is_cpu else x.device.type, x.dtype, needs)
