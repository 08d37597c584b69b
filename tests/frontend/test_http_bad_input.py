# SPDX-License-Identifier: MIT
"""Requests that must be refused, each with the status and the field that a client can act on."""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator

import httpx
import msgspec
import openai
import pytest
from starlette.routing import Route

from tests.frontend.conftest import HttpServer, listening
from tests.frontend.scripted_scheduler import ScriptedScheduler
from tests.frontend.victims import undisturbed, victims
from tokenspeed_core.async_llm import TextCodec
from tokenspeed_core.ipc.messages import RefusalCode
from tokenspeed_core.keyring import Keyring
from tokenspeed_core.server import connection
from tokenspeed_core.server.access import OPEN_PATHS, Access
from tokenspeed_core.server.app import routes
from tokenspeed_core.server.gate import MAX_BODY_BYTES
from tokenspeed_core.server.request_body import (
    HARMLESS,
    NEUTRAL,
    ChatFields,
    CompletionFields,
)

__all__ = ["victims"]

CHAT = {"model": "smollm2", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
COMPLETION = {"model": "smollm2", "prompt": "Hi", "max_tokens": 2}


@pytest.fixture
async def client(http: HttpServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=http.url, timeout=20) as client:
        yield client


async def post(client: httpx.AsyncClient, body: object, path: str = "/v1/chat/completions") -> dict:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = await client.post(path, content=content)
    return {"status": answer.status_code, "headers": answer.headers, **answer.json()}


def assert_refused(answer: dict, param: str | None, status: int = 400) -> None:
    assert answer["status"] == status, answer
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert answer["error"]["param"] == param, answer
    if param is not None:
        assert param in answer["error"]["message"]


def numeric_fields(kind: type[msgspec.Struct]) -> list[str]:
    numbers = {int, float, int | None, float | None}
    return [field.name for field in msgspec.structs.fields(kind) if field.type in numbers]


@pytest.mark.parametrize("value", ["1", [1], {}, 2**80, -(2**80), True])
async def test_every_numeric_field_refuses_every_bad_value(
    client: httpx.AsyncClient, value: object
) -> None:
    for kind, good, path in (
        (ChatFields, CHAT, "/v1/chat/completions"),
        (CompletionFields, COMPLETION, "/v1/completions"),
    ):
        for field in numeric_fields(kind):
            if (field, value) == ("retain_ms", 2**80):
                continue  # as long as can be
            answer = await post(client, {**good, field: value}, path)
            assert answer["status"] == 400, (field, answer)
            assert answer["error"]["param"] in (field, "max_tokens"), answer


BAD_FIELDS = [
    ("temperature", -0.5),
    ("temperature", 2.5),
    ("top_p", 0),
    ("top_p", 1.5),
    ("top_k", -2),
    ("top_k", 1.5),
    ("max_tokens", 0),
    ("max_tokens", -1),
    ("max_tokens", 2**31),
    ("stop", ["x"] * 10_000),
    ("stop", "x" * 2**20),
    ("stop", ""),
    ("stop", [""]),
    ("stop", 5),
    ("stop_token_ids", [49152]),
    ("stop_token_ids", [-1]),
    ("stop_token_ids", "x"),
    ("stream", "yes"),
    ("stream_options", {"include_usage": 5}),
    ("ignore_eos", 1),
    ("logprobs", 5),
    ("top_logprobs", 5),
    ("messages", []),
    ("messages", "hi"),
    ("messages", [5]),
    ("messages", [{"role": "user"}]),
    ("messages", [{"role": "user", "content": [{"type": "image_url"}]}]),
    ("n", 0),
    ("n", 2**31),
    ("n", True),
    ("tools", [{"type": "function", "function": {"name": "f"}}]),
    ("tool_choice", "required"),
    ("response_format", {"type": "xml"}),
    ("prompt_logprobs", 21),
    ("prompt_logprobs", -1),
    ("thinking_budget", 5),
    ("reasoning_effort", "low"),
    ("reasoning_effort", "huge"),
    ("logit_bias", {"x": 1}),
    ("logit_bias", {"49152": 1}),
    ("logit_bias", {"5": 101}),
    ("logit_bias", {str(id): 1 for id in range(1025)}),
    ("presence_penalty", 2.1),
    ("frequency_penalty", "x"),
    ("repetition_penalty", 0),
    ("min_p", 2),
    ("min_tokens", -1),
    ("min_tokens", 10**6),
    ("bad_words", [""]),
    ("bad_words", ["x"] * 129),
    ("cache_salt", "x" * 1000),
    ("session_id", "x" * 1000),
    ("kv_hints", {"message_id": "no version"}),
    ("retain_ms", "long"),
    ("retain_ms", -1),
    ("store", True),
    ("priority", 101),
    ("priority", "high"),
    ("deadline_ms", -1),
]


@pytest.mark.parametrize(("field", "value"), BAD_FIELDS)
async def test_a_bad_field_is_named(client: httpx.AsyncClient, field: str, value: object) -> None:
    assert_refused(await post(client, {**CHAT, field: value}), field)


BAD_COMPLETION_FIELDS = [
    ("prompt", ""),
    ("prompt", []),
    ("prompt", [49152]),
    ("prompt", [-1]),
    ("prompt", [2**40]),
    ("prompt", [1.5]),
    ("prompt", [True]),
    ("prompt", ["a", ""]),
    ("prompt", [[1], [True]]),
    ("prompt", [None]),
    ("n", 129),
    ("prompt", 5),
    ("prompt", [7] * 8192),
    ("echo", 1),
    ("logprobs", 21),
    ("logprobs", -1),
    ("prompt_logprobs", 21),
    ("logprobs", True),
    ("suffix", "x"),
    ("best_of", 2),
]


@pytest.mark.parametrize(("field", "value"), BAD_COMPLETION_FIELDS)
async def test_a_bad_completion_field_is_named(
    client: httpx.AsyncClient, field: str, value: object
) -> None:
    assert_refused(await post(client, {**COMPLETION, field: value}, "/v1/completions"), field)


@pytest.mark.parametrize("missing", ["model", "messages"])
async def test_a_missing_field_is_named(client: httpx.AsyncClient, missing: str) -> None:
    body = {name: value for name, value in CHAT.items() if name != missing}
    assert_refused(await post(client, body), missing)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"5",
        b'{"model": NaN}',
        b'{"temperature": 1e999}',
        b'{"temperature": Infinity}',
        b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a": ' + b'{"b":' * 100_000,
        b'{"model": "\xff\xfe"}',
        b'{"model": "\\ud800"}',
        b"\x00" * 100,
        b"\x1f\x8b\x08\x00",
    ],
)
async def test_a_body_that_is_no_request_is_refused(client: httpx.AsyncClient, body: bytes) -> None:
    answer = await post(client, body)
    assert_refused(answer, None)


async def test_odd_but_legal_json_is_served(client: httpx.AsyncClient) -> None:
    body = json.dumps(CHAT).encode()
    duplicate = body[:-1] + b', "max_tokens": 1}'
    assert (await post(client, duplicate))["usage"]["completion_tokens"] == 1
    nul = {**CHAT, "messages": [{"role": "user", "content": "a\x00b \ufffe"}]}
    assert (await post(client, nul))["status"] == 200


async def test_neutral_values_and_harmless_fields_are_accepted_and_counted(
    http: HttpServer, client: httpx.AsyncClient
) -> None:
    neutral = {name: values[0] for name, values in NEUTRAL.items() if values}
    harmless = dict.fromkeys(HARMLESS, "x")
    nulls = dict.fromkeys([*ChatFields.__struct_fields__, *NEUTRAL])
    body = {**nulls, **neutral, **harmless, **CHAT, "max_tokens": None, "who_knows": {"a": 1}}
    answer = await post(client, {**body, "max_completion_tokens": 2})
    assert answer["status"] == 200, answer
    assert answer["usage"]["completion_tokens"] == 2
    page = (await client.get("/metrics")).text
    for field in [*HARMLESS, "other"]:
        count = f'ignored_request_fields_total{{field="{field}",model_name="smollm2"}} 1.0'
        assert count in page
    assert "who_knows" not in page


def test_no_field_is_in_two_lists() -> None:
    known = {*ChatFields.__struct_fields__, *CompletionFields.__struct_fields__}
    assert not set(NEUTRAL) & HARMLESS
    assert set(NEUTRAL) & known == set()
    assert not HARMLESS & known


async def test_prompts_at_the_edge_of_the_context(
    http: HttpServer, client: httpx.AsyncClient
) -> None:
    for length, status in ((8190, 200), (8191, 200), (8192, 400)):
        body = {**COMPLETION, "prompt": [7] * length, "max_tokens": 5}
        answer = await post(client, body, "/v1/completions")
        assert answer["status"] == status
    assert [submit.max_tokens for submit in http.scheduler.submits] == [2, 1]
    assert answer["error"]["code"] == "context_length_exceeded"
    body = {"model": "smollm2", "prompt": [7] * 8000}
    assert (await post(client, body, "/v1/completions"))["usage"]["completion_tokens"] == 192


async def test_without_a_limit_a_request_asks_for_no_more_than_the_cache_holds(
    scheduler: ScriptedScheduler, codec: TextCodec
) -> None:
    scheduler.num_blocks = 11  # one is scratch, so 160 tokens
    async with (
        listening(scheduler, codec) as http,
        httpx.AsyncClient(base_url=http.url) as client,
    ):
        body = {"model": "smollm2", "prompt": [7] * 100}
        assert (await post(client, body, "/v1/completions"))["usage"]["completion_tokens"] == 60
        await post(client, {**body, "max_tokens": 100}, "/v1/completions")
    assert [submit.max_tokens for submit in scheduler.submits] == [60, 100]


async def test_wrong_model_route_and_method(client: httpx.AsyncClient) -> None:
    assert_refused(await post(client, {**CHAT, "model": "gpt-5"}), "model", 404)
    assert_refused(await post(client, CHAT, "/v1/nothing"), None, 404)
    answer = await client.get("/v1/chat/completions")
    assert (answer.status_code, answer.json()["error"]["type"]) == (405, "invalid_request_error")
    assert (await client.get("/v1/models/gpt-5")).status_code == 404
    assert (await client.get("/v1/models/smollm2")).json()["id"] == "smollm2"


@pytest.mark.usefixtures("victims")
async def test_too_large_bodies_are_refused_before_they_are_held(
    client: httpx.AsyncClient,
) -> None:
    answer = await client.post("/v1/completions", content=b" " * (MAX_BODY_BYTES + 1))
    assert answer.status_code == 413

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(MAX_BODY_BYTES // 2**20 + 1):
            yield b" " * 2**20

    answer = await client.post("/v1/completions", content=endless())
    assert answer.status_code == 413
    answer = await client.post("/v1/completions", content=b"", headers={"content-encoding": "gzip"})
    assert answer.status_code == 400
    many = {f"x-{number}": "y" for number in range(10_000)}
    answer = await client.get("/v1/models", headers=many)
    assert answer.status_code == 431
    answer = await client.get("/v1/models", headers={"x": "y" * 70_000})
    assert answer.status_code in (400, 431)
    assert (await post(client, CHAT))["status"] == 200


@pytest.mark.parametrize(
    ("code", "status", "retry"),
    [
        (RefusalCode.QUEUE_FULL, 429, True),
        (RefusalCode.DRAINING, 503, True),
        (RefusalCode.NEVER_FITS, 400, False),
        (RefusalCode.TOO_LONG, 400, False),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_the_schedulers_refusals_have_their_own_status(
    http: HttpServer,
    client: httpx.AsyncClient,
    code: RefusalCode,
    status: int,
    retry: bool,
    stream: bool,
) -> None:
    http.scheduler.reject = code
    answer = await post(client, {**CHAT, "stream": stream})
    assert answer["status"] == status
    assert ("retry-after" in answer["headers"]) == retry
    assert http.service.in_flight == 0


@pytest.mark.usefixtures("victims")
async def test_a_stalled_half_body_holds_up_nobody(
    http: HttpServer, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenspeed_core.server.request_body.BODY_TIMEOUT_S", 0.5)
    host, port = http.url.removeprefix("http://").split(":")
    stalled = [await asyncio.open_connection(host, int(port)) for _ in range(100)]
    for _, writer in stalled:
        writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{")
        await writer.drain()
    assert (await post(client, CHAT))["status"] == 200
    for reader, writer in stalled:
        assert b" 408 " in await reader.readline()
        writer.close()
    assert (await post(client, CHAT))["status"] == 200


@pytest.mark.parametrize("start", [b"", b"GET /health HT", b"GET /health HTTP/1.1\r\nhost: x\r\na"])
async def test_a_head_that_never_ends_is_closed(
    http: HttpServer, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, start: bytes
) -> None:
    monkeypatch.setattr(connection, "HEAD_TIMEOUT_S", 0.5)
    host, port = http.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(start)
    assert await asyncio.wait_for(reader.read(), 10) == b""
    writer.close()
    assert (await post(client, CHAT))["status"] == 200


@pytest.mark.usefixtures("victims")
async def test_a_head_without_end_is_closed_before_it_is_held(http: HttpServer) -> None:
    host, port = http.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /health HTTP/1.1\r\nx: ")
    with contextlib.suppress(ConnectionError):
        for _ in range(64):
            writer.write(b"y" * 2**20)
            await writer.drain()
        assert await asyncio.wait_for(reader.read(), 10) == b""
    assert reader.at_eof() or reader.exception() is not None
    writer.close()


async def test_a_connection_serves_many_requests_after_its_head_bound(
    http: HttpServer, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEAD_TIMEOUT_S", 0.3)
    http.scheduler.step_s = 0.1
    for _ in range(2):  # each answer takes longer than a head may
        answer = await post(client, {**CHAT, "max_tokens": 6})
        assert answer["usage"]["completion_tokens"] == 6


async def test_every_route_but_the_probes_wants_the_key(
    scheduler: ScriptedScheduler, codec: TextCodec
) -> None:
    async with (
        listening(scheduler, codec, Access(lambda: Keyring.of(("me", "s3cret")))) as http,
        httpx.AsyncClient(base_url=http.url) as client,
        undisturbed(http, "s3cret"),
    ):
        everywhere = [route for route in routes(http.service) if isinstance(route, Route)]
        assert len(everywhere) >= 17
        paths = [re.sub("{.*}", "x", route.path) for route in everywhere]
        tricks = ["//health", "/health/", "/./health", "/%2e/health", "/HEALTH", "/health%00"]
        tricks += ["/nothing", "/health/../v1/models", "/ready;x", "/docs", "/openapi.json"]
        keys = [
            None,
            "Bearer",
            "s3cret",
            "Bearer s3cre",
            "Bearer s3cret2",
            "Bearer S3CRET",
            "Bearer é",
        ]
        for path in [*paths, *tricks]:
            for method in ("GET", "POST", "OPTIONS"):
                for key in keys:
                    headers = {} if key is None else {"authorization": key.encode()}
                    answer = await client.request(method, path, headers=headers)
                    # httpx itself folds dot segments, so some tricks are the probe itself
                    is_open = httpx.URL(http.url + path).path in OPEN_PATHS
                    assert (answer.status_code != 401) == is_open, (method, path, key)
        right = {"authorization": "Bearer s3cret"}
        assert (await client.get("/v1/models", headers=right)).status_code == 200
        host, port = http.url.removeprefix("http://").split(":")
        for target in ("/health/../v1/models", f"{http.url}/v1/models", "/%2e%2e/v1/models", "*"):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(f"GET {target} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
            status = (await reader.readline()).split()[1]
            assert status in (b"401", b"400"), target
            writer.close()
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            b"GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
            b"sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        assert (await reader.readline()).split()[1] != b"200"
        writer.close()


async def test_embeddings_are_refused_by_the_models_name(http: HttpServer) -> None:
    with pytest.raises(openai.BadRequestError, match="'smollm2' generates text") as caught:
        await http.client().embeddings.create(model="smollm2", input=["Hi"])
    assert (caught.value.param, caught.value.code) == ("model", "model_has_no_embeddings")
    with pytest.raises(openai.NotFoundError, match="'other' is not served"):
        await http.client().embeddings.create(model="other", input="Hi")
    assert not http.scheduler.submits
