# SPDX-License-Identifier: MIT
"""How a launcher learns that its engine takes requests."""

import http.client
import time
from collections.abc import Callable

import zmq

from .ipc.codec import Decoder, encode
from .ipc.messages import (
    WIRE_VERSION,
    Heartbeat,
    Hello,
    HelloRequired,
    Refused,
    Role,
    ToFrontend,
    Welcome,
)
from .ipc.run_directory import RunDirectory

_POLL_MS = 100


class NotReadyError(RuntimeError):
    """The scheduler will never be ready for us."""


def await_scheduler(run: RunDirectory, is_cancelled: Callable[[], bool]) -> bool:
    """Wait until the scheduler says that all ranks are in; False if cancelled first.

    Raises:
        NotReadyError: the scheduler refuses frontends of this version.
    """
    decoder: Decoder[ToFrontend] = Decoder(ToFrontend)  # type: ignore[arg-type]
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.linger = 0
    socket.setsockopt(zmq.RECONNECT_IVL, 20)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 200)
    hello = encode(Hello(WIRE_VERSION, run.token, Role.FRONTEND, "launcher"))
    try:
        socket.connect(run.frontend_endpoint)
        socket.send(hello)
        while not is_cancelled():
            if not socket.poll(_POLL_MS):
                socket.send(encode(Heartbeat(time.time_ns())), zmq.NOBLOCK)
                continue
            match decoder.decode(socket.recv()):
                case Welcome(ready=True):
                    return True
                case HelloRequired():
                    socket.send(hello)
                case Refused() as refused:
                    raise NotReadyError(f"the scheduler refused the launcher: {refused.message}")
                case _:
                    pass
        return False
    finally:
        socket.close()
        context.term()


def await_http(host: str, port: int, is_cancelled: Callable[[], bool]) -> bool:
    """Wait until `GET /ready` answers 200; False if cancelled first."""
    while not is_cancelled():
        connection = http.client.HTTPConnection(host, port, timeout=1)
        try:
            connection.request("GET", "/ready")
            if connection.getresponse().status == 200:
                return True
        except (OSError, http.client.HTTPException):
            pass  # the API process is still starting
        finally:
            connection.close()
        time.sleep(_POLL_MS / 1000)
    return False
