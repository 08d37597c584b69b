# SPDX-License-Identifier: MIT
"""The real process over real sockets: what comes back, and what a lost or hostile peer does."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted_peers import (
    BLOCK_SIZE,
    VOCAB,
    Frontend,
    Peer,
    Run,
    groups_of,
    start_worker,
    to_worker,
)
from simulated_worker import expected_tokens

from tokenspeed_core.ipc import messages as wire
from tokenspeed_core.ipc.codec import encode
from tokenspeed_core.ipc.messages import FinishReason, RefusalCode
from tokenspeed_core.scheduler import SchedulerEndpointError, SchedulerProcess, find_executable


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with Run(tmp_path) as running:
        yield running


LONG = 2900  # tokens: a test that had no core for a while finds the request still there
LONG_BLOCKS = LONG // BLOCK_SIZE + 100


@pytest.fixture
def long_run(tmp_path: Path) -> Iterator[Run]:
    with Run(tmp_path, max_model_len=LONG + 100) as running:
        yield running


def ready(frontend: Frontend, epoch: int = 1) -> None:
    frontend.until(
        lambda: (
            frontend.welcome is not None
            and frontend.welcome.ready
            and frontend.welcome.epoch == epoch
        )
    )


def idle(frontend: Frontend) -> None:
    """Wait until nothing runs and all blocks are back."""
    frontend.stats = None
    frontend.until(
        lambda: (
            frontend.stats is not None
            and frontend.stats.running == frontend.stats.waiting == 0
            and frontend.stats.in_flight_steps == 0
            and frontend.stats.free_blocks + frontend.stats.cached_blocks
            == frontend.stats.total_blocks
        )
    )


def terminate(run: Run, frontend: Frontend) -> None:
    """Terminate, and wait until the scheduler has taken notice."""
    frontend.until(lambda: frontend.stats is not None and frontend.stats.ready)
    run.process.terminate()
    frontend.until(lambda: frontend.stats is not None and not frontend.stats.ready)


def worker_hello(run: Run, **fields: Any) -> wire.Hello:
    values: dict[str, Any] = {
        "role": wire.Role.WORKER,
        "num_ranks": run.config.num_ranks,
        "num_blocks": 50,
        "block_size": BLOCK_SIZE,
        **fields,
    }
    return run.hello(**values)


def answer(peer: Peer, kind: type[Any]) -> Any:
    """The next message of this kind."""
    while True:
        parts = peer.receive()
        assert parts is not None, f"no {kind.__name__} came"
        message = to_worker.decode(parts[0])
        if isinstance(message, kind):
            return message


def test_tokens_come_back(run: Run, workers: list[Any]) -> None:
    frontend = Frontend(run)
    workers.append(start_worker(run))
    prompts = {1: [1, 2, 3], 2: list(range(40)), 3: list(range(100, 250))}
    for request, prompt in prompts.items():
        frontend.submit(request, prompt, 9)
    frontend.until(lambda: len(frontend.reasons) == 3)
    for request, prompt in prompts.items():
        assert frontend.tokens[request] == expected_tokens(prompt, 9, VOCAB)
        assert frontend.reasons[request] == FinishReason.LENGTH
    idle(frontend)
    assert frontend.stats is not None
    assert frontend.stats.prompt_tokens == sum(map(len, prompts.values()))
    assert frontend.stats.generated_tokens == 27
    assert frontend.stats.dropped_frames == 0


def test_two_ranks_and_two_frontends(tmp_path: Path, workers: list[Any]) -> None:
    with Run(tmp_path, num_ranks=2) as run:
        frontends = [Frontend(run), Frontend(run)]
        workers += [start_worker(run, 1, num_blocks=300), start_worker(run, 0, num_blocks=100)]
        for frontend in frontends:
            ready(frontend)
            assert frontend.welcome is not None
            assert frontend.welcome.num_blocks == 100
            for request in range(20):  # both use the same ids
                frontend.submit(request, [request, 7], 12)
        for frontend in frontends:
            frontend.until(lambda f=frontend: len(f.reasons) == 20)
            for request in range(20):
                assert frontend.tokens[request] == expected_tokens([request, 7], 12, VOCAB)


def test_a_killed_worker_ends_its_requests_and_the_next_epoch_works(
    long_run: Run, workers: list[Any]
) -> None:
    run = long_run
    frontend = Frontend(run)
    workers.append(start_worker(run, num_blocks=LONG_BLOCKS))
    ready(frontend)
    frontend.submit(1, [1, 2, 3], LONG)
    frontend.until(lambda: bool(frontend.tokens.get(1)))
    workers[0].send_signal(signal.SIGKILL)
    frontend.until(lambda: 1 in frontend.reasons)
    assert frontend.reasons[1] == FinishReason.WORKER_LOST
    assert frontend.tokens[1] == expected_tokens([1, 2, 3], len(frontend.tokens[1]), VOCAB)
    frontend.submit(2, [4, 5], 5)  # waits for workers
    workers.append(start_worker(run, num_blocks=LONG_BLOCKS))
    frontend.until(lambda: 2 in frontend.reasons)
    assert frontend.tokens[2] == expected_tokens([4, 5], 5, VOCAB)
    ready(frontend, epoch=2)
    idle(frontend)


def test_a_lost_rank_dismisses_the_others(tmp_path: Path, workers: list[Any]) -> None:
    with Run(tmp_path, num_ranks=2) as run:
        frontend = Frontend(run)
        workers += [start_worker(run, 0), start_worker(run, 1)]
        ready(frontend)
        workers[1].send_signal(signal.SIGKILL)
        assert workers[0].wait(10) == 0  # it got its Shutdown
        workers += [start_worker(run, 0), start_worker(run, 1)]
        ready(frontend, epoch=2)


def test_a_lost_frontend_gives_its_blocks_back(run: Run, workers: list[Any]) -> None:
    watcher, leaver = Frontend(run), Frontend(run)
    workers.append(start_worker(run))
    ready(watcher)
    for request in range(30):
        leaver.submit(request, list(range(50)), 300)
    leaver.until(lambda: len(leaver.tokens) >= 10)
    leaver.close()
    idle(watcher)
    watcher.submit(1, [1], 3)
    watcher.until(lambda: 1 in watcher.reasons)
    assert watcher.tokens[1] == expected_tokens([1], 3, VOCAB)


def test_abort_and_duplicates(long_run: Run, workers: list[Any]) -> None:
    frontend = Frontend(long_run)
    workers.append(start_worker(long_run, num_blocks=LONG_BLOCKS))
    frontend.submit(1, [1, 2], LONG)
    frontend.submit(1, [3, 4], 10)
    frontend.until(lambda: 1 in frontend.rejections and bool(frontend.tokens.get(1)))
    assert frontend.rejections[1] == RefusalCode.DUPLICATE
    for _ in range(2):  # once more is no harm
        frontend.send(wire.Abort(1))
    frontend.send(wire.Abort(77))
    frontend.until(lambda: 1 in frontend.reasons)
    assert frontend.reasons[1] == FinishReason.ABORT
    assert frontend.tokens[1] == expected_tokens([1, 2], len(frontend.tokens[1]), VOCAB)
    idle(frontend)


def test_bad_requests_are_rejected_by_name(run: Run, workers: list[Any]) -> None:
    frontend = Frontend(run)
    frontend.submit(1, [1] * 300, 90)  # queued: nobody knows the pool yet
    frontend.submit(2, [], 1)
    frontend.submit(3, [VOCAB], 1)
    frontend.submit(4, [1], 1, priority=101)
    frontend.submit(5, [1], 1, stop_ids=bytes(4 * 5000))
    workers.append(start_worker(run, num_blocks=40))
    frontend.until(lambda: len(frontend.rejections) == 5)
    assert frontend.rejections == {
        1: RefusalCode.NEVER_FITS,
        2: RefusalCode.EMPTY_PROMPT,
        3: RefusalCode.TOKEN_ID,
        4: RefusalCode.PARAMETER,
        5: RefusalCode.PARAMETER,
    }


def test_garbage_harms_nobody(run: Run, workers: list[Any]) -> None:
    frontend = Frontend(run)
    workers.append(start_worker(run))
    ready(frontend)
    frontend.submit(1, [5, 6], 60)
    dice = random.Random(1)
    strangers = [Peer(run.config.frontend_endpoint), Peer(run.config.worker_endpoint)]
    for _ in range(300):
        noise = dice.randbytes(dice.randrange(80))
        for peer in (frontend, *strangers):
            peer.socket.send(noise)
        strangers[0].socket.send_multipart([noise, noise, b""])
    frontend.until(lambda: 1 in frontend.reasons)
    assert frontend.tokens[1] == expected_tokens([5, 6], 60, VOCAB)
    assert set(frontend.refusals) == {RefusalCode.MALFORMED}
    frontend.until(lambda: frontend.stats is not None and frontend.stats.dropped_frames > 1000)
    for stranger in strangers:
        assert stranger.receive(0.2) is None, "a stranger's noise was answered"
        stranger.close()
    assert run.process.poll() is None


def test_strangers_are_told_to_say_hello(run: Run) -> None:
    frontend = Frontend(run, greet=False)
    frontend.send(wire.Abort(1))
    frontend.until(lambda: frontend.hellos_required == 1)
    worker = Peer(run.config.worker_endpoint)
    worker.send(wire.Heartbeat(1))
    answer(worker, wire.HelloRequired)
    worker.close()


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"token": b"?" * 16}, RefusalCode.TOKEN),
        ({"token": b""}, RefusalCode.TOKEN),
        ({"version": 1}, RefusalCode.VERSION),
    ],
)
def test_a_wrong_hello_is_refused(run: Run, fields: dict[str, Any], code: int) -> None:
    frontend = Frontend(run, greet=False)
    frontend.send(run.hello(**fields))
    frontend.until(lambda: frontend.refusals == [code])
    frontend.submit(1, [1], 1)
    frontend.until(lambda: frontend.hellos_required == 1)
    worker = Peer(run.config.worker_endpoint)
    worker.send(worker_hello(run, **fields))
    assert answer(worker, wire.Refused).code == code
    worker.close()


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"rank": 0}, RefusalCode.RANK),  # taken
        ({"rank": 2}, RefusalCode.RANK),
        ({"rank": -1}, RefusalCode.RANK),
        ({"rank": 1, "num_ranks": 3}, RefusalCode.RANK),
        ({"rank": 1, "block_size": 8}, RefusalCode.SHAPE),
        ({"rank": 1, "program_hash": b"other"}, RefusalCode.SHAPE),
        ({"rank": 1, "num_blocks": 1}, RefusalCode.SHAPE),
        ({"rank": 1, "num_blocks": 2**60}, RefusalCode.SHAPE),
        ({"rank": 1, "max_drafts": -1}, RefusalCode.SHAPE),
        ({"rank": 1, "group_kinds": b"\0"}, RefusalCode.SHAPE),
        ({"rank": 1, **groups_of((0, 4, 0, 1), (1, 4, 8, 1))}, RefusalCode.SHAPE),
    ],
)
def test_ranks_must_agree(tmp_path: Path, fields: dict[str, Any], code: int) -> None:
    with Run(tmp_path, num_ranks=2) as run:
        first, second = (Peer(run.config.worker_endpoint) for _ in range(2))
        first.send(worker_hello(run, rank=0))
        assert not answer(first, wire.Welcome).ready
        second.send(worker_hello(run, **fields))
        assert answer(second, wire.Refused).code == code
        second.send(worker_hello(run, rank=1))
        assert answer(second, wire.Welcome).ready
        assert answer(first, wire.Welcome).ready
        first.close()
        second.close()


def test_late_double_and_foreign_results_change_nothing_and_disagreement_ends_the_epoch(
    run: Run,
) -> None:
    frontend = Frontend(run)
    worker = Peer(run.config.worker_endpoint)
    worker.send(worker_hello(run))
    assert answer(worker, wire.Welcome).ready
    frontend.submit(1, [1], 100)
    parts = worker.receive()
    while parts is not None and len(parts) == 1:  # heartbeats
        parts = worker.receive()
    assert parts is not None
    digest = parts[1]
    tokens = b"\x07\x00\x00\x00"
    for epoch, step, seal in [(2, 1, digest), (1, 9, digest), (1, 1, bytes(16)), (1, 1, b"")]:
        worker.send(wire.StepResult(epoch, step, seal, tokens, b""))
        worker.send(wire.StepAck(epoch, step, seal, bytes(16)))
    frontend.until(lambda: frontend.stats is not None and frontend.stats.dropped_frames == 8)
    assert 1 not in frontend.tokens
    worker.send(wire.StepResult(1, 1, digest, tokens, b""))
    worker.send(wire.StepResult(1, 1, digest, tokens, b""))
    worker.send(wire.StepAck(1, 1, digest, b"other tokens !!!"))
    frontend.until(lambda: 1 in frontend.reasons)
    assert frontend.reasons[1] == FinishReason.WORKER_LOST
    assert "other tokens" in answer(worker, wire.Shutdown).reason
    worker.close()


def test_a_failing_worker_is_heard(run: Run) -> None:
    frontend = Frontend(run)
    worker = Peer(run.config.worker_endpoint)
    worker.send(worker_hello(run))
    answer(worker, wire.Welcome)
    frontend.submit(1, [1], 100)
    ready(frontend)
    frontend.until(lambda: frontend.stats is not None and frontend.stats.in_flight_steps > 0)
    worker.send(wire.WorkerFailed(0, 1, 1, "out of\nmemory"))
    frontend.until(lambda: 1 in frontend.reasons)
    assert frontend.reasons[1] == FinishReason.WORKER_LOST
    assert "failed in step 1: out of memory\n" in run.log.read_text()
    worker.close()


def test_a_second_hello_starts_a_frontend_anew(long_run: Run, workers: list[Any]) -> None:
    frontend = Frontend(long_run)
    workers.append(start_worker(long_run, num_blocks=LONG_BLOCKS))
    frontend.submit(1, [1], LONG)
    frontend.until(lambda: bool(frontend.tokens.get(1)))
    frontend.send(long_run.hello())
    idle(frontend)
    frontend.tokens.clear()
    frontend.submit(1, [2], 3)
    frontend.until(lambda: 1 in frontend.reasons)
    assert frontend.tokens[1] == expected_tokens([2], 3, VOCAB)


def test_terminate_finishes_what_was_accepted(run: Run, workers: list[Any]) -> None:
    frontend = Frontend(run)
    workers.append(start_worker(run))
    ready(frontend)
    for request in range(30):
        frontend.submit(request, [request], 200)
    frontend.until(lambda: len(frontend.tokens) >= 4)
    terminate(run, frontend)
    frontend.submit(99, [1], 1)
    frontend.until(lambda: len(frontend.reasons) == 30 and 99 in frontend.rejections)
    assert frontend.rejections[99] == RefusalCode.DRAINING
    assert set(frontend.reasons.values()) == {FinishReason.LENGTH}
    assert run.process.wait(10) == 0
    assert workers[0].wait(10) == 0


def test_a_second_terminate_ends_at_once(long_run: Run, workers: list[Any]) -> None:
    run = long_run
    frontend = Frontend(run)
    workers.append(start_worker(run, num_blocks=LONG_BLOCKS))
    ready(frontend)
    frontend.submit(1, [1], LONG)
    frontend.until(lambda: bool(frontend.tokens.get(1)))
    os.kill(workers[0].pid, signal.SIGSTOP)  # so that it cannot finish
    terminate(run, frontend)
    run.process.terminate()
    frontend.until(lambda: 1 in frontend.reasons)
    assert run.process.wait(10) == 0
    os.kill(workers[0].pid, signal.SIGCONT)
    assert workers[0].wait(10) == 0


def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    with Run(tmp_path, parent_pid=parent.pid) as run:
        frontend = Frontend(run)
        assert frontend.welcome is not None
        parent.kill()
        parent.wait()
        assert run.process.wait(10) == 0
        assert "the launcher is gone" in run.log.read_text()


def test_an_idle_process_burns_no_cpu(run: Run, workers: list[Any]) -> None:
    frontend = Frontend(run)
    workers.append(start_worker(run))
    ready(frontend)

    def cpu_ticks() -> int:
        fields = Path(f"/proc/{run.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])

    before = cpu_ticks()
    time.sleep(1.0)
    # A spinning loop would use about 100 ticks; heartbeats every 50 ms use next to none.
    assert cpu_ticks() - before < 30


def test_what_cannot_start_says_why(tmp_path: Path) -> None:
    def message(*arguments: str) -> str:
        done = subprocess.run(
            [str(find_executable()), *arguments], capture_output=True, check=False
        )
        assert done.returncode == 2
        return done.stderr.decode()

    assert "--config FILE is missing" in message()
    assert "unknown argument --what" in message("--what")
    assert "cannot read" in message("--config", str(tmp_path / "missing"))
    broken = tmp_path / "broken"
    broken.write_bytes(b"\x91\x01")
    assert "does not belong" in message("--config", str(broken))
    with Run(tmp_path / "a", max_step_tokens=1) as run:
        assert run.process.wait(10) == 2
        assert "max_step_tokens is 1" in run.log.read_text()
    good = tmp_path / "good"
    good.write_bytes(encode(run.config))
    assert "cannot open libzmq" in message("--config", str(good), "--libzmq", "/nowhere.so")


def test_a_socket_path_that_is_too_long_is_named(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    with pytest.raises(SchedulerEndpointError, match="use a shorter run directory"):
        Run(long)
    assert not (long / "scheduler.msgpack").exists()


def test_the_configuration_is_private(run: Run) -> None:
    assert run.process.config_path.stat().st_mode & 0o777 == 0o600
    assert isinstance(run.process, SchedulerProcess)
