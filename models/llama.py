# SPDX-License-Identifier: MIT
"""Llama (2, 3, 3.x, SmolLM2) as pure functions.

Dims: n tokens, m tokens whose logits are wanted, d model, k kv heads, g query heads per kv head,
h head, f mlp, v vocabulary, i rotary frequencies; cache: b blocks, s slots in a block.
"""

from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import Tensor

from ..ops import (
    Batch,
    LayerKV,
    add_rms_norm,
    einsum,
    embedding,
    paged_attention,
    rms_norm,
    rope,
    rope_angles,
    silu_mul,
    take_rows,
    widen,
    zeros_like,
)
from ..sharding import Placed, declare, module, scan, spmd
from .config import ConfigError, float_of, int_of, refuse_unknown
from .rope import Rope

Hidden = Placed[Tensor, "n d"]  # a layout may say "n@tp d": sequence parallelism
Angles = Placed[Tensor, "n h"]
Logits = Placed[Tensor, "m v"]


@attrs.frozen
class LlamaConfig:
    """Sizes and switches of a Llama checkpoint."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position: int
    norm_eps: float
    rope: Rope
    tied: bool
    attention_bias: bool
    mlp_bias: bool

    @staticmethod
    def from_hf(config: Mapping[str, Any]) -> "LlamaConfig":
        """Read a `config.json`.

        Raises:
            ConfigError: a key that may change the result is not understood.
        """
        refuse_unknown(config, _USED, "llama")
        activation = config.get("hidden_act", "silu")
        if activation != "silu" or config.get("rope_interleaved"):
            raise ConfigError(f"llama needs hidden_act 'silu' and half rope, got {activation!r}")
        hidden, heads = int_of(config, "hidden_size"), int_of(config, "num_attention_heads")
        kv_heads = int_of(config, "num_key_value_heads", heads)
        if heads % kv_heads:
            raise ConfigError(f"{heads} query heads do not divide over {kv_heads} kv heads")
        return LlamaConfig(
            hidden_size=hidden,
            intermediate_size=int_of(config, "intermediate_size"),
            num_layers=int_of(config, "num_hidden_layers"),
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=int_of(config, "head_dim", hidden // heads),
            vocab_size=int_of(config, "vocab_size"),
            max_position=int_of(config, "max_position_embeddings", 2048),
            norm_eps=float_of(config, "rms_norm_eps", 1e-6),
            rope=Rope.from_hf(config),
            tied=bool(config.get("tie_word_embeddings", False)),
            attention_bias=bool(config.get("attention_bias", False)),
            mlp_bias=bool(config.get("mlp_bias", False)),
        )

    def sizes(self) -> dict[str, int | None]:
        """Return the size of each dim and the number of layers."""
        return {
            "d": self.hidden_size, "f": self.intermediate_size, "v": self.vocab_size,
            "k": self.num_kv_heads, "g": self.num_heads // self.num_kv_heads,
            "h": self.head_dim, "i": self.head_dim // 2, "layers": self.num_layers,
        }  # fmt: skip


@module
class Attention:
    """Projections of one attention, with biases if the config has them."""

    wq: Placed[Tensor, "d k@tp g h"]
    wk: Placed[Tensor, "d k@tp h"]
    wv: Placed[Tensor, "d k@tp h"]
    wo: Placed[Tensor, "k@tp g h d"]
    bq: Placed[Tensor, "k@tp g h"] | None
    bk: Placed[Tensor, "k@tp h"] | None
    bv: Placed[Tensor, "k@tp h"] | None
    bo: Placed[Tensor, "d"] | None


@module
class Mlp:
    """Projections of one gated MLP, with biases if the config has them."""

    w_gate: Placed[Tensor, "d f@tp"]
    w_up: Placed[Tensor, "d f@tp"]
    w_down: Placed[Tensor, "f@tp d"]
    b_gate: Placed[Tensor, "f@tp"] | None
    b_up: Placed[Tensor, "f@tp"] | None
    b_down: Placed[Tensor, "d"] | None


@module
class Layer:
    """One decoder layer: each sublayer and the norm before it."""

    attn_norm: Placed[Tensor, "d"]
    attn: Attention
    mlp_norm: Placed[Tensor, "d"]
    mlp: Mlp


@module
class Llama:
    """All parameters."""

    inv_freq: Placed[Tensor, "i", torch.float32]  # from the config, not from the checkpoint
    embed: Placed[Tensor, "v@tp d"]
    layers: tuple[Layer, ...]
    norm: Placed[Tensor, "d"]
    head: Placed[Tensor, "v@tp d"] | None  # None: tied to `embed`


@module
class Stream:
    """The residual stream, and the last sublayer's update, not yet added and maybe still owed."""

    residual: Hidden
    update: Hidden


def biased(x: Tensor, b: Tensor | None) -> Tensor:
    """Return `x + b`, or `x` where the config has no bias."""
    return x if b is None else x + b


@spmd(budget="all_reduce<=1")
def attention(
    p: Attention, x: Hidden, kv: LayerKV, batch: Batch, cos: Angles, sin: Angles
) -> tuple[Hidden, LayerKV]:
    """Return the update of grouped-query attention for normed `x[n,d]`, and the cache."""
    q = biased(einsum("n d, d k g h -> n k g h", x, p.wq), p.bq)
    k = biased(einsum("n d, d k h -> n k h", x, p.wk), p.bk)
    v = biased(einsum("n d, d k h -> n k h", x, p.wv), p.bv)
    q, k = rope(q, cos, sin), rope(k, cos, sin)
    o, kv = paged_attention(q, k, v, kv, batch, q.shape[-1] ** -0.5)
    return biased(einsum("n k g h, k g h d -> n d", o, p.wo), p.bo), kv


@spmd(budget="all_reduce<=1")
def mlp(p: Mlp, x: Hidden) -> Hidden:
    """Return the update of the gated MLP for normed `x[n,d]`."""
    gate = biased(einsum("n d, d f -> n f", x, p.w_gate), p.b_gate)
    up = biased(einsum("n d, d f -> n f", x, p.w_up), p.b_up)
    hidden = silu_mul(gate, up)
    return biased(einsum("n f, f d -> n d", hidden, p.w_down), p.b_down)


@spmd
def layer(
    p: Layer,
    stream: Stream,
    kv: LayerKV,
    batch: Batch,
    cos: Angles,
    sin: Angles,
    config: LlamaConfig,
) -> tuple[Stream, LayerKV]:
    """Run one layer: each norm first adds the update that the sublayer before it left."""
    x, residual = add_rms_norm(stream.update, stream.residual, p.attn_norm, config.norm_eps)
    update, kv = attention(p.attn, x, kv, batch, cos, sin)
    x, residual = add_rms_norm(update, residual, p.mlp_norm, config.norm_eps)
    return Stream(residual=residual, update=mlp(p.mlp, x)), kv


@spmd
def embed(p: Llama, batch: Batch) -> Hidden:
    """Return the token embeddings `[n,d]`."""
    return embedding(batch.tokens, p.embed)


@spmd
def logits(p: Llama, stream: Stream, batch: Batch, config: LlamaConfig) -> Logits:
    """Return the logits of the wanted rows."""
    # Rows are taken before the last reduction, which then moves wanted rows only.
    x = take_rows(stream.residual, batch.logit_rows) + take_rows(stream.update, batch.logit_rows)
    x = rms_norm(x, p.norm, config.norm_eps)
    return einsum("m d, v d -> m v", x, p.embed if p.head is None else p.head)


def forward(
    p: Llama, caches: tuple[LayerKV, ...], batch: Batch, config: LlamaConfig
) -> tuple[Tensor, tuple[LayerKV, ...]]:
    """Return float32 logits `[m,v]` of `batch.logit_rows`, and the caches with this step in."""
    cos, sin = rope_angles(batch.positions, p.inv_freq)
    x = embed(p, batch)
    stream = Stream(residual=zeros_like(x), update=x)
    stream, caches = scan(layer, p.layers, stream, caches, batch, cos, sin, config)
    return widen(logits(p, stream, batch, config)), caches


def params(config: LlamaConfig, dtype: torch.dtype) -> Llama:
    """Declare the parameters of a config."""
    present = [] if config.tied else ["head"]
    present += ["bq", "bk", "bv", "bo"] if config.attention_bias else []
    present += ["b_gate", "b_up", "b_down"] if config.mlp_bias else []
    return declare(Llama, config.sizes(), dtype, present)


def caches(config: LlamaConfig, block_size: int, dtype: torch.dtype) -> tuple[LayerKV, ...]:
    """Declare the cache of each layer; the number of blocks is known at run time."""
    sizes = {**config.sizes(), "b": None, "s": block_size}
    return (declare(LayerKV, sizes, dtype),) * config.num_layers


_USED_TEXT = """
attention_bias head_dim hidden_act hidden_size intermediate_size max_position_embeddings mlp_bias
num_attention_heads num_hidden_layers num_key_value_heads rms_norm_eps rope_interleaved
rope_parameters rope_scaling rope_theta tie_word_embeddings vocab_size
"""
_USED = frozenset(_USED_TEXT.split())
