# SPDX-License-Identifier: MIT
"""Runs that nobody asked for, before the first request: they compile and load a GPU's kernels."""

import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from .decode_graph import shared_columns
from .device_tables import DeviceTables
from .kernels.triton_backend import clear_counters
from .ops import Batch
from .runner import Runner
from .shared_columns import SharedColumns

_MANY = 32  # rows of a decode step whose products are no longer skinny
_MOST = 128  # requests from which on attention is compiled apart


def scratch_batch(
    tables: DeviceTables, count: int, context: int, requests: int = 1, decodes: int = 0
) -> Batch:
    """Return a batch that touches scratch only.

    `decodes` requests of one token come first, then `requests` of `count` tokens each, all with
    `context` tokens cached before.
    """
    on = tables.device
    (table,) = tables.block_tables
    sizes = torch.tensor([1] * decodes + [count] * requests, device=on)
    ends = sizes.cumsum(0)
    total = decodes + requests * count
    starts = torch.cat((ends.new_zeros(1), ends))
    inner = torch.arange(total, device=on) - starts[:-1].repeat_interleave(sizes)
    return Batch(
        tokens=torch.zeros(total, dtype=torch.int32, device=on),
        positions=(inner + context).int(),
        cache_slots=torch.zeros(total, dtype=torch.int64, device=on),
        query_starts=starts.int(),
        context_lens=(sizes + context).int(),
        block_tables=torch.zeros(len(sizes), table.shape[1], dtype=torch.int32, device=on),
        logit_rows=ends - 1,
        state_blocks=torch.full_like(ends, tables.padding_slot),
        num_rows=len(sizes),
        num_decode_rows=decodes,
        max_query=count,
        max_context=context + count,
    )


def warm_up(runner: Runner, tables: DeviceTables, decode: Sequence[int], chunk: int) -> None:
    """Run steps of every kind that kernels are compiled apart for.

    These are decode steps of the sizes `decode`, prefills of up to `chunk` tokens, and mixed ones.
    Steps of a phase run side by side, since compilers release the interpreter; what most kinds
    have in common is in the first, or each thread would compile it.
    """
    new = functools.partial(scratch_batch, tables)
    plain = functools.partial(_decode_batch, tables)
    longest = runner.max_model_len - 64
    first: list[Callable[[], Batch]] = [
        functools.partial(new, chunk, 0),
        functools.partial(plain, min(_MANY, decode[-1])),
    ]
    rest: list[Callable[[], Batch]] = [functools.partial(plain, rows) for rows in decode]
    if chunk > 3 * _MOST:
        rest.append(functools.partial(new, 2, 0, _MOST, _MOST))
    if longest > 0 and chunk > 64:
        rest.append(functools.partial(new, 64, longest, 1, 1))
    for rows in (_MANY, decode[-1]):
        columns = shared_columns(runner, rows) if rows in decode else None
        if columns is not None:
            rest.append(functools.partial(_sharing_batch, tables, rows, columns))

    def run(batch: Callable[[], Batch]) -> None:
        stream = torch.cuda.Stream(tables.device)  # type: ignore[no-untyped-call]
        with torch.inference_mode(), torch.cuda.stream(stream):
            runner.forward(batch())
            torch.cuda.current_stream(tables.device).synchronize()

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for phase in (first, rest):
            for done in [threads.submit(run, each) for each in phase]:
                done.result()
    clear_counters(tables.device)
    # Each stream keeps what it allocated, and cuBLAS a workspace for each.
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()


def _decode_batch(tables: DeviceTables, rows: int) -> Batch:
    slots = torch.full((rows,), tables.padding_slot, dtype=torch.int32, device=tables.device)
    return tables.decode_batch(slots, torch.ones_like(slots))


def _sharing_batch(tables: DeviceTables, rows: int, columns: SharedColumns) -> Batch:
    return columns.added_to(_decode_batch(tables, rows))
