# SPDX-License-Identifier: MIT
"""Requests that are nearly right: good bodies of every route with a few parts exchanged."""

import copy
import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import msgspec

from tokenspeed_core.server.abort import AbortFields
from tokenspeed_core.server.embeddings import EmbeddingFields
from tokenspeed_core.server.message_body import MessageFields
from tokenspeed_core.server.request_body import ChatFields, CompletionFields
from tokenspeed_core.server.response_body import ResponseFields
from tokenspeed_core.server.tokens import CountFields, DetokenizeFields, TokenizeFields

TURN = {"role": "user", "content": "Hi"}
TOOL = {"name": "look", "parameters": {"type": "object", "properties": {"at": {"type": "string"}}}}
# By route.
GOOD: Mapping[str, Sequence[dict[str, Any]]] = {
    "/v1/chat/completions": (
        {"messages": [TURN], "max_tokens": 2, "temperature": 0.5, "top_p": 0.9, "seed": 3},
        {"messages": [TURN], "max_completion_tokens": 2, "stream": True, "stop": ["\n"], "n": 2},
        {
            "messages": [
                {"role": "system", "content": [{"type": "text", "text": "Be short."}]},
                TURN,
            ],
            "tools": [{"type": "function", "function": TOOL}],
            "tool_choice": "auto",
            "parallel_tool_calls": False,
            "max_tokens": 2,
            "session_id": "a",
            "kv_hints": {"protocol_version": "0.1"},
            "cache_salt": "s",
        },
        {
            "messages": [TURN],
            "max_tokens": 2,
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}},
            "logprobs": True,
            "top_logprobs": 1,
            "logit_bias": {"5": -1},
            "stream_options": {"include_usage": True},
            "stream": True,
        },
    ),
    "/v1/completions": (
        {"prompt": "Hi", "max_tokens": 2, "echo": True, "logprobs": 1, "min_p": 0.1, "top_k": 5},
        {"prompt": [[5, 6], [7]], "max_tokens": 2, "presence_penalty": 1, "bad_words": ["no"]},
        {"prompt": ["a", "b"], "max_tokens": 2, "stream": True, "ignore_eos": True, "priority": 1},
        {"prompt": [1, 2], "max_tokens": 1, "stop_token_ids": [3], "min_tokens": 1, "retain_ms": 9},
    ),
    "/v1/responses": (
        {"input": "Hi", "max_output_tokens": 2, "instructions": "Be short.", "stream": True},
        {"input": [TURN], "max_output_tokens": 2, "tools": [{"type": "function", **TOOL}]},
    ),
    "/v1/messages": (
        {"messages": [TURN], "max_tokens": 2, "system": "Be short.", "stream": True},
        {"messages": [TURN], "max_tokens": 2, "tools": [{"name": "look", "input_schema": {}}]},
    ),
    "/v1/messages/count_tokens": ({"messages": [TURN], "system": [{"type": "text", "text": "a"}]},),
    "/v1/embeddings": ({"input": "Hi"}, {"input": [[5, 6]], "encoding_format": "base64"}),
    "/tokenize": ({"prompt": "Hi"}, {"messages": [TURN]}),
    "/detokenize": ({"tokens": [5, 6]},),
    "/abort": ({"request_id": "a"}, {"request_ids": ["a", "b"]}),
}
# Whose fields are exchanged, by route.
SCHEMAS: Mapping[str, type[msgspec.Struct]] = {
    "/v1/chat/completions": ChatFields,
    "/v1/completions": CompletionFields,
    "/v1/responses": ResponseFields,
    "/v1/messages": MessageFields,
    "/v1/messages/count_tokens": CountFields,
    "/v1/embeddings": EmbeddingFields,
    "/tokenize": TokenizeFields,
    "/detokenize": DetokenizeFields,
    "/abort": AbortFields,
}
# Values that mean something, of fields that no body above has.
FITTING: Mapping[str, tuple[Any, ...]] = {
    "guided_json": ({"type": "object"}, {"enum": ["a", 1]}, '{"type": "null"}'),
    "guided_regex": ("[ab]", "(a+)+$", "["),
    "guided_choice": (["a", "b"], ["a", "a"]),
    "guided_grammar": ('root ::= "a"', "root ::= root", "x"),
    "structured_outputs": ({"regex": "a|b"}, {"json": {}}, {"choice": ["a"]}, {"grammar": "g"}),
    "response_format": ({"type": "json_object"}, {"type": "text"}),
    "text": ({"format": {"type": "json_object"}}, {"format": {"type": "text"}}),
    "output_config": ({"format": {"type": "json_schema", "schema": {}}}, {"effort": "low"}),
    "prompt_logprobs": (0, 1, 20),
    "top_logprobs": (0, 1, 20),
    "frequency_penalty": (-2, 2),
    "repetition_penalty": (0.5, 2),
    "min_tokens": (1, 2),
    "min_p": (0.5,),
    "top_k": (-1, 1),
    "tool_choice": ("required", {"type": "function", "function": {"name": "look"}}),
    "reasoning": ({"effort": "none"}, {"effort": "low"}),
    "reasoning_effort": ("none", "low"),
    "thinking": ({"type": "enabled", "budget_tokens": 1}, {"type": "disabled"}),
    "include": (["message.output_text.logprobs"],),
    "background": (True,),
    "chat_template_kwargs": ({"enable_thinking": False}, {"messages": 1}, {"tools": [{}]}),
    "kv_hints": (
        {
            "protocol_version": "0.1",
            "actions": [{"action_type": "retain", "payload": {"ttl_ms": 1}}],
        },
    ),
    "request_ids": (["a"],),
    "dimensions": (8, 48),
    "encoding_format": ("base64", "float"),
    "stop_sequences": (["\n"],),
}
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**53 + 1, 2**63, -(2**63) - 1, 10**30, 0.5, 1e308),
    *(-0.0, float("nan"), float("inf"), "", "x", "0", "-1", "\0", "\ud800", "é" * 300, "x" * 9000),
    *([], [[]], {}, [None], [0] * 300, {"": None}, {"type": "text"}, {"type": "object"}, [{}]),
    *("auto", "required", "none", "user", "tool", {"type": "function"}, [TURN], {"$ref": "#"}),
)


@attrs.frozen
class MutatedRequest:
    """A POST that may be good or bad: how its server answers is what is looked at."""

    path: str
    body: bytes
    headers: dict[str, str]


def mutated(draw: random.Random, model: str, paths: Sequence[str]) -> MutatedRequest:
    """Return a request with one to three exchanged parts, now and then with damaged bytes."""
    path = draw.choice(paths)
    body = {"model": model, **copy.deepcopy(draw.choice(GOOD[path]))}
    for _ in range(draw.randint(1, 3)):
        _exchange(draw, body, path)
    raw = json.dumps(body).encode()
    if draw.random() < 0.1:
        raw = _damaged(draw, raw)
    headers = {"content-type": draw.choice(("application/json",) * 9 + ("text/plain",))}
    return MutatedRequest(path, raw, headers)


def _places(value: Any, depth: int = 6) -> list[tuple[Any, Any]]:
    """Return (container, key) of everything inside a JSON value, to a depth."""
    keys: Sequence[Any] = ()
    if depth and isinstance(value, dict):
        keys = list(value)
    elif depth and isinstance(value, list):
        keys = range(min(len(value), 8))
    inside = [(value, key) for key in keys]
    return inside + [place for key in keys for place in _places(value[key], depth - 1)]


def _exchange(draw: random.Random, body: dict[str, Any], path: str) -> None:
    places = _places(body)
    if not places:
        return
    container, key = draw.choice(places)
    match kind := draw.randrange(10):
        case _ if kind > 5:  # any field that there is, often with a value that means something
            name = draw.choice(SCHEMAS[path].__struct_fields__)
            fitting = FITTING.get(name) if draw.random() < 0.4 else None
            body[name] = copy.deepcopy(draw.choice(fitting or ODD))
        case 0 | 1:
            container[key] = copy.deepcopy(draw.choice(ODD))
        case 2:  # a value of another place
            other, there = draw.choice(places)
            container[key] = copy.deepcopy(other[there])
        case 3:  # a field of another request
            donor = draw.choice(draw.choice(list(GOOD.values())))
            name = draw.choice(list(donor))
            body[name] = copy.deepcopy(donor[name])
        case 4:
            del container[key]
        case 5:  # deeper
            for _ in range(draw.choice((1, 2, 100))):
                container[key] = [container[key]] if draw.random() < 0.5 else {"a": container[key]}


def _damaged(draw: random.Random, raw: bytes) -> bytes:
    at = draw.randrange(len(raw))
    match draw.randrange(5):
        case 0:
            return raw[:at]
        case 1:
            return raw[:at] + bytes([draw.randrange(256)]) + raw[at + 1 :]
        case 2:
            return raw[:at] + draw.choice((b"\0", b"\xff\xfe", b"\\ud800", b"[" * 3000)) + raw[at:]
        case 3:  # every field twice
            return raw[:-1] + b"," + raw[1:]
        case _:
            return raw[at:] + raw[:at]
