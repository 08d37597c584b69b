# SPDX-License-Identifier: MIT
"""Calls that must come, and thinking that must end, by a random model in a whole engine."""

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anthropic
import jsonschema
import openai
import pytest

from tests.frontend.conftest import served, thin_engine
from tokenspeed_core.dialect.families import FAMILIES
from tokenspeed_core.launch import Engine
from tokenspeed_core.server.conversation import EFFORTS
from tokenspeed_core.text_codec import TextCodec

MODEL = "smollm2"
PATIENCE_S = 120.0
PLACE = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Rome", "Oslo"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "days"],
}
NOTHING = {"type": "object", "properties": {}}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": schema}}
    for name, schema in (("weather", PLACE), ("clock", NOTHING))
]
SCHEMAS = {"weather": PLACE, "clock": NOTHING}
ASK: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "How is the weather in Rome?"}],
    "tools": TOOLS,
    "max_tokens": 200,
    "temperature": 0,
}
PLAIN = """{%- if tools %}{{ tools | tojson }}{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}<|im_start|>assistant
"""


def template(name: str, tail: str = "") -> str:
    """Return a template that shows tools and speaks a family's dialect."""
    (evidence,) = (each.evidence for each in FAMILIES if each.dialect.name == name)
    return f"{{# {' '.join(evidence)} #}}{PLAIN}{tail}"


@pytest.fixture(scope="module")
def engine(thin_smollm2: Path) -> Iterator[Engine]:
    with thin_engine(thin_smollm2, serves_http=False, dtype="fp32", max_model_len=1024) as engine:
        yield engine


# All families' forms are tested without a model in tests/grammar.
@pytest.fixture(params=["qwen-coder", "harmony"])
async def http(
    request: pytest.FixtureRequest, engine: Engine, codec: TextCodec
) -> AsyncIterator[str]:
    spoken = codec.with_template(template(request.param))
    assert spoken.dialect.name == request.param
    async with served(engine.run.path, spoken) as (url, _):
        yield url


def client(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S
    )


def check(calls: list[Any]) -> list[str]:
    for call in calls:
        jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])
    return [call.function.name for call in calls]


async def test_a_call_comes_and_can_be_read(http: str) -> None:
    named = {"type": "function", "function": {"name": "weather"}}
    answer = await client(http).chat.completions.create(**ASK, tool_choice=named)
    message = answer.choices[0].message
    assert check(message.tool_calls) == ["weather"]
    assert not message.content
    assert answer.choices[0].finish_reason == "tool_calls"


@pytest.fixture
async def hermes(engine: Engine, codec: TextCodec) -> AsyncIterator[str]:
    async with served(engine.run.path, codec.with_template(template("hermes"))) as (url, _):
        yield url


async def test_several_calls_and_the_stream_of_them(hermes: str) -> None:
    asked = {**ASK, "tool_choice": "required", "temperature": 1.0, "seed": 7}
    answer = await client(hermes).chat.completions.create(**asked)
    calls = answer.choices[0].message.tool_calls
    if answer.choices[0].finish_reason == "length":  # a model may call without end
        calls = calls[:-1]
    names = check(calls)
    parts: list[list[str]] = []
    async for chunk in await client(hermes).chat.completions.create(**asked, stream=True):
        for call in chunk.choices[0].delta.tool_calls or []:
            if call.index == len(parts):
                parts.append([call.function.name, ""])
            parts[call.index][1] += call.function.arguments or ""
    assert [name for name, _ in parts][: len(names)] == names
    assert [text for _, text in parts][: len(names)] == [c.function.arguments for c in calls]
    one = await client(hermes).chat.completions.create(**asked, parallel_tool_calls=False)
    assert len(check(one.choices[0].message.tool_calls)) == 1


async def test_a_strict_tool_need_not_be_called(hermes: str) -> None:
    strict = [
        {"type": "function", "function": {**tool["function"], "strict": True}} for tool in TOOLS
    ]
    asked = ASK | {"tools": strict, "max_tokens": 24}
    answer = await client(hermes).chat.completions.create(**asked)
    check(answer.choices[0].message.tool_calls or [])


async def test_a_form_of_the_content_beside_tools(hermes: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    answer = await client(hermes).chat.completions.create(
        **ASK,
        parallel_tool_calls=False,
        response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
    )
    message = answer.choices[0].message
    if message.tool_calls:
        check(message.tool_calls)
    else:
        jsonschema.validate(json.loads(message.content), schema)


THINKS = template("hermes", "<think>\n")


async def test_thinking_ends_within_its_budget(
    engine: Engine, codec: TextCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(EFFORTS, "low", 6)
    async with served(engine.run.path, codec.with_template(THINKS)) as (url, _):
        asked = {**ASK, "tools": [], "max_tokens": 20}
        for extra in (
            {"thinking_budget": 6},
            {"thinking_budget": 6, "response_format": {"type": "json_object"}},
            {"reasoning_effort": "low"},
        ):
            answer = await client(url).chat.completions.create(
                **asked, extra_body={**extra, "return_token_ids": True}
            )
            message = answer.choices[0].message
            six = codec.tokenizer.decode(answer.choices[0].token_ids[:6])
            assert six.strip().startswith((message.reasoning_content or "").strip())
            assert message.content
        response = await client(url).responses.create(
            model=MODEL,
            input="How is the weather in Rome?",
            max_output_tokens=20,
            temperature=0,
            reasoning={"effort": "none"},
        )
        assert response.output_text
        free = await client(url).chat.completions.create(**asked)
        assert not free.choices[0].message.content  # it would still be thinking
        async with anthropic.AsyncAnthropic(base_url=url, api_key="x", max_retries=0) as other:
            answer = await other.messages.create(
                model=MODEL,
                max_tokens=20,
                extra_body={"temperature": 0},
                messages=ASK["messages"],
                thinking={"type": "enabled", "budget_tokens": 6},
            )
            assert [block.type for block in answer.content] == ["thinking", "text"]
            used = await other.messages.create(
                model=MODEL,
                max_tokens=120,
                extra_body={"temperature": 0},
                messages=ASK["messages"],
                tools=[{"name": "weather", "input_schema": PLACE}],
                tool_choice={"type": "any", "disable_parallel_tool_use": True},
                thinking={"type": "enabled", "budget_tokens": 6},
            )
        call = used.content[-1]
        assert (call.type, call.name) == ("tool_use", "weather")
        jsonschema.validate(call.input, PLACE)
        assert used.stop_reason == "tool_use"
        with pytest.raises(openai.BadRequestError, match="thinking_budget"):
            await client(url).chat.completions.create(**asked, extra_body={"thinking_budget": -1})
