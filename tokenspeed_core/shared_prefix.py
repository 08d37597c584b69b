# SPDX-License-Identifier: MIT
"""Which rows of a decode step have leading blocks in common, as columns that kernels read."""

from collections import deque
from itertools import pairwise

import attrs
import numpy as np

from .block_table import Int32

# A range of blocks is read once for its rows where that saves this many reads of a token in all,
# and its rows are this many: less does not pay for the merge.
MIN_SAVED = 16384
MIN_ROWS = 4
# No part is shorter than this many tokens, but for what is left of a range.
MIN_PART = 256
# About so many rows fill the tile of one program.
_TILE_ROWS = 32


@attrs.frozen
class SharedRange:
    """Tokens `begin` to `end` that rows `order[first : first + count]` have in the same blocks."""

    first: int
    count: int
    begin: int
    end: int


@attrs.frozen(eq=False)
class SharedPrefix:
    """Columns `shared_parts` [p, 5] and `shared_rows` [r, 3] of a batch; see `ops/batch.py`."""

    parts: Int32
    rows: Int32

    @classmethod
    def of(
        cls, tables: Int32, lens: Int32, block_size: int, num_parts: int, most_parts: int
    ) -> "SharedPrefix | None":
        """Return what rows with block tables [r, t] and context lengths [r] share.

        Lengths count the new token; its block is nobody else's.  None where sharing does not pay.
        There are at most `num_parts` parts, `most_parts` of a row; about half of that fills the
        device.
        """
        order, common = _sorted(tables, (lens - 1) // block_size)
        ranges = _ranges(common, block_size, num_parts // 2)
        if not ranges:
            return None
        work = sum(each.end - each.begin for each in ranges for _ in range(_tiles(each)))
        share = max(MIN_PART, -(-work // max(1, num_parts - len(ranges))))
        share = -(-share // block_size) * block_size
        parts: list[tuple[int, int, int, int, int]] = []
        rows = np.zeros((len(lens), 3), np.int32)
        rows[:, 0] = order
        shared, number = rows[:, 1], rows[:, 2]
        for each in ranges:
            own = order[each.first : each.first + each.count]
            used = int(number[own[0]])
            if shared[own[0]] != each.begin or used >= most_parts:
                continue  # what it builds on was left out, or there is no room
            size = max(share, -(-(each.end - each.begin) // (most_parts - used)))
            size = -(-size // block_size) * block_size
            for begin in range(each.begin, each.end, size):
                end = min(begin + size, each.end)
                parts.append((each.first, each.count, begin, end, used))
                used += 1
            shared[own], number[own] = each.end, used
        assert len(parts) <= num_parts
        return cls(np.array(parts, np.int32), rows)


def _tiles(each: SharedRange) -> int:
    return -(-each.count // _TILE_ROWS)


def _sorted(tables: Int32, full: Int32) -> tuple[Int32, Int32]:
    """Return an order [r] of rows that keeps sharers together, and the blocks [r-1] that each row
    has in common with the next; `full` are each row's blocks that may be shared."""
    width = int(full.max(initial=0))
    # One more column, and no two rows alike in it, so that each pair differs somewhere.
    ids = np.empty((len(full), width + 1), np.int32)
    ids[:, :width] = tables[:, :width]
    own = -1 - np.arange(len(full), dtype=np.int32)[:, None]
    np.copyto(ids, own, where=np.arange(width + 1) >= full[:, None])
    # Any order of bytes keeps equal beginnings together.
    keys = [row.tobytes() for row in ids]
    order = np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int32)
    ids = ids[order]
    return order, (ids[1:] != ids[:-1]).argmax(1).astype(np.int32)


def _ranges(common: Int32, block_size: int, most: int) -> list[SharedRange]:
    """Return the ranges worth reading once, ranges before those that build on them."""
    found: list[SharedRange] = []
    groups = deque([(0, len(common) + 1, 0)])  # rows first to last, whose tokens before are shared
    while groups and len(found) < most:
        first, last, begin = groups.popleft()
        if last - first < MIN_ROWS:
            continue
        inside = common[first : last - 1]
        depth = int(inside.min())
        end = depth * block_size
        if (end - begin) * (last - first - 1) >= MIN_SAVED:
            found.append(SharedRange(first, last - first, begin, end))
            begin = end
        cuts = (first + 1 + np.flatnonzero(inside == depth)).tolist()
        bounds = [first, *cuts, last]
        groups.extend((low, high, begin) for low, high in pairwise(bounds))
    return found
