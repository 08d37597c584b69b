# SPDX-License-Identifier: MIT
"""What a request asks to be done to its logits before a token is chosen; pure functions.

Dims: v vocabulary, k tokens.
"""

import torch
from torch import Tensor


def penalised(
    logits: Tensor,
    counts: Tensor,
    known: Tensor,
    presence: float,
    frequency: float,
    repetition: float,
) -> Tensor:
    """Return float `logits[v]` less the penalties for tokens that were there before.

    `counts[v]` int32 says how often each was generated, `known[v]` bool also tells those of the
    prompt.  Presence and frequency as OpenAI defines them; repetition is that of CTRL
    (Keskar et al., 2019): logits of known tokens are divided by it if positive, else multiplied.
    """
    repeated = torch.where(logits > 0, logits / repetition, logits * repetition)
    logits = torch.where(known, repeated, logits)
    return logits - presence * (counts > 0) - frequency * counts


def above(logits: Tensor, min_p: float, temperature: float) -> Tensor:
    """Return `logits[v]`, -inf where the token is less likely than `min_p` times the likeliest.

    Likely at `temperature`, a draw's; nothing changes for temperature 0.
    """
    # p / p_max = exp((logit - top) / temperature)
    scaled = (logits - logits.max()) >= temperature * torch.log(logits.new_tensor(min_p))
    return torch.where(scaled, logits, -torch.inf)


def without_end(logits: Tensor, tail: Tensor, sequence: Tensor) -> Tensor:
    """Return `logits[v]` with -inf for the last of `sequence[k]` if the others end `tail`.

    `tail` has at least k - 1 tokens, -1 where there were fewer.
    """
    before, last = sequence[:-1], sequence[-1:]
    ends = (tail[len(tail) - len(before) :] == before).all()
    return logits.index_put((last,), torch.where(ends, -torch.inf, logits[last]))


def allowed_only(logits: Tensor, words: Tensor) -> Tensor:
    """Return `logits[v]`, -inf for tokens whose bit is 0 or missing in `words` int32.

    Token i has bit i % 32 of word i // 32.
    """
    shifts = torch.arange(32, dtype=torch.int32, device=words.device)
    bits = ((words[:, None] >> shifts) & 1).bool().flatten()
    allowed = bits.new_zeros(len(logits))
    count = min(len(logits), len(bits))
    allowed[:count] = bits[:count]
    return logits.masked_fill(~allowed, -torch.inf)
