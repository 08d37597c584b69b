# SPDX-License-Identifier: MIT
"""Streams of others beside an attack, which must be what they are on a quiet server."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from tests.frontend.conftest import HttpServer
from tests.frontend.test_http import eventually

NUM_VICTIMS = 4
BOUND_S = 60.0


async def victim(http: HttpServer, number: int, key: str, begun: asyncio.Event) -> str:
    """Read a stream to its end, and return its text."""
    stream = await http.client(key).completions.create(
        model="smollm2",
        prompt=f"Victim {number} counts one two three four",
        max_tokens=60,
        seed=number,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    text = ""
    async for chunk in stream:
        text += chunk.choices[0].text
        begun.set()
    return text


@contextlib.asynccontextmanager
async def undisturbed(http: HttpServer, key: str = "none") -> AsyncIterator[None]:
    """Victims stream, again and again, for as long as what is inside attacks.

    They read what they read before it, within a bound of time, and nothing is left behind.
    """
    quiet = [await victim(http, number, key, asyncio.Event()) for number in range(NUM_VICTIMS)]
    http.scheduler.step_s = max(http.scheduler.step_s, 0.01)
    begun = [asyncio.Event() for _ in quiet]
    is_over = asyncio.Event()

    async def repeated(number: int) -> set[str]:
        texts = {await victim(http, number, key, begun[number])}
        while not is_over.is_set():
            texts.add(await victim(http, number, key, begun[number]))
        return texts

    async with asyncio.timeout(BOUND_S):
        streams = [asyncio.create_task(repeated(number)) for number in range(NUM_VICTIMS)]
        await asyncio.gather(*(each.wait() for each in begun))
        yield
        is_over.set()
        assert await asyncio.gather(*streams) == [{text} for text in quiet]
    await eventually(lambda: not http.scheduler.running and http.service.in_flight == 0)
    assert len(http.service.requests) == 0
    assert http.service.llm.client.in_flight == 0


@pytest.fixture
async def victims(http: HttpServer) -> AsyncIterator[None]:
    """Victims stream beside the whole test."""
    async with undisturbed(http):
        yield
