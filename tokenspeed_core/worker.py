# SPDX-License-Identifier: MIT
"""A worker process: one rank that executes step plans."""

import time

import zmq

from .ipc.codec import Decoder, WireError, encode
from .ipc.messages import (
    MAX_ERROR_CHARS,
    WIRE_VERSION,
    Heartbeat,
    Hello,
    HelloRequired,
    Refused,
    Role,
    Shutdown,
    StepAck,
    StepPlan,
    StepResult,
    ToWorker,
    Welcome,
    WorkerFailed,
)
from .ipc.run_directory import RunDirectory
from .runner import Runner
from .scheduler import siphash128
from .slots import Slots

HEARTBEAT_MS = 250


class WorkerError(RuntimeError):
    """The worker cannot go on: it was refused, or it lost step with the scheduler."""


class Worker:
    """Says Hello for one rank, then runs every plan that the scheduler sends, in order."""

    def __init__(self, run: RunDirectory, rank: int, num_ranks: int, runner: Runner) -> None:
        self._run = run
        self._rank = rank
        self._num_ranks = num_ranks
        self._runner = runner
        self._decoder: Decoder[ToWorker] = Decoder(ToWorker)  # type: ignore[arg-type]
        self._slots: Slots | None = None
        self._epoch = 0
        self._step = 0
        self._digest = b""

    def serve(self) -> str:
        """Execute plans until the scheduler says Shutdown; return its reason.

        Raises:
            WorkerError: the scheduler refused this rank, or a plan's digest does not continue
                the plans before it.
        """
        context = zmq.Context()
        socket = context.socket(zmq.DEALER)
        socket.linger = 1000
        socket.sndhwm = socket.rcvhwm = 10_000
        socket.connect(self._run.worker_endpoint)
        try:
            socket.send(encode(self._hello()))
            return self._loop(socket)
        except Exception as error:
            message = f"{type(error).__name__}: {error}"[:MAX_ERROR_CHARS]
            socket.send(encode(WorkerFailed(self._rank, self._epoch, self._step, message)))
            raise
        finally:
            socket.close()
            context.term()

    def _loop(self, socket: "zmq.Socket[bytes]") -> str:
        while True:
            if not socket.poll(HEARTBEAT_MS):
                socket.send(encode(Heartbeat(time.monotonic_ns())))
                continue
            frames = socket.recv_multipart()
            message = self._decoder.decode(frames[0])
            match message:
                case StepPlan():
                    self._execute(socket, message, frames)
                case Heartbeat():
                    pass
                case Welcome():
                    self._begin_epoch(message)
                case HelloRequired():
                    socket.send(encode(self._hello()))
                case Refused():
                    raise WorkerError(f"the scheduler refused rank {self._rank}: {message.message}")
                case Shutdown():
                    return message.reason

    def _hello(self) -> Hello:
        return Hello(
            WIRE_VERSION,
            self._run.token,
            Role.WORKER,
            f"rank {self._rank}",
            self._rank,
            self._num_ranks,
            self._runner.num_blocks,
            self._runner.block_size,
            self._runner.program_hash,
        )

    def _begin_epoch(self, welcome: Welcome) -> None:
        if not welcome.ready or welcome.epoch == self._epoch:
            return
        self._epoch = welcome.epoch
        self._step = 0
        self._digest = welcome.epoch.to_bytes(16, "little")
        self._slots = self._runner.new_slots()

    def _execute(self, socket: "zmq.Socket[bytes]", plan: StepPlan, frames: list[bytes]) -> None:
        if len(frames) != 2:
            raise WireError(f"a step plan travels as two frames, got {len(frames)}")
        if self._slots is None or plan.epoch != self._epoch:
            raise WorkerError(f"plan of epoch {plan.epoch} arrived in epoch {self._epoch}")
        digest = siphash128(self._digest, frames[0])
        if plan.step != self._step + 1 or digest != frames[1]:
            raise WorkerError(
                f"step {plan.step} with digest {frames[1].hex()} does not follow step "
                f"{self._step}, which makes it {digest.hex()}: a plan was lost or changed"
            )
        self._step, self._digest = plan.step, digest
        step = self._slots.prepare(plan)
        tokens, logprobs = self._runner.run(step)
        self._slots.record(step, tokens)
        column = tokens.tobytes()
        if self._rank == 0:
            asked = logprobs.tobytes() if step.sampling.logprobs.any() else b""
            socket.send(encode(StepResult(plan.epoch, plan.step, digest, column, asked)))
        token_hash = siphash128(digest, column)
        socket.send(encode(StepAck(plan.epoch, plan.step, digest, token_hash)))
