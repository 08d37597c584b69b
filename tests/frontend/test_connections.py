# SPDX-License-Identifier: MIT
"""More connections than a process holds: a clear answer, and probes that are heard."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from tests.frontend.conftest import served
from tests.frontend.scripted_scheduler import ScriptedScheduler
from tests.frontend.test_http import eventually
from tokenspeed_core.async_llm import TextCodec
from tokenspeed_core.server.connection import NUM_SPARE, ConnectionLimit

MOST = 8
ASKED = {"model": "smollm2", "prompt": "x", "max_tokens": 2}


@pytest.fixture
async def limited(
    scheduler: ScriptedScheduler, codec: TextCodec
) -> AsyncIterator[tuple[str, ConnectionLimit]]:
    limit = ConnectionLimit(MOST)
    async with served(scheduler.run.path, codec, limit=limit) as (url, _):
        yield url, limit


async def test_connections_beyond_the_limit_are_told_so(
    limited: tuple[str, ConnectionLimit],
) -> None:
    url, limit = limited
    host, port = url.removeprefix("http://").split(":")
    async with httpx.AsyncClient(base_url=url, timeout=30) as kept:
        answer = await kept.post("/v1/completions", json=ASKED)
        idle = [await asyncio.open_connection(host, int(port)) for _ in range(MOST - 1)]
        async with httpx.AsyncClient(base_url=url, timeout=30) as late:
            refused = await late.post("/v1/completions", json=ASKED)
            assert refused.status_code == 503
            assert refused.headers["retry-after"] == "1"
            assert refused.headers["connection"] == "close"
            assert refused.json()["error"]["code"] == "too_many_connections"
            assert str(MOST) in refused.json()["error"]["message"]
            for probe in ("/health", "/ready"):
                assert (await late.get(probe)).status_code == 200
        again = await kept.post("/v1/completions", json=ASKED)  # those inside notice nothing
        assert again.status_code == 200
        assert again.json()["choices"] == answer.json()["choices"]
        assert limit.turned_away == 1
        spare = [await asyncio.open_connection(host, int(port)) for _ in range(NUM_SPARE)]
        reader, writer = await asyncio.open_connection(host, int(port))
        raw = await reader.read()  # without having asked
        assert raw.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1\r\n" in raw
        assert b"too_many_connections" in raw.partition(b"\r\n\r\n")[2]
        for _, each in (*idle, *spare, (reader, writer)):
            each.close()
        async with httpx.AsyncClient(base_url=url, timeout=30) as late:

            async def is_served() -> bool:
                return (await late.post("/v1/completions", json=ASKED)).status_code == 200

            async with asyncio.timeout(30):
                while not await is_served():
                    await asyncio.sleep(0.01)
    await eventually(lambda: limit.turned_away >= 2)
