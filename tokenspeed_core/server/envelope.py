# SPDX-License-Identifier: MIT
"""What the chunks of one OpenAI answer have in common: its id, time, model and usage."""

import time
from typing import Any

import attrs
import msgspec

from ..completion import TextDelta
from ..completion import Usage as Spent
from .answer import Answer, ChatChoice, ChatChunkChoice, CompletionChoice, Usage, new_id
from .writer import event

Choices = list[ChatChoice] | list[ChatChunkChoice] | list[CompletionChoice]


@attrs.define
class Envelope:
    """Makes the answers of one request; `group` choices share a prompt."""

    kind: str
    chunk_kind: str
    id: str
    model: str
    group: int
    has_usage: bool  # the last chunk tells it
    has_running_usage: bool  # every chunk tells it
    prompt_ids: list[int] | msgspec.UnsetType = msgspec.UNSET  # told once
    prompt_logprobs: list[Any] | msgspec.UnsetType = msgspec.UNSET
    created: int = attrs.field(factory=lambda: int(time.time()))
    _spent: dict[int, Spent] = attrs.field(factory=dict)

    @classmethod
    def of(cls, prefix: str, kind: str, chunk_kind: str, model: str) -> "Envelope":
        """Return the envelope of a new answer."""
        return cls(kind, chunk_kind, new_id(prefix), model, 1, False, False)

    def spend(self, choice: int, delta: TextDelta) -> None:
        """Remember what a choice has cost so far."""
        self._spent[choice] = delta.usage

    def whole(self, choices: Choices, spent: list[Spent]) -> bytes:
        """Return the whole answer."""
        return msgspec.json.encode(self._answer(self.kind, choices, Usage.of(spent, self.group)))

    def chunk(self, choices: Choices) -> bytes:
        """Return one event."""
        usage = self._usage() if self.has_running_usage else None
        return event(self._answer(self.chunk_kind, choices, usage))

    def last(self) -> bytes:
        """Return the event that tells the usage."""
        return event(self._answer(self.chunk_kind, list[ChatChunkChoice](), self._usage()))

    def _answer(self, kind: str, choices: Choices, usage: Usage | None) -> Answer:
        ids, self.prompt_ids = self.prompt_ids, msgspec.UNSET
        return Answer(
            self.id,
            kind,
            self.created,
            self.model,
            choices,
            usage,
            ids,
            self.prompt_logprobs,
        )

    def _usage(self) -> Usage:
        return Usage.of([self._spent[index] for index in sorted(self._spent)], self.group)
