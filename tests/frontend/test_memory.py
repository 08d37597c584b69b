# SPDX-License-Identifier: MIT
"""The API process and the scheduler keep their memory under clients that come, go and break off."""

import asyncio
import os
import random
import statistics
import subprocess
import time
from collections import Counter

import httpx
import pytest

from tests.bench.bench_host import TOKEN, engine, text
from tokenspeed_core.prefix_texts import MAX_BYTES

CLIENTS = 8
PAUSE_S = 0.1  # of a client between requests, on average
SAMPLE_S = 5.0
# Of 75 kB of text and 90 kB of ids each: more than an API process keeps.
PROMPTS = MAX_BYTES // 150_000
SLACK_KB = 8 * 1024
SLACK = 0.02


def resident_kb() -> dict[str, int]:
    """Memory of the processes under this one, by what they are."""
    listed = subprocess.run(
        ["ps", "--no-headers", "-o", "rss=,args=", "--ppid", str(os.getpid())],
        capture_output=True,
        text=True,
        check=True,
    )
    kinds = {"tokenspeed_core.server": "api", "tokenspeed-scheduler": "scheduler"}
    found: dict[str, int] = {}
    for line in listed.stdout.splitlines():
        size, command = line.split(maxsplit=1)
        for part, kind in kinds.items():
            if part in command:
                found[kind] = int(size)
    return found


class Visitor:
    """A client of many sessions; each turn is one of several kinds."""

    def __init__(self, url: str, seed: int, done: "Counter[str]") -> None:
        self._client = httpx.AsyncClient(base_url=url, timeout=60)
        self._random = random.Random(seed)
        self._done = done
        self._seed = seed

    async def visit(self, end: float) -> None:
        async with self._client:
            while time.monotonic() < end:
                kind = self._random.choice((self.chat, self.broken, self.bad, self.stored))
                await kind()
                self._done[kind.__name__] += 1
                await asyncio.sleep(self._random.uniform(0, 2 * PAUSE_S))

    def _conversation(self) -> list[dict[str, str]]:
        words = self._random.choice((20, 400, 4000))
        return [
            {"role": "system", "content": text(600, self._random.randrange(8))},
            {"role": "user", "content": f"{self._random.random()} {text(words, self._seed)}"},
        ]

    def _body(self, **more: object) -> dict[str, object]:
        session = f"{self._seed}-{self._random.randrange(500)}"
        return {"model": "m", "session_id": session, "ignore_eos": True, **more}

    async def chat(self) -> None:
        """A whole answer."""
        tokens = self._random.randrange(1, 40)
        body = self._body(messages=self._conversation(), max_tokens=tokens)
        answer = await self._client.post("/v1/chat/completions", json=body)
        assert answer.json()["usage"]["completion_tokens"] == tokens

    async def broken(self) -> None:
        """A stream that the client leaves after some bytes."""
        prompt = [TOKEN] * self._random.randrange(1, 3000)
        body = self._body(prompt=prompt, max_tokens=1000, stream=True)
        left = self._random.randrange(1, 20_000)
        async with self._client.stream("POST", "/v1/completions", json=body) as stream:
            async for chunk in stream.aiter_bytes():
                left -= len(chunk)
                if left < 0:
                    break

    async def bad(self) -> None:
        """A request that is refused."""
        name = f"field-{self._random.random()}"
        body = self._body(messages=self._conversation(), max_tokens=-1, **{name: 1})
        assert (await self._client.post("/v1/chat/completions", json=body)).status_code == 400

    async def stored(self) -> None:
        """A response that is kept, and perhaps asked for or deleted."""
        body = {"model": "m", "input": text(60, self._seed), "max_output_tokens": 3, "store": True}
        answer = await self._client.post("/v1/responses", json=body)
        place = f"/v1/responses/{answer.json()['id']}"
        match self._random.randrange(3):
            case 0:
                assert (await self._client.get(place)).status_code == 200
            case 1:
                assert (await self._client.delete(place)).status_code == 200


@pytest.mark.soak
@pytest.mark.timeout(2 * 3600)
@pytest.mark.parametrize("seconds", [1800.0])
async def test_memory_stays_where_it_is(seconds: float) -> None:
    done: Counter[str] = Counter()
    samples: list[dict[str, int]] = []
    with engine(max_model_len=32_000) as (_, address, _marks):
        await until_open(address)
        await fill(address)
        end = time.monotonic() + seconds

        async def watch() -> None:
            while time.monotonic() < end:
                await asyncio.sleep(SAMPLE_S)
                samples.append(resident_kb())

        visitors = (Visitor(f"http://{address}", seed, done) for seed in range(CLIENTS))
        await asyncio.gather(watch(), *(each.visit(end) for each in visitors))
    third = len(samples) // 3
    for kind in ("api", "scheduler"):
        sizes = [each[kind] for each in samples]
        middle, last = (statistics.median(part) for part in (sizes[third:-third], sizes[-third:]))
        print(f"{kind}: {sizes[0]} kB at first, {middle:.0f} then, {last:.0f} at last; {done}")
        assert last <= middle * (1 + SLACK) + SLACK_KB, (kind, sizes[:: max(1, third // 10)])


async def fill(address: str) -> None:
    """Fill what keeps the texts tokenised before: it has a bound, but not from the first day."""
    numbers = iter(range(PROMPTS))

    async def ask(client: httpx.AsyncClient) -> None:
        for number in numbers:
            message = {"role": "user", "content": f"{number} {text(15_000, number)}"}
            body = {"model": "m", "messages": [message], "max_tokens": 1}
            assert (await client.post("/v1/chat/completions", json=body)).status_code == 200

    async with httpx.AsyncClient(base_url=f"http://{address}", timeout=60) as client:
        await asyncio.gather(*(ask(client) for _ in range(CLIENTS)))


async def until_open(address: str) -> None:
    """Wait until the server answers."""
    async with httpx.AsyncClient(base_url=f"http://{address}") as client, asyncio.timeout(60):
        while True:
            try:
                if (await client.get("/ready")).status_code == 200:
                    return
            except httpx.HTTPError:
                await asyncio.sleep(0.1)
