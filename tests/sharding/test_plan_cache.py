# SPDX-License-Identifier: MIT
"""The plan cache: what is kept runs alike, and what is not whole is made again."""

import logging
import threading
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from tiny import BLOCK, CASES, LAYOUTS, batch_of, make_tiny

from tokenspeed_core.models import compile_plan, family_of
from tokenspeed_core.models.family import Compilation
from tokenspeed_core.sharding import Layout, RankPlan
from tokenspeed_core.sharding.machine import CPU
from tokenspeed_core.sharding.plan_cache import PlanCache
from tokenspeed_core.sharding.plan_table import PlanTable
from tokenspeed_core.sharding.way import Way

CHOICES: dict[str, Any] = dict(dtype=torch.float32, block_size=BLOCK)
KEY = "0" * 64


def alone(plan: RankPlan) -> PlanTable:
    return PlanTable(starts=(0,), plans=(plan,), ways=(Way(),))


@pytest.fixture
def cache(tmp_path: Path) -> PlanCache:
    return PlanCache(tmp_path / "plans")


def test_a_kept_plan_runs_alike(cache: PlanCache) -> None:
    tiny = make_tiny(CASES["gqa"])
    plan = compile_plan(tiny.family, tiny.config, LAYOUTS["tp1"], **CHOICES)

    def compiled() -> PlanTable:
        return alone(compile_plan(tiny.family, tiny.config, LAYOUTS["tp1"], **CHOICES))

    def refuse() -> PlanTable:
        raise AssertionError("it is kept")

    made = cache.table(KEY, plan.caches, plan.constants, compiled)
    assert made.first.source == plan.source
    kept = cache.table(KEY, plan.caches, plan.constants, refuse).first
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
    cache.put(KEY, alone(plan))
    kept = cache.get(KEY, plan.caches, plan.constants)
    assert kept is not None
    assert plan.groups
    assert (kept.hash, dict(kept.first.groups)) == (plan.hash, dict(plan.groups))


@pytest.mark.parametrize("damage", ["cut", "edited", "foreign", "garbage", "other key"])
def test_what_is_not_whole_is_made_again(
    cache: PlanCache, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    tiny = make_tiny(CASES["gqa"])
    plan = compile_plan(tiny.family, tiny.config, LAYOUTS["tp2"], **CHOICES)
    table = alone(plan)
    cache.put(KEY, table)
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
        again = cache.table(key, plan.caches, plan.constants, lambda: table)
    assert again is table
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
        table = alone(plan)
        assert cache.table(KEY, plan.caches, plan.constants, lambda: table) is table
    assert "is not kept" in caplog.text


def test_ranks_that_write_at_once_leave_a_whole_plan(cache: PlanCache) -> None:
    tiny = make_tiny(CASES["gqa"])
    plan = compile_plan(tiny.family, tiny.config, LAYOUTS["tp2"], **CHOICES)
    seen: list[PlanTable | None] = []

    def rank() -> None:
        for _ in range(20):
            cache.put(KEY, alone(plan))
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
    plain, tp2 = Compilation(**CHOICES), Layout("tp=2")
    keys = [
        plain.key(family, config, tp2, 512),
        plain.key(family, other, tp2, 512),
        plain.key(family, config, tp2, 1024),
        *(
            plain.key(family, config, layout, 512)
            for layout in (
                Layout("tp=4"),
                tp2.but(types={"Hidden": "n@tp d"}),
                tp2.but(place={"v": ""}),
                tp2.but(requests="tp"),
                tp2.but(stages="tp"),
            )
        ),
        *(
            attrs.evolve(plain, **{name: value}).key(family, config, tp2, 512)
            for name, value in (
                ("dtype", torch.bfloat16),
                ("block_size", 2 * BLOCK),
                ("cache_dtype", torch.bfloat16),
                ("composites", frozenset({"norm_linear"})),
                ("machine", CPU),
            )
        ),
    ]
    assert len(set(keys)) == len(keys)
    assert keys[0] == plain.key(family, family.config(sizes), tp2, 512)
