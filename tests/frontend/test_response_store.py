# SPDX-License-Identifier: MIT
"""What is kept of responses: bounded, continued, cancelled, deleted, one's own."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest

from tests.frontend.conftest import HttpServer, listening
from tests.frontend.scripted_scheduler import ScriptedScheduler
from tests.frontend.test_http import eventually
from tests.frontend.test_tools import CALL, TEMPLATE, TOOLS, prompt
from tokenspeed_core.async_llm import TextCodec
from tokenspeed_core.ipc.messages import RefusalCode
from tokenspeed_core.keyring import Keyring
from tokenspeed_core.server.access import Access
from tokenspeed_core.server.caller import Caller
from tokenspeed_core.server.response_store import ResponseStore, Stored

MODEL = {"model": "smollm2"}
ME, OTHER = Caller("me"), Caller("other")


@pytest.fixture
async def http(scheduler: ScriptedScheduler, codec: TextCodec) -> AsyncIterator[HttpServer]:
    async with listening(scheduler, codec.with_template(TEMPLATE)) as server:
        yield server


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def put(store: ResponseStore, id: str, size: int = 0, previous: Stored | None = None) -> Stored:
    document = {"id": id, "output": [{"type": "message", "text": id + "x" * size}]}
    items = [{"role": "user", "content": "of " + id}]
    stored = store.begin(ME, id, items, previous, lambda: document)
    store.end(stored)
    return stored


def test_the_least_recently_used_goes_and_what_runs_stays() -> None:
    clock = Clock()
    store = ResponseStore(3, 60.0, clock=clock)
    running = store.begin(ME, "running", [], None, lambda: {"output": []})
    for id in ("a", "b", "c"):
        put(store, id)
    assert store.find(ME, "a") is None
    assert store.find(ME, "b") is not None
    put(store, "d")
    assert [store.find(ME, id) is not None for id in ("b", "c", "d", "running")] == [
        True,
        False,
        True,
        True,
    ]
    clock.now += 61
    assert store.find(ME, "b") is None
    assert store.find(ME, "running") is running
    assert len(store) == 1
    store.end(running)
    clock.now += 61
    assert store.find(ME, "running") is None
    assert (len(store), store.num_bytes) == (0, 0)


@pytest.mark.parametrize("count", [100_000, pytest.param(1_000_000, marks=pytest.mark.soak)])
def test_a_million_responses_stay_within_both_bounds(count: int) -> None:
    store = ResponseStore(1000, 1e9)
    document: dict[str, Any] = {"output": []}
    for number in range(count // 50):  # in slices of 50 requests at a time
        batch = [
            store.begin(ME, f"{number}-{each}", [], None, lambda: document) for each in range(50)
        ]
        assert len(store) <= 1000 + 50
        for stored in batch:
            store.end(stored)
    assert len(store) == 1000
    small = ResponseStore(10**6, 1e9, max_bytes=100_000)
    for number in range(2000):
        put(small, str(number), size=number % 500)
        assert small.num_bytes <= 100_000
    assert small.find(ME, "1999") is not None
    assert small.find(ME, "0") is None


def test_a_deleted_response_lives_on_in_what_continues_it() -> None:
    store = ResponseStore(10, 60.0)
    first = put(store, "first")
    second = put(store, "second", previous=first)
    assert not store.delete(OTHER, "first")
    assert store.find(OTHER, "first") is None
    assert store.delete(ME, "first")
    assert not store.delete(ME, "first")
    texts = [item.get("content") or item.get("text") for item in second.conversation()]
    assert texts == ["of first", "first", "of second", "second"]


async def test_a_conversation_goes_on_by_its_last_response(http: HttpServer) -> None:
    client = http.client()
    tools = [{"type": "function", "strict": False, **tool["function"]} for tool in TOOLS]
    http.answers(f"I look.\n{CALL}")
    first = await client.responses.create(**MODEL, input="Read it.", tools=tools)
    assert first.store is True
    kept = await client.responses.retrieve(first.id)
    assert (kept.status, kept.output) == ("completed", first.output)
    assert kept.usage.model_dump() == first.usage.model_dump()
    listed = await client.responses.input_items.list(first.id)
    assert listed.data[0].content == "Read it."
    http.answers("Seven.")
    output = {"type": "function_call_output", "call_id": first.output[1].call_id, "output": "7"}
    asked = {**MODEL, "tools": tools, "previous_response_id": first.id}
    second = await client.responses.create(**asked, input=[output], instructions="Be brief.")
    assert second.previous_response_id == first.id
    text = prompt(http)
    places = [text.index(each) for each in ("Be brief.", "Read it.", "I look.", CALL, "tool\n7<")]
    assert places == sorted(places)
    stream = await client.responses.create(
        **MODEL, input="And?", previous_response_id=second.id, stream=True
    )
    events = [event async for event in stream]
    assert "Seven.<|im_end|>" in prompt(http)
    kept = await client.responses.retrieve(events[-1].response.id)
    assert kept.output_text == "Seven."
    await client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(first.id)
    with pytest.raises(openai.NotFoundError) as caught:
        await client.responses.create(**asked, input="x")
    assert caught.value.param == "previous_response_id"
    await client.responses.create(**MODEL, input="x", previous_response_id=second.id)
    assert "Read it." in prompt(http)
    unkept = await client.responses.create(**MODEL, input="x", store=False)
    assert unkept.store is False
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(unkept.id)


async def test_a_running_response_is_seen_and_cancelled(http: HttpServer) -> None:
    http.scheduler.step_s = 0.01
    client = http.client()
    stream = await client.responses.create(
        **MODEL, input="Count.", max_output_tokens=5000, stream=True
    )
    id = (await anext(aiter(stream))).response.id
    assert (await client.responses.retrieve(id)).status == "in_progress"
    assert (await client.responses.cancel(id)).status == "cancelled"
    events = [event async for event in stream]
    assert events[-1].response.status == "cancelled"
    await eventually(lambda: not http.scheduler.running)
    assert (await client.responses.retrieve(id)).status == "cancelled"
    assert (await client.responses.cancel(id)).status == "cancelled"
    left = await client.responses.create(
        **MODEL, input="Count.", max_output_tokens=5000, stream=True
    )
    id = (await anext(aiter(left))).response.id
    await left.close()
    await eventually(lambda: len(http.service.requests) == 0)
    assert (await client.responses.retrieve(id)).status == "cancelled"
    assert http.service.in_flight == 0


async def test_responses_belong_to_their_callers(
    scheduler: ScriptedScheduler, codec: TextCodec
) -> None:
    ring = Keyring.of(("alice", "alice-key-1"), ("bob", "bob-key-00"))
    async with (
        listening(scheduler, codec, Access(lambda: ring)) as http,
        httpx.AsyncClient(base_url=http.url, headers={"x-api-key": "bob-key-00"}) as bob,
    ):
        alice = http.client("alice-key-1")
        kept = await alice.responses.create(**MODEL, input="Mine.", max_output_tokens=2)
        path = f"/v1/responses/{kept.id}"
        answers = [await bob.get(path), await bob.delete(path), await bob.post(path + "/cancel")]
        answers.append(await bob.get(path + "/input_items"))
        body = {**MODEL, "input": "x", "previous_response_id": kept.id}
        answers.append(await bob.post("/v1/responses", json=body))
        assert {answer.status_code for answer in answers} == {404}
        assert "Mine" not in "".join(answer.text for answer in answers)
        await asyncio.sleep(0)
        assert (await alice.responses.retrieve(kept.id)).id == kept.id


async def test_an_answer_in_the_background_is_fetched(http: HttpServer) -> None:
    client, asked = http.client(), {**MODEL, "input": "Count.", "max_output_tokens": 30}
    whole = await client.responses.create(**asked)
    begun = await client.responses.create(**asked, background=True)
    assert (begun.status, begun.output, begun.background) == ("queued", [], True)

    async def ended(id: str) -> Any:
        async with asyncio.timeout(30):
            while (found := await client.responses.retrieve(id)).status in (
                "queued",
                "in_progress",
            ):
                await asyncio.sleep(0.01)
        return found

    found = await ended(begun.id)
    assert (found.status, found.output_text) == (whole.status, whole.output_text)
    assert found.usage.model_dump() == whole.usage.model_dump()
    http.scheduler.step_s = 0.01
    long = await client.responses.create(
        **MODEL, input="Count.", max_output_tokens=5000, background=True
    )
    await eventually(lambda: len(http.scheduler.running) == 1)
    assert (await client.responses.cancel(long.id)).status == "cancelled"
    assert (await ended(long.id)).status == "cancelled"
    http.scheduler.reject = RefusalCode.QUEUE_FULL
    refused = await client.responses.create(**asked, background=True)
    failed = await ended(refused.id)
    assert (failed.status, failed.error.code) == ("failed", "rate_limit_exceeded")
    http.scheduler.reject = None
    for more in ({"stream": True}, {"store": False}):
        with pytest.raises(openai.BadRequestError) as caught:
            await client.responses.create(**asked, background=True, **more)
        assert caught.value.param == "background"
    await eventually(lambda: not http.scheduler.running and not http.service.background)
    assert http.service.in_flight == 0


async def test_a_response_that_never_began_does_not_stay(http: HttpServer) -> None:
    http.scheduler.step_s = 0.01
    client, asked = http.client(), {**MODEL, "input": "Count.", "extra_body": {"rid": "mine"}}
    running = await client.responses.create(**asked, max_output_tokens=5000, background=True)
    await eventually(lambda: len(http.scheduler.running) == 1)
    for _ in range(3):
        with pytest.raises(openai.ConflictError):
            await client.responses.create(**asked)
    kept = http.service.responses._stored.values()
    assert sorted(each.is_running for each in kept) == [False, False, False, True]
    assert (await client.responses.cancel(running.id)).status == "cancelled"
    await eventually(lambda: not any(each.is_running for each in kept))
