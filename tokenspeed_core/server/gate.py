# SPDX-License-Identifier: MIT
"""What every HTTP request passes before a route sees it: key, header and body limits."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .access import PAGE_CHALLENGE, PAGE_PATHS, Access
from .connection import TURNED_AWAY
from .failure import ApiError

MAX_BODY_BYTES = 32 * 1024 * 1024
MAX_HEADERS = 128
MAX_HEADER_BYTES = 64 * 1024


class Gate:
    """ASGI middleware: refuses before anything is read, and bounds what is read."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # no route speaks WebSocket
            await send({"type": "websocket.close", "code": 1008})
            return
        try:
            self._check(scope)
        except ApiError as error:
            response = error.response()
            if error.code == "too_many_connections":
                response.headers["connection"] = "close"
            if error.status == 401 and scope["path"] in PAGE_PATHS:
                response.headers["www-authenticate"] = PAGE_CHALLENGE
            await response(scope, receive, send)
            return
        await self._app(scope, _bounded(receive), send)

    def _check(self, scope: Scope) -> None:
        turned_away: ApiError | None = scope.get("state", {}).get(TURNED_AWAY)
        if turned_away is not None:
            raise turned_away
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        size = sum(len(name) + len(value) for name, value in headers)
        if len(headers) > MAX_HEADERS or size > MAX_HEADER_BYTES:
            raise ApiError(
                431,
                f"{len(headers)} headers of {size} bytes; the limits are {MAX_HEADERS} headers "
                f"and {MAX_HEADER_BYTES} bytes",
            )
        named = dict(headers)
        self._access.caller(scope["path"], named).enter(scope)
        length = named.get(b"content-length", b"0")
        if not length.isdigit() or int(length[:20]) > MAX_BODY_BYTES:
            raise _too_large()
        if named.get(b"content-encoding", b"identity") != b"identity":
            raise ApiError(400, "compressed request bodies are not accepted; send plain JSON")


def _too_large() -> ApiError:
    return ApiError(413, f"the request body is larger than {MAX_BODY_BYTES} bytes")


def _bounded(receive: Receive) -> Receive:
    """Count the body's bytes as they arrive: a chunked body states no length."""
    taken = 0

    async def bounded() -> Message:
        nonlocal taken
        message = await receive()
        if message["type"] == "http.request":
            taken += len(message.get("body", b""))
            if taken > MAX_BODY_BYTES:
                raise _too_large()
        return message

    return bounded
