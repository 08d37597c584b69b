# SPDX-License-Identifier: MIT
"""What frontends tell workers, past the scheduler, about the logits of a request."""

import msgspec


class Shaping(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What is done to a request's logits before a token is chosen."""

    min_p: float = 0.0  # keep tokens at least this likely beside the likeliest
    presence: float = 0.0  # subtracted from logits of tokens that were generated
    frequency: float = 0.0  # subtracted as often as they were
    repetition: float = 1.0  # divides positive, multiplies negative logits of known tokens
    min_tokens: int = 0  # before so many, no token of `ends`
    ends: bytes = b""  # i32 column
    bias_ids: bytes = b""  # i32 column: logits to which `biases` are added
    biases: bytes = b""  # f32 column
    bad_words: list[bytes] = []  # i32 columns: sequences whose last token may not follow the others
    prompt_ids: bytes = b""  # i32 column: the distinct tokens of the prompt, for `repetition`
    outputs: bytes = b""  # i32 column: the end of the prompt that was generated before a loss
    top: int = 0  # tell so many of the likeliest tokens beside each sampled one
    prompt: bytes = b""  # i32 column: the prompt, if log-probabilities of its tokens are asked ...
    prompt_top: int = 0  # ... and so many of the likeliest beside each
    grammar: str = ""  # of the answer: its place among the compiled ones of the run directory
