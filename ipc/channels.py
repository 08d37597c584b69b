# SPDX-License-Identifier: MIT
"""A frontend's end of the socket to the scheduler, on an asyncio event loop."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable

import msgspec
import zmq
from zmq.utils.monitor import recv_monitor_message

from .codec import Decoder, WireError, encode
from .messages import (
    MAX_FRAME_BYTES,
    WIRE_VERSION,
    Heartbeat,
    Hello,
    HelloRequired,
    Role,
    ToFrontend,
)
from .remote_engine import RemoteEngine
from .run_directory import RunDirectory

log = logging.getLogger(__name__)

HEARTBEAT_S = 0.25
_FRAMES_PER_WAKE = 64


class FrontendChannel:
    """A DEALER that says Hello whenever it (re)connects and a Heartbeat whenever it is silent.

    `on_message` gets every decoded message; `on_lost` gets the reason whenever the scheduler behind
    the socket is gone or no longer knows us, after which all requests in flight are void.
    """

    def __init__(
        self,
        run: RunDirectory | RemoteEngine,
        name: str,
        on_message: Callable[[msgspec.Struct], None],
        on_lost: Callable[[str], None],
    ) -> None:
        self._run = run
        self._name = name
        self._on_message = on_message
        self._on_lost = on_lost
        self._decoder: Decoder[msgspec.Struct] = Decoder(ToFrontend)  # type: ignore[arg-type]
        self._unsent: deque[bytes] = deque()
        self._is_closed = False
        self._last_sent = self._last_heard = time.monotonic()
        self.bad_frames = 0

    @property
    def unheard_s(self) -> float:
        """Seconds since the scheduler last said anything; it speaks several times a second."""
        return time.monotonic() - self._last_heard

    def open(self) -> None:
        """Start connecting, in the background; call on the event loop that will be used."""
        self._loop = asyncio.get_running_loop()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        for option, value in (
            (zmq.LINGER, 500),
            (zmq.IMMEDIATE, 1),  # never queue for a scheduler that is not there
            (zmq.MAXMSGSIZE, MAX_FRAME_BYTES),
            (zmq.RECONNECT_IVL, 50),
            (zmq.RECONNECT_IVL_MAX, 1000),
        ):
            self._socket.setsockopt(option, value)
        if isinstance(self._run, RemoteEngine):
            self._socket.heartbeat_ivl, self._socket.heartbeat_timeout = 1000, 5000
            self._socket.curve_serverkey = self._run.server_key.encode()
            self._socket.curve_publickey, self._socket.curve_secretkey = zmq.curve_keypair()
        self._monitor = self._socket.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
        )
        self._socket.connect(self._run.frontend_endpoint)
        self._loop.add_reader(self._socket.FD, self._drain)
        self._loop.add_reader(self._monitor.FD, self._drain_monitor)
        self._loop.call_soon(self._drain_monitor)
        self._heartbeat = self._loop.create_task(self._beat())

    async def close(self) -> None:
        """Disconnect after sending what is queued; idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        self._heartbeat.cancel()
        self._loop.remove_reader(self._socket.FD)
        self._loop.remove_reader(self._monitor.FD)
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close()
        await asyncio.to_thread(self._context.term)

    def send(self, message: msgspec.Struct) -> bool:
        """Queue a message for the scheduler; False if there is none or its queue is full."""
        return not self._is_closed and self._send(encode(message))

    def send_later(self, message: msgspec.Struct) -> None:
        """Queue a message that must not be lost while the connection stands."""
        if not self._is_closed and not self._send(frame := encode(message)):
            self._unsent.append(frame)

    def _send(self, frame: bytes) -> bool:
        try:
            self._socket.send(frame, zmq.NOBLOCK)
        except zmq.Again:
            return False
        finally:
            # a send may swallow the wake-up of a frame that came in
            self._loop.call_soon(self._drain)
        self._last_sent = time.monotonic()
        return True

    def _drain(self) -> None:
        for _ in range(_FRAMES_PER_WAKE):
            if self._is_closed:
                return
            try:
                frame = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._last_heard = time.monotonic()
            try:
                message = self._decoder.decode(frame)
            except WireError as error:
                self.bad_frames += 1
                log.warning("dropped a frame from the scheduler: %s", error)
                continue
            if isinstance(message, HelloRequired):
                self._lose("the scheduler was restarted")
                self._say_hello()
            else:
                self._on_message(message)
        self._loop.call_soon(self._drain)

    def _drain_monitor(self) -> None:
        while not self._is_closed:
            try:
                event = recv_monitor_message(self._monitor, zmq.NOBLOCK)["event"]
            except zmq.Again:
                return
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._say_hello()
            else:
                self._lose("the connection to the scheduler broke")

    def _lose(self, reason: str) -> None:
        self._unsent.clear()
        self._on_lost(reason)

    def _say_hello(self) -> None:
        if self._is_closed:
            return
        # the token is read anew: a restarted engine may have written another
        hello = Hello(WIRE_VERSION, self._run.token, int(Role.FRONTEND), self._name)
        if not self._send(encode(hello)):
            self._loop.call_later(0.01, self._say_hello)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            while self._unsent and self._send(self._unsent[0]):
                self._unsent.popleft()
            if time.monotonic() - self._last_sent >= HEARTBEAT_S:
                self._send(encode(Heartbeat(time.time_ns())))
