# SPDX-License-Identifier: MIT
"""The tokens of a model as grammars see them."""

from collections.abc import Iterable

import msgspec

from ..detokenizer import TokenText


class Vocabulary(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The bytes of every token, the size of the logits, and the tokens that end an answer.

    A token without bytes is never part of an answer.
    """

    tokens: list[bytes]
    size: int
    ends: list[int]

    @classmethod
    def of(cls, table: TokenText, size: int, ends: Iterable[int]) -> "Vocabulary":
        """Return the vocabulary of a model with logits of `size` tokens, spelled by `table`."""
        tokens = [table.raw(id) for id in range(min(size, len(table.pieces)))]
        return cls(tokens, size, sorted(ends))
