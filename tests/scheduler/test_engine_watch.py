# SPDX-License-Identifier: MIT
"""The launcher's eye on a real scheduler: silence is a fault only of who was listened to."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from scripted_peers import Run, start_worker

from tokenspeed_core import engine_watch
from tokenspeed_core.engine_watch import EngineWatch, WatchLimits
from tokenspeed_core.ipc.run_directory import RunDirectory


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def test_a_launcher_that_stood_still_blames_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, paused_s = time.monotonic, 0.0
    monkeypatch.setattr(engine_watch.time, "monotonic", lambda: clock() + paused_s)
    at = RunDirectory.create(Path("/tmp"))
    endpoints = {"token": at.token, "frontend_endpoint": at.frontend_endpoint}
    is_ready, is_over = threading.Event(), threading.Event()
    said: list[str] = []
    with Run(at.path, heartbeat_ms=400, **endpoints) as run:
        limits = WatchLimits(silence_s=2.0)
        watch = EngineWatch(at, limits, is_ready.set, said.append, said.append, lambda: True)
        thread = threading.Thread(target=watch.follow, args=(is_over.is_set,))
        worker = start_worker(run)
        thread.start()
        try:
            assert is_ready.wait(60)
            for _ in range(5):  # mostly while nothing comes
                paused_s += 100.0
                time.sleep(0.3)
            assert not said
            os.kill(run.process.pid, signal.SIGSTOP)
            until(lambda: said)
            assert said[0].startswith("the scheduler was silent for 2")
            os.kill(run.process.pid, signal.SIGCONT)
        finally:
            is_over.set()
            thread.join()
            worker.kill()
            worker.wait()
    at.remove()
