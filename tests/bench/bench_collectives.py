# SPDX-License-Identifier: MIT
"""Latency of collectives between GPUs by size: sums by every way that we have, beside NCCL's own.

    python tests/bench/bench_collectives.py [--json] [--ranks N] [--device cpu]

Without two GPUs it says so and ends; with `--device cpu` ranks meet over gloo instead.  Sizes are
those of what a rank has before.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial

import attrs
import torch
import torch.distributed as dist
from torch import Tensor

from tokenspeed_core.collectives import Collectives
from tokenspeed_core.rank_groups import Group, RankGroups
from tokenspeed_core.rank_sums import RankSums, all_gather, microseconds

# Its name from torch 2.13 on, and before.
reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
# 8 KiB to 128 MiB, and between: libraries change their ways just above powers of two.
SIZES = sorted(size << power for power in range(12, 27) for size in (2, 3))[:-1]
REPEATS = 5


@attrs.frozen
class Timed:
    """What is timed: a collective, how it is done, and the library's own name of the same."""

    name: str
    run: Callable[[Tensor], object]
    peer: str
    library: Callable[[Tensor], object]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args()
    found = torch.cuda.device_count()
    if options.device == "cuda" and found < options.ranks:
        print(f"skipped: {options.ranks} GPUs are needed, torch finds {found}", file=sys.stderr)
        return 0
    with tempfile.TemporaryDirectory() as directory:
        arguments = (options.ranks, options.device, f"file://{directory}/ranks", options.json)
        torch.multiprocessing.spawn(run_rank, arguments, nprocs=options.ranks)
    return 0


def run_rank(rank: int, world: int, kind: str, rendezvous: str, as_json: bool) -> None:
    device = torch.device("cuda", rank) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(device)
    ranks = RankGroups.join({"tp": (tuple(range(world)),)}, world, rank, rendezvous, device)
    collectives = Collectives.of(ranks)
    sums = RankSums.of(ranks.by_axis["tp"], ranks)
    for size in SIZES if kind == "cuda" else SIZES[:10]:
        x = torch.randn(size // 2, device=device).bfloat16()
        for timed in what(x, collectives, sums, ranks.by_axis["tp"]):
            pairs = [
                (spent(timed.run, x, device), spent(timed.library, x, device))
                for _ in range(REPEATS)
            ]
            if rank == 0:
                mark = " <- chosen" if timed.name.endswith(f"by {sums.choice(size)}") else ""
                show(size, timed, pairs, kind, as_json, mark)
    ranks.leave()
    ranks.exit(0)


def what(x: Tensor, collectives: Collectives, sums: RankSums, group: Group) -> Iterator[Timed]:
    """Yield each way to sum, then the other collectives of a program."""
    ways, on = group.size, group.process_group
    held, whole = x.clone(), x.new_empty(ways * len(x))
    for name, way in sums.ways(x).items():
        yield Timed(f"all_reduce by {name}", way, "all-reduce", partial(_summed, held, on))
    yield Timed(
        "all_gather", lambda y: collectives.all_gather(y, "tp", 0), "all-gather",
        lambda y: (all_gather(whole, y, group=on), whole)[1],
    )  # fmt: skip
    part = x.new_empty(len(x) // ways)
    yield Timed(
        "reduce_scatter", lambda y: collectives.reduce_scatter(x, "tp", 0), "reduce-scatter",
        lambda y: (reduce_scatter(part, y, group=on), part)[1],
    )  # fmt: skip
    yield Timed(
        "all_to_all", lambda y: collectives.all_to_all(y, "tp", 0, 0), "all-to-all",
        lambda y: (dist.all_to_all_single(held, x, group=on), held)[1],
    )  # fmt: skip


def _summed(held: Tensor, group: dist.ProcessGroup, x: Tensor) -> Tensor:
    """Sum by the library, in place on a copy that all calls share."""
    dist.all_reduce(held, group=group)
    return held


def spent(way: Callable[[Tensor], object], x: Tensor, device: torch.device) -> float:
    if device.type == "cuda":
        return microseconds(lambda _: way(x), x, device)
    way(x)
    begun = time.perf_counter()
    for _ in range(10):
        way(x)
    return (time.perf_counter() - begun) * 1e5


def show(
    size: int, timed: Timed, pairs: list[tuple[float, float]], kind: str, as_json: bool, mark: str
) -> None:
    ours, theirs = zip(*pairs, strict=True)
    peer = f"{'nccl' if kind == 'cuda' else 'gloo'} {timed.peer}"
    row = {
        "bench": "collectives", "case": f"{size >> 10} KiB", "metric": timed.name, "unit": "us",
        "ours": round(statistics.median(ours), 2),
        "peer": round(statistics.median(theirs), 2), "peer_name": peer,
        "spread": round(max(ours) - min(ours), 2),
    }  # fmt: skip
    if as_json:
        print(json.dumps(row), flush=True)
    else:
        took = f"{row['ours']:9.1f} us (spread {row['spread']:.1f})"
        beside = f"{peer} {row['peer']:.1f}{mark}"
        print(f"{row['case']:>10} {timed.name:<22} {took}, {beside}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
