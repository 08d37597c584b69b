# SPDX-License-Identifier: MIT
"""Benches in one process a rank, which run the same steps side by side; rank 0 prints."""

import multiprocessing
import sys
import tempfile
import time
from multiprocessing.connection import wait
from multiprocessing.queues import SimpleQueue
from typing import Any

import attrs
import torch

from ..device_gaps import DeviceGaps
from ..execution import execution
from ..runner import Runner
from ..start_clock import timed
from .case import CHUNK, cases, measure
from .collective_times import collective_rows
from .dummy import dummy_runner
from .floor import Floor
from .offline import Offline
from .options import Options
from .row import Row
from .shape import SHAPES

_GRACE_S = 10.0


class RankDiedError(RuntimeError):
    """A rank of a bench ended before its time; it has printed why."""


def time_ranks(options: Options) -> list[Row]:
    """Run a bench's cases, print their rows and return them.

    Raises:
        RankDiedError: a rank died; the others were ended.
    """
    with tempfile.TemporaryDirectory() as directory:
        count = options.engine(directory).num_ranks
        if count == 1:
            return time_rank(options, _runner(options))
        context = multiprocessing.get_context("spawn")
        meet = f"file://{directory}/ranks"
        printed = context.SimpleQueue()
        ranks = [
            context.Process(target=_tell_rows, args=(printed, options, rank, meet))
            for rank in range(count)
        ]
        for each in ranks:
            each.start()
        alive = {each.sentinel: each for each in ranks}
        try:
            while alive:
                for sentinel in wait(list(alive)):
                    ended = alive.pop(sentinel)  # type: ignore[arg-type]
                    ended.join()
                    if ended.exitcode:
                        raise RankDiedError(
                            f"rank {ranks.index(ended)} of {count} ended with {ended.exitcode}"
                        )
        finally:
            for each in ranks:
                each.terminate()
                each.join(_GRACE_S)
                each.kill()
        return [Row(**attributes) for attributes in printed.get()]


def _tell_rows(
    printed: "SimpleQueue[list[dict[str, Any]]]", options: Options, rank: int, rendezvous: str
) -> None:
    runner = _runner(options, rank, rendezvous)
    rows = time_rank(options, runner)
    if rank == 0:
        printed.put([attrs.asdict(row) for row in rows])
    runner.ranks.leave()
    runner.ranks.exit(0)


def _runner(options: Options, rank: int = 0, rendezvous: str = "") -> Runner:
    started = time.perf_counter()
    runner = dummy_runner(options, rank, rendezvous)
    if rank == 0:
        print(
            f"start: weights and cache {time.perf_counter() - started:.1f} s; "
            f"{runner.num_blocks} KV blocks",
            file=sys.stderr,
        )
    return runner


def time_rank(options: Options, runner: Runner) -> list[Row]:
    """Run a bench's cases as one of its ranks; rank 0 prints."""
    rank = runner.ranks.rank
    started = time.perf_counter()
    with timed("graphs"):
        new_executor = execution(runner, CHUNK, options.graphs)
    if rank == 0:
        captured = time.perf_counter() - started
        print(f"start: kernels and graphs {captured:.1f} s", file=sys.stderr)
    on_gpu = runner.device.type == "cuda"
    card = torch.cuda.get_device_name(runner.device) if on_gpu else "cpu"
    shape = SHAPES[options.shape]
    floor = Floor.of(runner, shape)
    executor = DeviceGaps(new_executor(None)) if on_gpu else new_executor(None)
    offline = Offline(executor, runner.block_size, runner.num_blocks, int(shape["vocab_size"]))
    chosen = cases(options.shape, options.bench)
    found = []
    for case in chosen[: options.most or len(chosen)]:
        rows = list(measure(case, offline, options.name, card, floor.ms(case, card)))
        if runner.ranks.world > 1 and options.bench == "decode":
            rows += collective_rows(case, runner, options.name, card)
        for row in rows if rank == 0 else ():
            print(row.json(), flush=True)
        found += rows
    return found
