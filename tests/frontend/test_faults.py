# SPDX-License-Identifier: MIT
"""Attacks beside streams of others, which must be what they are on a quiet server.

The rows are those of the table in README.md beside this file.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.frontend.conftest import HttpServer, listening
from tests.frontend.scripted_scheduler import ScriptedScheduler
from tests.frontend.test_http_bad_input import (
    BAD_COMPLETION_FIELDS,
    BAD_FIELDS,
    CHAT,
    COMPLETION,
    numeric_fields,
)
from tests.frontend.victims import undisturbed
from tokenspeed_core.async_llm import TextCodec
from tokenspeed_core.ipc.messages import RefusalCode
from tokenspeed_core.keyring import Keyring
from tokenspeed_core.listener import raise_file_limit
from tokenspeed_core.server.access import Access
from tokenspeed_core.server.metrics import Metrics
from tokenspeed_core.server.request_body import ChatFields, CompletionFields
from tokenspeed_core.stage_clock import StageClock


@pytest.fixture
async def client(http: HttpServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=http.url, timeout=30) as client:
        yield client


async def beside(http: HttpServer, attack: Callable[[], Awaitable[None]]) -> None:
    async with undisturbed(http):
        await attack()


def body(length: int) -> bytes:
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n"
    return head.encode() + b'{"model": "smollm2", "prompt": "'


async def test_a_thousand_half_bodies(
    http: HttpServer, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:  # 13
    monkeypatch.setattr("tokenspeed_core.server.request_body.BODY_TIMEOUT_S", 2.0)
    host, port = http.url.removeprefix("http://").split(":")

    async def attack() -> None:
        stalled = []
        raise_file_limit()  # client and server share this process
        for _ in range(1000):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(body(1000))
            stalled.append((reader, writer))
        started = time.monotonic()
        asked = {"model": "smollm2", "prompt": "x", "max_tokens": 2}
        answer = await client.post("/v1/completions", json=asked)
        assert answer.status_code == 200
        assert time.monotonic() - started < 20
        for reader, writer in stalled:
            assert b" 408 " in await reader.readline()
            writer.close()

    await beside(http, attack)


async def test_bodies_that_no_parser_likes(
    http: HttpServer, client: httpx.AsyncClient
) -> None:  # 5
    bodies = [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"messages": [' + b'{"content":' * 50_000,
        b'{"model": "\xff\xfe"}',
        b'{"model": "\\ud800"}',
        b'{"model": "smollm2", "prompt": "\\ud800", "max_tokens": 1}',
        b"\x00" * 1000,
        b'{"model": "smollm2", "prompt": "x", "prompt": 5}',
        b"\xef\xbb\xbf{}",
        b"1e999",
    ]

    async def attack() -> None:
        for each in bodies:
            for path in ("/v1/completions", "/v1/chat/completions", "/v1/messages", "/tokenize"):
                answer = await client.post(path, content=each)
                assert answer.status_code == 400, (path, each[:40], answer.text)
                assert answer.json()["error"]["message"]

    await beside(http, attack)


async def test_clocks_that_jump(http: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:  # 49
    real = time.time

    async def attack() -> None:
        for hours in (1, -1, 10_000):
            monkeypatch.setattr(time, "time", lambda hours=hours: real() + 3600 * hours)
            await asyncio.sleep(0.3)
            async with httpx.AsyncClient(base_url=http.url) as client:
                assert (await client.get("/health")).status_code == 200
                answer = await client.post(
                    "/v1/completions", json={"model": "smollm2", "prompt": "x", "max_tokens": 2}
                )
                assert answer.json()["usage"]["completion_tokens"] == 2

    await beside(http, attack)


async def test_three_times_what_the_engine_takes(http: HttpServer) -> None:  # 50, in short
    client = http.client()

    async def one() -> str:
        try:
            answer = await client.completions.create(model="smollm2", prompt="x", max_tokens=2)
            return answer.choices[0].finish_reason
        except openai.RateLimitError as error:
            return "429, again in " + error.response.headers["retry-after"]

    http.scheduler.is_rejected = lambda submit: len(submit.prompt) <= 4  # one token

    async def attack() -> None:
        for round in range(6):
            http.scheduler.reject = RefusalCode.QUEUE_FULL if round % 3 else None
            answers = await asyncio.gather(*(one() for _ in range(40)))
            assert set(answers) == ({"429, again in 1"} if round % 3 else {"length"})
        http.scheduler.reject = None

    await beside(http, attack)


NAMES = ['a"b', "a\nb", "a\\b", "a}b 1", "é世🎉", "x" * 5000, '"} 1\nfake_metric 1\n#']


@pytest.mark.parametrize("name", NAMES, ids=lambda each: ascii(each)[:20])
def test_a_model_of_any_name_is_one_label(name: str) -> None:  # 57
    metrics = Metrics(name, lambda: None, StageClock())
    metrics.failed(400, 'bad"} 1\n')
    for number in range(10_000):
        metrics.failed(400, f"code-{number}")
        metrics.ignored(f"field-{number}")
    page = metrics.page().decode()
    families = list(text_string_to_metric_families(page))
    models = {
        s.labels["model_name"] for f in families for s in f.samples if "model_name" in s.labels
    }
    assert models == {name}
    assert not any(family.name.startswith("fake") for family in families)
    assert len(page) < 2_000_000 + 200 * len(name) * len(page.splitlines())
    assert len(page.splitlines()) < 5000


async def test_sessions_of_any_name_reach_the_engine_whole(
    http: HttpServer, client: httpx.AsyncClient
) -> None:  # 58
    async def attack() -> None:
        for name in ('a"b', "\u0000", "a/b", "..", "é" * 512):
            asked = {"model": "smollm2", "prompt": "x", "max_tokens": 1, "session_id": name}
            assert (await client.post("/v1/completions", json=asked)).status_code == 200
            assert http.scheduler.submits[-1].session == name
        for _ in range(3):  # closing twice, or what never was, is no error
            assert (await client.delete("/v1/sessions/never")).json()["deleted"] is True
        page = (await client.get("/metrics")).text
        assert "é" not in page
        assert "a/b" not in page

    await beside(http, attack)


async def test_fields_out_of_range(
    http: HttpServer, client: httpx.AsyncClient
) -> None:  # 1, 2, 3, 6
    bad = [("/v1/chat/completions", {**CHAT, field: value}) for field, value in BAD_FIELDS]
    bad += [("/v1/completions", {**COMPLETION, f: value}) for f, value in BAD_COMPLETION_FIELDS]
    for path, good, kind in (
        ("/v1/chat/completions", CHAT, ChatFields),
        ("/v1/completions", COMPLETION, CompletionFields),
    ):
        bad += [(path, {**good, field: "1"}) for field in numeric_fields(kind)]
        bad += [(path, {**good, "max_tokens": value}) for value in (0, -1, 2**31, 2**64)]
    for length in (0, 8192, 100_000):
        bad.append(("/v1/completions", {**COMPLETION, "prompt": [7] * length}))

    async def attack() -> None:
        for path, body in bad:
            assert (await client.post(path, json=body)).status_code == 400

    await beside(http, attack)


async def test_aborts_of_all_and_of_others(
    scheduler: ScriptedScheduler, codec: TextCodec
) -> None:  # 15, 16
    ring = Keyring.of(("alice", "alice-key-1"), ("bob", "bob-key-00"))
    async with (
        listening(scheduler, codec, Access(lambda: ring)) as http,
        httpx.AsyncClient(base_url=http.url, headers={"x-api-key": "bob-key-00"}) as bob,
        undisturbed(http, "alice-key-1"),
    ):
        asked = {"model": "smollm2", "prompt": "x", "max_tokens": 8000, "ignore_eos": True}
        for number in range(5):
            mine = [
                asyncio.create_task(bob.post("/v1/completions", json={**asked, "rid": "same"}))
                for _ in range(3)
            ]
            ended = 0
            while not ended:  # once one of them is under way
                ended = (await bob.post("/abort", json={"abort_all": True})).json()["aborted"]
            while not all(each.done() for each in mine):
                await bob.post("/abort", json={"request_ids": ["same", f"unknown-{number}"]})
            assert {each.result().status_code for each in mine} <= {200, 409}


async def test_odd_names_for_everything(
    http: HttpServer, client: httpx.AsyncClient
) -> None:  # 57, 58
    async def attack() -> None:
        for number in range(30):
            name = f"{NAMES[number % len(NAMES)][:50]}{number}"
            asked = {"prompt": "x", "max_tokens": 1, "session_id": name, name: number}
            answers = await asyncio.gather(
                client.post("/v1/completions", json={"model": name, **asked}),
                client.post("/v1/completions", json={"model": "smollm2", **asked}),
                client.get("/v1/models/x", headers={"x-request-id": f"r{number}"}),
                client.get(f"/nothing/{number}"),
            )
            assert [answer.status_code for answer in answers] == [404, 200, 404, 404]
        page = (await client.get("/metrics")).text
        assert len(page.splitlines()) < 5000
        assert NAMES[0] not in page

    await beside(http, attack)


async def test_responses_stored_and_deleted(
    http: HttpServer, client: httpx.AsyncClient
) -> None:  # 59
    async def attack() -> None:
        http.service.responses.max_items = 10
        body = {"model": "smollm2", "input": "x", "max_output_tokens": 1}
        kept = []
        for _ in range(4):
            answers = await asyncio.gather(
                *(client.post("/v1/responses", json=body) for _ in range(10))
            )
            kept += [answer.json()["id"] for answer in answers]
            assert len(http.service.responses) == 10
        gone = await asyncio.gather(*(client.delete(f"/v1/responses/{id}") for id in kept))
        assert sorted(answer.status_code for answer in gone) == [200] * 10 + [404] * 30
        assert len(http.service.responses) == http.service.responses.num_bytes == 0

    await beside(http, attack)
