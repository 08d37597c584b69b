# SPDX-License-Identifier: MIT
"""Which token follows: greedy, or drawn from the kept part of a distribution.

Dims: m rows, v vocabulary.  Nothing here needs the logits of a row in one place: under a sharded
vocabulary ranks exchange pairs of a value and a token, and sums over the digits of keys.
"""

from typing import Any

import attrs
import torch
from torch import Tensor

from ..ops import Batch, zeros_like
from ..ops.sampling import (
    DIGIT_BITS,
    SampledBatch,
    SamplingRows,
    chosen,
    count_target,
    descend,
    draw_scores,
    draw_tokens,
    histogram,
    largest,
    logit_of,
    mass_target,
    masses,
    masses_from,
    pick,
    reported,
    scores_from,
    token_keys,
    total_mass,
    units,
)
from ..sharding.tree import annotations


@attrs.frozen
class Choice:
    """What some row of a step asks for: a draw, of a part of the tokens, a log-probability."""

    drawn: bool = False
    filtered: bool = False
    reported: bool = False

    @staticmethod
    def of(rows: SamplingRows) -> "Choice":
        """Return what `rows`, which are on the host, ask for."""
        drawn = bool((rows.temperature > 0).any())
        cut = drawn and bool(((rows.top_k > 0) | (rows.top_p < 1)).any())
        return Choice(drawn, cut, bool(rows.logprobs.any()))


def choose(logits: Tensor, rows: SamplingRows, how: Choice, vocabulary: int) -> Tensor:
    """Return float64 `[m,2]` for `logits[m,v]`: tokens and their log-probabilities.

    A row that is not finite gets token -1.  A log-probability is that of the token under the
    model's own distribution (temperature 1, nothing filtered), NaN if `how` does not ask.
    """
    scores = logits
    top = largest(logits) if how.filtered or how.reported else None
    if how.drawn:
        scores = draw_scores(logits, rows.temperature, rows.seed, rows.position)
    if how.filtered:
        assert top is not None
        keys = token_keys(logits, vocabulary)
        counted, massed = _floors(logits, keys, top, rows, vocabulary)
        scores = scores_from(scores_from(scores, keys, counted), keys, massed)
    pair = pick(scores)
    if not how.reported:
        return chosen(pair)
    assert top is not None
    return reported(pair, logit_of(logits, pair), top, total_mass(logits, top))


def choose_whole(logits: Tensor, rows: SamplingRows, how: Choice) -> Tensor:
    """Return what `choose` does for whole `logits[m,v]`, by one kernel where there is one."""
    if not how.drawn:
        return choose(logits, rows, how, logits.shape[-1])
    pair = draw_tokens(logits, rows, how.filtered)
    if not how.reported:
        return chosen(pair)
    top = largest(logits)
    return reported(pair, logit_of(logits, pair), top, total_mass(logits, top))


def _floors(
    logits: Tensor, keys: Tensor, top: Tensor, rows: SamplingRows, vocabulary: int
) -> tuple[Tensor, Tensor]:
    """Return the keys `[m]` of the last token that top-k keeps, and of those top-p; 0 keeps all.

    A search digit by digit for the key from which the tokens above reach a count, then a mass.
    """
    bits = 32 + (vocabulary - 1).bit_length()
    shifts = range((bits - 1) // DIGIT_BITS * DIGIT_BITS, -1, -DIGIT_BITS)
    target = count_target(rows.top_k)
    floor = zeros_like(target)
    ones = units(keys)
    for shift in shifts:
        floor, target = descend(histogram(keys, ones, floor, shift), floor, target, shift)
    kept = masses_from(masses(logits, top, rows.temperature), keys, floor)
    counted, floor = floor, zeros_like(target)
    for shift in shifts:
        totals = histogram(keys, kept, floor, shift)
        if shift == shifts[0]:
            target = mass_target(totals, rows.top_p)
        floor, target = descend(totals, floor, target, shift)
    return counted, floor


def sample(logits: Tensor, rows: SamplingRows) -> tuple[Tensor, Tensor]:
    """Return (tokens `[m]` int32, log-probabilities `[m]` float32) of whole `logits[m,v]`.

    Rows are chosen for as in `choose`; a log-probability is NaN where the row did not ask.
    """
    how = Choice.of(rows)
    every = choose(logits, rows, Choice(reported=how.reported), logits.shape[-1])
    drawn = (rows.temperature > 0).nonzero()[:, 0]
    if how.drawn:
        some = SamplingRows(**{name: column[drawn] for name, column in columns(rows).items()})
        every[drawn] = choose(logits[drawn], some, how, logits.shape[-1])
    logprobs = every[:, 1].masked_fill(~rows.logprobs, torch.nan)
    return every[:, 0].int(), logprobs.float()


def columns(rows: SamplingRows | SampledBatch) -> dict[str, Tensor]:
    """Return the columns of `rows` by name."""
    return {name: getattr(rows, name) for name in annotations(SamplingRows)}


def rows_of(batch: SampledBatch) -> SamplingRows:
    """Return the sampling parameters among the columns of a step."""
    return SamplingRows(**columns(batch))


def sampled_batch(batch: Batch, rows: SamplingRows) -> SampledBatch:
    """Return a step's columns with its sampling parameters beside them."""
    every: dict[str, Any] = {name: getattr(batch, name) for name in annotations(Batch)}
    every |= columns(rows)
    return SampledBatch(**every)
