# SPDX-License-Identifier: MIT
"""Which parts of JSON Schema xgrammar reads and does not enforce, as of 0.2."""

from collections.abc import Iterator, Mapping
from typing import Any

_UNENFORCED = (
    "uniqueItems",
    "contains",
    "minContains",
    "maxContains",
    "not",
    "if",
    "then",
    "else",
    "dependentRequired",
    "dependentSchemas",
    "dependencies",
    "unevaluatedProperties",
    "unevaluatedItems",
    "additionalItems",
    "allOf",
    "oneOf",
    "minLength",  # with a length control characters may come unescaped
    "maxLength",
    "minProperties",  # of objects whose properties are not listed none is allowed
)
_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_VALUES = ("enum", "const", "default", "examples", "example")
# Keywords that hold for one type only, which has to be named beside them.
_TYPED = (
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    *("minLength", "maxLength", "pattern", "format", "minItems", "maxItems", "prefixItems"),
)
_BESIDE_REF = ("$defs", "definitions", "title", "description", "default", "$schema", "$id", "$ref")


def unenforced(schema: Any) -> str | None:
    """Return the first part of a schema that xgrammar would ignore, None if it heeds all."""
    for each in _schemas(schema):
        for keyword in _UNENFORCED:
            if each.get(keyword) not in (None, False):
                return keyword
        properties = each.get("properties")
        named = properties if isinstance(properties, Mapping) else {}
        required = each.get("required")
        if isinstance(required, list) and not all(name in named for name in required):
            return "required without properties"
        if "$ref" in each and any(key not in _BESIDE_REF for key in each):
            return "$ref beside other keywords"
        if "$ref" in each and not str(each["$ref"]).startswith("#"):
            return "$ref to another document"
        if "type" not in each and any(keyword in each for keyword in _TYPED):
            return "constraints without a type"
        if "enum" in each and "type" in each and not _of_type(each["enum"], each["type"]):
            return "enum with values of other types"
        if isinstance(each.get("items"), list):
            return "items as a list"
    return None


def _schemas(schema: Any) -> Iterator[Mapping[str, Any]]:
    waiting = [schema]
    while waiting:
        each = waiting.pop()
        if isinstance(each, list):
            waiting += each
        elif isinstance(each, Mapping):
            yield each
            for key, value in each.items():
                if key in _MAPS and isinstance(value, Mapping):
                    waiting += value.values()
                elif key not in _VALUES and isinstance(value, Mapping | list):
                    waiting.append(value)


_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
    "array": (list,),
    "object": (dict,),
}


def _of_type(values: Any, types: Any) -> bool:
    named = types if isinstance(types, list) else [types]
    allowed = tuple(kind for name in named for kind in _TYPES.get(str(name), ()))
    return isinstance(values, list) and all(
        isinstance(value, allowed) and (not isinstance(value, bool) or "boolean" in named)
        for value in values
    )


def schemas_of(form: Any) -> Iterator[Any]:
    """Yield the JSON schemas in a tree of formats."""
    if isinstance(form, list):
        for each in form:
            yield from schemas_of(each)
    elif isinstance(form, Mapping):
        if form.get("type") in ("json_schema", "qwen_xml_parameter"):
            yield form.get("json_schema")
            return
        for value in form.values():
            yield from schemas_of(value)
