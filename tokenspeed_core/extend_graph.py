# SPDX-License-Identifier: MIT
"""Small prefill and mixed steps, captured once by size: eager they wait for their launches."""

from bisect import bisect_left
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .device_tables import DeviceTables
from .graph import Graph
from .ops import Batch
from .runner import Runner
from .slots import Step

# Steps of 64: a larger one would change in how many waves attention's programs run.
TOKENS = (16, 32, *range(64, 1025, 64))
ROWS = 16
_LONG_TOKENS = 256
_LONG_CONTEXT = 8192


class ExtendGraph:
    """A step of at most `size` tokens and ROWS requests.

    A token has four columns: its id, the slot whose last token it is instead or -1, its row, its
    position.  Those beyond a step's own belong to a last row, without a request, in scratch.
    """

    def __init__(self, size: int, runner: Runner, tables: DeviceTables, pool: Any) -> None:
        self._size = size
        self._tables = tables
        self._inputs = self._new_inputs().to(tables.device)
        tokens, fed, row, positions, requests = self._split(self._inputs)
        starts, lens, slots, wanted = requests

        def forward() -> Tensor:
            (every,) = tables.block_tables
            table = every[slots.long()]
            block = table[row.long(), (positions // tables.block_size).long()].long()
            last = tables.last_token[fed.clamp(min=0).long()]
            batch = Batch(
                tokens=torch.where(fed < 0, tokens, last),
                positions=positions,
                cache_slots=block * tables.block_size + positions % tables.block_size,
                query_starts=starts,
                context_lens=lens[:ROWS],
                block_tables=table[:ROWS],
                logit_rows=wanted[:ROWS].long(),
                state_blocks=slots[:ROWS].long(),
                num_rows=1,
                num_decode_rows=0,
                max_query=size,
                max_context=runner.max_model_len,
            )
            return runner.forward(batch)

        with torch.inference_mode():
            self._forward = Graph(forward, tables.device, pool)
            self._forward.release()

    def logits(self, step: Step) -> Tensor:
        """Queue the forward pass of a step; return logits [m, v] of its sampling rows."""
        batch = step.batch
        count, rows = len(batch.tokens), len(step.rows)
        pinned = self._new_inputs()
        tokens, fed, row, positions, requests = self._split(pinned.numpy())
        starts, lens, slots, wanted = requests
        tokens[:count] = batch.tokens.numpy()
        places, fed_slots = step.fed
        fed[places] = fed_slots
        own = batch.query_starts.numpy()
        row[:count] = np.repeat(np.arange(rows, dtype=np.int32), np.diff(own))
        positions[:count] = batch.positions.numpy()
        starts[: rows + 1] = own
        starts[rows + 1 :] = count
        lens[:rows] = batch.context_lens.numpy()
        slots[:rows] = step.rows
        wanted[: len(batch.logit_rows)] = batch.logit_rows.numpy()
        self._inputs.copy_(pinned, non_blocking=True)
        return self._forward.replay()[: len(batch.logit_rows)]

    def _new_inputs(self) -> Tensor:
        pin = self._tables.device.type == "cuda"
        inputs = torch.zeros(4 * (self._size + ROWS + 1), dtype=torch.int32, pin_memory=pin)
        _tokens, fed, row, _positions, requests = self._split(inputs)
        fed.fill_(-1)
        row.fill_(ROWS)
        requests[2].fill_(self._tables.padding_slot)
        return inputs

    def _split(self, inputs: Any) -> tuple[Any, Any, Any, Any, Any]:
        """Return the columns of the tokens, then starts, lengths, slots and wanted of the rows."""
        size = self._size
        columns = inputs[: 4 * size].reshape(4, size)
        return (*columns, inputs[4 * size :].reshape(4, ROWS + 1))


class ExtendGraphs:
    """The graphs of a runner by size, captured before the first step."""

    def __init__(self, runner: Runner, tables: DeviceTables, most: int, pool: Any) -> None:
        sizes = TOKENS[: bisect_left(TOKENS, min(most, TOKENS[-1])) + 1]
        self.sizes = tuple(filter(runner.captures, sizes))
        self._graphs = {
            size: ExtendGraph(size, runner, tables, pool) for size in reversed(self.sizes)
        }

    def of(self, step: Step) -> ExtendGraph | None:
        """Return the smallest graph that holds a step; None if there is none."""
        at = bisect_left(self.sizes, step.num_tokens)
        if at == len(self.sizes) or len(step.rows) > ROWS:
            return None
        # Where attention outweighs launches, a kernel that is told the lengths is the faster one.
        if step.num_tokens >= _LONG_TOKENS and step.batch.max_context >= _LONG_CONTEXT:
            return None
        return self._graphs[self.sizes[at]]
