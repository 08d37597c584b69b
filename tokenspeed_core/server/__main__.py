# SPDX-License-Identifier: MIT
"""The API process: `python -m tokenspeed_core.server --run-dir DIR --config FILE`."""

import argparse
import asyncio
import contextlib
import faulthandler
import gc
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator

import uvicorn
import uvloop

from ..async_llm import AsyncLLM
from ..child_process import DUMP_SIGNAL
from ..config import EngineConfig, read_config
from ..ipc.run_directory import RunDirectoryError
from ..sdk import EngineLostError, RefusedError
from .app import create_app, new_service
from .connection import BoundedConnection
from .endpoint import Service
from .sinks import SinkError, Sinks

log = logging.getLogger("tokenspeed_core.server")

_POLL_S = 0.02


class _Server(uvicorn.Server):
    """Leaves signals to us: uvicorn would stop accepting before readiness says so."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(config: EngineConfig, run_dir: str, listener: socket.socket) -> None:
    """Serve HTTP on a bound socket until SIGTERM, then drain.

    Readiness turns bad first; running streams finish within `drain_s`; a second signal ends them.
    """
    async with AsyncLLM(config, run_dir=run_dir, name="api") as llm:
        service = new_service(llm)
        sinks = Sinks.of(config, llm.codec.table)
        sinks.join(service.observer, service.metrics)
        gc.collect()
        gc.freeze()  # the vocabulary's tables need no scanning while tokens flow
        server = _Server(
            uvicorn.Config(
                create_app(service, config.api_key),
                http=BoundedConnection,
                lifespan="off",
                access_log=False,
                server_header=False,
                log_level=config.log_level,
                log_config=None,
                timeout_graceful_shutdown=1,
            )
        )
        draining: list[asyncio.Task[None]] = []

        def on_signal() -> None:
            if draining:
                server.force_exit = server.should_exit = True
            else:
                draining.append(asyncio.create_task(_drain(service, server, config.drain_s)))

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal)
        await server.serve(sockets=[listener])
        for task in draining:
            task.cancel()
        await asyncio.to_thread(sinks.close)


async def _drain(service: Service, server: uvicorn.Server, drain_s: float) -> None:
    service.is_draining = True
    log.info("draining %d requests", service.in_flight)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(drain_s):
            await _until(lambda: service.in_flight == 0)
    if service.in_flight:
        log.warning("%d requests did not finish within %g s", service.in_flight, drain_s)
    server.should_exit = True


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(_POLL_S)


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Raises:
        OSError: the port is taken, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only where the protocol is named
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)  # where another socket listens, bind may pass and this does not
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def main() -> int:
    """Run the API process; 1, after one line, when it cannot start."""
    parser = argparse.ArgumentParser(prog="tokenspeed_core.server")
    parser.add_argument("--run-dir", required=True)
    parser.add_argument("--config", required=True)
    arguments = parser.parse_args()
    faulthandler.register(DUMP_SIGNAL)
    config = read_config(arguments.config)
    logging.basicConfig(
        level=config.log_level.upper(),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s api: %(message)s",
    )
    try:
        listener = bind(config.host, config.port)
    except OSError as error:
        log.error("cannot listen on %s:%d: %s", config.host, config.port, error.strerror)
        return 1
    try:
        uvloop.run(serve(config, arguments.run_dir, listener))
    except (EngineLostError, RefusedError, RunDirectoryError, SinkError) as error:
        log.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
