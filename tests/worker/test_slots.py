# SPDX-License-Identifier: MIT
"""Step plans turned into batches."""

import numpy as np
import pytest

from tokenspeed_core.block_groups import BlockGroup, BlockGroups
from tokenspeed_core.ipc.codec import float32_column, int32_column, uint64_column
from tokenspeed_core.ipc.messages import ROW_HAS_TOKENS, ROW_SAMPLES, GroupKind, StepPlan
from tokenspeed_core.plan_error import PlanError
from tokenspeed_core.slots import Slots, Step


def added(slots: list[int], context: list[int]) -> dict[str, bytes]:
    n = len(slots)
    return {
        "added_slots": int32_column(slots),
        "added_context": int32_column(context),
        "added_temperature": float32_column([0.0] * n),
        "added_top_k": int32_column([0] * n),
        "added_top_p": float32_column([1.0] * n),
        "added_seed": uint64_column([2**64 - 1] * n),
        "added_logprobs": bytes(n),
    }


def blocks(pairs: list[tuple[int, int]]) -> dict[str, bytes]:
    return {
        "block_slots": int32_column(slot for slot, _ in pairs),
        "block_groups": int32_column(0 for _ in pairs),
        "block_ids": int32_column(block for _, block in pairs),
    }


def kept(pairs: list[tuple[int, int]]) -> dict[str, bytes]:
    return {
        "kept_slots": int32_column(slot for slot, _ in pairs),
        "kept_groups": int32_column(0 for _ in pairs),
        "kept_blocks": int32_column(count for _, count in pairs),
    }


def rows(entries: list[tuple[int, int, int]], prompt: list[int]) -> dict[str, bytes]:
    return {
        "rows": int32_column(slot for slot, _, _ in entries),
        "row_tokens": int32_column(count for _, count, _ in entries),
        "row_flags": bytes(flags for _, _, flags in entries),
        "prompt_tokens": int32_column(prompt),
    }


@pytest.fixture
def slots() -> Slots:
    group = BlockGroup(GroupKind.FULL, 4, 0, 1, (0,), 64)
    return Slots(4, 8, 50, BlockGroups((group,), 64))


def admit(slots: Slots) -> Step:
    """Slot 2 starts cold with 6 of its 9 prompt tokens; slot 0 has 4 cached tokens and 2 new."""
    return slots.prepare(
        StepPlan(
            1,
            1,
            **added([2, 0], [0, 4]),
            # The blocks of two slots arrive interleaved; each slot's own order counts.
            **blocks([(2, 7), (0, 5), (2, 9), (0, 6)]),
            **rows(
                [(0, 2, ROW_HAS_TOKENS | ROW_SAMPLES), (2, 6, ROW_HAS_TOKENS)],
                [50, 51, 20, 21, 22, 23, 24, 25],
            ),
        )
    )


def test_prefill_and_cached_prefix(slots: Slots) -> None:
    batch = admit(slots).batch
    assert batch.tokens.tolist() == [50, 51, 20, 21, 22, 23, 24, 25]
    assert batch.positions.tolist() == [4, 5, 0, 1, 2, 3, 4, 5]
    assert batch.cache_slots.tolist() == [24, 25, 28, 29, 30, 31, 36, 37]
    assert batch.context_lens.tolist() == [6, 6]
    assert batch.query_starts.tolist() == [0, 2, 8]
    assert batch.block_tables.tolist() == [[5, 6], [7, 9]]
    assert batch.logit_rows.tolist() == [1]
    assert (batch.num_rows, batch.num_decode_rows, batch.max_query) == (2, 0, 6)


def test_decode_feeds_the_sampled_token_beside_a_chunk(slots: Slots) -> None:
    step = admit(slots)
    slots.record(step, np.array([99], np.int32))
    chunk = rows([(0, 1, ROW_SAMPLES), (2, 3, ROW_HAS_TOKENS | ROW_SAMPLES)], [26, 27, 28])
    step = slots.prepare(StepPlan(1, 2, **blocks([(2, 11)]), **chunk))
    batch = step.batch
    assert batch.tokens.tolist() == [99, 26, 27, 28]
    assert batch.positions.tolist() == [6, 6, 7, 8]
    assert batch.cache_slots.tolist() == [26, 38, 39, 44]
    assert batch.logit_rows.tolist() == [0, 3]
    assert step.sampling_slots.tolist() == [0, 2]
    assert step.sampling.position.tolist() == [7, 9]
    assert step.sampling.seed.tolist() == [-1] * 2  # the bits of 2**64 - 1
    assert batch.num_decode_rows == 1


def test_rows_that_are_repeated_stand_first(slots: Slots) -> None:
    step = admit(slots)
    slots.record(step, np.array([99], np.int32))
    chunk = rows([(2, 3, ROW_HAS_TOKENS | ROW_SAMPLES)], [26, 27, 28])
    step = slots.prepare(StepPlan(1, 2, **blocks([(2, 11)]), **chunk, repeated_rows=1))
    assert step.rows.tolist() == [0, 2]
    assert step.batch.tokens.tolist() == [99, 26, 27, 28]
    slots.record(step, np.array([98, 97], np.int32))
    step = slots.prepare(StepPlan(1, 3, repeated_rows=2))
    assert step.batch.tokens.tolist() == [98, 97]
    assert step.is_decode
    with pytest.raises(PlanError, match="repeats 3 rows of 2"):
        slots.prepare(StepPlan(1, 4, repeated_rows=3))


def test_a_slot_is_reused_after_removal(slots: Slots) -> None:
    admit(slots)
    step = slots.prepare(
        StepPlan(
            1,
            2,
            removed_slots=int32_column([2]),
            **added([2], [0]),
            **blocks([(2, 30)]),
            **rows([(2, 1, ROW_HAS_TOKENS)], [1]),
        )
    )
    assert step.batch.cache_slots.tolist() == [120]
    assert step.batch.positions.tolist() == [0]


def test_a_slot_that_is_added_again_keeps_leading_blocks_of_its_last_table(slots: Slots) -> None:
    admit(slots)  # slot 2 has blocks 7 and 9
    slots.prepare(StepPlan(1, 2, removed_slots=int32_column([2])))
    step = slots.prepare(
        StepPlan(
            1,
            3,
            **added([2], [4]),
            **kept([(2, 1)]),
            **blocks([(2, 30)]),
            **rows([(2, 2, ROW_HAS_TOKENS)], [1, 2]),
        )
    )
    assert step.batch.block_tables.tolist() == [[7, 30]]
    assert step.batch.cache_slots.tolist() == [120, 121]


@pytest.mark.parametrize(
    ("slot", "count", "why"), [(2, 3, "keep"), (2, 0, "keep"), (1, 1, "keep"), (0, 1, "not all")]
)
def test_blocks_that_a_slot_never_had_are_not_kept(
    slots: Slots, slot: int, count: int, why: str
) -> None:
    admit(slots)
    slots.prepare(StepPlan(1, 2, removed_slots=int32_column([2])))
    with pytest.raises(PlanError, match=why):
        slots.prepare(StepPlan(1, 3, **added([1, 2], [0, 0]), **kept([(slot, count)])))


def test_a_failed_row_feeds_token_zero(slots: Slots) -> None:
    slots.record(admit(slots), np.array([-1], np.int32))
    step = slots.prepare(StepPlan(1, 2, **rows([(0, 1, ROW_SAMPLES)], [])))
    assert step.batch.tokens.tolist() == [0]


@pytest.mark.parametrize(
    "columns",
    [
        rows([(1, 1, ROW_SAMPLES)], []),  # an empty slot
        rows([(9, 1, ROW_SAMPLES)], []),  # out of range
        rows([(-1, 1, ROW_SAMPLES)], []),
        rows([(0, 3, ROW_HAS_TOKENS)], [1, 2, 3]),  # not enough blocks
        rows([(0, 2, ROW_HAS_TOKENS)], [1]),  # a token is missing
        rows([(0, 0, ROW_HAS_TOKENS)], []),
        rows([(0, 2, ROW_SAMPLES)], []),  # two tokens without a prompt
        added([0], [0]),  # occupied
        added([4], [0]),
        {"removed_slots": int32_column([77])},
        blocks([(0, 0)]),  # the scratch block
        blocks([(0, 50)]),
        blocks([(0, block) for block in range(1, 9)]),  # more than the model's length
    ],
)
def test_contradictions_are_refused(slots: Slots, columns: dict[str, bytes]) -> None:
    admit(slots)
    with pytest.raises(PlanError, match="step 2"):
        slots.prepare(StepPlan(1, 2, **columns))
