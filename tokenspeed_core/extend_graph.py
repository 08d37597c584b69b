# SPDX-License-Identifier: MIT
"""Small prefill and mixed steps, captured once by size: eager they wait for their launches."""

from bisect import bisect_left
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .block_table import Int32
from .decode_graph import up_to
from .device_tables import DeviceTables
from .graph import Graph
from .ops import Batch
from .runner import Runner
from .slots import Step

# Steps of 64: a larger one would change in how many waves attention's programs run.
TOKENS = (16, 32, *range(64, 1025, 64))
# Of mixed steps, beside so many requests that decode.
_DECODES = (4, 16, 32, 64, 128, 256)
MIXED_TOKENS = (64, 128, 256, 512, 1024)
ROWS = 16
_LEAST_DECODES = 2
_LONG_TOKENS = 256
_LONG_CONTEXT = 8192


class ExtendGraph:
    """A step of at most `size` tokens of ROWS requests, behind `decodes` requests of one token.

    A token has four columns: its id, the slot whose last token it is instead or -1, its row, its
    position.  Those beyond a step's own belong to a last row, without a request, in scratch; each
    request that decodes has a row, also if it is none.
    """

    def __init__(
        self, size: int, runner: Runner, tables: DeviceTables, pool: Any, decodes: int = 0
    ) -> None:
        self._size = decodes + size
        self._decodes = decodes
        self._rows = decodes + ROWS
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
                context_lens=lens[:-1],
                block_tables=table[:-1],
                logit_rows=wanted[:-1].long(),
                state_blocks=slots[:-1].long(),
                num_rows=decodes + 1,
                num_decode_rows=decodes,
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
        first = batch.num_decode_rows if self._decodes else 0
        # Those that decode stand first, and the others behind all places for them.
        places, requests = (_behind(each, first, self._decodes) for each in (count, rows))
        pinned = self._new_inputs()
        tokens, fed, row, positions, columns = self._split(pinned.numpy())
        starts, lens, slots, wanted = columns
        tokens[places] = batch.tokens.numpy()
        fed_places, fed_slots = step.fed
        fed[places[fed_places]] = fed_slots
        own = batch.query_starts.numpy()
        row[places] = np.repeat(requests, np.diff(own))
        positions[places] = batch.positions.numpy()
        starts[: self._decodes + 1] = np.arange(self._decodes + 1)
        starts[requests[first:]] = places[own[first:-1]]
        starts[requests[-1] + 1 :] = places[-1] + 1
        lens[requests] = batch.context_lens.numpy()
        slots[requests] = step.rows
        wanted[: len(batch.logit_rows)] = places[batch.logit_rows.numpy()]
        self._inputs.copy_(pinned, non_blocking=True)
        return self._forward.replay()[: len(batch.logit_rows)]

    def _new_inputs(self) -> Tensor:
        pin = self._tables.device.type == "cuda"
        inputs = torch.zeros(4 * (self._size + self._rows + 1), dtype=torch.int32, pin_memory=pin)
        _tokens, fed, row, _positions, requests = self._split(inputs)
        _starts, lens, slots, _wanted = requests
        fed.fill_(-1)
        row.fill_(self._rows)
        torch.arange(self._decodes, out=row[: self._decodes])
        lens[: self._decodes] = 1
        slots.fill_(self._tables.padding_slot)
        return inputs

    def _split(self, inputs: Any) -> tuple[Any, Any, Any, Any, Any]:
        """Return the columns of the tokens, then starts, lengths, slots and wanted of the rows."""
        size = self._size
        columns = inputs[: 4 * size].reshape(4, size)
        return (*columns, inputs[4 * size :].reshape(4, self._rows + 1))


def _behind(count: int, first: int, places: int) -> Int32:
    """Return where each of `count` stands if those from `first` on follow so many places."""
    at = np.arange(count, dtype=np.int32)
    at[first:] += places - first if places else 0
    return at


class ExtendGraphs:
    """The graphs of a runner by size, captured before the first step."""

    def __init__(self, runner: Runner, tables: DeviceTables, most: int, pool: Any) -> None:
        self.sizes = _sizes(TOKENS, most, 0, runner)
        self.decodes = decode_places(runner.num_slots)
        # The largest first: the others fit the memory that it took.
        wanted = [
            (decodes, size)
            for decodes in reversed(self.decodes)
            for size in reversed(_sizes(MIXED_TOKENS, most, decodes, runner))
        ]
        wanted += [(0, size) for size in reversed(self.sizes)]
        self._graphs = {
            (decodes, size): ExtendGraph(size, runner, tables, pool, decodes)
            for decodes, size in wanted
        }

    def of(self, step: Step) -> ExtendGraph | None:
        """Return the smallest graph that holds a step; None if there is none."""
        decodes = step.batch.num_decode_rows
        if _LEAST_DECODES <= decodes < len(step.rows):
            return self._mixed(step, decodes)
        at = bisect_left(self.sizes, step.num_tokens)
        if at == len(self.sizes) or len(step.rows) > ROWS:
            return None
        if _is_long(step.num_tokens, step.batch.max_context):
            return None
        return self._graphs[0, self.sizes[at]]

    def _mixed(self, step: Step, decodes: int) -> ExtendGraph | None:
        tokens = step.num_tokens - decodes
        longest = int(step.batch.context_lens[decodes:].max())
        if len(step.rows) - decodes > ROWS or _is_long(tokens, longest):
            return None
        fitting = (
            (beside, size) for beside, size in self._graphs if beside >= decodes and size >= tokens
        )
        found = min(fitting, default=None)
        return self._graphs[found] if found else None


def decode_places(num_slots: int) -> tuple[int, ...]:
    """Return for how many requests that decode mixed steps are captured, rising."""
    return up_to(_DECODES, num_slots) if num_slots > _LEAST_DECODES else ()


def _sizes(wanted: tuple[int, ...], most: int, decodes: int, runner: Runner) -> tuple[int, ...]:
    """Return the sizes up to the first that holds `most` tokens, as far as graphs can hold them."""
    return tuple(size for size in up_to(wanted, most) if runner.captures(decodes + size))


def _is_long(tokens: int, context: int) -> bool:
    """Whether attention outweighs launches: a kernel that is told the lengths is then faster."""
    return tokens >= _LONG_TOKENS and context >= _LONG_CONTEXT
