# SPDX-License-Identifier: MIT
"""Benches in one process a rank, which run the same steps side by side; rank 0 prints."""

import multiprocessing
import sys
import tempfile
import time
from multiprocessing.connection import wait

import torch

from ..device_gaps import DeviceGaps
from ..execution import execution
from ..start_clock import timed
from .case import CHUNK, cases, measure
from .collective_times import collective_rows
from .dummy import dummy_runner
from .floor import Floor
from .offline import Offline
from .options import Options
from .shape import SHAPES

_GRACE_S = 10.0


class RankDiedError(RuntimeError):
    """A rank of a bench ended before its time; it has printed why."""


def time_ranks(options: Options) -> None:
    """Run a bench's cases and print their rows.

    Raises:
        RankDiedError: a rank died; the others were ended.
    """
    with tempfile.TemporaryDirectory() as directory:
        count = options.engine(directory).num_ranks
        if count == 1:
            time_rank(options)
            return
        context = multiprocessing.get_context("spawn")
        meet = f"file://{directory}/ranks"
        ranks = [
            context.Process(target=time_rank, args=(options, rank, meet)) for rank in range(count)
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


def time_rank(options: Options, rank: int = 0, rendezvous: str = "") -> None:
    """Run a bench's cases as one of its ranks, which meet at `rendezvous`."""
    started = time.perf_counter()
    runner = dummy_runner(options, rank, rendezvous)
    loaded = time.perf_counter()
    with timed("graphs"):
        new_executor = execution(runner, CHUNK, options.graphs)
    captured = time.perf_counter()
    if rank == 0:
        print(
            f"start: weights and cache {loaded - started:.1f} s, kernels and graphs "
            f"{captured - loaded:.1f} s; {runner.num_blocks} KV blocks",
            file=sys.stderr,
        )
    on_gpu = runner.device.type == "cuda"
    card = torch.cuda.get_device_name(runner.device) if on_gpu else "cpu"
    shape = SHAPES[options.shape]
    floor = Floor.of(runner, shape)
    executor = DeviceGaps(new_executor(None)) if on_gpu else new_executor(None)
    offline = Offline(executor, runner.block_size, runner.num_blocks, int(shape["vocab_size"]))
    chosen = cases(options.shape, options.bench)
    for case in chosen[: options.most or len(chosen)]:
        rows = list(measure(case, offline, options.name, card, floor.ms(case, card)))
        if runner.ranks.world > 1 and options.bench == "decode":
            rows += collective_rows(case, runner, options.name, card)
        for row in rows if rank == 0 else ():
            print(row.json(), flush=True)
    runner.ranks.abort()
