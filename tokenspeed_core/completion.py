# SPDX-License-Identifier: MIT
"""What a user gets back: text, built up from the token deltas of one request."""

from collections import deque

import attrs

from .cache_report import CacheReport
from .course import Course
from .detokenizer import Detokenizer, StopStrings, TokenText
from .ipc.messages import FinishReason
from .scores import PromptScore, Tops
from .sdk import Delta

REASONS = {FinishReason.STOP: "stop", FinishReason.LENGTH: "length", FinishReason.ABORT: "abort"}


@attrs.frozen
class Usage:
    """What a request cost, in tokens."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int  # prompt tokens served from the prefix cache
    report: CacheReport | None = None  # from the first token on: why the others were not

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@attrs.frozen
class TextDelta:
    """Text that became final, with the tokens that begin in it."""

    text: str
    token_ids: list[int]
    logprobs: list[float]  # beside token_ids; empty unless asked for
    finish_reason: str | None  # "stop", "length" or "abort" on the last delta, else None
    stop_reason: str | int | None  # the stop string or stop id that ended the request
    usage: Usage  # so far
    course: Course | None = None
    tops: list[Tops] = attrs.field(factory=list)  # beside token_ids; empty unless asked for
    # Of the prompt's tokens but the first, with the first delta; empty unless asked for.
    prompt_scores: list[PromptScore] = attrs.field(factory=list)
    hidden: bytes = b""  # an embedder's row, which is its whole answer: an f32 column


@attrs.frozen
class Completion:
    """The whole answer to one request."""

    text: str
    token_ids: list[int]
    logprobs: list[float]
    finish_reason: str
    stop_reason: str | int | None
    usage: Usage
    tops: list[Tops] = attrs.field(factory=list)
    prompt_scores: list[PromptScore] = attrs.field(factory=list)
    deltas: list[TextDelta] = attrs.field(factory=list, repr=False, eq=False)  # as they came


def joined(deltas: list[TextDelta]) -> Completion:
    """Return the completion that a finished stream of deltas adds up to."""
    last = deltas[-1]
    assert last.finish_reason is not None, "the stream has not ended"
    return Completion(
        "".join(delta.text for delta in deltas),
        [id for delta in deltas for id in delta.token_ids],
        [value for delta in deltas for value in delta.logprobs],
        last.finish_reason,
        last.stop_reason,
        last.usage,
        [tops for delta in deltas for tops in delta.tops],
        deltas[0].prompt_scores,
        deltas,
    )


@attrs.frozen
class _Pending:
    id: int
    logprob: float | None
    tops: Tops | None
    start: int  # characters of the text before this token's


class CompletionText:
    """Turns one request's token deltas into text deltas.

    A token is handed out with the first text that it contributes, so that tokens whose text a stop
    string cut away are not.  `kept` counts generated tokens up to the one that ended the request.
    """

    def __init__(
        self, table: TokenText, stops: tuple[str, ...], prompt_tokens: int, *, logprobs: bool
    ) -> None:
        self._detokenizer = Detokenizer(table)
        self._stops = StopStrings(stops)
        self._prompt_tokens = prompt_tokens
        self._wants_logprobs = logprobs
        self._pending: deque[_Pending] = deque()
        self._decoded = 0  # characters decoded, held back ones included
        self._emitted = 0
        self.kept = 0

    def push(self, delta: Delta) -> TextDelta:
        """Take the tokens of a delta; a stop string among them gives the result a finish reason."""
        parts: list[str] = []
        stop_reason: str | int | None = None
        reason = REASONS.get(delta.finish_reason)
        last = len(delta.tokens) - 1
        for index, id in enumerate(delta.tokens):
            self.kept += 1
            logprob = delta.logprobs[index] if self._wants_logprobs else None
            tops = delta.tops[index] if delta.tops else None
            self._pending.append(_Pending(id, logprob, tops, self._decoded))
            if index == last and delta.finish_reason is FinishReason.STOP:
                stop_reason = id  # the id that ended the request has no text of its own
                break
            parts.append(self._found(self._detokenizer.push(id)))
            if self._stops.matched is not None:
                reason = "stop"
                break
        if reason is not None and self._stops.matched is None:
            parts.append(self._found(self._detokenizer.finish()))
            parts.append(self._stops.finish() if self._stops.matched is None else "")
        if self._stops.matched is not None:
            reason, stop_reason = "stop", self._stops.matched
        return self._delta("".join(parts), reason, stop_reason, delta)

    def _found(self, text: str) -> str:
        self._decoded += len(text)
        return self._stops.push(text) if text else ""

    def _delta(
        self, text: str, reason: str | None, stop_reason: str | int | None, delta: Delta
    ) -> TextDelta:
        self._emitted += len(text)
        ids, logprobs, all_tops = [], [], []
        is_cut = self._stops.matched is not None
        while self._pending and (
            self._pending[0].start < self._emitted or (reason is not None and not is_cut)
        ):
            token = self._pending.popleft()
            ids.append(token.id)
            if token.logprob is not None:
                logprobs.append(token.logprob)
            if token.tops is not None:
                all_tops.append(token.tops)
        usage = Usage(self._prompt_tokens, self.kept, delta.cached_tokens, delta.report)
        return TextDelta(text, ids, logprobs, reason, stop_reason, usage, delta.course, all_tops)
