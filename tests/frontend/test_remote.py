# SPDX-License-Identifier: MIT
"""Clients over the network: CURVE or nothing, on the real scheduler process."""

import asyncio
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
import zmq

from tests.frontend.test_command_line import assert_one_line, tokenspeed
from tokenspeed_core.ipc.codec import encode
from tokenspeed_core.ipc.messages import WIRE_VERSION, Hello, Role, SchedulerConfig
from tokenspeed_core.ipc.remote_engine import CurveKeys, CurveKeysError, RemoteEngine
from tokenspeed_core.ipc.run_directory import RunDirectory, RunDirectoryError
from tokenspeed_core.scheduler import SchedulerProcess
from tokenspeed_core.sdk import Client, EngineLostError, RefusedError


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@attrs.frozen
class Remote:
    run: RunDirectory
    engine: RemoteEngine


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[Remote]:
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    keys = CurveKeys.create(tmp_path / "keys", endpoint)
    assert CurveKeys.read(tmp_path / "keys") == keys
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in ("keys", "keys.client")} == {0o600}
    run = RunDirectory.create(Path("/tmp"))
    config = SchedulerConfig(
        version=WIRE_VERSION,
        token=run.token,
        hash_key=secrets.token_bytes(16),
        frontend_endpoint=run.frontend_endpoint,
        worker_endpoint=run.worker_endpoint,
        num_ranks=1,
        max_slots=4,
        max_step_tokens=64,
        max_model_len=100,
        max_waiting=10,
        vocab_size=100,
        heartbeat_ms=50,
        frontend_tcp=endpoint,
        frontend_curve_secret=keys.secret_key,
        frontend_tcp_token=keys.token,
    )
    process = SchedulerProcess(config, run.path)
    try:
        yield Remote(run, RemoteEngine.read(tmp_path / "keys.client"))
    finally:
        process.kill()
        process.wait(10)
        run.remove()


async def test_a_client_with_the_keys_is_served_and_others_are_not(remote: Remote) -> None:
    async with Client(remote.engine) as client, Client(remote.run) as local:
        assert client.welcome == local.welcome
        while client.stats is None:
            await asyncio.sleep(0.01)
        dropped = client.stats.dropped_frames
        assert client.profile(remote.run.path / "elsewhere")  # a folder of that machine
        while client.stats.dropped_frames == dropped:
            await asyncio.sleep(0.01)
    wrong_server = zmq.curve_keypair()[0].decode()
    stranger = attrs.evolve(remote.engine, server_key=wrong_server)
    with pytest.raises(EngineLostError):
        await Client(stranger, connect_timeout_s=0.7).connect()
    with pytest.raises(RefusedError):
        await Client(attrs.evolve(remote.engine, token=bytes(16))).connect()
    plain = zmq.Context.instance().socket(zmq.DEALER)
    plain.linger = 0
    plain.connect(remote.engine.frontend_endpoint)
    plain.send(encode(Hello(WIRE_VERSION, remote.engine.token, int(Role.FRONTEND), "plain")))
    assert not await asyncio.to_thread(plain.poll, 700)
    plain.close()
    async with Client(remote.engine) as client:
        assert client.welcome is not None


def test_keys_are_made_once_and_checked(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    assert tokenspeed("keys", str(file), "tcp://host:1").stdout.split() == [
        str(file),
        f"{file}.client",
    ]
    assert_one_line(tokenspeed("keys", str(file), "tcp://host:1"), 1, "File exists")
    for endpoint in ("ipc:///x", "tcp://host", "tcp://host:x"):
        assert_one_line(tokenspeed("keys", str(tmp_path / "k"), endpoint), 1, "tcp://HOST:PORT")
    with pytest.raises(CurveKeysError, match="secret_key"):
        CurveKeys.read(f"{file}.client")
    for text in ("", "[]", "{}", file.read_text().replace('"token"', '"tok"')):
        (tmp_path / "bad").write_text(text)
        with pytest.raises(CurveKeysError, match="bad"):
            CurveKeys.read(tmp_path / "bad")
    with pytest.raises(RunDirectoryError, match="CURVE"):
        Client("tcp://host:1")
    serve = ("serve", "smollm2", "--bind", "tcp://127.0.0.1:1")
    assert_one_line(tokenspeed(*serve), 1, "curve_keys")
    assert "secret_key" not in repr(CurveKeys.read(file))
