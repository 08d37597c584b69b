# SPDX-License-Identifier: MIT
"""Three times what an engine takes, for as long as one likes: row 50 of the faults, for real.

Requests come at their times whatever happened to earlier ones.  Each is answered or told to come
again; who is taken waits for no more than the queue in front of it; nothing grows.
"""

import asyncio
import json
import random
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import attrs
import httpx
import pytest

from tests.frontend.conftest import PATIENCE_S, thin_engine
from tokenspeed_core.launch import Engine

RUNNING, WAITING = 4, 16
TOKENS = 16
SLACK_KB = 16 * 1024
MAX_WAIT = 5  # times what the queue takes to empty: the machine has other work, too


@pytest.fixture(scope="module")
def engine(thin_smollm2: Path) -> Iterator[Engine]:
    limits = {"max_running": RUNNING, "max_waiting": WAITING, "log_level": "error"}
    with thin_engine(thin_smollm2, **limits) as engine:
        yield engine


@attrs.define
class Crowd:
    """Clients that keep their connections; each asks for `TOKENS` tokens."""

    engine: Engine
    free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = attrs.field(factory=list)
    statuses: Counter[int] = attrs.field(factory=Counter)
    seconds: list[float] = attrs.field(factory=list)  # of those that were answered

    async def ask(self, number: int) -> None:
        """Send a request and read what comes of it."""
        config = self.engine.config
        said = {"prompt": [5, 1 + number % 90, 1 + number // 90 % 90], "max_tokens": TOKENS}
        body = json.dumps(
            {"model": config.model_name, "temperature": 0, "ignore_eos": True, **said}
        ).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        while self.free and self.free[-1][0].at_eof():
            self.free.pop()[1].close()  # it was idle for too long
        if not self.free:
            self.free.append(await asyncio.open_connection(config.host, config.port))
        reader, writer = self.free.pop()
        begun = time.monotonic()
        writer.write(head.encode() + body)
        status = int((await reader.readline()).split()[1])
        headers = {}
        while (line := await reader.readline()) != b"\r\n":
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        answer = json.loads(await reader.readexactly(int(headers["content-length"])))
        self.free.append((reader, writer))
        self.statuses[status] += 1
        if status == 200:
            assert answer["usage"]["completion_tokens"] == TOKENS
            self.seconds.append(time.monotonic() - begun)
        else:
            assert status == 429, answer
            assert int(headers["retry-after"]) >= 1
            assert answer["error"]["message"]

    def leave(self) -> None:
        for _, writer in self.free:
            writer.close()


def resident_kb(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


async def gauges(client: httpx.AsyncClient) -> dict[str, float]:
    page = (await client.get("/metrics")).text
    lines = [line.rsplit(" ", 1) for line in page.splitlines() if line.startswith("tokenspeed_")]
    return {name: float(value) for name, value in lines}


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "seconds", [2.5, pytest.param(600.0, marks=pytest.mark.soak)], ids=["short", "long"]
)
async def test_three_times_what_the_engine_takes(engine: Engine, seconds: float) -> None:
    crowd = Crowd(engine)
    pids = engine.pids()

    async def busy(count: int) -> None:
        for _ in range(count):
            await crowd.ask(random.randrange(8100))

    for count in (1, 4):  # the first of all take longer
        begun = time.monotonic()
        await asyncio.gather(*(busy(count) for _ in range(2 * RUNNING)))
        capacity = 2 * RUNNING * count / (time.monotonic() - begun)
    assert set(crowd.statuses) == {200}
    crowd.statuses.clear()
    crowd.seconds.clear()

    waiting: list[float] = []
    sizes: list[dict[str, int]] = []
    async with httpx.AsyncClient(base_url=engine.url, timeout=PATIENCE_S) as client:

        async def watch(until: float) -> None:
            while time.monotonic() < until:
                waiting.append((await gauges(client))["tokenspeed_num_requests_waiting"])
                assert (await client.get("/health")).status_code == 200
                sizes.append({name: resident_kb(pid) for name, pid in pids.items()})
                await asyncio.sleep(min(1.0, seconds / 10))

        draw = random.Random(50)
        # at once more than there is room for, so that some are refused however fast it has become
        asked = [asyncio.create_task(crowd.ask(n)) for n in range(3 * (RUNNING + WAITING))]
        begun = at = time.monotonic()
        watching = asyncio.create_task(watch(begun + seconds))
        while (at := at + draw.expovariate(3 * capacity)) < begun + seconds:
            await asyncio.sleep(max(0.0, at - time.monotonic()))
            asked.append(asyncio.create_task(crowd.ask(len(asked))))
        await asyncio.gather(*asked, watching)
        taken_a_second = crowd.statuses[200] / (time.monotonic() - begun)
        crowd.leave()
        deadline = time.monotonic() + PATIENCE_S
        while (now := await gauges(client))["tokenspeed_kv_blocks_active"]:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
    kept = now["tokenspeed_kv_blocks_free"] + now["tokenspeed_kv_blocks_cached"]
    assert kept == now["tokenspeed_kv_blocks_total"]
    assert engine.pids() == pids
    assert max(waiting) <= WAITING
    assert crowd.statuses.total() == len(asked)
    assert crowd.statuses[429] > 0
    assert crowd.statuses[200] >= RUNNING + WAITING
    p99 = statistics.quantiles(crowd.seconds, n=100)[98]
    assert p99 < 1.0 + MAX_WAIT * (RUNNING + WAITING) / taken_a_second
    third = len(sizes) // 3
    told = {
        name: [
            statistics.median(each[name] for each in part)
            for part in (sizes[:third], sizes[-third:])
        ]
        for name in pids
    }
    print(
        f"{len(asked)} requests in {seconds:g} s to an engine that takes {capacity:.0f} a second: "
        f"{dict(crowd.statuses)}, p99 of the taken {p99:.2f} s, waiting at most {max(waiting):g}; "
        f"kB in the first and the last third: {told}"
    )
    if seconds > 60:
        assert all(last <= first + SLACK_KB for first, last in told.values()), told
