# SPDX-License-Identifier: MIT
"""The real process for long: random requests, aborts, lost workers and frontends.

`--events` says how many requests, aborts and sampled tokens pass through the loop (10^7 under the
thread sanitizer: `make tsan LOOP_EVENTS=10000000`).
"""

import random
import subprocess
from pathlib import Path

import pytest
from scripted_peers import VOCAB, Frontend, Run, start_worker
from simulated_worker import expected_tokens

from tokenspeed_core.ipc import messages as wire
from tokenspeed_core.ipc.messages import FinishReason

LIVE = 48  # requests of the frontend at a time
CHECKED = 20  # one answer in so many is compared token by token


class Load:
    """Random requests of one frontend, and what must come back."""

    def __init__(self, frontend: Frontend, rng: random.Random) -> None:
        self.frontend = frontend
        self.rng = rng
        self.asked: dict[int, tuple[list[int], int]] = {}
        self.events = 0
        self.ended = 0
        self._last_id = 0

    def submit(self) -> None:
        rng = self.rng
        self._last_id += 1
        family = rng.randrange(8)
        prompt = [(family * 31 + at) % VOCAB for at in range(rng.randrange(1, 120))]
        prompt += [rng.randrange(VOCAB) for _ in range(rng.randrange(4))]
        count = rng.choice([1, 5, 40, 250])
        self.asked[self._last_id] = (prompt, count)
        self.frontend.submit(
            self._last_id,
            prompt,
            count,
            priority=rng.randrange(-3, 4),
            session=rng.choice(["", "one", "two", "three"]),
        )
        self.events += 1

    def abort(self) -> None:
        self.frontend.send(wire.Abort(self.rng.choice(list(self.asked))))
        self.events += 1

    def collect(self) -> None:
        """Check and forget the requests that ended."""
        frontend = self.frontend
        assert not frontend.rejections
        assert not frontend.refusals
        for request, reason in list(frontend.reasons.items()):
            prompt, count = self.asked.pop(request)
            tokens = frontend.tokens.pop(request, [])
            del frontend.reasons[request]
            frontend.cached.pop(request, None)
            self.events += len(tokens)
            self.ended += 1
            if reason == FinishReason.LENGTH:
                assert len(tokens) == count
            else:
                assert reason in (FinishReason.ABORT, FinishReason.WORKER_LOST)
            if self.ended % CHECKED == 0:
                assert tokens == expected_tokens(prompt, len(tokens), VOCAB)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_a_long_load_with_losses(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    goal = request.config.getoption("--events", default=None) or 200_000
    rng = random.Random(11)
    workers: list[subprocess.Popen[bytes]] = []
    losses = 0
    with Run(tmp_path, max_waiting=LIVE) as run:
        try:
            load = Load(Frontend(run), rng)
            workers.append(start_worker(run))
            while load.events < goal:
                while len(load.asked) < LIVE:
                    load.submit()
                if rng.random() < 0.3:
                    load.abort()
                if load.events // 100_000 > losses:
                    losses += 1
                    workers[-1].kill()
                    workers[-1].wait()
                    workers.append(start_worker(run))
                    leaver = Frontend(run)
                    leaver.submit(1, [1] * 50, 300)
                    leaver.until(lambda one=leaver: bool(one.tokens), timeout=60)
                    leaver.close()
                ended = rng.randrange(1, 5)
                load.frontend.until(
                    lambda many=ended: len(load.frontend.reasons) >= many, timeout=60
                )
                load.collect()
            load.frontend.until(lambda: len(load.frontend.reasons) == len(load.asked), timeout=60)
            load.collect()
            frontend = load.frontend
            frontend.stats = None
            frontend.until(
                lambda: (
                    frontend.stats is not None
                    and frontend.stats.running == frontend.stats.waiting == 0
                    and frontend.stats.free_blocks + frontend.stats.cached_blocks
                    == frontend.stats.total_blocks
                )
            )
            print(f"{load.events} events, {load.ended} requests, {losses} lost workers")
            run.process.terminate()
            assert run.process.wait(20) == 0
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
    assert "ThreadSanitizer" not in run.log.read_text()
