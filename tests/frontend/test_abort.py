# SPDX-License-Identifier: MIT
"""Ending requests by their ids: one's own only, as often as one likes."""

import asyncio
import json

import httpx
import openai
import pytest

from tests.frontend.conftest import HttpServer, listening
from tests.frontend.scripted_scheduler import ScriptedScheduler
from tests.frontend.test_http import MESSAGES, MODEL, eventually
from tokenspeed_core.async_llm import TextCodec
from tokenspeed_core.keyring import Keyring
from tokenspeed_core.server.access import Access

ENDLESS = {"model": MODEL, "prompt": "one two", "max_tokens": 8000}


async def test_a_stream_and_an_answer_end_as_aborted(http: HttpServer) -> None:
    http.scheduler.step_s = 0.01
    client = http.client()
    stream = await client.completions.create(
        **ENDLESS, stream=True, extra_body={"request_id": "s", "ignore_eos": True}
    )
    await anext(aiter(stream))
    whole = asyncio.create_task(
        client.completions.create(**ENDLESS, n=3, extra_body={"rid": "w", "ignore_eos": True})
    )
    other = asyncio.create_task(
        client.chat.completions.create(
            model=MODEL, messages=MESSAGES, max_tokens=60, extra_body={"ignore_eos": True}
        )
    )
    await eventually(lambda: len(http.scheduler.submits) == 5)
    async with httpx.AsyncClient(base_url=http.url) as raw:
        answer = await raw.post("/abort", json={"request_ids": ["s", "nobody"], "rid": "w"})
        assert answer.json() == {"aborted": 2}
        again = await raw.post("/abort_request", json={"rid": "w"})
        assert again.json() == {"aborted": 0}
    chunks = [chunk async for chunk in stream]
    assert chunks[-1].choices[0].finish_reason == "abort"
    ended = await whole
    assert [choice.finish_reason for choice in ended.choices] == ["abort"] * 3
    assert (await other).usage.completion_tokens == 60  # nobody else's
    await eventually(lambda: not http.scheduler.running)
    assert http.service.in_flight == len(http.service.requests) == 0
    async with httpx.AsyncClient(base_url=http.url) as raw:
        assert (await raw.post("/abort", json={"request_id": "s"})).json() == {"aborted": 0}


async def test_a_prompt_that_is_to_be_scored_is_aborted_before_it_is(http: HttpServer) -> None:
    http.scheduler.step_s = 3600
    ids = http.service.llm.codec.tokenizer.encode("one two")
    asked = {"echo": True, "logprobs": 1}, {"extra_body": {"prompt_logprobs": 1}}
    asking = [
        asyncio.create_task(http.client().completions.create(model=MODEL, prompt=ids, **each))
        for each in asked
    ]
    await eventually(lambda: len(http.scheduler.submits) == 2)
    async with httpx.AsyncClient(base_url=http.url) as raw:
        assert (await raw.post("/abort", json={"abort_all": True})).json() == {"aborted": 2}
    echoed, scored = [(await each).choices[0] for each in asking]
    assert echoed.finish_reason == scored.finish_reason == "abort"
    assert echoed.logprobs.token_logprobs == [None] * len(ids)
    assert scored.model_extra["prompt_logprobs"] == [None] * len(ids)


async def test_an_id_in_flight_is_refused_and_free_again_after_its_end(http: HttpServer) -> None:
    http.scheduler.step_s = 0.01
    client = http.client()
    body = {**ENDLESS, "extra_body": {"request_id": "twice", "ignore_eos": True}}
    first = await client.completions.create(**body, stream=True)
    await anext(aiter(first))
    for is_stream in (False, True):
        with pytest.raises(openai.ConflictError) as caught:
            await client.completions.create(**body, stream=is_stream)
        assert (caught.value.param, caught.value.code) == ("request_id", "duplicate_request_id")
    assert len(http.scheduler.submits) == 1
    await first.close()
    await eventually(lambda: len(http.service.requests) == 0)
    again = await client.completions.create(**{**body, "max_tokens": 2})
    assert again.usage.completion_tokens == 2
    for bad in ({"request_id": "x" * 257}, {"request_id": 5}):
        with pytest.raises(openai.BadRequestError) as refused:
            await client.completions.create(model=MODEL, prompt="x", extra_body=bad)
        assert refused.value.param == "request_id"


async def test_another_callers_request_goes_on(
    scheduler: ScriptedScheduler, codec: TextCodec
) -> None:
    scheduler.step_s = 0.005
    ring = Keyring.of(("alice", "alice-key-1"), ("bob", "bob-key-00"))
    async with (
        listening(scheduler, codec, Access(lambda: ring)) as http,
        httpx.AsyncClient(base_url=http.url, headers={"x-api-key": "bob-key-00"}) as bob,
        httpx.AsyncClient(base_url=http.url, headers={"x-api-key": "alice-key-1"}) as alice,
    ):
        body = {**ENDLESS, "max_tokens": 200, "ignore_eos": True, "request_id": "mine"}
        # both may use the same id
        mine, theirs = (
            asyncio.create_task(client.post("/v1/completions", json=body, timeout=30))
            for client in (alice, bob)
        )
        await eventually(lambda: len(scheduler.running) == 2)
        assert (await bob.post("/abort", json={"abort_all": True})).json() == {"aborted": 1}
        reasons = [
            json.loads((await each).content)["choices"][0]["finish_reason"]
            for each in (mine, theirs)
        ]
        assert reasons == ["length", "abort"]


@pytest.mark.parametrize(
    "body", [{}, {"request_id": ""}, {"request_ids": [str(n) for n in range(1025)]}, {"rid": 1}]
)
async def test_an_abort_of_nothing_is_refused(http: HttpServer, body: object) -> None:
    async with httpx.AsyncClient(base_url=http.url) as client:
        assert (await client.post("/abort", json=body)).status_code == 400
