# SPDX-License-Identifier: MIT
"""Sampling of tokens from logits whose vocabulary may be sharded, in ops that shards can compute.

Dims: m rows, v vocabulary, x digits of a key, z = 2: a value and a token.  `start` is the first
token of a shard.
"""

import torch
from torch import Tensor

from ..kernels.sampling import DIGIT_BITS as DIGIT_BITS
from ..sharding import Placed, declare, module
from ..sharding.op import register_rule
from ..sharding.reduction import ARGMAX, MAX
from ..sharding.rule import rule
from .batch import Batch
from .kernel import kernel


@module
class SamplingRows:
    """Sampling parameters of the m rows of a step.

    Temperature 0 is greedy, `top_k` 0 keeps all; `seed` has the bits of an unsigned number;
    `position` is the index in its request of the token to be sampled.
    """

    temperature: Placed[Tensor, "~m", torch.float32]
    top_k: Placed[Tensor, "~m", torch.int32]
    top_p: Placed[Tensor, "~m", torch.float32]
    seed: Placed[Tensor, "~m", torch.int64]
    position: Placed[Tensor, "~m", torch.int32]
    logprobs: Placed[Tensor, "~m", torch.bool]


@module
class SampledBatch(Batch):
    """The columns of a step whose program gives tokens: those of `SamplingRows` too."""

    temperature: Placed[Tensor, "~m", torch.float32]
    top_k: Placed[Tensor, "~m", torch.int32]
    top_p: Placed[Tensor, "~m", torch.float32]
    seed: Placed[Tensor, "~m", torch.int64]
    position: Placed[Tensor, "~m", torch.int32]
    logprobs: Placed[Tensor, "~m", torch.bool]


def _int64(dtype: torch.dtype) -> torch.dtype:
    return torch.int64


def _float64(dtype: torch.dtype) -> torch.dtype:
    return torch.float64


def declared_sampled_batch() -> SampledBatch:
    """Return a batch to trace with: every size is known at run time only."""
    return declare(SampledBatch, dict.fromkeys(("n", "r", "r1", "t", "m")), torch.int32)


@register_rule(rule("m v -> m", shard="m v", sums="v", reduce=MAX))
def largest(logits: Tensor) -> Tensor:
    """Return the greatest logit `[m]`, NaN if any is."""
    y: Tensor = kernel("largest", logits)(logits)
    return y


@register_rule(
    rule("m v -> m z", shard="m v", sums="v", reduce=ARGMAX, offset="v"),
    sizes=lambda sizes, args: {"z": 2},
    dtype=_float64,
)
def pick(scores: Tensor, start: int = 0) -> Tensor:
    """Return float64 pairs `[m,2]`: the greatest score and its token, the smallest among equals."""
    y: Tensor = kernel("pick", scores)(scores, start)
    return y


@register_rule(rule("m v -> m v", shard="m v", offset="v"), dtype=_int64, hosts={1: "extent v"})
def token_keys(logits: Tensor, vocabulary: int, start: int = 0) -> Tensor:
    """Return int64 keys `[m,v]`, one a token of the vocabulary: larger is kept first."""
    y: Tensor = kernel("token_keys", logits)(logits, vocabulary, start)
    return y


@register_rule(rule("m v, m, m -> m v", shard="m v"), dtype=_int64)
def masses(logits: Tensor, top: Tensor, temperature: Tensor) -> Tensor:
    """Return int64 `[m,v]` in proportion to probabilities at `temperature[m]`; `top` as largest."""
    y: Tensor = kernel("masses", logits)(logits, top, temperature)
    return y


@register_rule(rule("m v, m -> m", shard="m v", sums="v"), dtype=_int64)
def total_mass(logits: Tensor, top: Tensor) -> Tensor:
    """Return the sum `[m]` int64 of a row's masses at temperature 1."""
    y: Tensor = kernel("total_mass", logits)(logits, top)
    return y


@register_rule(rule("m v -> m v", shard="m v"))
def units(keys: Tensor) -> Tensor:
    """Return int64 ones `[m,v]`: masses that count tokens."""
    y: Tensor = kernel("units", keys)(keys)
    return y


@register_rule(rule("m v, m v, m -> m v", shard="m v"))
def masses_from(masses: Tensor, keys: Tensor, floor: Tensor) -> Tensor:
    """Return `masses[m,v]` of tokens whose key is `floor[m]` or more, 0 for the others."""
    y: Tensor = kernel("masses_from", masses)(masses, keys, floor)
    return y


@register_rule(
    rule("m v, m v, m -> m x", shard="m v", sums="v"),
    sizes=lambda sizes, args: {"x": 1 << DIGIT_BITS},
)
def histogram(keys: Tensor, masses: Tensor, floor: Tensor, shift: int) -> Tensor:
    """Return the mass `[m,x]` of each digit at bit `shift`, of keys equal to `floor` above it."""
    y: Tensor = kernel("histogram", keys)(keys, masses, floor, shift)
    return y


@register_rule(rule("m x, m, m -> m, m", shard="m"))
def descend(totals: Tensor, floor: Tensor, target: Tensor, shift: int) -> tuple[Tensor, Tensor]:
    """Return `floor[m]` with its digit at bit `shift`, and what of `target[m]` is left below it."""
    pair: tuple[Tensor, Tensor] = kernel("descend", totals)(totals, floor, target, shift)
    return pair


@register_rule(rule("m -> m", shard="m"), dtype=_int64)
def count_target(top_k: Tensor) -> Tensor:
    """Return how many tokens `[m]` int64 to keep; 0 keeps all."""
    y: Tensor = kernel("count_target", top_k)(top_k)
    return y


@register_rule(rule("m x, m -> m", shard="m"))
def mass_target(totals: Tensor, top_p: Tensor) -> Tensor:
    """Return the mass `[m]` int64 that the likeliest tokens must reach, of `totals[m,x]` in all."""
    y: Tensor = kernel("mass_target", totals)(totals, top_p)
    return y


@register_rule(rule("m v, m, m, m -> m v", shard="m v", offset="v"), dtype=_float64)
def draw_scores(
    logits: Tensor, temperature: Tensor, seed: Tensor, position: Tensor, start: int = 0
) -> Tensor:
    """Return float64 `[m,v]` whose argmax is a draw; where the temperature is 0, the logits.

    A function of (seed, position, token, logit) alone, whatever the batch and the sharding.
    """
    run = kernel("draw_scores", logits)
    y: Tensor = run(logits, temperature, seed, position, start)
    return y


@register_rule(rule("m v, m v, m -> m v", shard="m v"))
def scores_from(scores: Tensor, keys: Tensor, floor: Tensor) -> Tensor:
    """Return `scores[m,v]` of tokens whose key is `floor[m]` or more, -inf for the others."""
    y: Tensor = kernel("scores_from", scores)(scores, keys, floor)
    return y


@register_rule(rule("m v, m z -> m", shard="m v", sums="v", linear=((0,),), offset="v"))
def logit_of(logits: Tensor, pair: Tensor, start: int = 0) -> Tensor:
    """Return `[m]` the logits of the tokens of `pair[m,2]`."""
    y: Tensor = kernel("logit_of", logits)(logits, pair, start)
    return y


@register_rule(rule("m z -> m z", shard="m"))
def chosen(pair: Tensor) -> Tensor:
    """Return float64 `[m,2]`: the token of `pair[m,2]`, -1 if its score is not finite, and NaN."""
    y: Tensor = kernel("chosen", pair)(pair)
    return y


@register_rule(rule("m z, m, m, m -> m z", shard="m"))
def reported(pair: Tensor, logit: Tensor, top: Tensor, total: Tensor) -> Tensor:
    """Return float64 `[m,2]`: the token as `chosen` does, and its log-probability."""
    y: Tensor = kernel("reported", pair)(pair, logit, top, total)
    return y


def draw_tokens(logits: Tensor, rows: SamplingRows, filtered: bool) -> Tensor:
    """Return float64 pairs `[m,2]` of whole `logits[m,v]`: the greatest score kept and its token.

    What `pick` gives of `draw_scores`, those that top-k and top-p leave out aside where some row is
    `filtered`.  Not for recorded values.
    """
    run = kernel("draw_tokens", logits)
    pairs: Tensor = run(
        logits, rows.temperature, rows.top_k, rows.top_p, rows.seed, rows.position, filtered
    )
    return pairs
