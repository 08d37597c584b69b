# SPDX-License-Identifier: MIT
"""Peers that leave, lie, freeze or flood, against the real process and a worker led by hand.

The row numbers are those of the fault table in README.md beside this file.
"""

import os
import random
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from replica import Replica
from scripted_peers import BLOCK_SIZE, VOCAB, Frontend, Peer, Run, to_frontend, to_worker
from simulated_worker import Report, SimulatedWorker, expected_tokens

from tokenspeed_core.ipc import messages as wire
from tokenspeed_core.ipc.codec import encode
from tokenspeed_core.ipc.messages import FinishReason, RefusalCode

PROMPT = list(range(1, 41))  # three chunks of 16 tokens
BLOCKS = 40


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with Run(tmp_path, max_step_tokens=17, max_slots=1) as running:
        yield running


class LedWorker(Peer):
    """A worker that runs a step only when it is told to."""

    def __init__(self, run: Run, num_blocks: int = BLOCKS) -> None:
        super().__init__(run.config.worker_endpoint)
        self.held: deque[Report] = deque()
        self.send(
            run.hello(
                role=wire.Role.WORKER, num_ranks=1, num_blocks=num_blocks, block_size=BLOCK_SIZE
            )
        )
        while not isinstance(message := self._next()[0], wire.Welcome) or not message.ready:
            pass
        self.worker = SimulatedWorker(message.epoch, num_blocks, BLOCK_SIZE, VOCAB)

    def _next(self, timeout: float = 10.0) -> tuple[Any, list[bytes]]:
        parts = self.receive(timeout)
        assert parts is not None, "no plan came"
        return to_worker.decode(parts[0]), parts

    def take(self) -> Report:
        """Run the next plan and keep what it reports."""
        message, parts = self._next()
        while isinstance(message, wire.Heartbeat):
            message, parts = self._next()
        assert isinstance(message, wire.StepPlan), message
        self.held.append(self.worker.apply(parts[0], parts[1]))
        return self.held[-1]

    def answer(self, report: Report | None = None) -> None:
        """Send a report, the oldest kept one by default."""
        report = report or self.held.popleft()
        self.send(report.result)
        self.send(report.ack)

    def step(self) -> None:
        self.take()
        self.answer()

    def serve(self, frontend: Frontend, done: Callable[[], bool]) -> int:
        """Run steps until the frontend has seen enough; how many there were."""
        deadline = time.monotonic() + 20
        steps = 0
        while not done():
            assert time.monotonic() < deadline, (frontend.reasons, frontend.stats)
            while self.held:
                self.answer()
            if (parts := self.receive(0.01)) is not None and len(parts) == 2:
                self.held.append(self.worker.apply(parts[0], parts[1]))
                steps += 1
            if (parts := frontend.receive(0.001)) is not None:
                frontend.take(to_frontend.decode(parts[0]))
        return steps

    def settle(self, frontend: Frontend, request: int) -> None:
        """Run steps until the request has ended, and counters from then on tell that all has."""
        self.serve(frontend, lambda: request in frontend.reasons)
        frontend.stats = None
        self.serve(frontend, lambda: all_back(frontend))


def all_back(frontend: Frontend) -> bool:
    stats = frontend.stats
    return (
        stats is not None
        and stats.running == stats.waiting == stats.in_flight_steps == stats.active_blocks == 0
    )


@pytest.mark.parametrize("moment", ["no workers", "queued", "prefill", "decode", "finished"])
def test_a_client_leaves_at_any_moment(run: Run, moment: str) -> None:
    """Row 12: its blocks are back behind the steps in flight, and nobody else notices."""
    watcher, leaver = Frontend(run), Frontend(run)
    if moment != "no workers":
        worker = LedWorker(run)
    if moment == "queued":
        watcher.submit(1, PROMPT, 3)
        watcher.until(lambda: watcher.stats is not None and watcher.stats.running == 1)
    leaver.submit(7, PROMPT, 1 if moment == "finished" else 50)
    if moment in ("prefill", "decode", "finished"):
        for _ in range({"prefill": 1, "decode": 5, "finished": 3}[moment]):
            worker.step()
    else:
        watcher.until(lambda: watcher.stats is not None and watcher.stats.waiting == 1)
    leaver.close()
    if moment in ("prefill", "decode"):
        # Only the steps in flight hold blocks then, and no other step is planned.
        watcher.until(lambda: watcher.stats is not None and watcher.stats.running == 0)
        assert worker.serve(watcher, lambda: all_back(watcher)) <= run.config.depth
    if moment == "no workers":
        watcher.until(lambda: watcher.stats is not None and watcher.stats.waiting == 0)
        worker = LedWorker(run)
    if moment != "queued":
        watcher.submit(1, PROMPT, 3)
    worker.settle(watcher, 1)
    assert watcher.tokens[1] == expected_tokens(PROMPT, 3, VOCAB)
    worker.close()


def test_aborts_that_name_nobody_or_somebody_else(run: Run) -> None:
    """Row 15: unknown, finished, repeated and foreign ids are no event at all."""
    mine, other = Frontend(run), Frontend(run)
    worker = LedWorker(run)
    mine.submit(1, PROMPT, 6)
    for _ in range(2):
        worker.step()
    for request in (1, 2, 2**64 - 1):
        other.send(wire.Abort(request))  # its own id 1 was never submitted
    mine.send(wire.Abort(99))
    worker.serve(mine, lambda: 1 in mine.reasons)
    for _ in range(3):
        mine.send(wire.Abort(1, kept=0))
    worker.settle(mine, 1)
    assert mine.tokens[1] == expected_tokens(PROMPT, 6, VOCAB)
    assert mine.reasons == {1: FinishReason.LENGTH}
    assert mine.stats is not None
    assert mine.stats.generated_tokens == 6
    worker.close()


def test_an_id_in_use_is_refused_and_free_again_behind_its_end(run: Run) -> None:
    """Row 16: two requests of one id never share state."""
    mine, other = Frontend(run), Frontend(run)
    worker = LedWorker(run)
    mine.submit(1, PROMPT, 4)
    mine.submit(1, [9] * 20, 9)
    other.submit(1, [5], 2)  # another connection's ids are other ids
    mine.until(lambda: 1 in mine.rejections)
    assert mine.rejections[1] == RefusalCode.DUPLICATE
    worker.serve(mine, lambda: 1 in mine.reasons)
    assert mine.tokens.pop(1) == expected_tokens(PROMPT, 4, VOCAB)
    del mine.reasons[1]
    mine.submit(1, [9] * 20, 9)
    worker.settle(mine, 1)
    assert mine.tokens[1] == expected_tokens([9] * 20, 9, VOCAB)
    other.until(lambda: 1 in other.reasons)
    assert other.tokens[1] == expected_tokens([5], 2, VOCAB)
    worker.close()


def test_reports_out_of_order_and_of_a_former_epoch(run: Run) -> None:
    """Row 21: steps retire in order whatever comes first, and the past says nothing."""
    frontend = Frontend(run)
    worker = LedWorker(run)
    frontend.submit(1, PROMPT, 5)
    first, second = worker.take(), worker.take()
    worker.answer(second)
    worker.answer(second)
    frontend.until(lambda: frontend.stats is not None and frontend.stats.dropped_frames == 2)
    assert frontend.stats is not None
    assert frontend.stats.steps == 0
    worker.answer(first)
    worker.held.clear()
    worker.serve(frontend, lambda: 1 in frontend.reasons)
    assert frontend.tokens[1] == expected_tokens(PROMPT, 5, VOCAB)

    worker.send(wire.WorkerFailed(0, 1, 1, "the end"))
    worker.close()
    worker = LedWorker(run)
    frontend.submit(2, PROMPT, 5)
    worker.take()
    before = frontend.stats.dropped_frames
    for report in (first, second):
        worker.answer(report)
    frontend.until(
        lambda: frontend.stats is not None and frontend.stats.dropped_frames == before + 4
    )
    worker.settle(frontend, 2)
    assert frontend.tokens[2] == expected_tokens(PROMPT, 5, VOCAB)
    worker.close()


def test_damaged_frames_of_known_peers(run: Run) -> None:
    """Row 22: what cannot be read is dropped and counted; what can be read does no harm."""
    frontend, victim = Frontend(run), Frontend(run)
    worker = LedWorker(run)
    victim.submit(1, PROMPT, 20)
    worker.step()
    dice = random.Random(3)
    submit = bytearray(encode(wire.Submit(5, b"\1\0\0\0" * 8, 3, wire.Sampling())))
    result = bytearray(encode(wire.StepResult(1, 1, bytes(16), b"\1\0\0\0", b"")))
    for peer, good in ((frontend, submit), (worker, result)):
        for _ in range(200):
            frame = bytearray(good)
            if dice.randrange(2):
                frame = frame[: dice.randrange(len(frame))]
            else:
                frame[dice.randrange(3)] ^= 1 << dice.randrange(8)  # array, tag, first field
            peer.socket.send(bytes(frame))
    worker.serve(victim, lambda: 1 in victim.reasons and victim.stats is not None)
    assert victim.tokens[1] == expected_tokens(PROMPT, 20, VOCAB)
    victim.until(lambda: victim.stats is not None and victim.stats.dropped_frames > 150)
    assert run.process.poll() is None
    worker.close()


def test_a_frame_over_the_bound_cuts_its_sender_off(run: Run) -> None:
    """Row 22: before anybody reserves memory for it."""
    frontend, victim = Frontend(run), Frontend(run)
    stranger = Peer(run.config.worker_endpoint)
    worker = LedWorker(run)
    huge = bytes(wire.MAX_FRAME_BYTES + 1)
    for peer in (frontend, stranger):
        peer.socket.send(huge, copy=False)
    victim.submit(1, PROMPT, 20)
    worker.serve(victim, lambda: 1 in victim.reasons)
    assert victim.tokens[1] == expected_tokens(PROMPT, 20, VOCAB)
    peak = Path(f"/proc/{run.process.pid}/status").read_text().partition("VmHWM:")[2].split()[0]
    assert int(peak) * 1024 < wire.MAX_FRAME_BYTES
    for peer in (stranger, worker):
        peer.close()


def test_a_reader_that_stalls_is_let_go_and_told_so(tmp_path: Path) -> None:
    """Row 24, towards a frontend: what waits for it is bounded, and nothing is lost unsaid."""
    with Run(tmp_path) as run:
        watcher, stalled = Frontend(run), Frontend(run)
        for request in range(20_000):
            stalled.submit(request, [], 1)  # each is answered by a Rejected
        watcher.until(lambda: "is gone; its requests are aborted" in run.log.read_text(), 30)
        worker = LedWorker(run)
        watcher.submit(1, PROMPT, 3)
        worker.serve(watcher, lambda: 1 in watcher.reasons)
        assert len(stalled.rejections) < 20_000
        while not stalled.hellos_required:
            # It is told when it speaks next, once it has read what waits for it.
            stalled.submit(20_000, [], 1)
            for part in iter(lambda: stalled.receive(0.1), None):
                stalled.take(to_frontend.decode(part[0]))
        stalled.close()
        worker.close()


def test_a_worker_that_stalls_holds_back_admission(tmp_path: Path) -> None:
    """Row 24, towards a worker: `depth` plans are out, the queue fills, more is refused."""
    with Run(tmp_path, max_waiting=10, max_slots=4) as run:
        frontend = Frontend(run)
        worker = LedWorker(run)
        for request in range(50):
            frontend.submit(request, [request + 1], 2)
        # 10 wait; as many as 4 run, if they came before a plan
        frontend.until(lambda: len(frontend.rejections) >= 50 - 10 - 4, 20)
        assert set(frontend.rejections.values()) == {RefusalCode.QUEUE_FULL}
        frontend.stats = None
        frontend.until(lambda: frontend.stats is not None)
        assert frontend.stats is not None
        assert frontend.stats.in_flight_steps <= run.config.depth
        worker.serve(frontend, lambda: len(frontend.reasons) + len(frontend.rejections) == 50)
        assert 10 <= len(frontend.reasons) <= 14
        worker.close()


def test_a_flood_into_a_frozen_scheduler_waits_at_its_sender(tmp_path: Path) -> None:
    """Row 24, towards the scheduler: senders are held back, and all that was sent is answered."""
    with Run(tmp_path, max_waiting=50) as run:
        frontend = Frontend(run)
        os.kill(run.process.pid, signal.SIGSTOP)
        sent = 0
        frontend.socket.sndtimeo = 500
        prompt = bytes(4 * 390)
        try:
            while sent < 100_000:
                frontend.send(wire.Submit(sent, prompt, 1, wire.Sampling()))
                sent += 1
        except zmq.Again:
            pass
        os.kill(run.process.pid, signal.SIGCONT)
        assert sent < 100_000, "nothing held the sender back"
        frontend.until(lambda: len(frontend.rejections) == sent - 50, 30)
        worker = LedWorker(run, num_blocks=200)
        worker.serve(frontend, lambda: len(frontend.reasons) == 50)
        worker.close()


def test_what_a_lost_step_wrote_is_never_found() -> None:
    """Row 29: readers behind the writing step may hit its blocks; no epoch outlives it."""
    replica = Replica(num_blocks=40, depth=3)
    first = replica.submit(PROMPT, 3)
    replica.plan()  # the first chunk is in flight
    second = replica.submit(PROMPT, 3)
    while replica.plan():
        pass
    replica.run()
    assert replica.cached[second] > 0
    assert replica.outputs[first] == replica.outputs[second]
    replica.submit([7, *PROMPT], 3)
    replica.plan()
    replica.end_epoch()  # it never retired
    replica.begin_epoch()
    again = replica.submit([7, *PROMPT], 3)
    replica.run()
    assert replica.cached[again] == 0


@pytest.mark.parametrize("num_blocks", range(13, 20))
def test_what_was_matched_is_not_evicted(num_blocks: int) -> None:
    """Row 30: a match is a handle, so making room for its own request cannot take it away."""
    replica = Replica(num_blocks=num_blocks, max_slots=3, max_step_tokens=64)
    for turn in range(12):
        for family in (0, 1, 0):
            replica.submit([family + 1] * 5 + PROMPT[: 20 + turn], 3)
        replica.run()
    assert sum(replica.cached.values()) > 0
    replica.check_idle()
