# SPDX-License-Identifier: MIT
"""Parameters that a model writes one by one, put together to a JSON object of arguments."""

import json
from collections.abc import Mapping
from typing import Any

_TYPES: dict[type, set[str]] = {
    str: {"string"},
    bool: {"boolean"},
    int: {"integer", "number"},
    float: {"number"},
    list: {"array"},
    dict: {"object"},
    type(None): {"null"},
}


class Parameters:
    """Returns the text of the object as the parameters come.

    A parameter whose schema says string is passed on as it comes; another one is JSON if it is and
    the schema allows it, else a string.
    """

    def __init__(self, schema: Mapping[str, Any], *, trims_values: bool) -> None:
        self._schema = schema
        self._trims = trims_values
        self._count = 0
        self._types: set[str] = set()
        self._value: list[str] = []
        self._held = ""
        self._is_first = True

    def begin(self, key: str) -> str:
        """Begin a parameter."""
        self._types = types(_property(self._schema, key))
        self._value, self._held, self._is_first = [], "", True
        self._count += 1
        before = "{" if self._count == 1 else ", "
        after = '"' if self._is_text else ""
        return f"{before}{json.dumps(key, ensure_ascii=False)}: {after}"

    def push(self, text: str) -> str:
        """Take a piece of the value."""
        if not self._is_text:
            self._value.append(text)
            return ""
        if self._trims and self._is_first and text:
            self._is_first = False
            text = text.removeprefix("\n")
        text = self._held + text
        self._held = "\n" if self._trims and text.endswith("\n") else ""
        return _inner(text[: len(text) - len(self._held)])

    def end(self) -> str:
        """End the value."""
        if self._is_text:
            return '"'
        text = self._other_text()
        return self._literal(text) or json.dumps(text, ensure_ascii=False)

    def cut(self) -> str:
        """Return what was held back of a value that never ends."""
        return _inner(self._held) if self._is_text else '"' + _inner(self._other_text())

    def close(self) -> str:
        """End the object."""
        return "}" if self._count else "{}"

    @property
    def _is_text(self) -> bool:
        return self._types == {"string"}

    def _other_text(self) -> str:
        text = "".join(self._value)
        return text.removeprefix("\n").removesuffix("\n") if self._trims else text

    def _literal(self, text: str) -> str:
        """Return the text if it is JSON of an allowed type, else ""."""
        text = text.strip()
        if "boolean" in self._types and text.lower() in ("true", "false"):
            return text.lower()
        try:
            value = json.loads(text, parse_constant=_refuse)
        except (ValueError, RecursionError):
            return ""
        return text if not self._types or self._types & _TYPES[type(value)] else ""


def _inner(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _property(schema: Mapping[str, Any], key: str) -> Any:
    properties = schema.get("properties")
    return properties.get(key) if isinstance(properties, Mapping) else None


def types(schema: Any) -> set[str]:
    """Return the JSON types that a schema names; none where it leaves them open."""
    if not isinstance(schema, Mapping):
        return set()
    named = schema.get("type")
    if isinstance(named, str):
        return {named}
    if isinstance(named, list):
        return {each for each in named if isinstance(each, str)}
    found: set[str] = set()
    for union in ("anyOf", "oneOf"):
        alternatives = schema.get(union)
        for each in alternatives if isinstance(alternatives, list) else ():
            found |= types(each)
    return found
