# SPDX-License-Identifier: MIT
"""Mixtures whose attention is spread by requests and whose experts over all ranks."""

from functools import cache
from pathlib import Path

import attrs
import pytest
import torch
from tiny import BLOCK, Tiny, apart, tiny_of
from tiny_families import FAMILIES, MIXTURES

from tests.rank_processes import run_ranks
from tokenspeed_core.collectives import Collectives
from tokenspeed_core.models import compile_plan, family_of
from tokenspeed_core.rank_groups import RankGroups
from tokenspeed_core.sharding import Layout, Plan, leaves
from tokenspeed_core.sharding.emit import emit
from tokenspeed_core.sharding.machine import H100
from tokenspeed_core.sharding.overlap import overlap
from tokenspeed_core.sharding.program import Move
from tokenspeed_core.sharding.recheck import recheck
from tokenspeed_core.sharding.simulate import Simulation

NUM_BLOCKS = 17
MANY = 1 << 20  # tokens for which bytes decide
STREAM = {"Hidden": "n@tp d", "Tokens": "n@tp d"}
LAYOUTS = {
    "experts-over-dp": Layout("dp=2 tp=1", place={"j": "", "e": "dp"}, requests="dp"),
    "experts-over-all": Layout(
        "dp=2 tp=2", place={"j": "", "e": "dp+tp", "f": ""}, types=STREAM, requests="dp"
    ),
    "experts-over-dp-parts-over-tp": Layout(
        "dp=2 tp=2", place={"j": "tp", "e": "dp", "f": ""}, types=STREAM, requests="dp"
    ),
}
CASES = [
    (family, layout)
    for family in MIXTURES
    for layout in LAYOUTS
    # Expert biases are summed apart from their products where those are cut: over budget.
    if (family, layout) != ("gpt-oss", "experts-over-dp-parts-over-tp")
]


@cache
def tiny(family: str) -> Tiny:
    return tiny_of(FAMILIES[family](), torch.float64, (25, 13))


def plan_of(model: Tiny, layout: Layout, tokens: int = 0) -> Plan:
    # Some have no dense MLP beside the experts.
    params = model.family.params(model.config, torch.float64)
    has = {name for _, leaf in leaves(params) for name in leaf.spec.names}
    layout = attrs.evolve(layout, place={k: v for k, v in layout.place.items() if k in has})
    return compile_plan(
        model.family,
        model.config,
        layout,
        dtype=torch.float64,
        block_size=BLOCK,
        tokens=tokens,
    )


def kinds(plan: Plan) -> set[str]:
    return {
        step.kind
        for code in (*plan.program.blocks, plan.program.driver)
        for step in code.steps
        if isinstance(step, Move)
    }


@pytest.mark.parametrize("tokens", [0, MANY])
@pytest.mark.parametrize(("family", "layout"), CASES)
def test_every_lowering_equals_one_device(family: str, layout: str, tokens: int) -> None:
    plan = plan_of(tiny(family), LAYOUTS[layout], tokens)
    one = Simulation(plan_of(tiny(family), Layout()), tiny(family).params, NUM_BLOCKS)
    many = Simulation(plan, tiny(family).params, NUM_BLOCKS)
    for expected, got in apart(tiny(family), one.step, many.step):
        assert (got - expected).abs().max() < 1e-12
    # GPT-OSS' expert biases read the gathered ids too; parts of an expert need all of its rows.
    may = family != "gpt-oss" and layout != "experts-over-dp-parts-over-tp"
    assert ("dispatch" in kinds(plan)) == (may and tokens == MANY)
    recheck(plan, plan.source)


def early(plan: Plan) -> Plan:
    """Return a plan with every collective started early that has anything to do meanwhile."""
    program = overlap(plan.program, 1 << 24, H100)
    return attrs.evolve(plan, program=program, source=emit(program, plan.name, plan.ops))


def run_rank(rank: int, architecture: str, tokens: int, overlapped: bool, path: str) -> None:
    torch.set_num_threads(1)
    config, params, ids = torch.load(f"{path}/model", weights_only=False)
    model = Tiny(None, family_of(architecture), config, params, ids)
    plan = plan_of(model, LAYOUTS["experts-over-all"], tokens)
    plan = early(plan) if overlapped else plan
    assert ("c.start(" in plan.source) == overlapped
    meet = f"file://{path}/meet"
    cpu = torch.device("cpu")
    c = Collectives.of(RankGroups.join(plan.groups, plan.mesh.num_ranks, rank, meet, cpu))
    weights = plan.weights(plan.place(params, rank))
    forward, caches = plan.load(), plan.allocate_caches(NUM_BLOCKS)
    results = []
    own = plan.mesh.index(rank, plan.mesh.requests)

    def step(*batches: object) -> torch.Tensor:
        nonlocal caches
        result, caches = forward(c, weights, caches, batches[own])
        results.append(result)
        return result

    for _ in apart(model, lambda batch: batch.tokens, step):
        pass
    torch.save(results, f"{path}/{rank}")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("family", "tokens", "overlapped"),
    [
        ("qwen3-moe", 0, False),
        ("qwen3-moe", MANY, False),
        ("deepseek-v3", MANY, False),
        ("deepseek-v3", 0, True),
    ],
)
def test_real_ranks_equal_one_device(
    family: str, tokens: int, overlapped: bool, tmp_path: Path
) -> None:
    model = tiny(family)
    torch.save((model.config, model.params, model.tokens), tmp_path / "model")
    name = type(model.oracle).__name__
    run_ranks(run_rank, 4, name, tokens, overlapped, str(tmp_path))
    one = Simulation(plan_of(tiny(family), Layout()), tiny(family).params, NUM_BLOCKS)
    found = [torch.load(tmp_path / str(rank)) for rank in range(4)]
    pairs = apart(tiny(family), one.step, lambda *_: torch.empty(0))
    for index, (expected, _) in enumerate(pairs):
        for rank, results in enumerate(found):
            got = results[index]
            assert torch.equal(got, found[rank // 2 * 2][index])
            assert (got - expected[rank // 2]).abs().max() < 1e-12
