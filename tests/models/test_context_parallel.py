# SPDX-License-Identifier: MIT
"""Caches sharded by slot: each rank attends to its part, and the parts are merged."""

import pytest
import torch
from test_expert_parallel import tiny
from test_pipeline import plan_of as staged
from tiny import BLOCK, CASES, apart, conversation, make_tiny

from tests.sharding.mutants import mutants, refused
from tokenspeed_core.models import compile_plan
from tokenspeed_core.sharding import Layout, Plan, map_leaves
from tokenspeed_core.sharding.merge import merged
from tokenspeed_core.sharding.recheck import recheck
from tokenspeed_core.sharding.simulate import Simulation

NUM_BLOCKS = 17
LAYOUTS = {
    "alone": Layout("tp=1 cp=2", place={"s": "cp"}),
    "heads-whole": Layout("tp=4", place={"k": "", "s": "tp"}),
    "where-heads-repeat": Layout("tp=(kv=2,rep=2)", place={"k": "kv", "g": "rep", "s": "rep"}),
    "with-requests": Layout(
        "dp=2 tp=(kv=2,rep=2)", place={"k": "kv", "g": "rep", "s": "rep"}, requests="dp"
    ),
}


def plan_of(layout: Layout) -> tuple[Plan, Simulation]:
    tiny = make_tiny(CASES["gqa-biases"], torch.float64)
    plan = compile_plan(tiny.family, tiny.config, layout, dtype=torch.float64, block_size=BLOCK)
    return plan, Simulation(plan, tiny.params, NUM_BLOCKS)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_shares_merge_to_the_whole(layout: str) -> None:
    tiny = make_tiny(CASES["gqa-biases"], torch.float64)
    plan, many = plan_of(LAYOUTS[layout])
    _, one = plan_of(Layout())
    for simulation in (one, many):
        # What was never written must not be read.
        map_leaves(
            lambda _, ranks: [part.fill_(torch.nan) for part in ranks.parts], simulation.caches
        )
    step = many.step if plan.mesh.requests else lambda *own: torch.cat([*map(many.step, own)])
    for expected, got in apart(tiny, one.step, step):
        assert (got - expected).abs().max() < 1e-12


OTHERS = [
    ("deepseek-v3", "tp=2 cp=2; s:cp"),
    ("deepseek-v2-lite", "dp=2 tp=1 cp=4; s:cp requests:dp"),
    ("gpt-oss", "tp=2 cp=2; s:cp"),
    ("gpt-oss", "dp=2 pp=2 tp=1 cp=4; s:cp requests:dp stages:pp"),
]


@pytest.mark.parametrize(("family", "text"), OTHERS)
def test_latents_and_sinks_are_merged_once(family: str, text: str) -> None:
    """A sink is a term of each head's softmax: counted in every share, it would weigh double."""
    model = tiny(family)
    plan = staged(model, text)
    one, many = (Simulation(p, model.params, NUM_BLOCKS) for p in (staged(model, "tp=1"), plan))
    step = many.step if plan.mesh.requests else lambda *own: torch.cat([*map(many.step, own)])
    for expected, got in apart(model, one.step, step):
        assert (got - expected).abs().max() < 1e-12
    recheck(plan, plan.source)


def test_a_rank_keeps_its_part_of_every_block() -> None:
    plan, _ = plan_of(LAYOUTS["heads-whole"])
    assert plan.cache[0][0].shape[2] == BLOCK // 4


def test_bfloat16_is_merged_in_float32() -> None:
    tiny = make_tiny(CASES["gqa-biases"])
    dtype = torch.bfloat16
    plan = compile_plan(tiny.family, tiny.config, LAYOUTS["alone"], dtype=dtype, block_size=BLOCK)
    params = {path: tensor.to(dtype) for path, tensor in tiny.params.items()}
    simulation = Simulation(plan, params, NUM_BLOCKS)
    for ours, oracle in conversation(tiny, simulation.step):
        assert (ours - oracle).abs().mean() < 0.05 * oracle.abs().mean() + 0.02


def test_a_share_without_keys_counts_for_nothing() -> None:
    empty = torch.tensor([[0.0, 0.0, -torch.inf]])
    share = torch.tensor([[1.0, 2.0, 3.0]])
    assert merged([empty, share, empty]).tolist() == [[1.0, 2.0]]
    assert merged([empty, empty]).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_mutants_are_refused(layout: str) -> None:
    plan, _ = plan_of(LAYOUTS[layout])
    found = [(label, refused(mutant)) for label, mutant in mutants(plan.program)]
    assert sum("merge" in label for label, _ in found) >= 8
    assert all(is_refused for label, is_refused in found if "merge" in label)
