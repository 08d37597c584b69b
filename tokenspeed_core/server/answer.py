# SPDX-License-Identifier: MIT
"""The JSON objects of OpenAI's chat and completion answers."""

import secrets
from collections.abc import Sequence
from typing import Any

import msgspec

from .. import completion


class TopLogprob(msgspec.Struct, frozen=True):
    """A token that could have come, with its log-probability."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct, frozen=True):
    """One sampled token with its log-probability."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob] = []


class ChatLogprobs(msgspec.Struct, frozen=True):
    """Log-probabilities of a chat choice, an entry a token."""

    content: list[TokenLogprob]


class CompletionLogprobs(msgspec.Struct, frozen=True):
    """Log-probabilities of a plain completion, in parallel lists."""

    tokens: list[str]
    token_logprobs: list[float | None]
    text_offset: list[int]
    top_logprobs: list[dict[str, float] | None] | None = None


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
    def of(cls, usages: Sequence[completion.Usage], group: int = 1) -> "Usage":
        """Return the JSON form for all choices, of which each `group` has one prompt."""
        leaders = usages[::group]
        prompt = sum(usage.prompt_tokens for usage in leaders)
        generated = sum(usage.completion_tokens for usage in usages)
        details = PromptTokensDetails.of(leaders[0])
        if len(leaders) > 1:
            details = PromptTokensDetails(sum(usage.cached_tokens for usage in leaders))
        return cls(prompt, generated, prompt + generated, details)


class FunctionCall(msgspec.Struct, frozen=True, omit_defaults=True):
    """A called function, or a piece of it."""

    name: str | None = None
    arguments: str | None = None


class ToolCall(msgspec.Struct, frozen=True, omit_defaults=True):
    """A tool call, or a piece of it, which has an index."""

    function: FunctionCall
    id: str | None = None
    type: str | None = None
    index: int | None = None


class ChatMessage(msgspec.Struct, frozen=True, omit_defaults=True):
    """An assistant's message, or a piece of it."""

    role: str | None = None
    content: str | msgspec.UnsetType | None = msgspec.UNSET
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None


class _Choice(msgspec.Struct, frozen=True, kw_only=True):
    index: int = 0
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET


class ChatChoice(_Choice, frozen=True, kw_only=True):
    """A choice of a chat answer."""

    message: ChatMessage
    logprobs: ChatLogprobs | None = None


class ChatChunkChoice(_Choice, frozen=True, kw_only=True):
    """A piece of a choice of a chat answer."""

    delta: ChatMessage
    logprobs: ChatLogprobs | None = None


class CompletionChoice(_Choice, frozen=True, kw_only=True):
    """A choice of a plain completion, or a piece of it."""

    text: str
    logprobs: CompletionLogprobs | None = None
    prompt_token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET
    prompt_logprobs: list[Any] | msgspec.UnsetType = msgspec.UNSET


class Answer(msgspec.Struct, frozen=True):
    """The envelope of every answer and chunk."""

    id: str
    object: str
    created: int
    model: str
    choices: list[ChatChoice] | list[ChatChunkChoice] | list[CompletionChoice]
    usage: Usage | None = None
    prompt_token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET
    prompt_logprobs: list[Any] | msgspec.UnsetType = msgspec.UNSET


def new_id(kind: str) -> str:
    """Return a fresh id such as "chatcmpl-5f0c..."."""
    return f"{kind}-{secrets.token_hex(12)}"
