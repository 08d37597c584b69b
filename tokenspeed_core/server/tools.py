# SPDX-License-Identifier: MIT
"""The tools that a request offers, checked."""

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from ..dialect.dialect import Dialect
from ..dialect.reader import MAX_NAME_CHARS
from .failure import ApiError

MAX_TOOLS = 1024


@attrs.frozen
class Tools:
    """The tools that the model is shown, in OpenAI's form, and their parameters' schemas."""

    shown: Sequence[Mapping[str, Any]]
    schemas: Mapping[str, Mapping[str, Any]]

    @classmethod
    def of(cls, tools: Sequence[Mapping[str, Any]], choice: Any = "auto") -> "Tools":
        """Check what a client sent; with the choice "none" the model is shown no tool.

        Raises:
            ApiError: a tool is malformed, or the choice cannot be served.
        """
        if choice not in ("auto", "none", None):
            raise ApiError(
                400,
                f"tool_choice={str(choice)[:60]} needs grammars, which are not built; "
                f'give "auto" or "none"',
                param="tool_choice",
                code="unsupported_parameter",
            )
        if len(tools) > MAX_TOOLS:
            raise _bad(f"has {len(tools)} tools; at most {MAX_TOOLS} are allowed")
        schemas = dict(_schema(tool, f"[{index}]") for index, tool in enumerate(tools))
        return cls((), {}) if choice == "none" else cls(tools, schemas)

    def check_known(self, dialect: Dialect) -> None:
        """Raise ApiError if it is not known how a model of this dialect calls tools."""
        if not dialect.takes_calls:
            raise _bad("is given, and how this model writes calls is not known")


def _schema(tool: Mapping[str, Any], where: str) -> tuple[str, Mapping[str, Any]]:
    if tool.get("type") != "function":
        raise _bad(f"{where}.type is {str(tool.get('type'))[:40]!r}; only functions are built")
    function = tool.get("function")
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str):
        raise _bad(f"{where}.function.name is missing")
    if not 1 <= len(name) <= MAX_NAME_CHARS or any(char.isspace() for char in name):
        raise _bad(f"{where}.function.name {name[:40]!r} has spaces or a bad length")
    if function.get("strict"):
        raise _bad(f"{where}.function.strict needs grammars, which are not built; leave it out")
    parameters = function.get("parameters") or {}
    if not isinstance(parameters, Mapping):
        raise _bad(f"{where}.function.parameters is not a JSON schema")
    return name, parameters


def _bad(what: str) -> ApiError:
    return ApiError(400, f"tools{what}" if what[0] == "[" else f"tools {what}", param="tools")
