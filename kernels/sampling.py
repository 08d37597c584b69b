# SPDX-License-Identifier: MIT
"""Token sampling in pieces that shards of a vocabulary can compute: the torch references.

A draw is the argmax of logits / temperature + Gumbel noise over the kept tokens, the noise being a
function of (seed, position, token id) alone (Gumbel 1954; Maddison et al. 2014).  Which tokens are
kept is one integer key a row: every token has a key of its own, larger where its logit is larger,
and among equal logits where its id is smaller.  Masses are integers, so that their sums have the
same bits in whatever order shards are added.

Dims: m rows, v vocabulary or a shard of it that begins at token `start`, x digits.
"""

import torch
from torch import Tensor

from .registry import register

DIGIT_BITS = 10
_UNIT = 2.0**40  # the mass of a row's likeliest token
_ALL = 1 << 62  # more than any row's mass or number of tokens
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)


def _mixed(z: Tensor) -> Tensor:
    """Return the splitmix64 finaliser (Steele, Lea & Flood 2014) of int64, bit by bit."""
    z = (z ^ ((z >> 30) & ((1 << 34) - 1))) * (0xBF58476D1CE4E5B9 - (1 << 64))
    z = (z ^ ((z >> 27) & ((1 << 37) - 1))) * (0x94D049BB133111EB - (1 << 64))
    return z ^ ((z >> 31) & ((1 << 33) - 1))


def uniforms(seed: Tensor, position: Tensor, tokens: Tensor) -> Tensor:
    """Float64 `[m,v]` in (0, 1), functions of `seed[m]`, `position[m]`, `tokens[v]` int64."""
    row = _mixed(seed + (position.long() + 1) * _GOLDEN)
    z = _mixed(row[:, None] + (tokens + 1) * _GOLDEN)
    return (((z >> 12) & ((1 << 52) - 1)).double() + 0.5) * 2.0**-52


@register("largest", backend="torch")
def largest(logits: Tensor) -> Tensor:
    """Return the greatest logit `[m]`, NaN if any is."""
    return logits.amax(-1)


@register("pick", backend="torch")
def pick(scores: Tensor, start: int = 0) -> Tensor:
    """Return float64 pairs `[m,2]`: the greatest score and its token, the smallest among equals."""
    tokens = scores.argmax(-1, keepdim=True)
    return torch.cat((scores.gather(-1, tokens).double(), (tokens + start).double()), -1)


@register("token_keys", backend="torch")
def token_keys(logits: Tensor, vocabulary: int, start: int = 0) -> Tensor:
    """Return the keys `[m,v]` int64 >= 0 of a `vocabulary`'s tokens."""
    bits = (vocabulary - 1).bit_length()
    wide = logits.float() + 0.0  # -0 equals 0
    ordered = torch.where(wide.isnan(), torch.nan, wide).view(torch.int32)
    ordered = ordered ^ ((ordered >> 31) & 0x7FFFFFFF)
    tokens = torch.arange(start, start + logits.shape[-1], device=logits.device)
    return ((ordered.long() + (1 << 31)) << bits) | (((1 << bits) - 1) - tokens)


@register("masses", backend="torch")
def masses(logits: Tensor, top: Tensor, temperature: Tensor) -> Tensor:
    """Return int64 `[m,v]` in proportion to probabilities; 0 where a row is not finite."""
    divisor = torch.where(temperature > 0, temperature, 1.0).double()[:, None]
    scaled = (logits.double() - top.double()[:, None]) / divisor
    return (scaled.exp_() * _UNIT).round_().nan_to_num_(0.0).long()


@register("total_mass", backend="torch")
def total_mass(logits: Tensor, top: Tensor) -> Tensor:
    """Return the sum `[m]` of masses at temperature 1."""
    return masses(logits, top, torch.ones_like(top)).sum(-1)


@register("units", backend="torch")
def units(keys: Tensor) -> Tensor:
    """Return ones `[m,v]`: masses that count tokens."""
    return torch.ones_like(keys)


@register("masses_from", backend="torch")
def masses_from(masses: Tensor, keys: Tensor, floor: Tensor) -> Tensor:
    """Return `masses[m,v]` of tokens whose key is `floor[m]` or more, 0 for the others."""
    return masses.masked_fill(keys < floor[:, None], 0)


@register("histogram", backend="torch")
def histogram(keys: Tensor, masses: Tensor, floor: Tensor, shift: int) -> Tensor:
    """Return the mass `[m,x]` of each digit at bit `shift`, of keys equal to `floor` above it."""
    above = shift + DIGIT_BITS
    same = (keys >> above) == (floor >> above)[:, None]
    digits = (keys >> shift) & ((1 << DIGIT_BITS) - 1)
    totals = keys.new_zeros(len(keys), 1 << DIGIT_BITS)
    return totals.scatter_add_(1, digits, masses * same)


@register("descend", backend="torch")
def descend(totals: Tensor, floor: Tensor, target: Tensor, shift: int) -> tuple[Tensor, Tensor]:
    """Return `floor[m]` with its digit at bit `shift`, and what of `target[m]` is left below it.

    The digit is the largest at which the mass from the top down reaches the target, else 0.
    """
    reached = totals.flip(-1).cumsum(-1).flip(-1)  # of a digit and all larger ones
    digit = ((reached >= target[:, None]).sum(-1) - 1).clamp_(min=0)
    here = digit[:, None]
    left = target - (reached.gather(1, here) - totals.gather(1, here))[:, 0]
    return floor | (digit << shift), left


@register("count_target", backend="torch")
def count_target(top_k: Tensor) -> Tensor:
    """Return how many tokens `[m]` int64 to keep; `top_k` 0 keeps all."""
    return torch.where(top_k > 0, top_k.long(), _ALL)


@register("mass_target", backend="torch")
def mass_target(totals: Tensor, top_p: Tensor) -> Tensor:
    """Return the mass `[m]` int64 that the likeliest tokens must reach, of `totals[m,x]` in all."""
    share = (totals.sum(-1).double() * top_p.double()).ceil().long().clamp(min=1)
    return torch.where(top_p < 1, share, _ALL)


@register("draw_scores", backend="torch")
def draw_scores(
    logits: Tensor,
    temperature: Tensor,
    seed: Tensor,
    position: Tensor,
    start: int = 0,
) -> Tensor:
    """Return float64 `[m,v]` whose argmax is a draw; where the temperature is 0, the logits."""
    tokens = torch.arange(start, start + logits.shape[-1], device=logits.device)
    u = uniforms(seed, position, tokens)
    noise = u.neg_().log1p_().neg_().log_().neg_()
    heat = temperature.double()[:, None]
    wide = logits.double()
    return torch.where(heat > 0, wide / torch.where(heat > 0, heat, 1.0) + noise, wide)


@register("scores_from", backend="torch")
def scores_from(scores: Tensor, keys: Tensor, floor: Tensor) -> Tensor:
    """Return `scores[m,v]` of tokens whose key is `floor[m]` or more, -inf for the others."""
    return scores.masked_fill(keys < floor[:, None], -torch.inf)


@register("logit_of", backend="torch")
def logit_of(logits: Tensor, pair: Tensor, start: int = 0) -> Tensor:
    """Return `[m]` the logits of the tokens of `pair[m,2]`; 0 where they are not of this shard."""
    tokens = pair[:, 1].long() - start
    outside = (tokens < 0) | (tokens >= logits.shape[-1])
    found = logits.gather(-1, torch.where(outside, 0, tokens)[:, None])[:, 0]
    return found.masked_fill(outside, 0)


@register("chosen", backend="torch")
def chosen(pair: Tensor) -> Tensor:
    """Return float64 `[m,2]`: the token of `pair[m,2]`, -1 if its score is not finite, and NaN."""
    token = torch.where(pair[:, 0].isfinite(), pair[:, 1], -1.0)
    return torch.stack((token, torch.full_like(token, torch.nan)), -1)


@register("reported", backend="torch")
def reported(pair: Tensor, logit: Tensor, top: Tensor, total: Tensor) -> Tensor:
    """Return float64 `[m,2]`: the token as `chosen` does, and its log-probability."""
    token = torch.where(pair[:, 0].isfinite(), pair[:, 1], -1.0)
    logprob = logit.double() - top.double() - (total.double() / _UNIT).log()
    return torch.stack((token, torch.where(token < 0, torch.nan, logprob)), -1)


@register("draw_tokens", backend="torch")
def draw_tokens(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    seed: Tensor,
    position: Tensor,
    filtered: bool,
) -> Tensor:
    """Return float64 pairs `[m,2]` of whole `logits[m,v]`: the greatest score and its token.

    `filtered` says whether any row has a `top_k[m]` or `top_p[m]`.
    """
    scores = draw_scores(logits, temperature, seed, position)
    if not filtered:
        return pick(scores)
    keys = token_keys(logits, logits.shape[-1])
    counted = _floor(keys, units(keys), count_target(top_k))
    kept = masses_from(masses(logits, largest(logits), temperature), keys, counted)
    massed = _floor(keys, kept, mass_target(kept, top_p))
    return pick(scores_from(scores_from(scores, keys, counted), keys, massed))


def _floor(keys: Tensor, weights: Tensor, target: Tensor) -> Tensor:
    """Return the greatest key `[m]` from which weights reach a target, or 0."""
    order = keys.argsort(-1, descending=True)
    reached = weights.gather(-1, order).cumsum(-1) >= target[:, None]
    last = reached.int().argmax(-1, keepdim=True)
    floor = keys.gather(-1, order.gather(-1, last))[:, 0]
    return floor.masked_fill(~reached.any(-1), 0)
