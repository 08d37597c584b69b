# SPDX-License-Identifier: MIT
"""The way of a generating request: body, fields, prompt, deltas, answer."""

import contextlib
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Generic

import attrs
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from ..async_llm import AsyncLLM
from ..completion import Completion, TextDelta, joined
from .event_stream import EventStream, until_disconnect
from .failure import ApiError, api_error
from .metrics import Metrics
from .request_body import Fields, parse, read_body

log = logging.getLogger(__name__)

_CLIENT_LEFT = 499  # nobody reads it; it shows in logs


@attrs.define
class Service:
    """What all routes of one server share."""

    llm: AsyncLLM
    model_name: str
    metrics: Metrics
    started: int  # Unix time
    is_draining: bool = False
    in_flight: int = 0  # generating requests, streams included


class Endpoint(ABC, Generic[Fields]):
    """A route that generates; a subclass knows one request and answer format."""

    fields: type[Fields]
    prompt_field: str

    def __init__(self, service: Service) -> None:
        self.service = service

    @abstractmethod
    async def prompt(self, fields: Fields) -> list[int]:
        """Return the prompt's token ids."""

    @abstractmethod
    def whole(self, fields: Fields, completion: Completion) -> bytes:
        """Return the answer as one JSON document."""

    @abstractmethod
    def chunks(
        self, fields: Fields, deltas: AsyncIterator[TextDelta]
    ) -> AsyncGenerator[bytes, None]:
        """Yield the answer as JSON documents, one for each delta that says something."""

    async def __call__(self, request: Request) -> Response:
        """Answer a request; never raises for what a client or a lost engine did."""
        try:
            fields = parse(await read_body(request), self.fields, self.service.metrics.ignored)
            self._check(fields)
            return await until_disconnect(request.receive, self._answer(fields))
        except ClientDisconnect:
            return Response(status_code=_CLIENT_LEFT)
        except Exception as error:
            return self._failure(error).response()

    def _failure(self, error: Exception) -> ApiError:
        failure = api_error(error, self.prompt_field)
        if failure is None:
            log.error("a request failed by our own fault", exc_info=error)
            failure = ApiError(500, "internal error; the server's log has the details")
        log.info("answered %d %s: %.300r", failure.status, failure.code, failure.message)
        self.service.metrics.failed(failure.status, failure.code)
        return failure

    def _check(self, fields: Fields) -> None:
        if self.service.is_draining:
            raise ApiError(503, "the server is shutting down; try another one", code="draining")
        if fields.model != self.service.model_name:
            raise ApiError(
                404,
                f"the model {fields.model[:100]!r} is not served here; "
                f"{self.service.model_name!r} is",
                param="model",
                code="model_not_found",
            )

    async def _answer(self, fields: Fields) -> Response:
        started = time.perf_counter()
        params, session, urgency = fields.sampling_params(), fields.session(), fields.urgency()
        ids = await self.prompt(fields)
        stream = self.service.llm.stream(ids, params, session, urgency)
        deltas = self._counted(self.service.metrics.observed(stream, started))
        if not fields.stream:
            async with contextlib.aclosing(deltas):
                completion = joined([delta async for delta in deltas])
            return Response(self.whole(fields, completion), media_type="application/json")
        # the status line waits for the first delta: until then a failure has a status of its own
        try:
            first = await anext(deltas)
        except BaseException:
            await deltas.aclose()
            raise
        return EventStream(self._guarded(fields, _chained(first, deltas)), deltas)

    async def _counted(
        self, deltas: AsyncGenerator[TextDelta, None]
    ) -> AsyncGenerator[TextDelta, None]:
        self.service.in_flight += 1
        try:
            async for delta in deltas:
                yield delta
        finally:
            await deltas.aclose()
            self.service.in_flight -= 1

    async def _guarded(
        self, fields: Fields, deltas: AsyncIterator[TextDelta]
    ) -> AsyncGenerator[bytes, None]:
        try:
            async for chunk in self.chunks(fields, deltas):
                yield chunk
        except Exception as error:
            yield self._failure(error).body()


async def _chained(
    first: TextDelta, rest: AsyncIterator[TextDelta]
) -> AsyncGenerator[TextDelta, None]:
    yield first
    async for delta in rest:
        yield delta
