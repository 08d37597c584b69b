# SPDX-License-Identifier: MIT
"""A client's connection, closed when its request head is endless in time or in size.

Of more connections than a limit allows the first few are heard, for probes must be answered under
any load; all else that they ask, and all further ones, get 503.
"""

import asyncio
from typing import Any

import attrs
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .access import OPEN_PATHS
from .failure import ApiError

HEAD_TIMEOUT_S = 30.0
MAX_HEAD_BYTES = 256 * 1024  # the gate answers smaller excess with a status
SPARE_HEAD_TIMEOUT_S = 5.0
NUM_SPARE = 64
TURNED_AWAY = "turned_away"  # a key in a scope's state


@attrs.define
class ConnectionLimit:
    """The most connections that a process holds, and the requests that it refused beyond them."""

    most: int
    turned_away: int = 0

    def refusal(self) -> ApiError:
        """Return what those beyond it are told."""
        why = f"{self.most} connections are open, the most that are allowed; try again later"
        return ApiError(503, why, code="too_many_connections")


class BoundedConnection(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 connection with bounds on the request line and headers."""

    _deadline: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _is_spare = False

    def __init__(self, *args: Any, limit: ConnectionLimit | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limit = limit

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A new connection has as long for its first head as a head may take."""
        super().connection_made(transport)
        beyond = len(self.connections) - self._limit.most if self._limit is not None else 0
        self._is_spare = beyond > 0
        if beyond > NUM_SPARE:
            self._turn_away()
        else:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is awaited any more."""
        self._head_came()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count bytes for as long as they belong to an unfinished head."""
        super().data_received(data)
        if self._deadline is not None:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.transport.close()

    def on_message_begin(self) -> Any:
        """A head begins."""
        self._await_head()
        return super().on_message_begin()

    def on_headers_complete(self) -> Any:
        """A head ends; the gate answers a request that is turned away."""
        self._head_came()
        super().on_headers_complete()
        if self._is_spare and self.scope["path"] not in OPEN_PATHS:
            assert self._limit is not None
            self._limit.turned_away += 1
            self.scope["state"][TURNED_AWAY] = self._limit.refusal()

    def _turn_away(self) -> None:
        assert self._limit is not None
        self._limit.turned_away += 1
        answer = self._limit.refusal().response()
        head = "".join(f"{name}: {value}\r\n" for name, value in answer.headers.items())
        self.transport.write(f"HTTP/1.1 503 Service Unavailable\r\n{head}".encode())
        self.transport.write(b"connection: close\r\n\r\n" + bytes(answer.body))
        self.transport.close()

    def _await_head(self) -> None:
        self._head_came()
        self._head_bytes = 0
        patience = SPARE_HEAD_TIMEOUT_S if self._is_spare else HEAD_TIMEOUT_S
        self._deadline = self.loop.call_later(patience, self.transport.close)

    def _head_came(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
