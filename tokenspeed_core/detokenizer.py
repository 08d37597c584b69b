# SPDX-License-Identifier: MIT
"""Token ids to text, one token at a time, and stop strings found in that text."""

import codecs
import json
from collections.abc import Iterable, Mapping, Sequence

import attrs

from .tokenizer import Tokenizer, TokenizerError


def _byte_of_char() -> dict[str, int]:
    """The printable alphabet in which byte-level vocabularies spell bytes (GPT-2's encoder)."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in set(kept)]
    table = {chr(byte): byte for byte in kept}
    table.update({chr(256 + rank): byte for rank, byte in enumerate(moved)})
    return table


_BYTE_OF_CHAR = _byte_of_char()


def _spelled_bytes(token: str) -> bytes:
    """Bytes of a byte-level token; one that uses another alphabet stands for its own UTF-8."""
    try:
        return bytes([_BYTE_OF_CHAR[char] for char in token])
    except KeyError:
        return token.encode()


@attrs.frozen(eq=False, repr=False)
class TokenText:
    """The text or bytes of each token id, shared by every detokenizer of one model."""

    pieces: Sequence[bytes | str | int | None]
    # bytes: part of a UTF-8 stream; str: finished text; int: a byte-fallback byte; None: no text
    strip_first_space: bool

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "TokenText":
        """Build the table from a tokenizer's decoder.

        Raises:
            TokenizerError: the decoder is of a kind that is not built.
        """
        decoder = json.loads(tokenizer.backend.to_str())["decoder"]
        steps = decoder["decoders"] if decoder and decoder["type"] == "Sequence" else [decoder]
        kinds = [step["type"] if step else "none" for step in steps]
        special = tokenizer.special_ids
        spelled = [
            None if id in special else tokenizer.backend.id_to_token(id)
            for id in range(tokenizer.vocab_size)
        ]
        if kinds == ["ByteLevel"]:
            return cls([None if t is None else _spelled_bytes(t) for t in spelled], False)
        if kinds in (
            ["Replace", "ByteFallback", "Fuse"],
            ["Replace", "ByteFallback", "Fuse", "Strip"],
        ):
            old, new = steps[0]["pattern"].get("String", "▁"), steps[0]["content"]
            return cls([_fallback_piece(t, old, new) for t in spelled], "Strip" in kinds)
        raise TokenizerError(
            f"decoder {'+'.join(kinds)} is not built; built: ByteLevel, and "
            f"Replace+ByteFallback+Fuse with or without Strip"
        )

    def spelling(self, texts: Mapping[int, str]) -> "TokenText":
        """Return this table with other texts for some tokens."""
        if not texts:
            return self
        pieces = list(self.pieces)
        is_bytes = any(isinstance(piece, bytes) for piece in pieces)
        for id, text in texts.items():
            pieces[id] = text.encode() if is_bytes else text
        return attrs.evolve(self, pieces=pieces)

    @property
    def longest_piece(self) -> int:
        """Bytes or characters of the longest token."""
        return max(len(piece) for piece in self.pieces if isinstance(piece, bytes | str))

    def text(self, id: int) -> str:
        """Return one token's own text, for showing it alone; partial characters become U+FFFD."""
        piece = self._piece(id)
        if isinstance(piece, int):
            piece = bytes([piece])
        return piece.decode(errors="replace") if isinstance(piece, bytes) else piece or ""

    def raw(self, id: int) -> bytes:
        """Return one token's bytes."""
        piece = self._piece(id)
        if isinstance(piece, int):
            return bytes([piece])
        return piece.encode() if isinstance(piece, str) else piece or b""

    def _piece(self, id: int) -> bytes | str | int | None:
        # a model's embedding may have more rows than its vocabulary has tokens
        return self.pieces[id] if 0 <= id < len(self.pieces) else None


def _fallback_piece(token: str | None, old: str, new: str) -> str | int | None:
    if token is None:
        return None
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return int(token[3:5], 16)
        except ValueError:
            pass
    return token.replace(old, new)


class Detokenizer:
    """Incremental decoding: the pieces returned so far plus `finish()` equal the batch decoding.

    A character is returned once it is complete; O(1) amortised per token.
    """

    def __init__(self, table: TokenText) -> None:
        self._table = table
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._fallback = bytearray()  # a run of byte tokens is text only as a whole
        self._strip = table.strip_first_space

    def push(self, id: int) -> str:
        """Take one token and return the text that it completes, possibly none."""
        piece = self._table._piece(id)
        if isinstance(piece, bytes):
            return self._utf8.decode(piece)
        if isinstance(piece, int):
            self._fallback.append(piece)
            return ""
        if piece is None:
            return ""
        return self._stripped(self._end_of_run() + piece)

    def finish(self) -> str:
        """Return what is still held back; an incomplete character becomes U+FFFD."""
        return self._stripped(self._end_of_run() + self._utf8.decode(b"", final=True))

    def _end_of_run(self) -> str:
        run, self._fallback = self._fallback, bytearray()
        try:
            return run.decode()
        except UnicodeDecodeError:
            return "\ufffd" * len(run)

    def _stripped(self, text: str) -> str:
        if self._strip and text:
            self._strip = False
            return text.removeprefix(" ")
        return text


@attrs.define
class _Matcher:
    """Knuth-Morris-Pratt for one stop string: `state` characters of it end the text so far."""

    stop: str
    fallback: list[int]
    state: int = 0

    @classmethod
    def of(cls, stop: str) -> "_Matcher":
        fallback = [0] * len(stop)
        length = 0
        for index in range(1, len(stop)):
            while length and stop[index] != stop[length]:
                length = fallback[length - 1]
            length += stop[index] == stop[length]
            fallback[index] = length
        return cls(stop, fallback)

    def push(self, char: str) -> bool:
        while self.state and self.stop[self.state] != char:
            self.state = self.fallback[self.state - 1]
        self.state += self.stop[self.state] == char
        return self.state == len(self.stop)


class StopStrings:
    """Cuts text before the first stop string, and holds back what may become one.

    First is the one that ends first; of those that end together, the longest.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._matchers = [_Matcher.of(stop) for stop in stops]
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """Take text and return what can no longer be part of a stop string.

        Once `matched` is set, all text before the stop has been returned.
        """
        if not self._matchers:
            return text
        assert self.matched is None, "text after a stop string"
        held = self._held + text
        for index, char in enumerate(text, start=len(self._held) + 1):
            ended = [matcher.stop for matcher in self._matchers if matcher.push(char)]
            if ended:
                self.matched = max(ended, key=len)
                self._held = ""
                return held[: index - len(self.matched)]
        keep = len(held) - max(matcher.state for matcher in self._matchers)
        self._held = held[keep:]
        return held[:keep]

    def finish(self) -> str:
        """Return the text held back, when no more will come."""
        held, self._held = self._held, ""
        return held
