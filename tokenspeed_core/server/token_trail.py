# SPDX-License-Identifier: MIT
"""Which tokens a piece of an answer's text is made of."""

from collections import deque
from typing import Generic, TypeVar

import attrs

Token = TypeVar("Token")


@attrs.frozen
class _Span(Generic[Token]):
    start: int
    end: int
    tokens: list[Token]


class TokenTrail(Generic[Token]):
    """Follows text and its tokens, and gives each token out with the first piece that it is in.

    What a reader makes of a text comes in the text's order, though later, and leaves parts out:
    marks, and blanks around them.  Tokens that came with one delta go together.
    """

    def __init__(self) -> None:
        self._text = ""
        self._start = 0  # characters before those of `_text`
        self._spans: deque[_Span[Token]] = deque()

    def push(self, text: str, tokens: list[Token]) -> None:
        """Take a delta."""
        begin = self._start + len(self._text)
        self._text += text
        self._spans.append(_Span(begin, begin + len(text), tokens))

    def take(self, piece: str) -> list[Token]:
        """Return the tokens of a piece; those before it are of none."""
        at = self._text.find(piece)
        if at < 0 or not piece:
            return []
        begin, end = self._start + at, self._start + at + len(piece)
        found: list[Token] = []
        while self._spans and self._spans[0].start < end:
            span = self._spans.popleft()
            if span.end > begin:
                found += span.tokens
        self._text = self._text[at + len(piece) :]
        self._start = end
        return found
