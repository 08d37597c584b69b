# SPDX-License-Identifier: MIT
"""Copies from the host to a device that the host does not wait for."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor

from .sharding import leaves, map_leaves

Tree = TypeVar("Tree")


def uploaded(array: NDArray[Any], device: torch.device) -> Tensor:
    """Return a copy of an array on the device, made behind what is queued there."""
    if device.type == "cpu":
        return torch.tensor(array)
    return torch.tensor(array).pin_memory().to(device, non_blocking=True)


def moved(tree: Tree, device: torch.device) -> Tree:
    """Return a module with its tensors on the device: they travel in one pinned copy."""
    columns = [leaf for _, leaf in leaves(tree) if isinstance(leaf, Tensor)]
    there = iter(_moved(columns, device))
    found: Tree = map_leaves(
        lambda path, leaf: next(there) if isinstance(leaf, Tensor) else leaf, tree
    )
    return found


def _moved(columns: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    # Each begins at a multiple of 16 bytes, where a view of any dtype may begin.
    starts = [0, *accumulate(-(-column.nbytes // 16) * 16 for column in columns)]
    slab = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=device.type == "cuda")
    for mine, column in zip(_views(slab, starts, columns), columns, strict=True):
        mine.copy_(column)
    return _views(slab.to(device, non_blocking=True), starts, columns)


def _views(slab: Tensor, starts: Sequence[int], like: Sequence[Tensor]) -> list[Tensor]:
    return [
        slab[start : start + each.nbytes].view(each.dtype).view(each.shape)
        for start, each in zip(starts, like, strict=False)
    ]
