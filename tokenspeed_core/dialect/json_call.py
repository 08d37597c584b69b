# SPDX-License-Identifier: MIT
"""Reading `{"name": ..., "arguments": {...}}` as it is written."""

import enum
import json

_NAME = "name"
_ARGUMENTS = ("arguments", "parameters")


class _At(enum.Enum):
    OPENING = enum.auto()  # before {
    KEY = enum.auto()  # before a key, or } of an empty object
    COLON = enum.auto()
    VALUE = enum.auto()  # before a value
    IN_KEY = enum.auto()
    IN_VALUE = enum.auto()
    COMMA = enum.auto()  # before , or }
    END = enum.auto()


class JsonCall:
    """A call's JSON object, character by character.

    `name` is there once it was read, `arguments` grows as their text comes (a string of JSON is
    unwrapped).  Only the frame is checked: what the arguments hold is the model's.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._at = _At.OPENING
        self._key = ""
        self._value: list[str] = []
        self._depth = 0
        self._in_string = False
        self._is_escaped = False
        self._fresh: list[str] = []
        self.has_arguments = False

    @property
    def is_done(self) -> bool:
        """The object is closed."""
        return self._at is _At.END

    @property
    def is_call(self) -> bool:
        """The name is known, and the arguments have begun or there are none."""
        return self.name is not None and (self.has_arguments or self.is_done)

    def take_arguments(self) -> str:
        """Return the text of the arguments that came since the last call."""
        fresh, self._fresh = self._fresh, []
        return "".join(fresh)

    def push(self, char: str) -> bool:
        """Take a character; False, and nothing changed, where it cannot be part of a call."""
        if self._at is _At.IN_KEY or self._at is _At.IN_VALUE:
            return self._inside(char)
        if char.isspace():
            return True
        match self._at, char:
            case (_At.OPENING, "{"):
                self._at = _At.KEY
            case (_At.KEY, '"'):
                self._at, self._value, self._in_string = _At.IN_KEY, [char], True
            case (_At.COLON, ":"):
                self._at = _At.VALUE
            case (_At.COMMA, ","):
                self._at = _At.KEY
            case (_At.COMMA | _At.KEY, "}"):
                self._at = _At.END
            case (_At.VALUE, _) if char not in ",}]:":
                return self._begin_value(char)
            case _:
                return False
        return True

    def _begin_value(self, char: str) -> bool:
        if self._key == _NAME and char != '"':
            return False
        self._at, self._value, self._depth = _At.IN_VALUE, [], 0
        if self._key in _ARGUMENTS:
            if self.has_arguments:
                return False  # twice
            self.has_arguments = True
        return self._inside(char)

    @property
    def _is_streamed(self) -> bool:
        return self._key in _ARGUMENTS and self._value[0] != '"'

    def _inside(self, char: str) -> bool:
        if self._in_string:
            self._keep(char)
            if self._is_escaped:
                self._is_escaped = False
            elif char == "\\":
                self._is_escaped = True
            elif char == '"':
                self._in_string = False
                if self._at is _At.IN_KEY or self._depth == 0:
                    return self._end_text()
            return True
        if self._depth == 0 and self._value and (char in ",}" or char.isspace()):
            self._at = _At.COMMA  # the end of a number or word
            return self.push(char)
        self._keep(char)
        if char == '"':
            self._in_string = True
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1
            if self._depth == 0:
                self._at = _At.COMMA
        return True

    def _keep(self, char: str) -> None:
        self._value.append(char)
        if self._at is _At.IN_VALUE and self._is_streamed:
            self._fresh.append(char)

    def _end_text(self) -> bool:
        raw = "".join(self._value)
        try:
            text = str(json.loads(raw, strict=False))
        except ValueError:
            text = raw[1:-1]
        if self._at is _At.IN_KEY:
            self._at, self._key = _At.COLON, text
            return True
        self._at = _At.COMMA
        if self._key == _NAME:
            self.name = text
        elif self._key in _ARGUMENTS:
            self._fresh.append(text)
        return True
