# SPDX-License-Identifier: MIT
"""Products whose rows travel are computed in chunks where that saves time, by the plan's price."""

from pathlib import Path

import pytest
import torch
from test_collective_counts import LLAMA_70B

from tests.rank_processes import run_ranks
from tokenspeed_core.collectives import Collectives
from tokenspeed_core.models import compile_plan, family_of
from tokenspeed_core.ops import all_gather_linear, linear, linear_reduce_scatter
from tokenspeed_core.rank_groups import RankGroups
from tokenspeed_core.sharding import Layout, Plan
from tokenspeed_core.sharding.machine import H100
from tokenspeed_core.sharding.overlap import pipelined
from tokenspeed_core.sharding.recheck import recheck
from tokenspeed_core.sharding.verify import verify

WAYS = 2


def plan_of(layout: Layout, tokens: int) -> Plan:
    family = family_of("LlamaForCausalLM")
    return compile_plan(
        family,
        family.config(LLAMA_70B),
        layout,
        dtype=torch.bfloat16,
        block_size=16,
        tokens=tokens,
    )


def test_many_rows_are_pipelined_and_few_are_not() -> None:
    sequence = Layout("tp=8", types={"Hidden": "n@tp d"})
    plan = plan_of(sequence, 8192)
    verify(plan.program)
    recheck(plan, plan.source)
    (block,) = plan.program.blocks
    names = [composite.name for composite in block.composites]
    assert sorted(names) == ["all_gather_linear"] * 2 + ["linear_reduce_scatter"] * 2
    saved = [pipelined(each, plan.mesh, 8192, H100) for each in block.composites]
    assert min(saved) > 2
    assert 'all_gather_linear(c, "tp", x, w["attn.wq_wk_wv"])' in plan.source
    # Few rows: the weights would be read twice.
    assert not plan_of(sequence, 64).program.blocks[0].composites
    assert not plan_of(sequence, 0).program.blocks[0].composites
    whole = Layout("tp=8", types={"Hidden": "n d"})
    assert not plan_of(whole, 8192).program.blocks[0].composites


def run_rank(rank: int, path: str) -> None:
    torch.set_num_threads(1)
    groups = {"tp": ((0, 1),)}
    cpu = torch.device("cpu")
    c = Collectives.of(RankGroups.join(groups, WAYS, rank, f"file://{path}/meet", cpu))
    x, w = torch.load(f"{path}/given")
    for rows in (8, 6, 4):  # in chunks, in one piece where they do not divide, in chunks
        mine = x[rank][:rows]
        gathered = all_gather_linear(c, "tp", mine, w)
        torch.testing.assert_close(gathered, linear(torch.cat([x[0][:rows], x[1][:rows]]), w))
        scattered = linear_reduce_scatter(c, "tp", mine, w)
        total = linear(x[0][:rows], w) + linear(x[1][:rows], w)
        torch.testing.assert_close(scattered, total.chunk(WAYS)[rank])
        strided = torch.cat([mine, mine], 1)[:, : mine.shape[1]]
        torch.testing.assert_close(linear_reduce_scatter(c, "tp", strided, w), scattered)
    torch.distributed.destroy_process_group()


def test_real_ranks_compute_the_same_in_chunks(tmp_path: Path) -> None:
    torch.manual_seed(1)
    given = (torch.randn(WAYS, 8, 16, dtype=torch.float64), torch.randn(5, 16).double())
    torch.save(given, tmp_path / "given")
    run_ranks(run_rank, WAYS, str(tmp_path))


@pytest.mark.parametrize("tokens", [0, 1, 64])
def test_a_product_of_few_rows_saves_nothing(tokens: int) -> None:
    plan = plan_of(Layout("tp=8", types={"Hidden": "n@tp d"}), 8192)
    for composite in plan.program.blocks[0].composites:
        assert pipelined(composite, plan.mesh, tokens, H100) < 2
