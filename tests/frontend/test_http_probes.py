# SPDX-License-Identifier: MIT
"""What operators and load balancers see: probes, metrics, draining."""

import asyncio
import re

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.frontend.conftest import HttpServer
from tests.frontend.test_http import MESSAGES, MODEL, eventually
from tokenspeed_core import __version__
from tokenspeed_core.server import health as health_module
from tokenspeed_core.server.metric_aliases import ALIASED


async def status(http: HttpServer, path: str) -> int:
    async with httpx.AsyncClient() as client:
        return (await client.get(http.url + path)).status_code


async def status_becomes(http: HttpServer, path: str, wanted: int) -> None:
    async with asyncio.timeout(15):
        while await status(http, path) != wanted:
            await asyncio.sleep(0.05)


async def test_a_frozen_scheduler_is_unhealthy_until_it_speaks(
    http: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await status_becomes(http, "/health", 200)
    http.scheduler.is_frozen = True
    await status_becomes(http, "/health", 503)
    assert await status(http, "/ready") == 503
    http.scheduler.is_frozen = False
    await status_becomes(http, "/health", 200)


async def test_work_without_progress_is_unhealthy(http: HttpServer) -> None:
    http.scheduler.step_s = 3600  # the step never comes back ...
    stream = http.service.llm.client.submit([1], max_tokens=9)
    client = http.service.llm.client
    await eventually(lambda: client.stats is not None and client.stats.running == 1)
    await eventually(lambda: client.stalled_s > 0.3)
    verdict = health_module.health(client, stall_s=0.3, silence_s=3600)
    assert not verdict.is_good
    assert "1 running" in verdict.reason
    stream.abort()


async def test_a_starting_engine_is_not_ready(http: HttpServer) -> None:
    await status_becomes(http, "/ready", 200)
    http.scheduler.stop()
    await status_becomes(http, "/ready", 503)
    http.scheduler.is_ready = False
    http.scheduler.start()
    await eventually(lambda: len(http.scheduler.hellos) == 2)
    assert await status(http, "/ready") == 503


async def test_draining_refuses_new_work_and_finishes_the_old(http: HttpServer) -> None:
    http.scheduler.step_s = 0.02
    stream = await http.client().completions.create(
        model=MODEL, prompt="one two three", stream=True, max_tokens=20
    )
    await anext(aiter(stream))
    http.service.is_draining = True
    assert await status(http, "/ready") == 503
    assert await status(http, "/health") == 200
    with pytest.raises(openai.InternalServerError) as caught:
        await http.client().completions.create(model=MODEL, prompt="x")
    assert (caught.value.status_code, caught.value.code) == (503, "draining")
    assert "retry-after" in caught.value.response.headers
    chunks = [chunk async for chunk in stream]
    assert chunks[-1].choices[0].finish_reason == "length"


async def test_metrics_count_what_happened(http: HttpServer) -> None:
    client = http.client()
    answer = await client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=5)
    with pytest.raises(openai.BadRequestError):
        await client.chat.completions.create(model=MODEL, messages=MESSAGES, n=0)
    # The answer may overtake the periodic stats that count its steps.
    engine = http.service.llm.client
    await eventually(lambda: engine.stats is not None and engine.stats.steps >= 5)
    async with httpx.AsyncClient() as probe:
        page = (await probe.get(http.url + "/metrics")).text
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }
    model = ("model_name", MODEL)

    def value(name: str, *labels: tuple[str, str]) -> float:
        return samples[f"tokenspeed_{name}", tuple(sorted(labels))]

    assert value("prompt_tokens_total", model) == answer.usage.prompt_tokens
    assert value("generation_tokens_total", model) == 5
    cached = answer.usage.prompt_tokens_details.cached_tokens
    cache = ("cache", "warm" if 2 * cached > answer.usage.prompt_tokens else "cold")
    assert value("time_to_first_token_seconds_count", model, cache) == 1
    assert value("e2e_request_latency_seconds_count", model, cache) == 1
    assert value("inter_token_latency_seconds_count", model, cache) == 4
    assert value("request_success_total", model, ("finished_reason", "length")) == 1
    refused = (("status", "400"), ("code", "invalid_parameter"))
    assert value("request_failure_total", model, *refused) == 1
    assert value("kv_blocks_total") == 100
    told = {name.removeprefix("vllm:").split("{")[0] for name, _ in samples if "vllm:" in name}
    suffixes = re.compile("_(total|bucket|count|sum|created)$")
    # these two come from the scheduler's clock, which the scripted one has not
    unknown = {"request_queue_time_seconds", "request_prefill_time_seconds"}
    assert {suffixes.sub("", name) for name in told} == ALIASED - unknown
    for name in ("num_requests_running", "kv_cache_usage_perc", "prefix_cache_hits_total"):
        assert samples[f"vllm:{name}", (model,)] == value(name)
    assert samples["vllm:generation_tokens_total", (model,)] == value(
        "generation_tokens_total", model
    )
    summed = "time_to_first_token_seconds_sum"
    assert samples[f"vllm:{summed}", (cache, model)] == value(summed, cache, model)
    assert value("engine_steps_total") >= 5


async def test_models_and_version(http: HttpServer) -> None:
    models = await http.client().models.list()
    assert [model.id for model in models.data] == [MODEL]
    async with httpx.AsyncClient() as probe:
        assert (await probe.get(http.url + "/version")).json() == {"version": __version__}
