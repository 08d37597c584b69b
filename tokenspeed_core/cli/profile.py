# SPDX-License-Identifier: MIT
"""`tokenspeed profile`: a trace of all processes of a running server."""

import argparse
import sys
import time
from pathlib import Path

HELP = "trace all processes of a running server"
DESCRIPTION = (
    "Trace API process, scheduler and workers of a server that was started with --profiling, and "
    "write one file that ui.perfetto.dev and chrome://tracing open."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the server, how long, and where to."""
    from .engine_url import add_address

    add_address(parser)
    parser.add_argument("--seconds", type=float, default=5.0, metavar="S", help="default: 5")
    parser.add_argument("--output", type=Path, default=Path("profile.json"), metavar="FILE")


def run(arguments: argparse.Namespace) -> int:
    """Start, wait, stop, write."""
    from .engine_url import ask

    ask(arguments, "POST", "/start_profile")
    try:
        time.sleep(arguments.seconds)
    finally:
        trace = ask(arguments, "POST", "/stop_profile")
    arguments.output.write_bytes(trace)
    print(f"{arguments.output}: {len(trace)} bytes; open it at ui.perfetto.dev", file=sys.stderr)
    return 0
