# SPDX-License-Identifier: MIT
"""CPU seconds that a process has spent in each stage of its work."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import attrs

MAX_SLICES = 1_000_000


@attrs.frozen
class Slice:
    """One passage of a thread through a stage; times are of `time.monotonic`."""

    stage: str
    thread: int
    start: float
    end: float


class StageClock:
    """Adds up the CPU time of the thread that is inside `stage(name)`; nested stages both count.

    `slices` is None, or takes what passes while somebody traces, up to a bound.
    """

    def __init__(self) -> None:
        self._spent_ns: dict[str, int] = {}
        self.slices: list[Slice] | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count what the body costs; it must not wait for the event loop."""
        start, began = time.monotonic(), time.thread_time_ns()
        try:
            yield
        finally:
            spent = time.thread_time_ns() - began
            self._spent_ns[name] = self._spent_ns.get(name, 0) + spent
            if self.slices is not None and len(self.slices) < MAX_SLICES:
                self.slices.append(Slice(name, threading.get_ident(), start, time.monotonic()))

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each stage so far."""
        return {name: spent / 1e9 for name, spent in self._spent_ns.items()}
