# SPDX-License-Identifier: MIT
"""How HTTP is spoken on the sockets of an API process."""

import contextlib
import ssl
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from .connection import BoundedConnection, ConnectionLimit

# Longer than clients and load balancers keep an idle connection: one that closes it first while the
# other side sends fails a request that was well-formed.
KEEP_ALIVE_S = 75


class HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers: they would stop accepting before readiness says so."""

    @classmethod
    def of(
        cls,
        app: ASGIApp,
        *,
        log_level: str = "warning",
        tls: ssl.SSLContext | None = None,
        limit: ConnectionLimit | None = None,
    ) -> "HttpServer":
        """Return a server for sockets that are given to its `serve`."""
        return cls(_config(app, log_level=log_level, tls=tls, limit=limit))

    @classmethod
    def at_path(cls, app: ASGIApp, path: Path) -> "HttpServer":
        """Return a server on a Unix socket, in place of one that a dead process left there."""
        path.unlink(missing_ok=True)
        return cls(_config(app, path=str(path)))

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the process."""
        yield


def _config(
    app: ASGIApp,
    *,
    log_level: str = "warning",
    tls: ssl.SSLContext | None = None,
    path: str | None = None,
    limit: ConnectionLimit | None = None,
) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        uds=path,
        http=partial(BoundedConnection, limit=limit),  # type: ignore[arg-type]
        lifespan="off",
        access_log=False,
        server_header=False,
        log_level=log_level,
        log_config=None,
        timeout_graceful_shutdown=1,
        timeout_keep_alive=KEEP_ALIVE_S,
        ssl_context_factory=None if tls is None else lambda _config, _default: tls,
    )
