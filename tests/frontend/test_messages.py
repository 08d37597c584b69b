# SPDX-License-Identifier: MIT
"""Anthropic's API through its own client, and the routes about tokens."""

import json
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import httpx
import pytest

from tests.frontend.conftest import HttpServer, listening
from tests.frontend.scripted_scheduler import ScriptedScheduler
from tests.frontend.test_tools import CALL, OTHER, TEMPLATE, prompt
from tokenspeed_core.async_llm import TextCodec
from tokenspeed_core.keyring import Keyring
from tokenspeed_core.server.access import Access

ASKED: dict[str, Any] = {
    "model": "smollm2",
    "max_tokens": 200,
    "messages": [{"role": "user", "content": "Read it."}],
    "tools": [
        {
            "name": name,
            "description": "Does it.",
            "input_schema": {"type": "object", "properties": {"path": {"type": "string"}}},
        }
        for name in ("read", "list")
    ],
}


@pytest.fixture
async def http(scheduler: ScriptedScheduler, codec: TextCodec) -> AsyncIterator[HttpServer]:
    async with listening(scheduler, codec.with_template(TEMPLATE)) as server:
        yield server


def client(http: HttpServer, key: str = "none") -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=http.url, api_key=key, max_retries=0)


async def test_a_message_with_thoughts_text_and_calls(http: HttpServer) -> None:
    http.answers(f"<think>\nHm.\n</think>\n\nI look.\n{CALL}\n{OTHER}")
    whole = await client(http).messages.create(**ASKED)
    assert [block.type for block in whole.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert (whole.content[0].thinking, whole.content[1].text) == ("Hm.", "I look.")
    assert (whole.content[2].name, whole.content[2].input) == ("read", {"path": "/tmp/é"})
    assert (whole.content[3].name, whole.content[3].input) == ("list", {})
    assert (whole.stop_reason, whole.stop_sequence) == ("tool_use", None)
    assert whole.usage.input_tokens > 0
    assert whole.usage.cache_read_input_tokens > 0
    async with client(http).messages.stream(**ASKED) as stream:
        streamed = await stream.get_final_message()
    for block in (*whole.content, *streamed.content):
        if block.type == "tool_use":
            assert block.id.startswith("toolu_")
            block.id = ""
    shown = [[block.to_dict() for block in m.content] for m in (whole, streamed)]
    assert shown[0] == shown[1]
    assert streamed.stop_reason == whole.stop_reason
    assert streamed.usage.output_tokens == whole.usage.output_tokens
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    one = await client(http).messages.create(**ASKED, tool_choice=choice)
    assert [block.type for block in one.content] == ["thinking", "text", "tool_use"]


async def test_the_shape_of_the_events(http: HttpServer) -> None:
    http.answers("I look.\n" + CALL)
    async with httpx.AsyncClient() as raw:
        answer = await raw.post(http.url + "/v1/messages", json={**ASKED, "stream": True})
    events = [dict(line.split(": ", 1) for line in event.split("\n")) for event in _events(answer)]
    bodies = [json.loads(event["data"]) for event in events]
    assert [event["event"] for event in events] == [body["type"] for body in bodies]
    kinds = [body["type"] for body in bodies if body["type"] != "content_block_delta"]
    block = ["content_block_start", "content_block_stop"]
    assert kinds == ["message_start", *block, *block, "message_delta", "message_stop"]
    assert bodies[0]["message"]["content"] == []
    assert [body["index"] for body in bodies if body["type"] == "content_block_start"] == [0, 1]
    pieces = [body["delta"] for body in bodies if body["type"] == "content_block_delta"]
    assert {piece["type"] for piece in pieces} == {"text_delta", "input_json_delta"}
    assert "".join(piece.get("partial_json", "") for piece in pieces) == '{"path": "/tmp/é"}'
    assert bodies[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}


def _events(answer: httpx.Response) -> list[str]:
    return [event for event in answer.text.split("\n\n") if event]


async def test_stop_reasons(http: HttpServer) -> None:
    http.answers("One two three four")
    for asked, reason, text in (
        ({}, ("end_turn", None), "One two three four"),
        ({"stop_sequences": [" three"]}, ("stop_sequence", " three"), "One two"),
        ({"max_tokens": 2}, ("max_tokens", None), "One two"),
    ):
        whole = await client(http).messages.create(**{**ASKED, **asked})
        async with client(http).messages.stream(**{**ASKED, **asked}) as stream:
            streamed = await stream.get_final_message()
        for message in (whole, streamed):
            assert (message.stop_reason, message.stop_sequence) == reason
            assert message.content[0].text == text


async def test_a_conversation_is_rendered_without_its_nonce(http: HttpServer) -> None:
    http.answers("Seven.")
    use = {"type": "tool_use", "id": "toolu_1", "name": "read", "input": {"path": "/tmp/é"}}
    thought = {"type": "thinking", "thinking": "Hm.", "signature": ""}
    result = {"type": "tool_result", "tool_use_id": "toolu_1"}
    conversation = [
        *ASKED["messages"],
        {"role": "assistant", "content": [thought, {"type": "text", "text": "On it."}, use]},
        {
            "role": "user",
            "content": [
                {**result, "content": [{"type": "text", "text": "It says 7."}]},
                {"type": "text", "text": "And?", "cache_control": {"type": "ephemeral"}},
            ],
        },
    ]
    seen = []
    for nonce in ("a", "b"):
        system = [
            {"type": "text", "text": f"x-anthropic-billing-header: cch={nonce};"},
            {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}},
        ]
        asked = {**ASKED, "messages": conversation, "system": system}
        await client(http).messages.create(**asked, metadata={"user_id": "me"})
        seen.append(prompt(http))
        del asked["max_tokens"]
        count = await client(http).messages.count_tokens(**asked)
        assert count.input_tokens == len(http.scheduler.submits[-1].prompt) // 4
    assert seen[0] == seen[1]
    assert "<|im_start|>system\nBe brief.<|im_end|>" in seen[0]
    assert f"<think>\nHm.\n</think>\n\nOn it.\n{CALL}<|im_end|>" in seen[0]
    ending = "<|im_start|>tool\nIt says 7.<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n"
    assert seen[0].endswith(ending + "<|im_start|>assistant\n")
    begun = [*ASKED["messages"], {"role": "assistant", "content": "It says"}]
    await client(http).messages.create(**{**ASKED, "messages": begun})
    assert prompt(http).endswith("<|im_start|>assistant\nIt says")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("messages", []),
        ("messages", [{"role": "user", "content": [{"type": "image", "source": {}}]}]),
        ("messages", [{"role": "user", "content": 7}]),
        ("messages", [{"role": "nobody", "content": "x"}]),
        ("messages", [{"role": "assistant", "content": [{"type": "tool_use", "id": "1"}]}]),
        ("system", [{"type": "image"}]),
        ("tools", [{"type": "web_search_20250305", "name": "web_search"}]),
        ("tools", [{"name": ""}]),
        ("tool_choice", {"type": "sometimes"}),
        ("tool_choice", {"type": "tool", "name": "absent"}),
        ("max_tokens", 0),
        ("max_tokens", None),
        ("stop_sequences", [""]),
        ("temperature", 3),
    ],
)
async def test_what_cannot_be_served_is_refused_by_name(
    http: HttpServer, field: str, value: object
) -> None:
    async with httpx.AsyncClient() as raw:
        answer = await raw.post(http.url + "/v1/messages", json={**ASKED, field: value})
    body = answer.json()
    assert answer.status_code == 400, body
    assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
    assert body["error"]["param"] in (field, "stop" if field == "stop_sequences" else field)
    assert not http.scheduler.submits


async def test_the_key_and_the_model_are_checked(
    scheduler: ScriptedScheduler, codec: TextCodec
) -> None:
    access = Access(lambda: Keyring.of(("me", "s3cret")))
    async with listening(scheduler, codec.with_template(TEMPLATE), access) as http:
        with pytest.raises(anthropic.AuthenticationError):
            await client(http, "wrong").messages.create(**ASKED)
        with pytest.raises(anthropic.NotFoundError, match="claude"):
            await client(http, "s3cret").messages.create(**{**ASKED, "model": "claude"})
        assert (await client(http, "s3cret").messages.create(**ASKED)).role == "assistant"


async def test_tokens_there_and_back(http: HttpServer) -> None:
    codec = http.service.llm.codec
    messages = [{"role": "user", "content": "Café 🎉"}]
    async with httpx.AsyncClient(base_url=http.url) as raw:

        async def post(path: str, **body: object) -> dict[str, Any]:
            answer = await raw.post(path, json={"model": "smollm2", **body})
            return {"status": answer.status_code, **answer.json()}

        text = await post("/tokenize", prompt="Café 🎉", return_token_strs=True)
        assert text["tokens"] == codec.tokenizer.encode("Café 🎉")
        assert text["count"] == len(text["tokens"]) == len(text["token_strs"])
        assert (await post("/detokenize", tokens=text["tokens"]))["prompt"] == "Café 🎉"
        chat = await post("/tokenize", messages=messages)
        assert chat["tokens"] == await codec.chat_prompt(messages)
        assert "<|im_start|>" in (await post("/detokenize", tokens=chat["tokens"]))["prompt"]
        for path, body, param in (
            ("/tokenize", {}, "prompt"),
            ("/tokenize", {"prompt": 7}, "prompt"),
            ("/detokenize", {"tokens": [-1]}, "tokens"),
            ("/detokenize", {"tokens": [10**9]}, "tokens"),
            ("/detokenize", {"tokens": "x"}, "tokens"),
        ):
            refused = await post(path, **body)
            assert (refused["status"], refused["error"]["param"]) == (400, param)
        info = (await raw.get("/server_info")).json()
        assert (info["model"], info["dialect"], info["takes_tools"]) == ("smollm2", "hermes", True)
        assert "api_key" not in info["config"]
