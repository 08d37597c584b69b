# SPDX-License-Identifier: MIT
"""The API process and the scheduler keep their memory under clients that come, go and break off."""

import asyncio
import os
import random
import resource
import statistics
import subprocess
import time
from array import array
from collections import Counter
from collections.abc import Callable

import httpx
import pytest

from tests.bench.bench_host import TOKEN, engine, text
from tokenspeed_core.prefix_texts import MAX_BYTES
from tokenspeed_core.sdk import Client
from tokenspeed_core.session import Session

CLIENTS = 8
PAUSE_S = 0.1  # of a client between requests, on average
SAMPLE_S = 5.0
WORDS = (20, 400, 15_000)  # of a conversation
KEPT = 58_000  # bytes of text and ids that an API process keeps of one, on average
SESSIONS = 500  # of a client
# What the allocator holds varies by half of this; 170 and 40 bytes a request come to more.
SLACK_KB = {"api": 8 * 1024, "scheduler": 2 * 1024}


def told_by_ps(column: str) -> dict[str, int]:
    """A column of the processes under this one, by what they are."""
    listed = subprocess.run(
        ["ps", "--no-headers", "-o", f"{column}=,args=", "--ppid", str(os.getpid())],
        capture_output=True,
        text=True,
        check=True,
    )
    kinds = {"tokenspeed_core.server": "api", "tokenspeed-scheduler": "scheduler"}
    found: dict[str, int] = {}
    for line in listed.stdout.splitlines():
        number, command = line.split(maxsplit=1)
        for part, kind in kinds.items():
            if part in command:
                found[kind] = int(number)
    return found


def resident_kb() -> dict[str, int]:
    return told_by_ps("rss")


class Visitor:
    """A client of many sessions; each turn is one of several kinds."""

    def __init__(self, url: str, seed: int) -> None:
        self._client = httpx.AsyncClient(base_url=url, timeout=60)
        self._random = random.Random(seed)
        self._seed = seed

    async def visit(self, done: "Counter[str]", is_over: Callable[[], bool], pause: float) -> None:
        """Send requests, `pause` s apart on average, and count them in `done`."""
        while not is_over():
            kind = self._random.choice((self.chat, self.broken, self.bad, self.stored))
            await kind()
            done[kind.__name__] += 1
            await asyncio.sleep(self._random.uniform(0, 2 * pause))

    async def leave(self) -> None:
        await self._client.aclose()

    def _conversation(self) -> list[dict[str, str]]:
        words = self._random.choice(WORDS)
        return [
            {"role": "system", "content": text(600, self._random.randrange(8))},
            {"role": "user", "content": f"{self._random.random()} {text(words, self._seed)}"},
        ]

    def _body(self, **more: object) -> dict[str, object]:
        session = f"{self._seed}-{self._random.randrange(SESSIONS)}"
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
        visitors = [Visitor(f"http://{address}", seed) for seed in range(CLIENTS)]
        await fill(visitors)
        print(f"full: {resident_kb()}")
        end = time.monotonic() + seconds

        def is_over() -> bool:
            return time.monotonic() > end

        async def watch() -> None:
            while not is_over():
                await asyncio.sleep(SAMPLE_S)
                samples.append(resident_kb())

        await asyncio.gather(watch(), *(each.visit(done, is_over, PAUSE_S) for each in visitors))
        for each in visitors:
            await each.leave()
    third = len(samples) // 3
    for kind, slack in SLACK_KB.items():
        sizes = [each[kind] for each in samples]
        first, last = (statistics.median(part) for part in (sizes[:third], sizes[-third:]))
        print(f"{kind}: {first:.0f} kB in the first third, {last:.0f} in the last; {done}")
        curve = sizes[:: max(1, len(sizes) // 30)]
        print(f"{kind}: {curve}")
        assert last <= first + slack, (kind, curve)


async def fill(visitors: "list[Visitor]") -> None:
    """Send such requests without a pause until all that keeps something of them is full.

    Texts tokenised before, stored responses, what the scheduler remembers of sessions and blocks
    have bounds; until each is reached memory grows, and for texts, the largest, until they were
    exchanged once: before that the allocator does not know the sizes that it will be asked for.
    """
    done: Counter[str] = Counter()

    def is_full() -> bool:
        return done["chat"] * KEPT > 2 * MAX_BYTES

    await asyncio.gather(*(each.visit(done, is_full, 0) for each in visitors))


async def until_open(address: str) -> None:
    """Wait until the server answers."""
    async with httpx.AsyncClient(base_url=f"http://{address}") as client, asyncio.timeout(60):
        while True:
            try:
                if (await client.get("/ready")).status_code == 200:
                    return
            except httpx.HTTPError:
                await asyncio.sleep(0.1)


async def test_a_prompt_has_the_memory_that_the_last_one_left() -> None:
    """The kernel is not asked for new pages: to clear them takes longer than to plan."""
    prompt = array("i", [TOKEN] * 100_000)
    pages = 4 * len(prompt) // resource.getpagesize()  # of one copy
    taken: list[int] = []
    with engine(max_model_len=200_000) as (run, _, _marks):
        async with Client(run) as client:
            await client.ready(60)
            for _ in range(16):
                before = told_by_ps("min_flt")["scheduler"]
                async for _delta in client.generate(prompt, max_tokens=1, session=Session("a")):
                    pass
                taken.append(told_by_ps("min_flt")["scheduler"] - before)
                prompt.extend([TOKEN] * 500)
    assert statistics.median(taken[8:]) < pages // 2, (pages, taken)
