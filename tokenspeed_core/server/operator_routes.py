# SPDX-License-Identifier: MIT
"""Routes for whoever runs the engine: status page, profiles."""

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .dashboard import Dashboard
from .endpoint import Service
from .failure import ApiError
from .profile import ProfileError, Profiler


def operator_routes(service: Service) -> list[Route]:
    """Return the routes; profiles are refused unless the configuration allows them."""
    dashboard = Dashboard(service.model_name, service.llm.client, service.observer)
    profiler = Profiler(service.llm, service.observer)

    async def page(_: Request) -> Response:
        return Response(
            dashboard.page(),
            media_type="text/html; charset=utf-8",
            headers={
                "content-security-policy": "default-src 'none'; connect-src 'self'; "
                "script-src 'unsafe-inline'; style-src 'unsafe-inline'"
            },
        )

    async def data(_: Request) -> Response:
        return Response(msgspec.json.encode(dashboard.data()), media_type="application/json")

    def refusal() -> Response | None:
        if service.llm.config.profiling:
            return None
        why = "profiles are off; start the server with --profiling"
        return ApiError(403, why, code="profiling_off").response()

    async def start_profile(_: Request) -> Response:
        if (refused := refusal()) is not None:
            return refused
        try:
            profiler.start()
        except ProfileError as error:
            return ApiError(409, str(error), code="profile_running").response()
        return Response(b'{"profiling":true}', media_type="application/json")

    async def stop_profile(_: Request) -> Response:
        if (refused := refusal()) is not None:
            return refused
        try:
            trace = await profiler.stop()
        except ProfileError as error:
            return ApiError(409, str(error), code="no_profile").response()
        return Response(trace, media_type="application/json")

    return [
        Route("/dashboard", page, methods=["GET"]),
        Route("/dashboard/data", data, methods=["GET"]),
        Route("/start_profile", start_profile, methods=["POST"]),
        Route("/stop_profile", stop_profile, methods=["POST"]),
    ]
