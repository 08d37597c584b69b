# SPDX-License-Identifier: MIT
"""Output that may stall without stalling whoever produces it."""

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")

_log = logging.getLogger(__name__)


class BackgroundWriter(Generic[Item]):
    """Calls `write(item, dropped)` in order on a thread of its own.

    `post` never waits: while `write` stalls, items beyond `capacity` are dropped, and the next
    item that is written carries how many.  An item that `write` fails on is logged and lost.
    """

    def __init__(self, write: Callable[[Item, int], None], capacity: int = 4096) -> None:
        self._write = write
        self._capacity = capacity
        self._items: deque[tuple[Item, int]] = deque()
        self._dropped = 0
        self._is_closed = False
        self._changed = threading.Condition()
        # A daemon: a reader that never comes back must not keep the interpreter alive.
        self._thread = threading.Thread(target=self._run, name="background-writer", daemon=True)
        self._thread.start()

    def post(self, item: Item) -> None:
        """Queue an item, or drop and count it."""
        with self._changed:
            if len(self._items) >= self._capacity:
                self._dropped += 1
                return
            self._items.append((item, self._dropped))
            self._dropped = 0
            self._changed.notify()

    def close(self, timeout_s: float) -> None:
        """Write what is queued, waiting at most `timeout_s` for it; idempotent."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._items or self._is_closed)
                if not self._items:
                    return
                item, dropped = self._items.popleft()
            try:
                self._write(item, dropped)
            except Exception:
                _log.exception("output was lost: %r", item)
