# SPDX-License-Identifier: MIT
"""`POST /v1/embeddings`."""

import asyncio
import base64
import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, TypeGuard

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ..completion import Usage as Spent
from ..embedding import Vector, vector_of
from ..session import Session
from ..urgency import Urgency
from .answer import Usage
from .caller import Caller
from .endpoint import Route
from .event_stream import until_disconnect
from .failure import ApiError, api_error
from .request_body import parse, read_body
from .request_record import Arrival

MAX_INPUTS = 2048
AT_ONCE = 64  # of one request; more wait here, not in the engine's queue


class EmbeddingFields(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `POST /v1/embeddings`."""

    model: str
    input: str | list[Any]  # a text, token ids, or a list of either
    encoding_format: str = "float"
    dimensions: int | None = None
    session_id: str = ""
    cache_salt: str = ""
    priority: int = 0
    deadline_ms: int = 0
    request_id: str = ""  # for /abort
    rid: str = ""  # the same

    def inputs(self) -> list[str | list[int]]:
        """Return the texts and lists of token ids to embed.

        Raises:
            ApiError: there are none or too many, or one is of another type.
        """
        given = [self.input] if isinstance(self.input, str) or _are_ids(self.input) else self.input
        if not 1 <= len(given) <= MAX_INPUTS:
            raise ApiError(
                400,
                f"input has {len(given)} items; give 1 to {MAX_INPUTS}",
                param="input",
                code="invalid_parameter",
            )
        for index, each in enumerate(given):
            if not isinstance(each, str) and not _are_ids(each):
                raise ApiError(
                    400,
                    f"input[{index}] is neither a string nor a list of token ids",
                    param="input",
                    code="invalid_type",
                )
        return given


_EMBEDDING = {"oneOf": [{"type": "array", "items": {"type": "number"}}, {"type": "string"}]}


class EmbeddingItem(msgspec.Struct, frozen=True):
    """The embedding of one input: its values, or their bytes in base64, float32 little-endian."""

    index: int
    embedding: Annotated[msgspec.Raw, msgspec.Meta(extra_json_schema=_EMBEDDING)]
    object: str = "embedding"


class EmbeddingAnswer(msgspec.Struct, frozen=True):
    """The answer of `POST /v1/embeddings`."""

    data: list[EmbeddingItem]
    model: str
    usage: Usage
    object: str = "list"


class Embeddings(Route):
    """Embeddings of texts or of token ids, for models that are embedders."""

    fields = EmbeddingFields
    prompt_field = "input"

    async def respond(self, request: Request, arrival: Arrival) -> Response:
        """Answer a request for as long as the client is there."""
        fields = parse(await read_body(request), EmbeddingFields, self.service.metrics.ignored)
        self.check(fields.model)
        self.service.llm.embedder().check(fields.dimensions)
        if fields.encoding_format not in _WRITTEN:
            raise ApiError(
                400,
                f"encoding_format is {fields.encoding_format[:60]!r}; give float or base64",
                param="encoding_format",
                code="invalid_parameter",
            )
        answer = self._answer(fields, arrival, Caller.of(request))
        return await until_disconnect(request.receive, answer)

    async def _answer(self, fields: EmbeddingFields, arrival: Arrival, caller: Caller) -> Response:
        session = caller.owned(Session(fields.session_id, fields.cache_salt))
        urgency = Urgency(fields.priority, fields.deadline_ms)
        arrival.session = session.name
        llm, written = self.service.llm, _WRITTEN[fields.encoding_format]
        pooling = llm.embedder()
        prompts = []
        for index, each in enumerate(fields.inputs()):
            with _named(index):
                prompts.append(await llm.embedding_prompt(each))
            await asyncio.sleep(0)  # tokenised in between other work
        entry = self.service.requests.begin(caller, fields.request_id or fields.rid)
        turns = asyncio.Semaphore(AT_ONCE)
        items: dict[int, EmbeddingItem] = {}
        spent: dict[int, Spent] = {}

        async def embed(index: int) -> None:
            async with turns:
                deltas = llm.embedded(prompts[index], session, urgency, entry.add)
                seen = self.service.observer.observed(deltas, arrival, index, prompts[index])
                with _named(index):
                    (delta,) = [delta async for delta in seen]
            if not delta.hidden:
                raise ApiError(409, "the request was aborted", code="aborted")
            spent[index] = delta.usage
            vector = vector_of(delta.hidden, pooling, fields.dimensions)
            items[index] = EmbeddingItem(index, msgspec.Raw(written(vector)))

        self.service.in_flight += 1
        try:
            async with asyncio.TaskGroup() as group:
                for index in range(len(prompts)):
                    group.create_task(embed(index))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        finally:
            self.service.in_flight -= 1
            self.service.requests.end(entry)
        data = [items[index] for index in range(len(prompts))]
        usage = Usage.of([spent[index] for index in range(len(prompts))])
        answer = EmbeddingAnswer(data, self.service.model_name, usage)
        return Response(msgspec.json.encode(answer), media_type="application/json")


@contextlib.contextmanager
def _named(index: int) -> Iterator[None]:
    """Tell which input it was that failed."""
    try:
        yield
    except Exception as error:
        failure = api_error(error, "input")
        if failure is None:
            raise
        told = f"input[{index}]: {failure.message}"
        raise ApiError(failure.status, told, param=failure.param, code=failure.code) from error


def _are_ids(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and bool(value) and all(type(id) is int for id in value)


def _as_floats(vector: Vector) -> bytes:
    return msgspec.json.encode(vector.tolist())


def _as_base64(vector: Vector) -> bytes:
    return b'"%s"' % base64.b64encode(vector.astype("<f4").tobytes())


_WRITTEN: Mapping[str, Callable[[Vector], bytes]] = {"float": _as_floats, "base64": _as_base64}
