# SPDX-License-Identifier: MIT
"""What is known of one choice of a request: its sizes, its times and how it ended."""

import secrets
import time
from collections.abc import Callable, Sequence

import attrs
from starlette.requests import Request

from ..cache_report import CacheReport
from ..completion import TextDelta
from ..course import Course

MAX_ID_CHARS = 128


@attrs.define(eq=False)
class Arrival:
    """An HTTP request as it came in."""

    id: str  # its x-request-id, or one of ours
    route: str  # its path
    traceparent: str  # W3C trace context, empty: none
    tracestate: str
    at: float  # Unix time
    started: float  # the same moment, of `time.monotonic`
    session: str = ""
    is_stream: bool = False
    records: "dict[int, RequestRecord]" = attrs.field(factory=dict, repr=False)  # by choice

    @classmethod
    def of(cls, request: Request) -> "Arrival":
        """Return a request whose body is about to be read."""
        given = request.headers.get("x-request-id", "")
        is_fit = given.isascii() and given.isprintable() and len(given) <= MAX_ID_CHARS
        return cls(
            id=given if given and is_fit else f"req-{secrets.token_hex(12)}",
            route=request.url.path,
            traceparent=request.headers.get("traceparent", ""),
            tracestate=request.headers.get("tracestate", ""),
            at=time.time(),
            started=time.monotonic(),
        )


@attrs.define(eq=False)
class RequestRecord:
    """One choice on its way; times are of `time.monotonic`, None where it did not get so far."""

    arrival: Arrival
    choice: int = 0
    prompt_ids: Sequence[int] = attrs.field(factory=list, repr=False)
    begun: float = attrs.field(factory=time.monotonic)  # its prompt was there
    first_token: float | None = None
    first_answer: float | None = None  # behind the reasoning; known of streams
    last_token: float | None = None
    ended: float | None = None
    cached_tokens: int = 0
    completion_tokens: int = 0
    report: CacheReport | None = None
    course: Course | None = None
    text: list[str] = attrs.field(factory=list, repr=False)  # kept where a sink asks for it
    outcome: str = ""  # "stop", "length" or "abort"; "refused" or "failed" with a code
    status: int = 200
    code: str = ""

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt; 0 if it was never made."""
        return len(self.prompt_ids)

    @property
    def is_live(self) -> bool:
        """It is not over."""
        return self.ended is None

    def take(self, delta: TextDelta, now: float) -> int:
        """Note what a delta brings; return how many tokens are new."""
        new = delta.usage.completion_tokens - self.completion_tokens
        self.course = delta.course
        self.report = delta.usage.report
        if new or delta.hidden:
            if self.first_token is None:
                self.first_token = now
                self.cached_tokens = delta.usage.cached_tokens
            self.last_token = now
            self.completion_tokens = delta.usage.completion_tokens
        return new

    @property
    def cache(self) -> str:
        """Whether most of the prompt was cached: "warm" or "cold"."""
        return "warm" if 2 * self.cached_tokens > self.prompt_tokens else "cold"

    @property
    def queue_s(self) -> float | None:
        """From the scheduler's taking it until it had a slot."""
        return self.course.queued_s if self.course else None

    @property
    def prefill_s(self) -> float | None:
        """From its slot to its first token."""
        if self.first_token is None or self.course is None or self.course.queued_s is None:
            return None
        return max(0.0, self.first_token - self.course.submitted - self.course.queued_s)

    @property
    def decode_s(self) -> float | None:
        """From its first token to its last."""
        if self.first_token is None or self.last_token is None:
            return None
        return self.last_token - self.first_token

    def since_start(self, moment: float | None) -> float | None:
        """Return the seconds between the request's arrival and a moment of its own."""
        return None if moment is None else moment - self.arrival.started


Sink = Callable[[RequestRecord], None]
