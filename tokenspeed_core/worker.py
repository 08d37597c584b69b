# SPDX-License-Identifier: MIT
"""A worker process: one rank that executes step plans.

    python -m tokenspeed_core.worker --run-dir DIR --rank R --config FILE

It tells the launcher about its start in the lines of `worker_event`.
"""

import argparse
import contextlib
import faulthandler
import gc
import logging
import math
import os
import sys
import time
import traceback
from pathlib import Path

import zmq

from .block_groups import group_columns
from .child_process import DUMP_SIGNAL
from .completions import Completions, Running
from .config import read_config
from .device_gaps import DeviceGaps, summary
from .execution import NewExecutor, execution
from .executor import Executor
from .grammar.library import Library
from .ipc.codec import Decoder, WireError, encode, int32_column
from .ipc.messages import (
    MAX_ERROR_CHARS,
    WIRE_VERSION,
    Heartbeat,
    Hello,
    HelloRequired,
    Profile,
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
from .ipc.messages import (
    Transfers as TransfersReport,
)
from .ipc.run_directory import RunDirectory
from .rank import load_rank
from .runner import Runner
from .scheduler._scheduler import siphash128
from .transfers import Transfers
from .worker_event import Failed, Loading, Ready, WorkerEvent, encode_event
from .worker_profile import WorkerProfile

HEARTBEAT_MS = 250
_HELLO_PATIENCE_S = 1.0

_log = logging.getLogger(__name__)


class WorkerError(RuntimeError):
    """The worker cannot go on: it was refused, or it lost step with the scheduler."""


class Worker:
    """Says Hello for one rank, then runs every plan that the scheduler sends, in order."""

    def __init__(
        self,
        run: RunDirectory,
        rank: int,
        num_ranks: int,
        runner: Runner,
        new_executor: NewExecutor,
        time_gaps: bool = False,
    ) -> None:
        self._run = run
        self._rank = rank
        self._num_ranks = num_ranks
        self._runner = runner
        self._new_executor = new_executor
        self._decoder: Decoder[ToWorker] = Decoder(ToWorker)  # type: ignore[arg-type]
        self._time_gaps = time_gaps
        self._executor: Executor | None = None
        self._transfers: Transfers | None = None
        self._wake = -1  # readable when a transfer or a step has ended
        self._epoch = 0
        self._step = 0
        self._digest = b""
        self._unanswered_hello = -math.inf  # when it was said
        self._profile: WorkerProfile | None = None

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
        self._wake = os.eventfd(0, os.EFD_NONBLOCK)
        self._transfers = self._runner.new_transfers(self._notify)
        self._completions = Completions(self._notify)
        try:
            self._say_hello(socket)
            return self._loop(socket)
        except Exception as error:
            message = f"{type(error).__name__}: {error}"[:MAX_ERROR_CHARS]
            socket.send(encode(WorkerFailed(self._rank, self._epoch, self._step, message)))
            raise
        finally:
            self._completions.close()
            if self._transfers is not None:
                self._transfers.close()
            os.close(self._wake)
            socket.close()
            context.term()

    def _loop(self, socket: "zmq.Socket[bytes]") -> str:
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN)
        poller.register(self._wake, zmq.POLLIN)
        while True:
            ready = dict(poller.poll(HEARTBEAT_MS))
            if self._wake in ready:
                os.eventfd_read(self._wake)
                self._report_steps(socket)
                self._report_transfers(socket)
            if socket not in ready:
                if not ready:
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
                    self._unanswered_hello = -math.inf
                    self._begin_epoch(message)
                case HelloRequired():
                    # A restarted scheduler asks once for every message that it cannot place, but
                    # a second Hello ends the epoch that the first one began.
                    if time.monotonic() - self._unanswered_hello > _HELLO_PATIENCE_S:
                        self._epoch = 0
                        self._say_hello(socket)
                case Profile(directory):
                    self._set_profile(directory)
                case Refused():
                    raise WorkerError(f"the scheduler refused rank {self._rank}: {message.message}")
                case Shutdown():
                    self._log_gaps()
                    return message.reason

    def _set_profile(self, directory: str) -> None:
        if self._profile is not None:
            self._profile.write()
            self._profile = None
        if directory:
            self._profile = WorkerProfile(Path(directory), self._rank, self._runner.device)

    def _say_hello(self, socket: "zmq.Socket[bytes]") -> None:
        socket.send(encode(self._hello()))
        self._unanswered_hello = time.monotonic()

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
            host_blocks=self._runner.host_blocks,
            **group_columns(self._runner.groups),
        )

    def _begin_epoch(self, welcome: Welcome) -> None:
        if not welcome.ready or welcome.epoch == self._epoch:
            return
        self._log_gaps()
        self._epoch = welcome.epoch
        self._step = 0
        self._digest = welcome.epoch.to_bytes(16, "little")
        self._completions.forget()
        if self._transfers is not None:
            self._transfers.begin_epoch(welcome.epoch)
        executor = self._new_executor(self._transfers)
        self._executor = DeviceGaps(executor) if self._time_gaps else executor

    def _log_gaps(self) -> None:
        if isinstance(self._executor, DeviceGaps):
            gaps = summary(self._executor.taken())
            _log.info("rank %d, epoch %d, between steps: %s", self._rank, self._epoch, gaps)

    def _execute(self, socket: "zmq.Socket[bytes]", plan: StepPlan, frames: list[bytes]) -> None:
        if len(frames) != 2:
            raise WireError(f"a step plan travels as two frames, got {len(frames)}")
        if self._executor is None or plan.epoch != self._epoch:
            raise WorkerError(f"plan of epoch {plan.epoch} arrived in epoch {self._epoch}")
        digest = siphash128(self._digest, frames[0])
        if plan.step != self._step + 1 or digest != frames[1]:
            raise WorkerError(
                f"step {plan.step} with digest {frames[1].hex()} does not follow step "
                f"{self._step}, which makes it {digest.hex()}: a plan was lost or changed"
            )
        self._step, self._digest = plan.step, digest
        began_ns = time.monotonic_ns()
        with self._profile.step(plan.step) if self._profile else contextlib.nullcontext():
            sampled = self._executor.launch(plan)
        self._completions.put(Running(plan.step, digest, sampled, began_ns))
        self._report_steps(socket)

    def _report_steps(self, socket: "zmq.Socket[bytes]") -> None:
        for step, digest, sampled, began_ns in self._completions.ended():
            column = sampled.tokens.tobytes()
            if self._rank == 0:
                asked = sampled.logprobs.tobytes() if sampled.has_logprobs else b""
                details = [each.encoded() for each in sampled.told]
                result = StepResult(
                    self._epoch,
                    step,
                    digest,
                    column,
                    asked,
                    detail_slots=int32_column([each.slot for each in sampled.told]),
                    detail_bytes=int32_column(map(len, details)),
                    details=b"".join(details),
                    began_ns=began_ns,
                    ended_ns=time.monotonic_ns(),
                )
                socket.send(encode(result))
            self._report_transfers(socket)
            token_hash = siphash128(digest, column)
            socket.send(encode(StepAck(self._epoch, step, digest, token_hash)))

    def _notify(self) -> None:
        os.eventfd_write(self._wake, 1)

    def _report_transfers(self, socket: "zmq.Socket[bytes]") -> None:
        ended = self._transfers.ended() if self._transfers is not None else []
        if ended:
            tickets = int32_column([each.ticket for each in ended])
            ok = bytes(each.ok for each in ended)
            socket.send(encode(TransfersReport(self._rank, self._epoch, tickets, ok)))


def _tell(event: WorkerEvent) -> None:
    print(encode_event(event), flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Load one rank, then serve; return the exit code."""
    parser = argparse.ArgumentParser(prog="tokenspeed_core.worker", description=__doc__)
    parser.add_argument("--run-dir", required=True, type=Path)
    parser.add_argument("--rank", required=True, type=int)
    parser.add_argument("--config", required=True, type=Path)
    options = parser.parse_args(arguments)
    faulthandler.register(DUMP_SIGNAL)
    started = time.monotonic()
    engine = read_config(options.config)
    logging.basicConfig(
        level=engine.log_level.upper(), format="%(levelname)s %(message)s", stream=sys.stderr
    )
    run = RunDirectory.join(options.run_dir)

    def progress(done: int, total: int) -> None:
        _tell(Loading(done, total))

    try:
        runner = load_rank(engine, options.rank, run.rendezvous, progress)
        library = Library(run.grammars)
        new_executor = execution(runner, engine.step_tokens, engine.cuda_graphs, library)
    except (ValueError, OSError) as error:
        # What a user can mend: one line, no traceback.
        _tell(Failed(str(error)))
        return 1
    # Nothing that loading made is ever garbage; without it a collection costs microseconds.
    gc.collect()
    gc.freeze()
    _tell(Ready(time.monotonic() - started))
    time_gaps = engine.time_gaps and runner.device.type == "cuda"
    worker = Worker(run, options.rank, engine.num_ranks, runner, new_executor, time_gaps)
    code = 0
    try:
        _log.info("rank %d ends: %s", options.rank, worker.serve())
    except Exception:
        traceback.print_exc()
        code = 1
    library.close()
    runner.ranks.exit(code)


if __name__ == "__main__":
    sys.exit(main())
