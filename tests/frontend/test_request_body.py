# SPDX-License-Identifier: MIT
"""Whatever a client sends, the answer is a request or a refusal that names the field."""

import asyncio
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenspeed_core.async_llm import TextCodec
from tokenspeed_core.chat_template import ChatTemplateError
from tokenspeed_core.sampling_params import SamplingError, SamplingParams
from tokenspeed_core.server.failure import ApiError
from tokenspeed_core.server.message_body import MessageFields
from tokenspeed_core.server.request_body import (
    HARMLESS,
    NEUTRAL,
    ChatFields,
    CompletionFields,
    GenerationFields,
    parse,
)
from tokenspeed_core.server.response_body import ResponseFields

leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-3, 3)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
names = st.sampled_from(
    sorted(
        {*ChatFields.__struct_fields__, *CompletionFields.__struct_fields__, *NEUTRAL, *HARMLESS}
    )
)
VALID: dict[type[GenerationFields], dict[str, Any]] = {
    ChatFields: {"model": "m", "messages": [{"role": "user", "content": "x"}]},
    CompletionFields: {"model": "m", "prompt": "x"},
}


def outcome(
    body: bytes, fields: type[GenerationFields], ignored: Callable[[str], None] = lambda _: None
) -> SamplingParams | ApiError | SamplingError:
    """Return what a client's body comes to; any other exception is our bug."""
    try:
        return parse(body, fields, ignored).sampling_params()
    except (ApiError, SamplingError) as error:
        return error


@settings(max_examples=600, deadline=None)
@given(
    fields=st.sampled_from([ChatFields, CompletionFields]),
    changes=st.dictionaries(names | st.text(max_size=6), values, max_size=4),
)
def test_any_fields_are_served_or_refused_by_name(
    fields: type[GenerationFields], changes: dict[str, Any]
) -> None:
    ignored: list[str] = []
    body = json.dumps({**VALID[fields], **changes}).encode()
    result = outcome(body, fields, ignored.append)
    if isinstance(result, ApiError):
        assert result.status == 400
        assert result.param in changes
    if not isinstance(result, SamplingParams):
        return
    # nothing that was asked for is lost: it has an effect, asks for nothing, or was counted
    silent = set(changes) - set(fields.__struct_fields__) - set(NEUTRAL)
    assert len(ignored) == sum(changes[name] is not None for name in silent)


@settings(max_examples=300, deadline=None)
@given(body=st.binary(max_size=60))
def test_any_bytes_are_refused_politely(body: bytes) -> None:
    result = outcome(body, ChatFields)
    assert isinstance(result, ApiError)
    assert result.status == 400


@settings(max_examples=200, deadline=None)
@given(
    body=st.sampled_from([json.dumps(body).encode() for body in VALID.values()]),
    place=st.integers(0, 60),
    byte=st.integers(0, 255),
)
def test_a_flipped_byte_is_served_or_refused(body: bytes, place: int, byte: int) -> None:
    at = place % len(body)
    broken = body[:at] + bytes([byte]) + body[at + 1 :]
    for fields in VALID:
        result = outcome(broken, fields)
        assert not isinstance(result, ApiError) or result.status == 400


messages = st.lists(
    st.dictionaries(
        st.sampled_from(["role", "content", "name", "tool_calls"]) | st.text(max_size=4),
        st.sampled_from(["user", "system", "assistant", "tool"]) | values,
        max_size=3,
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=300, deadline=None)
@given(messages=messages)
def test_any_messages_are_rendered_or_refused(
    codec: TextCodec, messages: list[dict[str, Any]]
) -> None:
    async def rendered() -> list[int] | ChatTemplateError:
        try:
            return await codec.chat_prompt(messages)
        except ChatTemplateError as error:
            return error

    result = asyncio.run(rendered())
    if isinstance(result, ChatTemplateError):
        assert "messages[" in str(result)
    else:
        answer = codec.tokenizer.encode("<|im_start|>assistant\n")
        assert result[-len(answer) :] == answer


def test_both_token_limits_are_read_and_the_newer_wins() -> None:
    def limit(**fields: int) -> int | None:
        result = outcome(json.dumps({**VALID[ChatFields], **fields}).encode(), ChatFields)
        assert isinstance(result, SamplingParams)
        return result.max_tokens

    assert limit() is None
    assert limit(max_tokens=5) == 5
    assert limit(max_completion_tokens=6) == 6
    assert limit(max_tokens=5, max_completion_tokens=6) == 6


def test_top_k_of_minus_one_keeps_all() -> None:
    body = json.dumps({**VALID[CompletionFields], "top_k": -1}).encode()
    result = outcome(body, CompletionFields)
    assert isinstance(result, SamplingParams)
    assert result.top_k == 0


EFFECTS: dict[str, Any] = {
    "max_tokens": 5,
    "max_completion_tokens": 5,
    "temperature": 0.5,
    "top_p": 0.5,
    "top_k": 5,
    "min_p": 0.5,
    "presence_penalty": 1,
    "frequency_penalty": 1,
    "repetition_penalty": 2,
    "min_tokens": 5,
    "logit_bias": {"5": 1},
    "bad_words": ["x"],
    "seed": 5,
    "stop": "x",
    "stop_token_ids": [5],
    "ignore_eos": True,
    "logprobs": 0,
    "prompt_logprobs": 2,
    "session_id": "x",
    "cache_salt": "x",
    "retain_ms": 5,
    "kv_hints": {"protocol_version": "0.1", "actions": [{"action_type": "retain"}]},
    "priority": 5,
    "deadline_ms": 5,
}
# what their endpoints' own tests show
SHOWN = {
    "model", "stream", "stream_options", "n", "return_token_ids", "messages", "prompt", "echo",
    "tools", "tool_choice", "parallel_tool_calls", "include_reasoning", "reasoning_effort",
    "chat_template_kwargs", "add_generation_prompt", "continue_final_message",
    "response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice",
    "guided_grammar", "thinking_budget", "top_logprobs",
    "request_id", "rid",
}  # fmt: skip


def test_every_field_that_is_known_has_an_effect() -> None:
    known = {*ChatFields.__struct_fields__, *CompletionFields.__struct_fields__}
    assert known == {*EFFECTS, *SHOWN}

    def engine_is_told(kind: type[GenerationFields], **fields: Any) -> object:
        parsed = parse(json.dumps({**VALID[kind], **fields}).encode(), kind, lambda _: None)
        return parsed.sampling_params(), parsed.session(), parsed.urgency()

    for kind in (ChatFields, CompletionFields):
        for field in sorted({*kind.__struct_fields__} & EFFECTS.keys()):
            value = True if (kind, field) == (ChatFields, "logprobs") else EFFECTS[field]
            assert engine_is_told(kind, **{field: value}) != engine_is_told(kind), field


REFUSED = {
    MessageFields: {"n": 2, "stop": "x", "return_token_ids": True, "stream_options": {}},
    ResponseFields: {"n": 2, "return_token_ids": True, "stream_options": {}},
}
# what test_messages.py, test_responses.py and test_response_store.py show
FORMATS = {
    "response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice",
    "guided_grammar",
}  # fmt: skip
SHOWN_ELSEWHERE = {
    MessageFields: FORMATS | {
        "model", "stream", "tools", "tool_choice", "request_id", "rid", "output_config",
    },
    ResponseFields: FORMATS | {
        "model", "stream", "tools", "tool_choice", "parallel_tool_calls", "request_id", "rid",
        "previous_response_id", "store", "text", "background", "include", "top_logprobs",
    },
}  # fmt: skip
TOLD: dict[type, dict[str, Any]] = {
    MessageFields: {
        "messages": [{"role": "user", "content": "Other"}],
        "system": "Be brief.",
        "stop_sequences": ["x"],
        "thinking": {"type": "disabled"},
        "chat_template_kwargs": {"a": 1},
    },
    ResponseFields: {
        "input": "Other",
        "instructions": "Be brief.",
        "max_output_tokens": 5,
        "reasoning": {"effort": "low"},
        "chat_template_kwargs": {"a": 1},
    },
}
ASKED: dict[type, dict[str, Any]] = {
    MessageFields: {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9},
    ResponseFields: {"model": "m", "input": "Hi"},
}


@pytest.mark.parametrize("kind", [MessageFields, ResponseFields])
def test_every_field_of_messages_and_responses_has_an_effect_or_is_refused(kind: type) -> None:
    effects = {**EFFECTS, **TOLD[kind]}
    known = set(kind.__struct_fields__)
    assert known <= {*effects, *REFUSED[kind], *SHOWN_ELSEWHERE[kind]}

    def told(**fields: Any) -> object:
        body = json.dumps({**ASKED[kind], **fields}).encode()
        parsed = parse(body, kind, lambda _: None)
        how = parsed.rendering(parsed.offered())
        sampling = parsed.sampling_params(), parsed.session(), parsed.urgency()
        return sampling, parsed.conversation(), how

    for field in sorted(known & effects.keys() - REFUSED[kind].keys()):
        assert told(**{field: effects[field]}) != told(), field
    for field, value in REFUSED[kind].items():
        body = json.dumps({**ASKED[kind], field: value, "stream": True}).encode()
        parsed = parse(body, kind, lambda _: None)
        check = partial(parsed.refuse, *REFUSED[kind])
        checks = partial(parsed.check, is_stored=True) if kind is ResponseFields else check
        with pytest.raises(ApiError, match=field):
            checks()
