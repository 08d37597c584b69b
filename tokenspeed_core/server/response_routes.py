# SPDX-License-Identifier: MIT
"""Reading, cancelling and deleting stored responses."""

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .caller import Caller
from .endpoint import Service
from .failure import ApiError


def response_routes(service: Service) -> list[Route]:
    """Return the routes below `/v1/responses/{id}`."""
    store = service.responses

    async def read(request: Request) -> Response:
        stored = store.find(Caller.of(request), request.path_params["id"])
        return _missing(request) if stored is None else _json(stored.tell())

    async def delete(request: Request) -> Response:
        id = request.path_params["id"]
        if not store.delete(Caller.of(request), id):
            return _missing(request)
        return _json({"id": id, "object": "response", "deleted": True})

    async def cancel(request: Request) -> Response:
        caller, id = Caller.of(request), request.path_params["id"]
        stored = store.find(caller, id)
        if stored is None:
            return _missing(request)
        if stored.is_running:
            service.requests.abort(caller.name, {id})
        return _json(stored.tell() | ({"status": "cancelled"} if stored.is_running else {}))

    async def items(request: Request) -> Response:
        stored = store.find(Caller.of(request), request.path_params["id"])
        if stored is None:
            return _missing(request)
        found = list(stored.items)
        return _json({"object": "list", "data": found, "has_more": False})

    path = "/v1/responses/{id}"
    return [
        Route(path, read, methods=["GET"]),
        Route(path, delete, methods=["DELETE"]),
        Route(path + "/cancel", cancel, methods=["POST"]),
        Route(path + "/input_items", items, methods=["GET"]),
    ]


def _missing(request: Request) -> Response:
    id = request.path_params["id"][:100]
    what = f"there is no response {id!r}: deleted, pushed out, or never stored"
    return ApiError(404, what, code="response_not_found").response()


def _json(body: object) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")
