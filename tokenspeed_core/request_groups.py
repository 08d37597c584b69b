# SPDX-License-Identifier: MIT
"""Which group of ranks serves the request of each slot, and which groups hold each block.

Where a layout spreads requests (`requests:dp`), each request lives on one group: only its ranks
write and read its blocks.  Nobody decides that for all: every rank derives it from the plans, which
all ranks see in one order.
"""

from collections.abc import Iterator

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .block_table import Int32
from .ipc.messages import StepPlan
from .ops.batch import Batch
from .ops.sampling import SamplingRows
from .shaper import NO_SHAPERS
from .slots import Step


@attrs.frozen
class Fetch:
    """Blocks that the ranks of group `target` have to copy from those of group `source`."""

    source: int
    target: int
    blocks: Int32


class RequestGroups:
    """Slots and blocks by group.

    A new request goes where the fewest run, among those to the group that holds most of what was
    found of its prompt; found blocks that lie elsewhere are fetched, and are held by both then.  A
    block may be found in the step that writes it: its reader joins the writer's group.
    """

    def __init__(self, count: int, num_slots: int, num_blocks: int, block_size: int) -> None:
        self._count, self._block_size = count, block_size
        self._group_of = np.full(num_slots, -1, np.int32)
        self._context = np.zeros(num_slots, np.int64)
        # Those of the last request, until the slot is another's: a plan may give some back.
        self._blocks: list[list[int]] = [[] for _ in range(num_slots)]
        self._holds = np.zeros((count, num_blocks), np.bool_)
        self._holds[:, 0] = True  # scratch
        self._is_written = np.ones(num_blocks, np.bool_)

    def of(self, slots: Int32) -> Int32:
        """Return the group of each slot."""
        found: Int32 = self._group_of[slots]
        return found

    def apply(self, plan: StepPlan, rows: Int32, counts: Int32) -> list[Fetch]:
        """Take note of a plan; return what to fetch before it runs `counts[i]` tokens of `rows[i]`.

        Rows are those of the step that slots make of the plan, which may repeat some.
        """
        self._group_of[_int32(plan.removed_slots)] = -1
        kept = dict(
            zip(_int32(plan.kept_slots).tolist(), _int32(plan.kept_blocks).tolist(), strict=True)
        )
        slots, ids = _int32(plan.block_slots), _int32(plan.block_ids)
        added = _int32(plan.added_slots).tolist()
        wanted: dict[tuple[int, int], list[int]] = {}
        for slot in dict.fromkeys(slots.tolist()):
            if slot not in added:
                self._append(slot, ids[slots == slot])
        for slot, context in zip(added, _int32(plan.added_context).tolist(), strict=True):
            before = np.array(self._blocks[slot][: kept.get(slot, 0)], np.int32)
            own = np.concatenate((before, ids[slots == slot]))
            found = -(-context // self._block_size)
            group = self._choice(own[:found])
            self._group_of[slot], self._context[slot] = group, context
            self._fetch(own[:found], group, wanted)
            self._blocks[slot] = own[:found].tolist()
            self._append(slot, own[found:])
        for source, target in zip(
            _int32(plan.copy_sources).tolist(), _int32(plan.copy_targets).tolist(), strict=True
        ):
            for group in range(self._count):  # whose a target is, a copy does not say
                self._fetch(np.array([source], np.int32), group, wanted)
            self._holds[:, target] = True
        for slot, count in zip(rows.tolist(), counts.tolist(), strict=True):
            begin, after = self._context[slot], self._context[slot] + count
            size = self._block_size
            self._is_written[self._blocks[slot][begin // size : after // size]] = True
            self._context[slot] = after
        return [
            Fetch(source, target, np.array(blocks, np.int32))
            for (source, target), blocks in wanted.items()
        ]

    def _append(self, slot: int, blocks: Int32) -> None:
        """Give a slot new blocks: what they held is gone."""
        self._blocks[slot] += blocks.tolist()
        self._holds[:, blocks] = False
        self._holds[self._group_of[slot], blocks] = True
        self._is_written[blocks] = False

    def _choice(self, shared: Int32) -> int:
        unwritten = shared[~self._is_written[shared]]
        if len(unwritten):
            return int(self._holds[:, unwritten[0]].argmax())
        running = np.bincount(self._group_of[self._group_of >= 0], minlength=self._count)
        held = self._holds[:, shared].sum(1)
        return int(np.lexsort((-held, running))[0])

    def _fetch(self, blocks: Int32, target: int, wanted: dict[tuple[int, int], list[int]]) -> None:
        for block in blocks[~self._holds[target, blocks]].tolist():
            source = int(self._holds[:, block].argmax())
            wanted.setdefault((source, target), []).append(block)
            self._holds[target, block] = True


@attrs.frozen
class Share:
    """A group's part of a step, of the size of the largest group's, and where its results go.

    Row i of the step's wanted rows is row `places[i]` of all groups' rows side by side.
    """

    step: Step
    places: NDArray[np.int64]


def share_of(step: Step, groups: Int32, own: int, count: int) -> Share:
    """Return group `own`'s part of a step with tokens, whose row r is of group `groups[r]`.

    Tokens and wanted rows are padded to the most of any group: padded tokens write to scratch,
    padded rows go nowhere.  A group may have no rows.  Nothing in the part is shaped.
    """
    starts = step.batch.query_starts.numpy()
    counts = np.diff(starts)
    places = step.batch.logit_rows.numpy()
    rows = np.searchsorted(starts, places, side="right") - 1
    owner = groups[rows]
    most = int(np.bincount(owner, minlength=count).max(initial=0))
    tokens = max(int(np.bincount(groups, weights=counts, minlength=count).max()), 1)
    within = np.zeros(len(rows), np.int64)
    for group in range(count):
        mine = owner == group
        within[mine] = np.arange(int(mine.sum()))
    mine, mine_rows = owner == own, groups == own
    new_starts = np.concatenate(([0], np.cumsum(np.where(mine_rows, counts, 0)))).astype(np.int32)
    wanted = new_starts[rows[mine]] + places[mine] - starts[rows[mine]]
    all_sample = len(rows) == len(step.sampling_slots)
    part = attrs.evolve(
        step,
        batch=_batch(step.batch, mine_rows, counts, wanted, tokens, most),
        sampling=_sampling(step.sampling, mine, most) if all_sample else step.sampling,
        sampling_slots=step.sampling_slots[mine] if all_sample else step.sampling_slots,
        rows=step.rows[mine_rows],
        shapers=NO_SHAPERS,
    )
    return Share(part, owner.astype(np.int64) * most + within)


def _batch(
    batch: Batch,
    rows: NDArray[np.bool_],
    counts: Int32,
    wanted: NDArray[np.int64],
    tokens: int,
    most: int,
) -> Batch:
    taken, kept = torch.from_numpy(np.repeat(rows, counts)), torch.from_numpy(rows)
    own = counts[rows]
    missing = tokens - int(own.sum())
    lens = batch.context_lens[kept]

    def padded(x: Tensor) -> Tensor:
        return torch.cat((x[taken], x.new_zeros(missing)))

    return Batch(
        tokens=padded(batch.tokens),
        positions=padded(batch.positions),
        cache_slots=padded(batch.cache_slots),
        query_starts=torch.from_numpy(np.concatenate(([0], np.cumsum(own))).astype(np.int32)),
        context_lens=lens,
        block_tables=batch.block_tables[kept],
        logit_rows=torch.from_numpy(np.pad(wanted, (0, most - len(wanted)))),
        state_blocks=batch.state_blocks[kept],
        num_rows=len(own),
        num_decode_rows=int((np.cumprod(own == 1)).sum()),
        max_query=int(own.max(initial=0)),
        max_context=int(lens.max()) if len(lens) else 0,
    )


def _sampling(rows: SamplingRows, mine: NDArray[np.bool_], most: int) -> SamplingRows:
    kept = torch.from_numpy(mine)
    missing = most - int(mine.sum())

    def column(x: Tensor, pad: float = 0) -> Tensor:
        return torch.cat((x[kept], x.new_full((missing,), pad)))

    return SamplingRows(
        temperature=column(rows.temperature),
        top_k=column(rows.top_k),
        top_p=column(rows.top_p, 1),
        seed=column(rows.seed),
        position=column(rows.position),
        logprobs=column(rows.logprobs),
    )


def _int32(column: bytes) -> Int32:
    return np.frombuffer(column, np.int32)


def fetched_by(fetches: list[Fetch], own: int) -> Iterator[Fetch]:
    """Yield the fetches that group `own` takes part in, in the order that all follow."""
    return (each for each in fetches if own in (each.source, each.target))
