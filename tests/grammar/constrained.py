# SPDX-License-Identifier: MIT
"""Random answers in a grammar, without a model."""

import random

import numpy as np

from tokenspeed_core.grammar.backend import Backend
from tokenspeed_core.grammar.vocabulary import Vocabulary


def words_of(vocabulary: Vocabulary) -> np.ndarray:
    return np.zeros(-(-vocabulary.size // 32), np.int32)


def allowed(words: np.ndarray) -> list[int]:
    return np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little")).tolist()


def follows(backend: Backend, compiled: bytes, vocabulary: Vocabulary, ids: list[int]) -> bool:
    """Whether these tokens may come one by one, then the end.

    A mask may hold fewer: where only one text can come, one way to spell it is enough.
    """
    matcher, words = backend.matcher(compiled), words_of(vocabulary)
    for id in [*ids, vocabulary.ends[0]]:
        matcher.fill(words)
        is_allowed = id in allowed(words)
        is_taken = matcher.accept(id)
        assert is_taken or not is_allowed
        if not is_taken:
            return False
    matcher.fill(words)
    assert (words == -1).all()  # over: what comes after is nobody's
    return True


def random_answer(
    backend: Backend, compiled: bytes, vocabulary: Vocabulary, draw: random.Random, most: int
) -> bytes | None:
    """Return the bytes of a random answer; None if it is longer than `most` tokens.

    Short tokens are likelier, above all those that close something.
    """
    closing = [vocabulary.tokens.index(text) for text in (b'"', b"}", b"]", b"<", b"</", b"\n")]
    matcher, words = backend.matcher(compiled), words_of(vocabulary)
    said = b""
    for _ in range(most):
        matcher.fill(words)
        bits = np.unpackbits(words.view(np.uint8), bitorder="little")
        ids = np.flatnonzero(bits)
        assert len(ids), f"nothing may follow {said!r}"
        may_end = bool(bits[vocabulary.ends].any())
        if may_end and (len(ids) == 1 or draw.random() < 0.5):
            return said
        some = [int(ids[draw.randrange(len(ids))]) for _ in range(8)]
        closers = [id for id in closing if bits[id]]
        if closers and draw.random() < 0.4:
            some = [draw.choice(closers)]
        rest = [id for id in some if id not in vocabulary.ends]
        if rest:
            id = min(rest, key=lambda each: len(vocabulary.tokens[each]))
            assert matcher.accept(id)
            said += vocabulary.tokens[id]
    return None
