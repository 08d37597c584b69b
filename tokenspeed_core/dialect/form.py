# SPDX-License-Identifier: MIT
"""The form of answers in a dialect: what a grammar allows, so that the reader can read it."""

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from ..grammar.grammar import Format, constant, either, sequence, text
from .argument_form import json_arguments, parameters
from .dialect import CallForm, Dialect

# Between a mark and what follows; models were taught one or two line ends.
_SPACE: Format = {"type": "regex", "pattern": r"\n{0,2}"}


@attrs.frozen
class Tool:
    """A tool that an answer may or must call; strict: with arguments of its schema exactly."""

    name: str
    parameters: Mapping[str, Any]
    is_strict: bool = False


@attrs.frozen
class Wanted:
    """What is asked of an answer beside its prompt."""

    content: Format | None = None  # the form of the text for the user
    tools: Sequence[Tool] = ()  # that may be called, if `content` is None
    must_call: bool = False  # one of them
    one_call: bool = False  # at most
    thinking_tokens: int | None = None  # at most

    @property
    def is_free(self) -> bool:
        """Nothing is asked that needs a grammar."""
        is_strict = any(tool.is_strict for tool in self.tools)
        return (
            self.content is None
            and not self.must_call
            and not is_strict
            and self.thinking_tokens is None
        )


def answer_form(
    dialect: Dialect, wanted: Wanted, *, thinks: bool, may_think: bool
) -> Format | None:
    """Return the form of an answer, None if any will do.

    With `thinks` the prompt has begun the reasoning; with `may_think` the model may begin it.
    """
    if wanted.is_free:
        return None
    rest, is_free = _rest(dialect, wanted)
    begin, end = dialect.reasoning
    thought = sequence(
        text(without=[end], max_tokens=wanted.thinking_tokens), constant(end), _SPACE
    )
    if thinks and end:
        return sequence(thought, rest)
    if not may_think or not begin:
        return rest
    thoughtful = sequence(constant(begin), thought, rest)
    return either([thoughtful, text(without=[begin]) if is_free else rest])


def _rest(dialect: Dialect, wanted: Wanted) -> tuple[Format, bool]:
    """Return the form of what follows the reasoning, and whether that is any text."""
    content = () if wanted.content is None else (_led(dialect.answer, wanted.content),)
    calls = dialect.calls
    if not wanted.tools or calls is None:
        return (content[0], False) if content else (text(), True)
    tags = [_call(dialect, calls, tool) for tool in wanted.tools]
    is_single = wanted.one_call or calls.is_single
    if wanted.must_call or content:
        some = _some(calls, tags, is_single)
        called = sequence(*_constants(calls.opening), some, *_constants(calls.closing))
        return (called if wanted.must_call else either([*content, called])), False
    if not any(tool.is_strict for tool in wanted.tools):
        return text(), True
    if calls.opening:
        some = _some(calls, tags, is_single)
        tags = [{"type": "tag", "begin": calls.opening, "content": some, "end": calls.closing}]
    free = {
        "type": "triggered_tags",
        "triggers": [calls.opening or calls.begin],
        "tags": tags,
        "stop_after_first": is_single,
    }
    return free, False


def _some(calls: CallForm, tags: Sequence[Format], is_single: bool) -> Format:
    if is_single:
        return either(tags)
    return {
        "type": "tags_with_separator",
        "tags": list(tags),
        "separator": calls.between,
        "at_least_one": True,
    }


def _call(dialect: Dialect, calls: CallForm, tool: Tool) -> Format:
    if calls.parameter is not None:
        ends = [*dialect.states["value"].exits]
        arguments = parameters(calls.parameter, ends, tool.parameters, is_strict=tool.is_strict)
    else:
        arguments = json_arguments(tool.parameters, is_strict=tool.is_strict)
    begin = calls.begin + tool.name + calls.middle
    return {"type": "tag", "begin": begin, "content": arguments, "end": calls.end}


def _led(lead: str, form: Format) -> Format:
    return sequence(*_constants(lead), form)


def _constants(value: str) -> tuple[Format, ...]:
    return (constant(value),) if value else ()
