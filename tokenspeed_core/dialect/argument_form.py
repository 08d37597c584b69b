# SPDX-License-Identifier: MIT
"""The form of a call's arguments: JSON of a schema, or parameters one by one."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..grammar.grammar import Format, choice, constant, json_schema, regex, sequence, text
from ..grammar.schema_support import unenforced
from .parameters import types

Marks = tuple[str, str, str]  # before a key, between it and its value, behind the value

_OPEN: Mapping[str, Any] = {"type": "object"}


def json_arguments(schema: Mapping[str, Any], *, is_strict: bool) -> Format:
    """Return the form of JSON arguments.

    Where not every backend enforces the schema, those of a tool that is not strict are any object.
    """
    is_kept = is_strict or unenforced(schema) is None
    return json_schema(schema if schema and is_kept else _OPEN)


def parameters(
    marks: Marks, ends: Sequence[str], schema: Mapping[str, Any], *, is_strict: bool
) -> Format:
    """Return the form of parameters in the order of the schema, optional ones perhaps left out.

    Values that are text are as they are, without any of `ends`; others are JSON.
    """
    begin, middle, end = marks
    properties = schema.get("properties")
    if not isinstance(properties, Mapping):
        name = regex(r"[^<>\s\"']+")
        any_value = text(without=ends)
        one = sequence(constant(begin), name, constant(middle), any_value, constant(end))
        return constant("") if is_strict and not schema else {"type": "star", "content": one}
    required = schema.get("required")
    forms: list[Format] = []
    for name, inner in properties.items():
        value = _value(inner, schema, ends, is_strict=is_strict)
        one = sequence(constant(begin + name + middle), value, constant(end))
        is_required = isinstance(required, list) and name in required
        forms.append(one if is_required else {"type": "optional", "content": one})
    return sequence(*forms) if forms else constant("")


def _value(
    schema: Any, outer: Mapping[str, Any], ends: Sequence[str], *, is_strict: bool
) -> Format:
    inner = schema if isinstance(schema, Mapping) else {}
    if types(inner) == {"string"}:
        return _text(inner, ends)
    defined = {key: outer[key] for key in ("$defs", "definitions") if key in outer}
    if not is_strict and unenforced(inner) is not None:
        return json_schema(True)
    return json_schema({**inner, **defined})


def _text(schema: Mapping[str, Any], ends: Sequence[str]) -> Format:
    values = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if isinstance(values, list) and values and all(isinstance(each, str) for each in values):
        return choice(values)
    if isinstance(schema.get("pattern"), str):
        return regex(schema["pattern"])
    least, most = schema.get("minLength", 0), schema.get("maxLength", "")
    if least or most != "":
        return regex(f"[^<]{{{least},{most}}}")
    return text(without=ends)
