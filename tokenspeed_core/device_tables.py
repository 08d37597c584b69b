# SPDX-License-Identifier: MIT
"""What a device knows of each slot, so that a decode step needs only slots and lengths."""

from collections.abc import Sequence

import attrs
import torch
from torch import Tensor

from .block_table import Int32
from .kernels import decode_columns as _decode_columns  # noqa: F401  (registers it)
from .kernels.registry import select
from .ops.batch import Batch
from .upload import uploaded


@attrs.frozen(eq=False)
class DeviceTables:
    """Tables by slot on the device, written in the order of steps.

    The slot after the last belongs to padded rows: its blocks are all block 0, scratch.
    """

    block_tables: tuple[Tensor, ...]  # int32 [s + 1, t] of each block group
    last_token: Tensor  # int32 [s + 1]: the next input of the slot
    block_size: int

    @classmethod
    def of(
        cls, num_slots: int, widths: Sequence[int], block_size: int, device: torch.device
    ) -> "DeviceTables":
        """Return empty tables; `widths` are the most blocks of a slot, by block group."""
        return cls(
            tuple(
                torch.zeros(num_slots + 1, width, dtype=torch.int32, device=device)
                for width in widths
            ),
            torch.zeros(num_slots + 1, dtype=torch.int32, device=device),
            block_size,
        )

    @property
    def padding_slot(self) -> int:
        """The slot of rows that are none."""
        return len(self.last_token) - 1

    @property
    def device(self) -> torch.device:
        """Where the tables are."""
        return self.last_token.device

    def append(self, blocks: Sequence[tuple[Int32, Int32]]) -> None:
        """Write block ids at flat places of each group's table."""
        for table, (places, ids) in zip(self.block_tables, blocks, strict=True):
            if len(places):
                index = uploaded(places.astype("int64"), self.device)
                table.view(-1).index_copy_(0, index, uploaded(ids, self.device))

    def record(self, slots: Tensor, tokens: Tensor) -> None:
        """Keep sampled tokens [m] as the next input of slots [m]; -1 feeds 0."""
        self.last_token.index_copy_(0, slots.long(), tokens.clamp(min=0))

    def decode_batch(self, slots: Tensor, lens: Tensor) -> Batch:
        """Return the batch of one decode step from int32 slots [r] and context lengths [r].

        Lengths count the new token.  A padded row has the padding slot and length 1.
        """
        count = len(slots)
        (table,) = self.block_tables
        columns = select("decode_columns", self.device.type, torch.int32)
        tokens, positions, cache_slots, blocks = columns(
            slots, lens, self.last_token, table, self.block_size
        )
        every = torch.arange(count + 1, dtype=torch.int32, device=self.device)
        return Batch(
            tokens=tokens,
            positions=positions,
            cache_slots=cache_slots,
            query_starts=every,
            context_lens=lens,
            block_tables=blocks,
            logit_rows=every[:count].long(),
            state_blocks=slots.long(),
            num_rows=count,
            num_decode_rows=count,
            max_query=1,
            max_context=table.shape[1] * self.block_size,
        )
