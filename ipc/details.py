# SPDX-License-Identifier: MIT
"""What workers tell frontends, past the scheduler, of a row of a step."""

import msgspec


class Details(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Log-probabilities beside that of the sampled token, all under the model's own distribution,
    or what an embedder gives instead of tokens.

    The prompt's tokens are those at positions `prompt_start` and on; `prompt_width` alternatives
    stand beside each.
    """

    top_ids: bytes = b""  # i32 column: the likeliest tokens in the place of the sampled one
    top_logprobs: bytes = b""  # f32 column
    prompt_start: int = 0
    prompt_width: int = 0
    prompt_logprobs: bytes = b""  # f32 column: of the prompt's own tokens
    prompt_ranks: bytes = b""  # i32 column: how many tokens were as likely as these or likelier
    prompt_top_ids: bytes = b""  # i32 column, rows of `prompt_width`
    prompt_top_logprobs: bytes = b""  # f32 column, rows of `prompt_width`
    hidden: bytes = b""  # f32 column: the last token's row behind the last norm
