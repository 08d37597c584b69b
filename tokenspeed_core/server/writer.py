# SPDX-License-Identifier: MIT
"""One answer taking shape: whole, or as server-sent events."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import msgspec

from ..completion import Completion, TextDelta
from .failure import ApiError

DONE = b"data: [DONE]\n\n"


def event(document: object, name: str = "") -> bytes:
    """Return one server-sent event of a JSON document."""
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + msgspec.json.encode(document) + b"\n\n"


class Writer(ABC):
    """Knows one answer format; a choice is a completion of one of the request's prompts."""

    @abstractmethod
    def whole(self, completions: Sequence[Completion]) -> bytes:
        """Return the answer as one JSON document."""

    @abstractmethod
    def push(self, choice: int, delta: TextDelta) -> Iterable[bytes]:
        """Return the events of what is new in a choice."""

    @abstractmethod
    def end(self) -> Iterable[bytes]:
        """Return the last events, when every choice has finished."""

    def failed(self, error: ApiError) -> Iterable[bytes]:
        """Return the events that end an answer which cannot go on."""
        return (b"data: " + error.body() + b"\n\n", DONE)

    def has_answered(self, choice: int) -> bool:
        """A choice's text goes beyond its reasoning."""
        return True

    @property
    def called_tools(self) -> bool:
        """The answer ended in a tool call, so that the conversation is back within seconds."""
        return False
