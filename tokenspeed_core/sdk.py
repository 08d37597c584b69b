# SPDX-License-Identifier: MIT
"""The asynchronous ZeroMQ client of one engine: token ids in, token ids out, no torch."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from types import TracebackType

import msgspec

from .cache_report import cache_reports
from .course import step_time
from .engine_errors import EngineLostError as EngineLostError
from .engine_errors import NoTokenError as NoTokenError
from .engine_errors import RefusedError as RefusedError
from .engine_errors import RejectedError as RejectedError
from .engine_errors import RequestFailedError as RequestFailedError
from .engine_errors import StalledReaderError as StalledReaderError
from .engine_errors import refusal_code
from .ipc.channels import FrontendChannel
from .ipc.codec import int32_column, read_column
from .ipc.messages import (
    MAX_FRAME_BYTES,
    Abort,
    FinishReason,
    Heartbeat,
    Profile,
    RefusalCode,
    Refused,
    Rejected,
    Sampling,
    SessionAction,
    SessionHint,
    Stats,
    Submit,
    TokenDeltas,
    Welcome,
)
from .ipc.remote_engine import RemoteEngine as RemoteEngine
from .ipc.run_directory import RunDirectory
from .request_stream import Delta as Delta
from .request_stream import RequestStream as RequestStream
from .resumption import Part, Resumption, continued
from .scores import told
from .sent_prompts import SentPrompts
from .session import Hint, Session
from .urgency import Urgency

MAX_UNREAD_TOKENS = 4096
RESUME_S = 120.0
_FAILED = (FinishReason.WORKER_LOST, FinishReason.NUMERIC, FinishReason.NO_TOKEN)
_NO_TOKEN = "the request's grammar and bans leave no token that could come next"
MAX_PROMPT_TOKENS = (MAX_FRAME_BYTES - 4096) // 4


class Client:
    """One frontend's connection to a scheduler: `async with Client(run_dir) as client`.

    It reconnects by itself.  A request whose scheduler or workers die goes on where it was when the
    next are there, for `resume_s` at most (0: never); then it fails with EngineLostError.
    """

    def __init__(
        self,
        run_dir: RunDirectory | RemoteEngine | Path | str,
        *,
        name: str = "sdk",
        max_unread_tokens: int = MAX_UNREAD_TOKENS,
        connect_timeout_s: float = 10.0,
        resume_s: float = RESUME_S,
    ) -> None:
        self._run = RunDirectory.join(run_dir) if isinstance(run_dir, Path | str) else run_dir
        self._channel = FrontendChannel(self._run, name, self._on_message, self._on_lost)
        self._max_unread_tokens = max_unread_tokens
        self._connect_timeout_s = connect_timeout_s
        self._requests: dict[int, RequestStream] = {}
        self._prompts = SentPrompts()
        self._lost = Resumption(self._run, self._resume, resume_s)
        self._next_id = 1
        self._refused: RefusedError | None = None
        self._is_connected = self._was_ready = False  # ready: in this connection, once
        self._waiters: list[asyncio.Future[None]] = []
        self._last_progress = time.monotonic()
        self.welcome: Welcome | None = None
        self.stats: Stats | None = None

    async def __aenter__(self) -> "Client":
        await self.connect()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def connect(self) -> None:
        """Connect and wait for the scheduler's Welcome.

        Raises:
            EngineLostError: nobody answered in time.
            RefusedError: the scheduler turned us away.
        """
        self._channel.open()
        try:
            await self._wait(lambda: self._is_connected, self._connect_timeout_s)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Abort what is in flight and disconnect; idempotent."""
        for request_id in list(self._requests):
            self._channel.send(Abort(request_id))
        self._fail_all("the client was closed")
        self._lost.close("the client was closed")
        await self._channel.close()

    async def ready(self, timeout_s: float | None = None) -> Welcome:
        """Wait until all workers are in, and return the scheduler's Welcome.

        Raises:
            EngineLostError: that did not happen within `timeout_s`.
            RefusedError: the scheduler turned us away.
        """
        await self._wait(lambda: self.is_ready, timeout_s)
        assert self.welcome is not None
        return self.welcome

    async def _wait(self, condition: Callable[[], bool], timeout_s: float | None) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                while not condition() and self._refused is None:
                    self._waiters.append(asyncio.get_running_loop().create_future())
                    await self._waiters[-1]
        except TimeoutError as error:
            raise EngineLostError(
                f"no scheduler was ready at {self._run.frontend_endpoint} within {timeout_s} s; "
                f"is the engine of that run directory still running?"
            ) from error
        if self._refused is not None:
            raise self._refused

    @property
    def is_ready(self) -> bool:
        """The scheduler is connected and all of its workers are in."""
        return self._is_connected and self.welcome is not None and self.welcome.ready

    @property
    def unheard_s(self) -> float:
        """Seconds since the scheduler last said anything; it speaks several times a second."""
        return self._channel.unheard_s

    @property
    def stalled_s(self) -> float:
        """Seconds since the engine finished a step or had nothing to do."""
        return time.monotonic() - self._last_progress

    @property
    def in_flight(self) -> int:
        """Requests of this client that have not finished."""
        return len(self._requests) + len(self._lost)

    def submit(
        self,
        prompt: Sequence[int],
        *,
        max_tokens: int,
        sampling: Sampling | None = None,
        stop_ids: Sequence[int] = (),
        session: Session | None = None,
        urgency: Urgency | None = None,
    ) -> RequestStream:
        """Send a request and return its stream; the caller reads it to the end or aborts it.

        Raises:
            EngineLostError: there is no scheduler to send it to.
            RejectedError: the prompt does not fit a message, or the scheduler's queue is full.
        """
        if not self._is_connected:
            raise EngineLostError(
                f"not connected to the scheduler at {self._run.frontend_endpoint}; try again"
            )
        if len(prompt) > MAX_PROMPT_TOKENS:
            why = f"a prompt of {len(prompt)} tokens does not fit one message; at most "
            raise RejectedError(RefusalCode.TOO_LONG, f"{why}{MAX_PROMPT_TOKENS} do")
        session, urgency = session or Session(), urgency or Urgency()
        try:
            message = Submit(
                request_id=self._next_id,
                prompt=int32_column(prompt),
                max_tokens=max_tokens,
                sampling=sampling or Sampling(),
                stop_ids=int32_column(stop_ids),
                priority=urgency.priority,
                deadline_ms=urgency.deadline_ms,
                salt=session.salt.encode(),
                session=session.name,
                retain_ms=session.retain_ms,
            )
        except OverflowError as error:
            why = f"a token id does not fit 32 bits ({error}); give valid ids"
            raise RejectedError(RefusalCode.TOKEN_ID, why) from error
        stream = RequestStream(message, self._take_back)  # its clock starts before any step's
        if not self._prompts.send(message, self._channel.send):
            raise RejectedError(
                RefusalCode.QUEUE_FULL, "the queue to the scheduler is full; try again later"
            )
        self._requests[stream.request_id] = stream
        self._next_id += 1
        for hint in session.hints:
            self.hint(session, hint.action, hint.ttl_ms)
        return stream

    def hint(self, session: Session, action: SessionAction, ttl_ms: int = 0) -> None:
        """Tell what is known about a named session's future; it may be lost, like any hint.

        Raises:
            SessionError: `ttl_ms` is negative.
        """
        hint = Hint(action, ttl_ms)
        if session.name and self._is_connected:
            salt = session.salt.encode()
            self._channel.send(SessionHint(session.name, hint.action, hint.ttl_ms, salt))

    @property
    def run_path(self) -> Path:
        """The run directory; only of an engine on this machine."""
        assert isinstance(self._run, RunDirectory), "a remote engine has none here"
        return self._run.path

    def profile(self, directory: Path | None) -> bool:
        """Have scheduler and workers trace into a directory from now on; None ends that.

        False: there is no scheduler, or its queue is full.
        """
        return self._is_connected and self._channel.send(
            Profile("" if directory is None else str(directory.absolute()))
        )

    async def generate(
        self,
        prompt: Sequence[int],
        *,
        max_tokens: int,
        sampling: Sampling | None = None,
        stop_ids: Sequence[int] = (),
        session: Session | None = None,
        urgency: Urgency | None = None,
    ) -> AsyncIterator[Delta]:
        """Yield the deltas of one request; leaving early aborts it.  Raises what `submit` does."""
        stream = self.submit(
            prompt,
            max_tokens=max_tokens,
            sampling=sampling,
            stop_ids=stop_ids,
            session=session,
            urgency=urgency,
        )
        try:
            async for delta in stream:
                yield delta
        finally:
            stream.abort()

    def _take_back(self, stream: RequestStream, kept: int) -> None:
        self._lost.discard(stream)
        if self._requests.get(stream.request_id) is stream:
            del self._requests[stream.request_id]
            self._channel.send_later(Abort(stream.request_id, kept))

    def _lose(self, stream: RequestStream, reason: str, part: Part) -> None:
        del self._requests[stream.request_id]
        self._lost.add(stream, reason, part, was_tried=self._was_ready)

    def _resume(self, stream: RequestStream) -> bool:
        if not self._is_connected:
            return False
        elapsed_ms = int((time.monotonic() - stream.submitted) * 1e3)
        message = continued(stream.request, stream.received.tolist(), elapsed_ms)
        message = msgspec.structs.replace(message, request_id=self._next_id)
        if not self._prompts.send(message, self._channel.send):
            return False
        stream.resume(self._next_id)
        self._requests[self._next_id] = stream
        self._next_id += 1
        return True

    def _on_message(self, message: msgspec.Struct) -> None:
        if isinstance(message, TokenDeltas):
            self._on_deltas(message)
        elif isinstance(message, Stats):
            self._on_stats(message)
        elif isinstance(message, Rejected):
            self._on_rejected(message.request_id, refusal_code(message.code), message.message)
        elif isinstance(message, Welcome):
            self._is_connected = True
            self._prompts.greet(message)
            self._was_ready |= message.ready
            self.welcome = message
            self._wake()
        elif isinstance(message, Refused):
            self._refused = RefusedError(refusal_code(message.code), message.message)
            self._fail_all(str(self._refused))
            self._on_lost(str(self._refused))
        else:
            assert isinstance(message, Heartbeat), message

    def _on_rejected(self, request_id: int, code: RefusalCode, why: str) -> None:
        error = RejectedError(code, why)
        stream = self._requests.get(request_id)
        if stream is not None and stream.is_resumed and error.retryable:
            del self._requests[request_id]
            self._lost.put_off(stream, why)
        else:
            self._fail(request_id, error)

    def _on_stats(self, stats: Stats) -> None:
        before = self.stats
        is_idle = stats.running == 0 and stats.waiting == 0 and stats.in_flight_steps == 0
        if is_idle or before is None or (before.epoch, before.steps) != (stats.epoch, stats.steps):
            self._last_progress = time.monotonic()
        self.stats = stats

    def _on_deltas(self, deltas: TokenDeltas) -> None:
        for request_id, report in cache_reports(deltas):
            if (explained := self._requests.get(request_id)) is not None:
                explained.explain(report)
        for request_id, queued_us, first_step in zip(
            read_column("Q", deltas.report_ids),
            read_column("i", deltas.report_queued_us),
            read_column("q", deltas.report_first_step),
            strict=False,  # an older scheduler does not tell them
        ):
            if (admitted := self._requests.get(request_id)) is not None:
                admitted.admitted(queued_us / 1e6, first_step)
        for request_id, details in told(deltas):
            if (stream := self._requests.get(request_id)) is not None:
                stream.tell(details)
        worked = step_time(deltas)
        tokens = read_column("i", deltas.tokens).tolist()
        logprobs = read_column("f", deltas.logprobs).tolist()
        start = 0
        for request_id, count, finish, cached in zip(
            read_column("Q", deltas.request_ids),
            read_column("i", deltas.counts),
            read_column("B", deltas.finish_reasons),
            read_column("i", deltas.cached_tokens),
            strict=True,
        ):
            row = slice(start, start + count)
            start += count
            stream = self._requests.get(request_id)
            if stream is None:
                continue
            reason = FinishReason(finish) if finish else FinishReason.NONE
            if finish and reason in _FAILED:
                self._on_failed(stream, reason)
                continue
            stream.take(tokens[row], logprobs[row], reason, cached, deltas.step, worked)
            if finish:
                del self._requests[request_id]
            elif stream.unread_tokens > self._max_unread_tokens:
                self._take_back(stream, -1)
                unread = f"{stream.unread_tokens} tokens were not read; the request was aborted"
                stream.fail(StalledReaderError(unread))

    def _on_failed(self, stream: RequestStream, reason: FinishReason) -> None:
        if reason is FinishReason.WORKER_LOST:
            self._lose(stream, "the workers died under the request", "workers")
        elif reason is FinishReason.NUMERIC:
            nan = "the model produced NaN or infinity for this request"
            self._fail(stream.request_id, RequestFailedError(nan))
        else:
            self._fail(stream.request_id, NoTokenError(_NO_TOKEN))

    def _fail(self, request_id: int, error: Exception) -> None:
        if (stream := self._requests.pop(request_id, None)) is not None:
            stream.fail(error)

    def _fail_all(self, reason: str) -> None:
        for request_id in list(self._requests):
            self._fail(request_id, EngineLostError(f"{reason}; the request may be sent again"))

    def _on_lost(self, reason: str) -> None:
        self._is_connected = False
        self._prompts.forget()
        for stream in list(self._requests.values()):
            self._lose(stream, reason, "scheduler")
        self._was_ready = False
        self._wake()

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
