# SPDX-License-Identifier: MIT
"""A worker and a frontend of few lines, for tests that run the real scheduler process."""

import os
import secrets
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import zmq
from simulated_worker import SimulatedWorker

from tokenspeed_core.ipc import messages as wire
from tokenspeed_core.ipc.codec import Decoder, encode, int32_column, read_column
from tokenspeed_core.scheduler import SchedulerProcess

VOCAB = 1000
BLOCK_SIZE = 4

to_frontend = Decoder(wire.ToFrontend)
to_worker = Decoder(wire.ToWorker)


class Run:
    """A scheduler process in its own run directory; `with` ends it."""

    def __init__(self, run_dir: Path, **changes: Any) -> None:
        config: dict[str, Any] = {
            "version": wire.WIRE_VERSION,
            "token": secrets.token_bytes(16),
            "hash_key": bytes(16),
            "frontend_endpoint": f"ipc://{run_dir}/f",
            "worker_endpoint": f"ipc://{run_dir}/w",
            "num_ranks": 1,
            "max_slots": 16,
            "max_step_tokens": 64,
            "max_model_len": 400,
            "max_waiting": 100,
            "vocab_size": VOCAB,
            "heartbeat_ms": 50,
        }
        config.update(changes)
        run_dir.mkdir(exist_ok=True)
        self.config = wire.SchedulerConfig(**config)
        self.log = run_dir / "log"
        with self.log.open("wb") as log:
            self.process = SchedulerProcess(self.config, run_dir, stderr=log)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(10)

    def hello(self, **fields: Any) -> wire.Hello:
        values: dict[str, Any] = {
            "version": wire.WIRE_VERSION,
            "token": self.config.token,
            "role": wire.Role.FRONTEND,
            "name": "test",
        }
        values.update(fields)
        return wire.Hello(**values)


def groups_of(*specs: tuple[int, int, int, int]) -> dict[str, bytes]:
    """The columns of Hello for block groups of (kind, tokens, span, share)."""
    kinds, *others = zip(*specs, strict=True)
    columns = dict(zip(("tokens", "spans", "shares"), map(int32_column, others), strict=True))
    return {"group_kinds": bytes(kinds), **{f"group_{k}": v for k, v in columns.items()}}


class Peer:
    """A DEALER socket with whole messages in and out."""

    def __init__(self, endpoint: str) -> None:
        self.socket = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.connect(endpoint)

    def send(self, message: Any) -> None:
        self.socket.send(encode(message))

    def receive(self, timeout: float = 5.0) -> list[bytes] | None:
        if not self.socket.poll(timeout * 1000):
            return None
        return self.socket.recv_multipart()

    def close(self) -> None:
        self.socket.close()


class Frontend(Peer):
    """Says Hello, submits, and collects what comes back by request."""

    def __init__(self, run: Run, greet: bool = True) -> None:
        super().__init__(run.config.frontend_endpoint)
        self.tokens: dict[int, list[int]] = {}
        self.reasons: dict[int, int] = {}
        self.rejections: dict[int, int] = {}
        self.cached: dict[int, int] = {}
        self.refusals: list[int] = []
        self.hellos_required = 0
        self.welcome: wire.Welcome | None = None
        self.stats: wire.Stats | None = None
        if greet:
            self.send(run.hello())
            self.until(lambda: self.welcome is not None)

    def submit(self, request_id: int, prompt: list[int], max_tokens: int, **fields: Any) -> None:
        sampling = wire.Sampling(seed=fields.pop("seed", 0))
        self.send(wire.Submit(request_id, int32_column(prompt), max_tokens, sampling, **fields))

    def until(self, done: Any, timeout: float = 10.0) -> None:
        """Take messages until `done()`."""
        deadline = time.monotonic() + timeout
        while not done():
            left = deadline - time.monotonic()
            assert left > 0, f"nothing came; reasons {self.reasons}, stats {self.stats}"
            parts = self.receive(left)
            if parts is not None:
                self.take(to_frontend.decode(parts[0]))

    def take(self, message: wire.ToFrontend) -> None:
        match message:
            case wire.Welcome():
                self.welcome = message
            case wire.Stats():
                self.stats = message
            case wire.Refused():
                self.refusals.append(message.code)
            case wire.HelloRequired():
                self.hellos_required += 1
            case wire.Rejected():
                self.rejections[message.request_id] = message.code
            case wire.TokenDeltas():
                self.take_deltas(message)

    def take_deltas(self, deltas: wire.TokenDeltas) -> None:
        tokens = read_column("i", deltas.tokens)
        at = 0
        for request, count, reason, cached in zip(
            read_column("Q", deltas.request_ids),
            read_column("i", deltas.counts),
            read_column("B", deltas.finish_reasons),
            read_column("i", deltas.cached_tokens),
            strict=True,
        ):
            assert request not in self.reasons, f"request {request} goes on after its end"
            self.tokens.setdefault(request, []).extend(tokens[at : at + count])
            at += count
            self.cached[request] = cached
            if reason:
                self.reasons[request] = reason
        assert at == len(tokens)


def worker_loop(
    endpoint: str, token: bytes, rank: int, num_ranks: int, num_blocks: int, max_drafts: int
) -> str:
    """Serve one epoch as a worker; return the reason of the Shutdown."""
    peer = Peer(endpoint)
    peer.send(
        wire.Hello(
            wire.WIRE_VERSION,
            token,
            wire.Role.WORKER,
            f"worker {rank}",
            rank,
            num_ranks,
            num_blocks,
            BLOCK_SIZE,
            b"program",
            max_drafts=max_drafts,
        )
    )
    worker: SimulatedWorker | None = None
    while True:
        parts = peer.receive(30)
        assert parts is not None, "the scheduler is silent"
        message = to_worker.decode(parts[0])
        match message:
            case wire.Welcome() if message.ready:
                worker = SimulatedWorker(message.epoch, message.num_blocks, BLOCK_SIZE, VOCAB)
            case wire.Shutdown():
                peer.close()
                return message.reason
            case wire.StepPlan():
                assert worker is not None
                report = worker.apply(parts[0], parts[1])
                if rank == 0:
                    peer.send(report.result)
                peer.send(report.ack)
            case wire.Refused():
                raise SystemExit(f"refused: {message.message}")


def start_worker(
    run: Run, rank: int = 0, num_blocks: int = 200, max_drafts: int = 0
) -> "subprocess.Popen[bytes]":
    """Start a worker process."""
    arguments = [
        run.config.worker_endpoint,
        run.config.token.hex(),
        str(rank),
        str(run.config.num_ranks),
        str(num_blocks),
        str(max_drafts),
    ]
    here = str(Path(__file__).parent)
    environment = {**os.environ, "PYTHONPATH": here + os.pathsep + os.environ.get("PYTHONPATH", "")}
    return subprocess.Popen([sys.executable, __file__, *arguments], env=environment)


if __name__ == "__main__":
    where, secret, *numbers = sys.argv[1:]
    worker_loop(where, bytes.fromhex(secret), *map(int, numbers))
