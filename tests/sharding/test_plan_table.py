# SPDX-License-Identifier: MIT
"""Plans by the tokens of a step: which sizes differ, what they share, and that they are kept."""

from pathlib import Path

import attrs
import pytest
import torch
from test_collective_counts import DEEPSEEK_V3, LAYOUTS, LLAMA_70B

from tokenspeed_core.models import family_of
from tokenspeed_core.models.family import Compilation
from tokenspeed_core.sharding import Layout
from tokenspeed_core.sharding.link import Links, parse_links
from tokenspeed_core.sharding.machine import H100, Machine
from tokenspeed_core.sharding.plan_cache import PlanCache
from tokenspeed_core.sharding.plan_table import TypedPlanTable, priced_size, step_sizes
from tokenspeed_core.sharding.storage import storage

KEY = "0" * 64
SEQUENCE = Layout("tp=8", types={"Hidden": "n@tp d"})


def table_of(name: str, layout: Layout, most: int, machine: Machine = H100) -> TypedPlanTable:
    sizes = DEEPSEEK_V3 if name.startswith("Deepseek") else LLAMA_70B
    family = family_of(name)
    how = Compilation(torch.bfloat16, 16, machine=machine)
    return how.table(family, family.config(sizes), layout, most)


def test_sizes_are_powers_of_two_that_hold_every_step() -> None:
    assert step_sizes(1) == (16,)
    assert step_sizes(100) == (16, 32, 64, 128)
    assert [priced_size(tokens) for tokens in (0, 16, 17, 129)] == [16, 16, 32, 256]


def test_experts_are_reached_by_what_it_costs_at_each_size() -> None:
    """Few rows are gathered; many go only to the ranks of their experts, whatever the order."""
    table = table_of("DeepseekV3ForCausalLM", LAYOUTS["dp8-tp8-ep64"], 8192)
    assert table.starts[0] == 0
    assert sorted(set(table.starts)) == list(table.starts)
    few, many = table.plans[table.index(64)], table.plans[table.index(8192)]
    assert "c.dispatch(" not in few.source
    assert "c.dispatch(" in many.source
    assert "c.start(" in few.source, "the routed sum goes on beside the shared expert"


def test_products_are_pipelined_where_rows_are_many() -> None:
    table = table_of("LlamaForCausalLM", SEQUENCE, 8192)
    decode, prefill = table.plans[table.index(1)], table.plans[table.index(8192)]
    assert "all_gather_linear(" not in decode.source
    assert "all_gather_linear(" in prefill.source
    slow = H100.links.default, parse_links(["ethernet-100g"]).default
    assert slow[0].gb_per_s > slow[1].gb_per_s
    ethernet = table_of(
        "LlamaForCausalLM",
        SEQUENCE,
        8192,
        Machine("h100", Links(slow[1]), H100.gb_per_s, H100.tflops),
    )
    assert ethernet.starts != table.starts, "another link, other sizes"


def test_plans_of_all_sizes_have_the_same_packs_and_groups() -> None:
    table = table_of("DeepseekV3ForCausalLM", LAYOUTS["dp8-tp8-ep64"], 8192)
    assert len(table.plans) > 1
    for plan in table.plans:
        assert set(storage(plan.program)) == set(table.first.storage)
        assert plan.groups == table.first.groups
    one = table_of("LlamaForCausalLM", Layout("tp=1"), 8192)
    assert (one.starts, one.hash) == ((0,), one.first.hash)


def test_a_kept_table_is_whole_or_made_again(tmp_path: Path) -> None:
    table = table_of("LlamaForCausalLM", SEQUENCE, 8192)
    cache = PlanCache(tmp_path)
    cache.put(KEY, table)
    kept = cache.get(KEY, table.first.caches, table.first.constants)
    assert kept is not None
    assert (kept.starts, kept.hash) == (table.starts, table.hash)
    files = sorted(file.name for file in tmp_path.iterdir())
    assert files == sorted(
        [f"{KEY}.plan", f"{KEY}.py", *(f"{KEY}-from-{start}.py" for start in table.starts[1:])]
    )
    larger = tmp_path / f"{KEY}-from-{table.starts[1]}.py"
    larger.write_text(larger.read_text().replace("tp", "dp", 1))
    assert cache.get(KEY, table.first.caches, table.first.constants) is None


@pytest.mark.parametrize("changed", ["starts", "sources"])
def test_ranks_tell_tables_apart(changed: str) -> None:
    table = table_of("LlamaForCausalLM", SEQUENCE, 8192)
    starts = (0, *(start + 1 for start in table.starts[1:]))
    plans = (*table.plans[:-1], table.plans[0])
    other = attrs.evolve(table, **({"starts": starts} if changed == "starts" else {"plans": plans}))
    assert other.hash != table.hash
