# SPDX-License-Identifier: MIT
"""`tokenspeed bench`: the runner timed on shapes that peers were measured on."""

import argparse
import sys
import time

HELP = "time decode, prefill, warm turns and shared prefixes on dummy weights"
DESCRIPTION = (
    "Time the runner on dummy weights and random tokens, in lock step with plans that are made "
    "two steps ahead. Prints a JSON object a line; peers' figures beside ours on their card."
)
BENCHES = ("decode", "prefill", "warm", "shared")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the bench, the model's shape and the device."""
    parser.add_argument("bench", choices=BENCHES, help="what to time")
    parser.add_argument(
        "--shape",
        default="qwen3-8b",
        metavar="NAME",
        help="qwen3-0.6b, qwen3-8b (default), qwen3-30b-a3b, deepseek-v2-lite or tiny",
    )
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--blocks", type=int, default=0, metavar="N", help="KV blocks; 0: all free")
    parser.add_argument(
        "--most", type=int, default=0, metavar="N", help="only the first N cases; 0: all"
    )
    parser.add_argument("--no-graphs", action="store_true", help="run decode steps eagerly")


def run(arguments: argparse.Namespace) -> int:
    """Time and print."""
    started = time.perf_counter()
    import torch

    from ..bench.case import CHUNK, cases, measure
    from ..bench.dummy import dummy_runner
    from ..bench.floor import Floor
    from ..bench.offline import Offline
    from ..bench.shape import SHAPES
    from ..device_gaps import DeviceGaps
    from ..execution import execution

    imported = time.perf_counter()
    runner = dummy_runner(arguments.shape, arguments.device, arguments.blocks)
    loaded = time.perf_counter()
    new_executor = execution(runner, CHUNK, not arguments.no_graphs)
    captured = time.perf_counter()
    print(
        f"start: import {imported - started:.1f} s, weights and cache {loaded - imported:.1f} s, "
        f"kernels and graphs {captured - loaded:.1f} s; {runner.num_blocks} KV blocks",
        file=sys.stderr,
    )
    on_gpu = runner.device.type == "cuda"
    card = torch.cuda.get_device_name(runner.device) if on_gpu else "cpu"
    shape = SHAPES[arguments.shape]
    vocabulary = int(shape["vocab_size"])
    floor = Floor.of(runner, shape)
    executor = DeviceGaps(new_executor(None)) if on_gpu else new_executor(None)
    offline = Offline(executor, runner.block_size, runner.num_blocks, vocabulary)
    chosen = cases(arguments.shape, arguments.bench)
    for case in chosen[: arguments.most or len(chosen)]:
        for row in measure(case, offline, arguments.shape, card, floor.ms(case, card)):
            print(row.json(), flush=True)
    return 0
