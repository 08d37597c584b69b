# SPDX-License-Identifier: MIT
"""The ranks of an engine as torch.distributed knows them: gloo on hosts, NCCL between GPUs."""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

import attrs
import torch
import torch.distributed as dist

# Sums are taken in rank order, which a switch that reduces does not keep; and multicast objects
# outlive a process that dies.
_WITHOUT_MULTICAST = {
    "NCCL_NVLS_ENABLE": "0",
    "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
}


@attrs.frozen
class Group:
    """The ranks that differ from this one along one mesh axis only, in mesh order."""

    process_group: dist.ProcessGroup
    size: int
    rank: int


@attrs.frozen(eq=False)
class RankGroups:
    """This rank's group along each mesh axis, and what all ranks of the engine agree on."""

    by_axis: Mapping[str, Group] = attrs.field(factory=dict)
    device: torch.device = attrs.field(factory=lambda: torch.device("cpu"))
    world: int = 1
    rank: int = 0

    @classmethod
    def join(
        cls,
        groups: Mapping[str, Sequence[Sequence[int]]],
        world: int,
        rank: int,
        rendezvous: str,
        device: torch.device,
    ) -> "RankGroups":
        """Meet `world` ranks at `rendezvous`, an init method of torch; `groups` as a plan's.

        On GPUs each group's communicator is set up here: a graph could not capture that.
        """
        if world == 1:
            return cls(device=device)
        on_gpu = device.type == "cuda"
        if on_gpu:
            for name, value in _WITHOUT_MULTICAST.items():
                os.environ.setdefault(name, value)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            init_method=rendezvous,
            rank=rank,
            world_size=world,
            device_id=device if on_gpu else None,
        )
        joined = {}
        # Every rank creates every group, in one order: torch.distributed demands it.
        for name, members in sorted(groups.items()):
            for ranks in members:
                process_group = dist.new_group(list(ranks), backend="nccl" if on_gpu else "gloo")
                if rank in ranks:
                    joined[name] = Group(process_group, len(ranks), ranks.index(rank))
        if on_gpu:
            for _, group in sorted(joined.items()):
                dist.all_reduce(torch.ones(1, device=device), group=group.process_group)
            torch.cuda.synchronize(device)
        return cls(joined, device, world, rank)

    def smallest(self, value: int) -> int:
        """Return the smallest `value` of all ranks; each calls it, in one order."""
        if self.world == 1:
            return value
        found = torch.tensor(value)
        dist.all_reduce(found, dist.ReduceOp.MIN)
        return int(found)

    def any(self, wanted: bool) -> bool:
        """Whether any rank says so; each calls it, in one order."""
        return not self.smallest(int(not wanted))

    def greatest(self, values: Sequence[float]) -> list[float]:
        """Return the greatest of all ranks' values, place by place; each calls it, in one order."""
        if self.world == 1:
            return list(values)
        found = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        largest: list[float] = found.tolist()
        return largest

    def leave(self) -> None:
        """End what the ranks share; each calls it when none waits for another.

        Gloo's threads must be gone before a process ends; of GPUs none may read another's memory.
        """
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self.smallest(0)
        elif self.world > 1:
            dist.barrier()
            dist.destroy_process_group()

    def exit(self, code: int) -> NoReturn:
        """End this process; between GPUs at once, since peers may be gone.

        NCCL ends a communicator only after the graphs that captured it, which last.
        """
        if self.world > 1 and self.device.type == "cuda":
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(code)
        sys.exit(code)
