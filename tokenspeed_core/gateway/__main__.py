# SPDX-License-Identifier: MIT
"""The gRPC process: `python -m tokenspeed_core.gateway --run-dir DIR --config FILE`."""

import argparse
import asyncio
import faulthandler
import logging
import signal
import sys

import uvloop

from ..async_llm import AsyncLLM
from ..child_process import DUMP_SIGNAL
from ..config import EngineConfig, read_config
from ..ipc.run_directory import RunDirectoryError
from ..sdk import EngineLostError, RefusedError

log = logging.getLogger("tokenspeed_core.gateway")


class GatewayError(RuntimeError):
    """The gRPC process cannot serve."""


async def serve(config: EngineConfig, run_dir: str) -> None:
    """Serve until SIGTERM; running requests may finish for `drain_s`.

    Raises:
        GatewayError: the extra is missing, or the port is taken.
    """
    try:
        import grpc
        from grpc_health.v1 import health, health_pb2, health_pb2_grpc
        from smg_grpc_proto.generated.tokenspeed_scheduler_pb2_grpc import (
            add_TokenSpeedSchedulerServicer_to_server,
        )

        from .servicer import EngineServicer
    except ImportError as error:
        raise GatewayError(
            f"grpc_port needs the gateway's protocol ({error}); pip install 'tokenspeed-core[smg]'"
        ) from error
    async with AsyncLLM(config, run_dir=run_dir, name="grpc") as llm:
        server = grpc.aio.server(options=[("grpc.max_receive_message_length", 64 * 1024 * 1024)])
        add_TokenSpeedSchedulerServicer_to_server(EngineServicer(llm), server)
        probes = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(probes, server)
        for name in ("", "tokenspeed.grpc.scheduler.TokenSpeedScheduler"):
            await probes.set(name, health_pb2.HealthCheckResponse.SERVING)
        host = f"[{config.grpc_host}]" if ":" in config.grpc_host else config.grpc_host
        where = f"{host}:{config.grpc_port}"
        try:
            server.add_insecure_port(where)
        except RuntimeError as error:
            raise GatewayError(f"cannot listen on {where}; choose another --grpc-port") from error
        await server.start()
        over = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, over.set)
        log.info("the gateway's service listens on %s", where)
        await over.wait()
        await server.stop(config.drain_s)


def main() -> int:
    """Run the process; 1, after one line, when it cannot start."""
    parser = argparse.ArgumentParser(prog="tokenspeed_core.gateway")
    parser.add_argument("--run-dir", required=True)
    parser.add_argument("--config", required=True)
    arguments = parser.parse_args()
    faulthandler.register(DUMP_SIGNAL)
    config = read_config(arguments.config)
    logging.basicConfig(
        level=config.log_level.upper(),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s grpc: %(message)s",
    )
    try:
        uvloop.run(serve(config, arguments.run_dir))
    except (GatewayError, EngineLostError, RefusedError, RunDirectoryError) as error:
        log.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
