# SPDX-License-Identifier: MIT
"""Ranks as processes of their own, each forked from one that has loaded torch and us once."""

from collections.abc import Callable
from multiprocessing import get_context
from typing import Any

from torch.multiprocessing.spawn import start_processes

# What runs no thread when it is imported.
LOADED = ["torch.distributed", "transformers", "pytest", "tokenspeed_core.rank"]


def run_ranks(run: Callable[..., None], ranks: int, *args: Any) -> None:
    """Call `run(rank, *args)` in a process for each rank; raise what the first to fail raised."""
    get_context("forkserver").set_forkserver_preload(LOADED)
    start_processes(run, args, nprocs=ranks, start_method="forkserver")
