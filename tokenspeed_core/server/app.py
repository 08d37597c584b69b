# SPDX-License-Identifier: MIT
"""The routes of the HTTP server."""

import time
from collections.abc import Awaitable, Callable

import attrs
import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from .. import __version__
from ..async_llm import AsyncLLM
from ..ipc.messages import SessionAction
from ..session import Session, SessionError
from .abort import Abort, SiblingAbort
from .access import Access
from .caller import Caller
from .chat import ChatEndpoint
from .completions import CompletionEndpoint
from .embeddings import Embeddings
from .endpoint import Route as BodyRoute
from .endpoint import Service
from .failure import ApiError
from .gate import Gate
from .health import Verdict, health, readiness
from .kept_responses import KeptResponses, ResponseQuery
from .messages import MessageEndpoint
from .metrics import Metrics
from .observer import Observer
from .openapi import document
from .operator_routes import operator_routes
from .response_routes import response_routes
from .response_store import ResponseStore
from .responses import ResponseEndpoint
from .siblings import Siblings
from .tokens import CountTokens, Detokenize, Tokenize

_SECRET = ("api_key", "api_keys", "curve_keys", "ssl_keyfile")

Handler = Callable[[Request], Awaitable[Response]]


def new_service(llm: AsyncLLM, index: int = 0) -> Service:
    """Return the state of an API process in front of `llm`, which must be connected."""
    name = llm.config.model_name
    metrics = Metrics(name, lambda: llm.client.stats, llm.codec.stages)
    service = Service(llm, name, metrics, Observer(metrics), started=int(time.time()), index=index)
    kept = -(-llm.config.stored_responses // llm.config.api_processes)
    service.responses = ResponseStore(kept, llm.config.response_ttl_s)
    return service


def create_app(
    service: Service, access: Access | None = None, siblings: Siblings | None = None
) -> ASGIApp:
    """Return the ASGI application, which by default everybody may call."""
    application = Starlette(
        routes=routes(service, siblings),
        exception_handlers={HTTPException: _http_failure, Exception: _internal_failure},
    )
    return Gate(application, access or Access())


def create_private_app(service: Service) -> ASGIApp:
    """Return what the engine's own processes ask: the probes and this process's series."""
    paths = ("/health", "/ready", "/metrics")

    async def abort(request: Request) -> Response:
        asked = msgspec.json.decode(await request.body(), type=SiblingAbort)
        return _json(service.requests.abort(asked.caller, asked.ids))

    async def response(request: Request) -> Response:
        query = msgspec.json.decode(await request.body(), type=ResponseQuery)
        told = kept.told(query)
        return Response(told or b"", 404 if told is None else 200)

    kept = KeptResponses(service, None)
    own = [route for route in routes(service) if route.path in paths]
    asked = [
        Route("/abort", abort, methods=["POST"]),
        Route("/responses", response, methods=["POST"]),
    ]
    return Starlette(routes=[*own, *asked])


def routes(service: Service, siblings: Siblings | None = None) -> list[Route]:
    """Return every route there is."""

    async def probe_health(_: Request) -> Response:
        return _verdict(health(service.llm.client))

    async def probe_ready(_: Request) -> Response:
        return _verdict(readiness(service.llm.client, is_draining=service.is_draining))

    async def models(_: Request) -> Response:
        return _json({"object": "list", "data": [_model(service)]})

    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        if name != service.model_name:
            missing = f"the model {name[:100]!r} is not served here; {service.model_name!r} is"
            return ApiError(404, missing, param="model", code="model_not_found").response()
        return _json(_model(service))

    async def metrics(_: Request) -> Response:
        page = service.metrics.page()
        if siblings is not None:
            page = await siblings.page(page)
        return Response(page, media_type="text/plain; version=0.0.4")

    async def version(_: Request) -> Response:
        return _json({"version": __version__})

    async def delete_session(request: Request) -> Response:
        name = request.path_params["name"]
        try:
            session = Session(name, request.query_params.get("cache_salt", ""))
        except SessionError as error:
            return ApiError(400, str(error), param=error.field).response()
        service.llm.hint(Caller.of(request).owned(session), SessionAction.END)
        return _json({"id": name, "object": "session", "deleted": True})

    async def server_info(_: Request) -> Response:
        return _json(_info(service))

    async def openapi(_: Request) -> Response:
        return _json(document(found, taken))

    taken = bodies(service, siblings)
    found = [
        *(Route(path, _called(body), methods=["POST"]) for path, body in taken.items()),
        *operator_routes(service),
        *response_routes(KeptResponses(service, siblings)),
        Route("/server_info", server_info, methods=["GET"]),
        Route("/v1/sessions/{name}", delete_session, methods=["DELETE"]),
        Route("/v1/models", models, methods=["GET"]),
        Route("/v1/models/{name:path}", model, methods=["GET"]),
        Route("/health", probe_health, methods=["GET"]),
        Route("/ready", probe_ready, methods=["GET"]),
        Route("/metrics", metrics, methods=["GET"]),
        Route("/version", version, methods=["GET"]),
        Route("/openapi.json", openapi, methods=["GET"]),
    ]
    return found


def bodies(service: Service, siblings: Siblings | None = None) -> dict[str, BodyRoute]:
    """Return the routes that take a body, by path."""
    return {
        "/v1/chat/completions": ChatEndpoint(service),
        "/v1/completions": CompletionEndpoint(service),
        "/v1/responses": ResponseEndpoint(service, KeptResponses(service, siblings)),
        "/v1/messages": MessageEndpoint(service),
        "/v1/messages/count_tokens": CountTokens(service),
        "/v1/embeddings": Embeddings(service),
        "/tokenize": Tokenize(service),
        "/detokenize": Detokenize(service),
        "/abort": Abort(service, siblings),
        "/abort_request": Abort(service, siblings),  # its name in SGLang
    }


def _called(route: BodyRoute) -> Handler:
    async def call(request: Request) -> Response:
        return await route(request)

    return call


def _info(service: Service) -> dict[str, object]:
    config = attrs.asdict(service.llm.config, filter=lambda field, _: field.name not in _SECRET)
    codec = service.llm.codec
    limits = service.llm.client.welcome
    return {
        "version": __version__,
        "model": service.model_name,
        "started": service.started,
        "in_flight": service.in_flight,
        "is_draining": service.is_draining,
        "dialect": codec.dialect.name,
        "embeds": attrs.asdict(codec.pooling) if codec.pooling else None,
        "takes_tools": codec.dialect.takes_calls
        and codec.template is not None
        and "tools" in codec.template.takes,
        "limits": msgspec.structs.asdict(limits) if limits else None,
        "config": config,
    }


def _model(service: Service) -> dict[str, object]:
    limits = service.llm.client.welcome
    return {
        "id": service.model_name,
        "object": "model",
        "created": service.started,
        "owned_by": "tokenspeed",
        "max_model_len": limits.max_model_len if limits else None,
        "embeds": service.llm.codec.pooling is not None,
    }


def _verdict(verdict: Verdict) -> Response:
    body = {"status": "ok" if verdict.is_good else "unavailable", "reason": verdict.reason}
    return _json(body, 200 if verdict.is_good else 503)


def _json(body: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(body), status, media_type="application/json")


async def _http_failure(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = f"{request.method} {request.url.path[:200]}"
    if error.status_code == 404:
        return ApiError(404, f"there is no route {what}", code="unknown_url").response()
    if error.status_code == 405:
        return ApiError(405, f"{what}: the route does not take this method").response()
    return ApiError(400, f"{what}: {error.detail}").response()


async def _internal_failure(request: Request, error: Exception) -> Response:
    return ApiError(500, "internal error; the server's log has the details").response()
