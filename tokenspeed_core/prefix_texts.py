# SPDX-License-Identifier: MIT
"""Tokenising what is new: a conversation's next turn begins with the text of its last one.

A special token of the vocabulary ends a piece of text: what comes before it is tokenised without a
look at what comes behind.  So a text is a path of pieces that end in such a mark, and texts that
begin alike share the beginning of their paths: a tree, to which each text adds what is new.
"""

import re
import sys
import threading
from array import array
from collections import OrderedDict
from collections.abc import Sequence

import attrs

from .tokenizer import Tokenizer

MIN_CHARS = 4096  # shorter texts are tokenised whole
MAX_BYTES = 256 * 1024 * 1024
_SHORT_CHARS, _MAX_SHORT = 32, 4096  # pieces that come again and again, and how many are kept
_PIECE_BYTES = 600  # of a piece beside its text and ids
# what text may begin with, behind a mark, and end with, before it
_HEADS = ("x", " x", "\n", "\n\n x", "  ", "1", "é", "世", "-", "'s")
_TAILS = ("", "x", "x ", " \n", "1", "世")


@attrs.define(eq=False)
class _Piece:
    key: str  # its text, with the mark; of a root, which stands before all text, the salt
    ids: "array[int]"
    parent: "_Piece | None" = None
    children: "dict[str, _Piece]" = attrs.field(factory=dict)
    latest: "_Piece | None" = None  # of the children
    is_gone: bool = False  # from the tree

    @property
    def num_bytes(self) -> int:
        return sys.getsizeof(self.key) + self.ids.itemsize * len(self.ids) + _PIECE_BYTES


@attrs.frozen(eq=False)
class Begun:
    """A text of which the beginning was tokenised before, and `rest` is to be."""

    salt: str
    path: list[_Piece]
    rest: str


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
        self._marks = frozenset(ids[each] for each in self.markers)
        self._pattern = re.compile("|".join(map(re.escape, self.markers)) or r"(?!)")
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._roots: dict[str, _Piece] = {}  # by salt
        # Those without children, the least recently used first: the others are used with them.
        self._tips: OrderedDict[_Piece, None] = OrderedDict()
        self._short: dict[tuple[str, str], list[int]] = {}  # ids of short pieces by their salt
        self.num_bytes = 0

    def encode(self, text: str, salt: str = "") -> "array[int]":
        """Return the ids of `text`, no BOS added; texts of other salts are not looked at."""
        return self.finish(self.begin(text, salt))

    def begin(self, text: str, salt: str = "") -> Begun:
        """Return what is known of `text`; it costs a look at it."""
        path: list[_Piece] = []
        at = 0
        if len(text) >= MIN_CHARS and self.markers:
            with self._lock:
                at = self._find(text, salt, path)
        return Begun(salt, path, text[at:])

    def finish(self, begun: Begun) -> "array[int]":
        """Return the ids of a text, tokenising what is new of it."""
        path, rest = begun.path, begun.rest
        if not path and (len(rest) < MIN_CHARS or not self.markers):
            return array("i", self._tokenizer.encode(rest, add_special=False))
        *new, behind = self._cut(rest)
        *found, tail = self._encode([*new, behind], begun.salt)
        if not all(ids and ids[-1] in self._marks for ids in found):
            # What looks like a mark is a part of another special token.
            new, found, tail = [], [], self._tokenizer.encode(rest, add_special=False)
        fresh = [_Piece(key, array("i", ids)) for key, ids in zip(new, found, strict=True)]
        if path or fresh:
            with self._lock:
                self._keep(begun.salt, path, fresh)
        ids = array("i", b"".join(each.ids for each in (*path, *fresh)))
        ids.extend(tail)
        return ids

    def _find(self, text: str, salt: str, path: list[_Piece]) -> int:
        """Add the pieces that `text` begins with to `path`; return how long they are."""
        piece, at = self._roots.get(salt), 0
        while piece is not None and piece.latest is not None:
            if text.startswith(piece.latest.key, at):
                piece = piece.latest
            else:
                mark = self._pattern.search(text, at)
                child = piece.children.get(text[at : mark.end()]) if mark else None
                if child is None:
                    break
                piece.latest = piece = child
            path.append(piece)
            at += len(piece.key)
        return at

    def _cut(self, text: str) -> list[str]:
        """Return the pieces of a text, and last what is behind them and ends in no mark."""
        ends = [match.end() for match in self._pattern.finditer(text)]
        places = zip([0, *ends], [*ends, len(text)], strict=True)
        return [text[start:end] for start, end in places]

    def _encode(self, texts: list[str], salt: str) -> list[list[int]]:
        """Return the ids of each text: of what stands between messages they are looked up."""
        short = [text for text in texts if len(text) <= _SHORT_CHARS]
        known = {text: ids for text in short if (ids := self._short.get((salt, text))) is not None}
        new = [text for text in dict.fromkeys(texts) if text not in known]
        # side by side on all cores
        known |= zip(new, self._tokenizer.encode_all(new), strict=True)
        if len(self._short) + len(short) > _MAX_SHORT:
            self._short.clear()
        self._short |= {(salt, text): known[text] for text in short[:_MAX_SHORT]}
        return [known[text] for text in texts]

    def _keep(self, salt: str, known: Sequence[_Piece], fresh: Sequence[_Piece]) -> None:
        """Add what is new of a path, and what of it is gone since it was found."""
        piece = known[-1] if known else None
        if piece is None or piece.is_gone:  # its children went before it did
            piece, fresh = self._root(salt), [*known, *fresh]
        for each in fresh:
            child = piece.children.get(each.key)
            if child is None:
                self._tips.pop(piece, None)
                child = self._counted(_Piece(each.key, each.ids, piece))
                piece.children[each.key] = child
            piece.latest = piece = child
        if not piece.children:
            self._tips[piece] = None
            self._tips.move_to_end(piece)
        while self.num_bytes > self._max_bytes:
            self._drop_first()

    def _root(self, salt: str) -> _Piece:
        piece = self._roots.get(salt)
        if piece is None:
            piece = self._roots[salt] = self._counted(_Piece(salt, array("i")))
        return piece

    def _counted(self, piece: _Piece) -> _Piece:
        self.num_bytes += piece.num_bytes
        return piece

    def _drop_first(self) -> None:
        piece, _ = self._tips.popitem(last=False)
        self.num_bytes -= piece.num_bytes
        piece.is_gone = True
        parent = piece.parent
        if parent is None:
            del self._roots[piece.key]
            return
        del parent.children[piece.key]
        if parent.latest is piece:
            parent.latest = next(reversed(parent.children.values()), None)
        if not parent.children:  # used last when the last of its children was
            self._tips[parent] = None
            self._tips.move_to_end(parent, last=False)


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
