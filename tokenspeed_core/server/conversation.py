# SPDX-License-Identifier: MIT
"""A rendered conversation, the form of its answer and the reading of that."""

from array import array
from collections.abc import Callable, Sequence
from functools import partial

import attrs

from ..chat_template import Message, Rendering
from ..detokenizer import TokenText
from ..dialect.dialect import Dialect
from ..dialect.form import Wanted, answer_form
from ..dialect.reader import DialectReader
from ..grammar.grammar import Grammar
from ..text_codec import TextCodec
from .answer_format import Asked
from .failure import ApiError
from .tools import Tools

MAX_THINKING = 2**31 - 1
# Tokens of reasoning that an effort allows, where the chat template knows of no efforts.
EFFORTS: dict[str, int | None] = {
    "none": 0,
    "minimal": 512,
    "low": 1024,
    "medium": 8192,
    "high": None,
    "xhigh": None,
}


@attrs.frozen
class Conversation:
    """A prompt's ids, how the answer's tokens are spelled, and a reader for each answer to it."""

    ids: "array[int]"
    table: TokenText
    reader: Callable[[], DialectReader]
    grammar: Grammar | None

    @classmethod
    async def of(
        cls,
        codec: TextCodec,
        messages: Sequence[Message],
        how: Rendering,
        tools: Tools,
        asked: Asked | None = None,
        thinking_tokens: int | None = None,
    ) -> "Conversation":
        """Render the messages.

        Raises:
            ChatTemplateError, PromptError: see `TextCodec.chat`.
            ApiError: tools are given, and how this model calls them is not known.
            GrammarError: what is asked of the answer is too long.
        """
        dialect = codec.dialect
        if tools.shown:
            tools.check_known(dialect)
        else:
            dialect = dialect.without_calls
        prompt = await codec.chat(messages, how)
        reader = partial(DialectReader, dialect, tools.schemas, thinks=prompt.thinks)
        content, field = asked or (None, tools.field or "thinking_budget")
        wanted = Wanted(content, tools.callable, tools.must_call, tools.one_call, thinking_tokens)
        form = answer_form(
            dialect, wanted, thinks=prompt.thinks, may_think=may_think(codec, dialect)
        )
        grammar = Grammar.of(form, field) if form is not None else None
        return cls(prompt.ids, codec.spelling(dialect), reader, grammar)


def may_think(codec: TextCodec, dialect: Dialect) -> bool:
    """Whether a model may begin its answer with reasoning: its template knows of the mark."""
    begin, _ = dialect.reasoning
    mark = begin.partition(">")[0]
    return bool(mark) and codec.template is not None and mark in codec.template.source


def checked_budget(tokens: int | None, codec: TextCodec) -> int | None:
    """Return how many tokens a model may think, None if it may as long as it will.

    Raises:
        ApiError: the number is negative, or the model does not think.
    """
    if tokens is not None and not 0 <= tokens <= MAX_THINKING:
        why = f"is {tokens}; give 0 to {MAX_THINKING}"
    elif tokens is not None and not may_think(codec, codec.dialect):
        why = "is given, and this model has no reasoning to bound; leave it out"
    else:
        return tokens
    raise ApiError(400, f"thinking_budget {why}", param="thinking_budget", code="invalid_parameter")


def effort_budget(effort: str | None, codec: TextCodec, field: str) -> int | None:
    """Return how many tokens an effort lets a model think, None if as long as it will.

    A template that takes the effort does what it means to.

    Raises:
        ApiError: there is no such effort, or the model does not think.
    """
    template = codec.template
    if effort is None or (template is not None and "reasoning_effort" in template.takes):
        return None
    if effort not in EFFORTS:
        why = f"is {effort[:40]!r}; give {', '.join(EFFORTS)}"
    elif effort != "none" and not may_think(codec, codec.dialect):
        why = f"is {effort!r}, and this model has no reasoning to bound; leave it out"
    else:
        return EFFORTS[effort] if may_think(codec, codec.dialect) else None
    raise ApiError(400, f"{field} {why}", param=field, code="invalid_parameter")
