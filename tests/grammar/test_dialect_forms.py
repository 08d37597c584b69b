# SPDX-License-Identifier: MIT
"""Random answers in the form that a dialect gives them can be read, however they are split."""

import json
import random
from typing import Any

import jsonschema
import pytest

from tests.grammar.constrained import follows, random_answer
from tokenspeed_core.dialect.dialect import Dialect
from tokenspeed_core.dialect.event import Answer
from tokenspeed_core.dialect.families import DIALECTS, PLAIN
from tokenspeed_core.dialect.form import Tool, Wanted, answer_form
from tokenspeed_core.dialect.reader import DialectReader
from tokenspeed_core.grammar.backend import BACKENDS, Backend, backend
from tokenspeed_core.grammar.grammar import Format, json_schema, regex
from tokenspeed_core.grammar.vocabulary import Vocabulary
from tokenspeed_core.text_codec import TextCodec

ADD = {
    "type": "object",
    "properties": {
        "a": {"type": "integer"},
        "unit": {"enum": ["m", "km"]},
        "deep": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    },
    "required": ["a", "unit"],
    "additionalProperties": False,
}
NOTE = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
TOOLS = [Tool("add", ADD, True), Tool("note", NOTE, True)]
SCHEMAS = {tool.name: tool.parameters for tool in TOOLS}
FOUND = json_schema(
    {"type": "object", "properties": {"found": {"type": "boolean"}}, "required": ["found"]}
)


@pytest.fixture(scope="module")
def library(vocabulary: Vocabulary) -> Backend:
    return backend("xgrammar", vocabulary)


def answers(library: Backend, vocabulary: Vocabulary, form: Format | None, many: int) -> list[str]:
    assert form is not None
    compiled = library.compile(dict(form))
    draw = random.Random(11)
    found = [random_answer(library, compiled, vocabulary, draw, 200) for _ in range(2 * many)]
    texts = [answer.decode(errors="replace") for answer in found if answer is not None]
    assert len(texts) >= many // 2
    return texts[:many]


def read(dialect: Dialect, text: str, *, thinks: bool = False) -> Answer:
    """Return what a reader makes of a text, the same whole and split at random."""
    draw = random.Random(text)
    whole = None
    for pieces in (1, 2, 5, len(text) + 1):
        cuts = sorted(draw.sample(range(len(text) + 1), min(pieces - 1, len(text) + 1)))
        reader = DialectReader(dialect, SCHEMAS, thinks=thinks)
        events: list[Any] = []
        for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
            events += reader.push(text[begin:end])
        answer = Answer.of([*events, *reader.finish()])
        assert whole in (None, answer)
        whole = answer
    assert whole is not None
    return whole


def check(answer: Answer) -> None:
    for call in answer.calls:
        jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name])


@pytest.mark.parametrize("name", sorted(DIALECTS))
def test_calls_that_must_come(library: Backend, vocabulary: Vocabulary, name: str) -> None:
    dialect = DIALECTS[name]
    wanted = Wanted(tools=TOOLS, must_call=True)
    form = answer_form(dialect, wanted, thinks=False, may_think=False)
    counts = set()
    for text in answers(library, vocabulary, form, 6):
        answer = read(dialect, text)
        check(answer)
        assert not answer.content.strip(), text
        counts.add(len(answer.calls))
    assert min(counts) >= 1
    assert dialect.calls is not None
    assert max(counts) == 1 or not dialect.calls.is_single
    single = answer_form(
        dialect, Wanted(tools=TOOLS, must_call=True, one_call=True), thinks=False, may_think=False
    )
    for text in answers(library, vocabulary, single, 2):
        assert len(read(dialect, text).calls) == 1


@pytest.mark.parametrize("name", sorted(DIALECTS))
def test_thoughts_then_calls_or_content(
    library: Backend, vocabulary: Vocabulary, name: str
) -> None:
    dialect = DIALECTS[name]
    wanted = Wanted(content=FOUND, tools=TOOLS, thinking_tokens=5)
    form = answer_form(dialect, wanted, thinks=False, may_think=True)
    for text in answers(library, vocabulary, form, 8):
        answer = read(dialect, text)
        check(answer)
        if answer.calls:
            assert not answer.content.strip(), text
        else:
            assert json.loads(answer.content).keys() == {"found"}


@pytest.mark.parametrize("name", ["hermes", "deepseek-v3.1"])
def test_a_thinker_stops_thinking(library: Backend, vocabulary: Vocabulary, name: str) -> None:
    dialect = DIALECTS[name]
    wanted = Wanted(thinking_tokens=3)
    form = answer_form(dialect, wanted, thinks=True, may_think=True)
    for text in answers(library, vocabulary, form, 5):
        thought, end, _ = text.partition("</think>")
        assert end
        assert read(dialect, text, thinks=True).reasoning == thought.strip("\n").strip() or thought


@pytest.mark.parametrize("kind", BACKENDS)
@pytest.mark.parametrize("name", ["hermes", "minimax-m2", "harmony"])
def test_a_strict_tool_is_called_as_it_must_be_or_not_at_all(
    library: Backend, vocabulary: Vocabulary, codec: TextCodec, kind: str, name: str
) -> None:
    dialect = DIALECTS[name]
    must = answer_form(
        dialect, Wanted(tools=TOOLS[:1], must_call=True), thinks=False, may_think=False
    )
    may = answer_form(dialect, Wanted(tools=TOOLS), thinks=False, may_think=False)
    assert may is not None
    other = backend(kind, vocabulary)
    compiled = other.compile(dict(may))

    def allows(text: str) -> bool:
        ids = codec.tokenizer.encode(text, add_special=False)
        return follows(other, compiled, vocabulary, ids)

    assert allows("Nothing to call.")
    for text in answers(library, vocabulary, must, 2):
        assert allows(f"Look: {text}")
        assert not allows(f"Look: {text}".replace("add", "sub"))
        assert not allows(f"Look: {text[: len(text) // 2]}")


def test_free_answers_have_no_form() -> None:
    for dialect in (PLAIN, *DIALECTS.values()):
        tools = [Tool("add", ADD)]
        assert answer_form(dialect, Wanted(tools=tools), thinks=True, may_think=True) is None
    forced = Wanted(content=regex("a"))
    assert answer_form(PLAIN, forced, thinks=False, may_think=False) == regex("a")
