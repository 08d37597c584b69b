# SPDX-License-Identifier: MIT
"""The blocks of one group, by slot: those of its tokens in order, or of a state the live one."""

import numpy as np
from numpy.typing import NDArray

from .block_groups import BlockGroup
from .ipc.messages import GroupKind
from .plan_error import PlanError

Int32 = NDArray[np.int32]


class BlockTable:
    """Grows by what plans append; a slot that is removed has none until it keeps some of them."""

    def __init__(
        self, group: BlockGroup, num_slots: int, max_blocks: int, num_parents: int
    ) -> None:
        self._tokens = group.tokens
        self._is_state = group.kind == GroupKind.STATE
        # Parent 0 is scratch.  A window's block that nobody reads is named 0.
        self._first = 0 if group.kind == GroupKind.WINDOW else group.share
        self._end = num_parents * group.share
        self._ids = np.zeros((num_slots, 1 if self._is_state else max_blocks), np.int32)
        self._used = np.zeros(num_slots, np.int32)
        self._former = np.zeros(num_slots, np.int32)  # blocks when the slot was removed

    def clear(self, slots: Int32) -> None:
        """Take these slots' blocks from them; the ids stay until others are appended."""
        self._former[slots] = self._used[slots]
        self._used[slots] = 0

    def keep(self, slots: Int32, counts: Int32, step: int) -> None:
        """Give slot `slots[i]`, just added, the first `counts[i]` blocks of its last table again.

        Raises:
            PlanError: it had fewer, or they are those of a state, which is written in place.
        """
        if self._is_state or counts.min() < 1 or (counts > self._former[slots]).any():
            raise PlanError(
                f"step {step}: slots {slots} keep {counts} blocks of "
                f"{0 if self._is_state else self._former[slots]}"
            )
        self._used[slots] = counts

    def append(self, slots: Int32, ids: Int32, step: int) -> tuple[Int32, Int32]:
        """Append block `ids[i]` to slot `slots[i]`, in this order.

        Returns what was written: flat places in the table, and the ids there.

        Raises:
            PlanError: an id is out of range, or a slot gets more than the model's length.
        """
        if ids.min() < self._first or ids.max() >= self._end:
            raise PlanError(
                f"step {step}: block ids {ids.min()}..{ids.max()} are not within "
                f"{self._first}..{self._end - 1}"
            )
        if self._is_state:
            for slot, block in zip(slots.tolist(), ids.tolist(), strict=True):
                self._ids[slot] = block
            self._used[slots] = 1
            written = np.unique(slots)
            return written, self._ids[written, 0]
        order = np.argsort(slots, kind="stable")
        ordered = slots[order]
        is_first = np.r_[True, ordered[1:] != ordered[:-1]]
        first = np.flatnonzero(is_first)
        within = np.arange(len(ordered)) - first[np.cumsum(is_first) - 1]
        places = self._used[ordered] + within
        if places.max() >= self._ids.shape[1]:
            raise PlanError(f"step {step}: a slot got more blocks than the model's length")
        self._ids[ordered, places] = ids[order]
        np.add.at(self._used, slots, 1)
        flat: Int32 = (ordered * self._ids.shape[1] + places).astype(np.int32)
        return flat, ids[order]

    def check(self, slots: Int32, lens: Int32, step: int) -> None:
        """Raise PlanError where a slot has no room for so many tokens."""
        room = self._used[slots] * (np.int32(2**30) if self._is_state else self._tokens)
        if (lens > room).any():
            raise PlanError(
                f"step {step}: contexts {lens} exceed {self._used[slots]} blocks of "
                f"{self._tokens} tokens for slots {slots}"
            )

    def rows(self, slots: Int32, width: int) -> Int32:
        """Return the first `width` blocks of each slot, [slots, width]."""
        return self._ids[slots, :width]

    def live(self, slots: Int32) -> NDArray[np.int64]:
        """Return the block of each slot's state."""
        found: NDArray[np.int64] = self._ids[slots, 0].astype(np.int64)
        return found

    def cache_slots(self, slots: Int32, positions: Int32) -> NDArray[np.int64]:
        """Return `block * tokens + offset` of tokens at `positions` of their `slots`."""
        blocks = self._ids[slots, positions // self._tokens]
        found: NDArray[np.int64] = blocks.astype(np.int64) * self._tokens + positions % self._tokens
        return found
