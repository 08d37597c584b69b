# SPDX-License-Identifier: MIT
"""Steps under way on a rank, handed back in order as their tokens reach the host."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from .sampled import Sampled


class Running(NamedTuple):
    """A step that was launched."""

    step: int
    digest: bytes
    sampled: Sampled
    began_ns: int  # by time.monotonic_ns


class Completions:
    """Waits for launched steps on a thread of its own; `notify` is called there after each.

    A step that is done when it is put needs no thread: it comes back at the next `ended`.
    """

    def __init__(self, notify: Callable[[], None]) -> None:
        self._notify = notify
        self._running: deque[Running] = deque()
        self._waited: queue.SimpleQueue[Sampled | None] = queue.SimpleQueue()
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None

    def put(self, running: Running) -> None:
        """Take a step that was launched behind all steps before."""
        self._running.append(running)
        if not running.sampled.is_here:
            if self._thread is None:
                self._thread = threading.Thread(target=self._wait, name="completions", daemon=True)
                self._thread.start()
            self._waited.put(running.sampled)

    def ended(self) -> Iterator[Running]:
        """Yield the steps that have ended, up to the first that has not.

        Raises:
            Exception: what the device reported while a step was waited for.
        """
        if self._error is not None:
            raise self._error
        while self._running and self._running[0].sampled.is_here:
            yield self._running.popleft()

    def forget(self) -> None:
        """Wait for the steps under way and drop them: their epoch is over."""
        while self._running:
            self._running.popleft().sampled.wait()

    def close(self) -> None:
        """End the thread."""
        if self._thread is not None:
            self._waited.put(None)
            self._thread.join()

    def _wait(self) -> None:
        while (sampled := self._waited.get()) is not None:
            try:
                sampled.wait()
            except Exception as error:  # raised again where the worker reports failures
                self._error = error
            self._notify()
