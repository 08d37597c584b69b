# SPDX-License-Identifier: MIT
"""What the host costs: real API process, real scheduler, and a worker that answers at once.

    python tests/bench/bench_host.py [--json] [--size TOKENS] [--repeats N] [--vllm-python PATH]

Turns from the last byte of the HTTP body to the step plan at the worker: a first one of 128k
tokens, the eight behind it of 700 new tokens each, and as many behind 200k; tokens a second over
SSE and over the SDK.  With an interpreter that has vLLM, its API server runs beside ours,
alternating, before an engine that computes nothing.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
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

import httpx
import msgspec

from tokenspeed_core.api_processes import VARIABLES
from tokenspeed_core.config import EngineConfig, write_config
from tokenspeed_core.ipc.messages import WIRE_VERSION, SchedulerConfig
from tokenspeed_core.ipc.run_directory import RunDirectory
from tokenspeed_core.model_source import resolve
from tokenspeed_core.scheduler import SchedulerProcess
from tokenspeed_core.sdk import Client
from tokenspeed_core.tokenizer import Tokenizer

NUM_WARM = 8  # turns of a conversation behind its first
LONGER = 1.6  # how much, for those that are measured apart
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
    command = [
        sys.executable,
        str(NULL),
        run.worker_endpoint,
        run.token.hex(),
        "100000",
        str(marks),
    ]
    worker = subprocess.Popen(command)
    port = free_port()
    settings = EngineConfig(model="smollm2", served_model_name="m", port=port, log_level="warning")
    write_config(settings, run.path / "engine.json")
    command = [sys.executable, "-m", "tokenspeed_core.server", "--run-dir", str(run.path)]
    command += ["--config", str(run.path / "engine.json")]
    api = subprocess.Popen(command, env={**VARIABLES, **os.environ})
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
        self._writer.write(_head(path, body) + body[:-1])
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
        self._writer.write(_head(path, body) + body)
        total = 0
        tail = b""
        while b"[DONE]" not in tail:
            chunk = await self._reader.read(1 << 18)
            if not chunk:
                raise ConnectionError("the stream ended early")
            total += len(chunk)
            tail = (tail + chunk)[-64:]
        return total


def _head(path: str, body: bytes) -> bytes:
    kind = f"content-type: application/json\r\ncontent-length: {len(body)}"
    return f"POST {path} HTTP/1.1\r\nhost: x\r\n{kind}\r\n\r\n".encode()


def text(tokens: int, seed: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=tokens))


class Conversation:
    """Turns of about 700 tokens behind about `size`, at one server; no two share a beginning."""

    def __init__(self, address: str, marks: Path, size: int, number: int = 0) -> None:
        self._address = address
        self._marks = marks
        self._name = f"bench {size} {number}"
        # 1.46 tokens a word
        self._messages = [{"role": "system", "content": self._name + text(1372, 0)}]
        for at in range(size // 1000 - 2):
            role = "assistant" if at % 2 else "user"
            self._messages.append({"role": role, "content": text(686, at)})
        if self._messages[-1]["role"] != "user":
            self._messages.append({"role": "user", "content": text(20, 1)})
        self.tokens = 0  # of the last prompt

    async def turn(self) -> float:
        """Return the ms from the last byte of a turn's body to its plan."""
        body = {"model": "m", "messages": self._messages, "max_tokens": 1}
        body["session_id"] = self._name
        before = self._marks.stat().st_size
        connection = Connection(self._address)  # servers close idle ones
        await connection.open()
        answer, sent = await connection.post("/v1/chat/completions", json.dumps(body).encode())
        (planned,) = struct.unpack("<q", self._marks.read_bytes()[before : before + 8])
        self.tokens = answer["usage"]["prompt_tokens"]
        number = len(self._messages)
        self._messages.append({"role": "assistant", "content": text(60, number)})
        self._messages.append({"role": "user", "content": text(400, number + 3)})
        return float(planned - sent) / 1e6


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


@contextlib.contextmanager
def vllm_server(python: str, max_model_len: int) -> Iterator[tuple[str, Path]]:
    """Run vLLM's API process and an engine that computes nothing; yield address and marks."""
    with tempfile.TemporaryDirectory(prefix="ts") as folder:
        save_shape(Path(folder), max_model_len)
        wires = [f"ipc://{folder}/in", f"ipc://{folder}/out"]
        marks, port = Path(folder, "marks"), free_port()
        script = str(Path(__file__).with_name("bench_host_vllm.py"))
        # not from here: our folders would hide packages of the same names
        engine = subprocess.Popen([python, "-P", script, "engine", *wires, str(marks)], cwd=folder)
        with open(Path(folder, "log"), "wb") as log:
            command = [python, "-P", script, "serve", folder, str(port), *wires]
            api = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        try:
            yield f"127.0.0.1:{port}", marks
        except BaseException:
            print(Path(folder, "log").read_text()[-4000:], file=sys.stderr)
            raise
        finally:
            for process in (api, engine):
                process.kill()
                process.wait()


def save_shape(folder: Path, max_model_len: int) -> None:
    """Write what a server that loads no weights reads of SmolLM2."""
    tokenizer = Tokenizer.load(resolve("smollm2"))
    tokenizer.backend.save(str(folder / "tokenizer.json"))
    special = {"eos_token": "<|im_end|>", "chat_template": tokenizer.chat_template}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **special})
    )
    shape = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152}
    kind = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16"}
    limit = {"max_position_embeddings": max_model_len}
    (folder / "config.json").write_text(json.dumps({**kind, **shape, **heads, **limit}))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


async def opened(address: str) -> None:
    """Wait until a server is ready."""
    async with httpx.AsyncClient(base_url=f"http://{address}") as client:
        for _ in range(1800):
            with contextlib.suppress(httpx.HTTPError):
                if (await client.get("/health")).status_code == 200:
                    return
            await asyncio.sleep(0.1)
    raise TimeoutError(f"nothing is ready at {address}")


async def rows(
    size: int, repeats: int, streams: int, tokens: int, peer: str = ""
) -> list[dict[str, object]]:
    with contextlib.ExitStack() as stack:
        longest = 2 * size + 8192
        run, ours, marks = stack.enter_context(engine(longest))
        servers = [(ours, marks)]
        if peer:
            servers.append(stack.enter_context(vllm_server(peer, longest)))
        async with Client(run) as client:
            await client.ready(60)
        for address, _ in servers:
            await opened(address)
        sizes = (size, int(LONGER * size))
        lengths = [(0, 0), (0, 0)]
        cold: list[list[float]] = [[] for _ in servers]
        warm: list[list[list[float]]] = [[[] for _ in servers] for _ in sizes]
        over_sse: list[list[float]] = [[] for _ in servers]
        over_sdk = []
        for number in range(repeats):
            for at, (address, its_marks) in enumerate(servers):
                for long, behind in enumerate(sizes):
                    talk = Conversation(address, its_marks, behind, number)
                    first = await talk.turn()
                    cold[at] += [] if long else [first]
                    begun = talk.tokens
                    warm[long][at] += [await talk.turn() for _ in range(NUM_WARM)]
                    lengths[long] = (begun, talk.tokens)
                over_sse[at].append(await sse(address, streams, tokens))
            over_sdk.append(await sdk(run, streams, tokens))
    turns = [f"warm turn, {begun} to {end} tokens" for begun, end in lengths]
    return [
        row(f"cold turn of {lengths[0][0]} tokens", "to_plan", "ms", *cold),
        *(row(case, "to_plan", "ms", *each) for case, each in zip(turns, warm, strict=True)),
        row(f"{streams} streams over SSE", "rate", "tok/s", *over_sse),
        row(f"{streams} streams over the SDK", "rate", "tok/s", over_sdk),
    ]


def row(
    case: str, metric: str, unit: str, ours: list[float], peer: list[float] | None = None
) -> dict[str, object]:
    return {
        "bench": "host",
        "case": case,
        "metric": metric,
        "unit": unit,
        "ours": round(statistics.median(ours), 2),
        "peer": None if peer is None else round(statistics.median(peer), 2),
        "peer_name": None if peer is None else "vllm 0.32",
        "spread": [round(min(ours), 2), round(max(ours), 2)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print rows as JSON lines")
    parser.add_argument("--size", type=int, default=128_000, help="tokens of a conversation")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=200, help="tokens of a stream")
    parser.add_argument("--vllm-python", default="", help="an interpreter that has vLLM")
    given = parser.parse_args()
    found = rows(given.size, given.repeats, given.streams, given.tokens, given.vllm_python)
    for each in asyncio.run(found):
        if given.json:
            print(msgspec.json.encode(each).decode())
        else:
            peer = "" if each["peer"] is None else f"  {each['peer_name']}: {each['peer']}"
            print(f"{each['case']:<40}{each['ours']:>10} {each['unit']:<6} {each['spread']}{peer}")


if __name__ == "__main__":
    main()
