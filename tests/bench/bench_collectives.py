# SPDX-License-Identifier: MIT
"""Latency of a sum over GPUs by size: every way that we have, beside NCCL's own all-reduce.

    python tests/bench/bench_collectives.py [--json] [--ranks N] [--device cpu]

Without two GPUs it says so and ends; with `--device cpu` ranks meet over gloo instead.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from tokenspeed_core.rank_groups import Group, RankGroups
from tokenspeed_core.rank_sums import RankSums, microseconds

SIZES = [1 << power for power in range(13, 23)]  # 8 KiB to 4 MiB
REPEATS = 5


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
    group = ranks.by_axis["tp"]
    sums = RankSums.of(group, ranks)
    for size in SIZES:
        x = torch.randn(size // 2, device=device).bfloat16()
        backend = "nccl" if kind == "cuda" else "gloo"
        ways = {**sums.ways(x), f"{backend} all-reduce": library(group)}
        times = {
            name: [spent(way, x, device) for _ in range(REPEATS)] for name, way in ways.items()
        }
        if rank == 0:
            show(size, sums.choice(size), times, f"{backend} all-reduce", as_json)
    ranks.abort()


def library(group: Group) -> Callable[[Tensor], Tensor]:
    """Return a sum by the library, in place on a copy that all calls share."""
    held: list[Tensor] = []

    def way(x: Tensor) -> Tensor:
        if not held:
            held.append(x.clone())
        dist.all_reduce(held[0], group=group.process_group)
        return held[0]

    return way


def spent(way: Callable[[Tensor], Tensor], x: Tensor, device: torch.device) -> float:
    if device.type == "cuda":
        return microseconds(way, x, device)
    way(x)
    begun = time.perf_counter()
    for _ in range(10):
        way(x)
    return (time.perf_counter() - begun) * 1e5


def show(size: int, chosen: str, times: dict[str, list[float]], peer: str, as_json: bool) -> None:
    case = f"{size >> 10} KiB"
    for name, samples in times.items():
        if name == peer:
            continue
        row = {
            "bench": "collectives", "case": case, "metric": name, "unit": "us",
            "ours": round(statistics.median(samples), 2),
            "peer": round(statistics.median(times[peer]), 2), "peer_name": peer,
            "spread": round(max(samples) - min(samples), 2),
        }  # fmt: skip
        if as_json:
            print(json.dumps(row), flush=True)
        else:
            mark = " <- chosen" if name == chosen else ""
            print(f"{case:>9} {name:<9} {row['ours']:9.1f} us (spread {row['spread']:.1f}), "
                  f"{peer} {row['peer']:.1f}{mark}", flush=True)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
