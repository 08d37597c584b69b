# SPDX-License-Identifier: MIT
"""Collectives of an emitted program between real processes."""

import attrs
import torch
import torch.distributed as dist
from torch import Tensor


@attrs.frozen
class Group:
    """The ranks that differ from this one along one mesh axis only, in mesh order."""

    process_group: dist.ProcessGroup
    size: int
    rank: int


class Collectives:
    """Binds a program's collectives, by mesh axis, to torch.distributed.

    Sums are taken in rank order in float32 or wider, so a reduced value has the same bits on every
    rank and whatever the transport.
    """

    def __init__(self, groups: dict[str, Group]) -> None:
        self._groups = groups

    def rank(self, axis: str) -> int:
        """This rank's coordinate along `axis`; 0 on an axis of size 1."""
        group = self._groups.get(axis)
        return group.rank if group else 0

    def all_gather(self, x: Tensor, axis: str, dim: int) -> Tensor:
        """Concatenate the ranks' x along `dim`, in rank order."""
        return torch.cat(self._exchange(x, axis), dim)

    def all_reduce(self, x: Tensor, axis: str) -> Tensor:
        """Sum the ranks' x in rank order."""
        return _sum(self._exchange(x, axis), x.dtype)

    def reduce_scatter(self, x: Tensor, axis: str, dim: int) -> Tensor:
        """Sum the ranks' x in rank order and keep this rank's even part of `dim`."""
        group = self._groups[axis]
        parts = [part.chunk(group.size, dim)[group.rank] for part in self._exchange(x, axis)]
        return _sum(parts, x.dtype)

    def all_to_all(self, x: Tensor, axis: str, source: int, dim: int) -> Tensor:
        """Send each rank its even part of `dim`; concatenate what comes along `source`."""
        group = self._groups[axis]
        sent = torch.stack(x.chunk(group.size, dim))
        parts = torch.empty_like(sent)
        dist.all_to_all_single(parts, sent, group=group.process_group)
        return torch.cat(tuple(parts), source)

    def _exchange(self, x: Tensor, axis: str) -> list[Tensor]:
        group = self._groups[axis]
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(group.size)]
        dist.all_gather(parts, x, group=group.process_group)
        return parts


def _sum(parts: list[Tensor], dtype: torch.dtype) -> Tensor:
    wide = torch.promote_types(dtype, torch.float32)
    total = parts[0].to(wide)
    for part in parts[1:]:
        total = total + part.to(wide)
    return total.to(dtype)
