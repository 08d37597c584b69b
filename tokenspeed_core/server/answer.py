# SPDX-License-Identifier: MIT
"""The JSON objects of OpenAI's chat and completion answers."""

import secrets
from typing import Any

import msgspec

from .. import completion


class TokenLogprob(msgspec.Struct, frozen=True):
    """One sampled token with its log-probability."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[Any] = []


class ChatLogprobs(msgspec.Struct, frozen=True):
    """Log-probabilities of a chat choice, an entry a token."""

    content: list[TokenLogprob]


class CompletionLogprobs(msgspec.Struct, frozen=True):
    """Log-probabilities of a plain completion, in parallel lists."""

    tokens: list[str]
    token_logprobs: list[float]
    text_offset: list[int]
    top_logprobs: list[Any] | None = None


class MissedTokens(msgspec.Struct, frozen=True):
    """Why prompt tokens were computed; with the cached ones they are the prompt."""

    new: int
    evicted: int
    salted: int
    diverged: int
    diverged_at: int | None
    volatile_prefix: bool


class PromptTokensDetails(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where the prompt's tokens came from; all but `cached_tokens` are our own fields."""

    cached_tokens: int
    host_tokens: int = 0
    missed: MissedTokens | None = None

    @classmethod
    def of(cls, usage: completion.Usage) -> "PromptTokensDetails":
        """Return the JSON form."""
        report = usage.report
        if report is None:
            return cls(usage.cached_tokens)
        missed = MissedTokens(
            report.new,
            report.evicted,
            report.salted,
            report.diverged,
            report.diverged_at,
            report.volatile_prefix,
        )
        return cls(usage.cached_tokens, report.host, missed)


class Usage(msgspec.Struct, frozen=True):
    """What a request cost, in tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails

    @classmethod
    def of(cls, usage: completion.Usage) -> "Usage":
        """Return the JSON form."""
        return cls(
            usage.prompt_tokens,
            usage.completion_tokens,
            usage.total_tokens,
            PromptTokensDetails.of(usage),
        )


class ChatMessage(msgspec.Struct, frozen=True, omit_defaults=True):
    """An assistant's message, or a piece of it."""

    role: str | None = None
    content: str | None = None


class ChatChoice(msgspec.Struct, frozen=True):
    """The one choice of a chat answer."""

    message: ChatMessage
    finish_reason: str
    logprobs: ChatLogprobs | None
    index: int = 0
    stop_reason: str | int | None = None


class ChatChunkChoice(msgspec.Struct, frozen=True):
    """A piece of the one choice of a chat answer."""

    delta: ChatMessage
    finish_reason: str | None = None
    logprobs: ChatLogprobs | None = None
    index: int = 0
    stop_reason: str | int | None = None


class CompletionChoice(msgspec.Struct, frozen=True):
    """The one choice of a plain completion, or a piece of it."""

    text: str
    finish_reason: str | None = None
    logprobs: CompletionLogprobs | None = None
    index: int = 0
    stop_reason: str | int | None = None


class Answer(msgspec.Struct, frozen=True):
    """The envelope of every answer and chunk."""

    id: str
    object: str
    created: int
    model: str
    choices: list[ChatChoice] | list[ChatChunkChoice] | list[CompletionChoice]
    usage: Usage | None = None


def new_id(kind: str) -> str:
    """Return a fresh id such as "chatcmpl-5f0c..."."""
    return f"{kind}-{secrets.token_hex(12)}"
