# SPDX-License-Identifier: MIT
"""Watches requests go by, and tells metrics and sinks what became of each."""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence

from ..completion import TextDelta
from .failure import ApiError, api_error
from .metrics import Metrics
from .request_record import Arrival, RequestRecord, Sink


class Observer:
    """Follows every choice of every request from its arrival to its end.

    `live` are those on their way.  A sink gets each record once, when it is over; with
    `keeps_text` it finds the answer there.
    """

    def __init__(self, metrics: Metrics, sinks: Iterable[Sink] = ()) -> None:
        self._metrics = metrics
        self._sinks = list(sinks)
        self.keeps_text = False
        self.live: set[RequestRecord] = set()

    def add(self, sink: Sink) -> None:
        """Tell this sink too, from now on."""
        self._sinks.append(sink)

    def refused(self, arrival: Arrival, error: ApiError) -> None:
        """Note that a request failed; it matters if the engine never had any part of it."""
        if not arrival.records:
            self._close(RequestRecord(arrival), "refused", error)

    async def observed(
        self, deltas: AsyncIterator[TextDelta], arrival: Arrival, choice: int, prompt: Sequence[int]
    ) -> AsyncGenerator[TextDelta, None]:
        """Pass a choice's deltas through."""
        record = arrival.records[choice] = RequestRecord(arrival, choice, prompt)
        self.live.add(record)
        try:
            async for delta in deltas:
                before = record.last_token
                new = record.take(delta, time.monotonic())
                if record.last_token is not before:
                    self._metrics.tokens(record, new, before)
                if self.keeps_text:
                    record.text.append(delta.text)
                if delta.finish_reason is not None:
                    self._close(record, delta.finish_reason)
                yield delta
        except Exception as error:
            failure = api_error(error, "prompt") or ApiError(500, "internal error")
            self._close(record, "failed", failure)
            raise
        finally:
            self._close(record, "abort")
            await deltas.aclose()  # type: ignore[attr-defined]

    def answered(self, arrival: Arrival, choice: int) -> None:
        """Note that a choice's text goes beyond its reasoning."""
        record = arrival.records[choice]
        if record.first_answer is None:
            record.first_answer = time.monotonic()
            self._metrics.answered(record)

    def _close(self, record: RequestRecord, outcome: str, error: ApiError | None = None) -> None:
        if not record.is_live:
            return
        self.live.discard(record)
        record.ended = time.monotonic()
        record.outcome = outcome
        if error is not None:
            record.status, record.code = error.status, error.code or ""
        self._metrics.ended(record)
        for sink in self._sinks:
            sink(record)
