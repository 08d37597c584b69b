# SPDX-License-Identifier: MIT
"""Block groups: which layers of a plan keep the same of the past, and the memory they share.

All groups live in one memory of *parents*, pieces of one size.  A group has `share` blocks in a
parent and block b lies in parent b // share, so memory is never split between groups beforehand.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from .ipc.codec import int32_column
from .ipc.messages import GroupKind
from .ops import CacheKind
from .sharding import RankPlan, map_leaves
from .sharding.plan import CacheShape, zeros

ALIGNMENT = 128  # bytes: where a tensor begins in a block that holds several

# A snapshot of a state is worth its memory where the keys and values since the last one take as
# much; but no conversation shall compute more tokens than these twice.
MOST_INTERVAL = 1024

_KINDS = {
    CacheKind.FULL: GroupKind.FULL,
    CacheKind.WINDOW: GroupKind.WINDOW,
    CacheKind.STATE: GroupKind.STATE,
}


class BlockGroupsError(ValueError):
    """The caches of a model cannot share one memory of blocks."""


@attrs.frozen
class BlockGroup:
    """Layers that keep the same of the past, in blocks of `tokens` each.

    `span` is the window, or the tokens between two snapshots of a state; 0 if all is kept.
    """

    kind: GroupKind
    tokens: int
    span: int
    share: int  # blocks in a parent
    layers: tuple[int, ...]
    block_bytes: int  # from one block to the next

    def blocks(self, tokens: int) -> int:
        """Return the blocks that a request with so many tokens holds, between its chunks."""
        if self.kind == GroupKind.STATE:
            return 1
        kept = min(tokens, self.span + self.tokens) if self.span else tokens
        return -(-kept // self.tokens)


@attrs.frozen
class BlockGroups:
    """The groups of a plan, at most one of a kind, the first one FULL; equal on all ranks."""

    groups: tuple[BlockGroup, ...]
    parent_bytes: int

    def __iter__(self) -> Iterator[BlockGroup]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def first(self) -> BlockGroup:
        """The FULL group, in whose blocks prefixes are counted."""
        return self.groups[0]

    def of_rank(self, plan: RankPlan, rank: int) -> "BlockGroups":
        """Return the groups of the layers that a rank of a pipeline has, by their place there.

        Blocks and shares are those of all ranks, bytes those of the rank's layers.
        """
        if not plan.parts:
            return self
        part, own = plan.parts[plan.mesh.index(rank, plan.mesh.stages)], plan.of_rank(rank)
        kept = [
            tuple(layer - part.start for layer in group.layers if part.start <= layer < part.stop)
            for group in self
        ]
        if len(self) == 1:
            size = sum(_bytes(shape) for layer in own.cache for shape in layer)
            return BlockGroups((attrs.evolve(self.first, layers=kept[0], block_bytes=size),), size)
        unit = math.lcm(*(group.share for group in self)) * ALIGNMENT
        shares = zip(kept, self, strict=True)
        parent = _whole(max(_size(own, layers) * group.share for layers, group in shares), unit)
        groups = (
            attrs.evolve(group, layers=layers, block_bytes=parent // group.share)
            for layers, group in zip(kept, self, strict=True)
        )
        return BlockGroups(tuple(groups), parent)

    def parents(self, tokens: int) -> int:
        """Return the parents that a request with so many tokens holds, between its chunks."""
        return sum(-(-group.blocks(tokens) // group.share) for group in self.groups)


def block_groups(
    plan: RankPlan, block_size: int, max_model_len: int, state_interval: int = 0
) -> BlockGroups:
    """Return the groups of a plan's caches: layers of one kind are together.

    Windows share a group as long as the longest, in whole blocks; they join the FULL one where
    nothing else is, or where no request grows out of them.  States have a snapshot every
    `state_interval` tokens, in whole blocks; 0 chooses by what it costs.

    Raises:
        BlockGroupsError: no layer keeps tokens, or a cache's class does not say what it keeps.
    """
    layers: dict[CacheKind, list[int]] = {}
    for index, cache in enumerate(plan.caches):
        layers.setdefault(_kind(cache), []).append(index)
    windows = [plan.caches[index].span for index in layers.get(CacheKind.WINDOW, ())]
    window = _whole(max(windows, default=0), block_size)
    if windows and (CacheKind.FULL not in layers or window >= max_model_len):
        joined = layers.pop(CacheKind.WINDOW) + layers.get(CacheKind.FULL, [])
        layers[CacheKind.FULL] = sorted(joined)
    if CacheKind.FULL not in layers:
        raise BlockGroupsError(
            f"{plan.name} has {len(plan.caches)} layers, and none of them keeps keys and values; "
            f"one of them must be attention"
        )
    kinds = [kind for kind in CacheKind if kind in layers]
    if len(kinds) == 1:
        size = sum(_bytes(shape) for layer in plan.cache for shape in layer)
        only = BlockGroup(GroupKind.FULL, block_size, 0, 1, tuple(layers[kinds[0]]), size)
        return BlockGroups((only,), size)
    sizes = [_size(plan, layers[kind]) for kind in kinds]
    parent = _parent_bytes(sizes)
    interval = state_interval or min(block_size * -(-sizes[-1] // sizes[0]), MOST_INTERVAL)
    spans = {CacheKind.WINDOW: window, CacheKind.STATE: _whole(interval, block_size)}
    groups = []
    for kind, size in zip(kinds, sizes, strict=True):
        share = _share(parent, size)
        span = spans.get(kind, 0)
        own = tuple(layers[kind])
        groups.append(BlockGroup(_KINDS[kind], block_size, span, share, own, parent // share))
    return BlockGroups(tuple(groups), parent)


def group_columns(groups: BlockGroups) -> dict[str, Any]:
    """Return the group columns of a worker's Hello; none for one group."""
    if len(groups) == 1:
        return {}
    return {
        "group_kinds": bytes(group.kind for group in groups),
        "group_tokens": int32_column(group.tokens for group in groups),
        "group_spans": int32_column(group.span for group in groups),
        "group_shares": int32_column(group.share for group in groups),
    }


def allocate_caches(
    plan: RankPlan, groups: BlockGroups, num_parents: int, device: str | torch.device = "cpu"
) -> Any:
    """Return zeroed caches of `num_parents` parents, layer by layer, as the program takes them.

    With one group each tensor is contiguous.  With several they are views of one memory: the
    tensors of a group lie side by side in its blocks, which are `block_bytes` apart.
    """
    if len(groups) == 1:
        return plan.allocate_caches(num_parents, device)
    memory = zeros((num_parents * groups.parent_bytes,), torch.uint8, device)
    return _caches_in(memory, plan, groups)


def allocate_host(plan: RankPlan, groups: BlockGroups, num_parents: int, pinned: bool) -> Any:
    """Return the same for the host tier of several groups, with whatever the memory holds."""
    size = num_parents * groups.parent_bytes
    return _caches_in(torch.empty(size, dtype=torch.uint8, pin_memory=pinned), plan, groups)


def _caches_in(memory: Tensor, plan: RankPlan, groups: BlockGroups) -> Any:
    num_parents = len(memory) // groups.parent_bytes
    views: dict[str, Tensor] = {}
    for group in groups:
        blocks = num_parents * group.share
        for path, shape, start in _members(plan, group.layers):
            views[path] = _view(memory, shape, start, group.block_bytes, blocks)
    return map_leaves(lambda path, _: views[path], plan.caches)


def _view(memory: Tensor, shape: CacheShape, start: int, step: int, blocks: int) -> Tensor:
    sizes = shape.blocks(blocks)
    size = shape.dtype.itemsize
    inner = torch.empty(sizes[1:], device="meta").stride()
    return memory.view(shape.dtype).as_strided(sizes, (step // size, *inner), start // size)


def _kind(cache: Any) -> CacheKind:
    kind = getattr(cache, "keeps", None)
    if not isinstance(kind, CacheKind):
        raise BlockGroupsError(
            f"cache {type(cache).__name__} does not say what it keeps of the past; give the class "
            f"a line such as `keeps = CacheKind.FULL`"
        )
    return kind


def _bytes(shape: CacheShape) -> int:
    return math.prod(shape.blocks(1)) * shape.dtype.itemsize


def _members(plan: RankPlan, layers: Sequence[int]) -> Iterator[tuple[str, CacheShape, int]]:
    """Yield (path among the caches, shape, where it begins in a block) of these layers' tensors."""
    start = 0
    for layer in layers:
        for shape in plan.cache[layer]:
            yield f"{layer}.{shape.name}", shape, start
            start += _whole(_bytes(shape), ALIGNMENT)


def _size(plan: RankPlan, layers: Sequence[int]) -> int:
    """Return the bytes of a block of these layers."""
    return sum(_whole(_bytes(shape), ALIGNMENT) for _, shape, _ in _members(plan, layers))


def _parent_bytes(sizes: Sequence[int]) -> int:
    """Return the largest size in whole first blocks, or what all fill if that wastes a lot."""
    largest, common = _whole(max(sizes), sizes[0]), math.lcm(*sizes)
    wasted = max(largest % size for size in sizes)
    return common if 16 * wasted > largest and common <= 4 * largest else largest


def _share(parent: int, size: int) -> int:
    """Return how many blocks of at least `size` bytes a parent is cut into, evenly."""
    return next(n for n in range(parent // size, 0, -1) if parent % (n * ALIGNMENT) == 0)


def _whole(count: int, unit: int) -> int:
    return -(-count // unit) * unit
