# SPDX-License-Identifier: MIT
"""Grammars by llguidance: read as they are, masks computed state by state."""

from collections.abc import Sequence
from typing import Any

import llguidance
import numpy as np
from numpy.typing import NDArray

from .grammar import GrammarError
from .lark import lark
from .vocabulary import Vocabulary


class LlguidanceBackend:
    """What it compiles is text: the library reads it again, in a few milliseconds."""

    name = "llguidance"

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._ends = vocabulary.ends
        self._tokenizer = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(_Tokens(vocabulary)),
            n_vocab=vocabulary.size,
            eos_token=vocabulary.ends,
        )

    def compile(self, form: dict[str, Any]) -> bytes:
        """Return the grammar in the library's own syntax.

        Raises:
            GrammarError: the library refuses it, or it has a format that is not built.
        """
        text = lark(form)
        matcher = llguidance.LLMatcher(self._tokenizer, text, log_level=0)
        if not matcher.is_error():
            matcher.compute_bitmask()
        if matcher.is_error():
            said = matcher.get_error().strip().splitlines()[0]
            raise GrammarError("grammar", f"does not compile: {said[:500]}")
        return text.encode()

    def matcher(self, compiled: bytes) -> "LlguidanceMatcher":
        """Return what follows a new answer."""
        matcher = llguidance.LLMatcher(self._tokenizer, compiled.decode(), log_level=0)
        return LlguidanceMatcher(matcher, self._ends)


class LlguidanceMatcher:
    """Follows an answer; a grammar that gets too complex on the way allows nothing more."""

    def __init__(self, matcher: llguidance.LLMatcher, ends: Sequence[int]) -> None:
        self._matcher = matcher
        self._ends = frozenset(ends)
        self._is_over = False

    def accept(self, token: int) -> bool:
        """Take the next token."""
        matcher = self._matcher
        if self._is_over or matcher.is_error():
            return False
        if token in self._ends:
            # A grammar that nothing can follow has stopped, and takes no token of the end itself.
            self._is_over = bool(matcher.is_accepting())
            return self._is_over
        if matcher.is_stopped() or matcher.validate_tokens([token]) != 1:
            return False
        return bool(matcher.consume_token(token))

    def fill(self, words: NDArray[np.int32]) -> None:
        """Write the mask of the next token."""
        if self._is_over:
            words.fill(-1)
        elif self._matcher.is_error():
            words.fill(0)
        else:
            self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)


class _Tokens:
    """A tokenizer that only has a vocabulary, as the library wants to be told of one."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        tokens = vocabulary.tokens + [b""] * (vocabulary.size - len(vocabulary.tokens))
        self.tokens: Sequence[bytes] = tokens
        self.eos_token_id = vocabulary.ends[0]
        self.special_token_ids = [id for id, token in enumerate(tokens) if not token]
        self._ids = {token: id for id, token in reversed(list(enumerate(tokens))) if token}
        self._longest = max(map(len, tokens))

    def __call__(self, text: str | bytes) -> list[int]:
        """Return tokens of a text that is the only one which may come: the longest first."""
        rest = text.encode() if isinstance(text, str) else bytes(text)
        ids: list[int] = []
        while rest:
            lengths = range(min(self._longest, len(rest)), 0, -1)
            length = next((n for n in lengths if rest[:n] in self._ids), 0)
            if not length:
                break
            ids.append(self._ids[rest[:length]])
            rest = rest[length:]
        return ids
