# SPDX-License-Identifier: MIT
"""Which group of ranks serves a request, what it fetches, and its part of a step."""

import numpy as np
import pytest
import torch

from tokenspeed_core.block_table import Int32
from tokenspeed_core.ipc.codec import int32_column
from tokenspeed_core.ipc.messages import StepPlan
from tokenspeed_core.ops import Batch
from tokenspeed_core.ops.sampling import SamplingRows
from tokenspeed_core.request_groups import RequestGroups, share_of
from tokenspeed_core.slots import Copies, Step

BLOCK = 4
NONE = np.empty(0, np.int32)
Planned = tuple[StepPlan, Int32, Int32]  # the rows, and how many tokens of each


def plan(
    *,
    added: dict[int, int] | None = None,
    removed: tuple[int, ...] = (),
    blocks: dict[int, list[int]] | None = None,
    kept: dict[int, int] | None = None,
    rows: dict[int, int] | None = None,
) -> Planned:
    pairs = [(slot, block) for slot, ids in (blocks or {}).items() for block in ids]
    made = StepPlan(
        1,
        1,
        removed_slots=int32_column(removed),
        added_slots=int32_column((added or {}).keys()),
        added_context=int32_column((added or {}).values()),
        block_slots=int32_column(slot for slot, _ in pairs),
        block_groups=int32_column(0 for _ in pairs),
        block_ids=int32_column(block for _, block in pairs),
        kept_slots=int32_column((kept or {}).keys()),
        kept_groups=int32_column(0 for _ in kept or {}),
        kept_blocks=int32_column((kept or {}).values()),
    )
    run = np.array(list((rows or {}).items()), np.int32).reshape(-1, 2)
    return made, run[:, 0], run[:, 1]


def fetched(groups: RequestGroups, step: Planned) -> list[tuple[int, int, list[int]]]:
    return [(each.source, each.target, each.blocks.tolist()) for each in groups.apply(*step)]


def test_requests_go_where_the_fewest_run() -> None:
    groups = RequestGroups(2, 8, 32, BLOCK)
    groups.apply(*plan(added={0: 0, 1: 0, 2: 0}, blocks={0: [1], 1: [2], 2: [3]}))
    assert groups.of(np.array([0, 1, 2], np.int32)).tolist() == [0, 1, 0]
    groups.apply(*plan(removed=(0,), added={3: 0}, blocks={3: [1]}))
    groups.apply(*plan(removed=(2,), added={4: 0}, blocks={4: [3]}))
    assert groups.of(np.array([3, 4], np.int32)).tolist() == [0, 0]


def test_found_blocks_are_fetched_once_from_whom_wrote_them() -> None:
    groups = RequestGroups(2, 8, 32, BLOCK)
    groups.apply(*plan(added={0: 0}, blocks={0: [1, 2, 3]}, rows={0: 11}))
    again = plan(added={1: 8}, blocks={1: [1, 2, 4]}, rows={1: 2})
    assert fetched(groups, again) == [(0, 1, [1, 2])]
    assert groups.of(np.array([1], np.int32)).tolist() == [1]
    third = plan(removed=(0,), added={2: 8}, blocks={2: [1, 2, 5]}, rows={2: 2})
    assert fetched(groups, third) == [], "group 0 wrote them and holds them still"
    # A block that is given to another request holds nothing of the old one.
    groups.apply(*plan(removed=(1, 2), added={3: 0}, blocks={3: [1]}, rows={3: 4}))
    assert fetched(groups, plan(added={4: 4}, blocks={4: [1, 6]}, rows={4: 1})) == [(0, 1, [1])]


def test_a_block_that_is_being_written_is_read_where_it_is_written() -> None:
    groups = RequestGroups(2, 8, 32, BLOCK)
    both = plan(added={0: 0, 1: 8}, blocks={0: [1, 2, 3], 1: [1, 2, 4]}, rows={0: 11, 1: 2})
    assert fetched(groups, both) == []
    assert groups.of(np.array([0, 1], np.int32)).tolist() == [0, 0]
    # Written in an earlier step, by then: the next reader is sent elsewhere and fetches.
    later = plan(added={2: 8}, blocks={2: [1, 2, 5]}, rows={2: 1})
    assert fetched(groups, later) == [(0, 1, [1, 2])]
    # Given in an earlier step, but not full yet.
    groups.apply(*plan(blocks={0: [7]}, rows={0: 1}))
    chunk = plan(added={3: 16}, blocks={3: [1, 2, 3, 7, 8]}, rows={0: 4, 3: 1})
    assert fetched(groups, chunk) == []
    assert groups.of(np.array([3], np.int32)).tolist() == [0]


def test_blocks_that_a_slot_keeps_are_found_ones() -> None:
    groups = RequestGroups(2, 8, 32, BLOCK)
    groups.apply(*plan(added={0: 0, 1: 0}, blocks={0: [1, 2, 3], 1: [4]}, rows={0: 9, 1: 4}))
    groups.apply(*plan(removed=(0,)))
    groups.apply(*plan(added={2: 0}, blocks={2: [5]}, rows={2: 4}))
    # Group 0 has a request and group 1 one; the kept blocks are group 0's.
    again = plan(added={0: 8}, kept={0: 2}, blocks={0: [6]}, rows={0: 1})
    assert fetched(groups, again) == []
    assert groups.of(np.array([0], np.int32)).tolist() == [0]
    groups.apply(*plan(removed=(0, 1)))
    elsewhere = plan(added={0: 8}, kept={0: 2}, blocks={0: [7]}, rows={0: 1})
    assert fetched(groups, elsewhere) == [(0, 1, [1, 2])], "group 0 runs slot 2 yet"


def step() -> Step:
    """Three rows of 3, 1 and 2 tokens, of which the first and the last sample."""
    int32 = torch.int32
    return Step(
        batch=Batch(
            tokens=torch.arange(10, 16, dtype=int32),
            positions=torch.tensor([0, 1, 2, 5, 7, 8], dtype=int32),
            cache_slots=torch.tensor([4, 5, 6, 9, 15, 16]),
            query_starts=torch.tensor([0, 3, 4, 6], dtype=int32),
            context_lens=torch.tensor([3, 6, 9], dtype=int32),
            block_tables=torch.tensor([[1, 0, 0], [2, 3, 0], [3, 4, 5]], dtype=int32),
            logit_rows=torch.tensor([2, 5]),
            state_blocks=torch.tensor([0, 1, 2]),
            num_rows=3,
            num_decode_rows=0,
            max_query=3,
            max_context=9,
        ),
        sampling=SamplingRows(
            temperature=torch.tensor([0.5, 0.25]),
            top_k=torch.tensor([3, 4], dtype=int32),
            top_p=torch.tensor([0.9, 0.8]),
            seed=torch.tensor([7, 8]),
            position=torch.tensor([3, 9], dtype=int32),
            logprobs=torch.tensor([True, False]),
        ),
        sampling_slots=np.array([0, 2], np.int32),
        copies=Copies(NONE, NONE, NONE),
        rows=np.array([0, 1, 2], np.int32),
        fed=(NONE, NONE),
        blocks=(),
    )


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("of_rows", [(0, 1, 0), (1, 1, 1), (0, 1, 1)])
def test_shares_hold_each_row_once_and_are_of_one_size(
    count: int, of_rows: tuple[int, ...]
) -> None:
    whole, groups = step(), np.array(of_rows, np.int32)
    shares = [share_of(whole, groups, own, count) for own in range(count)]
    sizes = {(len(s.step.batch.tokens), len(s.step.batch.logit_rows)) for s in shares}
    assert len(sizes) == 1
    ((tokens, samples),) = sizes
    assert tokens == max(np.bincount(groups, weights=[3, 1, 2]))
    rows = [slot for each in shares for slot in each.step.rows.tolist()]
    assert sorted(rows) == [0, 1, 2]
    last = torch.cat([each.step.batch.tokens[each.step.batch.logit_rows] for each in shares])
    seeds = torch.cat([each.step.sampling.seed for each in shares])
    for each in shares:
        places = torch.from_numpy(each.places)
        assert last[places].tolist() == [12, 15], "each row's last token, in the step's order"
        assert seeds[places].tolist() == [7, 8]
        batch = each.step.batch
        counts = np.diff(batch.query_starts.numpy())
        assert counts.tolist() == [[3, 1, 2][row] for row in each.step.rows]
        assert (batch.cache_slots[int(counts.sum()) :] == 0).all(), "padding writes to scratch"
        assert batch.context_lens.tolist() == [[3, 6, 9][row] for row in each.step.rows]
    assert samples == max(np.bincount(groups[[0, 2]]))
