# SPDX-License-Identifier: MIT
"""Groups of a plan's caches, the memory that they share, and the tables of a slot."""

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenspeed_core.block_groups import (
    BlockGroups,
    BlockGroupsError,
    allocate_caches,
    block_groups,
)
from tokenspeed_core.ipc.codec import float32_column, int32_column, uint64_column
from tokenspeed_core.ipc.messages import ROW_HAS_TOKENS, GroupKind, StepPlan
from tokenspeed_core.models.family import compile_plan
from tokenspeed_core.models.gpt_oss import GptOssConfig
from tokenspeed_core.models.qwen3_next_config import Qwen3NextConfig
from tokenspeed_core.models.registry import family_of
from tokenspeed_core.plan_error import PlanError
from tokenspeed_core.sharding import Layout, Plan, leaves
from tokenspeed_core.slots import Slots

NEXT = {
    "vocab_size": 96, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2,
    "num_hidden_layers": 4, "head_dim": 16, "intermediate_size": 48,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
    "linear_value_head_dim": 12, "max_position_embeddings": 4096,
}  # fmt: skip
OSS = {
    "vocab_size": 96, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2,
    "num_hidden_layers": 4, "head_dim": 16, "intermediate_size": 16, "num_local_experts": 4,
    "num_experts_per_tok": 2, "sliding_window": 30, "max_position_embeddings": 4096,
}  # fmt: skip


def plan_of(architecture: str, stored: dict[str, int], block_size: int = 16) -> Plan:
    family = family_of(architecture)
    layout = Layout(mesh="tp=1")
    config = family.config(stored)
    return compile_plan(family, config, layout, dtype=torch.float32, block_size=block_size)


@pytest.fixture(scope="module")
def delta() -> Plan:
    return plan_of("Qwen3NextForCausalLM", NEXT)


@pytest.fixture(scope="module")
def windows() -> Plan:
    return plan_of("GptOssForCausalLM", OSS)


def check_memory(plan: Plan, groups: BlockGroups, parents: int) -> None:
    """No two blocks of one parent overlap in a group, and no block leaves its parent."""
    caches = allocate_caches(plan, groups, parents)
    base = min(t.data_ptr() for layer in caches for _, t in leaves(layer))
    for group in groups:
        used = torch.zeros(parents * groups.parent_bytes, dtype=torch.int32)
        for layer in group.layers:
            for _, tensor in leaves(caches[layer]):
                assert tensor.shape[0] == parents * group.share
                size = tensor[0].numel() * tensor.element_size()
                for block in range(parents * group.share):
                    start = tensor[block].data_ptr() - base
                    parent = block // group.share * groups.parent_bytes
                    assert parent <= start
                    assert start + size <= parent + groups.parent_bytes
                    used[start : start + size] += 1
        assert int(used.max()) == 1


def test_layers_of_one_kind_are_a_group(delta: Plan, windows: Plan) -> None:
    found = block_groups(delta, 16, 4096)
    assert [(g.kind, g.layers) for g in found] == [
        (GroupKind.FULL, (3,)),
        (GroupKind.STATE, (0, 1, 2)),
    ]
    check_memory(delta, found, 3)
    found = block_groups(windows, 16, 4096)
    # A window of 30 tokens is two whole blocks.
    assert [(g.kind, g.span, g.layers) for g in found] == [
        (GroupKind.FULL, 0, (1, 3)),
        (GroupKind.WINDOW, 32, (0, 2)),
    ]
    check_memory(windows, found, 3)


def test_windows_that_nobody_outgrows_are_full(windows: Plan) -> None:
    found = block_groups(windows, 16, 32)
    assert [(g.kind, g.layers) for g in found] == [(GroupKind.FULL, (0, 1, 2, 3))]
    only = attrs.evolve(windows, caches=windows.caches[:1], cache=windows.cache[:1])
    assert [g.kind for g in block_groups(only, 16, 4096)] == [GroupKind.FULL]


def test_states_alone_are_refused(delta: Plan) -> None:
    states = attrs.evolve(delta, caches=delta.caches[:3], cache=delta.cache[:3])
    with pytest.raises(BlockGroupsError, match="one of them must be attention"):
        block_groups(states, 16, 4096)


def test_a_cache_that_says_nothing_is_refused(delta: Plan) -> None:
    silent = attrs.evolve(delta, caches=(object(),), cache=delta.cache[:1])
    with pytest.raises(BlockGroupsError, match="object does not say what it keeps"):
        block_groups(silent, 16, 4096)


@settings(max_examples=20, deadline=None)
@given(
    keys=st.integers(1, 4),
    wide=st.integers(1, 40),
    heads=st.sampled_from([1, 2]),
    block_size=st.sampled_from([1, 3, 16, 64]),
    interval=st.integers(0, 200),
)
def test_any_sizes_share_one_memory(
    keys: int, wide: int, heads: int, block_size: int, interval: int
) -> None:
    sizes = {
        **NEXT,
        "linear_num_key_heads": keys,
        "linear_num_value_heads": keys,
        "linear_value_head_dim": wide,
        "num_key_value_heads": heads,
    }
    config = Qwen3NextConfig.from_next(sizes)
    family = family_of("Qwen3NextForCausalLM")
    caches = family.caches(config, block_size, torch.float32)
    plan = plan_of("Qwen3NextForCausalLM", sizes, block_size)
    assert len(caches) == len(plan.caches)
    groups = block_groups(plan, block_size, 4096, interval)
    check_memory(plan, groups, 2)
    state = groups.groups[1]
    assert state.span % block_size == 0
    assert state.span >= interval
    assert sum(group.blocks(4096) for group in groups) == -(-4096 // block_size) + 1


def test_gpt_oss_reads_its_window_from_the_config() -> None:
    assert GptOssConfig.from_hf(OSS).window == 30


@pytest.mark.parametrize(
    ("architecture", "stored", "mebibytes"),
    [
        (
            "GptOssForCausalLM",
            dict(
                hidden_size=2880, num_attention_heads=64, num_key_value_heads=8, head_dim=64,
                num_hidden_layers=24, intermediate_size=2880, num_local_experts=32,
                num_experts_per_tok=4, vocab_size=201088, sliding_window=128,
            ),
            3075,
        ),
        (
            "Qwen3NextForCausalLM",
            dict(
                hidden_size=2048, num_attention_heads=16, num_key_value_heads=2, head_dim=256,
                num_hidden_layers=48, intermediate_size=5120, vocab_size=151936,
                linear_num_key_heads=16, linear_num_value_heads=32, linear_key_head_dim=128,
                linear_value_head_dim=128, num_experts=512, num_experts_per_tok=10,
                moe_intermediate_size=512, shared_expert_intermediate_size=512,
            ),
            3177,
        ),
    ],
)  # fmt: skip
def test_a_long_request_of_a_released_model(
    architecture: str, stored: dict[str, int], mebibytes: int
) -> None:
    family, layout = family_of(architecture), Layout(mesh="tp=1")
    config = family.config(stored)
    plan = compile_plan(family, config, layout, dtype=torch.bfloat16, block_size=16)
    groups = block_groups(plan, 16, 131072)
    assert round(groups.parents(131072) * groups.parent_bytes / 2**20) == mebibytes


def slots_with(groups: BlockGroups) -> Slots:
    return Slots(4, 8, 20, groups)


def begin(pairs: list[tuple[int, int]], count: int) -> StepPlan:
    """Slot 1 begins with `count` tokens; pairs are (group, block)."""
    return StepPlan(
        1,
        1,
        added_slots=int32_column([1]),
        added_context=int32_column([0]),
        added_temperature=float32_column([0.0]),
        added_top_k=int32_column([0]),
        added_top_p=float32_column([1.0]),
        added_seed=uint64_column([0]),
        added_logprobs=b"\0",
        block_slots=int32_column(1 for _ in pairs),
        block_groups=int32_column(group for group, _ in pairs),
        block_ids=int32_column(block for _, block in pairs),
        rows=int32_column([1]),
        row_tokens=int32_column([count]),
        row_flags=bytes([ROW_HAS_TOKENS]),
        prompt_tokens=int32_column(range(count)),
    )


def test_each_kind_of_layer_reads_its_own_table(delta: Plan, windows: Plan) -> None:
    groups = block_groups(windows, 16, 4096)
    batch = slots_with(groups).prepare(begin([(0, 3), (1, 0), (0, 5), (1, 7)], 20)).batch
    assert batch.block_tables.tolist() == [[3, 5]]
    assert batch.windowed().block_tables.tolist() == [[0, 7]]
    assert batch.windowed().cache_slots[-1] == 7 * 16 + 3
    groups = block_groups(delta, 16, 4096)
    first, state = (group.share for group in groups)
    plan = begin([(0, 3 * first), (1, 4 * state), (1, 6 * state)], 16)
    batch = slots_with(groups).prepare(plan).batch
    assert batch.state_blocks.tolist() == [6 * state]
    assert batch.windowed() is batch


def test_a_row_needs_room_in_every_group(delta: Plan) -> None:
    groups = block_groups(delta, 16, 4096)
    share = groups.first.share
    with pytest.raises(PlanError, match="exceed"):
        slots_with(groups).prepare(begin([(0, 2 * share)], 4))
    with pytest.raises(PlanError, match="groups"):
        slots_with(groups).prepare(begin([(0, 2 * share), (2, 5)], 4))
    with pytest.raises(PlanError, match="block ids 0"):
        slots_with(groups).prepare(begin([(0, 2 * share), (1, 0)], 4))
