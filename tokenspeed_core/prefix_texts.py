# SPDX-License-Identifier: MIT
"""Tokenising what is new: a conversation's next turn begins with the text of its last one.

A special token of the vocabulary ends a piece of text: what comes before it is tokenised without a
look at what comes behind.  So the ids of a text up to such a mark are a prefix of the ids of every
text that begins the same, and only the rest is tokenised.
"""

import hashlib
import re
import secrets
import threading
from array import array
from collections import OrderedDict
from collections.abc import Sequence

import attrs

from .tokenizer import Tokenizer

MIN_CHARS = 4096  # shorter texts are tokenised whole
MAX_BYTES = 256 * 1024 * 1024
_MAX_TEXTS = 4096
# what text may begin with, behind a mark, and end with, before it
_HEADS = ("x", " x", "\n", "\n\n x", "  ", "1", "é", "世", "-", "'s")
_TAILS = ("", "x", "x ", " \n", "1", "世")


@attrs.define(eq=False)
class _Text:
    text: str
    ids: "array[int]"
    marks: list[tuple[int, int, bytes]]  # characters and tokens before it, digest of the text

    @property
    def num_bytes(self) -> int:
        return len(self.text) + 4 * len(self.ids) + 200 * len(self.marks)


class PrefixTexts:
    """Texts tokenised before; safe to use from several threads.

    `markers` are special tokens as they are written; those that do not end a piece of text in this
    vocabulary are not used, and without any all texts are tokenised whole.
    """

    def __init__(
        self, tokenizer: Tokenizer, markers: Sequence[str], max_bytes: int = MAX_BYTES
    ) -> None:
        self._tokenizer = tokenizer
        ids = {text: id for id, text in tokenizer.special_texts().items()}
        self.markers = [each for each in markers if each in ids and _ends_text(tokenizer, each)]
        self._marker_ids = frozenset(ids[each] for each in self.markers)
        self._pattern = re.compile("|".join(map(re.escape, self.markers)) or r"(?!)")
        self._key = secrets.token_bytes(32)
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._texts: OrderedDict[int, _Text] = OrderedDict()
        self._by_digest: dict[bytes, _Text] = {}
        self.num_bytes = 0

    def encode(self, text: str, salt: str = "") -> "array[int]":
        """Return the ids of `text`, no BOS added; texts of other salts are not looked at."""
        if len(text) < MIN_CHARS or not self.markers:
            return array("i", self._tokenizer.encode(text, add_special=False))
        marks = self._digests(text, salt)
        known, found = self._longest(text, marks)
        cut = known[-1][0] if known else 0
        tail = self._tokenizer.encode(text[cut:], add_special=False)
        count = known[-1][1] if known else 0
        ids = found.ids[:count] if found is not None else array("i")
        ids.extend(tail)
        places = [count + at + 1 for at, id in enumerate(tail) if id in self._marker_ids]
        new = [mark for mark in marks if mark[0] > cut]
        if len(places) == len(new):  # else a marker lies within a longer special token
            known += [(chars, at, digest) for (chars, digest), at in zip(new, places, strict=True)]
        if found is not None and found.marks[-1][0] <= cut:
            self._replace(found, _Text(text, ids, known))
        elif known:
            self._keep(_Text(text, ids, known))
        return ids

    def _digests(self, text: str, salt: str) -> list[tuple[int, bytes]]:
        """Return the end of each mark and the digest of the text up to there."""
        digest = hashlib.blake2b(salt.encode("utf-8", "surrogatepass"), key=self._key)
        found, last = [], 0
        for match in self._pattern.finditer(text):
            end = match.end()
            digest.update(text[last:end].encode("utf-8", "surrogatepass"))
            found.append((end, digest.digest()))
            last = end
        return found

    def _longest(
        self, text: str, marks: Sequence[tuple[int, bytes]]
    ) -> tuple[list[tuple[int, int, bytes]], _Text | None]:
        """Return the marks that a kept text shares with this one, and that text."""
        with self._lock:
            for chars, digest in reversed(marks):
                found = self._by_digest.get(digest)
                if found is not None and found.text[:chars] == text[:chars]:
                    self._texts.move_to_end(id(found))
                    return [mark for mark in found.marks if mark[0] <= chars], found
        return [], None

    def _replace(self, old: _Text, new: _Text) -> None:
        """Keep a text that has all marks of an old one, which is then of no use."""
        with self._lock:
            if id(old) in self._texts:
                self._drop(id(old))
        self._keep(new)

    def _keep(self, new: _Text) -> None:
        with self._lock:
            self._texts[id(new)] = new
            self.num_bytes += new.num_bytes
            for _, _, digest in new.marks:
                self._by_digest[digest] = new
            while len(self._texts) > _MAX_TEXTS or self.num_bytes > self._max_bytes:
                self._drop(next(iter(self._texts)))

    def _drop(self, key: int) -> None:
        gone = self._texts.pop(key)
        self.num_bytes -= gone.num_bytes
        for _, _, digest in gone.marks:
            if self._by_digest.get(digest) is gone:
                del self._by_digest[digest]


def _ends_text(tokenizer: Tokenizer, marker: str) -> bool:
    """Whether the ids of text before and behind the marker do not depend on each other."""
    added = tokenizer.added_texts()
    if any(marker in other for other in added if other != marker):
        return False

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special=False)

    return all(
        encode(tail + marker + head) == encode(tail + marker) + encode(head)
        for tail in _TAILS
        for head in (*_HEADS, *(marker + head for head in _HEADS))
    )
