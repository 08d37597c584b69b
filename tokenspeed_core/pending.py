# SPDX-License-Identifier: MIT
"""Collectives in two halves: begun, while a rank computes something else, and ended."""

from collections.abc import Callable
from typing import Any

import attrs
import torch
import torch.distributed as dist
from torch import Tensor

from .rank_groups import Group
from .rank_sums import all_gather, rank_sum
from .sharding.reduction import SUM, SUMS, reduced


@attrs.frozen(eq=False)
class Pending:
    """A collective that goes on: the backend's handle, what it reads, and what makes its result.

    On a GPU the wait holds up the stream, not the host.
    """

    work: Any
    operand: Tensor
    end: Callable[[], Tensor]

    def ended(self) -> Tensor:
        """Wait, and return the result."""
        self.work.wait()
        return self.end()


def begun(kind: str, x: Tensor, group: Group, *given: Any) -> Pending:
    """Begin all_gather(dim), all_reduce(kind), reduce_scatter(dim, kind), all_to_all(source, dim).

    Results have the bits of the same collective in one piece.
    """
    if kind in ("all_gather", "all_reduce"):
        x = x.contiguous()
        came = x.new_empty(group.size, *x.shape)
        work = all_gather(came.view(-1), x.view(-1), group=group.process_group, async_op=True)
    else:
        x = torch.stack(x.chunk(group.size, given[0 if kind == "reduce_scatter" else 1]))
        came = torch.empty_like(x)
        work = dist.all_to_all_single(came, x, group=group.process_group, async_op=True)

    def end() -> Tensor:
        if kind in ("all_gather", "all_to_all"):
            return torch.cat(tuple(came), given[0])
        owed = given[-1] if given and isinstance(given[-1], str) else SUM
        return rank_sum(came) if owed in SUMS else reduced(tuple(came), owed)

    return Pending(work, x, end)
