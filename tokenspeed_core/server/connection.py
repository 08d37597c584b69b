# SPDX-License-Identifier: MIT
"""A client's connection, closed when its request head is endless in time or in size."""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_TIMEOUT_S = 30.0
MAX_HEAD_BYTES = 256 * 1024  # the gate answers smaller excess with a status


class BoundedConnection(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 connection with bounds on the request line and headers."""

    _deadline: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A new connection has as long for its first head as a head may take."""
        super().connection_made(transport)
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
        """A head ends."""
        self._head_came()
        return super().on_headers_complete()

    def _await_head(self) -> None:
        self._head_came()
        self._head_bytes = 0
        self._deadline = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)

    def _head_came(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
