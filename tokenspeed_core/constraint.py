# SPDX-License-Identifier: MIT
"""The grammar of one slot: which tokens may come next."""

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .grammar.backend import Matcher
from .grammar.library import Library
from .sampled import Sampled

_log = logging.getLogger(__name__)

Words = NDArray[np.int32]


class Constraint:
    """Follows a slot's answer on a thread, beside the forward passes.

    When a step was queued, `follow` has the thread wait for its token, take it and compute the mask
    of the next; `allowed` waits for that, just before the next step samples.  One of them runs at a
    time, so the matcher needs no lock.  A row that nobody samples from again is never followed.
    """

    def __init__(self, name: str, outputs: Sequence[int], library: Library) -> None:
        """Open a compiled grammar; `outputs` are the tokens of the answer that are known."""
        self._library = library
        self._matcher: Matcher | None = None
        self._words: Words = np.zeros(0, np.int32)  # a mask that allows nothing
        self._ready = library.submit(lambda: self._open(name, outputs))

    def allowed(self) -> Words:
        """Return the mask of the next token, 32 tokens a word; the next `follow` overwrites it."""
        self._ready.result()
        return self._words

    def follow(self, sampled: Sampled, row: int) -> None:
        """Go on with the token of a step's row, once it is here."""
        self._ready = self._library.submit(lambda: self._take(sampled, row))

    def _open(self, name: str, outputs: Sequence[int]) -> None:
        try:
            self._matcher, size = self._library.matcher(name)
            self._words = np.zeros(-(-size // 32), np.int32)
            for token in outputs:
                self._accept(token)
            self._fill()
        except Exception:
            # One request must not take the worker down; without a token it ends, and says why.
            _log.exception("a grammar cannot be opened; its request will end")
            self._forbid()

    def _take(self, sampled: Sampled, row: int) -> None:
        sampled.wait()
        token = int(sampled.tokens[row])
        try:
            if token >= 0:
                self._accept(token)
            self._fill()
        except Exception:
            _log.exception("a grammar cannot be followed; its request will end")
            self._forbid()

    def _accept(self, token: int) -> None:
        # After the end of an answer tokens may come of steps that were in flight.
        if self._matcher is not None:
            self._matcher.accept(token)

    def _fill(self) -> None:
        if self._matcher is not None:
            self._matcher.fill(self._words)

    def _forbid(self) -> None:
        self._matcher = None
        self._words[:] = 0


def without(words: Words, tokens: NDArray[np.int32]) -> Words:
    """Return a mask less some tokens, unless it would allow none then."""
    rest = words.copy()
    within = tokens[tokens < 32 * len(words)]
    np.bitwise_and.at(rest, within >> 5, ~(np.int32(1) << (within & 31)))
    return rest if rest.any() else words
