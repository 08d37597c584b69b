# SPDX-License-Identifier: MIT
"""What is decoded with a memory of earlier bodies is what is decoded without."""

import json
import random
import string
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from tokenspeed_core.server import seen_bodies
from tokenspeed_core.server.seen_bodies import MAX_BODIES, MAX_BYTES, MIN_BYTES, SeenBodies

LONG = "x" * MIN_BYTES


def outcome(decode: Callable[[bytes], Any], body: bytes) -> tuple[Any, str]:
    try:
        return decode(body), ""
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return None, f"{type(error)} {error}"


def check(bodies: SeenBodies, body: bytes) -> None:
    assert outcome(bodies.decode, body) == outcome(msgspec.json.decode, body)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all that is parsed."""
    sizes: list[int] = []
    decode = msgspec.json.decode

    def counted(body: bytes, **how: Any) -> Any:
        if not how:
            sizes.append(len(body))
        return decode(body, **how)

    monkeypatch.setattr(seen_bodies.msgspec.json, "decode", counted)
    return sizes


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_turn_parses_what_is_new(parsed: list[int], indent: int | None, at: int) -> None:
    bodies = SeenBodies()
    messages = [{"role": "system", "content": LONG}]
    for turn in range(5):
        items: list[tuple[str, Any]] = [("model", "m"), ("tools", [{"messages": []}])]
        items.insert(at, ("messages", messages))
        body = json.dumps(dict(items), indent=indent).encode()
        parsed.clear()
        assert bodies.decode(body)["messages"] == messages
        assert (parsed[-1] < 1000) == (turn > 0)
        messages = [*messages, {"role": "user", "content": f"é{turn}"}, {"role": "assistant"}]
    parsed.clear()
    bodies.decode(body)  # once more
    assert parsed[-1] < 1000


def test_others_share_nothing(parsed: list[int]) -> None:
    bodies = SeenBodies()

    def body(salt: str) -> bytes:
        said = [{"role": "user", "content": LONG}]
        return json.dumps({"messages": said, "cache_salt": salt}).encode()

    for owner, salt in (("a", "x"), ("b", "x"), ("a", "y")):
        parsed.clear()
        bodies.decode(body(salt), owner)
        assert parsed[-1] > MIN_BYTES


def test_what_is_remembered_is_bounded() -> None:
    bodies = SeenBodies()
    for turn in range(40):
        said = [{"role": "user", "content": str(turn) + "x" * 2**20}]
        bodies.decode(json.dumps({"messages": said}).encode())
    assert MAX_BYTES // 2 < bodies._known.num_bytes <= MAX_BYTES
    assert len(bodies._known) < 40
    for turn in range(200):
        said = [{"role": "user", "content": str(turn) + LONG}]
        bodies.decode(json.dumps({"messages": said}).encode())
    assert len(bodies._known) == MAX_BODIES


TRICKS = [
    '{"messages": [{"c": "LONG"}], "x": ["LONG"',
    '{"x": [{"c": "LONG"}], "messages": [{"c": "LONG"}]}',
    '{"messages": [{"c": "LONG"}], "messages": [{"c": "LONG"}, {}]}',
    '{"messages": [{"c": "LONG"}], "messages": null}',
    '{"messages": [{"c": "LONG"}], "m\\u0065ssages": [{"d": 1}]}',
    '{"m\\u0065ssages": [{"c": "LONG"}]}',
    '{"x": "[{}]LONG", "messages": [{}]}',
    '{"x": "[{}]LONG", "messages": [{}, 1]}',
    '{"x": {"messages": [{"c": "LONG"}]}, "messages": [{"c": "LONG"}]}',
    '{"x": {"messages": [{"c": "LONG"}, {}]}}',
    '{"messages": [{"c": "LONG"}, 1]}',
    '{"messages": [{"c": "LONG"}, 12]}',
    '{"messages": [{"c": "LONG"}, 12, "a"]}',
    '{"messages": [{"c": "LONG"} , {"b": [2]}\n ] }',
    '{"messages": [{"c": "LONG"} {"b": [2]}]}',
    '{"messages": [{"c": "LONG"}"b"]}',
    '{"messages": [{"c": "LONG"}]} x',
    '{"messages": "LONG"}',
    '[{"messages": [{"c": "LONG"}]}]',
    '{"messages": [{"c": "LONG"}, {"c": "' + seen_bodies._MARK + '"}]}',
]


def test_bodies_that_would_mislead() -> None:
    bodies = SeenBodies()
    draw = random.Random(3)
    for _ in range(1000):
        check(bodies, draw.choice(TRICKS).replace("LONG", LONG).encode())


def test_conversations_of_any_shape() -> None:
    draw = random.Random(5)
    bodies = SeenBodies()

    def value(depth: int = 0) -> Any:
        kind = draw.randrange(7 if depth < 3 else 4)
        if kind == 4:
            return [value(depth + 1) for _ in range(draw.randrange(4))]
        if kind >= 5:
            return {draw.choice(["messages", "a", "b"]): value(depth + 1) for _ in range(2)}
        text = "".join(draw.choices(string.printable + "é世\u2028", k=draw.randrange(9)))
        return [text, draw.randrange(1000), None, 1.5][kind]

    talks = [{"messages": [{"c": LONG}]} for _ in range(4)]
    for _ in range(1500):
        talk: dict[str, Any] = draw.choice(talks)
        if draw.random() < 0.1:
            talk["messages"] = talk["messages"][: draw.randrange(1, len(talk["messages"]) + 1)]
        talk["messages"] = talk["messages"] + [
            value() for _ in range(draw.randrange(3)) if len(talk["messages"]) < 40
        ]
        fields = [*talk.items(), ("model", "m"), ("x", value()), ("cache_salt", "")]
        draw.shuffle(fields)
        body = json.dumps(
            dict(fields), indent=draw.choice([None, None, 2]), ensure_ascii=draw.random() < 0.5
        ).encode()
        if draw.random() < 0.1:
            at = draw.randrange(len(body))
            body = body[:at] + bytes([draw.choice(b'"[]{},:x\xff')]) + body[at + 1 :]
        check(bodies, body)
