# SPDX-License-Identifier: MIT
"""The OpenAPI document is valid, tells every route, and means what the server does."""

import re
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from tests.frontend.conftest import HttpServer
from tokenspeed_core.server.app import bodies, routes
from tokenspeed_core.server.request_body import NEUTRAL


@pytest.fixture
async def document(http: HttpServer) -> dict[str, Any]:
    async with httpx.AsyncClient(base_url=http.url) as client:
        answer = await client.get("/openapi.json")
    assert answer.status_code == 200
    return dict(answer.json())


async def test_it_is_valid_and_tells_every_route(
    http: HttpServer, document: dict[str, Any]
) -> None:
    validate(document)
    told = {(path, method.upper()) for path, item in document["paths"].items() for method in item}
    there = {
        (re.sub(r":\w+}", "}", route.path), method)
        for route in routes(http.service)
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert told == there
    with_body = {path for path, item in document["paths"].items() if "requestBody" in str(item)}
    assert with_body == set(bodies(http.service))


async def test_every_field_of_a_body_is_told_and_no_other(
    http: HttpServer, document: dict[str, Any]
) -> None:
    for path, body in bodies(http.service).items():
        schema = document["components"]["schemas"][body.fields.__name__]
        fields = set(body.fields.__struct_fields__)
        assert fields <= set(schema["properties"]), path
        assert len(schema["description"]) > 10


async def test_what_the_document_refuses_the_server_refuses(
    http: HttpServer, document: dict[str, Any]
) -> None:
    body = {"model": "smollm2", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    schema = {
        "$ref": "#/components/schemas/ChatFields",
        "components": document["components"],
    }
    validator = Draft202012Validator(schema)
    cases = [{}, {"model": 5}, {"temperature": "x"}, {"n": [1]}, {"stop": 5}, {"stream": "yes"}]
    cases += [{"logit_bias": {"5": "x"}}, {"messages": "x"}, {"tools": [5]}, {"stop": ["a", 1]}]
    cases += [{name: {"never": "so"}} for name in NEUTRAL if name in str(schema)]
    async with httpx.AsyncClient(base_url=http.url) as client:
        for change in cases:
            asked = {**body, **change}
            is_valid = validator.is_valid(asked)
            assert is_valid == (not change), change
            answer = await client.post("/v1/chat/completions", json=asked)
            assert answer.status_code == (200 if is_valid else 400), (change, answer.text)
        answer = await client.post("/v1/chat/completions", json=body)
    told = document["paths"]["/v1/chat/completions"]["post"]["responses"]["200"]["content"]
    answers = {**told["application/json"]["schema"], "components": document["components"]}
    Draft202012Validator(answers).validate(answer.json())
