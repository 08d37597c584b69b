# SPDX-License-Identifier: MIT
"""The dialects of model families, told apart by their chat templates."""

import re
from collections.abc import Mapping

import attrs

from .dialect import CONTENT, CallForm, Dialect, Kind, State

_THINK = ("<think>", "</think>")


@attrs.frozen
class Family:
    """A dialect and the texts that a chat template has when its model speaks it."""

    dialect: Dialect
    evidence: tuple[str, ...]


def _dialect(name: str, openers: Mapping[str, str], /, **states: State) -> Dialect:
    return Dialect(
        name,
        {
            CONTENT: State(Kind.CONTENT, {**openers, _THINK[0]: "reasoning"}),
            "reasoning": State(Kind.REASONING, {_THINK[1]: CONTENT}),
            **states,
        },
        thinking=_THINK[0],
        reasoning=_THINK,
    )


PLAIN = _dialect("plain", {}).without_calls

HERMES = attrs.evolve(
    _dialect(
        "hermes",
        {"<tool_call>": "call"},
        call=State(Kind.CALL, then="after"),
        after=State(Kind.GAP, {"</tool_call>": CONTENT, "<tool_call>": "call"}),
    ),
    calls=CallForm('<tool_call>\n{"name": "', '", "arguments": ', "}\n</tool_call>", between="\n"),
)

# A call begins at <function=; models are known to forget the <tool_call> around it.
QWEN_CODER = attrs.evolve(
    _dialect(
        "qwen-coder",
        {"<tool_call>": "between", "<function=": "name"},
        between=State(Kind.GAP, {"<function=": "name", "</tool_call>": CONTENT}),
        name=State(Kind.NAME, {">": "body"}),
        body=State(Kind.BODY, {"<parameter=": "key", "</function>": "between"}),
        key=State(Kind.KEY, {">": "value"}),
        value=State(
            Kind.VALUE,
            {"</parameter>": "body", "<parameter=": "key", "</function>": "between"},
        ),
    ),
    trims_values=True,
    calls=CallForm(
        "<tool_call>\n<function=",
        ">\n",
        "</function>\n</tool_call>",
        between="\n",
        parameter=("<parameter=", ">\n", "\n</parameter>\n"),
    ),
)

MINIMAX_M2 = attrs.evolve(
    _dialect(
        "minimax-m2",
        {"<minimax:tool_call>": "between"},
        between=State(Kind.GAP, {'<invoke name="': "name", "</minimax:tool_call>": CONTENT}),
        name=State(Kind.NAME, {'">': "body"}),
        body=State(Kind.BODY, {'<parameter name="': "key", "</invoke>": "between"}),
        key=State(Kind.KEY, {'">': "value"}),
        value=State(
            Kind.VALUE,
            {"</parameter>": "body", '<parameter name="': "key", "</invoke>": "between"},
        ),
    ),
    calls=CallForm(
        '<invoke name="',
        '">\n',
        "</invoke>\n",
        opening="<minimax:tool_call>\n",
        closing="</minimax:tool_call>",
        parameter=('<parameter name="', '">', "</parameter>\n"),
    ),
)

_CALLS, _CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_CALL, _SEPARATOR, _CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"


def _deepseek(name: str, begin: str, middle: str, end: str, between: str) -> Dialect:
    dialect = _dialect(
        name,
        {_CALLS: "between", begin: "name"},
        between=State(Kind.GAP, {begin: "name", _CALLS_END: CONTENT}),
        name=State(Kind.NAME, {middle: "arguments"}),
        arguments=State(Kind.ARGUMENTS, {end: "between"}),
    )
    calls = CallForm(begin, middle, end, between, opening=_CALLS, closing=_CALLS_END)
    return attrs.evolve(dialect, calls=calls)


DEEPSEEK_V3 = _deepseek(
    "deepseek-v3", f"{_CALL}function{_SEPARATOR}", "\n```json\n", f"\n```{_CALL_END}", "\n"
)
DEEPSEEK_V31 = _deepseek("deepseek-v3.1", _CALL, _SEPARATOR, _CALL_END, "")

LLAMA3 = attrs.evolve(
    _dialect(
        "llama3",
        {"<|python_tag|>": "lead"},
        lead=State(Kind.GAP, {"{": "call", "<|python_tag|>": "lead"}),
        call=State(Kind.CALL, then="after"),
        after=State(Kind.GAP, {";": "lead", "{": "call", "<|python_tag|>": "lead"}),
    ),
    start="lead",
    known_names_only=True,
    calls=CallForm('{"name": "', '", "parameters": ', "}", between="; "),
    reasoning=("", _THINK[1]),  # only a prompt begins it
)

_NEXT = {"<|end|>": "header", "<|start|>": "header", "<|call|>": "header", "<|return|>": "header"}

HARMONY = Dialect(
    "harmony",
    {
        CONTENT: State(Kind.CONTENT, _NEXT),
        "reasoning": State(Kind.REASONING, _NEXT),
        "arguments": State(Kind.ARGUMENTS, _NEXT),
        "header": State(Kind.HEADER, {"<|message|>": CONTENT}),
    },
    start="header",
    header=re.compile(
        r"\s*(?:<\|start\|>)?(?:assistant)?(?:\s*to=(?:functions\.)?(?P<name>[^\s<]+))?"
        r"\s*<\|channel\|>\s*(?P<channel>analysis|commentary|final)"
        r"(?:\s*to=(?:functions\.)?(?P<called>[^\s<]+))?\s*(?:<\|constrain\|>)?\s*(?:json|code)?\s*"
    ),
    channels={"analysis": "reasoning", "commentary": CONTENT, "final": CONTENT},
    hidden=("<|channel|>", "<|constrain|>"),
    # <|call|> is one of the tokens that end an answer.
    calls=CallForm(
        "<|channel|>commentary to=functions.",
        " <|constrain|>json<|message|>",
        "",
        is_single=True,
    ),
    reasoning=("<|channel|>analysis<|message|>", "<|end|><|start|>assistant"),
    answer="<|channel|>final<|message|>",
)

# In this order: the first whose evidence is all there.
FAMILIES = (
    Family(HARMONY, ("<|channel|>",)),
    Family(DEEPSEEK_V3, (_SEPARATOR, "```json")),
    Family(DEEPSEEK_V31, (_SEPARATOR,)),
    Family(MINIMAX_M2, ("<minimax:tool_call>",)),
    Family(QWEN_CODER, ("<function=",)),
    Family(HERMES, ("<tool_call>",)),
    Family(LLAMA3, ('"parameters"', "ipython")),
)
DIALECTS = {family.dialect.name: family.dialect for family in FAMILIES}


def spoken(template: str) -> Dialect:
    """Return the dialect of a model with this chat template; `PLAIN` if none is recognised."""
    for family in FAMILIES:
        if all(text in template for text in family.evidence):
            return family.dialect
    return PLAIN
