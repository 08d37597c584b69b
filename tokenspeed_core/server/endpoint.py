# SPDX-License-Identifier: MIT
"""The way of a generating request: body, fields, prompt, deltas, answer."""

import asyncio
import contextlib
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from functools import partial
from typing import Generic

import attrs
import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from ..async_llm import AsyncLLM
from ..completion import TextDelta, joined
from ..detokenizer import TokenText
from ..grammar.grammar import Grammar
from ..ipc.messages import SessionAction
from ..session import Session
from .caller import Caller
from .choices import ChoiceDelta, Stream, interleaved
from .event_stream import EventStream, until_disconnect
from .failure import ApiError, api_error
from .metrics import Metrics
from .observer import Observer
from .request_body import Fields, parse, read_body
from .request_record import Arrival
from .request_table import Entry, RequestTable
from .response_store import ResponseStore
from .seen_bodies import SeenBodies
from .writer import Writer

log = logging.getLogger(__name__)

_CLIENT_LEFT = 499  # nobody reads it; it shows in logs


@attrs.define
class Service:
    """What all routes of one server share."""

    llm: AsyncLLM
    model_name: str
    metrics: Metrics
    observer: Observer
    started: int  # Unix time
    is_draining: bool = False
    in_flight: int = 0  # generating requests, streams included
    requests: RequestTable = attrs.field(factory=RequestTable)
    index: int = 0  # of this API process
    background: set[asyncio.Task[None]] = attrs.field(factory=set)  # answers that nobody waits for
    responses: ResponseStore = attrs.field(factory=lambda: ResponseStore(0, 0.0))
    bodies: SeenBodies = attrs.field(factory=SeenBodies)


@attrs.frozen
class Job:
    """What a request asks the engine for: `num_choices` answers to each of its prompts."""

    prompts: Sequence[Sequence[int]]
    writer: Writer
    num_choices: int = 1
    table: TokenText | None = None  # how tokens are spelled; None: as text for the user
    grammar: Grammar | None = None  # the form of the answers, in that spelling
    id: str = ""  # for /abort, where the client gives none
    # once no more is generated, with the failure if there was one
    on_end: Callable[[Exception | None], None] = lambda _: None
    in_background: Callable[[], bytes] | None = None  # what is answered at once, if nobody waits


class Route(ABC):
    """A route that takes a body; never raises for what a client or a lost engine did."""

    prompt_field: str
    fields: type[msgspec.Struct]  # of its body

    def __init__(self, service: Service) -> None:
        self.service = service

    @abstractmethod
    async def respond(self, request: Request, arrival: Arrival) -> Response:
        """Answer a request."""

    async def __call__(self, request: Request) -> Response:
        """Answer a request, or tell what went wrong."""
        arrival = Arrival.of(request)
        try:
            response = await self.respond(request, arrival)
        except ClientDisconnect:
            self.service.observer.refused(arrival, ApiError(_CLIENT_LEFT, "", code="client_left"))
            response = Response(status_code=_CLIENT_LEFT)
        except Exception as error:
            failure = self.failure(error)
            self.service.observer.refused(arrival, failure)
            response = failure.response()
        response.headers["x-request-id"] = arrival.id
        return response

    def failure(self, error: Exception) -> ApiError:
        """Return what the client is told, having logged and counted it."""
        failure = api_error(error, self.prompt_field)
        if failure is None:
            log.error("a request failed by our own fault", exc_info=error)
            failure = ApiError(500, "internal error; the server's log has the details")
        log.info("answered %d %s: %.300r", failure.status, failure.code, failure.message)
        self.service.metrics.failed(failure.status, failure.code)
        return failure

    def check(self, model: str) -> None:
        """Raise ApiError if the server is on its way out or serves no such model."""
        if self.service.is_draining:
            raise ApiError(503, "the server is shutting down; try another one", code="draining")
        if model != self.service.model_name:
            raise ApiError(
                404,
                f"the model {model[:100]!r} is not served here; {self.service.model_name!r} is",
                param="model",
                code="model_not_found",
            )


class Endpoint(Route, Generic[Fields]):
    """A route that generates; a subclass knows one request and answer format."""

    fields: type[Fields]

    @abstractmethod
    async def job(self, fields: Fields, caller: Caller) -> Job:
        """Return what to generate and how to write it."""

    async def respond(self, request: Request, arrival: Arrival) -> Response:
        """Answer a request for as long as the client is there."""
        body, caller = await read_body(request), Caller.of(request)
        owner = caller.name if caller.has_own_cache else ""
        decode = partial(self.service.bodies.decode, owner=owner)
        with self.service.llm.codec.stages.stage("parse"):
            fields = parse(body, self.fields, self.service.metrics.ignored, decode)
        self.check(fields.model)
        self.service.llm.check_generates()
        answer = self._answer(fields, arrival, caller)
        return await until_disconnect(request.receive, answer)

    async def _answer(self, fields: Fields, arrival: Arrival, caller: Caller) -> Response:
        params, urgency = fields.sampling_params(), fields.urgency()
        session = caller.owned(fields.session())
        arrival.session, arrival.is_stream = session.name, fields.stream
        # what is kept of its text is as private as its cache
        job = await self.job(msgspec.structs.replace(fields, cache_salt=session.salt), caller)
        if job.grammar is not None:
            params = attrs.evolve(params, grammar=job.grammar)

        def start(index: int) -> Stream:
            prompt, number = divmod(index, job.num_choices)
            stream = self.service.llm.stream(
                job.prompts[prompt],
                params.choice(number),
                session,
                urgency,
                job.table,
                entry.add,
            )
            return self.service.observer.observed(stream, arrival, index, job.prompts[prompt])

        count = len(job.prompts) * job.num_choices
        starts = [partial(start, index) for index in range(count)]
        try:
            entry = self.service.requests.begin(caller, fields.request_id or fields.rid or job.id)
        except ApiError as error:
            job.on_end(error)
            raise
        deltas = self._counted(job, session, entry, interleaved(starts, job.num_choices))
        if job.in_background is not None:
            task = asyncio.create_task(self._unwatched(job.writer, arrival, deltas))
            self.service.background.add(task)
            task.add_done_callback(self.service.background.discard)
            return Response(job.in_background(), media_type="application/json")
        if not fields.stream:
            return await self._whole(job, deltas)
        # the status line waits for the first delta: until then a failure has a status of its own
        try:
            first = await anext(deltas)
        except BaseException:
            await deltas.aclose()
            raise
        return EventStream(self._events(job.writer, arrival, first, deltas), deltas)

    async def _whole(self, job: Job, deltas: AsyncGenerator[ChoiceDelta, None]) -> Response:
        count = len(job.prompts) * job.num_choices
        choices: list[list[TextDelta]] = [[] for _ in range(count)]
        running, body = count, b""
        async with contextlib.aclosing(deltas):
            async for index, delta in deltas:
                choices[index].append(delta)
                running -= delta.finish_reason is not None
                if not running:  # written before the stream of deltas notes its end
                    body = job.writer.whole([joined(choice) for choice in choices])
        return Response(body, media_type="application/json")

    async def _unwatched(
        self, writer: Writer, arrival: Arrival, deltas: AsyncGenerator[ChoiceDelta, None]
    ) -> None:
        """Write an answer that is kept for later; the writer tells of a failure."""
        try:
            first = await anext(deltas)
        except Exception as error:
            self.service.observer.refused(arrival, self.failure(error))
            return
        async with contextlib.aclosing(self._events(writer, arrival, first, deltas)) as events:
            async for _ in events:
                pass

    async def _counted(
        self,
        job: Job,
        session: Session,
        entry: Entry,
        deltas: AsyncGenerator[ChoiceDelta, None],
    ) -> AsyncGenerator[ChoiceDelta, None]:
        self.service.in_flight += 1
        failure: Exception | None = None
        try:
            async for delta in deltas:
                yield delta
        except Exception as error:
            failure = error
            raise
        finally:
            await deltas.aclose()
            self.service.in_flight -= 1
            self.service.requests.end(entry)
            job.on_end(failure)
            if job.writer.called_tools:
                self.service.llm.hint(session, SessionAction.TOOL_CALL)

    async def _events(
        self,
        writer: Writer,
        arrival: Arrival,
        first: ChoiceDelta,
        rest: AsyncIterator[ChoiceDelta],
    ) -> AsyncGenerator[bytes, None]:
        stages = self.service.llm.codec.stages

        def pushed(choice: int, delta: TextDelta) -> list[bytes]:
            with stages.stage("write"):
                events = list(writer.push(choice, delta))
            if writer.has_answered(choice):
                self.service.observer.answered(arrival, choice)
            return events

        try:
            for event in pushed(*first):
                yield event
            async for choice, delta in rest:
                for event in pushed(choice, delta):
                    yield event
            for event in writer.end():
                yield event
        except Exception as error:
            for event in writer.failed(self.failure(error)):
                yield event
