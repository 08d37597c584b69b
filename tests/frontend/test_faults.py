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

from tests.frontend.conftest import HttpServer
from tests.frontend.test_http import eventually
from tokenspeed_core.ipc.messages import RefusalCode
from tokenspeed_core.server.metrics import Metrics
from tokenspeed_core.stage_clock import StageClock

NUM_VICTIMS = 4
BOUND_S = 60.0


@pytest.fixture
async def client(http: HttpServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=http.url, timeout=30) as client:
        yield client


async def victim(http: HttpServer, number: int) -> str:
    stream = await http.client().completions.create(
        model="smollm2",
        prompt=f"Victim {number} counts one two three four",
        max_tokens=60,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    return "".join([chunk.choices[0].text async for chunk in stream])


async def beside(http: HttpServer, attack: Callable[[], Awaitable[None]]) -> None:
    """Attack while victims stream: they read what they read without it, and nothing is left."""
    quiet = [await victim(http, number) for number in range(NUM_VICTIMS)]
    http.scheduler.step_s = 0.01
    async with asyncio.timeout(BOUND_S):
        streams = [asyncio.create_task(victim(http, number)) for number in range(NUM_VICTIMS)]
        await eventually(lambda: len(http.scheduler.submits) >= 2 * NUM_VICTIMS)
        await attack()
        assert await asyncio.gather(*streams) == quiet
    await eventually(lambda: not http.scheduler.running and http.service.in_flight == 0)
    assert len(http.service.requests) == 0
    assert http.service.llm.client.in_flight == 0


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
        for _ in range(400):  # client and server share this process and its file limit
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
