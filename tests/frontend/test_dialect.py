# SPDX-License-Identifier: MIT
"""What a model writes, read in its dialect: families, any split, any damage."""

import json
import re
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenspeed_core.dialect.dialect import Dialect
from tokenspeed_core.dialect.event import Answer, Call, CallArguments, Content, Reasoning
from tokenspeed_core.dialect.families import DIALECTS, PLAIN, spoken
from tokenspeed_core.dialect.reader import DialectReader

TOOLS = {
    "weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "metric": {"type": "boolean"},
            "tags": {"anyOf": [{"type": "array"}, {"type": "null"}]},
        },
    },
    "clock": {"type": "object", "properties": {}},
}
ALL = {**DIALECTS, "plain": PLAIN}


def read(dialect: Dialect, pieces: Sequence[str], thinks: bool = False) -> Answer:
    reader = DialectReader(dialect, TOOLS, thinks=thinks)
    events = [event for piece in pieces for event in reader.push(piece)]
    events += reader.finish()
    texts = [e for e in events if isinstance(e, Content | Reasoning | CallArguments)]
    assert all(event.text for event in texts), "an empty event says nothing"
    answer = Answer.of(events)
    assert len(answer.calls) == reader.num_calls
    return answer


PARIS = '{"city": "Paris", "days": 2}'
TWO = (Call("weather", PARIS), Call("clock", "{}"))
CALL, CALL_END, SEP = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"
CALLS, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
SAMPLES = {
    "hermes": "<think>\nHm.\n</think>\n\nLet me see.\n"
    f'<tool_call>\n{{"name": "weather", "arguments": {PARIS}}}\n</tool_call>\n'
    '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>',
    "qwen-coder": "<think>\nHm.\n</think>\n\nLet me see.\n<tool_call>\n<function=weather>\n"
    "<parameter=city>\nParis\n</parameter>\n<parameter=days>\n2\n</parameter>\n</function>\n"
    "</tool_call>\n<tool_call>\n<function=clock>\n</function>\n</tool_call>",
    "minimax-m2": "<think>Hm.</think>\n\nLet me see.\n<minimax:tool_call>\n"
    '<invoke name="weather">\n<parameter name="city">Paris</parameter>\n'
    '<parameter name="days">2</parameter>\n</invoke>\n<invoke name="clock">\n</invoke>\n'
    "</minimax:tool_call>",
    "deepseek-v3": "<think>\nHm.\n</think>\n\nLet me see."
    f"{CALLS}{CALL}function{SEP}weather\n```json\n{PARIS}\n```{CALL_END}\n"
    f"{CALL}function{SEP}clock\n```json\n{{}}\n```{CALL_END}{CALLS_END}",
    "deepseek-v3.1": "<think>Hm.</think>Let me see."
    f"{CALLS}{CALL}weather{SEP}{PARIS}{CALL_END}{CALL}clock{SEP}{{}}{CALL_END}{CALLS_END}",
    "harmony": "<|channel|>analysis<|message|>Hm.<|end|>"
    "<|start|>assistant<|channel|>commentary<|message|>Let me see.<|end|>"
    "<|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>"
    f"{PARIS}<|call|><|start|>assistant to=functions.clock<|channel|>commentary json<|message|>"
    "{}",
}


@pytest.mark.parametrize("name", SAMPLES)
def test_the_reasoning_the_text_and_the_calls_of_each_family(name: str) -> None:
    assert read(DIALECTS[name], [SAMPLES[name]]) == Answer("Let me see.", "Hm.", TWO)
    assert read(DIALECTS[name], list(SAMPLES[name])) == Answer("Let me see.", "Hm.", TWO)


def test_llama_calls_are_bare_objects_that_name_a_tool() -> None:
    calls = f'{{"name": "weather", "parameters": {PARIS}}}; {{"name": "clock", "parameters": {{}}}}'
    llama = DIALECTS["llama3"]
    assert read(llama, [calls]) == Answer("", "", TWO)
    assert read(llama, ["<|python_tag|>" + calls]) == Answer("", "", TWO)
    for text in ('{"name": "nobody", "parameters": {}}', '{"a": [1]} is JSON', "Plain {text}."):
        assert read(llama, [text]) == Answer(text, "", ())


@pytest.mark.parametrize("name", ALL)
def test_plain_text_is_content_and_a_prompt_may_open_the_reasoning(name: str) -> None:
    text = "One <two> {three}\n\n  four;\n"
    if name != "harmony":
        assert read(ALL[name], [text]) == Answer(text, "", ())
        assert read(ALL[name], ["a\n\nb</think>\n\nc"], thinks=True) == Answer("c", "a\n\nb", ())
        assert read(ALL[name], ["never ends"], thinks=True) == Answer("", "never ends", ())
    assert read(ALL[name], [text]).content == text


def test_values_follow_the_schema() -> None:
    def arguments(**values: str) -> object:
        text = "".join(f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in values.items())
        text = f"<tool_call><function=weather>{text}</function></tool_call>"
        whole, split = (read(DIALECTS["qwen-coder"], t).calls[0].arguments for t in ([text], text))
        assert whole == split
        return json.loads(whole)

    assert arguments(city='7 "x"\n\\', days="7") == {"city": '7 "x"\n\\', "days": 7}
    assert arguments(city="\n two\n", metric="True") == {"city": "\n two\n", "metric": True}
    assert arguments(days="many", tags="null") == {"days": "many", "tags": None}
    assert arguments(tags='["a"]', other="NaN") == {"tags": ["a"], "other": "NaN"}
    assert arguments(tags="7", other='{"a": 1}') == {"tags": "7", "other": {"a": 1}}


def test_what_is_no_call_is_content_and_a_cut_call_keeps_what_came() -> None:
    hermes, coder = DIALECTS["hermes"], DIALECTS["qwen-coder"]
    for text in ("<tool_call>\nno JSON</tool_call>", '<tool_call>{"a": 1}', '<tool_call>{"name"'):
        assert read(hermes, [text]) == Answer(text, "", ())
    assert read(coder, ["<function=a b>x"]) == Answer("<function=a b>x", "", ())
    cut = '<tool_call>{"name": "weather", "arguments": {"city": "Par'
    assert read(hermes, [cut]).calls == (Call("weather", '{"city": "Par'),)
    cut = "<function=weather><parameter=city>\nPar"
    assert read(coder, [cut]).calls == (Call("weather", '{"city": "Par'),)
    late = '<tool_call>{"arguments": "{\\"a\\": 1}", "name": "f"}</tool_call>'
    assert read(hermes, [late]).calls == (Call("f", '{"a": 1}'),)
    harmony = "<|channel|>poem<|message|>Roses"
    assert read(DIALECTS["harmony"], [harmony]).content == harmony


def test_without_calls_their_marks_are_content() -> None:
    for name, dialect in DIALECTS.items():
        if name in ("harmony", "llama3"):
            continue
        answer = read(dialect.without_calls, SAMPLES[name])
        assert answer.reasoning == "Hm."
        assert answer.calls == ()
        assert answer.content == SAMPLES[name].split("</think>")[1].lstrip()


def test_no_exit_begins_with_another() -> None:
    for dialect in ALL.values():
        for state in dialect.states.values():
            for one in state.exits:
                assert not any(o != one and o.startswith(one) for o in state.exits)


def test_templates_tell_the_dialect() -> None:
    assert spoken("{{ messages }}") is PLAIN
    for text, name in (
        ("<tool_call>\n<function=", "qwen-coder"),
        ("<tool_call>", "hermes"),
        ("<｜tool▁sep｜> ```json", "deepseek-v3"),
        ("<｜tool▁sep｜>", "deepseek-v3.1"),
        ("<|channel|>", "harmony"),
        ("<minimax:tool_call> <tool_call>", "minimax-m2"),
        ('{"name": x, "parameters": y} ipython', "llama3"),
    ):
        assert spoken(text).name == name


@st.composite
def damaged(draw: st.DrawFn) -> tuple[str, str, list[str]]:
    """A dialect, a text of its marks, words, JSON and cut samples, and a split of it."""
    name = draw(st.sampled_from(sorted(ALL)))
    sample = SAMPLES.get(name, "")
    marks = st.sampled_from([*sorted(ALL[name].marks), "<think>", "{", "}", '"', "\\", "\n", ";"])
    words = st.integers(100, 999).map(lambda n: f" w{n} ")
    calls = st.sampled_from(['{"name": "clock", ', '"arguments": {"a": ', '"name"', ":", "clock"])
    cuts = st.tuples(st.integers(0, len(sample)), st.integers(0, len(sample)))
    parts = st.one_of(marks, words, calls, cuts.map(lambda cut: sample[min(cut) : max(cut)]))
    text = "".join(draw(st.lists(parts, max_size=12)))
    places = sorted(draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]
    return name, text, pieces


@settings(max_examples=700, deadline=None)
@given(damaged(), st.booleans(), st.booleans())
def test_any_split_of_any_text_gives_the_same_and_loses_nothing(
    case: tuple[str, str, list[str]], thinks: bool, with_calls: bool
) -> None:
    name, text, pieces = case
    dialect = ALL[name] if with_calls else ALL[name].without_calls
    thinks = thinks and name != "harmony"
    whole = read(dialect, [text], thinks)
    assert read(dialect, pieces, thinks) == whole
    assert read(dialect, list(text), thinks) == whole
    said = " ".join([whole.content, whole.reasoning, *(c.name + c.arguments for c in whole.calls)])
    for word in set(re.findall(r"w\d{3}", text)):
        assert said.count(word) == text.count(word) or _hidden(name, text, word), (word, whole)


def _hidden(name: str, text: str, word: str) -> bool:
    """Whether the word may stand for a key of a call's frame, which is no text."""
    return re.search(r'"[^"]*' + word, text) is not None
