# SPDX-License-Identifier: MIT
"""Bodies of conversations: the messages that the last turn's body held are not parsed again.

Of a body that begins like an earlier one, to the end of its last message, those bytes say what they
said.  So a mark takes the place of their messages, the short body is parsed, and where the mark
stands as the first of its messages the earlier ones do in its place.
"""

import secrets
from typing import Any

import attrs
import msgspec

from ..known_prefixes import Known, KnownPrefixes

MIN_BYTES = 16 * 1024  # shorter bodies are parsed whole
MAX_BYTES = 32 * 1024 * 1024
MAX_BODIES = 128  # each is looked at

_MARK = secrets.token_hex(16)  # no client knows it
_MARKED = b"[" + msgspec.json.encode(_MARK)


class _Outer(msgspec.Struct):
    messages: msgspec.Raw = msgspec.Raw()


@attrs.frozen(eq=False)
class _Said:
    """What a beginning says."""

    opening: bytes  # it, up to the bracket in front of the messages
    messages: list[Any]  # all that end in it
    owner: str
    salt: object


class SeenBodies:
    """Decodes JSON bodies, with a memory; whom nothing may be shared with has another `owner`.

    What it returns is shared between calls below the messages themselves: it is to be read only.
    """

    def __init__(self) -> None:
        self._known: KnownPrefixes[_Said] = KnownPrefixes()

    def decode(self, body: bytes, owner: str = "") -> Any:
        """Return what `msgspec.json.decode` does.  Raises as that does."""
        if len(body) < MIN_BYTES:
            return msgspec.json.decode(body)
        known = self._known.longest(body)
        if known is not None and known.value.owner == owner:
            given = self._continued(known, body)
            if given is not None:
                return given
        given = msgspec.json.decode(body)
        if isinstance(given, dict) and isinstance(given.get("messages"), list):
            messages = bytes(memoryview(msgspec.json.decode(body, type=_Outer).messages))
            # Should the same bytes stand elsewhere before, no mark will come to its place.
            start = body.find(messages)
            self._keep(body[: start + 1], body, start + len(messages), given, owner)
        return given

    def _continued(self, known: Known[_Said], body: bytes) -> Any:
        said, told = known.value, known.size
        short = said.opening[:-1] + _MARKED + body[told:]
        try:
            given = msgspec.json.decode(short)
            messages = memoryview(msgspec.json.decode(short, type=_Outer).messages)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None  # the whole body tells where it is wrong
        if messages[: len(_MARKED)] != _MARKED or given.get("cache_salt") != said.salt:
            return None
        given["messages"] = [*said.messages, *given["messages"][1:]]
        self._known.drop(known)
        end = told + len(messages) - len(_MARKED)
        self._keep(said.opening, body, end, given, said.owner)
        return given

    def _keep(
        self, opening: bytes, body: bytes, end: int, given: dict[str, Any], owner: str
    ) -> None:
        """Remember what a body says up to the bracket before `end`, which ends its messages."""
        size = end - 1
        while size > 0 and body[size - 1] in b" \t\r\n":
            size -= 1
        if body[size - 1 : size] != b"}":
            return  # what follows could belong to the last value
        said = _Said(opening, given["messages"], owner, given.get("cache_salt"))
        self._known.add(body, size, said)
        while self._known.num_bytes > MAX_BYTES or len(self._known) > MAX_BODIES:
            self._known.drop(self._known.oldest)
