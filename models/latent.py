# SPDX-License-Identifier: MIT
"""Multi-head latent attention (DeepSeek-AI 2024, V2): a cache of one narrow row per token.

Dims: n tokens, d model, q query latent, c key-value latent, k heads, h head part that rope leaves
alone, r part that it turns, u value head; cache: b blocks, s slots in a block, x = c + r.
"""

import math
from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import Tensor

from ..ops import Batch, LayerLatent, einsum, latent_attention, rms_norm, rope, rope_pairs
from ..sharding import Placed, declare, module, spmd
from .config import int_of
from .decoder_config import DECODER_KEYS, DecoderConfig, decoder_fields
from .stream import Angles, Hidden

LATENT_EPS = 1e-6  # of both latent norms, whatever the config says of the others
LATENT_KEYS = DECODER_KEYS | {
    "head_dim", "kv_lora_rank", "num_attention_heads", "num_key_value_heads", "q_lora_rank",
    "qk_head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "rope_interleave", "v_head_dim",
}  # fmt: skip


@attrs.frozen(kw_only=True)
class LatentConfig(DecoderConfig):
    """A decoder with latent attention; its `sizes` add the dims of this file.

    `query_rank` 0 means that queries have no latent; `rope_pairs` that rope turns pairs (even,
    odd), not halves.
    """

    num_heads: int
    query_rank: int
    latent_rank: int
    plain_dim: int
    value_dim: int
    rope_pairs: bool

    @property
    def scale(self) -> float:
        """What multiplies the logits: sharper where YaRN stretches the context."""
        return self.rope.logit_scale / math.sqrt(self.plain_dim + self.rotary_dim)

    def sizes(self) -> dict[str, int | None]:
        return {
            **super().sizes(), "k": self.num_heads, "q": self.query_rank, "c": self.latent_rank,
            "h": self.plain_dim, "r": self.rotary_dim, "u": self.value_dim,
            "x": self.latent_rank + self.rotary_dim,
        }  # fmt: skip


def latent_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a `LatentConfig` from a `config.json`.

    Raises:
        ConfigError: as `decoder_fields`.
    """
    return {
        **decoder_fields(config, int_of(config, "qk_rope_head_dim")),
        "num_heads": int_of(config, "num_attention_heads"),
        "query_rank": int_of(config, "q_lora_rank", 0),
        "latent_rank": int_of(config, "kv_lora_rank"),
        "plain_dim": int_of(config, "qk_nope_head_dim"),
        "value_dim": int_of(config, "v_head_dim"),
        "rope_pairs": bool(config.get("rope_interleave", True)),
    }


@module
class Queries:
    """Projections of queries from the hidden state."""

    wh: Placed[Tensor, "d k@tp h"]
    wr: Placed[Tensor, "d k@tp r"]


@module
class LatentQueries:
    """Projections of queries through a latent of their own."""

    wa: Placed[Tensor, "d q"]
    norm: Placed[Tensor, "q"]
    wh: Placed[Tensor, "q k@tp h"]
    wr: Placed[Tensor, "q k@tp r"]


@module
class LatentAttention:
    """Projections of one latent attention: to the latent and the shared rotated key, to heads."""

    queries: Queries | LatentQueries
    wc: Placed[Tensor, "d c"]
    wr: Placed[Tensor, "d r"]
    norm: Placed[Tensor, "c"]
    w_key: Placed[Tensor, "k@tp h c"]
    w_value: Placed[Tensor, "k@tp u c"]
    wo: Placed[Tensor, "k@tp u d"]


def queries(p: Queries | LatentQueries, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return both parts `[n,k,h]`, `[n,k,r]` of the queries for `x[n,d]`, not rotated."""
    if isinstance(p, Queries):
        return einsum("n d, d k h -> n k h", x, p.wh), einsum("n d, d k r -> n k r", x, p.wr)
    y = rms_norm(einsum("n d, d q -> n q", x, p.wa), p.norm, LATENT_EPS)
    return einsum("n q, q k h -> n k h", y, p.wh), einsum("n q, q k r -> n k r", y, p.wr)


# Where tokens are sharded, three narrow gathers (both latents, rotated keys) replace the wide one.
@spmd(budget="all_reduce<=2")
def attention(
    p: LatentAttention,
    x: Hidden,
    kv: LayerLatent,
    batch: Batch,
    cos: Angles,
    sin: Angles,
    config: LatentConfig,
) -> tuple[Hidden, LayerLatent]:
    """Return the update of latent attention for normed `x[n,d]`, and the cache."""
    qh, qr = queries(p.queries, x)
    latent = rms_norm(einsum("n d, d c -> n c", x, p.wc), p.norm, LATENT_EPS)
    kr = einsum("n d, d r -> n r", x, p.wr)
    turn = rope_pairs if config.rope_pairs else rope
    qr, kr = turn(qr, cos, sin), turn(kr, cos, sin)
    o, kv = latent_attention(qh, qr, latent, kr, p.w_key, p.w_value, kv, batch, config.scale)
    return einsum("n k u, k u d -> n d", o, p.wo), kv


def latent_attention_params(config: LatentConfig, dtype: torch.dtype) -> LatentAttention:
    """Declare the parameters of one attention."""
    sizes = config.sizes()
    kind: type[Any] = LatentQueries if config.query_rank else Queries
    return declare(LatentAttention, sizes, dtype, queries=declare(kind, sizes, dtype))


def caches(config: LatentConfig, block_size: int, dtype: torch.dtype) -> tuple[LayerLatent, ...]:
    """Declare the cache of each layer; the number of blocks is known at run time."""
    sizes = {**config.sizes(), "b": None, "s": block_size}
    return (declare(LayerLatent, sizes, dtype),) * config.num_layers
