# SPDX-License-Identifier: MIT
"""How `/v1/embeddings` asks the engine, before a scheduler that answers nothing by itself."""

import asyncio
import re
from collections.abc import AsyncIterator

import attrs
import httpx
import openai
import pytest

from tests.frontend.conftest import HttpServer, listening
from tests.frontend.scripted_scheduler import ScriptedScheduler
from tests.frontend.test_http import MODEL, eventually
from tokenspeed_core.async_llm import TextCodec
from tokenspeed_core.ipc.messages import FinishReason, RefusalCode
from tokenspeed_core.pooling import Pooling
from tokenspeed_core.server.embeddings import AT_ONCE


@pytest.fixture
async def embedder(scheduler: ScriptedScheduler, codec: TextCodec) -> AsyncIterator[HttpServer]:
    async with listening(scheduler, attrs.evolve(codec, pooling=Pooling(48, True))) as server:
        yield server


def is_quiet(http: HttpServer) -> bool:
    return not http.scheduler.running and http.service.in_flight == len(http.service.requests) == 0


async def test_a_client_that_leaves_aborts_what_is_under_way(embedder: HttpServer) -> None:
    embedder.scheduler.step_s = 3600
    inputs = [f"text {number}" for number in range(3 * AT_ONCE)]
    asking = asyncio.create_task(embedder.client().embeddings.create(model=MODEL, input=inputs))
    await eventually(lambda: len(embedder.scheduler.submits) == AT_ONCE)
    assert all(each.max_tokens == 1 for each in embedder.scheduler.submits)
    asking.cancel()
    await eventually(lambda: is_quiet(embedder))
    assert len(embedder.scheduler.aborts) == len(embedder.scheduler.submits) == AT_ONCE


async def test_a_request_is_aborted_by_its_id(embedder: HttpServer) -> None:
    embedder.scheduler.step_s = 3600
    asking = asyncio.create_task(
        embedder.client().embeddings.create(
            model=MODEL, input=["a", "b"], extra_body={"request_id": "e"}
        )
    )
    await eventually(lambda: len(embedder.scheduler.submits) == 2)
    async with httpx.AsyncClient(base_url=embedder.url) as raw:
        assert (await raw.post("/abort", json={"request_id": "e"})).json() == {"aborted": 1}
    with pytest.raises(openai.ConflictError, match="was aborted"):
        await asking
    await eventually(lambda: is_quiet(embedder))


async def test_an_input_that_fails_is_named_and_the_others_are_given_up(
    embedder: HttpServer,
) -> None:
    second = embedder.service.llm.codec.tokenizer.encode("second")
    scheduler = embedder.scheduler
    scheduler.reject = RefusalCode.QUEUE_FULL
    scheduler.is_rejected = lambda submit: submit.prompt[:4] == second[0].to_bytes(4, "little")
    scheduler.step_s = 3600
    inputs = ["first", "second", "third"]
    with pytest.raises(openai.RateLimitError, match=re.escape("input[1]: ")):
        await embedder.client().embeddings.create(model=MODEL, input=inputs)
    await eventually(lambda: is_quiet(embedder))
    scheduler.reject, scheduler.step_s = None, 0.001
    scheduler.finish, scheduler.finish_after = FinishReason.NUMERIC, 0
    with pytest.raises(openai.InternalServerError, match=re.escape("input[0]: ") + ".* NaN"):
        await embedder.client().embeddings.create(model=MODEL, input="alone")
    await eventually(lambda: is_quiet(embedder))
