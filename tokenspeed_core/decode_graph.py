# SPDX-License-Identifier: MIT
"""Decode steps of fixed sizes, captured once: forward, then greedy choice and state advance."""

from bisect import bisect_left
from typing import Any

import torch
from torch import Tensor

from .block_table import Int32
from .device_tables import DeviceTables
from .graph import Graph
from .ops.batch import Batch
from .ops.sampling import chosen, pick
from .runner import Runner
from .shared_columns import SharedColumns
from .shared_prefix import MIN_ROWS, SharedPrefix

BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)


class DecodeGraph:
    """The two graphs of one bucket; rows beyond a step's own read and write scratch."""

    def __init__(
        self,
        bucket: int,
        runner: Runner,
        tables: DeviceTables,
        pool: Any,
        columns: SharedColumns | None = None,
    ) -> None:
        """Capture; with `columns`, steps whose rows share what these will say."""
        self._bucket = bucket
        self._tables = tables
        self._inputs = torch.ones(2, bucket, dtype=torch.int32, device=tables.device)
        self._inputs[0] = tables.padding_slot
        slots, lens = self._inputs
        self._columns = columns
        self._shared: SharedPrefix | None = None  # what the columns say

        def forward() -> Tensor:
            batch = tables.decode_batch(slots, lens)
            return runner.forward(columns.added_to(batch) if columns else batch)

        def choose() -> Tensor:
            tokens = chosen(pick(self._forward.result))[:, 0].int()
            tables.record(slots, tokens)
            return tokens

        with torch.inference_mode():
            self._forward = Graph(forward, tables.device, pool)
            self._choose = Graph(choose, tables.device, pool)
            self._forward.release()

    def logits(self, slots: Int32, lens: Int32) -> Tensor:
        """Queue the forward pass of rows [r]; return logits [bucket, v], rows in this order.

        `lens` are context lengths that count the new token.
        """
        pinned = torch.ones(2, self._bucket, dtype=torch.int32, pin_memory=self._on_gpu)
        pinned[0] = self._tables.padding_slot
        pinned.numpy()[:, : len(slots)] = slots, lens
        self._inputs.copy_(pinned, non_blocking=True)
        return self._forward.replay()

    def find_shared(self, batch: Batch) -> SharedPrefix | None:
        """Return what the rows of a decode step share; its tables are on the host."""
        return self._columns.find(batch, self._tables.block_size) if self._columns else None

    def share(self, shared: SharedPrefix) -> None:
        """Queue what rows share from the next step on."""
        if self._columns and shared is not self._shared:
            self._shared = shared
            self._columns.write(shared)

    def greedy(self) -> Tensor:
        """Queue the greedy choice on these logits; return tokens [bucket], kept as next inputs."""
        return self._choose.replay()

    @property
    def _on_gpu(self) -> bool:
        return self._tables.device.type == "cuda"


class DecodeGraphs:
    """The graphs of a runner by bucket, captured before the first step into a memory pool.

    None is left for the step that first needs it: that would stall it, and all behind it.
    """

    def __init__(self, runner: Runner, tables: DeviceTables, pool: Any = None) -> None:
        self.buckets = tuple(filter(runner.captures, buckets(runner.num_slots)))
        # The largest first: the others fit the memory that it took.
        largest_first = tuple(reversed(self.buckets))
        self._graphs = {
            bucket: DecodeGraph(bucket, runner, tables, pool) for bucket in largest_first
        }
        # Apart, so that steps that share nothing take no part in what sharing costs.
        self._sharing = {
            bucket: DecodeGraph(bucket, runner, tables, pool, columns)
            for bucket in largest_first
            if (columns := shared_columns(runner, bucket))
        }

    def of(self, rows: int) -> DecodeGraph | None:
        """Return the graphs of the smallest bucket for so many rows; None if there is none."""
        at = bisect_left(self.buckets, rows)
        return self._graphs[self.buckets[at]] if at < len(self.buckets) else None

    def sharing(self, rows: int) -> DecodeGraph | None:
        """Return what `of` does, for steps whose rows share leading blocks."""
        at = bisect_left(self.buckets, rows)
        return self._sharing.get(self.buckets[at]) if at < len(self.buckets) else None


def shared_columns(runner: Runner, bucket: int) -> SharedColumns | None:
    """Return columns for a step of that size; None if so few rows or such layers cannot share."""
    if bucket < MIN_ROWS or not runner.shared_parts:
        return None
    return SharedColumns.of(bucket, runner.shared_parts, runner.device)


def buckets(num_slots: int) -> tuple[int, ...]:
    """Return the sizes of decode steps that are captured for so many slots."""
    return up_to(BUCKETS, num_slots)


def up_to(sizes: tuple[int, ...], most: int) -> tuple[int, ...]:
    """Return rising sizes up to the first that holds `most`; all if none does."""
    return sizes[: bisect_left(sizes, most) + 1]
