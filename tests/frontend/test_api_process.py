# SPDX-License-Identifier: MIT
"""The API process itself, in front of a scripted scheduler: start, drain, end, slow readers."""

import asyncio
import contextlib
import json
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import attrs
import httpx
import pytest

from tests.frontend.conftest import HttpServer
from tests.frontend.scripted_scheduler import ScriptedScheduler, spell_back
from tests.frontend.victims import undisturbed
from tokenspeed_core.config import EngineConfig, write_config
from tokenspeed_core.ipc.messages import Submit

STREAM = {"model": "m", "prompt": [504] * 8, "stream": True, "ignore_eos": True}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class ApiProcess:
    def __init__(
        self, process: "subprocess.Popen[bytes]", url: str, verify: ssl.SSLContext | bool
    ) -> None:
        self.process = process
        self.url = url
        self.verify = verify

    async def get(self, path: str) -> int:
        async with httpx.AsyncClient(verify=self.verify) as client:
            return (await client.get(self.url + path)).status_code

    async def ended(self) -> int:
        return await asyncio.to_thread(self.process.wait, 30)


@contextlib.asynccontextmanager
async def api_process(
    scheduler: ScriptedScheduler,
    tmp_path: Path,
    drain_s: float = 20.0,
    settings: Mapping[str, object] | None = None,
    verify: ssl.SSLContext | bool = True,
) -> AsyncIterator[ApiProcess]:
    port = free_port()
    file = tmp_path / "engine.json"
    config = EngineConfig(model="smollm2", served_model_name="m", port=port, drain_s=drain_s)
    config = attrs.evolve(config, **(settings or {}))
    write_config(config, file)
    command = [sys.executable, "-m", "tokenspeed_core.server"]
    command += ["--run-dir", str(scheduler.run.path), "--config", str(file)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    api = ApiProcess(process, f"{config.scheme}://127.0.0.1:{port}", verify)
    try:
        async with asyncio.timeout(60):
            while process.poll() is None:
                with contextlib.suppress(httpx.TransportError):
                    if await api.get("/ready") == 200:
                        break
                await asyncio.sleep(0.05)
        yield api
    finally:
        process.kill()
        print(process.communicate()[1].decode())  # shown by pytest when a test fails


async def eventually(condition: object) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_signal_drains_running_streams_and_exits_cleanly(
    scheduler: ScriptedScheduler, http: HttpServer, tmp_path: Path
) -> None:
    asked = {**STREAM, "max_tokens": 100}
    async with (
        api_process(scheduler, tmp_path) as api,
        httpx.AsyncClient(base_url=api.url, timeout=30) as client,
        undisturbed(http),
    ):
        whole = (await client.post("/v1/completions", json={**asked, "stream": False})).json()
        scheduler.step_s = 0.02
        async with client.stream("POST", "/v1/completions", json=asked) as stream:
            await drained(scheduler, api, client, stream, whole["choices"][0]["text"])
    assert scheduler.aborts == []


async def drained(
    scheduler: ScriptedScheduler,
    api: ApiProcess,
    client: httpx.AsyncClient,
    stream: httpx.Response,
    quiet: str,
) -> None:
    lines = stream.aiter_lines()
    first = await anext(lines)
    api.process.send_signal(signal.SIGTERM)
    await eventually(lambda: scheduler.submits)
    while await api.get("/ready") != 503:
        await asyncio.sleep(0.01)
    assert await api.get("/health") == 200
    refused = await client.post("/v1/completions", json=STREAM)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    events = [line async for line in lines if line]
    assert events[-1] == "data: [DONE]"
    assert json.loads(events[-2][6:])["choices"][0]["finish_reason"] == "length"
    texts = [json.loads(e[6:])["choices"][0]["text"] for e in [first, *events[:-1]]]
    assert "".join(texts) == quiet
    assert await api.ended() == 0
    assert api.process.stdout.read() == b""


@pytest.mark.parametrize("signals", [1, 2])
async def test_what_does_not_drain_is_aborted(
    scheduler: ScriptedScheduler, http: HttpServer, tmp_path: Path, signals: int
) -> None:
    drain_s = 0.3 if signals == 1 else 1000.0
    asked = {**STREAM, "max_tokens": 8000}  # which take seconds
    async with (
        api_process(scheduler, tmp_path, drain_s) as api,
        httpx.AsyncClient(base_url=api.url, timeout=30) as client,
        undisturbed(http),
        client.stream("POST", "/v1/completions", json=asked) as stream,
    ):
        lines = stream.aiter_lines()  # forgotten it would be closed, and the client would leave
        await anext(lines)
        for number in range(signals):
            api.process.send_signal(signal.SIGTERM)
            if number == 0:
                while await api.get("/ready") != 503:
                    await asyncio.sleep(0.01)
        assert await api.ended() == 0
        told = api.process.stderr.read().decode()
        assert ("1 requests did not finish within 0.3 s" in told) == (signals == 1)
        await eventually(lambda: scheduler.aborts)


async def test_what_is_logged_and_how_many_connect_are_settings(
    scheduler: ScriptedScheduler, tmp_path: Path
) -> None:
    async def told(log_level: str, max_connections: int) -> tuple[int, str]:
        settings = {"log_level": log_level, "max_connections": max_connections}
        folder = tmp_path / log_level
        folder.mkdir()
        async with (
            api_process(scheduler, folder, settings=settings) as api,
            httpx.AsyncClient(base_url=api.url, timeout=30) as first,
        ):
            async with asyncio.timeout(30):  # until those of probes before are closed
                while (await first.get("/v1/models")).status_code != 200:
                    await asyncio.sleep(0.01)
            status = await api.get("/v1/models")  # over another connection
            api.process.send_signal(signal.SIGTERM)
            assert await api.ended() == 0
            return status, api.process.stderr.read().decode()

    (room, info), (full, quiet) = await asyncio.gather(told("info", 4096), told("error", 1))
    assert (room, full) == (200, 503)
    assert "INFO api: draining" in info
    assert "INFO" not in quiet


async def test_a_killed_api_process_takes_nothing_down(
    scheduler: ScriptedScheduler, http: HttpServer, tmp_path: Path
) -> None:
    async with api_process(scheduler, tmp_path) as api, undisturbed(http):
        api.process.kill()
        await api.ended()
    async with (
        api_process(scheduler, tmp_path) as api,
        httpx.AsyncClient(base_url=api.url, timeout=30) as client,
    ):
        body = {**STREAM, "stream": False, "max_tokens": 3}
        assert (await client.post("/v1/completions", json=body)).status_code == 200


async def test_a_taken_port_is_one_line_and_exit_1(
    scheduler: ScriptedScheduler, tmp_path: Path
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        write_config(EngineConfig(model="smollm2", port=port), tmp_path / "engine.json")
        command = [sys.executable, "-m", "tokenspeed_core.server", "--run-dir"]
        command += [str(scheduler.run.path), "--config", str(tmp_path / "engine.json")]
        done = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, timeout=60, check=False
        )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert str(port) in done.stderr


async def test_a_reader_that_stops_reading_is_aborted_and_slows_nobody(
    scheduler: ScriptedScheduler, http: HttpServer, tmp_path: Path
) -> None:
    scheduler.max_model_len = 2**30  # an answer larger than all socket buffers together

    def is_endless(submit: Submit) -> bool:
        return submit.max_tokens > 10**6

    scheduler.script = lambda submit: (
        [504] * 10_000_000 if is_endless(submit) else spell_back(submit)
    )
    async with (
        api_process(scheduler, tmp_path) as api,
        httpx.AsyncClient(base_url=api.url, timeout=30) as client,
        undisturbed(http),
    ):
        scheduler.step_s, scheduler.tokens_in_step = 0.0005, 200
        host, port = api.url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port), limit=1024)
        body = json.dumps({**STREAM, "logprobs": 0, "max_tokens": 10_000_000}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        asked = {**STREAM, "stream": False, "max_tokens": 5}
        quiet = (await client.post("/v1/completions", json=asked)).json()["choices"]
        writer.write(head.encode() + body)
        await eventually(lambda: any(map(is_endless, scheduler.submits)))
        while not scheduler.aborts:
            answer = (await client.post("/v1/completions", json=asked)).json()
            assert (answer["usage"]["completion_tokens"], answer["choices"]) == (5, quiet)
        assert scheduler.aborts[0].request_id == 2
        status = Path(f"/proc/{api.process.pid}/status").read_text()
        peak_kb = int(status.partition("VmHWM:")[2].split()[0])
        assert peak_kb < 1_000_000
        writer.close()
