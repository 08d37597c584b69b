# SPDX-License-Identifier: MIT
"""Reading, cancelling and deleting stored responses."""

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .caller import Caller
from .failure import ApiError
from .kept_responses import KeptResponses, Verb


def response_routes(kept: KeptResponses) -> list[Route]:
    """Return the routes below `/v1/responses/{id}`."""

    def asking(verb: Verb) -> Callable[[Request], Awaitable[Response]]:
        async def ask(request: Request) -> Response:
            id = request.path_params["id"]
            body = await kept.ask(Caller.of(request), id, verb)
            return _missing(id) if body is None else Response(body, media_type="application/json")

        return ask

    path = "/v1/responses/{id}"
    return [
        Route(path, asking("read"), methods=["GET"]),
        Route(path, asking("delete"), methods=["DELETE"]),
        Route(path + "/cancel", asking("cancel"), methods=["POST"]),
        Route(path + "/input_items", asking("input_items"), methods=["GET"]),
    ]


def _missing(id: str) -> Response:
    what = f"there is no response {id[:100]!r}: deleted, pushed out, or never stored"
    return ApiError(404, what, code="response_not_found").response()
