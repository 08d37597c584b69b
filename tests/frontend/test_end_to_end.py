# SPDX-License-Identifier: MIT
"""The whole engine with SmolLM2: every process real, reached as users reach it."""

import asyncio
import itertools
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import openai
import pytest

from tokenspeed_core.async_llm import AsyncLLM, TextCodec
from tokenspeed_core.config import EngineConfig
from tokenspeed_core.launch import Engine
from tokenspeed_core.llm import LLM
from tokenspeed_core.sampling_params import SamplingParams
from tokenspeed_core.sdk import Client

MODEL = "smollm2"
MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]
GREEDY = {"model": MODEL, "temperature": 0}
NUM_BLOCKS = 1024
MAX_LEN = 1024
PATIENCE_S = 120.0


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    config = EngineConfig(
        model=MODEL,
        port=0,
        dtype="fp32",  # in which answers do not depend on how requests are batched
        num_blocks=NUM_BLOCKS,
        max_model_len=MAX_LEN,
        threads=1,
    )
    with Engine.start(config, serve_http=True) as engine:
        engine.wait_ready(PATIENCE_S)
        yield engine


@pytest.fixture
def client(engine: Engine) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{engine.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
async def aclient(engine: Engine) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{engine.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S
    ) as client:
        yield client


def gauges(engine: Engine) -> dict[str, float]:
    page = httpx.get(f"{engine.url}/metrics").text
    lines = [line.split() for line in page.splitlines() if line.startswith("tokenspeed_")]
    return {name.removeprefix("tokenspeed_"): float(value) for name, value in lines}


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def until_all_blocks_are_back(engine: Engine) -> None:
    busy = ("kv_blocks_active", "num_requests_running", "in_flight_steps")
    until(lambda: not any(value for name, value in gauges(engine).items() if name in busy))
    now = gauges(engine)
    assert now["kv_blocks_free"] + now["kv_blocks_cached"] == now["kv_blocks_total"]
    assert now["kv_blocks_total"] == NUM_BLOCKS - 1  # one is the workers' scratch block


def test_the_sync_client_whole_and_streamed(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(messages=MESSAGES, max_tokens=24, **GREEDY)
    assert "Paris" in whole.choices[0].message.content
    assert whole.choices[0].finish_reason == "stop"
    stream = client.chat.completions.create(
        messages=MESSAGES,
        max_tokens=24,
        stream=True,
        stream_options={"include_usage": True},
        **GREEDY,
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 0.9, "seed": 11}])
async def test_streamed_text_is_the_whole_text(
    aclient: openai.AsyncOpenAI, sampling: dict[str, float]
) -> None:
    request = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 24, **sampling}
    whole = await aclient.completions.create(**request)
    stream = await aclient.completions.create(stream=True, **request)
    pieces = [chunk.choices[0].text async for chunk in stream]
    assert "".join(pieces) == whole.choices[0].text
    assert len(pieces) > 10
    assert whole.usage.completion_tokens == 24
    assert whole.choices[0].finish_reason == "length"


async def test_seeds_differ_and_top_k_of_one_is_greedy(aclient: openai.AsyncOpenAI) -> None:
    async def text(**sampling: object) -> str:
        answer = await aclient.completions.create(
            model=MODEL, prompt="My favourite", max_tokens=16, **sampling
        )
        return answer.choices[0].text

    greedy, one, *seeded = await asyncio.gather(
        text(temperature=0),
        text(temperature=1, extra_body={"top_k": 1}),
        *(text(temperature=1.5, seed=seed) for seed in range(6)),
    )
    assert one == greedy
    assert len(set(seeded)) > 1


async def test_ids_and_text_are_one_prompt(aclient: openai.AsyncOpenAI, codec: TextCodec) -> None:
    request = {"max_tokens": 8, **GREEDY}
    text = await aclient.completions.create(prompt="The sky is", **request)
    ids = codec.tokenizer.encode("The sky is")
    same = await aclient.completions.create(prompt=ids, **request)
    assert same.choices[0].text == text.choices[0].text
    assert same.usage.prompt_tokens == len(ids)


async def test_a_stop_string_cuts_the_real_text(aclient: openai.AsyncOpenAI) -> None:
    request = {"prompt": "List of colours: red,", "max_tokens": 16, **GREEDY}
    text = (await aclient.completions.create(**request)).choices[0].text
    for stop in (text[5:8], text[-4:-1], text[12:13]):
        cut = await aclient.completions.create(stop=[stop, "never\0"], **request)
        stream = await aclient.completions.create(stop=stop, stream=True, **request)
        streamed = "".join([chunk.choices[0].text async for chunk in stream])
        assert cut.choices[0].text == streamed == text[: text.index(stop)]
        assert cut.choices[0].finish_reason == "stop"


async def test_ignore_eos_runs_to_the_limit_and_stop_ids_end(
    aclient: openai.AsyncOpenAI, codec: TextCodec
) -> None:
    request = {"messages": MESSAGES, "max_tokens": 30, **GREEDY}
    long = await aclient.chat.completions.create(extra_body={"ignore_eos": True}, **request)
    assert long.usage.completion_tokens == 30
    assert long.choices[0].finish_reason == "length"
    paris = codec.tokenizer.encode(" Paris")
    stopped = await aclient.chat.completions.create(extra_body={"stop_token_ids": paris}, **request)
    assert stopped.choices[0].message.content == "The capital of France is"
    assert stopped.choices[0].finish_reason == "stop"


async def test_shaped_logits_change_what_is_said(
    aclient: openai.AsyncOpenAI, codec: TextCodec
) -> None:
    async def said(**shaping: object) -> list[int]:
        answer = await aclient.completions.create(
            prompt="ha ha ha ha ha ha",
            max_tokens=10,
            extra_body={"return_token_ids": True, "ignore_eos": True, **shaping},
            **{**GREEDY, "temperature": shaping.get("temperature", 0)},
        )
        return answer.choices[0].token_ids

    plain = await said()
    first = plain[0]
    drawn = {"temperature": 1, "seed": 3}
    free, present, banned, forced, frequent, repeated, likeliest, unsaid = await asyncio.gather(
        said(**drawn),
        said(presence_penalty=2, **drawn),
        said(logit_bias={str(first): -100}),
        said(logit_bias={"7": 100}),
        said(frequency_penalty=2),
        said(repetition_penalty=2),
        said(min_p=1, temperature=2),
        said(bad_words=[codec.tokenizer.decode(plain[:2]).strip()]),
    )
    assert first not in banned
    assert forced == [7] * 10
    assert present != free
    assert len(set(plain)) < len(set(frequent))
    assert repeated[0] not in codec.tokenizer.encode("ha ha ha")
    assert likeliest == plain
    assert all(pair != tuple(plain[:2]) for pair in itertools.pairwise(unsaid))

    async def length(**shaping: object) -> int:
        answer = await aclient.chat.completions.create(
            messages=MESSAGES, max_tokens=40, extra_body=shaping, **GREEDY
        )
        return answer.usage.completion_tokens

    assert await length() < 30 <= await length(min_tokens=30)


async def test_logprobs_are_those_of_the_greedy_tokens(aclient: openai.AsyncOpenAI) -> None:
    answer = await aclient.chat.completions.create(
        messages=MESSAGES, max_tokens=5, logprobs=True, **GREEDY
    )
    content = answer.choices[0].logprobs.content
    assert "".join(entry.token for entry in content) == answer.choices[0].message.content
    assert all(-5 < entry.logprob <= 0 for entry in content)
    assert len({entry.logprob for entry in content}) == len(content)


async def test_a_prompt_may_fill_the_context_and_no_more(
    aclient: openai.AsyncOpenAI, engine: Engine
) -> None:
    for room in (2, 1):
        prompt = [7] * (MAX_LEN - room)
        answer = await aclient.completions.create(prompt=prompt, max_tokens=9, **GREEDY)
        assert answer.usage.prompt_tokens == len(prompt)
        assert answer.usage.completion_tokens == room
        assert answer.choices[0].finish_reason == "length"
    with pytest.raises(openai.BadRequestError) as caught:
        await aclient.completions.create(prompt=[7] * MAX_LEN, **GREEDY)
    assert caught.value.code == "context_length_exceeded"
    await asyncio.to_thread(until_all_blocks_are_back, engine)


async def test_64_streams_share_a_prefix(aclient: openai.AsyncOpenAI, engine: Engine) -> None:
    prefix = "The quick brown fox jumps over the lazy dog. " * 20

    async def stream(number: int) -> openai.types.CompletionUsage:
        chunks = await aclient.completions.create(
            model=MODEL,
            prompt=f"{prefix}{number}",
            max_tokens=8,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
        return [chunk async for chunk in chunks][-1].usage

    await stream(0)
    usages = await asyncio.gather(*(stream(number) for number in range(64)))
    assert all(usage.prompt_tokens_details.cached_tokens >= 192 for usage in usages)
    assert all(usage.prompt_tokens_details.cached_tokens % 16 == 0 for usage in usages)
    await asyncio.to_thread(until_all_blocks_are_back, engine)


async def test_all_blocks_are_back_when_every_client_leaves(
    aclient: openai.AsyncOpenAI, engine: Engine
) -> None:
    async def leave(number: int) -> None:
        stream = await aclient.completions.create(
            prompt=f"{number} " * 50,
            max_tokens=800,
            stream=True,
            extra_body={"ignore_eos": True},
            **GREEDY,
        )
        await anext(aiter(stream))
        await stream.close()

    async def leave_early(number: int) -> None:
        request = aclient.completions.create(prompt=f"{number} " * 60, max_tokens=800, **GREEDY)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(request, 0.01 * number)

    await asyncio.gather(*map(leave, range(16)), *map(leave_early, range(16)))
    await asyncio.to_thread(until_all_blocks_are_back, engine)
    answer = await aclient.chat.completions.create(messages=MESSAGES, max_tokens=24, **GREEDY)
    assert "Paris" in answer.choices[0].message.content


def test_bad_requests_leave_the_engine_alone(engine: Engine) -> None:
    bodies = [
        {"prompt": [49152]},
        {"prompt": [], "max_tokens": 1},
        {"prompt": "x", "n": 2**31},
        {"prompt": "x", "stop": [""]},
        {"prompt": "x", "temperature": -1},
        {"prompt": "x", "stop_token_ids": [10**9]},
        {"prompt": "x", "seed": 2**64},
    ]
    until_all_blocks_are_back(engine)
    before = gauges(engine)
    for body in bodies:
        answer = httpx.post(f"{engine.url}/v1/completions", json={"model": MODEL, **body})
        assert (answer.status_code, answer.json()["error"]["param"] is None) == (400, False), body
    after = gauges(engine)
    for name in ("dropped_frames_total", "engine_steps_total", "engine_requests_rejected_total"):
        assert after[name] == before[name]


async def test_the_sdk_and_async_llm_join_a_running_engine(
    engine: Engine, codec: TextCodec
) -> None:
    ids = codec.tokenizer.encode("The sky is")
    async with Client(engine.run) as client:
        limits = await client.ready(10)
        assert (limits.max_model_len, limits.vocab_size) == (MAX_LEN, 49152)
        tokens = [t async for d in client.generate(ids, max_tokens=8) for t in d.tokens]
    async with AsyncLLM(MODEL, run_dir=engine.run.path, codec=codec) as llm:
        params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
        answer = await llm.generate("The sky is", params)
        assert answer.token_ids == tokens
        chat = await llm.chat(MESSAGES, SamplingParams(temperature=0))
        assert "Paris" in chat.text


def test_the_blocking_llm(engine: Engine) -> None:
    with LLM(MODEL, run_dir=engine.run.path) as llm:
        params = SamplingParams(temperature=0, max_tokens=8)
        together = llm.generate(["One, two,", "The sky is", [504, 2112]], params)
        alone = [llm.generate(p, params)[0] for p in ("One, two,", "The sky is", [504, 2112])]
        assert [each.text for each in together] == [each.text for each in alone]
        assert "".join(d.text for d in llm.stream("One, two,", params)) == alone[0].text
        assert "Paris" in llm.chat(MESSAGES, params).text
        for _ in llm.stream("One, two,", SamplingParams(ignore_eos=True)):
            break
    until_all_blocks_are_back(engine)


def test_health_and_readiness(engine: Engine) -> None:
    for path in ("/health", "/ready"):
        answer = httpx.get(engine.url + path)
        assert (answer.status_code, json.loads(answer.text)["status"]) == (200, "ok")


async def test_a_killed_scheduler_changes_no_stream_and_comes_back(
    aclient: openai.AsyncOpenAI, engine: Engine
) -> None:
    request = {"prompt": "One, two,", "max_tokens": 60, "frequency_penalty": 0.5, **GREEDY}
    forever = {"extra_body": {"ignore_eos": True}}
    quiet = (await aclient.completions.create(**request, **forever)).choices[0].text
    stream = await aclient.completions.create(stream=True, **request, **forever)
    pieces = [(await anext(aiter(stream))).choices[0].text]
    os.kill(engine.pids()["scheduler"], signal.SIGKILL)
    pieces += [chunk.choices[0].text async for chunk in stream]
    assert "".join(pieces) == quiet
    body = {"messages": MESSAGES, "max_tokens": 24, **GREEDY}
    answers = []
    async with asyncio.timeout(PATIENCE_S), httpx.AsyncClient(base_url=engine.url) as probe:
        while not answers or answers[-1].status_code != 200:
            answers.append(await probe.post("/v1/chat/completions", json=body, timeout=PATIENCE_S))
            await asyncio.sleep(0.02)
    *refused, answer = answers
    # the supervisor may be back before we ask
    assert {each.status_code for each in refused} <= {503}
    assert all("retry-after" in each.headers for each in refused)
    assert "Paris" in answer.json()["choices"][0]["message"]["content"]
    await asyncio.to_thread(until_all_blocks_are_back, engine)


async def test_usage_says_why_a_prompt_was_not_cached(engine: Engine) -> None:
    client = openai.AsyncOpenAI(base_url=f"{engine.url}/v1", api_key="none")
    story = [{"role": "user", "content": "Once upon a time " * 30}]
    session = {"session_id": "story", "priority": 3, "deadline_ms": 60_000}

    async def details(messages: list[dict[str, str]]) -> tuple[dict[str, Any], int]:
        answer = await client.chat.completions.create(
            model=MODEL, messages=messages, max_tokens=2, temperature=0, extra_body=session
        )
        usage = answer.usage.model_dump()
        return usage["prompt_tokens_details"], usage["prompt_tokens"]

    first, size = await details(story)
    assert first["cached_tokens"] + first["missed"]["new"] == size
    again, size = await details(story)
    assert again["cached_tokens"] >= size - 32
    changed, size = await details([{"role": "user", "content": "Once upon a day " * 30}])
    missed = changed["missed"]
    assert missed["diverged_at"] >= changed["cached_tokens"] > 0
    assert missed["diverged"] > 100
    counted = sum(missed[reason] for reason in ("new", "evicted", "salted", "diverged"))
    assert changed["cached_tokens"] + counted == size
