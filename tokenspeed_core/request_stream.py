# SPDX-License-Identifier: MIT
"""What a client reads of one request: its token deltas, as they come."""

import asyncio
from collections.abc import Callable

import attrs

from .cache_report import CacheReport
from .ipc.messages import FinishReason


@attrs.frozen
class Delta:
    """Tokens of one request since the last delta; a reader that lags gets several steps in one."""

    tokens: list[int]
    logprobs: list[float]  # beside tokens; empty unless asked for
    finish_reason: FinishReason
    cached_tokens: int  # prompt tokens served from the prefix cache
    report: CacheReport | None = None  # from the first token on: why the others were not


class RequestStream:
    """The deltas of one submitted request: `async for delta in stream`."""

    def __init__(self, request_id: int, take_back: Callable[[int, int], None]) -> None:
        self.request_id = request_id
        self._take_back = take_back
        self._tokens: list[int] = []
        self._logprobs: list[float] = []
        self._cached = 0
        self._report: CacheReport | None = None
        self._finish = FinishReason.NONE
        self._error: Exception | None = None
        self._news = asyncio.Event()
        self._is_over = False

    def __aiter__(self) -> "RequestStream":
        return self

    async def __anext__(self) -> Delta:
        """Return what came since the last call, waiting if nothing did.

        Raises:
            EngineLostError, RejectedError, RequestFailedError, StalledReaderError: the request
                ended that way.
        """
        if self._is_over:
            raise StopAsyncIteration
        await self._news.wait()
        self._news.clear()
        if self._error is not None:
            self._is_over = True
            raise self._error
        delta = Delta(self._tokens, self._logprobs, self._finish, self._cached, self._report)
        self._tokens, self._logprobs = [], []
        self._is_over = self._finish is not FinishReason.NONE
        return delta

    @property
    def unread_tokens(self) -> int:
        """Tokens that came and were not yet returned."""
        return len(self._tokens)

    def abort(self, kept: int = -1) -> None:
        """Take the request back; idempotent.  No delta follows.

        `kept` is how many of the generated tokens the user was given, -1 for all.
        """
        self._is_over = True
        self._take_back(self.request_id, kept)

    def take(self, delta: Delta) -> None:
        """Add what a step brought; called by the client that owns the socket."""
        self._tokens += delta.tokens
        self._logprobs += delta.logprobs
        self._finish, self._cached = delta.finish_reason, delta.cached_tokens
        self._news.set()

    def explain(self, report: CacheReport) -> None:
        """Tell what the prefix cache did; called by the client that owns the socket."""
        self._report = report

    def fail(self, error: Exception) -> None:
        """End the stream with an error; called by the client that owns the socket."""
        self._error = error
        self._news.set()
