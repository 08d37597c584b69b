# SPDX-License-Identifier: MIT
"""OpenAI's responses through its own client."""

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from tests.frontend.conftest import HttpServer, listening
from tests.frontend.scripted_scheduler import ScriptedScheduler
from tests.frontend.test_tools import CALL, OTHER, TEMPLATE, TOOLS, prompt
from tokenspeed_core.async_llm import TextCodec

ASKED: dict[str, Any] = {
    "model": "smollm2",
    "input": "Read it.",
    "tools": [{"type": "function", "strict": False, **tool["function"]} for tool in TOOLS],
}


@pytest.fixture
async def http(scheduler: ScriptedScheduler, codec: TextCodec) -> AsyncIterator[HttpServer]:
    async with listening(scheduler, codec.with_template(TEMPLATE)) as server:
        yield server


async def test_items_whole_and_streamed(http: HttpServer) -> None:
    http.answers(f"<think>\nHm.\n</think>\n\nI look.\n{CALL}\n{OTHER}")
    client = http.client()
    whole = await client.responses.create(**ASKED)
    kinds = ["reasoning", "message", "function_call", "function_call"]
    assert [item.type for item in whole.output] == kinds
    assert whole.output_text == "I look."
    assert (whole.output[2].name, whole.output[2].arguments) == ("read", '{"path": "/tmp/é"}')
    assert (whole.status, whole.output[3].arguments) == ("completed", "{}")
    assert whole.usage.input_tokens_details.cached_tokens > 0
    events = [event async for event in await client.responses.create(**ASKED, stream=True)]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [e.item.type for e in events if e.type == "response.output_item.done"] == kinds
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert text == "I look."
    deltas = [e for e in events if e.type == "response.function_call_arguments.delta"]
    assert "".join(e.delta for e in deltas if e.output_index == 2) == '{"path": "/tmp/é"}'
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
    last = events[-1].response
    assert last.output_text == "I look."
    assert last.usage.output_tokens == whole.usage.output_tokens
    async with client.responses.stream(**ASKED) as stream:
        assert (await stream.get_final_response()).output_text == "I look."
    cut = await client.responses.create(**ASKED, max_output_tokens=2)
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")


async def test_the_input_is_rendered(http: HttpServer) -> None:
    http.answers("7")
    asked = [
        {"role": "user", "content": [{"type": "input_text", "text": "Read it."}]},
        {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "Hm."}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "On it."}]},
        {
            "type": "function_call",
            "call_id": "c",
            "name": "read",
            "arguments": '{"path": "/tmp/é"}',
        },
        {"type": "function_call_output", "call_id": "c", "output": "It says 7."},
    ]
    await http.client().responses.create(**{**ASKED, "input": asked}, instructions="Be brief.")
    assert "<|im_start|>system\nBe brief.<|im_end|>" in prompt(http)
    assert f"<think>\nHm.\n</think>\n\nOn it.\n{CALL}<|im_end|>" in prompt(http)
    assert "<|im_start|>tool\nIt says 7.<|im_end|>" in prompt(http)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("input", []),
        ("input", [{"type": "item_reference", "id": "x"}]),
        ("input", [{"role": "user", "content": [{"type": "input_image"}]}]),
        ("input", 7),
        ("include", ["everything"]),
        ("top_logprobs", 2),
        ("reasoning", {"effort": "huge"}),
        ("text", {"format": {"type": "xml"}}),
        ("tools", [{"type": "web_search"}]),
        ("tool_choice", "sometimes"),
    ],
)
async def test_what_is_not_built_is_refused_by_name(
    http: HttpServer, field: str, value: object
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await http.client().responses.create(**ASKED, extra_body={field: value})
    assert caught.value.param == field
    assert not http.scheduler.submits


LOGPROBS = {"include": ["message.output_text.logprobs", "reasoning.encrypted_content"]}


async def test_logprobs_are_of_the_message_alone(http: HttpServer) -> None:
    http.answers(f"<think>\nHm, well.\n</think>\n\nI look.\n{CALL}")
    client = http.client()
    whole = await client.responses.create(**ASKED, **LOGPROBS)
    told = whole.output[1].content[0].logprobs
    assert "".join(each.token for each in told).strip() == whole.output_text == "I look."
    assert {each.logprob for each in told} == {-0.5}
    assert bytes(told[0].bytes).decode() == told[0].token
    assert 0 < whole.usage.output_tokens_details.reasoning_tokens < whole.usage.output_tokens
    events = [e async for e in await client.responses.create(**ASKED, **LOGPROBS, stream=True)]
    deltas = [e for e in events if e.type == "response.output_text.delta"]
    assert [each.token for e in deltas for each in e.logprobs] == [each.token for each in told]
    (done,) = (e for e in events if e.type == "response.output_text.done")
    assert [each.token for each in done.logprobs] == [each.token for each in told]
    assert events[-1].response.output[1].content[0].logprobs == told
    assert events[-1].response.usage.model_dump() == whole.usage.model_dump()
    plain = await client.responses.create(**ASKED)
    assert not plain.output[1].content[0].logprobs
