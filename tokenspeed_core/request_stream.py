# SPDX-License-Identifier: MIT
"""What a client reads of one request: its token deltas, as they come."""

import asyncio
import time
from array import array
from collections import Counter
from collections.abc import Callable

import attrs

from .cache_report import CacheReport
from .course import MAX_STEPS, Course, StepTime
from .ipc.details import Details
from .ipc.messages import FinishReason, Submit
from .scores import PromptScore, Tops, prompt_scores, tops_of


@attrs.frozen
class Delta:
    """Tokens of one request since the last delta; a reader that lags gets several steps in one."""

    tokens: list[int]
    logprobs: list[float]  # beside tokens; empty unless asked for
    finish_reason: FinishReason
    cached_tokens: int  # prompt tokens served from the prefix cache
    report: CacheReport | None = None  # from the first token on: why the others were not
    course: Course | None = None
    tops: list[Tops] = attrs.field(factory=list)  # beside tokens; empty unless asked for


class RequestStream:
    """The deltas of one submitted request: `async for delta in stream`.

    `request` is what was asked and `received` all tokens that came, so that a client can send what
    is left of it to the next scheduler, under another `request.request_id`.
    """

    def __init__(self, request: Submit, take_back: Callable[["RequestStream", int], None]) -> None:
        self.request = request
        self.request_id = request.request_id  # its present name at the scheduler
        self.submitted = time.monotonic()
        self.received = array("i")
        self.lost_at = 0.0
        self.fruitless: Counter[str] = Counter()  # deaths of a part since the last token
        self._resumed_at = 0  # tokens that the present scheduler was given in the prompt
        self._is_resumed = False
        self._take_back = take_back
        self._tokens: list[int] = []
        self._logprobs: list[float] = []
        self._tops: list[Tops] = []
        self._scores: dict[int, PromptScore] = {}  # of the prompt's tokens, by position
        self.hidden = b""  # an embedder's row, told with the first token
        self._cached = 0
        self._report: CacheReport | None = None
        self._queued_s: float | None = None
        self._first_step = self._last_step = 0
        self._steps: list[StepTime] = []
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
        delta = Delta(
            self._tokens,
            self._logprobs,
            self._finish,
            self._cached,
            self._report,
            Course(self.submitted, self._queued_s, self._first_step, self._last_step, self._steps),
            self._tops,
        )
        self._tokens, self._logprobs, self._tops = [], [], []
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
        self._take_back(self, kept if kept < 0 else max(0, kept - self._resumed_at))

    def end(self) -> None:
        """Take the request back on somebody else's word: the reader gets what came, then ABORT."""
        if self._finish is FinishReason.NONE and not self._is_over and self._error is None:
            self._take_back(self, -1)
            self._finish = FinishReason.ABORT
            self._news.set()

    @property
    def has_advanced(self) -> bool:
        """A token came from the present scheduler and its workers."""
        return len(self.received) > self._resumed_at

    @property
    def is_settled(self) -> bool:
        """The present scheduler gave a token, or the request is over."""
        is_over = self._is_over or self._error is not None
        return self.has_advanced or is_over or self._finish is not FinishReason.NONE

    @property
    def is_resumed(self) -> bool:
        """The request was sent again after a loss."""
        return self._is_resumed

    def resume(self, request_id: int) -> None:
        """Go on as another request of the scheduler."""
        self.request_id = request_id
        self._resumed_at = len(self.received)
        self._is_resumed = True

    def take(
        self,
        tokens: list[int],
        logprobs: list[float],
        finish: FinishReason,
        cached_tokens: int,
        step: int = 0,
        worked: StepTime | None = None,
    ) -> None:
        """Add what a step brought; called by the client that owns the socket."""
        if tokens:
            self._last_step = step
            if worked is not None and len(self._steps) < MAX_STEPS:
                self._steps.append(worked)
        if self._resumed_at == 0:  # later prompts hold what was answered
            self._cached = cached_tokens
        self._tokens += tokens
        self._logprobs += logprobs
        self.received.extend(tokens)
        self._finish = finish
        self._news.set()

    def explain(self, report: CacheReport) -> None:
        """Tell what the prefix cache did; called by the client that owns the socket."""
        if self._resumed_at == 0:
            self._report = report

    def admitted(self, queued_s: float, first_step: int) -> None:
        """Tell when it had a slot; called by the client that owns the socket."""
        if self._queued_s is None:
            self._queued_s, self._first_step = queued_s, first_step

    def tell(self, details: Details) -> None:
        """Add what a worker told of a step's row; called by the client that owns the socket."""
        if details.top_ids:
            self._tops.append(tops_of(details))
        self.hidden = details.hidden or self.hidden
        # A prompt that is computed again is told of again.
        self._scores.update(prompt_scores(details))

    def prompt_scores(self) -> list[PromptScore]:
        """Return the scores of the prompt's tokens but the first, if they were asked for.

        They are all there with the first token of the answer.
        """
        return [self._scores[position] for position in sorted(self._scores)]

    def fail(self, error: Exception) -> None:
        """End the stream with an error; called by the client that owns the socket."""
        self._error = error
        self._news.set()
