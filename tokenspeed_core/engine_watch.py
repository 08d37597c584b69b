# SPDX-License-Identifier: MIT
"""The launcher's eye on a running engine: is it ready, and does it still move?"""

import contextlib
import http.client
import time
from collections.abc import Callable
from pathlib import Path

import attrs
import zmq

from .ipc.codec import Decoder, encode
from .ipc.messages import (
    WIRE_VERSION,
    Heartbeat,
    Hello,
    HelloRequired,
    Refused,
    Role,
    Stats,
    ToFrontend,
    Welcome,
)
from .ipc.run_directory import RunDirectory
from .unix_connection import UnixConnection

_POLL_MS = 100
_HEARTBEAT_S = 0.25
_HTTP_PERIOD_S = 1.0


@attrs.frozen
class WatchLimits:
    """How long an engine may seem to do nothing before a part of it counts as frozen."""

    silence_s: float = 10.0  # of the scheduler, which speaks several times a second, or the API
    step_s: float = 300.0  # of a step that the workers were given; of workers that do not join
    stopped_s: float = 1.0  # of a worker that SIGSTOP holds: its peers wait for it, cores busy


class WatchRefusedError(RuntimeError):
    """The scheduler turned the launcher away."""


class EngineWatch:
    """Connects to the scheduler as a frontend and reads its counters.

    `on_ready` is called once, when all ranks are in.  `on_frozen_scheduler` and
    `on_frozen_workers` get a reason each time that one exceeds its limit afterwards.  `are_loaded`
    tells whether all workers could be in.
    """

    def __init__(
        self,
        run: RunDirectory,
        limits: WatchLimits,
        on_ready: Callable[[], None],
        on_frozen_scheduler: Callable[[str], None],
        on_frozen_workers: Callable[[str], None],
        are_loaded: Callable[[], bool],
    ) -> None:
        self._endpoint = run.frontend_endpoint
        self._hello = encode(Hello(WIRE_VERSION, run.token, Role.FRONTEND, "launcher"))
        self._limits = limits
        self._on_ready = on_ready
        self._on_frozen_scheduler = on_frozen_scheduler
        self._on_frozen_workers = on_frozen_workers
        self._are_loaded = are_loaded
        self._missed_since = time.monotonic()
        self._is_ready = False
        self._is_reported = False  # the present freeze of the workers
        self._last_heard = self._last_look = time.monotonic()

    def follow(self, is_over: Callable[[], bool]) -> None:
        """Watch until `is_over`.

        Raises:
            WatchRefusedError: the scheduler does not want a frontend of this version.
        """
        decoder: Decoder[ToFrontend] = Decoder(ToFrontend)  # type: ignore[arg-type]
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        socket = context.socket(zmq.DEALER)
        socket.linger = 0
        socket.setsockopt(zmq.IMMEDIATE, 1)  # nothing piles up for a scheduler that is not there
        socket.setsockopt(zmq.RECONNECT_IVL, 20)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 200)
        socket.connect(self._endpoint)
        next_beat = 0.0
        try:
            while not is_over():
                if time.monotonic() >= next_beat:
                    # To an unknown peer's heartbeat the scheduler answers HelloRequired.
                    with contextlib.suppress(zmq.Again):  # it is not there, now or yet
                        socket.send(encode(Heartbeat(time.monotonic_ns())), zmq.NOBLOCK)
                        next_beat = time.monotonic() + _HEARTBEAT_S
                if not socket.poll(_POLL_MS):
                    self._check_silence()
                    continue
                message = decoder.decode(socket.recv())
                self._last_heard = self._last_look = time.monotonic()
                if isinstance(message, HelloRequired):
                    with contextlib.suppress(zmq.Again):
                        socket.send(self._hello, zmq.NOBLOCK)
                elif isinstance(message, Refused):
                    raise WatchRefusedError(
                        f"the scheduler refused the launcher: {message.message}"
                    )
                elif isinstance(message, Welcome) and message.ready and not self._is_ready:
                    self._is_ready = True
                    self._on_ready()
                elif isinstance(message, Stats):
                    self._check_step(message.oldest_step_age_ns / 1e9)
                    self._check_absence(message.ready)
        finally:
            socket.close()
            context.term()

    def _check_silence(self) -> None:
        now = time.monotonic()
        unwatched, self._last_look = now - self._last_look, now
        if unwatched > self._limits.silence_s / 2:
            self._last_heard = now  # it was we who stood still: what it said is still to be read
        silence = now - self._last_heard
        if self._is_ready and silence > self._limits.silence_s:
            self._last_heard = time.monotonic()
            self._is_reported = True  # what it says of its steps before it is killed is old
            self._on_frozen_scheduler(f"the scheduler was silent for {silence:.1f} s")

    def _check_step(self, age_s: float) -> None:
        is_frozen = age_s > self._limits.step_s
        if is_frozen and not self._is_reported:
            self._on_frozen_workers(f"a step did not finish in {age_s:.1f} s")
        self._is_reported = is_frozen

    def _check_absence(self, is_ready: bool) -> None:
        """Notice workers that stopped while the scheduler was replaced: no step tells of them."""
        now = time.monotonic()
        if is_ready or not self._is_ready or not self._are_loaded():
            self._missed_since = now
        elif (missed_s := now - self._missed_since) > self._limits.step_s:
            self._missed_since = now
            self._on_frozen_workers(f"loaded workers did not join in {missed_s:.1f} s")


class HttpWatch:
    """Asks an API process for its state, at its socket in the run directory."""

    def __init__(self, socket_path: Path, name: str, limits: WatchLimits) -> None:
        self._path = socket_path
        self._name = name
        self._limits = limits

    def await_ready(self, is_over: Callable[[], bool]) -> bool:
        """Wait until `GET /ready` answers 200; False if it is over first."""
        while not is_over():
            with contextlib.suppress(OSError, http.client.HTTPException):  # it still starts
                if self._status("/ready") == 200:
                    return True
            time.sleep(_POLL_MS / 1000)
        return False

    def follow(self, is_over: Callable[[], bool], on_frozen: Callable[[str], None]) -> None:
        """Until it is over, call `on_frozen` with a reason whenever no answer comes in time."""
        while not is_over():
            try:
                self._status("/health")
            except TimeoutError:
                on_frozen(f"{self._name} gave no answer for {self._limits.silence_s:g} s")
            except (OSError, http.client.HTTPException):
                pass  # it is dead, starting or draining, which others see to
            time.sleep(_HTTP_PERIOD_S)

    def _status(self, path: str) -> int:
        with UnixConnection(self._path, self._limits.silence_s) as connection:
            connection.request("GET", path)
            return connection.getresponse().status
