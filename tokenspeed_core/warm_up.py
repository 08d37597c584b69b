# SPDX-License-Identifier: MIT
"""Runs that nobody asked for, before the first request: they compile and load a GPU's kernels."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from .device_tables import DeviceTables
from .ops import Batch
from .runner import Runner

# Prefill chunks whose kernels are chosen apart; a runner's largest step comes with them.
CHUNKS = (2, 16, 64, 512)


def prefill_batch(tables: DeviceTables, count: int) -> Batch:
    """Return a batch of one request with `count` new tokens, all in scratch."""
    on = tables.device
    (table,) = tables.block_tables
    first = torch.zeros(1, dtype=torch.int64, device=on)
    return Batch(
        tokens=torch.zeros(count, dtype=torch.int32, device=on),
        positions=torch.arange(count, dtype=torch.int32, device=on),
        cache_slots=torch.zeros(count, dtype=torch.int64, device=on),
        query_starts=torch.tensor([0, count], dtype=torch.int32, device=on),
        context_lens=torch.tensor([count], dtype=torch.int32, device=on),
        block_tables=torch.zeros(1, table.shape[1], dtype=torch.int32, device=on),
        logit_rows=first + (count - 1),
        state_blocks=first + tables.padding_slot,
        num_rows=1,
        num_decode_rows=0,
        max_query=count,
        max_context=count,
    )


def warm_up(runner: Runner, tables: DeviceTables, decode: Sequence[int], chunk: int) -> None:
    """Run a decode step of each size and prefills of chunks up to `chunk` tokens, side by side.

    Compilers release the interpreter, so that kernels compile on as many cores as there are.
    """
    chunks = sorted({each for each in CHUNKS if each < chunk} | {chunk})
    batches: list[Callable[[], Batch]] = [
        *(lambda count=count: prefill_batch(tables, count) for count in reversed(chunks)),
        *(lambda rows=rows: _decode_batch(tables, rows) for rows in reversed(decode)),
    ]

    def run(batch: Callable[[], Batch]) -> None:
        stream = torch.cuda.Stream(tables.device)  # type: ignore[no-untyped-call]
        with torch.inference_mode(), torch.cuda.stream(stream):
            runner.forward(batch())
            torch.cuda.current_stream(tables.device).synchronize()

    with ThreadPoolExecutor(min(len(batches), os.cpu_count() or 1)) as threads:
        for done in [threads.submit(run, each) for each in batches]:
            done.result()
    # Each stream keeps what it allocated, and cuBLAS a workspace for each.
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()


def _decode_batch(tables: DeviceTables, rows: int) -> Batch:
    slots = torch.full((rows,), tables.padding_slot, dtype=torch.int32, device=tables.device)
    return tables.decode_batch(slots, torch.ones_like(slots))
