# SPDX-License-Identifier: MIT
"""What the rows of a decode step of fixed size share, where its kernels read it."""

from typing import Any, cast

import attrs
import torch
from torch import Tensor

from .ops.batch import Batch
from .shared_prefix import SharedPrefix

# Parts over all rows of a step: they bound the memory of what parts found.
_ROW_PARTS = 2048


@attrs.frozen(eq=False)
class SharedColumns:
    """`shared_parts` [p, 5] and `shared_rows` [r, 3] of a batch; zeros share nothing."""

    parts: Tensor
    rows: Tensor

    @classmethod
    def of(cls, rows: int, num_parts: int, device: torch.device) -> "SharedColumns":
        """Return columns for so many rows and at most `num_parts` parts."""
        return cls(
            torch.zeros(num_parts, 5, dtype=torch.int32, device=device),
            torch.zeros(rows, 3, dtype=torch.int32, device=device),
        )

    def added_to(self, batch: Batch) -> Batch:
        """Return the batch with these columns."""
        found: Batch = attrs.evolve(
            cast(Any, batch),
            shared_parts=self.parts,
            shared_rows=self.rows,
            most_parts=self._most_parts,
        )
        return found

    def find(self, batch: Batch, block_size: int) -> SharedPrefix | None:
        """Return what the rows of a decode step share, as far as it fits; tables on the host."""
        tables, lens = batch.block_tables.numpy(), batch.context_lens.numpy()
        return SharedPrefix.of(tables, lens, block_size, len(self.parts), self._most_parts)

    def write(self, shared: SharedPrefix) -> None:
        """Queue what is shared from the next step on."""
        for column, values in ((self.parts, shared.parts), (self.rows, shared.rows)):
            pinned = torch.zeros(column.shape, dtype=torch.int32, pin_memory=column.is_cuda)
            pinned.numpy()[: len(values)] = values
            column.copy_(pinned, non_blocking=True)

    @property
    def _most_parts(self) -> int:
        return max(1, min(len(self.parts), _ROW_PARTS // len(self.rows)))
