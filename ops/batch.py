# SPDX-License-Identifier: MIT
"""What one step computes: its tokens, where they stand, and where their keys and values go."""

from typing import Any, cast

import attrs
import torch
from torch import Tensor

from ..sharding import Placed, declare, module


@module
class Batch:
    """The columns of a step, on the device; rows are requests, padded tokens come last.

    Dims: n tokens, r requests, t block-table width, m wanted logits.  Block 0 is scratch: padded
    tokens write there and no request owns it.  `cache_slots` is `block * block_size + offset`;
    `query_starts[i]:query_starts[i+1]` are the tokens of request i; `context_lens` counts cached
    and new tokens after this step; `logit_rows` are the tokens whose logits are wanted;
    `state_blocks` is where each request keeps what does not grow with its length.  Layers with a
    window have `cache_slots` and `block_tables` of their own where their blocks are freed behind
    it; entries before the window are stale there.  The host integers are equal on all ranks:
    `num_rows` requests are expected to have tokens; `num_decode_rows` leading ones have one each.

    Requests of a decode step may have leading blocks in common; kernels may then read each of these
    once.  A part [first, count, begin, end, number] is a range of keys, begin to end, that
    requests `shared_rows[first : first + count, 0]` have in the same blocks; it is the number-th
    part of each.  Row i also says how many leading tokens of request i, and in how many parts, are
    shared.  Counts of no meaning are 0, and no request has more than `most_parts`.
    """

    tokens: Placed[Tensor, "~n", torch.int32]
    positions: Placed[Tensor, "~n", torch.int32]
    cache_slots: Placed[Tensor, "~n", torch.int64]
    query_starts: Placed[Tensor, "~r1", torch.int32]
    context_lens: Placed[Tensor, "~r", torch.int32]
    block_tables: Placed[Tensor, "~r t", torch.int32]
    logit_rows: Placed[Tensor, "~m", torch.int64]
    state_blocks: Placed[Tensor, "~r", torch.int64]
    num_rows: int
    num_decode_rows: int
    max_query: int
    max_context: int
    window_slots: Placed[Tensor, "~n", torch.int64] | None = None
    window_tables: Placed[Tensor, "~r t", torch.int32] | None = None
    shared_parts: Placed[Tensor, "~p f", torch.int32] | None = None
    shared_rows: Placed[Tensor, "~r c", torch.int32] | None = None
    most_parts: int = 0

    def padded(self, multiple: int) -> "Batch":
        """Return the batch with its tokens padded to a multiple; they write to scratch."""
        short = -len(self.tokens) % multiple
        if not short:
            return self
        columns = {"tokens", "positions", "cache_slots", "window_slots"}
        longer: Batch = attrs.evolve(
            cast(Any, self),
            **{
                name: torch.cat((column, column.new_zeros(short)))
                for name in columns
                if (column := getattr(self, name)) is not None
            },
        )
        return longer

    def windowed(self) -> "Batch":
        """Return the batch as layers with a window see it."""
        if self.window_slots is None:
            return self
        slots, tables = self.window_slots, self.window_tables
        seen: Batch = attrs.evolve(cast(Any, self), cache_slots=slots, block_tables=tables)
        return seen


def declared_batch() -> Batch:
    """Return a batch to trace with: every size is known at run time only."""
    return declare(Batch, dict.fromkeys(("n", "r", "r1", "t", "m")), torch.int32)
