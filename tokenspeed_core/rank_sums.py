# SPDX-License-Identifier: MIT
"""Sums over the ranks of a group, in rank order whichever way the bytes travel."""

import logging
import statistics
from collections.abc import Callable, Mapping

import attrs
import torch
import torch.distributed as dist
from torch import Tensor

from .direct_sums import DirectSums
from .graph import Graph, replay_ms
from .kernels import rank_sum as _rank_sum  # noqa: F401  (registers it)
from .kernels.registry import select
from .rank_groups import Group, RankGroups

_log = logging.getLogger(__name__)

# Its name from torch 2.13 on, and before.
all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor

GATHER = "gather"  # every rank gets every part and sums all
SCATTER = "scatter"  # every rank gets its part of all, sums it and gathers the sums
ONE_HOP = "one hop"  # the same as GATHER in one launch, over memory that peers read
TWO_HOPS = "two hops"  # the same as SCATTER in one launch
WORDS = "words"  # of few bytes: the same as GATHER in one launch, written into peers' memory

# Sizes that are timed, as powers of two: of smaller sums the time is that of the smallest.
_SMALLEST, _LARGEST = 12, 26
_CALLS, _REPEATS = 16, 5


def gathered(x: Tensor, group: Group) -> Tensor:
    """Return the ranks' `x[...]` as `[ranks,...]`."""
    x = x.contiguous()
    parts = x.new_empty(group.size, *x.shape)
    all_gather(parts.view(-1), x.view(-1), group=group.process_group)
    return parts


def exchanged(x: Tensor, group: Group) -> Tensor:
    """Send `x[r,...]` to rank r; return what came from each rank `[ranks,...]`."""
    came = torch.empty_like(x)
    dist.all_to_all_single(came, x.contiguous(), group=group.process_group)
    return came


Way = Callable[[Tensor, Tensor | None], Tensor]


def rank_sum(parts: Tensor, residual: Tensor | None = None) -> Tensor:
    """Return the sum `[...]` of `parts[ranks,...]` in rank order, plus `residual[...]`."""
    run = select("rank_sum", "cpu" if parts.is_cpu else parts.device.type, parts.dtype)
    total: Tensor = run(parts, residual)
    return total


@attrs.frozen(eq=False)
class RankSums:
    """The ways to sum over one group, and which of them is taken by size.

    `choices` has the way for at most `2 ** key` bytes; larger sums go by the largest key's.
    """

    group: Group
    direct: DirectSums | None
    choices: Mapping[int, str]

    @classmethod
    def of(cls, group: Group, ranks: RankGroups) -> "RankSums":
        """Return what sums over `group`; on GPUs every way is timed and ranks agree on the best."""
        unmeasured = cls(group, DirectSums.of(group, ranks), {_LARGEST: GATHER})
        if ranks.device.type != "cuda":
            return unmeasured
        choices = {}
        for size in range(_SMALLEST, _LARGEST + 1):
            x = torch.zeros(2 ** (size - 1), dtype=torch.bfloat16, device=ranks.device)
            ways = unmeasured.ways(x)
            spent = [microseconds(way, x, ranks.device) for way in ways.values()]
            # Times that all have seen, so that all choose alike.
            slowest = dict(zip(ways, ranks.greatest(spent), strict=True))
            choices[size] = min(ways, key=lambda name: slowest[name])
            times = ", ".join(f"{name} {us:.1f} us" for name, us in slowest.items())
            _log.info("sums of %d KiB: %s", 2**size >> 10, times)
        torch.cuda.empty_cache()  # what graphs held is the cache's
        return attrs.evolve(unmeasured, choices=choices)

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return the sum of the ranks' `x`, plus `residual` of the same type if there is one."""
        ways = self.ways(x)
        return ways.get(self.choice(x.nbytes), self._gather)(x, residual)

    def choice(self, nbytes: int) -> str:
        """Return the way to sum so many bytes."""
        size = max(nbytes - 1, 1).bit_length()
        return self.choices[min(max(size, min(self.choices)), max(self.choices))]

    def ways(self, x: Tensor) -> dict[str, Way]:
        """Return the ways that can sum `x`, by name."""
        ways: dict[str, Way] = {GATHER: self._gather}
        if self.group.size > 2 and x.numel() % self.group.size == 0:
            ways[SCATTER] = self._scatter
        if self.direct is not None and self.direct.takes(x):
            ways[ONE_HOP] = self._one_hop
            if self.direct.takes_words(x):
                ways[WORDS] = self._by_words
            if self.group.size > 2 and self.group.size & (self.group.size - 1) == 0:
                ways[TWO_HOPS] = self._two_hops
        return ways

    def _gather(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return rank_sum(gathered(x, self.group), residual)

    def _scatter(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        mine = rank_sum(exchanged(x.contiguous().view(self.group.size, -1), self.group))
        y = gathered(mine, self.group).view(x.shape)
        return y if residual is None else residual + y

    def _one_hop(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        assert self.direct is not None
        return self.direct.sum(x, residual, twice=False)

    def _by_words(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        assert self.direct is not None
        return self.direct.sum_by_words(x, residual)

    def _two_hops(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        assert self.direct is not None
        return self.direct.sum(x, residual, twice=True)


def microseconds(way: Callable[..., Tensor], x: Tensor, device: torch.device) -> float:
    """Return the median time of a call on a GPU, in a captured graph; each rank calls it."""

    def calls() -> Tensor:
        y = x
        for _ in range(_CALLS):
            y = way(x)
        return y

    with torch.inference_mode():
        graph = Graph(calls, device, torch.cuda.graph_pool_handle())
    return statistics.median(replay_ms(graph, device) for _ in range(_REPEATS)) * 1e3 / _CALLS
