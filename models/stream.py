# SPDX-License-Identifier: MIT
"""The residual stream of a decoder: what comes before its layers, after them, and around them.

Dims: n tokens, m tokens whose logits are wanted, d model, v vocabulary, i rotary frequencies,
r = 2 i rotary angles.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..ops import (
    Batch,
    einsum,
    embedding,
    rms_norm,
    rope_angles,
    take_rows,
    widen,
    zeros_like,
)
from ..sharding import Placed, declare, module, scan, spmd
from .decoder_config import DecoderConfig

Hidden = Placed[Tensor, "~n d"]  # a layout may say "n@tp d": sequence parallelism
Angles = Placed[Tensor, "~n r"]
Logits = Placed[Tensor, "~m v"]
Wanted = Placed[Tensor, "~m d"]


@module
class Ends:
    """Parameters before and after the layers."""

    inv_freq: Placed[Tensor, "i", torch.float32]  # from the config, not from the checkpoint
    embed: Placed[Tensor, "v@tp d"]
    norm: Placed[Tensor, "d"]
    head: Placed[Tensor, "v@tp d"] | None  # None: tied to `embed`


@module
class WideNormEnds(Ends):
    """The same, the norm's weight in float32."""

    norm: Placed[Tensor, "d", torch.float32]


@module
class Decoder(Ends):
    """All parameters of a decoder; layers may differ in type."""

    layers: tuple[Any, ...]


@module
class Stream:
    """The residual stream, and the last sublayer's update, not yet added and maybe still owed."""

    residual: Hidden
    update: Hidden


def decoder(
    config: DecoderConfig, layers: tuple[Any, ...], dtype: torch.dtype, kind: type[Ends] = Ends
) -> Decoder:
    """Declare a decoder around declared layers; equal layers should be one object."""
    ends = declare(kind, config.sizes(), dtype, [] if config.tied else ["head"])
    return Decoder(
        inv_freq=ends.inv_freq, embed=ends.embed, norm=ends.norm, head=ends.head, layers=layers
    )


@spmd
def embed(p: Ends, batch: Batch) -> Hidden:
    """Return the token embeddings `[n,d]`."""
    return embedding(batch.tokens, p.embed)


@spmd
def logits(p: Ends, stream: Stream, batch: Batch, eps: float) -> Logits:
    """Return the logits of the wanted rows."""
    x = _last(p, stream, batch, eps)
    return einsum("m d, v d -> m v", x, p.embed if p.head is None else p.head)


@spmd
def wanted(p: Ends, stream: Stream, batch: Batch, eps: float) -> Wanted:
    """Return the wanted rows as a head would read them."""
    return _last(p, stream, batch, eps)


def _last(p: Ends, stream: Stream, batch: Batch, eps: float) -> Tensor:
    # Rows are taken before the last reduction, which then moves wanted rows only.
    x = take_rows(stream.residual, batch.logit_rows) + take_rows(stream.update, batch.logit_rows)
    return rms_norm(x, p.norm, eps)


def decode(
    layer: Callable[..., Any],
    p: Decoder,
    caches: tuple[Any, ...],
    batch: Batch,
    config: DecoderConfig,
    *,
    end: Callable[..., Tensor] = logits,
) -> tuple[Tensor, tuple[Any, ...]]:
    """Return float32 logits `[m,v]` of the wanted rows and the caches with this batch written.

    `layer(params, stream, cache, batch, cos, sin, config) -> (stream, cache)`; with `wanted` as
    the `end` the rows `[m,d]` themselves.
    """
    cos, sin = rope_angles(batch.positions, p.inv_freq)
    if config.rope.scale != 1:
        cos, sin = cos * config.rope.scale, sin * config.rope.scale
    x = embed(p, batch)
    stream = Stream(residual=zeros_like(x), update=x)
    stream, caches = scan(layer, p.layers, stream, caches, batch, cos, sin, config)
    return widen(end(p, stream, batch, config.norm_eps)), caches
