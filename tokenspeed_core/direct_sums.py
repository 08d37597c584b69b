# SPDX-License-Identifier: MIT
"""Sums over GPUs that read each other's memory: one launch, no communicator."""

import logging

import attrs
import torch
from torch import Tensor

from .kernels.triton_backend import BUILT
from .rank_groups import Group, RankGroups

_log = logging.getLogger(__name__)


@attrs.frozen(eq=False)
class DirectSums:
    """The exchange of one group of ranks."""

    _exchange: object  # kernels.triton.all_reduce.Exchange, which only a GPU build can import
    _memory: Tensor  # which peers have mapped

    @classmethod
    def of(cls, group: Group, ranks: RankGroups) -> "DirectSums | None":
        """Map the memory of the group's ranks; None where no GPU build or no such link is."""
        if not BUILT or ranks.device.type != "cuda":
            return None
        from torch.distributed import _symmetric_memory as symmetric

        from .kernels.triton import all_reduce

        made = None
        try:
            memory = symmetric.empty(
                all_reduce.exchange_bytes(group.size), dtype=torch.uint8, device=ranks.device
            )
            memory.zero_()
            handle = symmetric.rendezvous(memory, group.process_group)
            addresses = torch.tensor(handle.buffer_ptrs, dtype=torch.int64, device=ranks.device)
            made = cls(all_reduce.Exchange.of(addresses, group.rank), memory)
        except RuntimeError as error:
            _log.warning("GPUs do not read each other's memory, NCCL sums all: %s", error)
        torch.cuda.synchronize(ranks.device)
        # Here all wait, too, until all memory is zero.
        return None if ranks.any(made is None) else made

    def takes(self, x: Tensor) -> bool:
        """Whether `sum` can take `x`."""
        from .kernels.triton import all_reduce

        return all_reduce.can_sum(x)

    def sum(self, x: Tensor, residual: Tensor | None, twice: bool) -> Tensor:
        """Return the sum of the ranks' `x` in rank order, plus `residual` if there is one.

        `twice`: each rank sums a part first.
        """
        from .kernels.triton import all_reduce

        assert isinstance(self._exchange, all_reduce.Exchange)
        return all_reduce.all_reduce(x, self._exchange, twice, residual)
