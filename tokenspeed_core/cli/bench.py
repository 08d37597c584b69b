# SPDX-License-Identifier: MIT
"""`tokenspeed bench`: the runner timed on shapes that peers were measured on."""

import argparse

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
        help="qwen3-0.6b, qwen3-8b (default), qwen3-32b, qwen3-30b-a3b, deepseek-v2-lite or tiny",
    )
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--blocks", type=int, default=0, metavar="N", help="KV blocks; 0: all free")
    parser.add_argument(
        "--most", type=int, default=0, metavar="N", help="only the first N cases; 0: all"
    )
    parser.add_argument("--no-graphs", action="store_true", help="run decode steps eagerly")
    parser.add_argument("--tp", type=int, default=1, metavar="N", help="tensor-parallel ranks")
    parser.add_argument(
        "--layout", default="", metavar="TEXT", help='any other layout, such as "tp=2; j: e:tp"'
    )


def run(arguments: argparse.Namespace) -> int:
    """Time and print."""
    from ..bench.options import Options
    from ..bench.ranks import time_ranks

    options = Options(
        bench=arguments.bench,
        shape=arguments.shape,
        device=arguments.device,
        blocks=arguments.blocks,
        most=arguments.most,
        graphs=not arguments.no_graphs,
        tp=arguments.tp,
        layout=arguments.layout,
    )
    time_ranks(options)
    return 0
