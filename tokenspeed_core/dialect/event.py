# SPDX-License-Identifier: MIT
"""What a piece of an answer's text turns out to be."""

from collections.abc import Iterable, Iterator

import attrs


@attrs.frozen
class Content:
    """Text for the user."""

    text: str


@attrs.frozen
class Reasoning:
    """Text that the model wrote for itself."""

    text: str


@attrs.frozen
class CallBegun:
    """A call of the tool `name` begins; calls of one answer count from 0."""

    index: int
    name: str


@attrs.frozen
class CallArguments:
    """The next piece of a call's arguments; together they are JSON if the model wrote JSON."""

    index: int
    text: str


Event = Content | Reasoning | CallBegun | CallArguments


def first_call(events: Iterable[Event]) -> Iterator[Event]:
    """Yield the events without those of calls after the first."""
    for event in events:
        if not isinstance(event, CallBegun | CallArguments) or event.index == 0:
            yield event


@attrs.frozen
class Call:
    """A tool call with all of its arguments."""

    name: str
    arguments: str


@attrs.frozen
class Answer:
    """All events of an answer, joined by kind."""

    content: str
    reasoning: str
    calls: tuple[Call, ...]

    @classmethod
    def of(cls, events: Iterable[Event]) -> "Answer":
        """Join the events of a whole answer."""
        content: list[str] = []
        reasoning: list[str] = []
        names: list[str] = []
        arguments: list[list[str]] = []
        for event in events:
            match event:
                case Content(text):
                    content.append(text)
                case Reasoning(text):
                    reasoning.append(text)
                case CallBegun(_, name):
                    names.append(name)
                    arguments.append([])
                case CallArguments(index, text):
                    arguments[index].append(text)
        calls = (Call(n, "".join(a)) for n, a in zip(names, arguments, strict=True))
        return cls("".join(content), "".join(reasoning), tuple(calls))
