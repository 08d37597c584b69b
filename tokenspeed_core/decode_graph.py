# SPDX-License-Identifier: MIT
"""Decode steps of fixed sizes, captured once: forward, then greedy choice and state advance."""

from bisect import bisect_left
from typing import Any

import torch
from torch import Tensor

from .block_table import Int32
from .device_tables import DeviceTables
from .graph import Graph
from .ops.sampling import chosen, pick
from .runner import Runner

BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
_FIRST = (1, 8, 32)  # what a first request needs, alone or in company


class DecodeGraph:
    """The two graphs of one bucket; rows beyond a step's own read and write scratch."""

    def __init__(self, bucket: int, runner: Runner, tables: DeviceTables, pool: Any) -> None:
        self._bucket = bucket
        self._tables = tables
        self._inputs = torch.ones(2, bucket, dtype=torch.int32, device=tables.device)
        self._inputs[0] = tables.padding_slot
        slots, lens = self._inputs

        def forward() -> Tensor:
            return runner.forward(tables.decode_batch(slots, lens))

        def choose() -> Tensor:
            tokens = chosen(pick(self._forward.result))[:, 0].int()
            tables.record(slots, tokens)
            return tokens

        self._forward = Graph(forward, tables.device, pool)
        self._choose = Graph(choose, tables.device, pool)

    def logits(self, slots: Int32, lens: Int32) -> Tensor:
        """Queue the forward pass of rows [r]; return logits [bucket, v], rows in this order.

        `lens` are context lengths that count the new token.
        """
        pinned = torch.ones(2, self._bucket, dtype=torch.int32, pin_memory=self._on_gpu)
        pinned[0] = self._tables.padding_slot
        pinned.numpy()[:, : len(slots)] = slots, lens
        self._inputs.copy_(pinned, non_blocking=True)
        return self._forward.replay()

    def greedy(self) -> Tensor:
        """Queue the greedy choice on these logits; return tokens [bucket], kept as next inputs."""
        return self._choose.replay()

    @property
    def _on_gpu(self) -> bool:
        return self._tables.device.type == "cuda"


class DecodeGraphs:
    """The graphs of a runner by bucket, captured in order of need into one memory pool."""

    def __init__(self, runner: Runner, tables: DeviceTables) -> None:
        self._runner = runner
        self._tables = tables
        self._pool = torch.cuda.graph_pool_handle() if tables.device.type == "cuda" else None
        largest = bisect_left(BUCKETS, runner.num_slots)
        self.buckets = BUCKETS[: largest + 1]
        self._graphs: dict[int, DecodeGraph] = {}

    @torch.inference_mode()
    def capture_first(self) -> None:
        """Capture what the first requests need; the others follow when they are first used."""
        for bucket in _FIRST:
            if bucket in self.buckets:
                self._capture(bucket)

    def of(self, rows: int) -> DecodeGraph | None:
        """Return the graphs of the smallest bucket for so many rows; None if there is none."""
        at = bisect_left(self.buckets, rows)
        if at == len(self.buckets):
            return None
        bucket = self.buckets[at]
        return self._graphs[bucket] if bucket in self._graphs else self._capture(bucket)

    def _capture(self, bucket: int) -> DecodeGraph:
        graph = DecodeGraph(bucket, self._runner, self._tables, self._pool)
        self._graphs[bucket] = graph
        return graph
