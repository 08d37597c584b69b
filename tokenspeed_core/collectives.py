# SPDX-License-Identifier: MIT
"""Collectives of an emitted program between real processes."""

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
import torch.distributed as dist
from torch import Tensor

from .pending import Pending, begun
from .rank_groups import Group, RankGroups
from .rank_sums import RankSums, exchanged, gathered, rank_sum
from .sharding.merge import merged
from .sharding.reduction import SUM, SUMS, reduced


@attrs.frozen(eq=False)
class Trip:
    """Where dispatched rows went: the rows by rank, how many there were, and the counts by rank."""

    rows: Tensor
    count: int
    sent: list[int]
    received: list[int]


class Collectives:
    """Binds a program's collectives, by mesh axis, to torch.distributed.

    Sums are taken in rank order in float32 or wider, so a reduced value has the same bits on every
    rank and whatever the transport.
    """

    def __init__(
        self, groups: Mapping[str, Group], sums: Mapping[str, RankSums], device: torch.device
    ) -> None:
        self._groups = groups
        self._sums = sums
        self._device = device

    @classmethod
    def of(cls, ranks: RankGroups) -> "Collectives":
        """Return the collectives of ranks that have met; on GPUs sums are timed here."""
        sums = {axis: RankSums.of(group, ranks) for axis, group in sorted(ranks.by_axis.items())}
        return cls(ranks.by_axis, sums, ranks.device)

    def rank(self, axis: str) -> int:
        """This rank's coordinate along `axis`; 0 on an axis of size 1."""
        group = self._groups.get(axis)
        return group.rank if group else 0

    def size(self, axis: str) -> int:
        """How many ranks stand along `axis`."""
        group = self._groups.get(axis)
        return group.size if group else 1

    def start(self, kind: str, x: Tensor, axis: str, *given: Any) -> Pending:
        """Begin a collective of those that `begun` knows; `x` must stay as it is until `wait`.

        Every rank starts the collectives of a group in one order.
        """
        return begun(kind, x, self._groups[axis], *given)

    def wait(self, pending: Pending) -> Tensor:
        """Return the result of a collective that was started."""
        return pending.ended()

    def all_gather(self, x: Tensor, axis: str, dim: int) -> Tensor:
        """Concatenate the ranks' x along `dim`, in rank order."""
        return torch.cat(tuple(self._exchange(x, axis)), dim)

    def all_reduce(self, x: Tensor, axis: str, kind: str = SUM) -> Tensor:
        """Sum the ranks' x in rank order, or reduce them by another `kind`."""
        if kind in SUMS:
            return self._sums[axis](x)
        return reduced(self._exchange(x, axis), kind)

    def all_reduce_add(self, x: Tensor, axis: str, residual: Tensor) -> Tensor:
        """Return `residual` plus the sum of the ranks' x in rank order."""
        return self._sums[axis](x, residual)

    def reduce_scatter(self, x: Tensor, axis: str, dim: int, kind: str = SUM) -> Tensor:
        """Sum the ranks' x in rank order and keep this rank's even part of `dim`."""
        group = self._groups[axis]
        return rank_sum(exchanged(torch.stack(x.chunk(group.size, dim)), group))

    def all_to_all(self, x: Tensor, axis: str, source: int, dim: int) -> Tensor:
        """Send each rank its even part of `dim`; concatenate what comes along `source`."""
        group = self._groups[axis]
        return torch.cat(tuple(exchanged(torch.stack(x.chunk(group.size, dim)), group)), source)

    def merge(self, x: Tensor, axis: str, dtype: str) -> Tensor:
        """Merge the ranks' shares of attention `x[..., h+1]` by their log-sum-exps, to `dtype`."""
        return merged(self._exchange(x, axis)).to(getattr(torch, dtype))

    def all_gathers(self, values: tuple[Tensor, ...], axis: str, dim: int) -> tuple[Tensor, ...]:
        """Gather several values, as bytes of one collective."""
        sizes = [value.numel() * value.element_size() for value in values]
        parts = [torch.split(part, sizes) for part in self._exchange(_bytes(values), axis)]
        return tuple(
            torch.cat(
                [part[index].clone().view(value.dtype).view(value.shape) for part in parts], dim
            )
            for index, value in enumerate(values)
        )

    def send(self, axis: str, *values: Tensor) -> None:
        """Send values to the next place along `axis`, as bytes of one message."""
        group = self._groups[axis]
        dist.send(_bytes(values), group=group.process_group, group_dst=group.rank + 1)

    def receive(self, axis: str, *types: tuple[Any, ...]) -> list[Tensor]:
        """Return what the place before sends: a (dtype, sizes...) for each value."""
        group = self._groups[axis]
        values = [self._empty(given) for given in types]
        size = sum(value.nbytes for value in values)
        packed = torch.empty(size, dtype=torch.uint8, device=self._device)
        dist.recv(packed, group=group.process_group, group_src=group.rank - 1)
        parts = torch.split(packed, [value.nbytes for value in values])
        for value, part in zip(values, parts, strict=True):
            value.view(-1).view(torch.uint8).copy_(part)
        return values

    def carried(self, x: Tensor, axis: str, source: int, target: int) -> Tensor | None:
        """Bring x from place `source` of `axis` to `target`, where it is returned.

        Both call it, with tensors of one shape.
        """
        group = self._groups[axis]
        if group.rank == source:
            dist.send(_bytes((x,)), group=group.process_group, group_dst=target)
            return None
        came = torch.empty_like(x, memory_format=torch.contiguous_format)
        packed = came.view(-1).view(torch.uint8)
        dist.recv(packed, group=group.process_group, group_src=source)
        return came

    def publish(self, axis: str, x: Tensor) -> Tensor:
        """Return x, the value of the last place along `axis`, after sending it to all others."""
        group = self._groups[axis]
        dist.broadcast(_bytes((x,)), group=group.process_group, group_src=group.size - 1)
        return x

    def published(self, axis: str, given: tuple[Any, ...]) -> Tensor:
        """Return the value, (dtype, sizes...), that the last place along `axis` publishes."""
        group, value = self._groups[axis], self._empty(given)
        packed = value.view(-1).view(torch.uint8)
        dist.broadcast(packed, group=group.process_group, group_src=group.size - 1)
        return value

    def dispatch(
        self, x: Tensor, ids: Tensor, weights: Tensor, axis: str, share: int
    ) -> tuple[Tensor, Tensor, Tensor, "Trip"]:
        """Send the rows of `x[n,d]`, `ids[n,a]`, `weights[n,a]` to the ranks of their experts.

        Rank p has the experts from `p * share` on.  Returns the rows that came, by rank, and how
        to send results back.  The host waits for the counts of rows.
        """
        group = self._groups[axis]
        wanted = torch.arange(group.size, device=ids.device)
        places, rows = ((ids // share)[:, :, None] == wanted).any(1).T.nonzero(as_tuple=True)
        sent = torch.bincount(places, minlength=group.size)
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, group=group.process_group)
        trip = Trip(rows, len(x), sent.tolist(), received.tolist())
        values = [value[rows] for value in (x, ids, weights)]
        widths = [value[0:1].numel() * value.element_size() for value in values]
        packed = torch.cat([value.view(torch.uint8).view(len(rows), -1) for value in values], 1)
        came = torch.split(self._send(packed, trip.sent, trip.received, group), widths, 1)
        x_here, ids_here, weights_here = (
            part.clone(memory_format=torch.contiguous_format).view(value.dtype)
            for part, value in zip(came, values, strict=True)
        )
        return x_here, ids_here, weights_here, trip

    def combine(self, y: Tensor, trip: "Trip", axis: str) -> Tensor:
        """Bring results back to the ranks of their rows; sum them in rank order."""
        back = self._send(y, trip.received, trip.sent, self._groups[axis])
        total = y.new_zeros(
            trip.count, *y.shape[1:], dtype=torch.promote_types(y.dtype, torch.float32)
        )
        for rows, part in zip(
            torch.split(trip.rows, trip.sent), torch.split(back, trip.sent), strict=True
        ):
            total.index_add_(0, rows, part.to(total.dtype))
        return total.to(y.dtype)

    def _empty(self, given: tuple[Any, ...]) -> Tensor:
        dtype, *sizes = given
        return torch.empty(sizes, dtype=getattr(torch, dtype), device=self._device)

    @staticmethod
    def _send(x: Tensor, sent: list[int], received: list[int], group: Group) -> Tensor:
        came = x.new_empty(sum(received), *x.shape[1:])
        dist.all_to_all_single(came, x.contiguous(), received, sent, group=group.process_group)
        return came

    def _exchange(self, x: Tensor, axis: str) -> Sequence[Tensor]:
        return gathered(x, self._groups[axis]).unbind()


def _bytes(values: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([value.contiguous().view(-1).view(torch.uint8) for value in values])
