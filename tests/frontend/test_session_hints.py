# SPDX-License-Identifier: MIT
"""What hints do to the cache of a whole engine with a host tier: over HTTP and through the SDK."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tokenspeed_core.config import EngineConfig
from tokenspeed_core.ipc.messages import SessionAction
from tokenspeed_core.launch import Engine
from tokenspeed_core.sdk import Client
from tokenspeed_core.session import Session

PATIENCE_S = 120.0
NUM_BLOCKS = 40  # of 16 tokens


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    config = EngineConfig(
        model="smollm2",
        port=0,
        num_blocks=NUM_BLOCKS,
        max_running=4,
        threads=1,
        host_kv=64 * 1024 * 1024,
        transfer_ms=60_000,
    )
    with Engine.start(config, serve_http=True) as engine:
        engine.wait_ready(PATIENCE_S)
        yield engine


@pytest.fixture
def http(engine: Engine) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=engine.url, timeout=PATIENCE_S) as client:
        yield client


def say(http: httpx.Client, prompt: str, session: str, **fields: Any) -> dict[str, Any]:
    """A turn of one token; how its prompt was cached."""
    body = {"model": "smollm2", "prompt": prompt, "max_tokens": 1, "session_id": session}
    answer = http.post("/v1/completions", json={**body, **fields})
    assert answer.status_code == 200, answer.text
    usage: dict[str, Any] = answer.json()["usage"]
    return usage


def hints(action: str, **payload: int) -> dict[str, Any]:
    actions = [{"action_type": f"kv.{action}", "payload": payload}]
    return {"kv_hints": {"protocol_version": "0.1", "actions": actions}}


@pytest.mark.parametrize("forever", [2**63, 2**80])
def test_a_time_beyond_the_wire_is_a_long_one(http: httpx.Client, forever: int) -> None:
    say(http, "x", "s", retain_ms=forever)  # it once ended the connection of the API process
    say(http, "x", "s", **hints("retain", ttl_ms=forever))
    say(http, "x", "s")
    assert http.delete("/v1/sessions/s").status_code == 200


def gauge(http: httpx.Client, name: str) -> float:
    page = http.get("/metrics").text
    return next(
        float(line.split()[1])
        for line in page.splitlines()
        if line.startswith((f"tokenspeed_{name} ", f"tokenspeed_{name}_total "))
    )


def until(http: httpx.Client, name: str, least: float, most: float = float("inf")) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not least <= gauge(http, name) <= most:
        assert time.monotonic() < deadline, f"{name} is {gauge(http, name)}"
        time.sleep(0.05)


def story(about: str, sentences: int) -> str:
    return f"A story about {about}. " + f"Then the {about} went on and on. " * sentences


def test_blocks_are_retained_by_a_hint_or_a_field_until_they_are_released(
    http: httpx.Client,
) -> None:
    say(http, story("cat", 12), "cat", **hints("retain", ttl_ms=600_000))
    until(http, "kv_blocks_retained", 6)
    say(http, story("cat", 12), "cat", **hints("release"))
    until(http, "kv_blocks_retained", 0, 0)
    say(http, story("cat", 12), "cat", retain_ms=600_000)
    until(http, "kv_blocks_retained", 6)
    assert http.delete("/v1/sessions/cat").json()["deleted"] is True
    until(http, "kv_blocks_retained", 0, 0)


def test_a_deleted_session_is_forgotten(http: httpx.Client) -> None:
    before = gauge(http, "sessions")
    say(http, story("dog", 3), "dog")
    say(http, story("dog", 3), "dog", cache_salt="mine")
    until(http, "sessions", before + 2)
    http.delete("/v1/sessions/dog", params={"cache_salt": "mine"})
    until(http, "sessions", before + 1, before + 1)
    http.delete("/v1/sessions/dog", params={"cache_salt": "mine"})
    http.delete("/v1/sessions/dog")
    until(http, "sessions", before, before)


def test_a_demoted_session_makes_room_for_others(http: httpx.Client) -> None:
    say(http, story("owl", 15), "owl")
    say(http, story("fox", 15), "fox", **hints("demote"))
    say(http, story("elk", 24), "elk")  # more than is free
    owl = say(http, story("owl", 15), "owl")["prompt_tokens_details"]
    assert owl.get("host_tokens", 0) == 0
    assert owl["cached_tokens"] > 100


async def prefetch(engine: Engine, name: str) -> None:
    async with Client(engine.run.path) as client:
        client.hint(Session(name), SessionAction.PREFETCH)
        while client.stats is None:
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("by", ["sdk", "http"])
def test_a_prefetched_session_is_there_before_it_comes_back(
    engine: Engine, http: httpx.Client, by: str
) -> None:
    name = f"{by}-bear"
    before = gauge(http, "stored_blocks")
    turn = say(http, story(name, 12), name)
    until(http, "stored_blocks", before + turn["prompt_tokens"] // 16)
    # All but three blocks of the pool: whoever else was there is evicted.
    assert say(http, story("whale", 72), f"{by}-whale")["prompt_tokens"] > 36 * 16
    before = gauge(http, "loaded_blocks")
    if by == "sdk":
        asyncio.run(prefetch(engine, name))
    else:  # a hint goes with a request of its session: here a short one
        say(http, "hm", name, **hints("prefetch"))
    # How many come depends on what loads and prefill have cost so far.
    until(http, "loaded_blocks", before + 1)
    again = say(http, story(name, 12), name)["prompt_tokens_details"]
    assert again["cached_tokens"] >= 16
