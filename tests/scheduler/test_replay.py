# SPDX-License-Identifier: MIT
"""The black box of a real process: it replays bit for bit, however the process ended."""

import os
import random
import secrets
import signal
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted_peers import VOCAB, Frontend, Run, start_worker

from tokenspeed_core.__main__ import main
from tokenspeed_core.ipc import messages as wire
from tokenspeed_core.scheduler._scheduler import Played, Replay, SchedulerError

BOX_BYTES = 4 * 1024 * 1024
BEGIN_EPOCH = 5  # kinds as in csrc/record/event.h


@pytest.fixture
def box(tmp_path: Path) -> Path:
    return tmp_path / "box"


def recorded(tmp_path: Path, box: Path, **changes: Any) -> Run:
    settings = {"record_path": str(box), "record_bytes": BOX_BYTES, **changes}
    return Run(tmp_path / "run", hash_key=secrets.token_bytes(16), **settings)


def traffic(run: Run, seed: int, requests: int) -> None:
    """Random requests of two frontends, aborted and left alone, over two epochs."""
    dice = random.Random(seed)
    stays, leaves = Frontend(run), Frontend(run)
    worker = start_worker(run, num_blocks=60)
    for request in range(requests):
        family = dice.randrange(3)
        prompt = [(family * 7 + i * i) % VOCAB for i in range(dice.randrange(1, 120))]
        salt = dice.choice([b"", b"one"])
        who = dice.choice([stays, leaves])
        who.submit(request, prompt, dice.randrange(1, 60), seed=request, salt=salt)
        if dice.randrange(6) == 0:
            who.send(wire.Abort(dice.randrange(request + 1), dice.randrange(-1, 4)))
        if request == requests // 2:
            stays.until(lambda: stays.stats is not None and stays.stats.steps > 0)
            worker.kill()
            worker.wait()
            worker = start_worker(run, num_blocks=40)
    leaves.close()
    stays.until(
        lambda: (
            stays.stats is not None
            and stays.stats.epoch == 2
            and stays.stats.running == stays.stats.waiting == 0
        )
    )
    worker.kill()
    worker.wait()
    stays.close()


def play(box: Path, *, verify: bool = False) -> Iterator[Played]:
    replay = Replay(str(box))
    while (played := replay.next()) is not None:
        assert played.same, (played.index, played.event, played.outcome)
        if verify and played.replayed:
            replay.check()
        yield played


def records(box: bytes) -> Iterator[tuple[int, int]]:
    """Offset and kind of each record that is replayed."""
    at = 4096
    end = at + struct.unpack_from("<Q", box, 40)[0]
    while at < end:
        size, kind = struct.unpack_from("<IH", box, at)
        yield at, kind
        at += 32 + -(-size // 8) * 8


def test_a_killed_process_replays_bit_for_bit(
    tmp_path: Path, box: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with recorded(tmp_path, box) as run:
        traffic(run, seed=1, requests=60)
        os.kill(run.process.pid, signal.SIGKILL)
        run.process.wait(10)
    assert stat.S_IMODE(box.stat().st_mode) == 0o600
    events = list(play(box, verify=True))
    assert [played.index for played in events] == list(range(len(events)))
    assert all(played.replayed and played.settled for played in events)
    kinds = {played.event.split(" request")[0].split(" step")[0] for played in events}
    assert {"submit", "abort", "advance", "end epoch"} <= kinds
    assert sum(played.step > 0 for played in events) > 50
    assert not Replay(str(box)).closed

    assert main(["scheduler", "replay", str(box), "--events", "--until", "5"]) == 0
    printed = capsys.readouterr().out
    assert "begin epoch 1: 60 blocks of 4 tokens" in printed
    assert "5 plans, all as recorded" in printed


def test_a_box_without_room_shows_its_latest_events(tmp_path: Path, box: Path) -> None:
    with recorded(tmp_path, box, record_bytes=64 * 1024) as run:
        traffic(run, seed=2, requests=150)
        run.process.terminate()
        assert run.process.wait(10) == 0
    assert box.stat().st_size == 64 * 1024
    assert Replay(str(box)).closed
    events = list(play(box))
    exact = [played.index for played in events if played.replayed]
    shown = [played.index for played in events if not played.replayed]
    assert exact == list(range(len(exact)))
    assert shown == list(range(shown[0], shown[0] + len(shown)))
    assert shown[0] > len(exact)
    assert events[-1].event == "abort all"  # the process's last word


def test_boxes_of_crashes_are_kept_and_others_are_not(tmp_path: Path, box: Path) -> None:
    for seed in range(5):
        with recorded(tmp_path, box) as run:
            traffic(run, seed=seed, requests=2 + seed)
    assert not Path(f"{box}.4").exists()
    submits = [
        sum("submit" in played.event for played in play(path))
        for path in (box, Path(f"{box}.1"), Path(f"{box}.2"), Path(f"{box}.3"))
    ]
    assert submits == [6, 5, 4, 3]


@pytest.mark.parametrize("where", ["missing/box", "full"])
def test_no_room_for_a_box_is_one_line_and_no_reason_not_to_serve(
    tmp_path: Path, where: str
) -> None:
    """Row 25: a disk that is full costs the record, not the service."""
    size = 2**60 if where == "full" else BOX_BYTES
    with recorded(tmp_path, tmp_path / where, record_bytes=size) as run:
        traffic(run, seed=3, requests=5)
        assert run.log.read_text().count("not recording") == 1
        assert run.process.poll() is None


def test_what_is_no_box_is_said(tmp_path: Path, box: Path) -> None:
    with pytest.raises(SchedulerError, match="cannot be read"):
        Replay(str(box))
    box.write_bytes(b"x" * 10_000)
    with pytest.raises(SchedulerError, match="no black box"):
        Replay(str(box))
    with recorded(tmp_path, tmp_path / "good") as run:
        traffic(run, seed=4, requests=5)
    good = (tmp_path / "good").read_bytes()
    dice = random.Random(5)
    heads = [offset for offset, kind in records(good) if kind != BEGIN_EPOCH]
    for _ in range(300):  # whatever is damaged: an error or another outcome, never a crash
        damaged = bytearray(good)
        at = dice.choice([dice.randrange(64), dice.choice(heads) + dice.randrange(40)])
        damaged[at] ^= 1 << dice.randrange(8)
        box.write_bytes(damaged)
        try:
            replay = Replay(str(box))
            while replay.next() is not None:
                pass
        except SchedulerError:
            pass


def test_a_difference_is_named(
    tmp_path: Path, box: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with recorded(tmp_path, box) as run:
        traffic(run, seed=6, requests=8)
    damaged = bytearray(box.read_bytes())
    plans = [played.index for played in play(box) if played.step > 0]
    at = list(records(bytes(damaged)))[plans[3]][0]
    damaged[at + 20] ^= 1
    box.write_bytes(damaged)
    assert main(["scheduler", "replay", str(box)]) == 1
    assert f"event {plans[3]} (plan at" in capsys.readouterr().err


@pytest.mark.parametrize(("style", "start"), [("mermaid", "stateDiagram"), ("dot", "digraph")])
def test_the_diagram_is_printed(style: str, start: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scheduler", "--diagram", style]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(start)
    for state in ("Waiting", "Prefilling", "Decoding", "Preempted", "Finished"):
        assert state in printed
    assert main(["scheduler"]) == 2
