# SPDX-License-Identifier: MIT
"""Log-probabilities as OpenAI's answers and vLLM's extra field tell them."""

from collections.abc import Sequence
from typing import TypeVar

import msgspec

from ..completion import Completion, TextDelta
from ..detokenizer import TokenText
from ..scores import PromptScore, Tops
from .answer import ChatLogprobs, CompletionLogprobs, TokenLogprob, TopLogprob


class RankedLogprob(msgspec.Struct, frozen=True):
    """A token of a prompt, or an alternative to it."""

    logprob: float
    rank: int
    decoded_token: str


Value = TypeVar("Value")
PromptLogprobs = list[dict[str, RankedLogprob] | None]


def chat_logprobs(tokens: Completion | TextDelta, table: TokenText) -> ChatLogprobs:
    """Return what a chat's answer tells of its tokens."""
    tops = tokens.tops or [[] for _ in tokens.token_ids]
    return ChatLogprobs(
        [
            TokenLogprob(
                table.text(id),
                value,
                list(table.raw(id)),
                [TopLogprob(table.text(top), p, list(table.raw(top))) for top, p in top_row],
            )
            for id, value, top_row in zip(tokens.token_ids, tokens.logprobs, tops, strict=True)
        ]
    )


def completion_logprobs(
    tokens: Completion | TextDelta, table: TokenText, offset: int, prompt: Sequence[int] = ()
) -> CompletionLogprobs:
    """Return what a plain completion tells of its tokens, those of an echoed `prompt` first."""
    ids = [*prompt, *tokens.token_ids]
    scores = tokens.prompt_scores if prompt else []
    values = [*_unscored(prompt, [each.logprob for each in scores]), *tokens.logprobs]
    tops = [*_unscored(prompt, [each.tops for each in scores]), *tokens.tops]
    texts = [table.text(id) for id in ids]
    offsets = []
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    told = None
    if tokens.tops:
        told = [
            _by_text(top_row, id, value, table)
            if top_row is not None and value is not None
            else None
            for top_row, id, value in zip(tops, ids, values, strict=True)
        ]
    return CompletionLogprobs(texts, values, offsets, told)


def prompt_logprobs(
    prompt: Sequence[int], scores: Sequence[PromptScore], table: TokenText
) -> PromptLogprobs:
    """Return vLLM's list: of each token of a prompt but the first it and its alternatives.

    None stands for what an aborted request did not score.
    """
    told: PromptLogprobs = [None]
    for id, score in zip(prompt[1:], scores, strict=False):
        row = {
            str(top): RankedLogprob(value, rank, table.text(top))
            for rank, (top, value) in enumerate(score.tops, 1)
        }
        row.setdefault(str(id), RankedLogprob(score.logprob, score.rank, table.text(id)))
        told.append(row)
    return told + [None] * (len(prompt) - len(told))


def _unscored(prompt: Sequence[int], known: Sequence[Value]) -> list[Value | None]:
    """Return the values of a prompt's tokens: none of the first, and of those never scored."""
    found = [None, *known] if prompt else []
    return found + [None] * (len(prompt) - len(found))


def _by_text(tops: Tops, id: int, value: float, table: TokenText) -> dict[str, float]:
    """Return alternatives by their text, and the token itself; the likelier of equal texts."""
    row: dict[str, float] = {}
    for top, logprob in [*tops, (id, value)]:
        row.setdefault(table.text(top), logprob)
    return row
