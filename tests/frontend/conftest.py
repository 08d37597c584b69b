# SPDX-License-Identifier: MIT
import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import attrs
import openai
import pytest

from tests.frontend.scripted_scheduler import ScriptedScheduler
from tokenspeed_core.async_llm import AsyncLLM, TextCodec
from tokenspeed_core.config import EngineConfig
from tokenspeed_core.ipc.run_directory import RunDirectory
from tokenspeed_core.launch import Engine
from tokenspeed_core.listener import bind
from tokenspeed_core.server.access import Access
from tokenspeed_core.server.app import create_app, new_service
from tokenspeed_core.server.connection import ConnectionLimit
from tokenspeed_core.server.endpoint import Service
from tokenspeed_core.server.http_server import HttpServer as Server

PATIENCE_S = 120.0
SMOLLM2 = EngineConfig(model="smollm2")


@contextlib.contextmanager
def thin_engine(model: Path, *, serves_http: bool = True, **settings: Any) -> Iterator[Engine]:
    """Run an engine of a thin model until the block ends; `settings` go before ours."""
    small: dict[str, Any] = {"port": 0, "num_blocks": 512, "max_model_len": 2048, "threads": 1}
    config = EngineConfig(model=str(model), **{**small, **settings})
    with Engine.start(config, serve_http=serves_http) as engine:
        engine.wait_ready(PATIENCE_S)
        yield engine


@pytest.fixture(scope="session")
def codec() -> TextCodec:
    return TextCodec.load("smollm2")


@pytest.fixture
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunDirectory]:
    run = RunDirectory.create(Path("/tmp"))
    yield run
    run.remove()


@pytest.fixture
def scheduler(run: RunDirectory) -> Iterator[ScriptedScheduler]:
    with ScriptedScheduler(run) as scheduler:
        yield scheduler


@attrs.frozen
class HttpServer:
    url: str
    service: Service
    scheduler: ScriptedScheduler

    def client(self, api_key: str = "none") -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=api_key, max_retries=0)

    def answers(self, text: str) -> None:
        """Script every answer to be `text`, then end of turn."""
        tokenizer = self.service.llm.codec.tokenizer
        ids = [*tokenizer.encode(text, add_special=False), min(tokenizer.eos_ids)]
        self.scheduler.script = lambda submit: ids


@contextlib.asynccontextmanager
async def listening(
    scheduler: ScriptedScheduler, codec: TextCodec, access: Access | None = None
) -> AsyncIterator[HttpServer]:
    async with served(scheduler.run.path, codec, access) as (url, service):
        yield HttpServer(url, service, scheduler)


@contextlib.asynccontextmanager
async def served(
    run_dir: Path,
    codec: TextCodec,
    access: Access | None = None,
    limit: ConnectionLimit | None = None,
    config: EngineConfig = SMOLLM2,
) -> AsyncIterator[tuple[str, Service]]:
    """Serve HTTP in front of the scheduler of a run directory."""
    async with AsyncLLM(config, run_dir=run_dir, codec=codec, resume_s=0) as llm:
        service = new_service(llm)
        listener = bind("127.0.0.1", 0)
        server = Server.of(create_app(service, access), limit=limit)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            while not server.started:
                await asyncio.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", service
        finally:
            # Not asked to exit: it looks for that, and then waits, a tenth of a second each.
            serving.cancel()
            for each in server.servers:
                each.close()
            for connection in list(server.server_state.connections):
                connection.shutdown()
            for task in server.server_state.tasks:
                task.cancel()
            await asyncio.wait([serving])
            listener.close()


@pytest.fixture
async def http(scheduler: ScriptedScheduler, codec: TextCodec) -> AsyncIterator[HttpServer]:
    async with listening(scheduler, codec) as server:
        yield server
