# SPDX-License-Identifier: MIT
"""The plan cache: what is kept runs alike, and what is not whole is made again."""

import logging
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import BLOCK, CASES, LAYOUTS, batch_of, make_tiny

from tokenspeed_core.models import compile_plan, family_of
from tokenspeed_core.models.family import plan_key
from tokenspeed_core.sharding import Layout, RankPlan
from tokenspeed_core.sharding.plan_cache import PlanCache

CHOICES: dict[str, Any] = dict(dtype=torch.float32, block_size=BLOCK)
KEY = "0" * 64


@pytest.fixture
def cache(tmp_path: Path) -> PlanCache:
    return PlanCache(tmp_path / "plans")


def test_a_kept_plan_runs_alike(cache: PlanCache) -> None:
    tiny = make_tiny(CASES["gqa"])
    plan = compile_plan(tiny.family, tiny.config, LAYOUTS["tp1"], **CHOICES)

    def compiled() -> RankPlan:
        return compile_plan(tiny.family, tiny.config, LAYOUTS["tp1"], **CHOICES)

    def refuse() -> RankPlan:
        raise AssertionError("it is kept")

    assert cache.plan(KEY, plan.caches, plan.constants, compiled).source == plan.source
    kept = cache.plan(KEY, plan.caches, plan.constants, refuse)
    assert (kept.hash, kept.mesh, kept.storage, kept.cache) == (
        plan.hash,
        plan.mesh,
        plan.storage,
        plan.cache,
    )
    ids = tiny.tokens[0][:9]
    logits, _ = kept.load()(
        None,
        kept.weights(kept.place(tiny.params, 0)),
        kept.allocate_caches(17),
        batch_of([(ids, 0, 0)]),
    )
    assert (logits[0] - tiny.expected(0)[8]).abs().max() < 1e-4


def test_groups_and_placements_of_a_mesh_are_kept(cache: PlanCache) -> None:
    tiny = make_tiny(CASES["gqa"])
    plan = compile_plan(tiny.family, tiny.config, LAYOUTS["factored-sp"], **CHOICES)
    cache.put(KEY, plan)
    kept = cache.get(KEY, plan.caches, plan.constants)
    assert kept is not None
    assert plan.groups
    assert (kept.hash, dict(kept.groups)) == (plan.hash, dict(plan.groups))


@pytest.mark.parametrize("damage", ["cut", "edited", "foreign", "garbage", "other key"])
def test_what_is_not_whole_is_made_again(
    cache: PlanCache, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    tiny = make_tiny(CASES["gqa"])
    plan = compile_plan(tiny.family, tiny.config, LAYOUTS["tp2"], **CHOICES)
    cache.put(KEY, plan)
    program, facts = cache.directory / f"{KEY}.py", cache.directory / f"{KEY}.plan"
    whole = facts.read_bytes()
    if damage == "cut":
        facts.write_bytes(whole[: len(whole) // 2])
    elif damage == "edited":
        program.write_text(program.read_text().replace("tp", "dp", 1))
    elif damage == "foreign":
        program.write_bytes(b"\xff\xfe")
    elif damage == "garbage":
        facts.write_bytes(b"not msgpack")
    else:
        for file in (program, facts):
            file.rename(file.with_name("1" * 64 + file.suffix))
    key = "1" * 64 if damage == "other key" else KEY
    with caplog.at_level(logging.WARNING):
        assert cache.get(key, plan.caches, plan.constants) is None
        again = cache.plan(key, plan.caches, plan.constants, lambda: plan)
    assert again is plan
    assert "is compiled again" in caplog.text
    assert cache.get(key, plan.caches, plan.constants) is not None


def test_a_directory_that_cannot_be_made_is_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    tiny = make_tiny(CASES["gqa"])
    plan = compile_plan(tiny.family, tiny.config, LAYOUTS["tp1"], **CHOICES)
    cache = PlanCache(tmp_path / "file" / "plans")
    with caplog.at_level(logging.WARNING):
        assert cache.plan(KEY, plan.caches, plan.constants, lambda: plan) is plan
    assert "is not kept" in caplog.text


def test_ranks_that_write_at_once_leave_a_whole_plan(cache: PlanCache) -> None:
    tiny = make_tiny(CASES["gqa"])
    plan = compile_plan(tiny.family, tiny.config, LAYOUTS["tp2"], **CHOICES)
    seen: list[RankPlan | None] = []

    def rank() -> None:
        for _ in range(20):
            cache.put(KEY, plan)
            seen.append(cache.get(KEY, plan.caches, plan.constants))

    ranks = [threading.Thread(target=rank) for _ in range(4)]
    for each in ranks:
        each.start()
    for each in ranks:
        each.join()
    assert [kept and kept.hash for kept in seen] == [plan.hash] * 80
    assert sorted(file.name for file in cache.directory.iterdir()) == [f"{KEY}.plan", f"{KEY}.py"]


def test_every_choice_changes_the_key() -> None:
    family = family_of("LlamaForCausalLM")
    sizes = dict(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=256,
    )
    config = family.config(sizes)
    other = family.config({**sizes, "vocab_size": 512})
    keys = [
        plan_key(family, config, Layout("tp=2"), **CHOICES),
        plan_key(family, other, Layout("tp=2"), **CHOICES),
        plan_key(family, config, Layout("tp=4"), **CHOICES),
        plan_key(family, config, Layout("tp=2", types={"Hidden": "n@tp d"}), **CHOICES),
        plan_key(family, config, Layout("tp=2", place={"v": ""}), **CHOICES),
        plan_key(family, config, Layout("tp=2", requests="tp"), **CHOICES),
        plan_key(family, config, Layout("tp=2"), dtype=torch.bfloat16, block_size=BLOCK),
        plan_key(family, config, Layout("tp=2"), dtype=torch.float32, block_size=2 * BLOCK),
        plan_key(family, config, Layout("tp=2"), **CHOICES, tokens=8),
        plan_key(family, config, Layout("tp=2"), **CHOICES, cache_dtype=torch.bfloat16),
        plan_key(family, config, Layout("tp=2"), **CHOICES, composites={"norm_linear"}),
    ]
    assert len(set(keys)) == len(keys)
    assert keys[0] == plan_key(family, family.config(sizes), Layout("tp=2"), **CHOICES)
