# SPDX-License-Identifier: MIT
"""Grammars by xgrammar: compiled to masks by state, so that following one costs microseconds."""

import json
import re
from typing import Any

import numpy as np
import xgrammar
from numpy.typing import NDArray

from .grammar import GrammarError
from .vocabulary import Vocabulary

# The library puts the time and the place in its sources before what it has to say.
_PLACE = re.compile(r"^(?:\[[\d:]+\]\s*)?\S+\.(?:cc|h):\d+:\s*")


class XgrammarBackend:
    """Compiles structural tags as they are."""

    name = "xgrammar"

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._info = xgrammar.TokenizerInfo(
            vocabulary.tokens,
            vocab_type=xgrammar.VocabType.RAW,
            vocab_size=vocabulary.size,
            stop_token_ids=vocabulary.ends,
        )

    def compile(self, form: dict[str, Any]) -> bytes:
        """Return a compiled grammar as the library serialises it.

        Raises:
            GrammarError: the library refuses the grammar; MemoryError: there is too little.
        """
        compiler = xgrammar.GrammarCompiler(self._info, max_threads=1, cache_enabled=False)
        tag = json.dumps({"type": "structural_tag", "format": form})
        try:
            compiled: str = compiler.compile_structural_tag(tag).serialize_json()
            return compiled.encode()
        except (RuntimeError, ValueError, TypeError) as error:
            said = _PLACE.sub("", str(error).strip()) or type(error).__name__
            if "bad_alloc" in said:
                raise MemoryError from None
            raise GrammarError("grammar", f"does not compile: {said[:500]}") from None

    def matcher(self, compiled: bytes) -> "XgrammarMatcher":
        """Return what follows a new answer."""
        grammar = xgrammar.CompiledGrammar.deserialize_json(compiled.decode(), self._info)
        return XgrammarMatcher(xgrammar.GrammarMatcher(grammar))


class XgrammarMatcher:
    """Follows an answer; what the grammar refuses leaves it where it was."""

    def __init__(self, matcher: xgrammar.GrammarMatcher) -> None:
        self._matcher = matcher

    def accept(self, token: int) -> bool:
        """Take the next token."""
        return not self._matcher.is_terminated() and bool(self._matcher.accept_token(token))

    def fill(self, words: NDArray[np.int32]) -> None:
        """Write the mask of the next token."""
        if self._matcher.is_terminated():
            words.fill(-1)
        else:
            self._matcher.fill_next_token_bitmask(words.reshape(1, -1))
