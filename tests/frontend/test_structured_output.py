# SPDX-License-Identifier: MIT
"""Answers that must have a form, in a whole engine, as users ask for them.

The model is random and says what the form lets it; SmolLM2 is asked by the example 10.
"""

import asyncio
import json
import os
import re
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import jsonschema
import openai
import pytest

from tests.frontend.conftest import thin_engine
from tokenspeed_core.async_llm import AsyncLLM
from tokenspeed_core.config import EngineConfig
from tokenspeed_core.grammar.grammar import Grammar, json_schema
from tokenspeed_core.launch import Engine
from tokenspeed_core.sampling_params import SamplingParams
from tokenspeed_core.text_codec import TextCodec

MODEL = "smollm2"
PATIENCE_S = 120.0
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Z][a-z]{1,9}$"},
        "age": {"type": "integer", "minimum": 1, "maximum": 120},
        "likes": {"type": "array", "items": {"enum": ["tea", "jazz", "rain"]}, "maxItems": 2},
    },
    "required": ["name", "age", "likes"],
    "additionalProperties": False,
}
# Only llguidance enforces this one.
BOTH = {
    "allOf": [
        {
            "type": "object",
            "properties": {"a": {"type": "integer", "maximum": 9}},
            "additionalProperties": False,
        },
        {"required": ["a"]},
    ]
}
ASK: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Tell me about a person, as JSON."}],
    "max_tokens": 120,
    "temperature": 0,
}
FORMAT = {
    "type": "json_schema",
    "json_schema": {"name": "person", "strict": True, "schema": PERSON},
}


@pytest.fixture(scope="module")
def engine(thin_smollm2: Path) -> Iterator[Engine]:
    with thin_engine(
        thin_smollm2,
        served_model_name=MODEL,
        dtype="fp32",
        max_model_len=1024,
        grammar_deadline_s=2.0,
    ) as engine:
        yield engine


@pytest.fixture
async def client(engine: Engine) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{engine.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S
    ) as client:
        yield client


async def said(client: openai.AsyncOpenAI, **asked: Any) -> str:
    """Return a chat's answer, the same whole and streamed."""
    whole = await client.chat.completions.create(**{**ASK, **asked})
    stream = await client.chat.completions.create(**{**ASK, **asked}, stream=True)
    parts = [c.choices[0].delta.content or "" async for c in stream if c.choices]
    text = whole.choices[0].message.content
    assert "".join(parts) == text
    assert whole.choices[0].finish_reason == "stop"
    return text


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.2, "seed": 5}], ids=["greedy", "drawn"])
async def test_a_schema_holds(client: openai.AsyncOpenAI, sampling: dict[str, Any]) -> None:
    jsonschema.validate(json.loads(await said(client, response_format=FORMAT, **sampling)), PERSON)


async def test_any_object(client: openai.AsyncOpenAI, codec: TextCodec) -> None:
    ends = {codec.tokenizer.encode(text, add_special=False)[0]: 12 for text in ('"', "}", '":')}
    text = await said(client, response_format={"type": "json_object"}, logit_bias=ends)
    assert isinstance(json.loads(text), dict)


async def test_a_schema_that_only_the_other_backend_enforces(client: openai.AsyncOpenAI) -> None:
    text = await said(client, extra_body={"structured_outputs": {"json": BOTH}})
    jsonschema.validate(json.loads(text), BOTH)


@pytest.mark.parametrize(
    ("asked", "pattern"),
    [
        ({"structured_outputs": {"regex": "[a-f]{3}-[0-9]{2}"}}, "[a-f]{3}-[0-9]{2}"),
        ({"guided_regex": "(ab){1,3}c"}, "(ab){1,3}c"),
        ({"structured_outputs": {"choice": ["red", "blue"]}}, "red|blue"),
        ({"guided_choice": ["tea", "coffee"]}, "tea|coffee"),
        ({"structured_outputs": {"grammar": 'root ::= "x" [0-9] "y"'}}, "x[0-9]y"),
        (
            {
                "structured_outputs": {
                    "structural_tag": {
                        "type": "structural_tag",
                        "format": {"type": "tag", "begin": "<n>", "end": "</n>"}
                        | {"content": {"type": "regex", "pattern": "[0-9]{1,3}"}},
                    }
                }
            },
            "<n>[0-9]{1,3}</n>",
        ),
    ],
    ids=["regex", "guided-regex", "choice", "guided-choice", "ebnf", "tag"],
)
async def test_other_forms_in_chat_and_completions(
    client: openai.AsyncOpenAI, asked: dict[str, Any], pattern: str
) -> None:
    chat, plain = await asyncio.gather(
        client.chat.completions.create(**ASK, extra_body=asked),
        client.completions.create(
            model=MODEL, prompt="Well:", max_tokens=60, temperature=0, extra_body=asked
        ),
    )
    assert re.fullmatch(pattern, chat.choices[0].message.content)
    assert re.fullmatch(pattern, plain.choices[0].text)


async def test_responses_and_messages(engine: Engine, client: openai.AsyncOpenAI) -> None:
    flat = {"type": "json_schema", "name": "person", "schema": PERSON, "strict": True}
    answer = await client.responses.create(
        model=MODEL, input="A person, as JSON.", temperature=0, text={"format": flat}
    )
    jsonschema.validate(json.loads(answer.output_text), PERSON)
    async with anthropic.AsyncAnthropic(base_url=engine.url, api_key="x", max_retries=0) as other:
        message = await other.messages.create(
            model=MODEL,
            max_tokens=120,
            messages=[{"role": "user", "content": "A person, as JSON."}],
            extra_body={
                "temperature": 0,
                "output_config": {"format": {"type": "json_schema", "schema": PERSON}},
            },
        )
    jsonschema.validate(json.loads(message.content[0].text), PERSON)


async def test_many_side_by_side_with_free_ones(client: openai.AsyncOpenAI) -> None:
    free = {**ASK, "messages": [{"role": "user", "content": "Count to ten."}], "max_tokens": 32}
    alone = (await client.chat.completions.create(**free)).choices[0].message.content
    answers = await asyncio.gather(
        *(client.chat.completions.create(**free) for _ in range(3)),
        *(
            client.chat.completions.create(**ASK | {"temperature": 1, "seed": seed}, **formatted)
            for seed, formatted in enumerate([{"response_format": FORMAT}] * 4)
        ),
    )
    texts = [answer.choices[0].message.content for answer in answers]
    assert texts[:3] == [alone] * 3
    for text in texts[3:]:
        jsonschema.validate(json.loads(text), PERSON)


async def test_the_end_of_a_grammar_is_the_end(client: openai.AsyncOpenAI) -> None:
    for extra in ({"ignore_eos": True}, {"min_tokens": 20}):
        answer = await client.chat.completions.create(
            **ASK, extra_body={"structured_outputs": {"regex": "[a-c]{0,3}"}, **extra}
        )
        choice = answer.choices[0]
        assert (len(choice.message.content), choice.finish_reason) == (3, "stop")
    cut = await client.chat.completions.create(**ASK | {"max_tokens": 3}, response_format=FORMAT)
    assert cut.choices[0].finish_reason == "length"
    stopped = await client.chat.completions.create(
        **ASK, stop=["q"], extra_body={"guided_regex": "pqrs"}
    )
    assert stopped.choices[0].message.content == "p"


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "wat"}}}},
         "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"guided_regex": "(a"}, "guided_regex"),
        ({"guided_json": {"$ref": "#"}}, "guided_json"),
        ({"guided_grammar": 'root ::= "a"\nroot ::= "b"'}, "guided_grammar"),
        ({"guided_grammar": 'root ::= "' + "a" * 900_000 + '"'}, "guided_grammar"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice"),
        ({"structured_outputs": {"regex": "a", "json": {}}}, "structured_outputs"),
        ({"structured_outputs": {"whitespace_pattern": " "}}, "structured_outputs"),
    ],
    ids=("type", "format", "regex", "ref", "duplicate", "huge", "empty", "two", "ways", "way"),
)  # fmt: skip
async def test_what_cannot_be_is_refused_by_name(
    client: openai.AsyncOpenAI, asked: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await client.chat.completions.create(**ASK, extra_body=asked)
    assert refused.value.body["param"] == param
    assert refused.value.body["code"] == "invalid_grammar"


async def test_no_token_ends_one_request_alone(engine: Engine, client: openai.AsyncOpenAI) -> None:
    other = asyncio.create_task(client.chat.completions.create(**ASK))
    with pytest.raises(openai.BadRequestError, match="leave no token") as failed:
        await client.chat.completions.create(
            **ASK, extra_body={"guided_regex": "q", "bad_words": ["q"]}
        )
    assert failed.value.body["code"] == "no_token_allowed"
    assert (await other).choices[0].message.content
    assert httpx.get(f"{engine.url}/health").status_code == 200


async def test_deaths_change_no_answer(engine: Engine, client: openai.AsyncOpenAI) -> None:
    words = {"structured_outputs": {"regex": "([a-z]{3} ){12}end"}}
    asked = {"model": MODEL, "prompt": "Words:", "max_tokens": 300, "temperature": 0}
    quiet = (await client.completions.create(**asked, extra_body=words)).choices[0].text
    assert re.fullmatch("([a-z]{3} ){12}end", quiet)
    for part in ("worker 0", "scheduler"):
        stream = await client.completions.create(**asked, extra_body=words, stream=True)
        pieces = [(await anext(aiter(stream))).choices[0].text]
        os.kill(engine.pids()[part], signal.SIGKILL)
        pieces += [chunk.choices[0].text async for chunk in stream]
        assert "".join(pieces) == quiet


async def test_ranks_agree_where_the_vocabulary_is_sharded(thin_smollm2: Path) -> None:
    config = EngineConfig(
        model=str(thin_smollm2), dtype="fp32", tp=2, num_blocks=64, max_model_len=256
    )
    params = SamplingParams(
        temperature=1.0, seed=3, max_tokens=100, grammar=Grammar.of(json_schema(PERSON))
    )
    async with AsyncLLM(config) as llm:
        for _ in range(2):
            answer = await llm.generate("A person:", params)
            jsonschema.validate(json.loads(answer.text), PERSON)
        free = await llm.generate("One, two,", SamplingParams(temperature=0, max_tokens=4))
        assert free.text
