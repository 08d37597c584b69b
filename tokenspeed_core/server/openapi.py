# SPDX-License-Identifier: MIT
"""The OpenAPI document, made from the structs that requests are parsed into."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from starlette.routing import Route as StarletteRoute

from .. import __version__
from .answer import ChatChoice, CompletionChoice, Usage
from .embeddings import EmbeddingAnswer
from .endpoint import Route
from .request_body import HARMLESS, NEUTRAL

_REF = "#/components/schemas/{name}"
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_CHOICES = {"/v1/chat/completions": ChatChoice, "/v1/completions": CompletionChoice}
_STREAMS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
_OPEN = ("/health", "/ready")


def document(
    routes: Iterable[StarletteRoute], bodies: Mapping[str, Route], server: str = "/"
) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of `routes`; those of `bodies` take a JSON body."""
    types = {path: body.fields for path, body in bodies.items()}
    structs = [*types.values(), *_CHOICES.values(), EmbeddingAnswer, Usage]
    schemas, components = msgspec.json.schema_components(structs, ref_template=_REF)
    by_type = dict(zip(structs, schemas, strict=True))
    for path, fields in types.items():
        if path in _STREAMS:
            components[fields.__name__]["properties"] |= _unbuilt(fields)
    answers = {path: _answer(by_type[choice]) for path, choice in _CHOICES.items()}
    answers["/v1/embeddings"] = by_type[EmbeddingAnswer]
    paths: dict[str, Any] = {}
    for route in routes:
        template = re.sub(r"{(\w+):\w+}", r"{\1}", route.path)
        for method in sorted((route.methods or set()) - {"HEAD"}):
            operation = _operation(template, method)
            if route.path in types:
                body = {"schema": by_type[types[route.path]]}
                operation["requestBody"] = {"required": True, "content": {_JSON: body}}
                operation["description"] = _summary(type(bodies[route.path]))
            if route.path in answers:
                operation["responses"]["200"]["content"][_JSON]["schema"] = answers[route.path]
            if route.path in _STREAMS:
                stream = {"schema": {"type": "string"}}
                operation["responses"]["200"]["content"]["text/event-stream"] = stream
            paths.setdefault(template, {})[method.lower()] = operation
    key = {"bearer": {"type": "http", "scheme": "bearer"}}
    key |= {"header": {"type": "apiKey", "in": "header", "name": "x-api-key"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "TokenSpeed", "version": __version__},
        "servers": [{"url": server}],
        "paths": paths,
        "components": {
            "schemas": {**components, "Error": _ERROR},
            "securitySchemes": key,
        },
    }


_JSON = "application/json"


def _operation(path: str, method: str) -> dict[str, Any]:
    name = "_".join(re.findall(r"\w+", path))
    error = {"description": "refused or failed", "content": {_JSON: {"schema": _ref("Error")}}}
    parameters = [
        {"name": each, "in": "path", "required": True, "schema": {"type": "string"}}
        for each in re.findall(r"{(\w+)}", path)
    ]
    return {
        "operationId": f"{method.lower()}_{name}",
        "parameters": parameters,
        "security": [] if path in _OPEN else [{"bearer": []}, {"header": []}, {}],
        "responses": {
            "200": {"description": "done", "content": {_JSON: {"schema": {}}}},
            "default": error,
        },
    }


def _answer(choice: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["id", "object", "created", "model", "choices", "usage"],
        "properties": {
            "id": {"type": "string"},
            "object": {"type": "string"},
            "created": {"type": "integer"},
            "model": {"type": "string"},
            "choices": {"type": "array", "items": choice},
            "usage": _ref("Usage"),
        },
    }


def _unbuilt(fields: type[msgspec.Struct]) -> dict[str, Any]:
    """Return the fields that are taken with certain values only, or have no effect."""
    known = set(fields.__struct_fields__)
    neutral = {
        name: {"enum": [*values, None], "description": "other values are not built"}
        for name, values in NEUTRAL.items()
        if name not in known
    }
    harmless: dict[str, Any] = {
        name: {"description": "without effect"} for name in sorted(HARMLESS - known)
    }
    return neutral | harmless


def _summary(kind: type) -> str:
    return (kind.__doc__ or "").strip().partition("\n")[0]


def _ref(name: str) -> dict[str, str]:
    return {"$ref": _REF.format(name=name)}
