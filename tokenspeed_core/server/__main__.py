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
from collections.abc import Callable

import uvloop

from ..async_llm import AsyncLLM
from ..child_process import DUMP_SIGNAL
from ..config import ConfigError, EngineConfig, read_config
from ..ipc.run_directory import RunDirectory, RunDirectoryError
from ..keyring import KeyFileError
from ..listener import bind, raise_file_limit
from ..sdk import EngineLostError, RefusedError
from ..tls import server_context
from .access import Access
from .app import create_app, create_private_app, new_service
from .connection import ConnectionLimit
from .endpoint import Service
from .http_server import HttpServer
from .siblings import Siblings
from .sinks import SinkError, Sinks

log = logging.getLogger("tokenspeed_core.server")

_POLL_S = 0.02


async def serve(
    config: EngineConfig, run: RunDirectory, index: int, listener: socket.socket
) -> None:
    """Serve HTTP on a bound socket until SIGTERM, then drain.

    Readiness turns bad first; running streams finish within `drain_s`; a second signal ends them.
    The launcher and the other API processes reach this one at a socket in the run directory.
    """
    access, tls = Access.of(config), server_context(config)
    async with AsyncLLM(config, run_dir=run.path, name=f"api {index}") as llm:
        service = new_service(llm, index)
        sinks = Sinks.of(config, llm.codec.table)
        sinks.join(service.observer, service.metrics)
        gc.collect()
        gc.freeze()  # the vocabulary's tables need no scanning while tokens flow
        siblings = Siblings(run, index, config.api_processes)
        application = create_app(service, access, siblings)
        limit = ConnectionLimit(config.max_connections)
        service.metrics.follow(
            "connections_turned_away",
            "Requests refused because too many connections were open.",
            lambda: limit.turned_away,
        )
        server = HttpServer.of(application, log_level=config.log_level, tls=tls, limit=limit)
        private = HttpServer.at_path(create_private_app(service), run.api_socket(index))
        draining: list[asyncio.Task[None]] = []

        def on_signal() -> None:
            if draining:
                server.force_exit = server.should_exit = True
            else:
                draining.append(asyncio.create_task(_drain(service, server, config.drain_s)))

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal)
        probes = asyncio.create_task(private.serve())
        await server.serve(sockets=[listener])
        private.should_exit = True
        await probes
        for task in draining:
            task.cancel()
        await asyncio.to_thread(sinks.close)


async def _drain(service: Service, server: HttpServer, drain_s: float) -> None:
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


def main() -> int:
    """Run the API process; 1, after one line, when it cannot start."""
    parser = argparse.ArgumentParser(prog="tokenspeed_core.server")
    parser.add_argument("--run-dir", required=True)
    parser.add_argument("--config", required=True)
    parser.add_argument("--index", type=int, default=0, help="which of the API processes it is")
    parser.add_argument("--listener", type=int, help="descriptor of a socket that listens already")
    arguments = parser.parse_args()
    faulthandler.register(DUMP_SIGNAL)
    config = read_config(arguments.config)
    logging.basicConfig(
        level=config.log_level.upper(),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s api: %(message)s",
    )
    raise_file_limit()
    try:
        if arguments.listener is None:
            listener = bind(config.host, config.port)
        else:
            listener = socket.socket(fileno=arguments.listener)
    except OSError as error:
        log.error("cannot listen on %s:%d: %s", config.host, config.port, error.strerror)
        return 1
    try:
        run = RunDirectory.join(arguments.run_dir)
        uvloop.run(serve(config, run, arguments.index, listener))
    except (
        EngineLostError,
        RefusedError,
        RunDirectoryError,
        KeyFileError,
        ConfigError,
        SinkError,
    ) as error:
        log.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
