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
    """The exchanges of one group of ranks."""

    # Of kernels.triton.all_reduce.Exchange, which only a GPU build can import.
    _exchange: object
    _words: object  # for few bytes
    _memory: tuple[Tensor, ...]  # which peers have mapped

    @classmethod
    def of(cls, group: Group, ranks: RankGroups) -> "DirectSums | None":
        """Map the memory of the group's ranks; None where no GPU build or no such link is."""
        if not BUILT or ranks.device.type != "cuda":
            return None
        from torch.distributed import _symmetric_memory as symmetric

        from .kernels.triton import all_reduce, word_sum

        def exchange(nbytes: int) -> tuple[all_reduce.Exchange, Tensor]:
            memory = symmetric.empty(nbytes, dtype=torch.uint8, device=ranks.device)
            memory.zero_()
            handle = symmetric.rendezvous(memory, group.process_group)
            addresses = torch.tensor(handle.buffer_ptrs, dtype=torch.int64, device=ranks.device)
            return all_reduce.Exchange.of(addresses, group.rank), memory

        made = None
        try:
            large, parts = exchange(all_reduce.exchange_bytes(group.size))
            words, few = exchange(word_sum.word_bytes(group.size))
            made = cls(large, words, (parts, few))
        except RuntimeError as error:
            _log.warning("GPUs do not read each other's memory, NCCL sums all: %s", error)
        torch.cuda.synchronize(ranks.device)
        # Here all wait, too, until all memory is zero.
        return None if ranks.any(made is None) else made

    def takes(self, x: Tensor) -> bool:
        """Whether `sum` can take `x`."""
        from .kernels.triton import all_reduce

        return all_reduce.can_sum(x)

    def takes_words(self, x: Tensor) -> bool:
        """Whether `sum_by_words` can take `x`."""
        from .kernels.triton import word_sum

        return word_sum.can_sum_words(x)

    def sum_by_words(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """Return what `sum` does, of few bytes sooner."""
        from .kernels.triton import all_reduce, word_sum

        assert isinstance(self._words, all_reduce.Exchange)
        return word_sum.sum_by_words(x, self._words, residual)

    def sum(self, x: Tensor, residual: Tensor | None, twice: bool) -> Tensor:
        """Return the sum of the ranks' `x` in rank order, plus `residual` if there is one.

        `twice`: each rank sums a part first.
        """
        from .kernels.triton import all_reduce

        assert isinstance(self._exchange, all_reduce.Exchange)
        return all_reduce.all_reduce(x, self._exchange, twice, residual)
