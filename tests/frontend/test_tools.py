# SPDX-License-Identifier: MIT
"""Tools and reasoning over HTTP, as the `openai` client sees them."""

import array
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from tests.frontend.conftest import HttpServer, listening
from tests.frontend.scripted_scheduler import ScriptedScheduler
from tests.frontend.test_http import eventually
from tokenspeed_core.async_llm import TextCodec
from tokenspeed_core.ipc.messages import SessionAction

# what Hermes and Qwen templates do, as short as it goes
TEMPLATE = r"""
{%- if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}Write <tool_call>.<|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{% if message.reasoning_content %}<think>
{{ message.reasoning_content }}
</think>

{% endif %}{{ message.content or '' }}
{%- for call in message.tool_calls %}{{ '\n<tool_call>' }}
{{ {'name': call.function.name, 'arguments': call.function.arguments} | tojson }}
</tool_call>
{%- endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking %}<think>
{% endif %}{% endif %}"""
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {"type": "object", "properties": {"path": {"type": "string"}}},
        },
    }
    for name in ("read", "list")
]
CALL = '<tool_call>\n{"name": "read", "arguments": {"path": "/tmp/é"}}\n</tool_call>'
OTHER = '<tool_call>\n{"name": "list", "arguments": {}}\n</tool_call>'
ASKED: dict[str, Any] = {
    "model": "smollm2",
    "messages": [{"role": "user", "content": "Read it."}],
    "tools": TOOLS,
}


@pytest.fixture
async def http(scheduler: ScriptedScheduler, codec: TextCodec) -> AsyncIterator[HttpServer]:
    async with listening(scheduler, codec.with_template(TEMPLATE)) as server:
        yield server


def prompt(http: HttpServer) -> str:
    ids = array.array("i", http.scheduler.submits[-1].prompt)
    return http.service.llm.codec.tokenizer.decode(list(ids), skip_special=False)


async def streamed(http: HttpServer, **asked: Any) -> dict[int, dict[str, Any]]:
    """Put a stream together as clients do, choice by choice."""
    choices: dict[int, dict[str, Any]] = {}
    stream = await http.client().chat.completions.create(**{**ASKED, **asked}, stream=True)
    async for chunk in stream:
        for choice in chunk.choices:
            got = choices.setdefault(
                choice.index, {"content": "", "reasoning": "", "calls": [], "reason": None}
            )
            assert got["reason"] is None, "a choice goes on after its end"
            got["content"] += choice.delta.content or ""
            got["reasoning"] += getattr(choice.delta, "reasoning_content", None) or ""
            for call in choice.delta.tool_calls or []:
                if call.index == len(got["calls"]):
                    assert call.id
                    assert call.type == "function"
                    got["calls"].append([call.function.name, call.function.arguments])
                else:
                    assert call.index == len(got["calls"]) - 1
                    assert (call.id, call.type, call.function.name) == (None, None, None)
                    got["calls"][-1][1] += call.function.arguments
            got["reason"] = choice.finish_reason
    return choices


async def test_calls_whole_and_streamed(http: HttpServer) -> None:
    http.answers(f"I look.\n{CALL}\n{OTHER}")
    answer = await http.client().chat.completions.create(**ASKED)
    choice = answer.choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "I look.")
    calls = [(call.function.name, call.function.arguments) for call in choice.message.tool_calls]
    assert calls == [("read", '{"path": "/tmp/é"}'), ("list", "{}")]
    assert len({call.id for call in choice.message.tool_calls}) == 2
    got = (await streamed(http))[0]
    assert got["calls"] == [list(call) for call in calls]
    assert (got["content"], got["reason"]) == ("I look.", "tool_calls")
    one = (await streamed(http, parallel_tool_calls=False))[0]
    assert one["calls"] == got["calls"][:1]
    assert '"name": "list"' in prompt(http)


async def test_a_cut_call_ends_for_its_length_and_text_alone_as_ever(http: HttpServer) -> None:
    http.answers(CALL)
    length = len(http.service.llm.codec.tokenizer.encode(CALL))
    got = (await streamed(http, max_tokens=length - 12))[0]
    assert got["reason"] == "length"
    name, arguments = got["calls"][0]
    assert name == "read"
    assert '{"path": "/tmp/é"}'.startswith(arguments)
    assert arguments[:2] == '{"'
    http.answers("No <tool> is needed.\n")
    assert (await streamed(http))[0] == {
        "content": "No <tool> is needed.\n",
        "reasoning": "",
        "calls": [],
        "reason": "stop",
    }


async def test_without_tools_or_with_choice_none_a_call_is_text(http: HttpServer) -> None:
    http.answers(CALL)
    for asked in ({"tools": []}, {"tool_choice": "none"}):
        got = (await streamed(http, **asked))[0]
        assert (got["content"], got["calls"], got["reason"]) == (CALL, [], "stop")
        assert "Write" not in prompt(http)


async def test_a_conversation_with_calls_and_results_is_rendered(http: HttpServer) -> None:
    http.answers("<think>\nHm.\n</think>\n\nOn it.\n" + CALL)
    first = await http.client().chat.completions.create(**ASKED)
    message = first.choices[0].message
    assert (message.reasoning_content, message.content) == ("Hm.", "On it.")
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "It says 7."}
    asked = {**ASKED, "messages": [*ASKED["messages"], message.model_dump(), result]}
    http.answers("7")
    await http.client().chat.completions.create(**asked)
    # the answer is rendered as the model wrote it, so that its cached blocks are found
    assert f"<think>\nHm.\n</think>\n\nOn it.\n{CALL}<|im_end|>" in prompt(http)
    assert "<|im_start|>tool\nIt says 7.<|im_end|>" in prompt(http)


async def test_a_prompt_that_opens_the_reasoning(http: HttpServer) -> None:
    http.answers("Hm.\n</think>\n\nYes.")
    thinking = {"extra_body": {"chat_template_kwargs": {"enable_thinking": True}}}
    got = (await streamed(http, **thinking))[0]
    assert (got["reasoning"], got["content"]) == ("Hm.", "Yes.")
    assert prompt(http).endswith("<think>\n")
    thinking["extra_body"]["include_reasoning"] = False
    got = (await streamed(http, **thinking))[0]
    assert (got["reasoning"], got["content"]) == ("", "Yes.")


async def test_the_session_is_told_that_its_step_called_a_tool(http: HttpServer) -> None:
    for text, told in ((CALL, 1), ("Done.", 1), (CALL, 2)):
        http.answers(text)
        await streamed(http, extra_body={"session_id": "talk"})
        await http.client().completions.create(model="smollm2", prompt="x", max_tokens=1)
        hints = [h for h in http.scheduler.hints if h.action == SessionAction.TOOL_CALL]
        assert [hint.session for hint in hints] == ["talk"] * told
    whole = {**ASKED, "extra_body": {"session_id": "whole"}}
    assert (await http.client().chat.completions.create(**whole)).choices[0].message.tool_calls
    await eventually(lambda: http.scheduler.hints[-1].session == "whole")


async def test_choices_side_by_side(http: HttpServer) -> None:
    http.answers("One. " + CALL)
    choices = await streamed(http, n=3, seed=5, stream_options={"include_usage": True})
    assert sorted(choices) == [0, 1, 2]
    assert choices[0] == choices[1] == choices[2]
    assert [submit.sampling.seed for submit in http.scheduler.submits] == [5, 6, 7]
    whole = await http.client().chat.completions.create(**ASKED, n=3)
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    one = await http.client().chat.completions.create(**ASKED)
    assert whole.usage.prompt_tokens == one.usage.prompt_tokens
    assert whole.usage.completion_tokens == 3 * one.usage.completion_tokens
    many = await http.client().completions.create(
        model="smollm2", prompt=["a b", [504]], n=2, echo=True, max_tokens=2
    )
    assert [choice.index for choice in many.choices] == [0, 1, 2, 3]
    assert [choice.text[:3] for choice in many.choices[:2]] == ["a b"] * 2
    ids = http.service.llm.codec.tokenizer.encode("a b")
    assert many.usage.prompt_tokens == len(ids) + 1


async def test_an_answer_may_be_continued(http: HttpServer) -> None:
    begun = [*ASKED["messages"], {"role": "assistant", "content": "The file says"}]
    body = {"continue_final_message": True, "add_generation_prompt": False}
    http.answers(" seven.")
    answer = await http.client().chat.completions.create(
        model="smollm2", messages=begun, extra_body={**body, "return_token_ids": True}
    )
    assert answer.choices[0].message.content == " seven."
    assert prompt(http).endswith("<|im_start|>assistant\nThe file says")
    decode = http.service.llm.codec.tokenizer.decode
    assert decode(answer.prompt_token_ids, skip_special=False) == prompt(http)
    assert decode(answer.choices[0].token_ids) == " seven."


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "web_search"}]),
        ("tools", [{"type": "function", "function": {}}]),
        ("tools", [{"type": "function", "function": {"name": "a b"}}]),
        ("tools", [{"type": "function", "function": {"name": "f", "parameters": 7}}]),
        ("tools", TOOLS * 600),
        ("tools", 7),
        ("tool_choice", "sometimes"),
        ("tool_choice", {"type": "function", "function": {"name": "absent"}}),
        ("tool_choice", {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}),
        ("n", 0),
        ("n", 129),
        ("stream_options", {"include_usage": True}),
    ],
)
async def test_what_cannot_be_served_is_refused_by_name(
    http: HttpServer, field: str, value: object
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await http.client().chat.completions.create(
            model="smollm2",
            messages=ASKED["messages"],
            extra_body={"tools": TOOLS, field: value},
        )
    assert json.loads(caught.value.response.text)["error"]["param"] == field
    assert not http.scheduler.submits


async def test_a_model_without_a_dialect_takes_no_tools(
    scheduler: ScriptedScheduler, codec: TextCodec
) -> None:
    plain = "{% for m in messages %}{{ m.content }}{% endfor %}"
    for template in (plain, plain + "{{ tools }}"):
        async with listening(scheduler, codec.with_template(template)) as http:
            with pytest.raises(openai.BadRequestError, match="tools"):
                await http.client().chat.completions.create(**ASKED)
