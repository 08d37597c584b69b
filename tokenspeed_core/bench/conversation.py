# SPDX-License-Identifier: MIT
"""Recorded conversations as prompts of token ids, which repeat where the recorded ones did."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import msgspec

from ..trace import TraceError, lines


@attrs.frozen
class Turn:
    """One request: its prompt, the tokens it gets, and the seconds of pause before it."""

    prompt: list[int]
    answer: int
    pause_s: float


@attrs.frozen
class Conversation:
    """The requests of one conversation, made one at a time: prompts are long."""

    name: str
    block: int
    rows: list[Any]
    shared: tuple[int, int]  # tokens of the tool and system prefixes, shared by all of these sizes

    def turns(self, vocabulary: int) -> Iterator[Turn]:
        """Yield the requests; a block has the same ids below `vocabulary` wherever it comes."""
        held: list[int] = []
        for _, inputs, outputs, kept, tail, _, pause, _ in self.rows:
            held = held[:kept]
            for first, count in tail:
                held += range(first, first + count)
            prompt = [
                token for place, block in enumerate(held) for token in self._ids(place, block)
            ]
            rest = random.Random(f"{self.name}/{inputs}/{len(held)}")
            prompt += [_drawn(rest) for _ in range(inputs - len(prompt))]
            yield Turn([_within(id, vocabulary) for id in prompt], max(outputs, 1), pause or 0.0)

    def _ids(self, place: int, block: int) -> Iterator[int]:
        """Yield the ids of a block before they are brought below the vocabulary."""
        tools, system = self.shared
        end = (place + 1) * self.block
        owner = f"{self.name}/{block}"
        if end <= tools:
            owner = f"tools {tools}/{place}"
        elif end <= tools + system:
            owner = f"system {tools} {system}/{place}"
        draw = random.Random(owner)
        return (_drawn(draw) for _ in range(self.block))


def _drawn(draw: random.Random) -> int:
    return draw.getrandbits(31)


# Ids below are special tokens and single bytes in most vocabularies.
_FIRST = 300


def _within(drawn: int, vocabulary: int) -> int:
    first = min(_FIRST, vocabulary - 1)
    return first + drawn % (vocabulary - first)


def conversations(path: Path | str, max_context: int) -> list[Conversation]:
    """Return the conversations of a trace file (see `trace.py`), none longer than `max_context`.

    Raises:
        TraceError: the file cannot be read, a line is no conversation, or none is short enough.
    """
    found = []
    for number, text in enumerate(lines(Path(path)), 1):
        try:
            line = msgspec.json.decode(text)
            made = Conversation(
                str(line.get("id", number)),
                int(line["block"]),
                line["rows"],
                (int(line["tool_tokens"]), int(line["system_tokens"])),
            )
            longest = max(row[1] + row[2] for row in made.rows)
        except (msgspec.DecodeError, KeyError, TypeError, ValueError, IndexError) as error:
            raise TraceError(f"{path}:{number}: no conversation: {error}") from error
        if longest <= max_context:
            found.append(made)
    if not found:
        raise TraceError(
            f"{path} holds no conversation of at most {max_context} tokens; raise --max-context"
        )
    return found
