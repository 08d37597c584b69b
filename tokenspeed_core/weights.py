# SPDX-License-Identifier: MIT
"""Weights from a checkpoint straight into a rank's packs."""

import math
import zlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .checkpoint import Checkpoint
from .kernels.float8 import Float8Matrix
from .models.checkpoint import Source
from .sharding import RankPlan
from .sharding.storage import Member
from .weight_format import PLAIN, formatted

Progress = Callable[[int, int], None]
_CPU = torch.device("cpu")


class WeightsError(ValueError):
    """A checkpoint's tensor does not fit the parameter that needs it."""


def load_weights(
    plan: RankPlan,
    sources: Mapping[str, Source],
    checkpoint: Checkpoint,
    rank: int,
    progress: Progress = lambda done, total: None,
    device: torch.device = _CPU,
    form: str = PLAIN,
) -> dict[str, Tensor | Float8Matrix]:
    """Return rank's packs by name, reading only the slices that it keeps.

    Each takes its `form` (see `weight_format`) before the next is read.  `sources` says where each
    parameter path stands in the checkpoint; `progress(done, total)` is called in bytes of packs.

    Raises:
        WeightsError: a tensor's shape is not that of its parameter.
        CheckpointError: a tensor is missing or damaged.
    """
    packs: dict[str, Tensor | Float8Matrix] = {}
    total = sum(math.prod(pack.shape) * pack.dtype.itemsize for pack in plan.storage)
    done = 0
    for pack in plan.storage:
        target = plan.allocate_pack(pack, device)
        for member in pack.members:
            if member.path not in plan.constants:
                _write(target, member, sources[member.path], checkpoint, plan, rank)
        packs[pack.name] = formatted(pack, target, form)
        done += target.nbytes
        progress(done, total)
    return packs


def dummy_weights(
    plan: RankPlan, rank: int, device: torch.device = _CPU, form: str = PLAIN
) -> dict[str, Tensor | Float8Matrix]:
    """Return rank's packs of random weights, which for one device type depend on no layout.

    Norms and biases are near one, matrices have standard deviation `i ** -0.5` for i inputs.
    """
    packs: dict[str, Tensor | Float8Matrix] = {}
    for pack in plan.storage:
        target = plan.allocate_pack(pack, device)
        for member in pack.members:
            if member.path in plan.constants:
                continue
            draw = torch.Generator(device).manual_seed(zlib.crc32(member.path.encode()))
            whole = torch.empty(member.sizes, dtype=pack.dtype, device=device)
            if target.dim() == 1:
                whole.normal_(1.0, 0.1, generator=draw)
            else:
                whole.normal_(0.0, member.num_inputs**-0.5, generator=draw)
            member.write(target, whole[member.slices(plan.mesh, rank)])
        packs[pack.name] = formatted(pack, target, form)
    return packs


def _write(
    target: Tensor,
    member: Member,
    source: Source,
    checkpoint: Checkpoint,
    plan: RankPlan,
    rank: int,
) -> None:
    source = source.among(checkpoint.names)
    sizes = dict(zip(member.names, member.sizes, strict=True))
    slices = dict(zip(member.names, member.slices(plan.mesh, rank), strict=True))
    expected = source.shape(sizes)

    def read(name: str, window: tuple[slice, ...]) -> Tensor:
        stored = checkpoint.shape(name)
        if stored != expected:
            raise WeightsError(
                f"tensor {name} has shape {list(stored)}, but the config makes parameter "
                f"{member.path} {list(expected)} ({source.pattern}); config and weights do not "
                f"match"
            )
        return checkpoint.read(name, window)

    member.write(target, source.load(read, member.names, sizes, slices))
