# SPDX-License-Identifier: MIT
"""The tools that a request offers, checked."""

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from ..dialect.dialect import Dialect
from ..dialect.form import Tool
from ..dialect.reader import MAX_NAME_CHARS
from .failure import ApiError

MAX_TOOLS = 1024


@attrs.frozen
class Tools:
    """The tools that the model is shown, in OpenAI's form, and which it may or must call."""

    shown: Sequence[Mapping[str, Any]] = ()
    schemas: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict)  # of their parameters
    callable: Sequence[Tool] = ()
    must_call: bool = False
    one_call: bool = False
    field: str = ""  # of the request, that asks for more than that tools are shown

    @classmethod
    def of(
        cls, tools: Sequence[Mapping[str, Any]], choice: Any = "auto", *, one_call: bool = False
    ) -> "Tools":
        """Check what a client sent.

        The choice is "auto", "required", "none" (the model is shown no tool), one tool by its name,
        or some of them: each in the form of chat or of responses.

        Raises:
            ApiError: a tool or the choice is malformed, or names a tool that is not there.
        """
        if len(tools) > MAX_TOOLS:
            raise _bad(f"has {len(tools)} tools; at most {MAX_TOOLS} are allowed")
        known = [_tool(tool, f"[{index}]") for index, tool in enumerate(tools)]
        if choice == "none":
            return cls()
        mode, names = _choice(choice)
        by_name = {tool.name: tool for tool in known}
        missing = [name for name in names if name not in by_name]
        if missing:
            raise _bad_choice(f"names {missing[0][:40]!r}, which is not among the tools")
        if mode != "auto" and not known:
            raise _bad_choice("wants a call, and there are no tools")
        is_strict = any(tool.is_strict for tool in known)
        return cls(
            tools,
            {tool.name: tool.parameters for tool in known},
            [by_name[name] for name in names] or known,
            mode != "auto",
            one_call or mode == "named",
            "tool_choice" if mode != "auto" else "tools" if is_strict else "",
        )

    def check_known(self, dialect: Dialect) -> None:
        """Raise ApiError if it is not known how a model of this dialect calls tools."""
        if not dialect.takes_calls:
            raise _bad("is given, and how this model writes calls is not known")


def _choice(choice: Any) -> tuple[str, list[str]]:
    """Return "auto", "required" or "named", and the names of the tools that may be called."""
    if choice in ("auto", None):
        return "auto", []
    if choice in ("required", "any"):
        return "required", []
    kind = choice.get("type") if isinstance(choice, Mapping) else None
    if kind == "function":
        name = _inner(choice, "function").get("name")
        if isinstance(name, str):
            return "named", [name]
    if kind == "allowed_tools":
        inner = _inner(choice, "allowed_tools")
        mode, allowed = inner.get("mode", "auto"), inner.get("tools")
        if mode in ("auto", "required") and isinstance(allowed, list) and allowed:
            named = [_inner(each, "function").get("name") for each in allowed]
            names = [name for name in named if isinstance(name, str)]
            if len(names) == len(named):
                return mode, names
    raise _bad_choice(
        f"is {str(choice)[:60]!r}; give auto, none, required, a function's name or allowed_tools"
    )


def _inner(value: Any, key: str) -> Mapping[str, Any]:
    """Return what chat nests below `key` and responses do not."""
    inner = value.get(key, value) if isinstance(value, Mapping) else None
    return inner if isinstance(inner, Mapping) else {}


def _tool(tool: Mapping[str, Any], where: str) -> Tool:
    if tool.get("type") != "function":
        raise _bad(f"{where}.type is {str(tool.get('type'))[:40]!r}; only functions are built")
    function = tool.get("function")
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str):
        raise _bad(f"{where}.function.name is missing")
    if not 1 <= len(name) <= MAX_NAME_CHARS or any(char.isspace() for char in name):
        raise _bad(f"{where}.function.name {name[:40]!r} has spaces or a bad length")
    parameters = function.get("parameters") or {}
    if not isinstance(parameters, Mapping):
        raise _bad(f"{where}.function.parameters is not a JSON schema")
    return Tool(name, parameters, function.get("strict") is True)


def _bad(what: str) -> ApiError:
    return ApiError(400, f"tools{what}" if what[0] == "[" else f"tools {what}", param="tools")


def _bad_choice(what: str) -> ApiError:
    return ApiError(400, f"tool_choice {what}", param="tool_choice", code="invalid_parameter")
