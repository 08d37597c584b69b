# SPDX-License-Identifier: MIT
"""What xgrammar and llguidance allow, against jsonschema and re."""

import json
import random
import re
from typing import Any

import jsonschema
import pytest

from tests.grammar.constrained import follows, random_answer
from tokenspeed_core.grammar import grammar as form
from tokenspeed_core.grammar.backend import BACKENDS, Backend, backend
from tokenspeed_core.grammar.grammar import GrammarError
from tokenspeed_core.grammar.schema_support import unenforced
from tokenspeed_core.grammar.vocabulary import Vocabulary
from tokenspeed_core.text_codec import TextCodec

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
SCHEMAS: list[dict[str, Any]] = [
    {"type": "object"},
    {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
            "more": {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    {
        "$defs": {
            "tree": {
                "type": "object",
                "properties": {
                    "value": {"type": "boolean"},
                    "left": {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]},
                },
                "required": ["value", "left"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/tree",
    },
    {"type": "array", "items": {"type": "number"}, "minItems": 1, "maxItems": 4},
]


def is_valid(text: str, schema: dict[str, Any]) -> bool:
    try:
        jsonschema.validate(json.loads(text), schema)
    except ValueError:  # no JSON
        return False
    except jsonschema.ValidationError:
        return False
    return True


@pytest.fixture(scope="module", params=BACKENDS)
def library(request: pytest.FixtureRequest, vocabulary: Vocabulary) -> Backend:
    return backend(request.param, vocabulary)


@pytest.mark.parametrize("schema", SCHEMAS, ids=range(len(SCHEMAS)))
def test_random_answers_are_valid(
    library: Backend, vocabulary: Vocabulary, schema: dict[str, Any]
) -> None:
    compiled = library.compile(dict(form.json_schema(schema)))
    draw = random.Random(7)
    answers = [random_answer(library, compiled, vocabulary, draw, 250) for _ in range(8)]
    ended = [json.loads(answer.decode(errors="replace")) for answer in answers if answer]
    assert len(ended) >= 3
    for answer in ended:
        jsonschema.validate(answer, schema)


@pytest.mark.parametrize(
    ("made", "good", "bad"),
    [
        (form.json_object(), ['{"a": [1, "x"]}', "{}", '{\n  "a": null\n}'], ["[]", "3", "{"]),
        (form.json_schema(CITY), ['{"city": "Köln"}'], ['{"city": 3}', "{}", '{"city": "a"']),
        (form.regex(r"[a-z]+@[a-z]+\.com"), ["me@home.com"], ["me@home.org", "@b.com"]),
        (form.choice(["yes", "no", 'a "b"\n']), ["yes", "no", 'a "b"\n'], ["maybe", "ye", "yesno"]),
        (form.ebnf('root ::= "a" b\nb ::= [0-9]+'), ["a1", "a407"], ["a", "b1"]),
        (
            form.sequence(form.constant("<"), form.regex("[0-9]{1,3}"), form.constant(">")),
            ["<42>"],
            ["<>", "<1234>"],
        ),
    ],
    ids=["object", "schema", "regex", "choice", "ebnf", "sequence"],
)
def test_exactly_the_form_is_allowed(
    library: Backend,
    vocabulary: Vocabulary,
    codec: TextCodec,
    made: dict[str, Any],
    good: list[str],
    bad: list[str],
) -> None:
    compiled = library.compile(dict(made))
    for text in good:
        ids = codec.tokenizer.encode(text, add_special=False)
        assert follows(library, compiled, vocabulary, ids), text
    for text in bad:
        ids = codec.tokenizer.encode(text, add_special=False)
        assert not follows(library, compiled, vocabulary, ids), text


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (form.json_schema({"type": "wat"}), "wat"),
        (form.ebnf('root ::= "a'), ""),
        (form.regex("(a"), ""),
        ({"type": "nonsense"}, "nonsense"),
        ({"type": "sequence"}, ""),
        ({}, ""),
    ],
    ids=["type", "ebnf", "regex", "format", "malformed", "empty"],
)
def test_what_is_malformed_is_refused(library: Backend, made: dict[str, Any], said: str) -> None:
    with pytest.raises(GrammarError, match=re.escape(said) or "grammar"):
        library.compile(dict(made))


@pytest.mark.parametrize(
    ("schema", "wrong"),
    [
        ({"type": "array", "items": {}, "uniqueItems": True}, "[1,1]"),
        ({"type": "array", "items": {}, "contains": {"type": "string"}}, "[1]"),
        ({"not": {"type": "integer"}}, "1"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "1"),
        ({"allOf": [{"type": "integer"}, {"minimum": 5}]}, "1"),
        ({"$defs": {"x": {"type": "integer"}}, "$ref": "#/$defs/x", "minimum": 5}, "1"),
        ({"type": "object", "required": ["zz"]}, "{}"),
        ({"minimum": 5}, "3"),
        ({"type": "string", "enum": ["a", 1]}, "1"),
        ({"type": "string", "maxLength": 2}, '"\x1a"'),
    ],
)
def test_what_a_backend_ignores_is_known(
    vocabulary: Vocabulary, codec: TextCodec, schema: dict[str, Any], wrong: str
) -> None:
    assert unenforced(schema) is not None
    assert not is_valid(wrong, schema)
    ids = codec.tokenizer.encode(wrong, add_special=False)
    lax = backend("xgrammar", vocabulary)
    assert follows(lax, lax.compile(dict(form.json_schema(schema))), vocabulary, ids)
    strict = backend("llguidance", vocabulary)
    try:
        compiled = strict.compile(dict(form.json_schema(schema)))
    except GrammarError:
        return
    assert not follows(strict, compiled, vocabulary, ids)


def test_what_is_enforced_needs_no_other_backend() -> None:
    for schema in SCHEMAS:
        assert unenforced(schema) is None
    names = {"type": "object", "properties": {"not": {"type": "string"}}, "required": ["not"]}
    assert unenforced(names) is None  # a property's name is no keyword
    assert unenforced({"type": "string", "enum": ["a"], "default": {"not": 1}}) is None
