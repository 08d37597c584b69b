# SPDX-License-Identifier: MIT
"""The form that a request's own fields ask of its answer, in all the ways in which they can."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..grammar import grammar as form
from ..grammar.grammar import MAX_CHOICES, Format
from .failure import ApiError

Asked = tuple[Format, str]  # and the field that asked


def asked_format(**fields: Any) -> Asked | None:
    """Return the form that one of a request's fields asks for, None if none does.

    `fields` are `response_format`, `structured_outputs`, `guided_json` ... as they came, None where
    they were left out.

    Raises:
        ApiError: a field is malformed, or two of them ask.
    """
    found = [
        (_READ[name](value, name), name) for name, value in fields.items() if value is not None
    ]
    asked = [(each, name) for each, name in found if each is not None]
    if len(asked) > 1:
        both = " and ".join(name for _, name in asked)
        raise _bad(asked[1][1], f"{both} both constrain the answer; give one of them")
    return asked[0] if asked else None


def _response_format(value: Any, field: str) -> Format | None:
    """OpenAI's `response_format`, and `text.format` of responses, which is flat."""
    kind = _mapping(value, field).get("type")
    match kind:
        case "text":
            return None
        case "json_object":
            return form.json_object()
        case "json_schema":
            inner = value.get("json_schema", value)
            schema = inner.get("schema") if isinstance(inner, Mapping) else None
            return _json(schema, f"{field}.json_schema.schema")
        case "structural_tag":
            return _structural_tag(value, field)
        case "grammar" | "regex":
            return _text_format(value, str(kind), field)
    raise _bad(
        field,
        f"{field}.type is {str(kind)[:40]!r}; built: text, json_object, json_schema, "
        f"structural_tag, grammar, regex",
    )


def _text_format(value: Mapping[str, Any], kind: str, field: str) -> Format:
    given = value.get(kind, value.get("pattern"))
    return _grammar(given, field) if kind == "grammar" else _regex(given, field)


def _structured_outputs(value: Any, field: str) -> Format | None:
    """vLLM's `structured_outputs`: one of several ways."""
    given = {name: each for name, each in _mapping(value, field).items() if each is not None}
    unknown = [name for name in given if name not in _WAYS]
    if unknown:
        raise _bad(field, f"{field}.{unknown[0][:40]} is not built; built: {', '.join(_WAYS)}")
    ways = [(name, each) for name, each in given.items() if each is not False]
    if len(ways) > 1:
        raise _bad(field, f"{field} has {' and '.join(name for name, _ in ways)}; give one")
    for name, each in ways:
        return _WAYS[name](each, f"{field}.{name}")
    return None


def _json(value: Any, field: str) -> Format:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise _bad(field, f"{field} is no JSON: {error}") from None
    if not isinstance(value, Mapping | bool):
        raise _bad(field, f"{field} is not a JSON schema")
    return form.json_schema(value)


def _json_object(value: Any, field: str) -> Format:
    if value is not True:
        raise _bad(field, f"{field} is {str(value)[:40]!r}; give true")
    return form.json_object()


def _regex(value: Any, field: str) -> Format:
    return form.regex(_string(value, field))


def _grammar(value: Any, field: str) -> Format:
    return form.ebnf(_string(value, field))


def _choice(value: Any, field: str) -> Format:
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    if not is_list or not value or not all(isinstance(each, str) for each in value):
        raise _bad(field, f"{field} is not a list of texts")
    if len(value) > MAX_CHOICES:
        raise _bad(field, f"{field} has {len(value)} texts; at most {MAX_CHOICES} are allowed")
    return form.choice(value)


def _structural_tag(value: Any, field: str) -> Format:
    """A structural tag: a tree of formats, or the older list of structures with their triggers."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise _bad(field, f"{field} is no JSON: {error}") from None
    tree = _mapping(value, field).get("format")
    if isinstance(tree, Mapping):
        return tree
    structures, triggers = value.get("structures"), value.get("triggers")
    if not isinstance(structures, list) or not isinstance(triggers, list):
        raise _bad(field, f"{field} has neither a format nor structures with triggers")
    tags = [
        {
            "type": "tag",
            "begin": each.get("begin"),
            "content": form.json_schema(each.get("schema") or {}),
            "end": each.get("end"),
        }
        for each in structures
        if isinstance(each, Mapping)
    ]
    return {"type": "triggered_tags", "triggers": triggers, "tags": tags}


def _mapping(value: Any, field: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _bad(field, f"{field} is not an object")
    return value


def _string(value: Any, field: str) -> str:
    if not isinstance(value, str) or not value:
        raise _bad(field, f"{field} is not a text")
    return value


def _bad(field: str, why: str) -> ApiError:
    return ApiError(400, why, param=field.partition(".")[0], code="invalid_grammar")


_WAYS = {
    "json": _json,
    "regex": _regex,
    "choice": _choice,
    "grammar": _grammar,
    "json_object": _json_object,
    "structural_tag": _structural_tag,
}
_READ = {
    "response_format": _response_format,
    "text": _response_format,
    "output_config": _response_format,
    "structured_outputs": _structured_outputs,
    "guided_json": _json,
    "guided_regex": _regex,
    "guided_choice": _choice,
    "guided_grammar": _grammar,
}
