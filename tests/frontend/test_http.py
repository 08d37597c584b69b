# SPDX-License-Identifier: MIT
"""The HTTP surface against a scripted scheduler, through the client that people use."""

import asyncio

import openai
import pytest

from tests.frontend.conftest import HttpServer

MODEL = "smollm2"
MESSAGES = [{"role": "user", "content": "Say it."}]
TEXT = "Café 🎉 costs 12 €, naïvely.\n\nEND of the list."


async def eventually(condition: object) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def test_chat_whole(http: HttpServer) -> None:
    http.answers(TEXT)
    answer = await http.client().chat.completions.create(model=MODEL, messages=MESSAGES)
    choice = answer.choices[0]
    assert (choice.message.role, choice.message.content) == ("assistant", TEXT)
    assert choice.finish_reason == "stop"
    ids = http.service.llm.codec.tokenizer.encode(TEXT)
    assert answer.usage.completion_tokens == len(ids) + 1
    assert answer.usage.prompt_tokens_details.cached_tokens == 32
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + len(ids) + 1


async def test_chat_streamed_equals_whole(http: HttpServer) -> None:
    http.answers(TEXT)
    stream = await http.client().chat.completions.create(
        model=MODEL, messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    texts = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(texts) == TEXT
    assert len([t for t in texts if t]) > 5
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens == 32
    assert [c.usage for c in chunks[:-1]] == [None] * (len(chunks) - 1)


@pytest.mark.parametrize("prompt", ["Once upon", [504, 2112], [[504, 2112]], ["Once upon"]])
async def test_completions_of_text_and_of_ids(http: HttpServer, prompt: object) -> None:
    http.answers(TEXT)
    whole = await http.client().completions.create(model=MODEL, prompt=prompt)
    stream = await http.client().completions.create(model=MODEL, prompt=prompt, stream=True)
    assert whole.choices[0].text == TEXT
    assert "".join([c.choices[0].text async for c in stream]) == TEXT


async def test_stop_strings_are_trimmed_and_the_kept_tokens_reported(http: HttpServer) -> None:
    http.answers(TEXT)
    client = http.client()
    for stop in ("END", "\n\nE", "naïvely", "é 🎉 c"):
        whole = await client.chat.completions.create(model=MODEL, messages=MESSAGES, stop=[stop])
        stream = await client.chat.completions.create(
            model=MODEL, messages=MESSAGES, stop=stop, stream=True
        )
        streamed = "".join([c.choices[0].delta.content or "" async for c in stream])
        assert whole.choices[0].message.content == streamed == TEXT[: TEXT.index(stop)]
        assert whole.choices[0].finish_reason == "stop"
    await eventually(lambda: len(http.scheduler.aborts) == 8)
    ids = http.service.llm.codec.tokenizer.encode(TEXT)
    decode = http.service.llm.codec.tokenizer.decode
    kept = http.scheduler.aborts[0].kept
    assert "END" in decode(ids[:kept])
    assert "END" not in decode(ids[: kept - 1])
    assert whole.usage.completion_tokens == http.scheduler.aborts[-1].kept


async def test_logprobs_of_the_sampled_tokens(http: HttpServer) -> None:
    http.answers("One two three")
    chat = await http.client().chat.completions.create(
        model=MODEL, messages=MESSAGES, logprobs=True
    )
    entries = chat.choices[0].logprobs.content
    assert "".join(e.token for e in entries) == "One two three"
    assert [e.logprob for e in entries] == [-0.5] * len(entries)
    assert bytes(b for e in entries for b in e.bytes).decode() == "One two three"
    plain = await http.client().completions.create(model=MODEL, prompt="x", logprobs=0)
    logprobs = plain.choices[0].logprobs
    assert logprobs.tokens[:3] == ["One", " two", " three"]
    assert logprobs.text_offset[:3] == [0, 3, 7]


async def test_a_client_that_leaves_aborts_its_request(http: HttpServer) -> None:
    client = http.client()
    endless = {"model": MODEL, "messages": MESSAGES, "max_tokens": 8000}
    stream = await client.chat.completions.create(
        **endless, stream=True, extra_body={"ignore_eos": True}
    )
    await anext(aiter(stream))
    await stream.close()
    await eventually(lambda: len(http.scheduler.aborts) == 1)
    whole = asyncio.create_task(client.chat.completions.create(**endless))
    await eventually(lambda: len(http.scheduler.submits) == 2)
    whole.cancel()
    await eventually(lambda: len(http.scheduler.aborts) == 2 and not http.scheduler.running)
    await eventually(lambda: http.service.in_flight == 0)


async def test_an_engine_that_dies_mid_stream_ends_it_with_an_error(http: HttpServer) -> None:
    stream = await http.client().completions.create(model=MODEL, prompt="x y", stream=True)
    with pytest.raises(openai.APIError, match="may be sent again"):  # noqa: PT012
        await anext(aiter(stream))
        http.scheduler.stop()
        async for _ in stream:
            pass
    await eventually(lambda: not http.service.llm.client.is_ready)
    with pytest.raises(openai.InternalServerError) as caught:
        await http.client().completions.create(model=MODEL, prompt="x")
    assert caught.value.status_code == 503
    assert caught.value.response.headers["retry-after"] == "1"


async def test_session_salt_and_urgency_reach_the_scheduler(http: HttpServer) -> None:
    fields = {"session_id": "talk", "cache_salt": "me", "priority": -7, "deadline_ms": 900}
    fields["retain_ms"] = 5000
    hints = {"protocol_version": "0.1", "actions": [{"action_type": "kv.retain"}]}
    await http.client().completions.create(
        model=MODEL, prompt="one two", max_tokens=1, extra_body={**fields, "kv_hints": hints}
    )
    sent = http.scheduler.submits[-1]
    assert (sent.session, sent.salt, sent.priority, sent.deadline_ms) == ("talk", b"me", -7, 900)
    assert sent.retain_ms == 5000
