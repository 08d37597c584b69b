# SPDX-License-Identifier: MIT
"""What the host costs: real API process, real scheduler, and a worker that answers at once.

    python tests/bench/bench_host.py [--json] [--size TOKENS] [--repeats N] [--streams N]

A conversation's turns of 128k tokens from the last byte of the HTTP body to the step plan at the
worker, the first one cold, and tokens a second over SSE and over the SDK.
"""

import argparse
import asyncio
import contextlib
import json
import secrets
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from tokenspeed_core.config import EngineConfig, write_config
from tokenspeed_core.ipc.messages import WIRE_VERSION, SchedulerConfig
from tokenspeed_core.ipc.run_directory import RunDirectory
from tokenspeed_core.scheduler import SchedulerProcess
from tokenspeed_core.sdk import Client

NULL = Path(__file__).with_name("null_worker.py")
WORDS = (
    "the",
    "cache",
    "scheduler",
    "returns",
    "a",
    "block",
    "when",
    "its",
    "step",
    "retires",
    "0x7f",
)


@contextlib.contextmanager
def engine(max_model_len: int) -> Iterator[tuple[RunDirectory, str, Path]]:
    """Run scheduler, null worker and API process; yield run directory, URL and marks."""
    run = RunDirectory.create(Path(tempfile.gettempdir()))
    marks = run.path / "marks"
    config = SchedulerConfig(
        version=WIRE_VERSION,
        token=run.token,
        hash_key=secrets.token_bytes(16),
        frontend_endpoint=run.frontend_endpoint,
        worker_endpoint=run.worker_endpoint,
        num_ranks=1,
        max_slots=256,
        max_step_tokens=8192,
        max_model_len=max_model_len,
        max_waiting=4096,
        vocab_size=49152,
    )
    scheduler = SchedulerProcess(config, run.path)
    command = [sys.executable, str(NULL), run.worker_endpoint, run.token.hex(), "40000", str(marks)]
    worker = subprocess.Popen(command)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = EngineConfig(model="smollm2", served_model_name="m", port=port, log_level="warning")
    write_config(settings, run.path / "engine.json")
    command = [sys.executable, "-m", "tokenspeed_core.server", "--run-dir", str(run.path)]
    api = subprocess.Popen([*command, "--config", str(run.path / "engine.json")])
    try:
        yield run, f"127.0.0.1:{port}", marks
    finally:
        for process in (api, worker):
            process.kill()
            process.wait()
        scheduler.kill()
        scheduler.wait(10)
        run.remove()


class Connection:
    """HTTP by hand, so that the client's own cost stays outside."""

    def __init__(self, address: str) -> None:
        host, _, port = address.partition(":")
        self._host, self._port = host, int(port)

    async def open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection(self._host, self._port)

    async def post(self, path: str, body: bytes) -> tuple[dict[str, Any], int]:
        """Send a request; return its answer and when its last byte was sent (monotonic ns)."""
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        self._writer.write(head.encode() + body[:-1])
        await self._writer.drain()
        await asyncio.sleep(0.05)  # all but the last byte lies at the server
        sent = time.monotonic_ns()
        self._writer.write(body[-1:])
        status = int((await self._reader.readline()).split()[1])
        length = 0
        while (line := await self._reader.readline()) != b"\r\n":
            name, _, value = line.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
        answer = await self._reader.readexactly(length)
        assert status == 200, answer
        return json.loads(answer), sent

    async def lines(self, path: str, body: bytes) -> int:
        """Read a streamed answer to its end; return its bytes."""
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        self._writer.write(head.encode() + body)
        total = 0
        tail = b""
        while b"[DONE]" not in tail:
            chunk = await self._reader.read(1 << 18)
            if not chunk:
                raise ConnectionError("the stream ended early")
            total += len(chunk)
            tail = (tail + chunk)[-64:]
        return total


def text(tokens: int, seed: int) -> str:
    return " ".join(WORDS[(seed * 7 + at * at) % len(WORDS)] for at in range(tokens))


async def turns(address: str, marks: Path, size: int, count: int) -> tuple[int, list[float]]:
    """One conversation: a cold turn of about `size` tokens, then warm ones that add 700.

    Return the tokens of the last prompt, and the ms to the plan of each turn.
    """
    connection = Connection(address)
    await connection.open()
    messages = [{"role": "system", "content": text(1300, 0)}]  # 1.54 tokens a word
    for at in range(size // 1000 - 2):
        role = "assistant" if at % 2 else "user"
        messages.append({"role": role, "content": text(650, at)})
    if messages[-1]["role"] != "user":
        messages.append({"role": "user", "content": text(20, 1)})
    found: list[float] = []
    tokens = 0
    for turn in range(count + 1):
        body = {"model": "m", "messages": messages, "max_tokens": 1, "session_id": "bench"}
        before = marks.stat().st_size
        answer, sent = await connection.post("/v1/chat/completions", json.dumps(body).encode())
        raw = marks.read_bytes()[before:]
        found.append((struct.unpack("<q", raw[:8])[0] - sent) / 1e6)
        tokens = answer["usage"]["prompt_tokens"]
        messages.append({"role": "assistant", "content": text(60, turn)})
        messages.append({"role": "user", "content": text(400, turn + 3)})
    return tokens, found


async def sse(address: str, streams: int, tokens: int) -> float:
    body = json.dumps(
        {
            "model": "m",
            "prompt": [TOKEN] * 16,
            "max_tokens": tokens,
            "stream": True,
            "ignore_eos": True,
        }
    ).encode()
    connections = [Connection(address) for _ in range(streams)]
    for connection in connections:
        await connection.open()
    started = time.perf_counter()
    await asyncio.gather(*(each.lines("/v1/completions", body) for each in connections))
    return streams * tokens / (time.perf_counter() - started)


async def sdk(run: RunDirectory, streams: int, tokens: int) -> float:
    async with Client(run) as client:
        await client.ready(30)

        async def one() -> int:
            count = 0
            async for delta in client.generate([TOKEN] * 16, max_tokens=tokens):
                count += len(delta.tokens)
            return count

        started = time.perf_counter()
        counts = await asyncio.gather(*(one() for _ in range(streams)))
        assert counts == [tokens] * streams
        return sum(counts) / (time.perf_counter() - started)


TOKEN = 504


async def rows(size: int, repeats: int, streams: int, tokens: int) -> list[dict[str, object]]:
    with engine(max_model_len=2 * size) as (run, address, marks):
        async with Client(run) as client:
            await client.ready(60)
        for _ in range(600):
            with contextlib.suppress(OSError):
                await Connection(address).open()
                break
            await asyncio.sleep(0.1)
        length, (cold, *warm) = await turns(address, marks, size, 4 * repeats)
        over_sse = [await sse(address, streams, tokens) for _ in range(repeats)]
        over_sdk = [await sdk(run, streams, tokens) for _ in range(repeats)]
    return [
        row(f"cold turn of {size} tokens", "to_plan", "ms", [cold]),
        row(f"warm turn, {length} tokens at last", "to_plan", "ms", warm),
        row(f"{streams} streams over SSE", "rate", "tok/s", over_sse),
        row(f"{streams} streams over the SDK", "rate", "tok/s", over_sdk),
    ]


def row(case: str, metric: str, unit: str, values: list[float]) -> dict[str, object]:
    return {
        "bench": "host",
        "case": case,
        "metric": metric,
        "unit": unit,
        "ours": round(statistics.median(values), 2),
        "peer": None,
        "peer_name": None,
        "spread": [round(min(values), 2), round(max(values), 2)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print rows as JSON lines")
    parser.add_argument("--size", type=int, default=128_000, help="tokens of the conversation")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=200, help="tokens of a stream")
    given = parser.parse_args()
    for each in asyncio.run(rows(given.size, given.repeats, given.streams, given.tokens)):
        if given.json:
            print(msgspec.json.encode(each).decode())
        else:
            print(f"{each['case']:<40}{each['ours']:>10} {each['unit']:<6} {each['spread']}")


if __name__ == "__main__":
    main()
