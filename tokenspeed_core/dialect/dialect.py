# SPDX-License-Identifier: MIT
"""A dialect as data: states of the text, and the marks between them."""

import enum
import functools
import re
from collections.abc import Mapping

import attrs

CONTENT = "content"  # the state that every dialect has


class Kind(enum.Enum):
    """What the text of a state is."""

    CONTENT = enum.auto()  # for the user
    REASONING = enum.auto()  # the model's own
    GAP = enum.auto()  # space between marks; other text belongs to the content
    NAME = enum.auto()  # a tool's name
    ARGUMENTS = enum.auto()  # a call's arguments as JSON
    CALL = enum.auto()  # a JSON object with the name and the arguments of a call
    BODY = enum.auto()  # space between a call's parameters
    KEY = enum.auto()  # a parameter's name
    VALUE = enum.auto()  # a parameter's value, JSON or bare text
    HEADER = enum.auto()  # says what comes; the dialect's `header` reads it


IN_CALL = frozenset({Kind.ARGUMENTS, Kind.BODY, Kind.KEY, Kind.VALUE})


@attrs.frozen
class State:
    """What text is until one of the `exits`, which are marks and the states that they lead to.

    A state of kind CALL has none: its object's end leads to `then`.
    """

    kind: Kind
    exits: Mapping[str, str] = attrs.field(factory=dict)
    then: str = CONTENT


@attrs.frozen
class CallForm:
    """How calls are written where they have to be: with each text as the family was taught it.

    opening (begin NAME middle ARGUMENTS end (between begin ...)*) closing
    """

    begin: str
    middle: str
    end: str
    between: str = ""
    opening: str = ""
    closing: str = ""
    parameter: tuple[str, str, str] | None = None  # before a key, behind it, behind its value
    is_single: bool = False  # an answer ends with its first call


@attrs.frozen
class Dialect:
    """The states of an answer's text.

    No exit of a state begins with another one, so that text means the same however it arrives.
    """

    name: str
    states: Mapping[str, State]
    start: str = CONTENT
    thinking: str = ""  # a prompt that ends with this mark starts in the state "reasoning"
    header: re.Pattern[str] | None = None  # groups: channel, and name where it is a call
    channels: Mapping[str, str] = attrs.field(factory=dict)  # channel to state
    hidden: tuple[str, ...] = ()  # marks inside headers
    trims_values: bool = False  # a newline on both sides of a value is not part of it
    known_names_only: bool = False  # without a mark of its own a call must name a tool there is
    takes_calls: bool = True
    calls: CallForm | None = None
    reasoning: tuple[str, str] = ("", "")  # what stands before and behind it
    answer: str = ""  # what stands before the content

    @property
    def marks(self) -> frozenset[str]:
        """Every text that the dialect gives a meaning."""
        exits = {mark for state in self.states.values() for mark in state.exits}
        return frozenset({*exits, *self.hidden})

    @functools.cached_property
    def without_calls(self) -> "Dialect":
        """The dialect of an answer that may call nothing: its calls are content."""
        if self.header is not None:
            return self  # every answer has headers
        kept = {
            name: State(
                state.kind,
                {m: to for m, to in state.exits.items() if self.states[to].kind in _PLAIN},
            )
            for name, state in self.states.items()
            if state.kind in _PLAIN
        }
        return attrs.evolve(self, states=kept, start=CONTENT, takes_calls=False)


_PLAIN = (Kind.CONTENT, Kind.REASONING)
