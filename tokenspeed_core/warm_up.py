# SPDX-License-Identifier: MIT
"""Steps that nobody asked for: they compile a GPU's kernels and tell how much memory steps take."""

from collections.abc import Callable

import torch
from torch import Tensor

from .decode_graph import buckets
from .device_tables import DeviceTables
from .extend_graph import TOKENS, decode_places
from .graphs import Graphs
from .kernels.triton_backend import compile_ahead
from .kernels.tuning import TABLE
from .models.sampling import Choice, choose_whole
from .ops import Batch
from .ops.sampling import SamplingRows
from .runner import Runner
from .start_clock import timed

# (new tokens a request, tokens cached, requests, decodes): eager steps whose attention is compiled
# apart.  It differs with the tile that holds all requests, with keys gathered before, in few or
# many a row, or read where they lie, and with whether they are split.
_STEPS = (
    (256, 0, 8, 0),
    (256, 2048, 1, 0),
    (256, 8192, 1, 0),
    (16, 0, 130, 0),
    (2, 0, 128, 128),
    (2, 0, 17, 17),
)
# Attention over more would take seconds, and no more memory.
_LONG = 1 << 16


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


def warm_up(runner: Runner, chunk: int) -> int:
    """Compile and load what steps of up to `chunk` tokens launch; return the bytes they take.

    These are bytes beside weights and caches: those of eager steps and those of captured graphs,
    which keep theirs.  Caches may be of scratch alone.
    """
    tables = runner.new_tables()
    longest = max(0, min(runner.max_model_len, _LONG) - chunk)
    wanted = [(chunk, 0, 1, 0), (chunk, longest, 1, 0)]
    for step in _STEPS:
        count, context, requests, decodes = step
        fits = count * requests + decodes <= chunk and context + count <= runner.max_model_len
        wanted += [step] * fits

    def eager() -> None:
        for step in wanted:
            runner.forward(scratch_batch(tables, *step))

    def captured() -> Graphs:
        return Graphs.capture(runner, tables, chunk, dry=True)

    def every() -> None:
        eager()
        captured()
        _sample(runner, tables)

    def largest() -> None:
        runner.forward(scratch_batch(tables, 1, 0, 0, buckets(runner.num_slots)[-1]))
        most = max(decode_places(runner.num_slots), default=0)
        runner.forward(scratch_batch(tables, min(chunk, TOKENS[-1]), 0, 1, most))

    with torch.inference_mode():
        about = (runner.program_hash.hex(), runner.num_slots, runner.max_model_len, chunk)
        with timed("compiling"):
            compile_ahead(every, repr(about), runner.ranks.any)
        if TABLE.tunes:
            with TABLE.measuring(runner.ranks.greatest):
                eager()
                for rows in buckets(runner.num_slots):
                    runner.forward(scratch_batch(tables, 1, 0, 0, rows))
        took = _taken(eager, tables.device)
        took = max(took, _taken(lambda: _sample(runner, tables), tables.device))
        took += _taken(largest, tables.device)
    return took


def _sample(runner: Runner, tables: DeviceTables) -> None:
    """Choose tokens for one row and for as many as there may be, of all and of those kept."""
    rows = buckets(runner.num_slots)[-1]
    logits = runner.forward(scratch_batch(tables, 1, 0, 0, rows))
    for count in {1, rows}:
        _choose(logits[:count])


def _choose(logits: Tensor) -> None:
    whole = torch.zeros(len(logits), dtype=torch.int32, device=logits.device)
    share = torch.full_like(whole, 0.5, dtype=torch.float32)
    asked = SamplingRows(
        temperature=share,
        top_k=whole,
        top_p=share,
        seed=whole.long(),
        position=whole,
        logprobs=whole.bool(),
    )
    choose_whole(logits, asked, Choice(True, False))
    choose_whole(logits, asked, Choice(True, True, True))


def _taken(run: Callable[[], object], device: torch.device) -> int:
    """Return the most bytes that torch reserved while it ran, less those from before."""
    if device.type != "cuda":
        run()
        return 0
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_reserved(device)
    run()
    torch.cuda.synchronize(device)
    most = torch.cuda.max_memory_reserved(device)
    torch.cuda.empty_cache()
    return most - before
