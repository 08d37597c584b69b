# SPDX-License-Identifier: MIT
"""Token sampling as a pure function of logits, parameters, seed and position."""

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@attrs.frozen
class SamplingRows:
    """Sampling parameters of the m rows of a step, one array element a row."""

    temperature: NDArray[np.float32]  # 0 is greedy
    top_k: NDArray[np.int32]  # 0 keeps all
    top_p: NDArray[np.float32]
    seed: NDArray[np.uint64]
    position: NDArray[np.int32]  # index in its request of the token to be sampled
    logprobs: NDArray[np.bool_]

    @property
    def is_plain(self) -> bool:
        """Every row is greedy and none reports a log-probability."""
        return not self.temperature.any() and not self.logprobs.any()


def uniforms(seed: NDArray[np.uint64], position: NDArray[np.int32]) -> NDArray[np.float64]:
    """Return one number in [0, 1) a row, a function of (seed, position) alone.

    The splitmix64 finaliser (Steele, Lea & Flood 2014) of seed + position * golden ratio.
    """
    with np.errstate(over="ignore"):
        z = seed + (position.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    fraction: NDArray[np.float64] = (z >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return fraction


def sample(logits: Tensor, rows: SamplingRows) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Return (tokens [m], log-probabilities [m]); a row that is not finite gets token -1.

    logits [m, v] float32.  A log-probability is that of the sampled token under the model's own
    distribution (temperature 1, nothing filtered); it is NaN where the row did not ask.
    """
    greedy = logits.argmax(-1)
    tokens = greedy.numpy().astype(np.int32)
    drawn = np.flatnonzero(rows.temperature > 0)
    if drawn.size:
        tokens[drawn] = _draw(logits[torch.from_numpy(drawn)], drawn, rows)
    # The largest logit is NaN if any is, and +inf if any is; -inf alone is a legal mask.
    best = logits.gather(-1, greedy[:, None])[:, 0]
    tokens[~torch.isfinite(best).numpy()] = -1
    logprobs = np.full(tokens.shape, np.nan, np.float32)
    asked = np.flatnonzero(rows.logprobs & (tokens >= 0))
    if asked.size:
        index = torch.from_numpy(asked)
        table = torch.log_softmax(logits[index], -1)
        chosen = torch.from_numpy(tokens[asked].astype(np.int64))[:, None]
        logprobs[asked] = table.gather(-1, chosen)[:, 0].numpy()
    return tokens, logprobs


def _draw(logits: Tensor, drawn: NDArray[np.intp], rows: SamplingRows) -> NDArray[np.int32]:
    """Draw by inverting the cumulative distribution of the kept tokens, most likely first."""
    temperature = torch.from_numpy(rows.temperature[drawn])[:, None]
    top_k = torch.from_numpy(rows.top_k[drawn])[:, None]
    top_p = torch.from_numpy(rows.top_p[drawn])[:, None]
    vocabulary = logits.shape[-1]
    # A stable sort makes ties, and so tokens, independent of the batch.
    scaled, order = (logits / temperature).sort(dim=-1, descending=True, stable=True)
    place = torch.arange(vocabulary)
    scaled = scaled.masked_fill((top_k > 0) & (place >= top_k), float("-inf"))
    probabilities = scaled.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    # top-p keeps the smallest set whose mass reaches p, and always the most likely token.
    kept = probabilities.masked_fill((before >= top_p) & (place > 0), 0.0)
    cumulative = kept.double().cumsum(-1)
    u = torch.from_numpy(uniforms(rows.seed[drawn], rows.position[drawn]))[:, None]
    index = torch.searchsorted(cumulative, u * cumulative[:, -1:], right=True)
    # Rounding may not step past the last token that has mass.
    last = (kept > 0).sum(-1, keepdim=True) - 1
    index = torch.minimum(index, last.clamp(min=0))
    return order.gather(-1, index)[:, 0].numpy().astype(np.int32)
