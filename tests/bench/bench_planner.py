# SPDX-License-Identifier: MIT
"""Times one scheduler step on the host.

A timed step is, inside C++: plan, encode the StepPlan frame and its digest, decode the StepResult
frame, advance.  Not timed: making the result (the worker's work) and sockets.  The steps run in
lock step in the steady state of decode, with prefix caching on.

The peer, the `tokenspeed-scheduler` package if it is installed, does next_execution_plan, reads the
rows, and advances, through its Python binding; `--peer-python` names an interpreter that has it.
"""

import argparse
import random
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from tokenspeed_core.ipc.codec import int32_column
from tokenspeed_core.scheduler._scheduler import Scheduler

VOCAB = 32_000
BLOCK_SIZE = 16
STEPS = 1500
PASSES = 3
PEER = "tokenspeed-scheduler"


def make(max_slots: int, num_blocks: int, block_size: int = BLOCK_SIZE) -> Scheduler:
    core = Scheduler(
        max_slots=max_slots,
        max_step_tokens=8192 + max_slots,
        max_model_len=200_000,
        vocab_size=VOCAB,
        max_waiting=100_000,
        hash_key=b"benchmark hash k",
    )
    core.begin_epoch(1, num_blocks, block_size)
    return core


def prompt(length: int, seed: int) -> bytes:
    return int32_column(random.Random(seed).choices(range(VOCAB), k=length))


def submit(core: Scheduler, request: int, length: int, max_tokens: int) -> None:
    refused = core.submit(1, request, prompt(length, request), max_tokens)
    assert refused is None, refused


def warm_up(core: Scheduler, running: int) -> Scheduler:
    """Run until `running` requests decode, then a little more."""
    generated = 0
    while (now := core.stats()["generated_tokens"]) - generated < running:
        generated = now
        assert core.time_steps(1)
    core.time_steps(64)
    return core


def decoding(running: int) -> Scheduler:
    """`running` requests with prompts of 512 tokens and a few."""
    core = make(running, running * 200 + 100)
    for request in range(running):
        submit(core, request, 512 + request % BLOCK_SIZE, 2500)
    return warm_up(core, running)


def full_cache() -> Scheduler:
    """256 requests of 4k tokens in 40k blocks of 64; what they leave is full of cached blocks."""
    core = make(256, 40_001, 64)
    request = 10**6
    while core.stats()["free_blocks"] > 1:  # the last, partial block of a prompt is never cached
        submit(core, request, 60_000, 1)
        request += 1
        while core.time_steps(1):
            pass
    for request in range(256):
        submit(core, request, 4096 + request % 64, 2500)
    warm_up(core, 256)
    stats = core.stats()
    assert stats["free_blocks"] <= 1
    assert stats["cached_blocks"] > 10_000
    return core


def long_queue() -> Scheduler:
    """16 running and 64 waiting requests with prompts of 50k tokens; the pool holds the 16."""
    core = make(64, 16 * (50_000 // BLOCK_SIZE + 170) + 100)
    for request in range(80):
        submit(core, request, 50_000, 2500)
    warm_up(core, 16)
    stats = core.stats()
    assert (stats["running"], stats["waiting"]) == (16, 64), stats
    return core


CASES: dict[str, Callable[[], Scheduler]] = {
    "running=1": lambda: decoding(1),
    "running=64": lambda: decoding(64),
    "running=256": lambda: decoding(256),
    "running=1024": lambda: decoding(1024),
    "running=256 context=4k full cache": full_cache,
    "running=16 waiting=64 prompt=50k": long_queue,
}


def quantile(values: list[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def measure(case: str) -> dict[str, list[float]]:
    """One value a pass of each metric, in microseconds."""
    passes: dict[str, list[float]] = {"step_us_p50": [], "step_us_p99": []}
    core = CASES[case]()
    running = core.stats()["running"]
    for _ in range(PASSES):
        times = [t / 1000 for t in core.time_steps(STEPS // PASSES)]
        assert core.stats()["running"] == running, "a request ended inside the measurement"
        passes["step_us_p50"].append(statistics.median(times))
        passes["step_us_p99"].append(quantile(times, 0.99))
    core.check()
    return passes


def peer_step(python: str, running: int) -> list[float] | None:
    """Median microseconds of the peer's step, a value a pass; None if it is not installed."""
    script = Path(__file__).with_name("bench_planner_peer.py")
    installed = subprocess.run([python, "-c", "import tokenspeed_scheduler"], capture_output=True)
    if installed.returncode:
        return None
    done = subprocess.run(
        [python, str(script), str(running), str(PASSES)], capture_output=True, check=True
    )
    medians: list[float] = msgspec.json.decode(done.stdout, type=list[float])
    return medians


def rows(cases: list[str], python: str) -> list[dict[str, Any]]:
    out = []
    for case in cases:
        ours = measure(case)
        peer = peer_step(python, int(case.split("=")[1])) if case.count("=") == 1 else None
        for metric, values in ours.items():
            beside = peer if peer and metric == "step_us_p50" else None
            out.append(
                {
                    "bench": "planner",
                    "case": case,
                    "metric": metric,
                    "unit": "us",
                    "ours": round(statistics.median(values), 2),
                    "peer": round(statistics.median(beside), 1) if beside else None,
                    "peer_name": PEER if beside else None,
                    "spread": [round(min(values), 2), round(max(values), 2)],
                }
            )
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print rows as JSON lines")
    parser.add_argument("--case", action="append", choices=list(CASES), help="only these")
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter with the peer")
    options = parser.parse_args()
    table = rows(options.case or list(CASES), options.peer_python)
    for row in table:
        if options.json:
            print(msgspec.json.encode(row).decode())
        else:
            peer = f"{row['peer']:>10} {row['peer_name']}" if row["peer"] else ""
            print(f"{row['case']:<36}{row['metric']:<14}{row['ours']:>9} us{peer}")


if __name__ == "__main__":
    main()
