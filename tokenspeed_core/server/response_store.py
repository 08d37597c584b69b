# SPDX-License-Identifier: MIT
"""Responses that were answered, for as long as there is room and time for them."""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import msgspec

from .caller import Caller

MAX_BYTES = 256 * 1024 * 1024
_OVERHEAD_BYTES = 1024


@attrs.define(eq=False)
class Stored:
    """One response: the items of its input that are new, and how to tell what came of it."""

    key: tuple[str, str]  # its caller's name and its id
    items: Sequence[dict[str, Any]]
    previous: "Stored | None"
    tell: Callable[[], dict[str, Any]]  # the response as it stands
    num_bytes: int
    used_at: float
    is_running: bool = True
    request_id: str = ""  # of its request while that runs

    @classmethod
    def elsewhere(cls, caller: Caller, id: str, items: Sequence[dict[str, Any]]) -> "Stored":
        """Return one that another process stores, by the items of its whole conversation."""
        return cls((caller.name, id), items, None, lambda: {"output": []}, 0, 0.0, is_running=False)

    def conversation(self) -> list[dict[str, Any]]:
        """Return all items from the conversation's beginning, the answer included."""
        turns: list[Stored] = []
        turn: Stored | None = self
        while turn is not None:
            turns.append(turn)
            turn = turn.previous
        return [item for each in reversed(turns) for item in (*each.items, *each.output())]

    def output(self) -> list[dict[str, Any]]:
        """Return the items of the answer."""
        found: list[dict[str, Any]] = self.tell()["output"]
        return found


class ResponseStore:
    """Holds `max_items` responses, each for `ttl_s` since its last use; those that run stay.

    The least recently used goes first.  A response that was deleted lives on, unseen, in those that
    continue it.
    """

    def __init__(
        self,
        max_items: int,
        ttl_s: float,
        max_bytes: int = MAX_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.max_items = max_items
        self._ttl_s = ttl_s
        self._max_bytes = max_bytes
        self._clock = clock
        self._stored: OrderedDict[tuple[str, str], Stored] = OrderedDict()
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._stored)

    def begin(
        self,
        caller: Caller,
        id: str,
        items: Sequence[dict[str, Any]],
        previous: Stored | None,
        tell: Callable[[], dict[str, Any]],
        request_id: str = "",
    ) -> Stored:
        """Store a response that begins to run; call `end` when it is over."""
        size = _OVERHEAD_BYTES + len(msgspec.json.encode(items))
        key = (caller.name, id)
        stored = Stored(
            key, items, previous, tell, size, self._clock(), request_id=request_id or id
        )
        self._stored[key] = stored
        self.num_bytes += size
        self._evict()
        return stored

    def end(self, stored: Stored) -> None:
        """Note that a response is over; its document changes no more."""
        stored.is_running = False
        document = stored.tell()
        stored.tell = lambda: document
        if stored.key in self._stored:
            size = len(msgspec.json.encode(document))
            stored.num_bytes += size
            self.num_bytes += size
            self._evict()

    def find(self, caller: Caller, id: str) -> Stored | None:
        """Return a caller's response, which counts as a use; None if it is not here any more."""
        self._expire()
        stored = self._stored.get((caller.name, id))
        if stored is not None:
            stored.used_at = self._clock()
            self._stored.move_to_end(stored.key)
        return stored

    def delete(self, caller: Caller, id: str) -> bool:
        """Forget a caller's response; False if it is not here."""
        stored = self._stored.get((caller.name, id))
        if stored is not None:
            self._drop(stored)
        return stored is not None

    def _expire(self) -> None:
        oldest = self._clock() - self._ttl_s
        self._drop_while(lambda stored: stored.used_at <= oldest)

    def _evict(self) -> None:
        self._expire()
        self._drop_while(
            lambda _: len(self._stored) > self.max_items or self.num_bytes > self._max_bytes
        )

    def _drop_while(self, is_due: Callable[[Stored], bool]) -> None:
        """Drop the least recently used ones; those that run are in use, and go to the end."""
        for _ in range(len(self._stored)):
            stored = next(iter(self._stored.values()))
            if stored.is_running:
                stored.used_at = self._clock()
                self._stored.move_to_end(stored.key)
            elif is_due(stored):
                self._drop(stored)
            else:
                return

    def _drop(self, stored: Stored) -> None:
        del self._stored[stored.key]
        self.num_bytes -= stored.num_bytes
